//! Worker threads: which task steps next.
//!
//! A task is in the queue when it has something to do. Live tasks go first; replays get a guaranteed
//! minimum share of the busy time and whatever live work leaves.
//!
//! **Invariant:** a task steps on one thread at a time, and a wake-up during a step is not lost.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::clock::SharedClock;

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stepped {
    /// There is more to do.
    Again,
    /// Nothing until someone wakes the task.
    Wait,
    /// Never again.
    Done,
}

/// What workers run, a step at a time.
pub trait Step: Send {
    /// Does one batch of work.
    fn step(&mut self) -> Stepped;

    /// Told that a step panicked: a fault of the host. It is not stepped again.
    fn panicked(&mut self);
}

/// Which queue a task waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Live work.
    Live,
    /// Replays and warm generations.
    Replay,
}

const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const RUNNING_AGAIN: u8 = 3;
const DONE: u8 = 4;

struct Slot {
    step: Mutex<Option<Box<dyn Step>>>,
    state: AtomicU8,
    class: AtomicU8,
}

/// A task that workers run; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    slot: Arc<Slot>,
    pool: Arc<Pool>,
}

impl Handle {
    /// Lets the task step soon. Never blocks for long, and may be called from any thread.
    pub fn wake(&self) {
        let queue =
            self.slot.state.fetch_update(
                Ordering::AcqRel,
                Ordering::Acquire,
                |state| match state {
                    IDLE => Some(QUEUED),
                    RUNNING => Some(RUNNING_AGAIN),
                    _ => None,
                },
            );
        if queue == Ok(IDLE) {
            self.pool.push(Arc::clone(&self.slot));
        }
    }

    /// Moves the task to another queue, from its next wake-up on.
    pub fn set_class(&self, class: Class) {
        self.slot.class.store(class as u8, Ordering::Release);
    }
}

#[derive(Default)]
struct Queues {
    live: VecDeque<Arc<Slot>>,
    replay: VecDeque<Arc<Slot>>,
    /// Busy time of each class while both had work.
    live_busy: Duration,
    replay_busy: Duration,
    closed: bool,
}

impl Queues {
    fn pop(&mut self, replay_share: u32) -> Option<Arc<Slot>> {
        if self.live.is_empty() || self.replay.is_empty() {
            (self.live_busy, self.replay_busy) = Default::default();
        }
        let owed = self.replay_busy * 100 < (self.live_busy + self.replay_busy) * replay_share;
        let first = if owed { &mut self.replay } else { &mut self.live };
        if let Some(slot) = first.pop_front() {
            return Some(slot);
        }
        self.live.pop_front().or_else(|| self.replay.pop_front())
    }
}

struct Pool {
    queues: Mutex<Queues>,
    ready: Condvar,
    clock: SharedClock,
    replay_share: u32,
}

impl Pool {
    fn push(&self, slot: Arc<Slot>) {
        let mut queues = self.queues.lock();
        if slot.class.load(Ordering::Acquire) == Class::Live as u8 {
            queues.live.push_back(slot);
        } else {
            queues.replay.push_back(slot);
        }
        drop(queues);
        self.ready.notify_one();
    }

    fn next(&self) -> Option<Arc<Slot>> {
        let mut queues = self.queues.lock();
        loop {
            if queues.closed {
                return None;
            }
            if let Some(slot) = queues.pop(self.replay_share) {
                return Some(slot);
            }
            self.ready.wait(&mut queues);
        }
    }

    fn run(&self) {
        while let Some(slot) = self.next() {
            slot.state.store(RUNNING, Ordering::Release);
            let began = self.clock.monotonic();
            let stepped = match &mut *slot.step.lock() {
                Some(step) => catch_unwind(AssertUnwindSafe(|| step.step())).unwrap_or_else(|_| {
                    step.panicked();
                    Stepped::Done
                }),
                None => Stepped::Done,
            };
            let busy = self.clock.monotonic().saturating_sub(began);
            {
                let mut queues = self.queues.lock();
                if slot.class.load(Ordering::Acquire) == Class::Live as u8 {
                    queues.live_busy += busy;
                } else {
                    queues.replay_busy += busy;
                }
            }
            self.after(slot, stepped);
        }
    }

    fn after(&self, slot: Arc<Slot>, stepped: Stepped) {
        match stepped {
            Stepped::Done => {
                slot.state.store(DONE, Ordering::Release);
                *slot.step.lock() = None;
            }
            Stepped::Again => {
                slot.state.store(QUEUED, Ordering::Release);
                self.push(slot);
            }
            Stepped::Wait => {
                let idle =
                    slot.state.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire);
                if idle.is_err() {
                    slot.state.store(QUEUED, Ordering::Release);
                    self.push(slot);
                }
            }
        }
    }
}

/// The worker threads of a host.
pub struct Workers {
    pool: Arc<Pool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    /// `count` threads; replays get at least `replay_share` percent of their busy time.
    ///
    /// # Errors
    /// When the machine gives no threads.
    pub fn start(count: usize, replay_share: u32, clock: SharedClock) -> std::io::Result<Self> {
        let (queues, ready) = (Mutex::default(), Condvar::new());
        let pool = Arc::new(Pool { queues, ready, clock, replay_share: replay_share.min(100) });
        let mut threads = Vec::new();
        for i in 0..count {
            let pool = Arc::clone(&pool);
            let thread = std::thread::Builder::new().name(format!("worker-{i}"));
            threads.push(thread.spawn(move || pool.run())?);
        }
        Ok(Self { pool, threads: Mutex::new(threads) })
    }

    /// Adds a task; it steps when it is woken.
    pub fn add(&self, step: Box<dyn Step>, class: Class) -> Handle {
        let slot = Slot {
            step: Mutex::new(Some(step)),
            state: AtomicU8::new(IDLE),
            class: AtomicU8::new(class as u8),
        };
        Handle { slot: Arc::new(slot), pool: Arc::clone(&self.pool) }
    }

    /// Ends the threads after the steps under way.
    pub fn close(&self) {
        self.pool.queues.lock().closed = true;
        self.pool.ready.notify_all();
        for thread in self.threads.lock().drain(..) {
            // A worker that panicked has said so on stderr; the others still have to end.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::clock::SystemClock;

    struct Count {
        steps: Arc<AtomicUsize>,
        left: usize,
    }

    impl Step for Count {
        fn step(&mut self) -> Stepped {
            self.steps.fetch_add(1, Ordering::SeqCst);
            self.left = self.left.saturating_sub(1);
            if self.left == 0 { Stepped::Wait } else { Stepped::Again }
        }

        fn panicked(&mut self) {}
    }

    #[test]
    fn wake_ups_are_not_lost() {
        let workers = Workers::start(2, 25, SystemClock::shared()).unwrap();
        let steps = Arc::new(AtomicUsize::new(0));
        let task = Box::new(Count { steps: Arc::clone(&steps), left: 10 });
        let handle = workers.add(task, Class::Live);
        handle.wake();
        while steps.load(Ordering::SeqCst) < 10 {
            std::thread::yield_now();
        }
        for _ in 0..1000 {
            let before = steps.load(Ordering::SeqCst);
            handle.wake();
            while steps.load(Ordering::SeqCst) == before {
                std::thread::yield_now();
            }
        }
        workers.close();
    }

    #[test]
    fn replays_keep_their_share() {
        let slot = |class: Class| {
            Arc::new(Slot {
                step: Mutex::new(None),
                state: AtomicU8::new(QUEUED),
                class: AtomicU8::new(class as u8),
            })
        };
        let mut queues = Queues::default();
        let mut replays = 0;
        for _ in 0..1000 {
            queues.live.push_back(slot(Class::Live));
            queues.replay.push_back(slot(Class::Replay));
            let next = queues.pop(25).unwrap();
            if next.class.load(Ordering::SeqCst) == Class::Replay as u8 {
                replays += 1;
                queues.replay_busy += Duration::from_millis(1);
            } else {
                queues.live_busy += Duration::from_millis(1);
            }
        }
        assert!((240..=260).contains(&replays), "{replays} of 1000");
    }
}
