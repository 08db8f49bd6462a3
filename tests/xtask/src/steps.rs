//! Steps: commands that are run one after the other, each named with what it took.
//!
//! **Invariant:** every cargo call works on the same target directory, and those that build for this
//! machine name the whole workspace, so that none builds a dependency again with other features than
//! another did.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The root of the repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default()
}

/// Where everything is built.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .and_then(|dir| std::path::absolute(dir).ok())
        .unwrap_or_else(|| root().join("target"))
}

/// Where the guests' components are, as `name.wasm`.
pub fn guest_dir() -> PathBuf {
    target().join("wasm32-unknown-unknown/guest")
}

/// A call of cargo in the repository.
pub fn cargo(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(root()).env("CARGO_TARGET_DIR", target());
    command
}

/// The host's binary; what the caller's environment says about other hosts is left out.
pub fn anabranch() -> Command {
    let mut command = Command::new(target().join("debug/anabranch"));
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.to_string_lossy().starts_with("ANABRANCH_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Steps that were run, with their times.
#[derive(Default)]
pub struct Steps {
    done: Vec<(&'static str, Duration)>,
    on_stderr: bool,
}

impl Steps {
    /// Steps that leave standard output to what comes after them.
    pub fn on_stderr() -> Self {
        Self { on_stderr: true, ..Self::default() }
    }

    fn tell(&self, line: &str) {
        if self.on_stderr { eprintln!("{line}") } else { println!("{line}") }
    }

    /// Runs a step whose output is shown as it comes.
    ///
    /// # Errors
    /// When the command cannot be run or fails: the message names the step and the command.
    pub fn run(&mut self, name: &'static str, command: &mut Command) -> Result<()> {
        let line = line_of(command);
        self.tell(&format!("── {name}: {line}"));
        let started = Instant::now();
        let status = command.status().with_context(|| format!("{name}: cannot run {line}"))?;
        let took = started.elapsed();
        if !status.success() {
            bail!("{name} failed after {:.1} s ({status}): {line}", took.as_secs_f64());
        }
        self.tell(&format!("   {name} took {:.1} s", took.as_secs_f64()));
        self.done.push((name, took));
        Ok(())
    }

    /// All steps in one line.
    pub fn summary(&self) -> String {
        let each: Vec<String> = self
            .done
            .iter()
            .map(|(name, took)| format!("{name} {:.0} s", took.as_secs_f64()))
            .collect();
        let total: Duration = self.done.iter().map(|(_, took)| *took).sum();
        format!("{} in {:.0} s", each.join(", "), total.as_secs_f64())
    }
}

/// A command as a person would type it.
fn line_of(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default();
    let mut words = vec![program.to_string_lossy()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy()));
    words.join(" ")
}

/// What a command prints on standard output.
///
/// # Errors
/// When it cannot be run or fails; the message holds what it said.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let line = line_of(command);
    let out = command.output().with_context(|| format!("cannot run {line}"))?;
    if !out.status.success() {
        bail!("{line} failed ({}): {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(out.stdout)
}
