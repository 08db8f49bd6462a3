//! Named moments at which a test can have the host killed.
//!
//! `ANABRANCH_CRASH_AT=name` ends the process as `kill -9` does when it first passes the point of
//! that name; `name:3` when it passes it for the third time. `@file` ends it when it passes the point
//! that the file names at that moment, with a count or without: so a test can let the host work first and
//! aim later. The point `disk-change` is passed before each change of a file or folder. The last
//! line on standard error is then `crash point name`, by which a test knows its own kill from any
//! other. Without the variable a point costs a load of one word. Nothing else in the host knows of it.
//!
//! `ANABRANCH_LEAVE_OUT=name` has the host leave out what it does under that name, for a test of the
//! tests that would miss it.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

enum Plan {
    /// A point, and how often it is still to be passed.
    Named(String, AtomicU32),
    /// The file that names a point, once there is one, and how often that was passed since.
    InFile(PathBuf, AtomicU32),
}

impl Plan {
    fn read() -> Option<Self> {
        let text = std::env::var("ANABRANCH_CRASH_AT").ok()?;
        if let Some(file) = text.strip_prefix('@') {
            return Some(Self::InFile(file.into(), AtomicU32::new(0)));
        }
        let (name, count) = named(&text);
        Some(Self::Named(name.to_owned(), AtomicU32::new(count)))
    }

    fn is_due(&self, point: &str) -> bool {
        match self {
            Self::Named(name, left) => name == point && left.fetch_sub(1, Ordering::SeqCst) == 1,
            Self::InFile(file, passed) => std::fs::read_to_string(file).is_ok_and(|text| {
                let (name, count) = named(text.trim());
                name == point && passed.fetch_add(1, Ordering::SeqCst) + 1 == count
            }),
        }
    }
}

/// A point, and at which time that it is passed: `name` or `name:3`.
fn named(text: &str) -> (&str, u32) {
    let (name, count) = text.split_once(':').unwrap_or((text, "1"));
    (name, count.parse().unwrap_or(1))
}

/// Says so aloud where the environment holds what only tests ask for.
pub fn warn_of_tests() {
    for (name, what) in [
        ("ANABRANCH_CRASH_AT", "ends when it passes a point in its code"),
        ("ANABRANCH_LEAVE_OUT", "leaves out what makes acknowledged records durable"),
    ] {
        if let Ok(value) = std::env::var(name) {
            tracing::warn!("{name}={value} is set: this host {what}, for tests; unset it else");
        }
    }
}

/// Whether a test asked that this be left out.
pub(super) fn is_left_out(name: &str) -> bool {
    static LEFT_OUT: OnceLock<Option<String>> = OnceLock::new();
    let left_out = LEFT_OUT.get_or_init(|| std::env::var("ANABRANCH_LEAVE_OUT").ok());
    left_out.as_deref() == Some(name)
}

/// Kills the process if a test asked for it here.
pub fn crash_point(name: &str) {
    crate::threads::pass(name);
    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    let Some(plan) = PLAN.get_or_init(Plan::read) else { return };
    if plan.is_due(name) {
        // One write, which comes whole or not at all; nobody need be reading.
        let _ = std::io::stderr().write_all(format!("crash point {name}\n").as_bytes());
        let process = rustix::process::getpid();
        // The signal cannot be refused by the process itself; there is nothing to do if it is.
        let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        std::thread::park();
    }
}
