//! What a crossing costs, printed; and a bound so loose that only a mistake in kind breaks it.

use serde_json::json;

use super::super::Limits;
use super::support::{MemoryState, input, instance, load};
use crate::clock::SystemClock;
use crate::types::RecordsBuilder;

#[test]
fn a_crossing_is_paid_by_the_batch_and_not_by_the_record() {
    let clock = SystemClock::shared();
    for world in ["echo", "echo-record", "stateful"] {
        let plugin = load(world);
        let start = clock.monotonic();
        (0..200).for_each(|_| drop(plugin.instantiate(&json!({}), &Limits::default()).unwrap()));
        let fresh_us = (clock.monotonic() - start).as_micros() / 200;
        println!("{world:12} a fresh instance, init included: {fresh_us} us");
        for n in [1usize, 16, 256, 4096, 32768] {
            let mut rows = RecordsBuilder::default();
            for i in 0..n {
                let key = format!("k{:06}", i % 100_000);
                rows.push(i as i64, Some(key.as_bytes()), Some(&[b'x'; 100]), []);
            }
            let given = input(rows.finish());
            let mut guest = instance(world, &json!({}), &Limits::default());
            let rounds = (50_000 / n).clamp(5, 5_000);
            let best_ns = (0..3)
                .map(|_| {
                    let start = clock.monotonic();
                    for _ in 0..rounds {
                        let (result, _) = guest.process(&given, Box::<MemoryState>::default());
                        let given_back: usize =
                            result.unwrap().outputs.iter().map(|o| o.len()).sum();
                        assert_eq!(given_back, if world == "stateful" { 0 } else { n });
                    }
                    (clock.monotonic() - start).as_nanos() / (rounds * n) as u128
                })
                .min()
                .unwrap();
            println!("{world:12} {n:6} records a batch: {best_ns:6} ns a record");
            if n == 4096 && world == "echo" {
                assert!(best_ns < 1_000, "{best_ns} ns: something is done for each record");
            }
        }
    }
}
