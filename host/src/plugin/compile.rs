//! Compilation: what turns a stranger's bytes into machine code, in a process that can be killed.
//!
//! The compiler is the one part of the sandbox whose work is not metered, so it does not run in the
//! host: the host starts its own binary again ([`Work`] is the hidden subcommand's argument), gives it
//! the bytes on standard input and takes the result from standard output. The child lowers its own
//! limits before it reads a byte, has no environment, knows no path, and runs at a low priority.
//!
//! **Invariant:** the child ends with the host, and writes nothing under a name. What it leaves behind when it is killed are
//! files that never had one. Its result is trusted like the compiler itself; the cache keeps it.

use std::fmt;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use wasmtime::Engine;

use super::cache::Cache;
use super::engine::engine_config;
use super::imports::reason;
use crate::config::Plugins;

/// The name of the hidden subcommand.
pub const SUBCOMMAND: &str = "compile-plugin";

/// Exit code of a child that has said why the bytes cannot be had.
const REFUSED: u8 = 1;

/// Exit code of a child that has said what the machine lacks.
const NO_MACHINE: u8 = 3;

/// Bytes of what a child says that are listened to.
const MAX_SAID_BYTES: u64 = 64 << 10;

/// What a child is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A component of a core module.
    Componentize,
    /// Machine code of a component.
    Compile,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Componentize => "componentize",
            Self::Compile => "compile",
        })
    }
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Componentize, Self::Compile]
            .into_iter()
            .find(|work| work.to_string() == text)
            .ok_or_else(|| format!("{text:?} is neither componentize nor compile"))
    }
}

impl Work {
    fn run(self, engine: &Engine, bytes: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Componentize => super::admit::componentize(bytes),
            Self::Compile => engine.precompile_component(bytes).map_err(|e| format!("{e:#}")),
        }
    }
}

/// Why bytes were not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The compiler refuses them.
    #[error("{0}")]
    Invalid(String),
    /// They cost more than a compilation may.
    #[error(
        "compiling it takes more than {limit} {what} ({name} in [plugins]): build it optimised and without what it does not use, or have the operator raise the limit"
    )]
    Limit {
        /// The unit.
        what: &'static str,
        /// The limit's name in the configuration.
        name: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The compiler broke on them.
    #[error("the compiler fails on it ({0}); report this with the plugin")]
    Broke(String),
    /// No compiler could be run: a fault of the machine.
    #[error("the compiler could not be run: {0}")]
    Host(String),
}

/// Where plugins are compiled.
pub(super) enum Compiler {
    /// In this process and without limits: for tests, and tools whose plugins are their own.
    Here,
    /// In children.
    Children(Children),
}

impl Compiler {
    /// Does `work` on `bytes`.
    pub fn run(
        &self,
        work: Work,
        bytes: &[u8],
        engine: &Engine,
        cache: &Cache,
    ) -> Result<Vec<u8>, CompileError> {
        match self {
            Self::Here => work.run(engine, bytes).map_err(CompileError::Invalid),
            Self::Children(children) => children.run(work, bytes, cache),
        }
    }
}

/// Starts children.
pub(super) struct Children {
    program: PathBuf,
    limits: Plugins,
}

impl Children {
    /// Children that run this very program, under `limits`.
    ///
    /// # Errors
    /// When the system does not say which program this is.
    pub fn new(limits: Plugins) -> std::io::Result<Self> {
        // Linux starts the file that this process runs, even where an upgrade has replaced it: code
        // compiled by another version would not load.
        let program = match cfg!(target_os = "linux") {
            true => PathBuf::from("/proc/self/exe"),
            false => std::env::current_exe()?,
        };
        Ok(Self { program, limits })
    }

    fn run(&self, work: Work, bytes: &[u8], cache: &Cache) -> Result<Vec<u8>, CompileError> {
        let host = |error: std::io::Error| CompileError::Host(error.to_string());
        let mut input = cache.scratch().map_err(host)?;
        input.write_all(bytes).and_then(|()| input.rewind()).map_err(host)?;
        let mut output = cache.scratch().map_err(host)?;
        let mut child = Command::new(&self.program)
            .arg(SUBCOMMAND)
            .arg(work.to_string())
            .args(["--memory-bytes", &self.limits.compile_memory_bytes.to_string()])
            .args(["--cpu-seconds", &self.limits.compile_cpu_seconds.to_string()])
            .args(["--output-bytes", &self.limits.compile_output_bytes.to_string()])
            .args(["--host", &std::process::id().to_string()])
            .env_clear()
            .stdin(input)
            .stdout(output.try_clone().map_err(host)?)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(host)?;
        let ended = self.wait(&mut child);
        let (status, said) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // Whatever went wrong, no child outlives its use.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        self.judge(status, &said)?;
        let mut result = Vec::new();
        output.rewind().and_then(|()| output.read_to_end(&mut result)).map_err(host)?;
        Ok(result)
    }

    /// Waits for a child's end: its status and what it said. Standard error is open for as long as
    /// the child lives, so its end is the child's.
    fn wait(&self, child: &mut Child) -> Result<(ExitStatus, String), CompileError> {
        let host = |error: &dyn fmt::Display| CompileError::Host(error.to_string());
        let stderr = child.stderr.take();
        let (said, hears) = crossbeam_channel::bounded(1);
        let listen = move || {
            let mut text = Vec::new();
            if let Some(stderr) = stderr {
                // What cannot be read any more was not said.
                let _ = stderr.take(MAX_SAID_BYTES).read_to_end(&mut text);
            }
            let _ = said.send(String::from_utf8_lossy(&text).into_owned());
        };
        let thread = std::thread::Builder::new().name("plugin-compiler".into());
        thread.spawn(listen).map_err(|error| host(&error))?;
        let limit = self.limits.compile_timeout_ms;
        let text = hears.recv_timeout(Duration::from_millis(limit)).map_err(|_| {
            CompileError::Limit { what: "milliseconds", name: "compile_timeout_ms", limit }
        })?;
        let status = child.wait().map_err(|error| host(&error))?;
        Ok((status, text))
    }

    /// What a child's end means.
    fn judge(&self, status: ExitStatus, said: &str) -> Result<(), CompileError> {
        let last = said.lines().rfind(|line| !line.starts_with("note:")).unwrap_or_default();
        let limit = |what, name, limit| Err(CompileError::Limit { what, name, limit });
        let limits = &self.limits;
        let by = |signal: Signal| status.signal() == Some(signal.as_raw());
        if status.success() {
            Ok(())
        } else if status.code() == Some(i32::from(REFUSED)) {
            Err(CompileError::Invalid(reason(last)))
        } else if status.code() == Some(i32::from(NO_MACHINE)) {
            Err(CompileError::Host(reason(last)))
        } else if by(Signal::XCPU) {
            limit("seconds of processor time", "compile_cpu_seconds", limits.compile_cpu_seconds)
        } else if by(Signal::XFSZ) {
            limit("bytes of code", "compile_output_bytes", limits.compile_output_bytes)
        } else if by(Signal::ABORT) && said.contains("memory allocation of") {
            limit("bytes of memory", "compile_memory_bytes", limits.compile_memory_bytes)
        } else {
            Err(CompileError::Broke(format!("{status}: {}", reason(last))))
        }
    }
}

/// Places for those whose work is not a task's: strangers' plugins while they are judged.
pub(super) struct Turns {
    free: Mutex<usize>,
    left: Condvar,
}

/// A place, held until it is dropped.
pub(super) struct Turn<'a>(&'a Turns);

impl Turns {
    /// So many at a time, at least one.
    pub fn new(count: usize) -> Self {
        Self { free: Mutex::new(count.max(1)), left: Condvar::new() }
    }

    /// Waits for a place.
    pub fn take(&self) -> Turn<'_> {
        let mut free = self.free.lock();
        while *free == 0 {
            self.left.wait(&mut free);
        }
        *free -= 1;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.left.notify_one();
    }
}

/// What a child may cost.
#[derive(Debug, Clone, Copy)]
pub struct ChildLimits {
    /// Address space in bytes.
    pub memory_bytes: u64,
    /// Processor time in seconds.
    pub cpu_seconds: u64,
    /// Bytes of the result.
    pub output_bytes: u64,
    /// The process with which it ends.
    pub host: i32,
}

/// The whole life of a child: takes limits upon itself, reads standard input to its end, writes the
/// result to standard output. Returns the exit code.
pub fn child(work: Work, limits: ChildLimits) -> u8 {
    let done = || -> Result<(), Trouble> {
        crate::storage::stand_back(crate::storage::Niceness::TENTH);
        end_with(limits.host).map_err(Trouble::machine)?;
        lower(limits).map_err(Trouble::machine)?;
        let engine = Engine::new(&engine_config()).map_err(Trouble::machine)?;
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map_err(Trouble::machine)?;
        let result = work.run(&engine, &bytes).map_err(|error| Trouble(REFUSED, error))?;
        let mut out = std::io::stdout().lock();
        out.write_all(&result).and_then(|()| out.flush()).map_err(Trouble::machine)
    };
    match done() {
        Ok(()) => 0,
        Err(Trouble(code, error)) => {
            eprintln!("{}", reason(&error));
            code
        }
    }
}

/// Why a child has no result: its exit code, and what it says.
struct Trouble(u8, String);

impl Trouble {
    fn machine(error: impl fmt::Display) -> Self {
        Self(NO_MACHINE, error.to_string())
    }
}

/// Has this process end when the thread of `host` that started it does, which waits for it.
#[cfg(target_os = "linux")]
fn end_with(host: i32) -> Result<(), String> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| error.to_string())?;
    match rustix::process::getppid() {
        Some(parent) if parent.as_raw_nonzero().get() == host => Ok(()),
        _ => Err("the host is gone".to_owned()),
    }
}

/// Elsewhere a child ends by its limits.
#[cfg(not(target_os = "linux"))]
fn end_with(_: i32) -> Result<(), String> {
    Ok(())
}

/// Takes limits upon this process. A second after the limit of processor time, which says by its
/// signal what it was, the kernel ends it for good.
fn lower(limits: ChildLimits) -> rustix::io::Result<()> {
    let both = |limit: u64| Rlimit { current: Some(limit), maximum: Some(limit) };
    setrlimit(Resource::Core, both(0))?;
    setrlimit(Resource::As, both(limits.memory_bytes))?;
    setrlimit(Resource::Fsize, both(limits.output_bytes))?;
    let (current, maximum) = (Some(limits.cpu_seconds), Some(limits.cpu_seconds.saturating_add(1)));
    setrlimit(Resource::Cpu, Rlimit { current, maximum })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_named_as_it_is_read() {
        for work in [Work::Componentize, Work::Compile] {
            assert_eq!(work.to_string().parse(), Ok(work));
        }
        assert!("link".parse::<Work>().unwrap_err().contains("\"link\""));
    }

    #[test]
    fn how_a_child_ends_says_what_was_wrong() {
        let children = Children::new(Plugins::default()).unwrap();
        let judge = |raw: i32, said: &str| {
            children.judge(ExitStatus::from_raw(raw), said).map_err(|error| error.to_string())
        };
        assert_eq!(judge(0, "a note"), Ok(()));
        let cases = [
            (i32::from(REFUSED) << 8, "unexpected \u{7}end", "unexpected  end"),
            (i32::from(NO_MACHINE) << 8, "No space left", "could not be run: No space left"),
            (
                Signal::XCPU.as_raw(),
                "",
                "more than 60 seconds of processor time (compile_cpu_seconds",
            ),
            (Signal::XFSZ.as_raw(), "", "bytes of code (compile_output_bytes in [plugins])"),
            (
                Signal::ABORT.as_raw(),
                "memory allocation of 5 bytes failed",
                "bytes of memory (compile_memory_bytes in [plugins])",
            ),
            (Signal::SEGV.as_raw(), "", "the compiler fails on it (signal: 11"),
            (
                101 << 8,
                "panicked at\nindex out of bounds\nnote: run with",
                "101: index out of bounds); report",
            ),
        ];
        for (raw, said, part) in cases {
            let error = judge(raw, said).unwrap_err();
            assert!(error.contains(part), "{raw} {said:?}: {error}");
        }
    }
}
