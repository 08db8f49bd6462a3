//! A host of the benchmark's own: the same program, run as `serve` in a directory that goes away.
//!
//! **Invariant:** neither hosts nor the directory outlive the benchmark, however it ends short of a
//! SIGKILL: by itself, by an error, by Ctrl-C, SIGTERM or SIGHUP, or because its time is over.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::client::{Client, Error};
use crate::clock::SharedClock;

/// How long a host may take to stop before it is killed.
const GOODBYE: Duration = Duration::from_secs(30);

/// How long a benchmark that was told to end may take to print what it has.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long an error may be ahead of the signal that caused it: a terminal tells hosts, too.
const SIGNAL_DELAY: Duration = Duration::from_millis(200);

/// Why a benchmark was told to end, and with which exit code.
type End = (String, i32);

/// Where hosts live, and who runs.
#[derive(Clone)]
pub struct Workshop {
    dir: Arc<TempDir>,
    pids: Arc<Mutex<BTreeSet<i32>>>,
    end: Arc<Mutex<Option<End>>>,
    /// For what is timed.
    pub clock: SharedClock,
}

impl Workshop {
    /// A fresh directory below `parent`, watched over by a thread that clears up on a signal or after
    /// `limit`.
    ///
    /// # Errors
    /// When the directory or the thread cannot be had.
    pub fn open(parent: &Path, limit: Duration, clock: SharedClock) -> Result<Self, Error> {
        let made = tempfile::Builder::new().prefix("anabranch-bench-").tempdir_in(parent);
        let dir = made.map_err(|error| {
            let parent = parent.display();
            Error::Failed(format!("no directory below {parent}: {error}; name another with --dir"))
        })?;
        let workshop =
            Self { dir: Arc::new(dir), pids: Arc::default(), end: Arc::default(), clock };
        let (path, pids) = (workshop.dir.path().to_owned(), Arc::clone(&workshop.pids));
        let (end, (ready, is_ready)) = (Arc::clone(&workshop.end), std::sync::mpsc::channel());
        let watch = move || {
            let Some((reason, code)) = wait_for_end(limit, ready) else { return };
            *end.lock() = Some((reason.clone(), code));
            let end_hosts = || {
                for pid in pids.lock().iter().copied().filter_map(Pid::from_raw) {
                    // It may have ended by itself.
                    let _ = kill_process(pid, Signal::KILL);
                }
            };
            end_hosts();
            // Whoever measures notices, prints what there is and ends the process.
            std::thread::sleep(LAST_WORDS);
            end_hosts();
            remove(&path);
            leave(&reason, code);
        };
        let thread = std::thread::Builder::new().name("bench-watch".to_owned()).spawn(watch);
        thread.map_err(|error| Error::Failed(format!("no thread: {error}")))?;
        // An error of the thread's shows as a channel that closes: then signals do as they always do.
        let _ = is_ready.recv();
        Ok(workshop)
    }

    /// Ends the process if the benchmark was told to end; `failed` says that something went wrong, of
    /// which that may be the cause.
    pub fn close(&self, failed: bool) {
        if failed {
            std::thread::sleep(SIGNAL_DELAY);
        }
        if let Some((reason, code)) = self.end.lock().take() {
            remove(self.dir());
            leave(&reason, code);
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Seconds since `then`, on the clock's monotonic time.
    pub fn seconds_since(&self, then: Duration) -> f64 {
        (self.clock.monotonic() - then).as_secs_f64()
    }

    /// Starts a host on the data in the directory `name`, with settings such as
    /// (`TASKS_WORKERS`, `2`).
    ///
    /// # Errors
    /// When it does not get ready; the message holds the end of its log.
    pub fn start(&self, name: &str, settings: &[(&str, String)]) -> Result<Host, Error> {
        self.start_on(name, settings, None)
    }

    /// As [`start`](Self::start), with all of the host on one core (by `taskset` of util-linux).
    ///
    /// # Errors
    /// As [`start`](Self::start), and when the core cannot be had.
    pub fn start_on(
        &self,
        name: &str,
        settings: &[(&str, String)],
        core: Option<usize>,
    ) -> Result<Host, Error> {
        let data = self.dir().join(name);
        let log = self.dir().join(format!("{name}.log"));
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Error::Failed(format!("the benchmark's host: {what}: {error}"))
        };
        let program = std::env::current_exe().map_err(|error| failed("no program", &error))?;
        let mut command = match core {
            None => Command::new(program),
            Some(core) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &core.to_string()]).arg(program);
                command
            }
        };
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("ANABRANCH_") {
                command.env_remove(variable);
            }
        }
        command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--data"]).arg(&data);
        command.current_dir(self.dir()).env("ANABRANCH_LOG_LEVEL", "warn");
        command.envs(settings.iter().map(|(key, value)| (format!("ANABRANCH_{key}"), value)));
        let stderr = std::fs::File::create(&log).map_err(|error| failed("no log", &error))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let started = self.clock.monotonic();
        let child = command.spawn().map_err(|error| failed("it cannot be run", &error))?;
        self.pids.lock().insert(child.id().cast_signed());
        let workshop = self.clone();
        let mut host = Host { child, workshop, client: None, data, ready_seconds: 0.0 };
        let mut line = String::new();
        if let Some(out) = host.child.stdout.take() {
            // A host that ends instead closes the pipe.
            let _ = BufReader::new(out).read_line(&mut line);
        }
        host.ready_seconds = self.seconds_since(started);
        let ready: Value = serde_json::from_str(&line).unwrap_or_default();
        let Some(url) = ready["url"].as_str() else {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last = text.lines().last().unwrap_or("it said nothing");
            return Err(Error::Failed(format!("the benchmark's host did not get ready: {last}")));
        };
        host.client = Some(Client::new(url)?);
        Ok(host)
    }
}

/// Waits for a signal or the end of `limit`; says which, with the exit code. Tells `ready` once no signal
/// is missed.
fn wait_for_end(limit: Duration, ready: std::sync::mpsc::Sender<()>) -> Option<End> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).ok()?;
        let mut terminate = signal(SignalKind::terminate()).ok()?;
        let mut hang_up = signal(SignalKind::hangup()).ok()?;
        ready.send(()).ok()?;
        tokio::select! {
            _ = interrupt.recv() => Some(("the benchmark was interrupted".to_owned(), 130)),
            _ = terminate.recv() => Some(("the benchmark was ended".to_owned(), 143)),
            _ = hang_up.recv() => Some(("the benchmark's terminal is gone".to_owned(), 129)),
            () = tokio::time::sleep(limit) => {
                Some((format!("the benchmark took longer than {} s", limit.as_secs()), 1))
            }
        }
    })
}

/// Removes a directory in which files may still appear while hosts end.
fn remove(dir: &Path) {
    for _ in 0..50 {
        if std::fs::remove_dir_all(dir).is_ok() || !dir.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn leave(reason: &str, code: i32) -> ! {
    // There may be no terminal any more.
    let _ = writeln!(
        std::io::stderr(),
        "anabranch: {reason}; its hosts are ended and its directory removed"
    );
    std::process::exit(code)
}

/// A host that runs.
pub struct Host {
    child: Child,
    workshop: Workshop,
    client: Option<Client>,
    data: PathBuf,
    /// Seconds from its start until it said that it is ready.
    pub ready_seconds: f64,
}

impl Host {
    /// The way to ask it.
    pub fn client(&self) -> &Client {
        self.client.as_ref().expect("set before the host is handed out")
    }

    /// Bytes of memory it has now, and has had at most, as Linux counts them (VmRSS, VmHWM).
    pub fn memory_bytes(&self) -> (u64, u64) {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
        };
        let bytes = |name| field(name).unwrap_or_default() << 10;
        (bytes("VmRSS:"), bytes("VmHWM:"))
    }

    /// Nanoseconds that its threads were on a processor so far, by their names without a number at the end,
    /// as Linux counts them (`schedstat`).
    pub fn processor_ns(&self) -> BTreeMap<String, u64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let mut all = BTreeMap::new();
        for task in tasks.into_iter().flatten().flatten() {
            // A thread may end while it is looked at.
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
            let ran =
                read("schedstat").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
            if let (Some(name), Some(ran)) = (read("comm"), ran) {
                let name =
                    name.trim_end().trim_end_matches(|c: char| c == '-' || c.is_ascii_digit());
                *all.entry(name.to_owned()).or_default() += ran;
            }
        }
        all
    }

    /// Bytes on disk below its data directory: all, and those of the head.
    pub fn disk_bytes(&self) -> (u64, u64) {
        (disk_bytes(&self.data), disk_bytes(&self.data.join("head")))
    }

    /// The sum of all values of a metric.
    ///
    /// # Errors
    /// When the host cannot be asked.
    pub fn metric(&self, name: &str) -> Result<f64, Error> {
        let text = self.client().text("/metrics")?;
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then(|| line.rsplit_once(' ')?.1.parse::<f64>().ok())?
        });
        Ok(values.sum())
    }

    /// Stops it as a service manager does.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop(mut self) -> Result<(), Error> {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended; the wait below tells.
            let _ = kill_process(pid, Signal::TERM);
        }
        let asked = self.workshop.clock.monotonic();
        while self.workshop.clock.monotonic() - asked < GOODBYE {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(Error::Failed(format!("the benchmark's host ended with {status}")));
                }
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        Err(Error::Failed("the benchmark's host does not stop".to_owned()))
    }

    /// Ends it at once and removes its data.
    pub fn discard(self) {
        let data = self.data.clone();
        drop(self);
        // The whole directory goes away at the end in any case.
        let _ = std::fs::remove_dir_all(data);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.workshop.pids.lock().remove(&self.child.id().cast_signed());
    }
}

/// Bytes that the files below `dir` take on disk.
fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => disk_bytes(&entry.path()),
        Ok(data) => data.blocks() * 512,
        // A file may go while it is looked at.
        Err(_) => 0,
    };
    entries.flatten().map(bytes).sum()
}
