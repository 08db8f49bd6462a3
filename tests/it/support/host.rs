//! A host as its user runs it: the real binary, in a process of its own, on a free port.
//!
//! **Invariant:** a host ends with its test, however the test ends, and no setting of the environment
//! reaches it but those that the test gives.

use std::io::{BufRead as _, BufReader};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::{Client, wait_until};

/// The file that standard error is kept in.
const NOTES: &str = "stderr";

/// A host that serves; it is asked as a [`Client`].
pub struct Host {
    child: Child,
    home: PathBuf,
    /// The directory of a host that was given none; it goes with the host.
    own: Option<tempfile::TempDir>,
    client: Client,
}

/// The command line of the binary under test, away from the environment's settings.
pub fn anabranch() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anabranch"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ANABRANCH_")) {
        command.env_remove(name);
    }
    command
}

/// What a run of the command line said: exit code, standard output, standard error.
pub fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

impl Host {
    /// A host on a fresh directory.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A host on a fresh directory, with settings as environment variables.
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let own = tempfile::tempdir().unwrap();
        let mut host = Self::on(own.path(), settings);
        host.own = Some(own);
        host
    }

    /// A host whose data are in `home`, which outlives it, with settings as environment variables.
    pub fn on(home: &Path, settings: &[(&str, &str)]) -> Self {
        Self::run(home, settings, Stdio::inherit())
    }

    /// A host that asks for tokens, and an admin's token, which was made before it started. What it says
    /// on standard error is kept.
    pub fn start_guarded(settings: &[(&str, &str)]) -> (Self, String) {
        let own = tempfile::tempdir().unwrap();
        let made = anabranch()
            .args(["token", "create", "root", "--role", "admin", "--data"])
            .arg(own.path().join("data"))
            .env("ANABRANCH_STORAGE_MIN_FREE_BYTES", "1048576")
            .output();
        let (code, token, error) = outcome(&made.expect("the binary under test runs"));
        assert_eq!(code, 0, "{error}");
        let notes = std::fs::File::create(own.path().join(NOTES)).unwrap();
        let settings = [settings, &[("ANABRANCH_AUTH_REQUIRED", "true")]].concat();
        let mut host = Self::run(own.path(), &settings, notes.into());
        host.own = Some(own);
        (host, token.trim().to_owned())
    }

    /// A host on a fresh directory whose standard error is kept, for [`Host::said`].
    pub fn start_noting(settings: &[(&str, &str)]) -> Self {
        let own = tempfile::tempdir().unwrap();
        let notes = std::fs::File::create(own.path().join(NOTES)).unwrap();
        let mut host = Self::run(own.path(), settings, notes.into());
        host.own = Some(own);
        host
    }

    /// What a host made by [`Host::start_noting`] has said on standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.home.join(NOTES)).unwrap()
    }

    fn run(home: &Path, settings: &[(&str, &str)], stderr: Stdio) -> Self {
        let mut child = anabranch()
            .args(["serve", "--listen", "127.0.0.1:0", "--json", "--data"])
            .arg(home.join("data"))
            .current_dir(home)
            .env("ANABRANCH_STORAGE_MIN_FREE_BYTES", "1048576")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the binary under test runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("the host did not say that it is ready, but {line:?}"));
        let client = Client::new(ready["url"].as_str().expect("it says where"));
        Self { child, home: home.to_path_buf(), own: None, client }
    }

    /// A client of this host, to be taken elsewhere.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// A file of the test's own beside the data.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.home.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Runs the command line against this host.
    pub fn cli(&self, args: &[&str]) -> (i32, String, String) {
        let output = anabranch().args(["--url", self.url()]).args(args).output();
        outcome(&output.expect("the binary under test runs"))
    }

    /// Asks the host to stop, as an operator does.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// The process' id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Files that the process has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Waits for the process to end; its exit code, if no signal ended it.
    pub fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the host ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    /// Stops the host, which must end well.
    pub fn stop(&mut self) {
        self.terminate();
        assert_eq!(self.ended(), Some(0));
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops the host and starts another on its directory.
    pub fn restart(self) -> Self {
        self.restart_with(&[])
    }

    /// The same, with settings as environment variables.
    pub fn restart_with(mut self, settings: &[(&str, &str)]) -> Self {
        self.stop();
        self.restart_stopped(settings)
    }

    /// Starts another on the directory of one that was stopped.
    pub fn restart_stopped(mut self, settings: &[(&str, &str)]) -> Self {
        let mut next = Self::on(&self.home, settings);
        next.own = self.own.take();
        next
    }
}

impl Deref for Host {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
