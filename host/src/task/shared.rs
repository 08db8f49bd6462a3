//! What others may see and say of a task while it runs: positions, state for queries, role, holds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use super::{Apart, Class, Cursor, Handle};
use crate::plugin::{Cancel, Input};
use crate::state::{Overlay, StoreSet};
use crate::threads::{Condvar, Mutex, RwLock};
use crate::types::{GenerationId, LogId, Offset, PartitionId};

/// How far a task may read.
#[derive(Clone)]
pub enum Role {
    /// As far as its inputs are durable.
    Live,
    /// Never past what the live generation's task of the same partition has committed.
    Follow(Arc<TaskShared>),
}

/// What a task is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// Loading its state.
    Starting,
    /// Stepping.
    Running,
    /// Has nothing to read.
    Idle,
    /// Held at a commit by a flip or a pause: nothing is in flight.
    Held,
    /// Cannot commit now, for this reason; tries again when it is woken.
    Blocked(String),
    /// Ended; the reason is empty where it was asked to stop.
    Stopped(String),
}

/// A task's stores and the inputs that they stand for, including what is not yet durable.
#[derive(Debug, Default)]
pub(super) struct Working {
    pub stores: StoreSet,
    pub inputs: Vec<Offset>,
    /// Counts the batches applied.
    pub version: u64,
}

impl Working {
    /// Takes the state changes of a call that processed `input`.
    pub fn apply(&mut self, overlay: Overlay, input: &Input) {
        self.stores.apply(overlay);
        self.advance(input);
    }

    /// Notes that `input` is processed.
    pub fn advance(&mut self, input: &Input) {
        self.version += 1;
        let mut at = 0;
        for run in &input.runs {
            at += run.count as usize;
            self.inputs[run.input as usize] = Offset(input.batch.offsets[at - 1] + 1);
        }
    }
}

#[derive(Debug)]
struct Durable {
    cursor: Cursor,
    cursor_bytes: Option<Vec<u8>>,
    /// The version of [`Working`] that the last durable commit holds.
    version: u64,
    /// The bound below which nothing was left to read when the task last looked.
    reached: Option<Vec<Offset>>,
    /// Whether it has ever had nothing left to read in its role.
    caught_up: bool,
    /// When it last had nothing left to read, or began, on the monotonic clock.
    behind_since: Option<Duration>,
    run: RunState,
}

#[derive(Debug, Default, Clone, Copy)]
struct Control {
    hold: bool,
    stop: bool,
}

/// The part of a task that other threads may touch.
pub struct TaskShared {
    /// The generation.
    pub generation: GenerationId,
    /// The source partition.
    pub partition: PartitionId,
    /// Where it records the order of its inputs.
    pub journal: LogId,
    /// Where it began in each input: its journal knows of nothing before.
    pub start: Vec<Offset>,
    pub(super) working: RwLock<Working>,
    /// Whether it holds an instance of its plugin.
    pub(super) instance: AtomicBool,
    /// Gives up the call under way.
    pub(super) cancel: Cancel,
    durable: Mutex<Durable>,
    changed: Condvar,
    role: RwLock<Role>,
    control: Mutex<Control>,
    /// Tasks that may read as far as this one has committed.
    followers: Mutex<Vec<Weak<TaskShared>>>,
    handle: OnceLock<Handle>,
    /// Called after every commit and change of state, on the thread that made it.
    on_change: Box<dyn Fn() + Send + Sync>,
}

impl TaskShared {
    /// A task that has not begun, at `cursor`.
    pub fn new(
        generation: GenerationId,
        partition: PartitionId,
        (journal, start): (LogId, Vec<Offset>),
        cursor: Cursor,
        cursor_bytes: Option<Vec<u8>>,
        role: Role,
        on_change: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Self> {
        let run = RunState::Starting;
        let shared = Arc::new(Self {
            generation,
            partition,
            journal,
            start,
            working: RwLock::default(),
            instance: AtomicBool::new(false),
            cancel: Cancel::default(),
            durable: Mutex::new(Durable {
                cursor,
                cursor_bytes,
                version: 0,
                reached: None,
                caught_up: false,
                behind_since: None,
                run,
            }),
            changed: Condvar::new(),
            role: RwLock::new(Role::Live),
            control: Mutex::default(),
            followers: Mutex::default(),
            handle: OnceLock::new(),
            on_change: Box::new(on_change),
        });
        shared.set_role(role);
        shared
    }

    /// Gives the task the handle by which it is woken.
    pub fn set_handle(&self, handle: Handle) {
        // A task is added to the workers once; a second handle would be a mistake without effect.
        drop(self.handle.set(handle));
    }

    /// Lets the task step soon.
    pub fn wake(&self) {
        if let Some(handle) = self.handle.get() {
            handle.wake();
        }
    }

    /// Why the task stands back behind others, if it does.
    pub fn apart(&self) -> Option<Apart> {
        self.handle.get().and_then(Handle::apart)
    }

    /// The cursor of the last durable commit.
    pub fn cursor(&self) -> Cursor {
        self.durable.lock().cursor.clone()
    }

    /// The exact bytes of the last durable cursor; `None` before the first commit.
    pub fn cursor_bytes(&self) -> Option<Vec<u8>> {
        self.durable.lock().cursor_bytes.clone()
    }

    /// The next offset of each input, durable.
    pub fn positions(&self) -> Vec<Offset> {
        self.durable.lock().cursor.inputs.clone()
    }

    /// What the task is doing.
    pub fn run_state(&self) -> RunState {
        self.durable.lock().run.clone()
    }

    /// When the task last had nothing left to read, or began; `None` before it began.
    pub fn behind_since(&self) -> Option<Duration> {
        self.durable.lock().behind_since
    }

    /// Whether the task holds an instance of its plugin.
    pub fn has_instance(&self) -> bool {
        self.instance.load(Ordering::Relaxed)
    }

    /// Notes that the task has nothing left to read at `now`, or begins.
    pub(super) fn set_behind_since(&self, now: Duration) {
        self.durable.lock().behind_since = Some(now);
    }

    /// Whether the task has been as far as it may read, at least once.
    pub fn has_caught_up(&self) -> bool {
        self.durable.lock().caught_up
    }

    /// Notes that there was nothing left to read, whatever is still to be committed.
    pub(super) fn set_caught_up(&self) {
        let mut durable = self.durable.lock();
        if !durable.caught_up {
            durable.caught_up = true;
            drop(durable);
            self.notify();
        }
    }

    /// How far the task may read.
    pub fn role(&self) -> Role {
        self.role.read().clone()
    }

    /// Changes how far the task may read, and lets it step.
    pub fn set_role(self: &Arc<Self>, role: Role) {
        let class = match &role {
            Role::Live => Class::Live,
            Role::Follow(live) => {
                let mut followers = live.followers.lock();
                followers.retain(|f| f.upgrade().is_some_and(|f| !Arc::ptr_eq(&f, self)));
                followers.push(Arc::downgrade(self));
                Class::Replay
            }
        };
        *self.role.write() = role;
        self.durable.lock().reached = None;
        if let Some(handle) = self.handle.get() {
            handle.set_class(class);
            handle.wake();
        }
    }

    /// The offsets that the task may not read past; `None` for a live one.
    pub fn bound(&self) -> Option<Vec<Offset>> {
        match &*self.role.read() {
            Role::Live => None,
            Role::Follow(live) => Some(live.positions()),
        }
    }

    /// Asks the task to stand still at its next commit, or lets it go on.
    pub fn set_hold(&self, hold: bool) {
        self.control.lock().hold = hold;
        if !hold {
            // A task that steps on is no longer held, whatever it last said.
            let mut durable = self.durable.lock();
            if durable.run == RunState::Held {
                durable.run = RunState::Running;
            }
        }
        self.wake();
    }

    /// Whether the task is asked to stand still.
    pub fn is_held(&self) -> bool {
        self.control.lock().hold
    }

    /// Asks the task to end after the commit under way.
    pub fn request_stop(&self) {
        self.control.lock().stop = true;
        self.wake();
    }

    /// Has a task that was asked to end give up the call that it is in.
    pub fn give_up(&self) {
        self.cancel.cancel();
    }

    /// Whether the task is asked to end.
    pub fn is_stopping(&self) -> bool {
        self.control.lock().stop
    }

    /// Waits until `condition` holds of the run state, at most `timeout`; says whether it does.
    pub fn wait_for(
        &self,
        timeout: Duration,
        mut condition: impl FnMut(&RunState) -> bool,
    ) -> bool {
        let mut durable = self.durable.lock();
        self.changed.wait_while_for(&mut durable, |d| !condition(&d.run), timeout);
        condition(&durable.run)
    }

    /// Waits until everything below `bound` is read and committed, at most `timeout`.
    pub fn wait_reached(&self, timeout: Duration, bound: &[Offset]) -> bool {
        let reached = |d: &Durable| d.reached.as_deref() == Some(bound);
        let mut durable = self.durable.lock();
        self.changed.wait_while_for(&mut durable, |d| !reached(d), timeout);
        reached(&durable)
    }

    /// Asks the state. The answer is handed out once the state that gave it is durable, with the
    /// inputs that it stands for; `None` when that takes longer than `timeout`.
    pub fn query<T>(
        &self,
        timeout: Duration,
        ask: impl FnOnce(&mut StoreSet) -> T,
    ) -> Option<(T, Vec<Offset>)> {
        {
            let mut durable = self.durable.lock();
            let starting = |d: &mut Durable| d.run == RunState::Starting;
            self.changed.wait_while_for(&mut durable, starting, timeout);
            if matches!(durable.run, RunState::Starting | RunState::Stopped(_)) {
                return None;
            }
        }
        let (answer, inputs, version) = {
            let mut working = self.working.write();
            let answer = ask(&mut working.stores);
            (answer, working.inputs.clone(), working.version)
        };
        let mut durable = self.durable.lock();
        let pending = |d: &mut Durable| {
            d.version < version && !matches!(d.run, RunState::Stopped(_) | RunState::Blocked(_))
        };
        self.changed.wait_while_for(&mut durable, pending, timeout);
        (durable.version >= version).then_some((answer, inputs))
    }

    /// Entries and bytes of a store, committed or not.
    pub fn store_size(&self, store: usize) -> (u64, u64) {
        let working = self.working.read();
        // Before its state is loaded a task has no stores.
        if working.stores.is_empty() {
            return (0, 0);
        }
        (working.stores.len(store) as u64, working.stores.size_bytes(store))
    }

    /// Bytes of all stores.
    pub fn state_bytes(&self) -> u64 {
        self.working.read().stores.total_bytes()
    }

    /// Forgets what others knew of working state: it is about to be loaded anew.
    pub(super) fn restart(&self) {
        self.durable.lock().version = 0;
    }

    pub(super) fn set_run(&self, run: RunState) {
        let mut durable = self.durable.lock();
        if durable.run != run {
            durable.run = run;
            drop(durable);
            self.notify();
        }
    }

    pub(super) fn set_reached(&self, bound: Vec<Offset>) {
        let mut durable = self.durable.lock();
        durable.caught_up = true;
        if durable.reached.as_ref() != Some(&bound) {
            durable.reached = Some(bound);
            drop(durable);
            self.notify();
        }
    }

    /// Notes a commit that is durable.
    pub(super) fn committed(&self, cursor: Cursor, cursor_bytes: Vec<u8>, version: u64) {
        let mut durable = self.durable.lock();
        durable.cursor = cursor;
        durable.cursor_bytes = Some(cursor_bytes);
        durable.version = version;
        drop(durable);
        for follower in self.followers.lock().iter().filter_map(Weak::upgrade) {
            follower.wake();
        }
        self.notify();
    }

    fn notify(&self) {
        self.changed.notify_all();
        (self.on_change)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DeploymentId, GenerationNumber};

    #[test]
    fn an_answer_waits_until_its_state_is_durable() {
        let generation = GenerationId { deployment: DeploymentId(1), number: GenerationNumber(1) };
        let task = TaskShared::new(
            generation,
            PartitionId(0),
            (LogId(1), vec![Offset(0)]),
            Cursor::default(),
            None,
            Role::Live,
            || {},
        );
        let ask = |timeout| task.query(timeout, |stores| stores.is_empty());
        assert_eq!(ask(Duration::ZERO), None, "before the task has its state");
        task.set_run(RunState::Running);
        let applied = |version| {
            let mut working = task.working.write();
            (working.inputs, working.version) = (vec![Offset(10 * version)], version);
        };
        let commit = |version| task.committed(Cursor::default(), Vec::new(), version);

        applied(1);
        assert_eq!(ask(Duration::ZERO), None, "of what may be lost");
        commit(1);
        assert_eq!(ask(Duration::ZERO), Some((true, vec![Offset(10)])));

        // An answer under way stands for what was asked, whatever is applied meanwhile.
        applied(2);
        std::thread::scope(|threads| {
            let (asked, was_asked) = std::sync::mpsc::channel();
            let query = threads.spawn(|| {
                task.query(Duration::from_secs(60), move |_| asked.send(()).expect("it is awaited"))
            });
            was_asked.recv().expect("it is asked");
            // The lock is free again only once the answer was taken.
            applied(3);
            assert!(!query.is_finished(), "nothing of it is durable");
            commit(2);
            assert_eq!(query.join().expect("no panic"), Some(((), vec![Offset(20)])));
        });

        task.set_run(RunState::Stopped(String::new()));
        assert_eq!(ask(Duration::from_secs(60)), None, "of a task that commits no more");
    }
}
