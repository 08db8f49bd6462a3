//! Worker threads: which task steps next.
//!
//! A task is in a queue when it has something to do: live tasks in one, replays in another, which has
//! workers of its own, as many and of lower priority. So the system gives a processor to live work as
//! soon as there is some, also in the middle of a replay's step, and replays have what is left, and a
//! share where nothing is. Among equals whoever has had the least time goes first, so that one whose
//! steps take a hundred times as long as another's gets no more.
//!
//! A step cannot be interrupted, and a plugin that uses up its fuel at every record makes steps of
//! seconds, though a search for records at fault ends its step before the batch ends; one that fails
//! fast at every record makes short ones, without end. So tasks whose last step was long stand back: they
//! wait in a queue of their own, for threads of their own, as many as there are workers and of low
//! priority. So do those that waste most of their time, in another queue, so that
//! they do not wait for minutes behind the long steps. Whoever is in a long step on an ordinary worker
//! is found out by a watching thread, which lends its place to a new worker.
//!
//! **Invariant:** a task steps on one thread at a time, and a wake-up during a step is not lost. While
//! tasks of a class wait, as many of its workers as were asked for are in no long step (up to [`MAX_LENT`]
//! lent places).

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::account::{Account, Apart, LONG_STEP};
use crate::clock::SharedClock;
use crate::storage::{Niceness, ThreadNumber, stand_back};
use crate::threads::{self, Condvar, JoinHandle, Mutex};

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

    /// Time that steps wasted since this was last asked, in calls that failed or said more than is kept.
    fn wasted(&mut self) -> Duration;

    /// Told that a step panicked: a fault of the host. It is not stepped again.
    fn panicked(&mut self);
}

/// Which queue a task waits in, and whose workers step it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Live work.
    Live,
    /// Replays and warm generations.
    Replay,
}

const CLASSES: [Class; 2] = [Class::Live, Class::Replay];

/// Places that may be lent at a time: each is a thread in a long step.
const MAX_LENT: usize = 64;

const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const RUNNING_AGAIN: u8 = 3;
const DONE: u8 = 4;

struct Slot {
    step: Mutex<Option<Box<dyn Step>>>,
    state: AtomicU8,
    class: AtomicU8,
    account: Mutex<Account>,
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

    /// Why the task stands back, if it does.
    pub fn apart(&self) -> Option<Apart> {
        self.slot.account.lock().apart(self.pool.clock.monotonic())
    }

    /// Moves the task to another queue, from its next wake-up on.
    pub fn set_class(&self, class: Class) {
        if self.slot.class.swap(class as u8, Ordering::AcqRel) != class as u8 {
            self.slot.account.lock().had = Duration::ZERO;
        }
    }
}

/// Tasks that wait for an ordinary worker, by the time that they have had.
#[derive(Default)]
struct Ready {
    /// By time had and, where that is equal, by turn.
    tasks: BTreeMap<(Duration, u64), Arc<Slot>>,
    turns: u64,
    /// The time that the last one to be taken had had.
    least: Duration,
}

impl Ready {
    /// Whoever comes from elsewhere (with no time had), or had nothing to do, begins as an equal: nobody
    /// saves time up.
    fn push(&mut self, slot: Arc<Slot>) {
        let had = {
            let mut account = slot.account.lock();
            account.had = account.had.clamp(self.least, self.least + LONG_STEP);
            account.had
        };
        self.turns += 1;
        self.tasks.insert((had, self.turns), slot);
    }

    fn pop(&mut self) -> Option<Arc<Slot>> {
        let ((had, _), slot) = self.tasks.pop_first()?;
        self.least = self.least.max(had);
        Some(slot)
    }
}

/// An ordinary worker in a step.
struct Stepping {
    began: Duration,
    thread: ThreadNumber,
}

#[derive(Default)]
struct Queues {
    /// By [`Class`].
    ready: [Ready; 2],
    /// Tasks that stand back, by [`Apart`].
    apart: [VecDeque<Arc<Slot>>; 2],
    /// Ordinary workers in a step, by [`Class`] and number. Those whose place was lent are no longer
    /// here, but counted in `lent`.
    stepping: [BTreeMap<usize, Stepping>; 2],
    lent: usize,
    /// Ordinary workers ever started.
    started: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

impl Queues {
    /// Whether a task of `class` waits while all of its `count` ordinary workers are in a step.
    fn is_stuck(&self, class: Class, count: usize) -> bool {
        !self.ready[class as usize].tasks.is_empty() && self.stepping[class as usize].len() >= count
    }

    /// Takes the place of a worker whose step has lasted too long at `now`, if one may be lent; it
    /// stands back by `niceness` from then on.
    fn lend(&mut self, class: Class, now: Duration, niceness: Niceness) -> bool {
        let stepping = &mut self.stepping[class as usize];
        let is_long = |step: &Stepping| now.saturating_sub(step.began) >= LONG_STEP;
        let long = stepping.iter().find(|(_, step)| is_long(step));
        let Some(worker) = long.map(|(worker, _)| *worker) else { return false };
        if self.lent >= MAX_LENT {
            return false;
        }
        if let Some(step) = stepping.remove(&worker) {
            step.thread.stand_back(niceness);
        }
        self.lent += 1;
        true
    }
}

struct Pool {
    queues: Mutex<Queues>,
    ready: [Condvar; 2],
    apart_ready: [Condvar; 2],
    /// Told when a task waits and every ordinary worker of its class is in a step.
    all_busy: Condvar,
    /// Workers of each class.
    count: usize,
    clock: SharedClock,
    /// How far workers of replays stand back.
    niceness: Niceness,
}

impl Pool {
    fn push(&self, slot: Arc<Slot>) {
        let mut queues = self.queues.lock();
        let apart = slot.account.lock().apart(self.clock.monotonic());
        if let Some(apart) = apart {
            slot.account.lock().had = Duration::ZERO;
            queues.apart[apart as usize].push_back(slot);
            drop(queues);
            self.apart_ready[apart as usize].notify_one();
            return;
        }
        let class = match slot.class.load(Ordering::Acquire) {
            class if class == Class::Live as u8 => Class::Live,
            _ => Class::Replay,
        };
        queues.ready[class as usize].push(slot);
        let is_stuck = queues.is_stuck(class, self.count);
        drop(queues);
        self.ready[class as usize].notify_one();
        if is_stuck {
            self.all_busy.notify_one();
        }
    }

    /// The next task for ordinary worker `worker` of `class`, which is this thread.
    fn next(&self, class: Class, worker: usize, thread: ThreadNumber) -> Option<Arc<Slot>> {
        let mut queues = self.queues.lock();
        loop {
            if queues.closed {
                return None;
            }
            if let Some(slot) = queues.ready[class as usize].pop() {
                let step = Stepping { began: self.clock.monotonic(), thread };
                queues.stepping[class as usize].insert(worker, step);
                if queues.is_stuck(class, self.count) {
                    self.all_busy.notify_one();
                }
                return Some(slot);
            }
            self.ready[class as usize].wait(&mut queues);
        }
    }

    /// The life of an ordinary worker, which ends when its place was lent.
    fn work(&self, class: Class, worker: usize) {
        if class == Class::Replay {
            stand_back(self.niceness);
        }
        let thread = ThreadNumber::of_this();
        while let Some(slot) = self.next(class, worker, thread) {
            let stepped = self.step(&slot);
            let kept = {
                let mut queues = self.queues.lock();
                let kept = queues.stepping[class as usize].remove(&worker).is_some();
                if !kept {
                    queues.lent -= 1;
                }
                kept
            };
            self.after(slot, stepped);
            if !kept {
                return;
            }
        }
    }

    /// The life of a thread for tasks that stand back.
    fn work_apart(&self, apart: Apart) {
        stand_back(Niceness::TENTH);
        loop {
            let mut queues = self.queues.lock();
            let slot = loop {
                if queues.closed {
                    return;
                }
                match queues.apart[apart as usize].pop_front() {
                    Some(slot) => break slot,
                    None => self.apart_ready[apart as usize].wait(&mut queues),
                }
            };
            drop(queues);
            let stepped = self.step(&slot);
            self.after(slot, stepped);
        }
    }

    /// Lends the places of workers in long steps, for as long as tasks wait for one.
    fn watch(self: &Arc<Self>) {
        let mut queues = self.queues.lock();
        loop {
            if queues.closed {
                return;
            }
            let is_stuck = |class: &Class| queues.is_stuck(*class, self.count);
            let stuck: Vec<_> = CLASSES.into_iter().filter(is_stuck).collect();
            if stuck.is_empty() {
                self.all_busy.wait(&mut queues);
                continue;
            }
            let now = self.clock.monotonic();
            let mut has_lent = false;
            for class in stuck {
                if queues.lend(class, now, Niceness::TENTH.max(self.niceness)) {
                    has_lent = true;
                    if let Err(error) = self.start_worker(class, &mut queues) {
                        tracing::error!(%error, "no worker in place of one in a long step");
                    }
                }
            }
            if has_lent {
                continue;
            }
            self.all_busy.wait_for(&mut queues, LONG_STEP / 10);
        }
    }

    /// One more ordinary worker. Threads that have ended are let go of here.
    fn start_worker(self: &Arc<Self>, class: Class, queues: &mut Queues) -> std::io::Result<()> {
        queues.threads.retain(|thread| !thread.is_finished());
        let (pool, worker) = (Arc::clone(self), queues.started);
        let name = match class {
            Class::Live => format!("worker-{worker}"),
            Class::Replay => format!("replay-worker-{worker}"),
        };
        let thread = threads::spawn(name, move || pool.work(class, worker))?;
        queues.threads.push(thread);
        queues.started += 1;
        Ok(())
    }

    /// Steps a task: what it came to.
    fn step(&self, slot: &Slot) -> Stepped {
        slot.state.store(RUNNING, Ordering::Release);
        let began = self.clock.monotonic();
        let (stepped, wasted) = match &mut *slot.step.lock() {
            Some(step) => {
                let stepped = catch_unwind(AssertUnwindSafe(|| step.step()));
                let stepped = stepped.unwrap_or_else(|_| {
                    step.panicked();
                    Stepped::Done
                });
                (stepped, step.wasted())
            }
            None => (Stepped::Done, Duration::ZERO),
        };
        let now = self.clock.monotonic();
        slot.account.lock().enter(now, now.saturating_sub(began), wasted);
        stepped
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
    others: Mutex<Vec<JoinHandle<()>>>,
    added: Mutex<Vec<Weak<Slot>>>,
}

impl Drop for Workers {
    /// A task that never ended holds the handle that holds it.
    fn drop(&mut self) {
        for slot in self.added.get_mut().drain(..).filter_map(|slot| slot.upgrade()) {
            *slot.step.lock() = None;
        }
    }
}

impl Workers {
    /// `count` threads for live tasks, as many for replays, which stand back by `niceness`, and twice as
    /// many for tasks that stand back.
    ///
    /// # Errors
    /// When the machine gives no threads.
    pub fn start(count: usize, niceness: Niceness, clock: SharedClock) -> std::io::Result<Self> {
        let pool = Arc::new(Pool {
            queues: Mutex::default(),
            ready: [Condvar::new(), Condvar::new()],
            apart_ready: [Condvar::new(), Condvar::new()],
            all_busy: Condvar::new(),
            count,
            clock,
            niceness,
        });
        let mut others = Vec::new();
        for i in 0..count {
            for class in CLASSES {
                pool.start_worker(class, &mut pool.queues.lock())?;
            }
            for (apart, name) in [(Apart::Long, "long"), (Apart::Wasteful, "wasteful")] {
                let pool = Arc::clone(&pool);
                let work = move || pool.work_apart(apart);
                others.push(threads::spawn(format!("{name}-worker-{i}"), work)?);
            }
        }
        let watched = Arc::clone(&pool);
        others.push(threads::spawn("worker-watch".to_owned(), move || watched.watch())?);
        Ok(Self { pool, others: Mutex::new(others), added: Mutex::default() })
    }

    /// Adds a task; it steps when it is woken.
    pub fn add(&self, step: Box<dyn Step>, class: Class) -> Handle {
        let slot = Slot {
            step: Mutex::new(Some(step)),
            state: AtomicU8::new(IDLE),
            class: AtomicU8::new(class as u8),
            account: Mutex::default(),
        };
        let slot = Arc::new(slot);
        let mut added = self.added.lock();
        added.retain(|slot| slot.strong_count() > 0);
        added.push(Arc::downgrade(&slot));
        Handle { slot, pool: Arc::clone(&self.pool) }
    }

    /// Ends the threads after the steps under way.
    pub fn close(&self) {
        let mut threads = {
            let mut queues = self.pool.queues.lock();
            queues.closed = true;
            std::mem::take(&mut queues.threads)
        };
        let ready = self.pool.ready.iter().chain(&self.pool.apart_ready);
        for waiting in ready.chain([&self.pool.all_busy]) {
            waiting.notify_all();
        }
        threads.append(&mut self.others.lock());
        for thread in threads {
            // A worker that panicked has said so on stderr; the others still have to end.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

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

        fn wasted(&mut self) -> Duration {
            Duration::ZERO
        }

        fn panicked(&mut self) {}
    }

    #[test]
    fn wake_ups_are_not_lost() {
        let workers = Workers::start(2, Niceness::TENTH, SystemClock::shared()).unwrap();
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

    fn slot(class: Class) -> Arc<Slot> {
        Arc::new(Slot {
            step: Mutex::new(None),
            state: AtomicU8::new(QUEUED),
            class: AtomicU8::new(class as u8),
            account: Mutex::default(),
        })
    }

    #[test]
    fn whose_steps_are_short_gets_as_much_time() {
        let (mut ready, mut now) = (Ready::default(), Duration::ZERO);
        let steps = [1, 100, 300].map(Duration::from_millis);
        let tasks = steps.map(|step| (slot(Class::Live), step));
        let mut had = [Duration::ZERO; 3];
        tasks.iter().for_each(|(task, _)| ready.push(Arc::clone(task)));
        for _ in 0..10_000 {
            let next = ready.pop().unwrap();
            let i = tasks.iter().position(|(task, _)| Arc::ptr_eq(task, &next)).unwrap();
            now += tasks[i].1;
            had[i] += tasks[i].1;
            next.account.lock().enter(now, tasks[i].1, Duration::ZERO);
            ready.push(next);
        }
        let (least, most) = (had.iter().min().unwrap(), had.iter().max().unwrap());
        assert!(*most - *least <= steps[2], "{had:?}");
        // One that comes late does not get what it did not ask for before.
        let late = slot(Class::Live);
        ready.push(Arc::clone(&late));
        assert_eq!(late.account.lock().had, ready.least);
    }

    /// Holds its thread until it is let go, like a plugin that burns its fuel.
    struct Hog {
        steps: Arc<AtomicUsize>,
        go: Arc<AtomicBool>,
    }

    impl Step for Hog {
        fn step(&mut self) -> Stepped {
            self.steps.fetch_add(1, Ordering::SeqCst);
            while !self.go.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(LONG_STEP);
            Stepped::Again
        }

        fn wasted(&mut self) -> Duration {
            Duration::ZERO
        }

        fn panicked(&mut self) {}
    }

    #[test]
    fn long_steps_hold_up_nobody_else() {
        let workers = Workers::start(1, Niceness::TENTH, SystemClock::shared()).unwrap();
        let (go, hogged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..3 {
            let hog = Hog { steps: Arc::clone(&hogged), go: Arc::clone(&go) };
            workers.add(Box::new(hog), Class::Live).wake();
        }
        let steps = Arc::new(AtomicUsize::new(0));
        let wait_for = |what: &AtomicUsize, least: usize| {
            while what.load(Ordering::SeqCst) < least {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        // Not one of the three ends its first step: each place is lent, until the fourth has one.
        let task =
            workers.add(Box::new(Count { steps: Arc::clone(&steps), left: 10 }), Class::Live);
        task.wake();
        wait_for(&steps, 10);
        assert_eq!(hogged.load(Ordering::SeqCst), 3);
        // Once they are known, they share the one thread for long steps.
        go.store(true, Ordering::SeqCst);
        wait_for(&hogged, 5);
        let waiting = || {
            let queues = workers.pool.queues.lock();
            (queues.lent, queues.ready[0].tasks.len(), queues.apart[0].len())
        };
        while waiting() != (0, 0, 2) {
            std::thread::sleep(Duration::from_millis(1));
        }
        task.wake();
        wait_for(&steps, 11);
        workers.close();
    }
}
