//! `cargo xtask test`: everything that must hold, the cheapest first.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::guests;
use crate::steps::{Steps, cargo, root, target};

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
    // With the feature of the one bench that is else not built.
    let lints = "clippy --workspace --all-targets --features anabranch/native -- --deny warnings";
    let lints: Vec<&str> = lints.split(' ').collect();
    steps.run("clippy", &mut cargo(&lints))?;
    deny(&mut steps)?;
    // Who reads the host's documentation works on the host: private modules are half of it.
    let mut docs = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    steps.run("doc", docs.env("RUSTDOCFLAGS", "--deny warnings"))?;
    guests::build_in(&mut steps)?;
    bring_pyarrow(&mut steps)?;
    // One test compares rates, and has the machine to itself.
    let all = ["test", "--workspace", "--no-fail-fast", "--", "--skip", "hostile::together"];
    steps.run("test", &mut cargo(&all))?;
    let alone = ["test", "--workspace", "--test", "it", "--", "hostile::together"];
    steps.run("test of rates", &mut cargo(&alone))?;
    let mut crash = Command::new(std::env::current_exe()?);
    steps.run("crash", crash.args(["crash", "--rounds", "50", "--seed", "1"]))?;
    let mut powerloss = Command::new(std::env::current_exe()?);
    let few = ["powerloss", "--rounds", "2", "--images", "9", "--seed", "1"];
    steps.run("powerloss", powerloss.args(few))?;
    let mut faults = Command::new(std::env::current_exe()?);
    let few = ["faults", "--runs", "20", "--flips", "11", "--seed", "1"];
    steps.run("faults", faults.args(few))?;
    benches(&mut steps)?;
    println!("xtask: all steps passed: {}", steps.summary());
    Ok(())
}

/// All benchmarks at tiny sizes: that they run, not how fast.
fn benches(steps: &mut Steps) -> Result<()> {
    let replays = ["--records", "20000", "--workers", "1", "--job", "filter"];
    for more in [&[][..], &replays] {
        let mut bench = Command::new(target().join("debug/anabranch"));
        steps.run("bench", bench.args(["bench", "--quick"]).args(more).current_dir(root()))?;
    }
    let mut peers = Command::new(std::env::current_exe()?);
    steps.run("bench-peers", peers.args(["bench-peers", "--quick", "--system", "native"]))?;
    // Run as tests, which criterion takes for once each.
    for words in ["--bench parts", "--bench sandbox -- --quick"] {
        let mut bench = cargo(&["test", "--workspace", "--features", "anabranch/native"]);
        steps.run("cargo bench", bench.args(words.split(' ')))?;
    }
    Ok(())
}

/// What dependencies may be. Known advisories are looked for where their database can be reached.
fn deny(steps: &mut Steps) -> Result<()> {
    let checks = ["check", "--hide-inclusion-graph"];
    let mut deny = bring_deny(steps)?;
    deny.args(checks).args(["licenses", "bans", "sources"]).current_dir(root());
    steps.run("deny", &mut deny)?;
    let mut advisories = bring_deny(steps)?;
    advisories.args(checks).arg("advisories").current_dir(root());
    let said = advisories.output().context("cargo-deny")?;
    let text = String::from_utf8_lossy(&said.stderr);
    if text.contains("failed to fetch advisory database") {
        println!("xtask: advisories are not checked: their database cannot be reached");
        return Ok(());
    }
    ensure!(said.status.success(), "advisories:\n{text}");
    Ok(())
}

/// cargo-deny: the user's own, or one that is built, in a minute, below the target directory.
fn bring_deny(steps: &mut Steps) -> Result<Command> {
    const VERSION: &str = "0.20.2";
    let probe = cargo(&["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if probe.is_ok_and(|status| status.success()) {
        return Ok(cargo(&["deny"]));
    }
    let tools = target().join("tools");
    let program = tools.join("bin").join("cargo-deny");
    if !program.is_file() {
        // Quick to build rather than to run: it looks at some hundreds of crates.
        let what = ["install", "cargo-deny", "--version", VERSION, "--locked", "--debug"];
        let mut install = cargo(&what);
        install.arg("--no-default-features").arg("--root").arg(tools);
        steps.run("cargo-deny", &mut install)?;
    }
    Ok(Command::new(program))
}

/// Brings pyarrow, by which a test reads what the host wrote, into a virtual environment under the
/// target directory, unless it is there.
fn bring_pyarrow(steps: &mut Steps) -> Result<()> {
    const NEEDS: &str = "a test reads segments with pyarrow, which needs python3 with venv and pip \
        (Debian: apt-get install python3-venv) and, once, a way to PyPI";
    let venv = target().join("pyarrow-venv");
    let python = venv.join("bin/python");
    let mut probe = Command::new(&python);
    let probe = probe.args(["-c", "import pyarrow"]).stdout(Stdio::null()).stderr(Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    steps.run("venv", Command::new("python3").args(["-m", "venv"]).arg(&venv)).context(NEEDS)?;
    let install = ["-m", "pip", "install", "--quiet", "pyarrow"];
    steps.run("pyarrow", Command::new(&python).args(install)).context(NEEDS)
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
