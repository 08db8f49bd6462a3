//! Soon.
/// Soon.
pub fn run() -> anyhow::Result<()> { Ok(()) }
