//! What must hold: of the input against the producers' journal, of outputs and stores against a plain
//! recomputation, of what followers saw against what is there.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::json;

use super::clients::{Fate, Item, Seen, Sent, read, salt_of, topics};
use super::history::{DEPLOYMENTS, INPUT, World};
use crate::deployment::{GenerationStatus, Phase, Registry, StoreScan};
use crate::log::ReadError;

/// The multiplier of the plugin's order-dependent number.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Exactly one generation of each deployment is live.
pub fn one_live_generation(registry: &Registry) {
    for status in registry.deployments() {
        let live = status.generations.iter().filter(|g| g.phase == Phase::Live);
        let live: Vec<u32> = live.map(|g| g.number).collect();
        assert_eq!(live, [status.live], "live generations of {}", status.name);
    }
}

/// What a follower has seen is there as it was, up to where it has seen: nobody sees what can be lost.
pub fn seen_is_there(world: &World, registry: &Registry) {
    let seen = world.journal().seen.clone();
    for ((topic, partition), seen) in &seen {
        if seen.missed || registry.topic(&topic.parse().unwrap()).is_err() {
            assert!(seen.missed || seen.items.is_empty(), "{topic} was seen, and is gone");
            continue;
        }
        let (mut items, end) = read(registry, topic, *partition, 0);
        match end {
            Ok(_) => items.truncate(seen.items.len()),
            Err(ReadError::Retired { .. }) => continue,
            Err(error) => panic!("{topic}/{partition} cannot be read: {error}"),
        }
        let differs = (0..seen.items.len()).find(|&i| items.get(i) != Some(&seen.items[i]));
        if let Some(i) = differs {
            panic!(
                "{topic}/{partition}: {:?} was seen where {:?} is now",
                seen.items[i],
                items.get(i)
            );
        }
    }
}

/// Everything, of a host at rest.
pub fn everything(world: &World, registry: &Registry) {
    one_live_generation(registry);
    seen_is_there(world, registry);
    input_is_what_was_sent(world, registry);
    for (name, input) in DEPLOYMENTS {
        outputs_are_recomputed(world, registry, name, input);
        followers_miss_nothing(world, name, input);
    }
}

/// Nothing acknowledged is lost, doubled, reordered or altered; what was refused is not there; what was
/// not answered is there whole or not at all.
fn input_is_what_was_sent(world: &World, registry: &Registry) {
    let mut found: HashMap<String, (u32, u64, Option<String>)> = HashMap::new();
    for p in 0..world.partitions {
        let (items, end) = read(registry, INPUT, p, 0);
        end.unwrap_or_else(|error| panic!("input/{p}: {error}"));
        let mut last = None;
        for item in items {
            let Item::Record { offset, key, value, .. } = item else { panic!("{item:?} in input") };
            assert!(last < Some(offset), "input/{p}: offset {offset} after {last:?}");
            last = Some(offset);
            let before = found.insert(value.clone(), (p, offset, key));
            assert!(before.is_none(), "{value} is at input/{p} offset {offset} and at {before:?}");
        }
    }
    let mut given = HashSet::new();
    // Where the last acknowledged request of a producer ended.
    let mut ends: HashMap<(u64, u32), u64> = HashMap::new();
    for request in &world.journal().requests {
        let there = request.records.iter().filter(|r| found.contains_key(&r.value)).count();
        match &request.fate {
            Fate::Refused => assert_eq!(there, 0, "{request:?} was refused, and is there"),
            Fate::Unknown => {
                let whole = there == 0 || there == request.records.len();
                assert!(whole, "{there} records of {request:?} are there");
            }
            Fate::Acknowledged(next) => {
                let mut at = next.clone();
                for Sent { key, value, partition: p } in request.records.iter().rev() {
                    let p = *p;
                    let end = at.get_mut(&p).unwrap_or_else(|| panic!("{request:?} without {p}"));
                    *end -= 1;
                    let expected = (p, *end, key.clone());
                    assert_eq!(found.get(value), Some(&expected), "{value} was acknowledged");
                    assert!(given.insert((p, *end)), "input/{p}: offset {end} was given twice");
                }
                for (p, first) in at {
                    let end = ends.entry((request.producer, p)).or_default();
                    assert!(*end <= first, "{request:?} is before one that was sent earlier");
                    *end = next[&p];
                }
            }
        }
    }
}

/// What the plugin makes of records, with the state before them.
#[derive(Default)]
struct Tallies {
    salt: u64,
    by_key: BTreeMap<String, (u64, u64)>,
}

impl Tallies {
    fn add(&mut self, offset: u64, key: &str) -> serde_json::Value {
        let (count, order) = self.by_key.entry(key.to_owned()).or_insert((0, self.salt));
        *count += 1;
        *order = order.wrapping_mul(FACTOR).wrapping_add(offset + 1);
        json!({ "count": *count, "order": *order })
    }
}

/// The records of a topic's partition from a position on, as a task reads them; `None` if some of them
/// were retired since.
fn input_of(
    world: &World,
    registry: &Registry,
    topic: &str,
    p: u32,
    from: u64,
) -> Option<Vec<(u64, Option<String>)>> {
    let (mut items, end) = read(registry, topic, p, from);
    match end {
        Ok(_) => {}
        Err(ReadError::Retired { .. }) => {
            let journal = world.journal();
            let seen = journal.seen.get(&(topic.to_owned(), p));
            items = seen.filter(|seen| from == 0 && !seen.missed)?.items.clone();
        }
        Err(error) => panic!("{topic}/{p} from {from}: {error}"),
    }
    let record = |item| match item {
        Item::Record { offset, key, .. } => Some((offset, key)),
        Item::Swap { .. } => None,
    };
    Some(items.into_iter().filter_map(record).collect())
}

/// Outputs and stores of every generation that can be looked at are what its input makes.
fn outputs_are_recomputed(world: &World, registry: &Registry, name: &str, input: &str) {
    let status = registry.deployment(name).unwrap();
    let topic = format!("{name}-out");
    let state = registry.topic_handle(&topic.parse().unwrap()).unwrap().state();
    for generation in status.generations.iter().filter(|g| g.phase.runs()) {
        let starts = registry.starts_of(name, generation.number);
        for p in 0..world.partitions {
            let start = starts[p as usize][0].0;
            let Some(records) = input_of(world, registry, input, p, start) else { continue };
            let salt = salt_of(generation.reason.as_deref());
            let mut tallies = Tallies { salt, ..Tallies::default() };
            let keyed = records.iter().filter_map(|(offset, key)| Some((*offset, key.as_ref()?)));
            let made: Vec<Made> = keyed
                .map(|(offset, key)| (offset, Some(key.clone()), tallies.add(offset, key)))
                .collect();
            if status.live == generation.number {
                dead_letters_are(world, registry, name, p, &records);
            }
            store_is(registry, name, generation, p, &tallies);
            for mount in state.mounts.iter().filter(|m| m.generation == Some(generation.number)) {
                let Some(found) = outputs_in(world, registry, &topic, mount, p) else { continue };
                let made = match mount.to {
                    // A closed mount ends where the input of some partition was then.
                    Some(_) => &made[..found.len().min(made.len())],
                    None => &made[..],
                };
                assert_eq!(
                    found, made,
                    "{topic}: what generation {} made of {input}/{p}",
                    generation.number
                );
            }
        }
    }
}

type Made = (u64, Option<String>, serde_json::Value);

/// The dead letters of the live generation are the records without a key.
fn dead_letters_are(
    world: &World,
    registry: &Registry,
    name: &str,
    p: u32,
    records: &[(u64, Option<String>)],
) {
    let topic = format!("{name}.dead-letters");
    let state = registry.topic_handle(&topic.parse().unwrap()).unwrap().state();
    let mut found = Vec::new();
    for q in 0..state.partitions.min(world.partitions) {
        let (items, _) = read(registry, &topic, q, state.open_mount().base[q as usize].0);
        found.extend(items.into_iter().filter_map(|item| match item {
            Item::Record { source: Some((_, from, at, _)), .. } if from == p => Some(at),
            _ => None,
        }));
    }
    found.sort_unstable();
    let keyless = records.iter().filter(|(_, key)| key.is_none());
    let keyless: Vec<u64> = keyless.map(|(offset, _)| *offset).collect();
    assert_eq!(found, keyless, "{topic}: what came of partition {p}");
}

/// What lies in a mount and came from partition `p`, in the order of its input.
fn outputs_in(
    world: &World,
    registry: &Registry,
    topic: &str,
    mount: &crate::log::Mount,
    p: u32,
) -> Option<Vec<Made>> {
    let mut found = Vec::new();
    for q in 0..world.partitions {
        let (items, _) = read(registry, topic, q, mount.base[q as usize].0);
        let mut last = None;
        for item in items {
            match item {
                Item::Swap { .. } => break,
                Item::Record { offset, key, value, source } => {
                    let source =
                        source.unwrap_or_else(|| panic!("{topic}/{q} {offset}: no source"));
                    let (generation, from, at, ordinal) = source;
                    assert_eq!(Some(generation), mount.generation, "{topic}/{q} {offset}");
                    if from != p {
                        continue;
                    }
                    assert_eq!(ordinal, 0, "{topic}/{q} {offset}");
                    assert!(last < Some(at), "{topic}/{q} {offset}: from {at} after {last:?}");
                    last = Some(at);
                    found.push((at, key, serde_json::from_str(&value).unwrap()));
                }
            }
        }
    }
    found.sort_by_key(|(at, _, _)| *at);
    Some(found)
}

fn store_is(
    registry: &Registry,
    name: &str,
    generation: &GenerationStatus,
    p: u32,
    tallies: &Tallies,
) {
    let scan = StoreScan {
        generation: Some(generation.number),
        partition: Some(p),
        limit: 1_000,
        ..StoreScan::default()
    };
    let answer = registry.store_scan(name, "tallies", &scan).unwrap();
    let found: Vec<_> = answer.answer.entries.into_iter().map(|e| (e.key, e.value)).collect();
    let made = tallies.by_key.iter();
    let made: Vec<_> = made
        .map(|(key, (count, order))| (json!(key), json!({ "count": count, "order": order })))
        .collect();
    assert_eq!(found, made, "the store of {name} generation {} partition {p}", generation.number);
}

/// A follower of an output sees what was made of each record of the input once, in its order, whatever
/// was swapped meanwhile.
fn followers_miss_nothing(world: &World, name: &str, input: &str) {
    let journal = world.journal();
    let topic = format!("{name}-out");
    assert!(topics().contains(&&*topic));
    let of = |topic: &str, p: u32| journal.seen.get(&(topic.to_owned(), p)).cloned();
    let outputs: Vec<Seen> = (0..world.partitions).filter_map(|q| of(&topic, q)).collect();
    if outputs.iter().any(|seen| seen.missed) {
        return;
    }
    for p in 0..world.partitions {
        let Some(read) = of(input, p).filter(|seen| !seen.missed) else { continue };
        let offsets = read.items.iter().filter_map(|item| match item {
            Item::Record { offset, key: Some(_), .. } => Some(*offset),
            _ => None,
        });
        let offsets: Vec<u64> = offsets.collect();
        let mut seen = Vec::new();
        for output in &outputs {
            let sources = output.items.iter().filter_map(|item| match item {
                Item::Record { source: Some((_, from, at, _)), .. } if *from == p => Some(*at),
                _ => None,
            });
            let sources: Vec<u64> = sources.collect();
            assert!(
                sources.windows(2).all(|pair| pair[0] < pair[1]),
                "{topic}: a follower saw what was made of {input}/{p} out of order: {sources:?}"
            );
            seen.extend(sources);
        }
        seen.sort_unstable();
        assert_eq!(seen, offsets, "{topic}: what a follower saw of {input}/{p}");
    }
}
