//! The host under test: the `anabranch` binary, killed and started again on one data directory.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::client::Client;
use crate::steps::anabranch;

/// The signal that ends a process at once.
const SIGKILL: i32 = 9;

/// How long a host may take to start, or to stop when it is asked to.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the host's data lie, and everything that it needs to start there.
pub struct Home {
    dir: PathBuf,
    settings: Vec<(&'static str, String)>,
    starts: u32,
}

/// How a start went.
pub enum Start {
    /// The host is ready.
    Ready(Host),
    /// It ended before it was.
    Ended(End),
}

/// How a process ended.
pub struct End {
    status: ExitStatus,
    log: PathBuf,
}

impl Home {
    /// A home in `dir` for hosts with these settings, by environment variable.
    pub fn new(dir: &Path, settings: Vec<(&'static str, String)>) -> Self {
        Self { dir: dir.to_owned(), settings, starts: 0 }
    }

    /// Has the host killed when it passes the point next.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn aim(&self, point: &str) -> Result<()> {
        // Renamed, so that no half of a name is ever read.
        let (file, written) = (self.aim_file(), self.dir.join("aim.next"));
        std::fs::write(&written, point)?;
        Ok(std::fs::rename(written, file)?)
    }

    /// Lets the host live.
    pub fn aim_nowhere(&self) {
        // It may not be aimed at anything.
        let _ = std::fs::remove_file(self.aim_file());
    }

    fn aim_file(&self) -> PathBuf {
        self.dir.join("aim")
    }

    /// Starts a host.
    ///
    /// # Errors
    /// When it cannot be run at all, or neither gets ready nor ends.
    pub fn start(&mut self) -> Result<Start> {
        self.starts += 1;
        let log = self.dir.join(format!("host-{:03}.log", self.starts));
        let mut command = anabranch();
        command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(self.dir.join("data")).current_dir(&self.dir);
        command.env("ANABRANCH_CRASH_AT", format!("@{}", self.aim_file().display()));
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command.stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = command.spawn().context("cannot run anabranch")?;
        let mut out = child.stdout.take().map(BufReader::new).context("no output")?;
        let mut host = Host { child, log, client: Client::new(""), _out: None };
        let mut line = String::new();
        out.read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).unwrap_or_default();
        match ready["url"].as_str() {
            Some(url) => {
                (host.client, host._out) = (Client::new(url), Some(out));
                Ok(Start::Ready(host))
            }
            None => host.end(PATIENCE).map(Start::Ended),
        }
    }
}

/// A running host; it is killed when it is forgotten.
pub struct Host {
    child: Child,
    log: PathBuf,
    /// The way to ask it.
    pub client: Client,
    /// Kept open, so that the host can write to it.
    _out: Option<BufReader<ChildStdout>>,
}

impl Host {
    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn ended(&mut self) -> Result<Option<End>> {
        let log = self.log.clone();
        Ok(self.child.try_wait()?.map(|status| End { status, log }))
    }

    /// Kills it now.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(mut self) -> Result<End> {
        // It may have ended just now; how, its status says.
        let _ = self.child.kill();
        self.end(PATIENCE)
    }

    /// Asks it to stop, as a service manager does.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn ask_to_stop(&self) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("no process")?;
        kill_process(pid, Signal::TERM).context("cannot stop the host")
    }

    /// Stops it as a service manager does.
    ///
    /// # Errors
    /// When it does not stop, or not well.
    pub fn stop(mut self) -> Result<()> {
        self.ask_to_stop()?;
        let end = self.end(PATIENCE)?;
        if !end.was_asked() {
            bail!("{}", end.describe());
        }
        Ok(())
    }

    /// How it ended, as it must by itself within this time.
    ///
    /// # Errors
    /// When it has not.
    pub fn end_within(mut self, patience: Duration) -> Result<End> {
        self.end(patience)
    }

    fn end(&mut self, patience: Duration) -> Result<End> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(end) = self.ended()? {
                return Ok(end);
            }
            if Instant::now() > deadline {
                bail!("the host has not ended within {patience:?}: see {}", self.log.display());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What its log says of faults.
    pub fn faults(&self) -> Option<String> {
        faults(&self.log)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl End {
    /// Whether it ended well, as a host does that was asked to stop.
    pub fn was_asked(&self) -> bool {
        self.status.success()
    }

    /// Whether SIGKILL ended it.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(SIGKILL)
    }

    /// The point at which it was killed, if it was killed by itself at one.
    pub fn point(&self) -> Option<String> {
        let log = std::fs::read_to_string(&self.log).ok().filter(|_| self.was_killed())?;
        let said = log.lines().next_back()?.strip_prefix("crash point ")?;
        Some(said.to_owned())
    }

    /// What its log says of faults.
    pub fn faults(&self) -> Option<String> {
        faults(&self.log)
    }

    /// How it ended, and its last words.
    pub fn describe(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(5)..].join(" | ");
        format!("the host ended with {}; its log ends: {last}", self.status)
    }
}

fn faults(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let faulty = |line: &&str| line.contains("panicked at") || line.contains(" ERROR ");
    text.lines().find(faulty).map(str::to_owned)
}
