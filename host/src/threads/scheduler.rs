//! The simulation's scheduler: of all threads of a host one runs at a time, and a seed says which.
//!
//! Simulated threads are threads of the machine that hand each other the right to run. Where one waits
//! for a lock, a condition, another thread or a point in time, it hands on; at [`pass`] and before a lock
//! it may be made to. Time is a number that moves a little with every step, and to the next moment that
//! someone waits for when nobody can run. A lost host is one whose threads unwind from where they stand.
//!
//! **Invariant:** what happens is a function of the plan: nothing here or in simulated code asks the
//! machine for time, chance, or the order of threads; addresses are compared for equality only.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use super::Bug;
use crate::clock::Clock;

/// What unwinds the threads of a host that is lost. Nothing is printed.
struct Lost;

/// Waits of a thread that unwinds, after which it is said to hang.
const UNWINDING_WAITS: u32 = 10_000;
/// A bug shows once in so many times that it could.
const BUG_ODDS: u64 = 4;
/// The farthest moment that comes before its time while others could run: longer waits are for ends of
/// leases, not for a slow machine.
const EARLY_US: u64 = 60_000_000;

/// What a run is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    /// The step at which the host is lost.
    pub lost_at: Option<u64>,
    /// Steps after which a run is said not to end.
    pub max_steps: u64,
    /// When it begins, in microseconds since the Unix epoch.
    pub begin_us: u64,
    pub bug: Option<Bug>,
    /// Whether each step is printed.
    pub verbose: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Its first thread came to its end.
    Done,
    /// The host was lost, as planned.
    Lost,
    Failed(String),
}

/// What is left of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub ending: Ending,
    pub steps: u64,
    /// When it ended, in microseconds since the Unix epoch.
    pub end_us: u64,
    /// A hash of everything that happened, in order.
    pub trace: u64,
}

/// What a thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    Lock,
    Condition,
    Thread,
    Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Waiting { key: usize, deadline_us: Option<u64>, waits: Waits },
    Finished,
}

struct Member {
    name: String,
    state: State,
    /// Whether its last wait ended because it was woken.
    woken: bool,
    /// One of those that seldom get to run.
    slow: bool,
    unwinding_waits: u32,
    /// Whether it may run; looked at after each wake-up.
    go: Arc<AtomicBool>,
    thread: Option<Thread>,
}

struct Core {
    plan: Plan,
    random: Random,
    now_us: u64,
    steps: u64,
    trace: u64,
    members: Vec<Member>,
    /// Threads that can run, in the order in which they became able to.
    ready: Vec<usize>,
    timers: BTreeSet<(u64, usize)>,
    lock_waiters: usize,
    ending: Option<Ending>,
    /// One in so many: how often a thread is held up at a place, before a lock, and how often a moment
    /// comes early.
    at_places: u64,
    at_locks: u64,
    early: u64,
    /// Whether any thread may be a slow one.
    has_slow: bool,
    joins: Vec<JoinHandle<()>>,
}

/// A run in progress.
pub struct Scheduler {
    core: Mutex<Core>,
    all_finished: Condvar,
}

thread_local! {
    static CURRENT: RefCell<Option<(Arc<Scheduler>, usize)>> = const { RefCell::new(None) };
}

fn current<T>(then: impl FnOnce(&Arc<Scheduler>, usize) -> T) -> Option<T> {
    // A thread that ends may drop things that ask.
    let found = CURRENT.try_with(|current| current.borrow().clone()).ok().flatten();
    found.map(|(scheduler, id)| then(&scheduler, id))
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit.max(1)
    }

    /// True once in `odds` times; never for 0.
    pub fn one_in(&mut self, odds: u64) -> bool {
        odds > 0 && self.below(odds) == 0
    }

    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Core {
    fn new(plan: Plan) -> Self {
        let mut core = Self {
            random: Random(plan.seed),
            now_us: plan.begin_us,
            plan,
            steps: 0,
            trace: 0,
            members: Vec::new(),
            ready: Vec::new(),
            timers: BTreeSet::new(),
            lock_waiters: 0,
            ending: None,
            at_places: 0,
            at_locks: 0,
            early: 0,
            has_slow: false,
            joins: Vec::new(),
        };
        core.at_places = core.random.choose(&[1, 2, 4, 16]);
        core.at_locks = core.random.choose(&[0, 0, 64, 8]);
        core.early = core.random.choose(&[0, 0, 1_000, 200]);
        core.has_slow = core.random.one_in(2);
        core
    }

    fn note(&mut self, id: usize, what: &str) {
        let said = xxhash_rust::xxh3::xxh3_64(what.as_bytes());
        self.trace = mix(self.trace ^ said ^ (id as u64) ^ self.now_us.rotate_left(32));
        if self.plan.verbose {
            let (steps, at_us) = (self.steps, self.now_us - self.plan.begin_us);
            eprintln!("{steps:>7} {at_us:>10} us {:<14} {what}", self.members[id].name);
        }
    }

    /// Counts a step of thread `id`; true when it is the host's last.
    fn step(&mut self, id: usize, what: &str) {
        self.steps += 1;
        self.now_us += self.random.below(16);
        self.note(id, what);
        if self.ending.is_none() {
            if self.plan.lost_at == Some(self.steps) {
                self.end(Ending::Lost);
            } else if self.steps > self.plan.max_steps {
                self.end(Ending::Failed(format!("no end after {} steps", self.steps)));
            }
        }
    }

    /// From now on everything unwinds.
    fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
        for id in 0..self.members.len() {
            self.make_ready(id, false);
        }
    }

    fn make_ready(&mut self, id: usize, woken: bool) {
        let State::Waiting { deadline_us, waits, .. } = self.members[id].state else { return };
        if let Some(deadline) = deadline_us {
            self.timers.remove(&(deadline, id));
        }
        self.lock_waiters -= usize::from(waits == Waits::Lock);
        (self.members[id].state, self.members[id].woken) = (State::Ready, woken);
        self.ready.push(id);
    }

    fn pass_time(&mut self) -> bool {
        let Some((deadline, id)) = self.timers.pop_first() else { return false };
        self.now_us = self.now_us.max(deadline);
        self.make_ready(id, false);
        true
    }

    /// Who runs next; `None` when all have finished.
    fn choose(&mut self) -> Option<usize> {
        let early = self.timers.first().is_some_and(|(at, _)| *at < self.now_us + EARLY_US);
        if early && self.ending.is_none() && self.random.one_in(self.early) {
            self.pass_time();
        }
        while self.ready.is_empty() && !self.pass_time() {
            let waits = |m: &&Member| m.state != State::Finished;
            let waiting: Vec<_> = self.members.iter().filter(waits).collect();
            if waiting.is_empty() {
                return None;
            }
            let waiting: Vec<_> =
                waiting.iter().map(|m| format!("{} {:?}", m.name, m.state)).collect();
            let dead = format!("all threads wait for each other: {}", waiting.join(", "));
            self.end(Ending::Failed(dead));
        }
        let mut at = self.random.below(self.ready.len() as u64) as usize;
        for _ in 0..3 {
            if self.members[self.ready[at]].slow {
                at = self.random.below(self.ready.len() as u64) as usize;
            }
        }
        Some(self.ready[at])
    }
}

impl Scheduler {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands on from `me`, which has said why it does not run, and comes back when it may.
    fn hand_on(&self, mut core: MutexGuard<'_, Core>, me: usize) {
        let Some(next) = core.choose() else { return };
        if next == me {
            return;
        }
        let own = Arc::clone(&core.members[me].go);
        let member = &core.members[next];
        member.go.store(true, Ordering::Release);
        let thread = member.thread.clone();
        drop(core);
        if let Some(thread) = thread {
            thread.unpark();
        }
        await_turn(&own);
    }

    fn finish(&self, me: usize) {
        let mut core = self.core();
        core.step(me, "ends");
        core.members[me].state = State::Finished;
        core.ready.retain(|id| *id != me);
        if me == 0 {
            core.end(Ending::Done);
        }
        self.wake(&mut core, thread_key(me), true);
        match core.choose() {
            None => self.all_finished.notify_all(),
            Some(next) => {
                core.members[next].go.store(true, Ordering::Release);
                if let Some(thread) = &core.members[next].thread {
                    thread.unpark();
                }
            }
        }
    }

    fn wake(&self, core: &mut Core, key: usize, all: bool) {
        let waits = |m: &Member| matches!(m.state, State::Waiting { key: k, .. } if k == key);
        let mut waiting: Vec<usize> =
            (0..core.members.len()).filter(|id| waits(&core.members[*id])).collect();
        if !all && waiting.len() > 1 {
            let chosen = core.random.below(waiting.len() as u64) as usize;
            waiting = vec![waiting[chosen]];
        }
        for id in waiting {
            core.make_ready(id, true);
        }
    }

    /// Adds a thread that runs `body` when it is its turn.
    fn add(
        self: &Arc<Self>,
        core: &mut Core,
        name: String,
        body: Box<dyn FnOnce() + Send>,
    ) -> io::Result<(usize, Thread)> {
        let (id, go) = (core.members.len(), Arc::new(AtomicBool::new(false)));
        let (scheduler, own) = (Arc::clone(self), Arc::clone(&go));
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            CURRENT.with(|current| *current.borrow_mut() = Some((Arc::clone(&scheduler), id)));
            await_turn(&own);
            let ended = catch_unwind(AssertUnwindSafe(body));
            if let Err(panic) = ended
                && !panic.is::<Lost>()
            {
                let mut core = scheduler.core();
                let failure = format!("{} panicked: {}", core.members[id].name, words(&*panic));
                core.end(Ending::Failed(failure));
            }
            CURRENT.with(|current| *current.borrow_mut() = None);
            scheduler.finish(id);
        })?;
        let handle = thread.thread().clone();
        core.joins.push(thread);
        let slow = core.has_slow && id > 0 && core.random.one_in(5);
        core.members.push(Member {
            name,
            state: State::Ready,
            woken: false,
            slow,
            unwinding_waits: 0,
            go,
            thread: Some(handle.clone()),
        });
        core.ready.push(id);
        Ok((id, handle))
    }
}

fn await_turn(go: &AtomicBool) {
    while !go.swap(false, Ordering::Acquire) {
        std::thread::park();
    }
}

fn thread_key(id: usize) -> usize {
    usize::MAX - id
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words").to_owned()
}

/// Unwinds the calling thread if the run has ended.
fn leave_if_ended(core: MutexGuard<'_, Core>) {
    if core.ending.is_some() && !std::thread::panicking() {
        drop(core);
        resume_unwind(Box::new(Lost));
    }
}

/// Runs `body` and all threads that come of it, as `plan` says.
///
/// # Panics
/// When the machine gives no threads.
pub fn run(plan: Plan, body: impl FnOnce() + Send + 'static) -> Report {
    let core = Mutex::new(Core::new(plan));
    let scheduler = Arc::new(Scheduler { core, all_finished: Condvar::new() });
    let mut core = scheduler.core();
    let (first, thread) =
        scheduler.add(&mut core, "main".to_owned(), Box::new(body)).expect("a thread");
    core.members[first].go.store(true, Ordering::Release);
    thread.unpark();
    let running = |core: &mut Core| core.members.iter().any(|m| m.state != State::Finished);
    let mut core =
        scheduler.all_finished.wait_while(core, running).unwrap_or_else(PoisonError::into_inner);
    let joins = std::mem::take(&mut core.joins);
    let report = Report {
        ending: core.ending.clone().unwrap_or(Ending::Done),
        steps: core.steps,
        end_us: core.now_us,
        trace: core.trace,
    };
    drop(core);
    for thread in joins {
        drop(thread.join());
    }
    report
}

/// Whether the calling thread is a simulated one.
pub fn is_simulated() -> bool {
    CURRENT.try_with(|current| current.borrow().is_some()).unwrap_or(false)
}

/// Whether the run has a bug, and it shows this time.
pub fn has(bug: Bug) -> bool {
    current(|scheduler, _| {
        let mut core = scheduler.core();
        core.plan.bug == Some(bug) && core.random.one_in(BUG_ODDS)
    })
    .unwrap_or(false)
}

/// Whether the calling thread's run has ended, so that nothing it does counts any more.
pub fn is_over() -> bool {
    current(|scheduler, _| scheduler.core().ending.is_some()).unwrap_or(false)
}

/// A place where another thread may go on, or the host be lost.
pub fn pass(place: &str) {
    current(|scheduler, me| {
        if std::thread::panicking() {
            return;
        }
        let mut core = scheduler.core();
        core.step(me, place);
        let odds = core.at_places;
        if core.ending.is_none() && core.random.one_in(odds) {
            scheduler.hand_on(core, me);
            core = scheduler.core();
        }
        leave_if_ended(core);
    });
}

/// Puts something that the history did into its trace.
pub fn note(what: &str) {
    current(|scheduler, me| scheduler.core().note(me, what));
}

/// A random number of the run.
pub fn random() -> u64 {
    current(|scheduler, _| scheduler.core().random.draw()).unwrap_or_default()
}

/// Lets time pass.
pub fn sleep(time: Duration) {
    block(usize::MAX / 2, Some(after(time)), Waits::Time);
}

/// The moment `time` from now, in microseconds since the Unix epoch.
pub fn after(time: Duration) -> u64 {
    let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let now_us = current(|scheduler, _| scheduler.core().now_us).unwrap_or_default();
    now_us.saturating_add(time_us)
}

/// May hold up the thread before it takes a lock.
pub fn before_lock() {
    current(|scheduler, me| {
        let mut core = scheduler.core();
        let odds = core.at_locks;
        if core.ending.is_some() || std::thread::panicking() || !core.random.one_in(odds) {
            return;
        }
        core.step(me, "lock");
        scheduler.hand_on(core, me);
        leave_if_ended(scheduler.core());
    });
}

/// Waits until `key` is woken, or for the deadline; says whether it was woken.
pub fn block(key: usize, deadline_us: Option<u64>, waits: Waits) -> bool {
    current(|scheduler, me| {
        let mut core = scheduler.core();
        if core.ending.is_some() {
            if !std::thread::panicking() {
                drop(core);
                resume_unwind(Box::new(Lost));
            }
            // What is waited for on the way out comes with the ends of the others.
            core.now_us += 1_000_000;
            core.members[me].unwinding_waits += 1;
            if core.members[me].unwinding_waits > UNWINDING_WAITS {
                let trace = std::backtrace::Backtrace::force_capture();
                eprintln!(
                    "{} waits for ever while it unwinds: {waits:?} {key:x}\n{trace}",
                    core.members[me].name
                );
                std::process::abort();
            }
            scheduler.hand_on(core, me);
            return true;
        }
        let what = match waits {
            Waits::Lock => "waits for a lock",
            Waits::Condition => "waits",
            Waits::Thread => "waits for a thread",
            Waits::Time => "sleeps",
        };
        core.step(me, what);
        if core.ending.is_none() {
            core.members[me].state = State::Waiting { key, deadline_us, waits };
            core.ready.retain(|id| *id != me);
            core.lock_waiters += usize::from(waits == Waits::Lock);
            if let Some(deadline) = deadline_us {
                core.timers.insert((deadline, me));
            }
            scheduler.hand_on(core, me);
            core = scheduler.core();
        }
        let woken = core.members[me].woken;
        leave_if_ended(core);
        woken
    })
    .unwrap_or(true)
}

/// Wakes those who wait for a lock.
pub fn wake_lock(key: usize) {
    current(|scheduler, _| {
        let mut core = scheduler.core();
        if core.lock_waiters > 0 {
            scheduler.wake(&mut core, key, true);
        }
    });
}

/// Wakes one or all of those who wait for a condition.
pub fn notify(key: usize, all: bool) {
    current(|scheduler, _| scheduler.wake(&mut scheduler.core(), key, all));
}

/// Adds a thread.
pub fn spawn(name: String, body: Box<dyn FnOnce() + Send>) -> io::Result<(usize, Thread)> {
    let added = current(|scheduler, _| scheduler.add(&mut scheduler.core(), name, body));
    added.unwrap_or_else(|| Err(io::Error::other("not in a simulation")))
}

/// Waits for a thread's end.
pub fn join(id: usize) {
    while !is_finished(id) {
        block(thread_key(id), None, Waits::Thread);
    }
}

/// Whether a thread has ended.
pub fn is_finished(id: usize) -> bool {
    current(|scheduler, _| scheduler.core().members[id].state == State::Finished).unwrap_or(true)
}

/// The clock of the run that the calling thread belongs to.
pub fn clock() -> Arc<dyn Clock> {
    let scheduler = current(|scheduler, _| Arc::clone(scheduler));
    Arc::new(SimulatedClock(scheduler.expect("asked for by a simulated thread")))
}

struct SimulatedClock(Arc<Scheduler>);

impl Clock for SimulatedClock {
    fn now_ms(&self) -> i64 {
        (self.0.core().now_us / 1_000) as i64
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.0.core().now_us)
    }

    fn random(&self) -> u64 {
        self.0.core().random.draw()
    }
}
