//! One history: what the seed makes of it, and the lives of its host.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::check;
use super::clients::{Follower, Journal, Operator, Producer};
use super::disk::Disk;
use crate::config::Config;
use crate::deployment::{CreateTopic, DeploymentSpec, Kind, Phase, Registry};
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

/// What became of a history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// The life in which it failed, the step, and how.
    pub failure: Option<(u64, u64, String)>,
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
    pub disk: Disk,
    journal: Mutex<Journal>,
}

impl World {
    fn new(random: &mut Random) -> Self {
        let mut config = Config::default();
        config.data.dir = PathBuf::from("/data/anabranch");
        config.storage.head_bytes = random.choose(&[2 << 10, 8 << 10, 32 << 10, 1 << 20]);
        config.segments.target_bytes = random.choose(&[200, 2_000, 1 << 20]);
        config.tasks.workers = random.choose(&[1, 1, 2]);
        config.tasks.batch_max_records = random.choose(&[1, 3, 10, 100]);
        config.tasks.commit_max_bytes = random.choose(&[100, 1_000, 1 << 20]);
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
            disk: Disk::new(random.draw()),
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
    let world = Arc::new(World::new(&mut random));
    let mut losses = random.below(4);
    let mut outcome = Outcome::default();
    let mut begin_us = BEGIN_US;
    let mut over = false;
    loop {
        let lost_at = (losses > 0).then(|| 1 + random.below(6_000));
        let plan =
            Plan { seed: random.draw(), lost_at, max_steps: MAX_STEPS, begin_us, bug, verbose };
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
                over = true;
                world.disk.lose();
            }
            Ending::Failed(failure) => {
                outcome.failure = Some((outcome.lives, report.steps, failure));
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

fn open(world: &World) -> Registry {
    let disk = Arc::new(world.disk.clone());
    let runtime = |_: &Path| Ok(RUNTIME.0.clone());
    Registry::open_on(&world.config, false, scheduler::clock(), disk, runtime)
        .unwrap_or_else(|error| panic!("the host does not open: {error}"))
}

/// One life of the host: from opening it to the end of all work, or to its loss.
fn life(world: &Arc<World>) {
    let registry = open(world);
    check::one_live_generation(&registry);
    check::seen_is_there(world, &registry);
    set_up(world, &registry);
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
    at_work.into_iter().for_each(|thread| thread.join().unwrap());
    settle(&registry);
    world.journal().over = true;
    follows.join().unwrap();
    check::everything(world, &registry);
    registry.close();
}

/// The life after the last: what was closed is there again.
fn reopened(world: &Arc<World>) {
    let registry = open(world);
    check::one_live_generation(&registry);
    settle(&registry);
    check::everything(world, &registry);
    registry.close();
}

fn set_up(world: &World, registry: &Registry) {
    let options: CreateTopic =
        serde_json::from_value(json!({ "partitions": world.partitions })).unwrap();
    registry.create_topic(&INPUT.parse().unwrap(), &options).unwrap();
    let digest = registry.push_plugin(&PLUGIN).unwrap().digest;
    world.journal().plugin = digest.clone();
    for (name, input) in DEPLOYMENTS {
        let spec = json!({
            "name": name, "plugin": digest, "inputs": [input],
            "outputs": { "tallies": format!("{name}-out") },
        });
        if registry.deployment(name).is_err() {
            let spec: DeploymentSpec = serde_json::from_value(spec).unwrap();
            registry.deploy(&spec).unwrap();
        }
    }
}

/// Waits until nothing is being swapped, and every task has read all there is.
fn settle(registry: &Registry) {
    let mut why = String::new();
    for _ in 0..SETTLE_LOOKS {
        let waits_for =
            DEPLOYMENTS.iter().find_map(|(name, input)| unsettled(registry, name, input));
        match waits_for {
            None => return,
            Some(reason) => why = reason,
        }
        scheduler::sleep(Duration::from_millis(10));
    }
    panic!("the host does not come to rest: {why}");
}

/// What a deployment still has to do.
fn unsettled(registry: &Registry, name: &str, input: &str) -> Option<String> {
    let status = registry.deployment(name).unwrap();
    if status.paused {
        return registry
            .resume(name)
            .err()
            .map_or(Some("it was paused".to_owned()), |e| Some(e.to_string()));
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
                return Some(format!(
                    "{name} generation {} is {:?}",
                    generation.number, generation.phase
                ));
            }
            Phase::Live | Phase::Warm => {
                for task in &generation.tasks {
                    let end = topic.partitions[task.partition as usize].end_offset;
                    if task.inputs != [end] || task.state != "idle" {
                        return Some(format!(
                            "{name} generation {}: {task:?}, end {end}",
                            generation.number
                        ));
                    }
                }
            }
            _ => {}
        }
    }
    None
}
