//! What whole-host tests share: guests, hosts, and plain computations to compare with.

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// A guest's bytes.
///
/// # Panics
/// When it was not built: the message names the command that builds it.
pub fn guest(name: &str) -> Vec<u8> {
    let path = root().join("target/wasm32-unknown-unknown/guest").join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|e| {
        panic!("{}: {e}; build the guests with `cargo xtask guests`", path.display())
    })
}
