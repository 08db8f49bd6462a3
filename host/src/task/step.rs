//! One task: consume, process, commit, a batch a step.
//!
//! At most one commit to the head is under way; what later batches make gathers until it is durable and
//! then goes as one. So commits grow with the load, and an idle task commits at once. Where a generation has
//! few tasks, a commit to files is written while the one before it is synced, and a task that is alone has
//! another that waits to be written: neither worker nor writer stands still for the other.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow_array::Array as _;

use super::bulk::Strand;
use super::outgoing::{CHANGELOG, Committed, Parts, Refused, Trail, journal_append};
use super::pending::{Pending, Way, changelog_records};
use super::processor::{Failure, Outcome, Processor};
use super::shared::Working;
use super::source::{BatchLimit, Bound, Source, first_offsets, read_values, slice_input};
use super::{Cursor, Environment, Poison, Role, RunState, Step, Stepped, TaskShared, TaskSpec};

use crate::log::{Commit, Executor};
use crate::plugin::Input;
use crate::storage::Pace;
use crate::threads::Mutex;
use crate::types::{LogId, Offset, take_column};

/// Batches after which a task that writes files commits, whatever they made: a crash in the middle of
/// history then costs seconds, and progress can be seen.
const COMMIT_BATCHES: usize = 128;

/// Runs of input after which a task commits, so that its journal record stays small.
const COMMIT_RUNS: usize = 65_536;

/// Tasks of a generation from which on they keep workers, writers and disk busy without reading ahead and
/// with one commit each, in half the memory.
const MANY_TASKS: usize = 3;

/// Commits to files that a task of a generation of `tasks` may have under way. All but one may have to be
/// written yet.
fn file_commits(tasks: usize) -> usize {
    MANY_TASKS + 1 - tasks.clamp(1, MANY_TASKS)
}

/// A commit under way.
#[derive(Default)]
struct Outgoing {
    /// Whether all that takes memory and processor time is done.
    written: AtomicBool,
    /// Its result once it has one.
    result: Mutex<Option<Result<(), Refused>>>,
}

/// A task, as workers step it.
pub struct Task {
    spec: Arc<TaskSpec>,
    env: Arc<Environment>,
    shared: Arc<TaskShared>,
    running: Option<Running>,
}

/// Why a task lets go of what is not durable.
enum Ending {
    /// To begin again when it is woken.
    Blocked(String),
    Failed(Failure),
}

/// What a task has once its state is loaded.
struct Running {
    source: Source,
    processor: Processor,
    /// What is left of a batch of which the first part made enough for a commit, or took long enough.
    rest: Option<Input>,
    pending: Pending,
    /// The cursor after all that was processed, committed or not, but for its chains.
    cursor: Cursor,
    /// What the commits sent off follow each other by.
    trail: Arc<Mutex<Trail>>,
    /// The commits under way, the oldest first.
    outgoing: VecDeque<Arc<Outgoing>>,
    /// Where those to files are written.
    strand: Arc<Strand>,
    /// Why it ends, once no commit is under way any more: one that is forgotten could still be taken.
    ending: Option<Ending>,
    /// Whether little was left to read when the last commit was sent off.
    near_end: bool,
    /// Whether a checkpoint is being written.
    checkpointing: Arc<AtomicBool>,
    /// Whether there may be records left from before the generation that is followed began: its
    /// journal does not cover them.
    before_leader: bool,
}

impl Task {
    /// A task that loads its state at its first step.
    pub fn new(spec: Arc<TaskSpec>, env: Arc<Environment>, shared: Arc<TaskShared>) -> Self {
        Self { spec, env, shared, running: None }
    }

    fn start(&self) -> Result<Running, Failure> {
        let mut cursor = self.shared.cursor();
        if cursor.inputs.is_empty() {
            cursor.inputs.clone_from(&self.spec.start);
        }
        cursor.epoch += 1;
        let stores = self.spec.plugin.description().stores.len();
        let stores = self.spec.state().restore(&self.env, stores).map_err(|e| {
            let (generation, partition) = (self.spec.generation, self.spec.partition);
            Failure::Read(format!("state of generation {generation} partition {partition}: {e}"))
        })?;
        let inputs = cursor.inputs.clone();
        let chains = std::mem::take(&mut cursor.chains);
        let trail = Arc::new(Mutex::new(Trail { chains, cursor: self.shared.cursor_bytes() }));
        self.shared.restart();
        self.shared.set_behind_since(self.env.clock.monotonic());
        *self.shared.working.write() = Working { stores, inputs, version: 0 };
        let (spec, shared) = (Arc::clone(&self.spec), Arc::clone(&self.shared));
        let (recycle_bytes, clock) = (self.env.config.recycle_memory_bytes, self.env.clock.clone());
        Ok(Running {
            source: Source::new(&self.spec, &cursor.inputs, self.ahead().as_ref()),
            processor: Processor::new(spec, shared, recycle_bytes, clock),
            rest: None,
            pending: Pending::default(),
            cursor,
            trail,
            outgoing: VecDeque::new(),
            strand: Arc::default(),
            ending: None,
            near_end: false,
            checkpointing: Arc::default(),
            before_leader: true,
        })
    }

    /// Where blocks of history are read ahead. Where there are many tasks, workers have enough to do.
    fn ahead(&self) -> Option<Executor> {
        (self.spec.mode.tasks() < MANY_TASKS).then(|| {
            let env = Arc::clone(&self.env);
            let executor: Executor = Arc::new(move |job| env.bulk.submit_read(job));
            executor
        })
    }

    fn advance(&mut self) -> Result<Stepped, Failure> {
        if self.running.is_none() {
            if self.shared.is_stopping() {
                self.shared.set_run(RunState::Stopped(String::new()));
                return Ok(Stepped::Done);
            }
            self.running = Some(self.start()?);
        }
        let Some(running) = &mut self.running else { return Ok(Stepped::Done) };
        let mut committed = false;
        while let Some(outgoing) = running.outgoing.front() {
            let result = outgoing.result.lock().take();
            match result {
                Some(Ok(())) => {
                    running.outgoing.pop_front();
                    committed = true;
                }
                Some(Err(Refused { later, message })) => {
                    running.outgoing.pop_front();
                    // What is refused after it is refused because of it.
                    running.ending.get_or_insert_with(|| match later {
                        true => Ending::Blocked(message),
                        false => Ending::Failed(Failure::Commit(message)),
                    });
                }
                None => break,
            }
        }
        if running.ending.is_some() && !running.outgoing.is_empty() {
            return Ok(Stepped::Wait);
        }
        match running.ending.take() {
            Some(Ending::Blocked(reason)) => return Ok(self.block(reason)),
            Some(Ending::Failed(failure)) => return Err(failure),
            None => {}
        }
        let (busy, has_room) = (!running.outgoing.is_empty(), running.has_room(&self.spec));
        if committed {
            self.checkpoint_if_due();
        }
        if self.shared.is_stopping() || self.shared.is_held() {
            return self.stand_still(busy);
        }
        // Also one that waited for other tasks with its commit, and was woken: it must not gather on.
        if self.is_full() && (!has_room || !self.send()?) {
            return Ok(Stepped::Wait);
        }
        let bound = self.bound();
        let read = self.read(&bound)?;
        let moved = read.is_some();
        if let Some(input) = read {
            self.process(input)?;
        }
        self.after_read(moved, &bound)
    }

    /// Lets go of everything that is not durable, to begin again from there when woken.
    fn block(&mut self, reason: String) -> Stepped {
        let (generation, partition) = (self.spec.generation, self.spec.partition);
        tracing::warn!(%generation, %partition, "task waits: {reason}");
        self.running = None;
        self.shared.set_run(RunState::Blocked(reason));
        Stepped::Wait
    }

    /// Whether what is pending is enough for a commit.
    fn is_full(&self) -> bool {
        let Some(running) = &self.running else { return false };
        let journal = &running.pending.journal;
        running.made_bytes(&self.shared) >= self.commit_limit()
            || journal.runs.len() >= COMMIT_RUNS
            || (!running.cursor.head && journal.cuts.len() >= COMMIT_BATCHES)
    }

    /// Has a checkpoint written beside the workers when the changelog has grown long.
    fn checkpoint_if_due(&self) {
        let Some(running) = &self.running else { return };
        let (state, least) = (self.spec.state(), self.env.config.checkpoint_bytes);
        let report = move |error: &str| {
            tracing::warn!(generation = %state.generation, "checkpoint: {error}");
        };
        match state.is_due(&self.env, least) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return report(&error),
        }
        if running.checkpointing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (env, writing) = (Arc::clone(&self.env), Arc::clone(&running.checkpointing));
        self.env.bulk.submit_checkpoint(Box::new(move || {
            // A panic must not leave the task without checkpoints for ever.
            let taken = catch_unwind(AssertUnwindSafe(|| state.take(&env)));
            writing.store(false, Ordering::Release);
            let fault = || Err("a fault of the host while it was written: see its log".to_owned());
            if let Err(error) = taken.unwrap_or_else(|_| fault()) {
                report(&error);
            }
        }));
    }

    /// Commits what there is to commit; stands still once nothing is under way.
    fn stand_still(&mut self, busy: bool) -> Result<Stepped, Failure> {
        let ahead = self.ahead();
        let Some(running) = &mut self.running else { return Ok(Stepped::Done) };
        // Whom it follows when it goes on, and so how far and in which order it reads, is not known yet.
        if running.rest.take().is_some() {
            running.source = Source::new(&self.spec, &running.cursor.inputs, ahead.as_ref());
        }
        if busy {
            return Ok(Stepped::Wait);
        }
        if !running.pending.is_empty() {
            self.send()?;
            return Ok(Stepped::Wait);
        }
        if self.shared.is_stopping() {
            self.shared.set_run(RunState::Stopped(String::new()));
            return Ok(Stepped::Done);
        }
        self.shared.set_run(RunState::Held);
        Ok(Stepped::Wait)
    }

    /// How far to read: the offsets, whether they are another task's, and that one's journal.
    fn bound(&self) -> (Vec<Offset>, Option<LogId>) {
        let before_leader = self.running.as_ref().is_some_and(|r| r.before_leader);
        match self.shared.role() {
            Role::Follow(live) if before_leader => (live.start.clone(), None),
            Role::Follow(live) => (live.positions(), Some(live.journal)),
            Role::Live => {
                let partition = self.spec.partition;
                let end = |p: Option<crate::log::TopicPartition>| p.map(|p| p.end_offset());
                let ends = self.spec.inputs.iter().map(|t| end(t.partition(partition)));
                (ends.map(Option::unwrap_or_default).collect(), None)
            }
        }
    }

    fn read(&mut self, bound: &(Vec<Offset>, Option<LogId>)) -> Result<Option<Input>, Failure> {
        let Some(running) = &mut self.running else { return Ok(None) };
        let limit = BatchLimit {
            records: self.env.config.batch_max_records,
            bytes: self.env.config.batch_max_bytes,
        };
        let bound = Bound { to: &bound.0, journal: bound.1 };
        let stream_time_ms = running.cursor.stream_time_ms;
        let input = match running.rest.take() {
            Some(rest) => Some(Input { stream_time_ms, ..rest }),
            None => {
                let taken = running.source.next(&self.env.log, &bound, limit)?;
                let seed = self.spec.seed;
                taken.map(|(batch, runs)| Input { batch, runs, stream_time_ms, seed })
            }
        };
        if running.source.positions() != running.cursor.inputs {
            running.cursor.inputs = running.source.positions();
            running.pending.moved = true;
        }
        Ok(input)
    }

    /// Processes a batch: outputs to `pending`, state changes to the stores. Where it takes several calls
    /// that make more than a commit gathers, the rest of it is left for after that commit; where records
    /// at fault are looked for for long, for the next step.
    fn process(&mut self, input: Input) -> Result<(), Failure> {
        let limit = self.commit_limit();
        let Some(Running { processor, pending, cursor, rest, .. }) = &mut self.running else {
            return Ok(());
        };
        self.shared.set_run(RunState::Running);
        let before = processor.started;
        let (generation, spec) = (self.spec.generation_number(), &self.spec);
        let (observer, shared) = (&self.env.observer, &self.shared);
        let mut wasted = Duration::ZERO;
        let taken = processor.process(input.clone(), |part, outcome| {
            let rejected = match outcome {
                Outcome::Done(output, took) => {
                    if !observer.called(spec, part.batch.len(), &output) {
                        wasted += took;
                    }
                    for columns in output.outputs {
                        let to = spec.outputs[columns.output];
                        pending.add_output(generation, to, part, columns);
                    }
                    output.rejections
                }
                Outcome::Poison(reason) => {
                    shared.working.write().advance(part);
                    observer.poison(spec, &reason);
                    let run = &part.runs[0];
                    let verdict = (run.input, run.partition, part.batch.offsets[0]);
                    pending.journal.verdicts.push(verdict);
                    vec![(0, reason)]
                }
            };
            keep_poison(spec, pending, cursor, part, &rejected)?;
            Ok(pending.bytes + shared.working.read().stores.uncommitted_bytes() < limit)
        })?;
        processor.wasted += wasted;
        let left = slice_input(&input, taken, input.batch.len() - taken);
        let input = slice_input(&input, 0, taken);
        pending.journal.took(&input);
        cursor.records += taken as u64;
        let highest = input.batch.records.timestamps.iter().max().copied();
        cursor.stream_time_ms = cursor.stream_time_ms.max(highest);
        if !left.batch.is_empty() {
            for (input, first) in first_offsets(&left) {
                cursor.inputs[input] = first;
            }
            *rest = Some(left);
        }
        if processor.started > before {
            pending.journal.starts.push(pending.journal.cuts.len() as u32 - 1);
        }
        Ok(())
    }

    /// Sends off a commit if it is time, and says what comes next.
    fn after_read(
        &mut self,
        moved: bool,
        bound: &(Vec<Offset>, Option<LogId>),
    ) -> Result<Stepped, Failure> {
        let full = self.is_full();
        let Some(running) = &mut self.running else { return Ok(Stepped::Done) };
        let (busy, has_room) = (!running.outgoing.is_empty(), running.has_room(&self.spec));
        if moved {
            if has_room && (running.cursor.head || full) && !self.send()? {
                return Ok(Stepped::Wait);
            }
            return Ok(Stepped::Again);
        }
        if std::mem::take(&mut running.before_leader) {
            return Ok(Stepped::Again);
        }
        if !busy && running.pending.is_empty() {
            self.spec.mode.note_near(&self.shared);
        }
        // A task that began in a later mount than the live one reads has nothing to read either; it
        // has caught up only once the live one has come to where it is.
        let positions = running.source.positions();
        let ahead = positions.iter().zip(&bound.0).any(|(position, to)| position > to);
        self.shared.set_behind_since(self.env.clock.monotonic());
        // A commit of files under way takes long; one through the head is all but there.
        let settled = running.cursor.head || (!busy && running.pending.is_empty());
        if !ahead && settled {
            self.shared.set_caught_up();
        }
        if !running.pending.is_empty() {
            if has_room {
                self.send()?;
            }
            return Ok(Stepped::Wait);
        }
        if !busy {
            if !ahead {
                self.shared.set_reached(bound.0.clone());
            }
            running.source.rest();
            self.shared.set_run(RunState::Idle);
        }
        Ok(Stepped::Wait)
    }

    /// The bytes that a commit gathers before the task waits for the one under way, or, on the way
    /// through history, before it is sent.
    fn commit_limit(&self) -> usize {
        let near_end = self.running.as_ref().is_some_and(|r| r.cursor.head || r.near_end);
        if near_end { self.head_limit() } else { self.replay_limit() }
    }

    /// The same for commits of a replay. With stores they are larger: a key that changes often is then in
    /// fewer changelogs and checkpoints. Without there is nothing to gain, and of many tasks each has less
    /// memory.
    fn replay_limit(&self) -> usize {
        let has_stores = !self.spec.plugin.description().stores.is_empty();
        let limit = self.env.config.replay_commit_bytes;
        if has_stores && self.spec.mode.tasks() < MANY_TASKS { limit } else { limit.div_ceil(2) }
    }

    /// The same for commits through the head, behind which everyone else's wait.
    fn head_limit(&self) -> usize {
        match self.shared.role() {
            Role::Live => self.env.config.commit_max_bytes,
            Role::Follow(_) => self.env.config.follow_commit_bytes,
        }
    }

    /// Whether little is left to read.
    fn near_end(&self) -> bool {
        let to = match self.shared.role() {
            Role::Follow(live) => live.positions(),
            Role::Live => self.bound().0,
        };
        let Some(running) = &self.running else { return true };
        let inputs = self.spec.inputs.iter().zip(running.source.positions().into_iter().zip(to));
        let left = inputs.map(|(topic, (position, to))| {
            let partition = topic.partition(self.spec.partition);
            partition.map_or(0, |p| p.count_between(position, to).unwrap_or_default())
        });
        left.sum::<u64>() < self.env.config.near_end_records / self.spec.mode.tasks() as u64
    }

    /// Sends off everything pending as one commit. `false` if that has to wait for other tasks, which
    /// wake this one.
    fn send(&mut self) -> Result<bool, Failure> {
        let head = self.running.as_ref().is_some_and(|running| running.cursor.head);
        let near_end = head || self.near_end();
        let limit = self.head_limit();
        let Some(running) = &mut self.running else { return Ok(true) };
        // What was gathered for files, before the end was near, goes to files.
        let is_small = running.near_end || running.made_bytes(&self.shared) <= limit;
        running.near_end = near_end;
        let way = if running.cursor.head {
            Way::Head
        } else {
            self.spec.mode.begin(&self.shared, near_end && is_small)
        };
        if way == Way::Wait {
            return Ok(false);
        }
        running.cursor.head |= way == Way::Head;
        let ((keys, values), version) = {
            let mut working = self.shared.working.write();
            (working.stores.take_changes(), working.version)
        };
        let mut lanes = running.pending.take_lanes();
        if !keys.is_empty() {
            let time = running.cursor.stream_time_ms.unwrap_or_default();
            let slot = (CHANGELOG, self.spec.partition.0);
            lanes.insert(slot, vec![changelog_records(keys, values, time)]);
        }
        let mut journal = std::mem::take(&mut running.pending.journal);
        journal.next.clone_from(&running.cursor.inputs);
        running.pending.moved = false;
        running.processor.started = 0;

        let outgoing = Arc::<Outgoing>::default();
        let commit = Commit {
            appends: vec![journal_append(&self.spec, &journal, &running.cursor)],
            ..Commit::default()
        };
        let (spec, cursor) = (Arc::clone(&self.spec), running.cursor.clone());
        // Who reads the outputs of the generation that is followed should not notice.
        let pace = match self.shared.role() {
            Role::Follow(_) => Pace::Gentle,
            Role::Live => Pace::Full,
        };
        let trail = Arc::clone(&running.trail);
        let parts = Parts { spec, lanes, cursor, trail, pace, commit };
        running.outgoing.push_back(Arc::clone(&outgoing));
        let (shared, finished) = (Arc::clone(&self.shared), Arc::clone(&outgoing));
        let done = move |result: Result<Committed, Refused>| {
            let result = result.map(|Committed { cursor, bytes }| {
                shared.committed(cursor, bytes, version);
            });
            *finished.result.lock() = Some(result);
            shared.wake();
        };
        if way == Way::Head {
            parts.through_head(&self.env, Box::new(done));
        } else {
            let shared = Arc::clone(&self.shared);
            let written = move || {
                outgoing.written.store(true, Ordering::Release);
                shared.wake();
            };
            parts.through_files(&self.env, &running.strand, Box::new(written), Box::new(done));
        }
        Ok(true)
    }
}

impl Running {
    /// Whether another commit may be sent off.
    fn has_room(&self, spec: &TaskSpec) -> bool {
        let most = file_commits(spec.mode.tasks());
        let is_unwritten = |one: &&Arc<Outgoing>| !one.written.load(Ordering::Acquire);
        let few_files = !self.cursor.head
            && self.outgoing.len() < most
            && self.outgoing.iter().filter(is_unwritten).count() < most - 1;
        self.outgoing.is_empty() || few_files
    }

    /// Bytes of outputs and state changes that are not sent off.
    fn made_bytes(&self, shared: &TaskShared) -> usize {
        self.pending.bytes + shared.working.read().stores.uncommitted_bytes()
    }
}

impl Step for Task {
    fn step(&mut self) -> Stepped {
        let stepped = self.advance();
        let busy = self.running.as_mut().filter(|running| !running.outgoing.is_empty());
        match (stepped, busy) {
            (Err(failure), Some(running)) => {
                running.ending = Some(Ending::Failed(failure));
                Stepped::Wait
            }
            (Ok(stepped), _) => stepped,
            // What was not committed is done again at the next start.
            (Err(Failure::Stopped), None) => {
                self.running = None;
                self.shared.set_run(RunState::Stopped(String::new()));
                Stepped::Done
            }
            (Err(failure), None) => {
                let (generation, partition) = (self.spec.generation, self.spec.partition);
                tracing::error!(%generation, %partition, "task stopped: {failure}");
                self.running = None;
                self.shared.set_run(RunState::Stopped(failure.to_string()));
                Stepped::Done
            }
        }
    }

    fn wasted(&mut self) -> Duration {
        self.running.as_mut().map(|r| std::mem::take(&mut r.processor.wasted)).unwrap_or_default()
    }

    fn panicked(&mut self) {
        self.running = None;
        let reason = "a fault of the host: see its log for the panic, and report it";
        self.shared.set_run(RunState::Stopped(reason.to_owned()));
    }
}

/// What the policy says of records that the plugin refuses.
fn keep_poison(
    spec: &TaskSpec,
    pending: &mut Pending,
    cursor: &mut Cursor,
    part: &Input,
    rows: &[(u32, String)],
) -> Result<(), Failure> {
    let Some((row, reason)) = rows.first() else { return Ok(()) };
    cursor.poison += rows.len() as u64;
    match spec.poison {
        Poison::Skip => Ok(()),
        Poison::DeadLetter(output) => {
            let (generation, slot) = (spec.generation_number(), spec.outputs.len());
            let indexes: Vec<u32> = rows.iter().map(|(row, _)| *row).collect();
            // What the plugin ignores was not read with the batch.
            let values = match spec.plugin.description().ignores_values {
                true => read_values(&spec.inputs, part, &indexes)?,
                false => take_column(&part.batch.records.values, &indexes),
            };
            pending.add_dead_letters(generation, slot, output, part, rows, values);
            Ok(())
        }
        Poison::Stop => {
            let mut at = 0;
            let run = part.runs.iter().find(|run| {
                at += run.count;
                *row < at
            });
            Err(Failure::Poison {
                input: run.map_or(0, |r| r.input),
                partition: run.map_or(0, |r| r.partition),
                offset: part.batch.offsets[*row as usize],
                reason: reason.clone(),
            })
        }
    }
}
