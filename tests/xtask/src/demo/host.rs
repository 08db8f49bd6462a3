//! The `anabranch` binary, run as a user runs it: one process that serves, others that ask it.
//!
//! **Invariant:** no process outlives the demo, however it ends.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::steps::{anabranch, output};

/// A process that ends when it is forgotten.
pub struct Process(Child);

impl Process {
    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Asks it to stop, as the terminal or a service manager does, and waits until it has.
    ///
    /// # Errors
    /// When it does not stop, or not well.
    pub fn stop(self, what: &str) -> Result<()> {
        let pid = Pid::from_raw(self.0.id().cast_signed()).context("no process")?;
        kill_process(pid, Signal::TERM).with_context(|| format!("cannot stop {what}"))?;
        self.end(what)
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it does not, or ends badly.
    pub fn end(mut self, what: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.runs() {
            if Instant::now() > deadline {
                bail!("{what} has not ended within a minute");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.0.wait()?;
        if !status.success() {
            bail!("{what} ended with {status}");
        }
        Ok(())
    }

    /// Ends it at once.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A host, and the way to ask it.
pub struct Host {
    process: Process,
    /// Where it listens.
    pub url: String,
    log: PathBuf,
}

impl Host {
    /// Starts a host whose data and log are in `dir`.
    ///
    /// # Errors
    /// When it does not say that it is ready; the message holds the end of its log.
    pub fn start(dir: &Path) -> Result<Self> {
        let log = dir.join("host.log");
        let mut command = anabranch();
        command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(dir.join("data")).current_dir(dir);
        command.stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = command.spawn().context("cannot run anabranch")?;
        let out = child.stdout.take();
        let mut host = Self { process: Process(child), url: String::new(), log };
        let mut line = String::new();
        if let Some(out) = out {
            BufReader::new(out).read_line(&mut line)?;
        }
        let ready: Value = serde_json::from_str(&line).unwrap_or_default();
        let Some(url) = ready["url"].as_str() else {
            bail!("the host did not get ready:\n{}", host.log_tail());
        };
        url.clone_into(&mut host.url);
        Ok(host)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = anabranch();
        command.args(arguments).env("ANABRANCH_URL", &self.url);
        command
    }

    /// Shows a command as its user would type it, runs it, and shows what it says.
    ///
    /// # Errors
    /// When it fails.
    pub fn show(&self, arguments: &[&str]) -> Result<()> {
        tell(arguments);
        let out = output(&mut self.command(arguments))?;
        for line in String::from_utf8_lossy(&out).lines() {
            println!("  {line}");
        }
        Ok(())
    }

    /// What a command says in JSON, unshown.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_slice(&output(self.command(arguments).arg("--json"))?)?)
    }

    /// The lines that a command says, unshown.
    ///
    /// # Errors
    /// When it fails.
    pub fn lines(&self, arguments: &[&str]) -> Result<String> {
        Ok(String::from_utf8(output(&mut self.command(arguments))?)?)
    }

    /// Shows a command and runs it in the background, with its output in a file.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn background(&self, arguments: &[&str], out: &Path) -> Result<Process> {
        tell(&[arguments, &["&"]].concat());
        let mut command = self.command(arguments);
        command.stdout(File::create(out)?).stderr(File::create(out.with_extension("err"))?);
        Ok(Process(command.spawn().context("cannot run anabranch")?))
    }

    /// Stops the host as a service manager would.
    ///
    /// # Errors
    /// When it does not stop well; the message holds the end of its log.
    pub fn stop(self) -> Result<Duration> {
        let started = Instant::now();
        let log = self.log;
        self.process.stop("the host").with_context(|| tail(&log))?;
        Ok(started.elapsed())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

/// A command as its user would type it; long paths by their last part.
fn tell(arguments: &[&str]) {
    let short = |word: &str| match word.rsplit_once('/') {
        Some((path, name)) if path.starts_with('/') => format!("…/{name}"),
        _ => word.to_owned(),
    };
    let words: Vec<String> = arguments.iter().map(|word| short(word)).collect();
    println!("$ anabranch {}", words.join(" "));
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
