//! The copy of the head that a host keeps beside it, for the day when the head is lost.
//!
//! A thread writes one when logs, topics, deployments or plugins have changed, and at an interval while
//! anything changes. What a repair cannot bring back is what was acknowledged since and is in no segment.
//!
//! **Invariant:** the copy is as of one commit. That it cannot be written stops nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::SharedClock;
use crate::log::Log;
use crate::storage::{AboutHead, FileSystem, HEAD_COPY, Niceness, stand_back, write_head_copy};
use crate::threads::{self, Condvar, JoinHandle, Mutex};

/// How often it is looked whether a copy is due: a change of the catalogue is copied this soon.
const LOOK: Duration = Duration::from_secs(1);

/// Writes copies until it is closed, or dropped.
pub(super) struct HeadCopies {
    end: Arc<End>,
    thread: Option<JoinHandle<()>>,
}

/// Tells the thread to end.
#[derive(Default)]
struct End {
    asked: Mutex<Asked>,
    changed: Condvar,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Asked {
    #[default]
    Nothing,
    /// To write what has changed, then end.
    Finish,
    /// To end.
    Leave,
}

impl HeadCopies {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn start(
        log: Log,
        fs: Arc<dyn FileSystem>,
        clock: SharedClock,
        interval: Duration,
    ) -> std::io::Result<Self> {
        let end: Arc<End> = Arc::default();
        let own = Arc::clone(&end);
        let work = move || {
            // Nobody waits for a copy but the end of the host.
            stand_back(Niceness::TENTH);
            let mut copier = Copier { log, fs, clock, interval, last: None };
            loop {
                let mut asked = own.asked.lock();
                if *asked == Asked::Nothing {
                    own.changed.wait_for(&mut asked, LOOK);
                }
                let now = *asked;
                drop(asked);
                match now {
                    Asked::Nothing => copier.copy_if(Copier::is_due),
                    Asked::Finish => return copier.copy_if(Copier::has_changed),
                    Asked::Leave => return,
                }
            }
        };
        let thread = threads::spawn("head-copy".to_owned(), work)?;
        Ok(Self { end, thread: Some(thread) })
    }

    /// Has a last copy written, and waits for it.
    pub fn close(mut self) {
        self.ask(Asked::Finish);
        if let Some(thread) = self.thread.take() {
            // It ends by a panic at worst, which the hook has reported.
            let _ = thread.join();
        }
    }

    fn ask(&self, what: Asked) {
        *self.end.asked.lock() = what;
        self.end.changed.notify_all();
    }
}

impl Drop for HeadCopies {
    /// Does not wait: it may be dropped on the committer's thread, which a copy waits for.
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.ask(Asked::Leave);
        }
    }
}

/// What was copied last.
struct Copied {
    at: Duration,
    sequence: u64,
    structure: u64,
}

struct Copier {
    log: Log,
    fs: Arc<dyn FileSystem>,
    clock: SharedClock,
    interval: Duration,
    last: Option<Copied>,
}

impl Copier {
    fn has_changed(&self) -> bool {
        self.last.as_ref().is_none_or(|last| last.sequence != self.log.sequence())
    }

    fn is_due(&self) -> bool {
        let Some(last) = &self.last else { return true };
        last.structure != self.log.structure()
            || (self.clock.monotonic().saturating_sub(last.at) >= self.interval
                && self.has_changed())
    }

    fn copy_if(&mut self, wanted: fn(&Self) -> bool) {
        if self.log.failure().is_some() || !wanted(self) {
            return;
        }
        let (at, structure) = (self.clock.monotonic(), self.log.structure());
        let path = self.log.dir().join(HEAD_COPY);
        let now = self.clock.now_ms();
        let written = self.log.snapshot().map_err(|e| e.to_string()).and_then(|snapshot| {
            let about = AboutHead::new(snapshot.store_id, snapshot.sequence, now, Vec::new());
            write_head_copy(&self.fs, &path, &about, snapshot.entries())
                .map_err(|e| e.to_string())?;
            Ok(snapshot.sequence)
        });
        let sequence = written.unwrap_or_else(|error| {
            tracing::warn!("cannot write {}: {error}", path.display());
            // Tried again at the next interval.
            u64::MAX
        });
        self.last = Some(Copied { at, sequence, structure });
    }
}
