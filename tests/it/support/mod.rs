//! What whole-host tests share: guests, hosts as child processes, and a client.

pub mod client;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use client::Client;

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Where a guest was built.
pub fn guest_path(name: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = target.join("wasm32-unknown-unknown/guest").join(format!("{name}.wasm"));
    assert!(
        path.exists(),
        "{} is not there: build the guests with `cargo xtask guests`",
        path.display()
    );
    path
}

/// A guest's bytes.
pub fn guest(name: &str) -> Vec<u8> {
    std::fs::read(guest_path(name)).unwrap()
}

/// How long a test waits for something that should take a moment.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A seed: from the environment variable `SEED`, to run a failure again, or a new one.
pub fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("run again with SEED={seed}");
    seed
}

/// A host as its user runs it: the real binary, in a process of its own.
pub struct Host {
    child: Child,
    url: String,
}

impl Host {
    /// Starts a host on `data` and waits until it is ready.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    /// As [`Host::start`], with variables in its environment.
    pub fn start_with(data: &Path, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anabranch"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .env("ANABRANCH_STORAGE_MIN_FREE_BYTES", "1048576")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = loop {
            let line = lines.next().expect("the host ended before it was ready").unwrap();
            if let Some(rest) = line.strip_prefix("anabranch is ready at ") {
                break rest.split(' ').next().unwrap().to_owned();
            }
        };
        // Someone has to read what it says, or it would wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }

    /// A client of this host.
    pub fn client(&self) -> Client {
        Client::new(&self.url)
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended by itself.
    pub fn wait(mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "the host did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it as an operator does.
    pub fn terminate(self) -> ExitStatus {
        let status =
            Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
        self.wait()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that failed must not leave its host behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
