//! The systems that work from memory: native Rust, Bytewax, fluvio-smartengine.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::arguments::Job;
use super::child::{Child, tied};
use super::command::Shop;
use crate::steps::root;

const BYTEWAX: &str = "bytewax==0.21.1";
const NEEDS_PYTHON: &str = "Bytewax 0.21 needs Python 3.8 to 3.12 with venv and pip: put such a python3 first in PATH, or name other systems with --system";

/// Records that Bytewax has in memory; more are these again.
const HELD: u64 = 1_000_000;

/// As eagerly as guests are inlined (.cargo/config.toml).
const INLINED: &str = "-C llvm-args=-inline-threshold=1000";

/// How long a build or a download may take.
const BUILD: Duration = Duration::from_secs(1800);

/// How long a run may take.
const RUN: Duration = Duration::from_secs(300);

/// The jobs in native Rust.
pub struct Native(PathBuf);

impl Native {
    /// Builds them.
    ///
    /// # Errors
    /// When cargo fails.
    pub fn open(shop: &Shop) -> Result<Self> {
        cargo(shop, "native", &["build", "--release"], &[("RUSTFLAGS", INLINED)])?;
        Ok(Self(shop.dir.join("cargo/release/native")))
    }

    /// Runs a job; returns what it said.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, shop: &Shop, job: Job, records: u64) -> Result<Value> {
        let mut command = tied(&self.0);
        command.args([job.name(), &records.to_string()]);
        Child::start("native", command, &shop.run)?.answer(RUN)
    }

    fn records(&self, shop: &Shop, records: u64) -> Result<PathBuf> {
        let file = shop.run.join("records");
        let mut command = tied(&self.0);
        command.arg("records").arg(&file).arg(records.to_string());
        Child::start("records", command, &shop.run)?.end(RUN)?;
        Ok(file)
    }
}

/// Bytewax in a virtual environment.
pub struct Bytewax {
    python: PathBuf,
    file: PathBuf,
}

impl Bytewax {
    /// Installs it, and writes the records that it reads.
    ///
    /// # Errors
    /// When there is no Python that it works with, or a download fails.
    pub fn open(shop: &Shop, native: &Native) -> Result<Self> {
        let venv = shop.dir.join("venv");
        let python = venv.join("bin/python");
        let mut probe = Command::new(&python);
        probe.args(["-c", "import bytewax"]).stdout(Stdio::null()).stderr(Stdio::null());
        if !probe.status().is_ok_and(|status| status.success()) {
            shop.say("pip installs Bytewax");
            let mut make = tied("python3");
            make.args(["-m", "venv"]).arg(&venv);
            Child::start("venv", make, &shop.run)?.end(BUILD).context(NEEDS_PYTHON)?;
            let mut install = tied(&python);
            install.args(["-m", "pip", "install", "--quiet", BYTEWAX]);
            Child::start("pip", install, &shop.run)?.end(BUILD).context(NEEDS_PYTHON)?;
        }
        Ok(Self { python, file: native.records(shop, HELD)? })
    }

    /// Runs a job; returns what it said.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, shop: &Shop, job: Job, records: u64) -> Result<Value> {
        let mut command = tied(&self.python);
        command.arg(root().join("tests/peers/bytewax_peer.py")).arg(&self.file);
        command.args([job.name(), &records.to_string()]);
        Child::start("bytewax", command, &shop.run)?.answer(RUN)
    }
}

/// fluvio's engine, and a filter for it.
pub struct Fluvio {
    program: PathBuf,
    module: PathBuf,
}

impl Fluvio {
    /// Builds both, with the engine's own wasmtime.
    ///
    /// # Errors
    /// When cargo fails, or the compiler's WebAssembly target is missing.
    pub fn open(shop: &Shop) -> Result<Self> {
        const TARGET: &str = "wasm32-unknown-unknown";
        shop.say("cargo builds fluvio-smartengine; the first time that takes ten minutes");
        let module = ["build", "--package", "peers-fluvio-module", "--profile", "guest"];
        cargo(shop, "fluvio", &[&module[..], &["--target", TARGET]].concat(), &[]).context(
            "the compiler's WebAssembly target may be missing: `cargo xtask guests` brings it",
        )?;
        cargo(shop, "fluvio", &["build", "--release"], &[])?;
        let built = shop.dir.join("cargo");
        let module = built.join(TARGET).join("guest/filter.wasm");
        Ok(Self { program: built.join("release/fluvio"), module })
    }

    /// Runs a job; returns what it said.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, shop: &Shop, job: Job, records: u64) -> Result<Value> {
        let mut command = tied(&self.program);
        command.arg(&self.module).args([job.name(), &records.to_string()]);
        Child::start("fluvio", command, &shop.run)?.answer(RUN)
    }
}

/// Runs cargo on one of the workspaces of tests/peers.
fn cargo(
    shop: &Shop,
    workspace: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<()> {
    let mut cargo = tied(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).arg("--locked").env("CARGO_TARGET_DIR", shop.dir.join("cargo"));
    cargo.envs(environment.iter().copied());
    cargo.current_dir(root().join("tests/peers").join(workspace));
    Child::start(&format!("cargo-{workspace}"), cargo, &shop.run)?.end(BUILD).map(drop)
}
