//! Follows an output topic from round to round, across swaps, and compares each record with the plain
//! computation.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{Client, Read};
use super::expected::Update;
use super::history::{Kind, Violation};
use super::record::Shown;

/// What a deployment's plugin makes of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Makes {
    /// Count and order-dependent number, in JSON: the first deployment.
    Tally,
    /// The count, in eight bytes, little-endian: the second.
    Count,
}

/// A reader of one partition of an output: it keeps its place from round to round.
#[derive(Debug, Clone)]
pub struct Follower {
    topic: String,
    partition: u32,
    makes: Makes,
    /// Where it goes on; `None` is the beginning of the live generation's records.
    position: Option<u64>,
    /// The generation whose records it reads.
    generation: u32,
    /// Records that it has read, which is the place of the next in the computation.
    read: usize,
}

impl Follower {
    /// A follower that begins at `earliest`.
    pub fn new(topic: &str, partition: u32, makes: Makes) -> Self {
        let topic = topic.to_owned();
        Self { topic, partition, makes, position: None, generation: 0, read: 0 }
    }

    /// Begins again at `earliest`, which is the rebuilt history of the live generation.
    pub fn rewind(&mut self) {
        self.position = None;
    }

    /// Reads to the end, which must be that of the computation.
    ///
    /// # Errors
    /// When the host does not answer, or not as it should.
    pub fn read(
        &mut self,
        client: &Client,
        live: u32,
        updates: &[Update],
        salt: impl Fn(u32) -> u64,
    ) -> Result<Option<Violation>> {
        loop {
            let from = self.position.map_or("earliest".to_owned(), |at| at.to_string());
            if self.position.is_none() {
                (self.generation, self.read) = (live, 0);
            }
            let page = match client.read(&self.topic, self.partition, &from)? {
                Read::Page(page) => page,
                // Two swaps since it read last; only the live and the warm generation are kept.
                Read::Retired => {
                    self.position = None;
                    continue;
                }
            };
            for line in page.lines.lines() {
                let shown = Shown::read(line)?;
                if let Some(swap) = page.swap {
                    let before = shown.offset < swap.at;
                    self.generation =
                        if before { swap.generation_from } else { swap.generation_to };
                }
                if let Some(wrong) = self.compare(&shown, updates, &salt)? {
                    let detail = format!(
                        "{} partition {} generation {}: {wrong}",
                        self.topic, self.partition, self.generation
                    );
                    return Ok(Some(Violation::new(Kind::Derived, detail)));
                }
                self.read += 1;
            }
            if let Some(swap) = page.swap {
                self.generation = swap.generation_to;
            }
            self.position = Some(page.next);
            if page.lines.is_empty() && page.next >= page.end {
                break;
            }
        }
        let (read, expected) = (self.read, updates.len());
        let short = || {
            let detail = format!(
                "{} partition {} ends after {read} records, {expected} are expected",
                self.topic, self.partition
            );
            Violation::new(Kind::Derived, detail)
        };
        Ok((read != expected).then(short))
    }

    /// What differs between a record and the update that it should be.
    fn compare(
        &self,
        shown: &Shown<'_>,
        updates: &[Update],
        salt: impl Fn(u32) -> u64,
    ) -> Result<Option<String>> {
        let place = format!("record {} at offset {}", self.read, shown.offset);
        let Some(update) = updates.get(self.read) else {
            return Ok(Some(format!("{place} should not be there: {}", shown.value)));
        };
        let salt = salt(self.generation);
        let same = shown.key.as_deref() == Some(&*update.key)
            && shown.timestamp == update.timestamp
            && match self.makes {
                Makes::Tally => tally(shown.value)? == (update.count, update.order(salt)),
                Makes::Count => count(shown.value)? == update.count,
            };
        Ok((!same).then(|| {
            let (key, value) = (shown.key.as_deref().unwrap_or("null"), shown.value);
            format!(
                "{place} is {key} {value} at {}, expected {} count {} order {} at {}",
                shown.timestamp,
                update.key,
                update.count,
                update.order(salt),
                update.timestamp
            )
        }))
    }
}

/// Count and order-dependent number, as the first deployment writes them.
///
/// # Errors
/// When the value is something else.
pub fn tally(value: &RawValue) -> Result<(u64, u64)> {
    #[derive(Deserialize)]
    struct Tally {
        count: u64,
        order: u64,
    }
    let tally: Tally = serde_json::from_str(value.get()).with_context(|| value.to_string())?;
    Ok((tally.count, tally.order))
}

/// A count: eight bytes, shown in base64 where they are no JSON.
fn count(value: &RawValue) -> Result<u64> {
    #[derive(Deserialize)]
    struct Bytes<'a> {
        #[serde(rename = "$bytes")]
        bytes: &'a str,
    }
    let shown: Bytes<'_> = serde_json::from_str(value.get()).with_context(|| value.to_string())?;
    let bytes = BASE64.decode(shown.bytes)?;
    let bytes = bytes.try_into().ok().with_context(|| format!("{value} is not of eight bytes"))?;
    Ok(u64::from_le_bytes(bytes))
}
