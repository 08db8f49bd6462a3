//! Threads and how they wait for each other: the one place where the data plane asks the machine for
//! either.
//!
//! Locks and conditions are parking_lot's, threads are std's, channels are built on the locks. In builds
//! for tests each of them first asks whether its thread belongs to a simulation; if so, a scheduler
//! decides from a seed which thread goes on, and time passes as it says (`scheduler`).
//!
//! **Invariant:** in a host's build everything here is the thing itself: [`pass`] is empty and no
//! [`Bug`] is there. Whoever holds a lock from here may wait; whoever holds any other must not.

mod channel;
mod quiet;
#[cfg(test)]
pub(crate) mod scheduler;
#[cfg(test)]
mod simulated;

use std::io;

pub use channel::{Receiver, Sender, channel};
#[cfg(not(test))]
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
pub use quiet::quietly;
#[cfg(test)]
pub use simulated::{Condvar, JoinHandle, Mutex, MutexGuard, RwLock};
#[cfg(not(test))]
pub use std::thread::JoinHandle;

/// Starts a thread.
///
/// # Errors
/// When the machine gives none.
pub fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    #[cfg(test)]
    return simulated::spawn(name, body);
    #[cfg(not(test))]
    std::thread::Builder::new().name(name).spawn(body)
}

/// A moment at which, in a simulation, another thread may go on or the host may be lost.
#[inline]
pub fn pass(_place: &str) {
    #[cfg(test)]
    scheduler::pass(_place);
}

/// A bug that the simulation must be able to find. Builds for tests alone can have one, and they do only
/// in a history that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Commits are answered before the head is synced.
    LostFsync,
    /// A sync of the head that fails is taken for one that does not.
    UnheededSync,
    /// A task's commit to the head is applied twice, the second time without its guards.
    DoubleCommit,
    /// A generation goes live before it has come to where the live one stands.
    EarlyFlip,
}

/// Whether the bug is there.
#[inline]
pub fn has(_bug: Bug) -> bool {
    #[cfg(test)]
    return scheduler::has(_bug);
    #[cfg(not(test))]
    false
}
