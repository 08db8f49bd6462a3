//! One history: what the seed makes of it, and the lives of its host.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::check;
use super::clients::{Follower, Journal, Operator, Producer, topics};
use super::disk::{Disk, Failed, Fault, IO_ERROR, NO_SPACE};
use crate::config::Config;
use crate::deployment::{CreateTopic, DeploymentSpec, Error, Kind, Phase, Registry};
use crate::plugin::Runtime;
use crate::threads::scheduler::{self, Ending, Plan, Random};
use crate::threads::{Bug, JoinHandle, spawn};

/// The topic that producers append to.
pub const INPUT: &str = "input";
/// The deployments, each with what it reads; its output is `<name>-out`.
pub const DEPLOYMENTS: [(&str, &str); 2] = [("first", INPUT), ("second", "first-out")];
/// When histories begin: some day in 2027, in microseconds since the Unix epoch.
const BEGIN_US: u64 = 1_800_000_000_000_000;
/// Steps of one life: many times what one takes.
const MAX_STEPS: u64 = 2_000_000;
/// Of the operations from which on all fail, one in so many is tried.
const LASTING_STEP: usize = 16;
/// How long a host may take on a disk that fails for good before nobody waits for it any more.
const FAILING_LOOKS: u32 = 200;
/// How long, in simulated time, deployments may take to come to rest: a hundredth of a second a look.
const SETTLE_LOOKS: u32 = 30_000;

/// The plugin of both deployments.
static PLUGIN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let file = "../target/wasm32-unknown-unknown/guest/fixture_tally.wasm";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; build it with: cargo xtask guests", path.display())
    })
});

/// One engine for all histories: code is compiled once.
static RUNTIME: LazyLock<(Runtime, tempfile::TempDir)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    (Runtime::new(directory.path()).unwrap(), directory)
});

/// A disk with a data directory on which the plugin was pushed: most histories begin there, as judging a
/// plugin takes as long as all else in them.
static BEGUN: LazyLock<Disk> = LazyLock::new(|| {
    let world = Arc::new(World::new(&mut Random(0), Disk::new(0)));
    let begun = Arc::clone(&world);
    let report = scheduler::run(plan(0, BEGIN_US), move || {
        let registry = open(&begun);
        registry.push_plugin(&PLUGIN).unwrap();
        registry.close();
    });
    assert_eq!(report.ending, Ending::Done);
    world.disk.clone()
});

/// How a history failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub life: u64,
    pub step: u64,
    pub what: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "in life {} at step {}: {}", self.life, self.step, self.what)
    }
}

/// What became of a history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    pub failure: Option<Failure>,
    /// A hash of everything that happened.
    pub trace: u64,
    pub lives: u64,
    pub steps: u64,
    pub acknowledged: u64,
    pub flips: u64,
}

/// What the seed makes of a history.
pub struct World {
    pub config: Config,
    pub partitions: u32,
    pub producers: u64,
    pub requests: u64,
    pub operations: u64,
    /// How long a generation that was live stays warm.
    pub lease: &'static str,
    /// One in how many records has no key, and becomes a dead letter.
    pub keyless: u64,
    /// One in how many lives ends by closing the host while its clients are at work.
    closes: u64,
    /// One in how many lives has a fault of the disk, after which the host takes nothing more.
    faults: u64,
    pub disk: Disk,
    journal: Mutex<Journal>,
}

impl World {
    fn new(random: &mut Random, disk: Disk) -> Self {
        let mut config = Config::default();
        config.data.dir = PathBuf::from("/data/anabranch");
        config.storage.head_bytes = random.choose(&[2 << 10, 8 << 10, 32 << 10, 1 << 20]);
        config.segments.target_bytes = random.choose(&[200, 2_000, 1 << 20]);
        config.tasks.workers = random.choose(&[1, 1, 2]);
        config.tasks.batch_max_records = random.choose(&[1, 3, 10, 100]);
        config.tasks.commit_max_bytes = random.choose(&[100, 1_000, 1 << 20]);
        config.tasks.follow_commit_bytes = random.choose(&[100, 1_000, 1 << 20]);
        config.tasks.replay_commit_bytes = random.choose(&[100, 1_000, 1 << 20]);
        config.tasks.near_end_records = random.choose(&[10, 50, 200_000]);
        config.tasks.checkpoint_bytes = random.choose(&[200, 1_000, 1 << 20]);
        config.tasks.flip_timeout_ms = random.choose(&[20, 200, 2_000]);
        Self {
            config,
            partitions: 1 + random.below(3) as u32,
            producers: 1 + random.below(3),
            requests: 4 + random.below(16),
            operations: random.below(8),
            lease: random.choose(&["1h", "1h", "0s"]),
            keyless: random.choose(&[0, 0, 20]),
            closes: random.choose(&[0, 2]),
            faults: random.choose(&[0, 0, 3]),
            disk,
            journal: Mutex::default(),
        }
    }

    /// Small limits, so that a short life does all that touches the disk.
    fn is_busy(&mut self) {
        self.config.storage.head_bytes = 1 << 10;
        self.config.segments.target_bytes = 200;
        self.config.tasks.batch_max_records = 10;
        self.config.tasks.commit_max_bytes = 1_000;
        self.config.tasks.replay_commit_bytes = 100;
        self.config.tasks.near_end_records = 5;
        self.config.tasks.checkpoint_bytes = 200;
        (self.partitions, self.producers, self.requests, self.operations) = (1, 1, 6, 2);
        (self.lease, self.keyless, self.closes) = ("0s", 10, 0);
    }

    /// The same once more, on a disk of its own, with as much again to do.
    fn go_on(&self, seed: u64) -> Self {
        let mut journal = self.journal().clone();
        journal.over = false;
        Self {
            config: self.config.clone(),
            requests: self.requests * 2,
            operations: self.operations * 2,
            disk: self.disk.copy(seed),
            journal: Mutex::new(journal),
            ..*self
        }
    }

    /// Whether the disk has failed in this life and the words name where.
    pub fn is_blamed(&self, words: &str) -> bool {
        self.disk.failed().iter().any(|failed| failed.is_named_in(words))
    }

    /// Sees that who is refused because the disk failed is told where, and not only that it is so.
    pub fn has_a_reason(&self, what: &str, refusal: Option<&Error>) {
        let Some(error) = refusal else { return };
        let because =
            error.kind == Kind::Internal || ["storage_failed", "cannot_read"].contains(&error.code);
        if because && !error.message.contains("shutting down") {
            let failed = self.disk.failed();
            assert!(self.is_blamed(&error.message), "{what}: {error:?} after {failed:?}");
        }
    }

    /// What the clients know. Never held across anything that waits.
    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the history of a seed.
pub fn run(seed: u64, bug: Option<Bug>, verbose: bool) -> Outcome {
    let mut random = Random(seed);
    let disk_seed = random.draw();
    let disk = match random.one_in(8) {
        true => Disk::new(disk_seed),
        false => BEGUN.copy(disk_seed),
    };
    let mut lives = Lives::of(World::new(&mut random, disk));
    let mut losses = random.below(4);
    while !lives.are_over() {
        let lost_at = (losses > 0).then(|| 1 + random.below(6_000));
        let fault = random.one_in(lives.world.faults).then(|| Fault {
            after: random.below(600),
            errno: random.choose(&[IO_ERROR, NO_SPACE]),
            lasts: random.one_in(2),
        });
        let seed = random.draw();
        lives.next(fault, |plan| Plan { seed, lost_at, bug, verbose, ..plan });
        losses -= u64::from(lives.was_lost);
        if verbose {
            eprintln!("── the host is gone");
        }
    }
    lives.outcome()
}

/// The lives of one host: as many as it takes until all is done, and one more that finds all of it.
pub struct Lives {
    world: Arc<World>,
    outcome: Outcome,
    begin_us: u64,
    /// Whether all that clients wanted is done, and whether the life after that has been.
    done: bool,
    over: bool,
    was_lost: bool,
}

impl Lives {
    pub fn of(world: World) -> Self {
        Self {
            world: Arc::new(world),
            outcome: Outcome::default(),
            begin_us: BEGIN_US,
            done: false,
            over: false,
            was_lost: false,
        }
    }

    pub fn are_over(&self) -> bool {
        self.over || self.outcome.failure.is_some()
    }

    /// One life; what failed of the disk in it. The disk does not fail in the life after the last.
    pub fn next(&mut self, fault: Option<Fault>, plan: impl FnOnce(Plan) -> Plan) -> Vec<Failed> {
        let (live, last) = (Arc::clone(&self.world), self.done);
        let disk = self.world.disk.clone();
        disk.plan(fault.filter(|_| !last));
        let plan = plan(self::plan(0, self.begin_us));
        let report = scheduler::run(plan, move || if last { reopened(&live) } else { life(&live) });
        self.outcome.lives += 1;
        self.outcome.steps += report.steps;
        self.outcome.trace = self.outcome.trace.rotate_left(1) ^ report.trace;
        self.begin_us = report.end_us + 1_000_000;
        self.was_lost = report.ending == Ending::Lost;
        if let Ending::Failed(what) = report.ending {
            let (life, step) = (self.outcome.lives, report.steps);
            self.outcome.failure = Some(Failure { life, step, what });
        }
        if !self.was_lost {
            self.over = last;
            self.done = self.world.journal().over;
        }
        let failed = disk.failed();
        self.world.journal().forgiving |= !failed.is_empty();
        disk.plan(None);
        disk.lose();
        failed
    }

    pub fn outcome(mut self) -> Outcome {
        let journal = self.world.journal();
        self.outcome.acknowledged = journal.acknowledged();
        self.outcome.flips = journal.flips();
        drop(journal);
        self.outcome
    }
}

fn plan(seed: u64, begin_us: u64) -> Plan {
    Plan { seed, lost_at: None, max_steps: MAX_STEPS, begin_us, bug: None, verbose: false }
}

fn open(world: &World) -> Registry {
    try_open(world).unwrap_or_else(|error| panic!("the host does not open: {error}"))
}

fn try_open(world: &World) -> Result<Registry, Error> {
    let disk = Arc::new(world.disk.clone());
    let runtime = |_: &Path| Ok(RUNTIME.0.clone());
    Registry::open_on(&world.config, false, scheduler::clock(), disk, None, runtime)
}

/// One life of the host: from opening it to the end of all work, or to its loss.
fn life(world: &Arc<World>) {
    // The one before may have been lost when it was nearly over.
    world.journal().over = false;
    let registry = match try_open(world) {
        Err(error) if world.is_blamed(&error.message) => return,
        opened => opened.unwrap_or_else(|error| panic!("the host does not open: {error}")),
    };
    check::one_live_generation(&registry);
    world.disk.spare(|| check::seen_is_there(world, &registry));
    if let Err(error) = set_up(world, &registry) {
        assert!(world.is_blamed(&error.message), "setting up: {error:?}");
        return registry.close();
    }
    let thread = |name: String, body: Box<dyn FnOnce() + Send>| spawn(name, body).unwrap();
    let mut at_work: Vec<JoinHandle<()>> = Vec::new();
    for number in 0..world.producers {
        let producer = Producer::new(world, &registry, number);
        at_work.push(thread(format!("producer-{number}"), Box::new(|| producer.work())));
    }
    let operator = Operator::new(world, &registry);
    at_work.push(thread("operator".to_owned(), Box::new(|| operator.work())));
    let follower = Follower::new(world, &registry);
    let follows = thread("follower".to_owned(), Box::new(|| follower.work()));
    if Random(scheduler::random()).one_in(world.closes) {
        scheduler::sleep(Duration::from_micros(scheduler::random() % 500_000));
        registry.close();
        at_work.into_iter().for_each(|thread| thread.join().unwrap());
        return follows.join().unwrap();
    }
    at_work.into_iter().for_each(|thread| thread.join().unwrap());
    if !settle(world, &registry) {
        registry.close();
        return follows.join().unwrap();
    }
    world.journal().over = true;
    follows.join().unwrap();
    // It leaves a host whose storage has failed, at the last moment, too, and has not seen all then.
    if registry.ready().is_err() {
        world.journal().seen.values_mut().for_each(|seen| seen.missed = true);
        return registry.close();
    }
    world.disk.spare(|| check::everything(world, &registry));
    registry.close();
}

/// The life after the last: what was closed is there again.
fn reopened(world: &Arc<World>) {
    let registry = open(world);
    check::one_live_generation(&registry);
    assert!(settle(world, &registry));
    check::everything(world, &registry);
    registry.close();
}

fn set_up(world: &World, registry: &Registry) -> Result<(), Error> {
    let options: CreateTopic =
        serde_json::from_value(json!({ "partitions": world.partitions })).unwrap();
    registry.create_topic(&INPUT.parse().unwrap(), &options)?;
    let pushed = registry.plugins().into_iter().next();
    let digest = pushed.map_or_else(|| registry.push_plugin(&PLUGIN), Ok)?.digest;
    world.journal().plugin = digest.clone();
    for (name, input) in DEPLOYMENTS {
        let spec = json!({
            "name": name, "plugin": digest, "inputs": [input],
            "outputs": { "tallies": format!("{name}-out") },
            "swap": { "warm_lease": world.lease },
        });
        if registry.deployment(name).is_err() {
            let spec: DeploymentSpec = serde_json::from_value(spec).unwrap();
            registry.deploy(&spec)?;
        }
    }
    Ok(())
}

/// Waits until nothing is being swapped, and every task has read all there is. `false` when the host, or
/// a generation, takes nothing more after a fault.
fn settle(world: &World, registry: &Registry) -> bool {
    let mut why = String::new();
    for look in 0..SETTLE_LOOKS {
        // There nothing has to come to rest.
        if look >= FAILING_LOOKS && world.disk.fails_for_good() {
            return false;
        }
        if let Err(error) = registry.ready() {
            world.has_a_reason("the host", Some(&error));
            return false;
        }
        // One that is paused holds up who retires what it reads.
        for (name, _) in DEPLOYMENTS {
            if registry.deployment(name).unwrap().paused
                && let Err(error) = registry.resume(name)
            {
                world.has_a_reason("resume", Some(&error));
            }
        }
        let all =
            DEPLOYMENTS.iter().flat_map(|(name, _)| registry.deployment(name).unwrap().generations);
        let failures = all.flat_map(|generation| {
            let tasks = generation.tasks.into_iter().map(|task| task.failure);
            tasks.chain([generation.failure]).flatten()
        });
        if failures.into_iter().any(|failure| world.is_blamed(&failure)) {
            return false;
        }
        let mut all = DEPLOYMENTS.iter();
        let waits_for = all.find_map(|(name, input)| unsettled(world, registry, name, input));
        match waits_for {
            None => return true,
            Some(reason) => why = reason,
        }
        scheduler::sleep(Duration::from_millis(10));
    }
    let mounts =
        topics().map(|name| registry.topic_handle(&name.parse().unwrap()).unwrap().state());
    panic!("the host does not come to rest: {why}; {:?}; {mounts:?}", registry.deployments());
}

/// What a deployment still has to do.
fn unsettled(world: &World, registry: &Registry, name: &str, input: &str) -> Option<String> {
    let status = registry.deployment(name).unwrap();
    if let (Some(warm), "0s") = (status.warm, world.lease) {
        return Some(format!("{name} generation {warm} is still warm"));
    }
    let topic = registry.topic(&input.parse().unwrap()).unwrap();
    for generation in &status.generations {
        let forgiven = generation.phase == Phase::Failed && world.journal().forgiving;
        let failure = generation.failure.as_ref();
        let failure = failure.filter(|words| !forgiven && !world.is_blamed(words));
        assert_eq!(failure, None, "{name} generation {}", generation.number);
        match generation.phase {
            Phase::CaughtUp | Phase::Replaying => {
                let manual = generation.reason.as_deref().is_some_and(|r| r.ends_with("manual"));
                if manual
                    && generation.phase == Phase::CaughtUp
                    && let Err(error) = registry.promote(name)
                {
                    world.has_a_reason("promote", Some(&error));
                }
                return Some(format!("{name}: {generation:?}"));
            }
            Phase::Live | Phase::Warm => {
                for task in &generation.tasks {
                    let end = topic.partitions[task.partition as usize].end_offset;
                    if task.inputs != [end] || task.state != "idle" {
                        let number = generation.number;
                        return Some(format!("{name} generation {number}: {task:?}, end {end}"));
                    }
                }
            }
            _ => {}
        }
    }
    None
}

/// Has the disk fail at the first operation of a life, at the second, the third …, until none fails; each
/// time on a disk as a busy life before left it, and followed by lives without a fault that must find
/// everything. Tells how many operations there were. With `only` the operation after so many alone,
/// and every step of that life.
///
/// # Errors
/// How to see the first history that fails once more, and how it does.
pub fn every_operation(
    seed: u64,
    (errno, lasts): (i32, bool),
    bug: Option<Bug>,
    only: Option<u64>,
) -> Result<u64, String> {
    // What fails for good ends most lives at once, wherever it begins.
    let step = if lasts { LASTING_STEP } else { 1 };
    let verbose = only.is_some();
    let mut world = World::new(&mut Random(seed), BEGUN.copy(seed));
    world.is_busy();
    let mut before = Lives::of(world);
    while !before.done {
        before.next(None, |plan| Plan { seed, ..plan });
        assert_eq!(before.outcome.failure, None, "SEED={seed}");
    }
    for after in (only.unwrap_or(0)..).step_by(step) {
        let mut lives = Lives::of(before.world.go_on(seed ^ after));
        lives.begin_us = before.begin_us;
        let fault = Fault { after, errno, lasts };
        let failed = lives.next(Some(fault), |plan| Plan { seed, bug, verbose, ..plan });
        while !lives.are_over() {
            lives.next(None, |plan| Plan { seed, verbose, ..plan });
        }
        if let Some(failure) = &lives.outcome.failure {
            let (lasts, first) = (u8::from(lasts), failed.first());
            return Err(format!(
                "SEED={seed} ERRNO={errno} LASTS={lasts} AFTER={after}, as {first:?} failed: {failure}"
            ));
        }
        if failed.is_empty() || verbose {
            return Ok(after);
        }
    }
    unreachable!("a life has an end");
}
