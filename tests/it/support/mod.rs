//! What whole-host tests share: guests, hosts as child processes, and a client.

mod client;
mod host;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use client::{Client, Reply, lines};
pub use host::{Host, anabranch, outcome};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Where everything is built.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where a guest was built.
pub fn guest_path(name: &str) -> PathBuf {
    let path = target().join("wasm32-unknown-unknown/guest").join(format!("{name}.wasm"));
    assert!(
        path.exists(),
        "{} is not there: build the guests with `cargo xtask guests`",
        path.display()
    );
    path
}

/// A guest's bytes.
pub fn guest(name: &str) -> Vec<u8> {
    std::fs::read(guest_path(name)).unwrap()
}

/// How long a test waits for something that should take a moment.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A seed: from the environment variable `SEED`, to run a failure again, or a new one.
pub fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("run again with SEED={seed}");
    seed
}
