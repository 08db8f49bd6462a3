//! Producers and readers: threads that work until the host is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use serde_json::Value;

use super::client::Client;
use super::journal::{Answer, Journal, Sent};
use super::record::{Shown, text};

/// The topic that producers write to.
pub const INPUT: &str = "in";

/// Its partitions, and those of all outputs.
pub const PARTITIONS: u32 = 2;

/// Records that a round acknowledges before its kill, at least.
pub const ROUND_RECORDS: u64 = 1_000;

/// Records of a round after which producers only keep the host awake.
const PLENTY_RECORDS: u64 = 4_000;

/// Bytes that most records are padded with, at most.
pub const PADDING: usize = 300;

/// Threads that produce.
const PRODUCERS: usize = 3;

/// Keys of the records.
const KEYS: u32 = 200;

/// The load of one round.
pub struct Load {
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts producers, whose records are padded with fewer than `padding` bytes, and a reader of each
    /// partition from these offsets on.
    pub fn start(
        client: &Client,
        journal: &Arc<Journal>,
        random: &mut Rng,
        ends: &[u64],
        padding: usize,
    ) -> Self {
        let mut threads = Vec::new();
        let before = journal.acknowledged();
        for _ in 0..PRODUCERS {
            let (client, journal) = (client.clone(), Arc::clone(journal));
            let mut random = random.fork();
            threads.push(std::thread::spawn(move || {
                while produce(&client, &journal, &mut random, before, padding) {}
            }));
        }
        for (partition, from) in (0..).zip(ends.iter().copied()) {
            let (client, journal) = (client.clone(), Arc::clone(journal));
            threads.push(std::thread::spawn(move || {
                client.follow(INPUT, partition, from, |line| {
                    let shown = Shown::read(line).map(|shown| shown.entry());
                    // What is no record of ours is found by the checker, which reads all of it.
                    if let Ok((offset, Some(id))) = shown.map(|entry| (entry.offset, entry.id)) {
                        journal.saw(partition, offset, id);
                    }
                    true
                });
            }));
        }
        Self { threads }
    }

    /// Waits until all have found that the host is gone.
    pub fn finish(self) {
        for thread in self.threads {
            // A thread that panicked has said so; what it left in the journal is whole.
            drop(thread.join());
        }
    }
}

/// Sends one request; `false` once the host is gone.
fn produce(
    client: &Client,
    journal: &Journal,
    random: &mut Rng,
    before: u64,
    padding: usize,
) -> bool {
    let done = journal.acknowledged() - before;
    let (most, pause_ms) = match done {
        0..ROUND_RECORDS => (80, 0),
        ROUND_RECORDS..PLENTY_RECORDS => (12, 2),
        _ => (3, 20),
    };
    std::thread::sleep(Duration::from_millis(pause_ms));
    let there = send(client, journal, random, most, padding);
    there.is_ok()
}

/// Sends one request to a host that is there; says why it was refused, if it was.
///
/// # Errors
/// When there was no answer.
pub fn produce_one(
    client: &Client,
    journal: &Journal,
    random: &mut Rng,
    padding: usize,
) -> Result<Option<String>> {
    send(client, journal, random, 10, padding)
}

/// Sends up to `most` records, and notes what became of them.
fn send(
    client: &Client,
    journal: &Journal,
    random: &mut Rng,
    most: usize,
    padding: usize,
) -> Result<Option<String>> {
    let count = random.usize(1..=most);
    let records: Vec<Sent> = (0..count).map(|_| record(journal, random, padding)).collect();
    let body: String = records.iter().map(|record| format!("{}\n", record.text)).collect();
    let request = journal.begin(records);
    let path = format!("/v1/topics/{INPUT}/records");
    let reply = client.ask("POST", &path, "application/x-ndjson", body.as_bytes());
    let answer = match &reply {
        Ok(reply) if reply.status == 200 => acknowledged(&reply.text),
        Ok(reply) if (400..500).contains(&reply.status) => Answer::Refused,
        _ => Answer::Unknown,
    };
    journal.end(request, answer);
    let reply = reply?;
    Ok((reply.status != 200).then_some(reply.text))
}

fn acknowledged(text: &str) -> Answer {
    let reply: Value = serde_json::from_str(text).unwrap_or_default();
    let mut ends = BTreeMap::new();
    for (partition, end) in reply["partitions"].as_object().into_iter().flatten() {
        if let (Ok(partition), Some(next)) = (partition.parse(), end["next_offset"].as_u64()) {
            ends.insert(partition, next);
        }
    }
    Answer::Acknowledged(ends)
}

/// A record with a seeded key, size and time; a few have headers, a few no key.
fn record(journal: &Journal, random: &mut Rng, padding: usize) -> Sent {
    let id = journal.new_id();
    // Few keys are frequent, and each has records.
    let key = format!("k{}", random.u32(0..KEYS).min(random.u32(0..KEYS)));
    let key = (random.u32(0..200) > 0).then_some(key);
    let padding = "x".repeat(random.usize(0..padding));
    let value = format!("{{\"id\":{id},\"padding\":\"{padding}\"}}");
    let headers = (random.u32(0..8) == 0).then(|| format!("[[\"trace\",\"{id}\"]]"));
    let timestamp = 1_700_000_000_000 + random.i64(0..1_000_000);
    Sent { id, text: text(key.as_deref(), &value, timestamp, headers.as_deref()) }
}
