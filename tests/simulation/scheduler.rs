//! The scheduler by itself: that it finds what it is for, and repeats it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::threads::scheduler::{self, Ending, Plan, Report};
use crate::threads::{Condvar, Mutex, channel, pass, spawn};

fn plan(seed: u64) -> Plan {
    Plan { seed, lost_at: None, max_steps: 10_000, begin_us: 1, bug: None, verbose: false }
}

/// Two threads that count in two steps, with or without a lock around them.
fn count(seed: u64, locked: bool) -> (u32, Report) {
    let count = Arc::new(AtomicU32::new(0));
    let total = Arc::clone(&count);
    let report = scheduler::run(plan(seed), move || {
        let lock = Arc::new(Mutex::new(()));
        let threads: Vec<_> = (0..2)
            .map(|i| {
                let (lock, count) = (Arc::clone(&lock), Arc::clone(&count));
                let body = move || {
                    let _guard = locked.then(|| lock.lock());
                    let before = count.load(Ordering::SeqCst);
                    pass("between");
                    count.store(before + 1, Ordering::SeqCst);
                };
                spawn(format!("thread-{i}"), body).unwrap()
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    (total.load(Ordering::SeqCst), report)
}

#[test]
fn races_are_found_and_locks_hold() {
    let totals: Vec<_> = (0..50).map(|seed| count(seed, false).0).collect();
    assert!(totals.contains(&1) && totals.contains(&2), "{totals:?}");
    assert!((0..50).all(|seed| count(seed, true).0 == 2));
    assert!((0..50).all(|seed| count(seed, true) == count(seed, true)));
}

#[test]
fn a_deadlock_is_told() {
    let report = scheduler::run(plan(1), || {
        let (_sender, receiver) = channel::<()>();
        receiver.recv();
    });
    let Ending::Failed(failure) = report.ending else { panic!("{report:?}") };
    assert!(failure.contains("wait for each other"), "{failure}");
}

#[test]
fn panics_and_endless_runs_are_told() {
    let panics = scheduler::run(plan(1), || {
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert_eq!(panics.ending, Ending::Failed("main panicked: on purpose".to_owned()));
    let endless = scheduler::run(plan(1), || {
        loop {
            pass("again");
        }
    });
    assert_eq!(endless.ending, Ending::Failed("no end after 10001 steps".to_owned()));
}

#[test]
fn time_goes_to_the_next_moment_that_is_waited_for() {
    let report = scheduler::run(plan(1), || {
        let (mutex, never) = (Mutex::new(()), Condvar::new());
        never.wait_for(&mut mutex.lock(), Duration::from_secs(3_600));
        scheduler::sleep(Duration::from_secs(3_600));
    });
    assert_eq!(report.ending, Ending::Done);
    assert!((7_200_000_000..7_201_000_000).contains(&report.end_us), "{report:?}");
}

#[test]
fn a_lost_host_unwinds_wherever_it_stands() {
    for lost_at in 1..60 {
        let dropped = Arc::new(AtomicU32::new(0));
        let drops = Arc::clone(&dropped);
        let report = scheduler::run(Plan { lost_at: Some(lost_at), ..plan(lost_at) }, move || {
            struct Counted(Arc<AtomicU32>);
            impl Drop for Counted {
                fn drop(&mut self) {
                    self.0.fetch_add(1, Ordering::SeqCst);
                }
            }
            let (sender, receiver) = channel();
            let counted = Counted(drops);
            let thread = spawn("other".to_owned(), move || {
                let _counted = &counted;
                while let Some(()) = receiver.recv() {}
            });
            for _ in 0..60 {
                pass("again");
                let _ = sender.send(());
            }
            drop(sender);
            thread.unwrap().join().unwrap();
        });
        assert_eq!(report.ending, Ending::Lost, "lost at {lost_at}");
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "lost at {lost_at}");
    }
}
