//! Processes that end when the one that started them does.
//!
//! **Invariant:** a child stands below a shell that ends it once the pipe to the shell is closed. Only this
//! process holds the other end, so dropping a [`Child`], an error, Ctrl-C and a kill all close it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Runs its arguments and passes their exit code on; asks them to end when its input ends, and makes them
/// 20 seconds later.
const WATCH: &str = r#"exec 3<&0
"$@" </dev/null 3<&- & child=$!
( cat <&3; kill $child; sleep 20; kill -KILL $child ) >/dev/null 2>&1 & watch=$!
exec 3<&-
wait $child; code=$?
kill $watch 2>/dev/null
exit $code"#;

/// How long a child may take to end once it is told.
const GOODBYE: Duration = Duration::from_secs(30);

/// A process, with its output in files.
pub struct Child {
    process: std::process::Child,
    what: String,
    out: PathBuf,
    log: PathBuf,
}

/// A command that ends with this process; to be given arguments of its own.
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", WATCH, "sh"]).arg(program);
    command
}

impl Child {
    /// Starts a [`tied`] command whose output goes to `what`.out and `what`.log in `dir`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(what: &str, mut command: Command, dir: &Path) -> Result<Self> {
        let out = dir.join(format!("{what}.out"));
        let log = dir.join(format!("{what}.log"));
        let file = |path: &Path| File::create(path).with_context(|| path.display().to_string());
        command.stdin(Stdio::piped()).stdout(file(&out)?).stderr(file(&log)?);
        let process = command.spawn().with_context(|| format!("cannot run {what}"))?;
        Ok(Self { process, what: what.to_owned(), out, log })
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Waits until it has ended by itself; returns what it printed.
    ///
    /// # Errors
    /// When it does not end within `limit`, or ends badly; the message holds the end of its log.
    pub fn end(mut self, limit: Duration) -> Result<String> {
        let Some(status) = self.wait(limit)? else {
            let (what, limit) = (self.what.clone(), limit.as_secs());
            bail!(
                "{what} took longer than {limit} s and was ended; its log ends:\n{}",
                self.tail()
            );
        };
        if !status.success() {
            bail!("{} failed ({status}); its log ends:\n{}", self.what, self.tail());
        }
        std::fs::read_to_string(&self.out).with_context(|| self.out.display().to_string())
    }

    /// As [`end`](Self::end); returns the last line, which is a JSON document.
    ///
    /// # Errors
    /// As [`end`](Self::end), and when there is no such line.
    pub fn answer(self, limit: Duration) -> Result<Value> {
        let what = self.what.clone();
        let said = self.end(limit)?;
        let line = said.lines().rev().find(|line| line.starts_with('{'));
        let line = line.with_context(|| format!("{what} did not say what it measured"))?;
        serde_json::from_str(line).with_context(|| format!("{what} said {line}"))
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        let mut text = String::new();
        for path in [&self.out, &self.log] {
            // What is not there has nothing to tell.
            let _ = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
        }
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        if !matches!(self.wait(GOODBYE), Ok(Some(_))) {
            // The shell ends its child within 20 seconds; this is for a shell that does not.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(dir: &Path, script: &str) -> Child {
        let mut command = tied("sh");
        command.args(["-c", script]);
        Child::start("child", command, dir).unwrap()
    }

    #[test]
    fn what_it_says_and_how_it_ends_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Duration::from_secs(30);
        let answer = start(dir.path(), "echo hello; echo '{\"a\": 7}'").answer(limit).unwrap();
        assert_eq!(answer["a"], 7);
        let error = start(dir.path(), "echo why >&2; exit 3").end(limit).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("exit status: 3") && error.contains("why"), "{error}");
    }

    #[test]
    fn it_ends_when_it_is_dropped_or_takes_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap 'echo ended; exit 0' TERM; echo began; while :; do sleep 0.05; done";
        let mut child = start(dir.path(), script);
        let out = dir.path().join("child.out");
        while std::fs::read_to_string(&out).unwrap() != "began\n" {
            assert!(child.runs());
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(child);
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "began\nended\n");
        let error = start(dir.path(), script).end(Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains("took longer"), "{error}");
    }
}
