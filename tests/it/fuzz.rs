//! The corpora of the fuzz targets, replayed; and seeded mutations of them, so that every run looks a
//! little further.

use crate::support::{root, seed};

#[path = "../fuzz/targets.rs"]
mod targets;

/// Mutations of each target's corpus.
const MUTATIONS: usize = 2_000;

/// A corpus: what is committed, and what the golden files hold.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = root().join("tests/fuzz/corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    if target == "segment" {
        files.push(root().join("tests/golden/v1/log/segment.arrow"));
    }
    files.sort();
    assert!(!files.is_empty(), "{} is empty", dir.display());
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn mutate(random: &mut fastrand::Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut data = corpus[random.usize(..corpus.len())].clone();
    for _ in 0..random.usize(1..5) {
        let at = random.usize(..data.len() + 1);
        match random.u8(..6) {
            0 => data.truncate(at),
            1 => data.insert(at, random.u8(..)),
            2 => {
                let other = &corpus[random.usize(..corpus.len())];
                let from = random.usize(..other.len() + 1);
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
            _ if at == data.len() => data.push(random.u8(..)),
            3 => data[at] ^= 1 << random.u8(..8),
            4 => data[at] = [0, 1, 0x7f, 0x80, 0xff][random.usize(..5)],
            _ => data[at] = random.u8(..),
        }
    }
    data
}

#[test]
fn corpora_and_their_mutations_find_nothing() {
    let seed = seed();
    for (name, body) in targets::ALL {
        let corpus = corpus(name);
        for data in &corpus {
            targets::run(name, data);
        }
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..MUTATIONS {
            let data = mutate(&mut random, &corpus);
            let found = std::panic::catch_unwind(|| body(&data));
            assert!(found.is_ok(), "{name} with seed {seed}: {}", data.escape_ascii());
        }
    }
}
