//! `cargo xtask test`: everything that must hold, the cheapest first.

use std::process::Stdio;

use anyhow::{Result, bail};

use crate::guests;
use crate::steps::{Steps, cargo};

/// Builds the host for the demo as the tests build it for theirs, so that either uses what the other
/// built. The package of this program is left out, as a running program need not be built again.
pub const BUILD_HOST: [&str; 5] = ["build", "--workspace", "--bins", "--exclude", "xtask"];

/// Runs all steps; stops at the first that fails.
///
/// # Errors
/// Which step failed.
pub fn run() -> Result<()> {
    bring_components()?;
    let mut steps = Steps::default();
    steps.run("fmt", &mut cargo(&["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    steps.run("clippy", &mut cargo(&lints))?;
    // Who reads the host's documentation works on the host: private modules are half of it.
    let mut docs = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    steps.run("doc", docs.env("RUSTDOCFLAGS", "--deny warnings"))?;
    guests::build_in(&mut steps)?;
    steps.run("test", &mut cargo(&["test", "--workspace", "--no-fail-fast"]))?;
    println!("xtask: all steps passed: {}", steps.summary());
    Ok(())
}

/// Sees that the formatter and the linter are there.
fn bring_components() -> Result<()> {
    for component in ["fmt", "clippy"] {
        let mut ask = cargo(&[component, "--version"]);
        let there = ask.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            bail!("cargo {component} is missing: run `rustup component add rustfmt clippy`");
        }
    }
    Ok(())
}
