//! Named moments at which a test can have the host killed.
//!
//! `ANABRANCH_CRASH_AT=name` ends the process as `kill -9` does when it first passes the point of
//! that name; `name:3` when it passes it for the third time. Without the variable a point costs a load
//! of one word. Nothing else in the host knows of it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

struct Plan {
    name: String,
    left: AtomicU32,
}

fn plan() -> Option<&'static Plan> {
    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    let read = || {
        let text = std::env::var("ANABRANCH_CRASH_AT").ok()?;
        let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
        let left = AtomicU32::new(count.parse().unwrap_or(1));
        Some(Plan { name: name.to_owned(), left })
    };
    PLAN.get_or_init(read).as_ref()
}

/// Kills the process if a test asked for it here.
pub fn crash_point(name: &str) {
    let Some(plan) = plan() else { return };
    if plan.name == name && plan.left.fetch_sub(1, Ordering::SeqCst) == 1 {
        let process = rustix::process::getpid();
        // The signal cannot be refused by the process itself; there is nothing to do if it is.
        let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        std::thread::park();
    }
}
