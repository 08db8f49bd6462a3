//! Ends the process when the head does not come back from a read, a write or a sync.
//!
//! sled waits for what another of its threads writes, without a limit, and misses its wake-up when that
//! thread fails at the wrong moment. Then the committer waits for ever, and everyone for the committer; or
//! the sealer, or whoever reads.
//! Nobody can take a thread back that waits below, and nobody can say what is on disk, as after a failed
//! sync: the process ends, and its next start looks.
//!
//! **Invariant:** what came back in time is never the end of the process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::SharedClock;
use crate::threads::{self, Condvar, JoinHandle, Mutex};

#[derive(Default)]
struct Watched {
    /// What is being done, by several threads at once, and since when; by number.
    under_way: BTreeMap<u64, (&'static str, Duration)>,
    /// Numbers given.
    begun: u64,
    closed: bool,
}

/// A thread that looks at the clock while something is under way.
pub(super) struct Watch {
    clock: SharedClock,
    shared: Arc<(Mutex<Watched>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts the thread; `late` is called, over and over, with what has taken longer than `patience`.
    ///
    /// # Errors
    /// When the machine gives no thread.
    pub fn start(
        clock: SharedClock,
        patience: Duration,
        late: impl Fn(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::<(Mutex<Watched>, Condvar)>::default();
        let (watched, time) = (Arc::clone(&shared), Arc::clone(&clock));
        let thread = threads::spawn("watch".to_owned(), move || {
            let (watched, closed) = &*watched;
            let mut watched = watched.lock();
            while !watched.closed {
                closed.wait_for(&mut watched, patience / 4);
                let is_late = |since| time.monotonic().saturating_sub(since) > patience;
                for (what, _) in watched.under_way.values().filter(|(_, since)| is_late(*since)) {
                    late(what);
                }
            }
        })?;
        Ok(Self { clock, shared, thread: Some(thread) })
    }

    /// Does something that must come back.
    pub fn during<T>(&self, what: &'static str, work: impl FnOnce() -> T) -> T {
        let number = {
            let mut watched = self.shared.0.lock();
            watched.begun += 1;
            let number = watched.begun;
            watched.under_way.insert(number, (what, self.clock.monotonic()));
            number
        };
        let done = work();
        self.shared.0.lock().under_way.remove(&number);
        done
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.0.lock().closed = true;
        self.shared.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    /// A watch of little patience, and what it tells.
    fn start() -> (Watch, std::sync::mpsc::Receiver<String>) {
        let (told, late) = std::sync::mpsc::channel();
        let patience = Duration::from_millis(200);
        let watch = Watch::start(SystemClock::shared(), patience, move |what| {
            told.send(what.to_owned()).unwrap();
        })
        .unwrap();
        (watch, late)
    }

    #[test]
    fn what_does_not_come_back_is_told_and_what_does_is_not() {
        let (watch, late) = start();
        for _ in 0..1_000 {
            watch.during("quick", || ());
        }
        let heard = watch.during("sync", || late.recv_timeout(Duration::from_secs(60)));
        assert_eq!(heard.unwrap(), "sync");
        drop(watch);
        assert!(late.iter().all(|what| what == "sync"));
    }

    #[test]
    fn what_others_do_meanwhile_hides_nothing() {
        let (watch, late) = start();
        let heard = watch.during("sync", || {
            std::thread::scope(|scope| {
                scope.spawn(|| watch.during("write", || ()));
            });
            late.recv_timeout(Duration::from_secs(60))
        });
        assert_eq!(heard.unwrap(), "sync");
    }
}
