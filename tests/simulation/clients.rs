//! Those who use the host: producers, an operator, and a follower of every topic. What they know
//! outlives the host in a [`Journal`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::Array as _;
use serde_json::json;

use super::history::{DEPLOYMENTS, INPUT, World};
use crate::deployment::{Kind, Phase, Registry, SwapRequest};
use crate::log::{ReadError, TopicRead};
use crate::threads::channel;
use crate::threads::scheduler::{self, Random};
use crate::types::{Offset, PartitionId, RecordsBuilder, partition_of_key};

/// Keys of records: few, so that they meet.
const KEYS: u64 = 6;
/// Requests of a producer that may be under way.
const UNDER_WAY: u64 = 3;

/// What became of a request, as far as its producer knows.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// No answer: it may be there or not, but whole.
    Unknown,
    /// For each partition, its next offset after the request.
    Acknowledged(BTreeMap<u32, u64>),
    Refused,
}

/// A record that was sent; values are all different.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Without one it names its partition.
    pub key: Option<String>,
    pub value: String,
    pub partition: u32,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    pub producer: u64,
    pub records: Vec<Sent>,
    pub fate: Fate,
}

/// Where a record of an output came from: generation, partition, offset, ordinal.
pub type Source = (u32, u32, u64, u32);

/// What is at a position of a topic.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    Record { offset: u64, key: Option<String>, value: String, source: Option<Source> },
    Swap { at: u64, next: u64 },
}

/// One partition of a topic, as a follower has seen it.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub items: Vec<Item>,
    pub next: u64,
    /// Whether something was retired before it was read, or could not be read for long.
    pub missed: bool,
    /// How often in a row a disk that fails has kept it from being read.
    refused: u32,
}

/// What the clients of a history know.
#[derive(Default, Clone)]
pub struct Journal {
    pub plugin: String,
    pub requests: Vec<Request>,
    pub seen: BTreeMap<(String, u32), Seen>,
    /// How far each producer is.
    sent: HashMap<u64, u64>,
    operated: u64,
    salts: u64,
    /// Whether the follower may stop once it has read all.
    pub over: bool,
    /// Whether the disk has failed: a candidate may have, too.
    pub forgiving: bool,
}

impl Journal {
    /// Swaps that the follower came over, in one partition of each topic.
    pub fn flips(&self) -> u64 {
        let first = self.seen.iter().filter(|((_, partition), _)| *partition == 0);
        let swaps = |seen: &Seen| {
            seen.items.iter().filter(|item| matches!(item, Item::Swap { .. })).count() as u64
        };
        first.map(|(_, seen)| swaps(seen)).sum()
    }

    /// Records that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        let acknowledged = |r: &&Request| matches!(r.fate, Fate::Acknowledged(_));
        self.requests.iter().filter(acknowledged).map(|r| r.records.len() as u64).sum()
    }
}

fn rest(random: &mut Random, most_ms: u64) {
    scheduler::sleep(Duration::from_micros(random.below(most_ms * 1_000)));
}

/// Appends, with a few requests under way.
pub struct Producer {
    world: Arc<World>,
    registry: Registry,
    number: u64,
    random: Random,
}

impl Producer {
    pub fn new(world: &Arc<World>, registry: &Registry, number: u64) -> Self {
        let random = Random(scheduler::random());
        Self { world: Arc::clone(world), registry: registry.clone(), number, random }
    }

    pub fn work(mut self) {
        let (answered, answers) = channel();
        let mut under_way = 0;
        let pause_ms = self.random.choose(&[1, 10, 100]);
        while let Some(number) = self.next() {
            let records: Vec<_> = (0..=self.random.below(5))
                .map(|i| {
                    let key = format!("k{}", self.random.below(KEYS));
                    let key = (!self.random.one_in(self.world.keyless)).then_some(key);
                    let value = format!("\"{}-{number}-{i}\"", self.number);
                    let partitions = self.world.partitions;
                    let partition = match &key {
                        Some(key) => partition_of_key(key.as_bytes(), partitions).0,
                        None => self.random.below(u64::from(partitions)) as u32,
                    };
                    Sent { key, value, partition }
                })
                .collect();
            let mut rows = RecordsBuilder::default();
            let mut partitions = Vec::new();
            for Sent { key, value, partition } in &records {
                let bytes = key.as_ref().map(|key| key.as_bytes());
                rows.push(number as i64, bytes, Some(value.as_bytes()), []);
                partitions.push(key.is_none().then_some(PartitionId(*partition)));
            }
            let index = {
                let mut journal = self.world.journal();
                let (producer, fate) = (self.number, Fate::Unknown);
                journal.requests.push(Request { producer, records, fate });
                journal.requests.len() - 1
            };
            let (world, answered) = (Arc::clone(&self.world), answered.clone());
            let done =
                move |result: Result<crate::deployment::Produced, crate::deployment::Error>| {
                    scheduler::note(&format!("request {index}: {result:?}"));
                    world.has_a_reason("a request", result.as_ref().err());
                    let fate = match result {
                        Ok(produced) => {
                            let ends = produced.partitions.into_iter();
                            Fate::Acknowledged(ends.map(|(p, end)| (p, end.next_offset)).collect())
                        }
                        // An answer on the way down says nothing of what was applied.
                        Err(error) if error.kind == Kind::Unavailable => Fate::Unknown,
                        Err(_) => Fate::Refused,
                    };
                    if !scheduler::is_over() {
                        world.journal().requests[index].fate = fate;
                    }
                    let _ = answered.send(());
                };
            let (topic, rows) = (INPUT.parse().unwrap(), rows.finish());
            self.registry.produce(&topic, rows, Some(&partitions), Box::new(done));
            under_way += 1;
            while under_way >= UNDER_WAY {
                answers.recv();
                under_way -= 1;
            }
            rest(&mut self.random, pause_ms);
        }
        for _ in 0..under_way {
            answers.recv();
        }
    }

    /// The number of the next request; `None` after the last, and when the host is closed.
    fn next(&self) -> Option<u64> {
        self.registry.ready().ok()?;
        let mut journal = self.world.journal();
        let sent = journal.sent.entry(self.number).or_default();
        *sent += 1;
        (*sent <= self.world.requests).then_some(*sent)
    }
}

/// Swaps, gates, rollbacks, cancels and pauses, as the deployments allow.
pub struct Operator {
    world: Arc<World>,
    registry: Registry,
    random: Random,
}

impl Operator {
    pub fn new(world: &Arc<World>, registry: &Registry) -> Self {
        let random = Random(scheduler::random());
        Self { world: Arc::clone(world), registry: registry.clone(), random }
    }

    pub fn work(mut self) {
        loop {
            {
                if self.registry.ready().is_err() {
                    return;
                }
                let mut journal = self.world.journal();
                if journal.operated >= self.world.operations {
                    return;
                }
                journal.operated += 1;
            }
            let pause_ms = self.random.choose(&[5, 50, 300]);
            rest(&mut self.random, pause_ms);
            self.operate();
        }
    }

    fn operate(&mut self) {
        let (name, _) = DEPLOYMENTS[self.random.below(2) as usize];
        let status = self.registry.deployment(name).unwrap();
        let candidate = status.generations.iter().find(|g| Some(g.number) == status.candidate);
        let dice = self.random.below(12);
        let registry = &self.registry;
        let (what, done) = match (candidate.map(|g| g.phase), dice) {
            (Some(Phase::Replaying), 0..4) => ("cancel", registry.cancel(name)),
            (Some(Phase::CaughtUp), 0..4) => ("reject", registry.reject(name)),
            (Some(Phase::CaughtUp), _) => ("promote", registry.promote(name)),
            (Some(_), _) => return,
            (None, 0..2) => {
                let paused = registry.pause(name);
                rest(&mut self.random, 30);
                ("pause", paused.and_then(|_| registry.resume(name)))
            }
            (None, 2..6) if status.warm.is_some() => ("rollback", registry.rollback(name)),
            _ => ("swap", self.swap(name)),
        };
        match done {
            Ok(status) => scheduler::note(&format!("{what} {name}: live is {}", status.live)),
            Err(error) => {
                scheduler::note(&format!("{what} {name}: {error}"));
                self.world.has_a_reason(what, Some(&error));
                let expected = matches!(error.kind, Kind::Conflict | Kind::Unavailable);
                assert!(expected || self.world.is_blamed(&error.message), "{what}: {error:?}");
            }
        }
    }

    fn swap(
        &mut self,
        name: &str,
    ) -> Result<crate::deployment::DeploymentStatus, crate::deployment::Error> {
        let (plugin, salt) = {
            let mut journal = self.world.journal();
            journal.salts += 1;
            (journal.plugin.clone(), journal.salts)
        };
        let approve = self.random.choose(&["auto", "auto", "auto", "manual"]);
        let request: SwapRequest = serde_json::from_value(json!({
            "plugin": plugin, "config": { "salt": salt }, "approve": approve,
            "reason": format!("salt {salt} {approve}"),
        }))
        .unwrap();
        self.registry.swap(name, &request)?;
        self.registry.deployment(name)
    }
}

/// The salt of a generation, which its reason tells.
pub fn salt_of(reason: Option<&str>) -> u64 {
    reason.and_then(|reason| reason.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
}

/// After so many reads in a row that a failing disk refused, a follower gives up.
const MOST_REFUSED: u32 = 9;

/// Follows every topic from its first offset, across swaps.
pub struct Follower {
    world: Arc<World>,
    registry: Registry,
    random: Random,
}

impl Follower {
    pub fn new(world: &Arc<World>, registry: &Registry) -> Self {
        let random = Random(scheduler::random());
        Self { world: Arc::clone(world), registry: registry.clone(), random }
    }

    pub fn work(mut self) {
        loop {
            let over = self.world.journal().over;
            let mut moved = false;
            for topic in topics() {
                for p in 0..self.world.partitions {
                    moved |= self.follow(topic, p);
                }
            }
            if (over && !moved) || self.registry.ready().is_err() {
                return;
            }
            rest(&mut self.random, 20);
        }
    }

    fn follow(&self, topic: &str, partition: u32) -> bool {
        let place = (topic.to_owned(), partition);
        let from = self.world.journal().seen.entry(place.clone()).or_default().next;
        let (items, end) = read(&self.registry, topic, partition, from);
        let mut journal = self.world.journal();
        let seen = journal.seen.entry(place).or_default();
        let before = seen.next;
        match end {
            Ok(next) => seen.next = next,
            Err(ReadError::Retired { next, .. }) => (seen.next, seen.missed) = (next.0, true),
            // It asks again, unless the disk fails for good.
            Err(error) if self.world.is_blamed(&error.to_string()) => {
                seen.refused += 1;
                seen.missed |= seen.refused >= MOST_REFUSED;
                return seen.refused < MOST_REFUSED;
            }
            Err(error) => panic!("{topic}/{partition} from {from}: {error}"),
        }
        seen.refused = 0;
        seen.items.extend(items);
        seen.next != before
    }
}

/// All topics.
pub fn topics() -> [&'static str; 3] {
    [INPUT, "first-out", "second-out"]
}

/// What is in a topic from a position on, and the position after it.
pub fn read(
    registry: &Registry,
    topic: &str,
    partition: u32,
    from: u64,
) -> (Vec<Item>, Result<u64, ReadError>) {
    let topic = registry.topic_handle(&topic.parse().unwrap()).unwrap();
    let Some(partition) = topic.partition(PartitionId(partition)) else {
        return (vec![], Ok(from));
    };
    let (mut reader, mut at, mut items) = (partition.reader(), Offset(from), Vec::new());
    loop {
        match reader.read(at, Offset::LIMIT, 1_000, 1 << 20) {
            Err(error) => return (items, Err(error)),
            Ok(TopicRead::End) => return (items, Ok(at.0)),
            Ok(TopicRead::Swap { at: marker, next, .. }) => {
                items.push(Item::Swap { at: marker.0, next: next.0 });
                at = next;
            }
            Ok(TopicRead::Records(batch)) => {
                let text = |column: &arrow_array::BinaryArray, i: usize| {
                    (!column.is_null(i))
                        .then(|| String::from_utf8_lossy(column.value(i)).into_owned())
                };
                for (i, offset) in batch.offsets.iter().enumerate() {
                    let source =
                        batch.records.sources.as_ref().map(|s| {
                            (s.generation.0, s.partitions[i], s.offsets[i], s.ordinals[i])
                        });
                    let records = &batch.records;
                    let key = text(&records.keys, i);
                    let value = text(&records.values, i).unwrap_or_default();
                    items.push(Item::Record { offset: *offset, key, value, source });
                }
                at = batch.next_offset().unwrap_or(at);
            }
        }
    }
}
