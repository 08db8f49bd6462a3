//! One history: what the seed makes of it, and the lives of its host.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::check;
use super::clients::{Follower, Journal, Operator, Producer, topics};
use super::disk::{Disk, FAULT};
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
    let world = Arc::new(World::new(&mut random, disk));
    let mut losses = random.below(4);
    let mut outcome = Outcome::default();
    let mut begin_us = BEGIN_US;
    let mut over = false;
    loop {
        let lost_at = (losses > 0).then(|| 1 + random.below(6_000));
        let fault = !over && random.one_in(world.faults);
        world.disk.fail_after(fault.then(|| random.below(200)));
        let plan = Plan { lost_at, bug, verbose, ..plan(random.draw(), begin_us) };
        let live = Arc::clone(&world);
        let report = scheduler::run(plan, move || if over { reopened(&live) } else { life(&live) });
        outcome.lives += 1;
        outcome.steps += report.steps;
        outcome.trace = outcome.trace.rotate_left(1) ^ report.trace;
        begin_us = report.end_us + 1_000_000;
        match report.ending {
            Ending::Lost => {
                losses -= 1;
                world.disk.lose();
            }
            Ending::Done if over => break,
            Ending::Done => {
                over = world.journal().over;
                world.disk.lose();
            }
            Ending::Failed(what) => {
                let (life, step) = (outcome.lives, report.steps);
                outcome.failure = Some(Failure { life, step, what });
                break;
            }
        }
        if verbose {
            eprintln!("── the host is gone");
        }
    }
    let journal = world.journal();
    outcome.acknowledged = journal.acknowledged();
    outcome.flips = journal.flips();
    outcome
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
    Registry::open_on(&world.config, false, scheduler::clock(), disk, runtime)
}

/// One life of the host: from opening it to the end of all work, or to its loss.
fn life(world: &Arc<World>) {
    let registry = match try_open(world) {
        Err(error) if error.message.contains(FAULT) => return,
        opened => opened.unwrap_or_else(|error| panic!("the host does not open: {error}")),
    };
    check::one_live_generation(&registry);
    check::seen_is_there(world, &registry);
    if let Err(error) = set_up(world, &registry) {
        assert!(registry.ready().is_err(), "setting up: {error}");
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
        follows.join().unwrap();
        return registry.close();
    }
    world.journal().over = true;
    follows.join().unwrap();
    check::everything(world, &registry);
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

/// Waits until nothing is being swapped, and every task has read all there is. `false` when the host
/// takes nothing more after a fault.
fn settle(world: &World, registry: &Registry) -> bool {
    let mut why = String::new();
    for _ in 0..SETTLE_LOOKS {
        if registry.ready().is_err() {
            return false;
        }
        // One that is paused holds up who retires what it reads.
        for (name, _) in DEPLOYMENTS {
            if registry.deployment(name).unwrap().paused
                && let Err(error) = registry.resume(name)
            {
                assert_ne!(error.kind, Kind::Internal, "resume {name}: {error}");
            }
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
        assert_eq!(generation.failure, None, "{name} generation {}", generation.number);
        match generation.phase {
            Phase::CaughtUp | Phase::Replaying => {
                let manual = generation.reason.as_deref().is_some_and(|r| r.ends_with("manual"));
                if manual
                    && generation.phase == Phase::CaughtUp
                    && let Err(error) = registry.promote(name)
                {
                    assert_ne!(error.kind, Kind::Internal, "promote {name}: {error}");
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
