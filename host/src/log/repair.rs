//! The log's part of a new head, made from an old one or its copy and from the files of segments.
//!
//! A record is taken from wherever it is intact: a file, an append in the head, an append in a copy of the
//! head. What is nowhere becomes a lost range ([`Lost`]) that readers are told of.
//!
//! **Invariant:** nothing is read twice into a new head and no offset of an old one is given out again:
//! where the end of a partition is not known for sure, it is moved far beyond what was there. A file that
//! could not be read is not lost: whoever makes a head sees to it that there is none.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::commit::{LogKind, LogSpec};
use super::files::Files;
use super::image::{Image, LogPartition, PartitionImage};
use super::keys;
use super::lost::{Lost, SKIP};
use super::segment::SegmentEntry;
use super::topics::{TopicFormat, TopicState};
use crate::storage::Entries;
use crate::types::{LogId, Offset, PartitionId, TopicId, TopicName};

/// Ids that a new head keeps away from those that are known: they were given out and never written down.
const SKIPPED_IDS: u64 = 1 << 20;

/// Records that a new head does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The partition, in the words of an operator.
    pub place: String,
    /// What the log holds.
    pub kind: LogKind,
    /// The first offset of the log that is lost.
    pub from: Offset,
    /// The first offset after them; `None` where it is not known how many there were.
    pub next: Option<Offset>,
}

/// From what the log's part of a new head is made.
pub struct Repair<'a> {
    /// The head that is built upon, or a copy of it.
    pub base: &'a Entries,
    /// Whether that is the head itself, with all its keys and every commit that was acknowledged.
    pub whole: bool,
    /// Keys of the head whose values are not intact.
    pub damaged: &'a [Vec<u8>],
    /// What is intact of a head that is not the base.
    pub salvage: &'a Entries,
    /// All files.
    pub files: &'a Files,
    /// The store id, 16 hexadecimal digits.
    pub store: &'a str,
    /// Wall time.
    pub now_ms: i64,
    /// What readers of lost offsets are told.
    pub why: &'a str,
}

/// A new head, and what it does not have.
pub struct NewHead {
    /// Keys and values.
    pub entries: Entries,
    /// Ranges of offsets whose records are nowhere.
    pub losses: Vec<Loss>,
    /// Logs whose topics are not known any more, and the topics that were made for them.
    pub recovered: Vec<(LogId, TopicName)>,
}

/// Where records of a partition lie.
enum Piece<'a> {
    Segment(&'a SegmentEntry),
    Append(&'a [u8], &'a [u8]),
}

/// Ranges in the order of offsets.
type Pieces<'a> = Vec<(Offset, Offset, Piece<'a>)>;

impl Repair<'_> {
    /// Makes it.
    pub fn new_head(&self) -> NewHead {
        let (mut image, mut entries) = (Image::read(self.base), self.base.clone());
        let recovered = if self.whole { Vec::new() } else { self.adopt(&mut image, &mut entries) };
        let salvaged = if self.whole { Image::default() } else { self.salvaged(&image) };
        let mut losses = Vec::new();
        for (id, partition) in &image.partitions {
            let pieces = self.pieces(*id, &image, &salvaged);
            let gaps = self.gaps(*id, &image, &pieces);
            self.rewrite(*id, partition, pieces, &gaps, &mut entries);
            let kind = image.kind(id.0).unwrap_or(LogKind::Records);
            let place = image.name(id.0, id.1);
            losses.extend(gaps.into_iter().filter(|gap| gap.told).map(|gap| Loss {
                place: place.clone(),
                kind,
                from: gap.first,
                next: gap.known.then_some(gap.next),
            }));
        }
        if !self.whole {
            let id = image.next_id.max(self.highest_id()) + SKIPPED_IDS;
            entries.insert(keys::NEXT_ID.to_vec(), id.to_le_bytes().to_vec());
        }
        NewHead { entries, losses, recovered }
    }

    /// Intact appends of the head, as partitions of the base.
    fn salvaged(&self, image: &Image) -> Image {
        let of = |kind: u8| self.base.range(vec![kind]..vec![kind + 1]);
        let logs = of(keys::LOGS).map(|(k, v)| (k.clone(), v.clone()));
        let of = |kind: u8| self.salvage.range(vec![kind]..vec![kind + 1]);
        let appends = of(keys::HEAD).map(|(k, v)| (k.clone(), v.clone()));
        let mut salvaged = Image::read(&logs.chain(appends).collect());
        salvaged.partitions.retain(|(log, _), _| image.kind(*log) == Some(LogKind::Records));
        salvaged
    }

    /// All ranges of a partition that are intact, without overlap.
    fn pieces<'a>(&'a self, id: LogPartition, image: &'a Image, salvaged: &Image) -> Pieces<'a> {
        let partition = &image.partitions[&id];
        let mut pieces: Pieces<'a> = Vec::new();
        let listed = partition.segments.values();
        let intact = listed.filter(|entry| self.files.fault(id, entry, self.store).is_none());
        pieces.extend(intact.map(|entry| (entry.first, entry.next, Piece::Segment(entry))));
        if !self.whole && image.kind(id.0) == Some(LogKind::Records) {
            // Only the sealer writes files of such a log, and only of records that were durable.
            let found = self.files.found.values().flatten();
            let own = found.filter(|s| (s.log, s.partition) == id && s.store == self.store);
            pieces.extend(own.map(|s| (s.entry.first, s.entry.next, Piece::Segment(&s.entry))));
        }
        let mut append = |entries: &'a Entries, runs: &BTreeMap<Offset, Offset>| {
            for (first, next) in runs {
                if let Some((key, value)) = entries.get_key_value(&keys::head(id.0, id.1, *first)) {
                    pieces.push((*first, *next, Piece::Append(key, value)));
                }
            }
        };
        append(self.base, &partition.runs);
        if let Some(salvaged) = salvaged.partitions.get(&id) {
            append(self.salvage, &salvaged.runs);
        }
        pieces.sort_by_key(|(first, next, piece)| {
            (*first, matches!(piece, Piece::Append(..)), Reverse(*next))
        });
        let mut covered = partition.record.log_start;
        pieces.retain(|(first, next, _)| {
            // The first of them may reach back before the start of the log.
            let fits =
                *next > covered && (*first >= covered || covered == partition.record.log_start);
            if fits {
                covered = *next;
            }
            fits
        });
        pieces
    }

    /// Ranges between `pieces` that are to be written down as lost.
    fn gaps(&self, id: LogPartition, image: &Image, pieces: &Pieces<'_>) -> Vec<Gap> {
        let partition = &image.partitions[&id];
        let mut missing: Vec<(Offset, Option<Offset>)> = Vec::new();
        for entry in partition.segments.values() {
            if self.files.fault(id, entry, self.store).is_some() {
                missing.push((entry.first, Some(entry.next)));
            }
        }
        if self.whole {
            let damaged = self.damaged.iter().filter_map(|key| keys::parse_positioned(key));
            let own = damaged.filter(|(log, p, _)| (*log, *p) == id);
            let unsealed = own.filter(|(_, _, first)| *first >= partition.record.head_start);
            missing.extend(unsealed.map(|(_, _, first)| (first, None)));
        }
        let known_lost = |from: Offset, next: Offset| {
            // An offset more: a range that began behind the end leaves the end itself open.
            let known = partition.lost.range(..=Offset(from.0 + 1)).next_back();
            known.is_some_and(|(_, lost)| lost.next >= next)
        };
        let all = !self.whole && image.kind(id.0) == Some(LogKind::Records);
        let mut gaps = Vec::new();
        let mut end = partition.record.log_start;
        for (first, next, _) in pieces {
            let hit = missing.iter().any(|(at, _)| (end..*first).contains(at));
            if end < *first && (hit || all) && !known_lost(end, *first) {
                gaps.push(Gap { first: end, from: end, next: *first, known: true, told: true });
            }
            end = end.max(*next);
        }
        let behind = missing.iter().filter(|(at, _)| *at >= end);
        let (known, unknown): (Vec<_>, Vec<_>) = behind.partition(|(_, next)| next.is_some());
        let known = known.iter().filter_map(|(_, next)| *next).max();
        let far = |end: Offset| Offset(end.0.max(partition.end().0) + SKIP);
        if !unknown.is_empty() {
            gaps.push(Gap { first: end, from: end, next: far(end), known: false, told: true });
        } else if let Some(next) = known {
            let next = if self.whole { next } else { far(next) };
            gaps.push(Gap { first: end, from: end, next, known: self.whole, told: true });
        } else if !self.whole {
            // Whoever has read to the end has read everything that is there.
            let from = Offset(end.max(partition.end()).0 + 1);
            gaps.push(Gap { first: end, from, next: far(end), known: false, told: all });
        }
        gaps
    }

    /// Puts a partition into the new head.
    fn rewrite(
        &self,
        (log, p): LogPartition,
        partition: &PartitionImage,
        pieces: Pieces<'_>,
        gaps: &[Gap],
        entries: &mut Entries,
    ) {
        for kind in [keys::SEGMENTS, keys::HEAD] {
            let (low, high) = keys::range(kind, log, p);
            let old: Vec<_> = entries.range(low..=high).map(|(key, _)| key.clone()).collect();
            old.iter().for_each(|key| drop(entries.remove(key)));
        }
        let mut record = partition.record;
        for (first, _, piece) in &pieces {
            match piece {
                Piece::Segment(entry) => {
                    entries.insert(keys::segment(log, p, *first), json(entry));
                }
                Piece::Append(key, value) => {
                    // An append may take the place of a segment that is lost.
                    record.head_start = record.head_start.min(*first);
                    entries.insert(key.to_vec(), value.to_vec());
                }
            }
        }
        for gap in gaps {
            let leads =
                gap.from == record.log_start && pieces.iter().any(|(f, _, _)| *f >= gap.next);
            if leads {
                record.log_start = gap.next;
                continue;
            }
            let mut lost = Lost { next: gap.next, noted_ms: self.now_ms, why: self.why.to_owned() };
            if let Some(known) = partition.lost.get(&gap.from) {
                lost.next = lost.next.max(known.next);
            }
            entries.insert(keys::lost(log, p, gap.from), json(&lost));
        }
        entries.insert(keys::partition(log, p), json(&record));
    }

    /// Makes topics for files of logs that the base does not know.
    fn adopt(&self, image: &mut Image, entries: &mut Entries) -> Vec<(LogId, TopicName)> {
        let mut unknown: BTreeMap<LogId, (u32, bool)> = BTreeMap::new();
        for found in self.files.found.values().flatten() {
            if !image.logs.contains_key(&found.log) && found.store == self.store {
                let (partitions, derived) = unknown.entry(found.log).or_default();
                *partitions = (*partitions).max(found.partition.0 + 1);
                *derived |= found.sources;
            }
        }
        let mut id = image.next_id.max(self.highest_id()) + SKIPPED_IDS / 2;
        let mut made = Vec::new();
        // What a generation made is made again; without a topic it means nothing.
        for (log, (partitions, _)) in unknown.into_iter().filter(|(_, (_, derived))| !derived) {
            let Ok(name) = format!("recovered-log-{log}").parse::<TopicName>() else { continue };
            let (kind, owner) = (LogKind::Records, format!("topic {name}"));
            let spec = LogSpec { id: log, kind, partitions, owner };
            let topic =
                TopicState::plain(TopicId(id), name.clone(), TopicFormat::Bytes, partitions, log);
            id += 1;
            entries.insert(keys::log(log), json(&spec));
            entries.insert(keys::topic(topic.id), json(&topic));
            for p in (0..partitions).map(PartitionId) {
                image.partitions.insert((log, p), PartitionImage::default());
            }
            image.logs.insert(log, spec);
            image.topics.insert(topic.id, topic);
            made.push((log, name));
        }
        made
    }

    /// The highest id in the names of files, and one more.
    fn highest_id(&self) -> u64 {
        let ids = self.files.found.keys().flat_map(|name| {
            let (log, file) = name.split_once('/').unwrap_or_default();
            let id = file.trim_end_matches(".arrow").rsplit('-').next().unwrap_or_default();
            [log.parse().unwrap_or(0), u64::from_str_radix(id, 16).unwrap_or(0)]
        });
        // A name is no more than a hint: far beyond what can be counted to it is none.
        ids.filter(|id| *id < SKIP).max().unwrap_or(0) + 1
    }
}

/// A range to be written down as lost.
struct Gap {
    /// The first offset that was lost.
    first: Offset,
    /// The first at which readers are told.
    from: Offset,
    next: Offset,
    /// Whether `next` is where the lost records ended, and not a safe distance.
    known: bool,
    /// Whether records are missing, as far as is known.
    told: bool,
}

/// A head that goes on from `entries`, which are older than what was acknowledged last: its partitions
/// end far beyond what may have been given out since.
pub fn restored(entries: &Entries, now_ms: i64, why: &str) -> Entries {
    let image = Image::read(entries);
    let mut entries = entries.clone();
    for ((log, p), partition) in &image.partitions {
        let end = partition.end();
        let lost = Lost { next: Offset(end.0 + SKIP), noted_ms: now_ms, why: why.to_owned() };
        entries.insert(keys::lost(*log, *p, Offset(end.0 + 1)), json(&lost));
    }
    let id = image.next_id + SKIPPED_IDS;
    entries.insert(keys::NEXT_ID.to_vec(), id.to_le_bytes().to_vec());
    entries
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structs with string keys are always JSON")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::sync::Arc;

    use super::super::recovery::SEGMENTS_DIR;
    use super::super::{Append, Commit, Log, LogConfig, ReadError};
    use super::*;
    use crate::clock::ManualClock;
    use crate::storage::{FileSystem, OsFileSystem, Storage, create_head};
    use crate::types::RecordsBuilder;

    const P0: PartitionId = PartitionId(0);

    fn fs() -> Arc<dyn FileSystem> {
        Arc::new(OsFileSystem)
    }

    fn open(dir: &Path) -> Log {
        let clock = ManualClock::new(1_000, 7);
        let storage = Storage::open(dir, &fs(), &(clock.clone() as _)).unwrap();
        let config = LogConfig { head_bytes: 8_000, segment_bytes: 4_000, min_free_bytes: 0 };
        Log::open(Arc::new(storage), fs(), clock, config).unwrap()
    }

    fn append(log: &Log, id: LogId, count: usize) -> Offset {
        let mut rows = RecordsBuilder::default();
        (0..count).for_each(|i| rows.push(i as i64, None, Some(&[7; 50]), []));
        let appends = vec![Append { log: id, partition: P0, records: rows.finish() }];
        log.commit_blocking(Commit { appends, ..Commit::default() }).unwrap().appended[0].0
    }

    fn entries(log: &Log) -> Entries {
        let snapshot = log.snapshot().unwrap();
        snapshot.entries().map(|(k, v)| (k.to_vec(), v.into_owned())).collect()
    }

    fn offsets(ranges: impl IntoIterator<Item = (Offset, Offset)>) -> BTreeSet<u64> {
        ranges.into_iter().flat_map(|(first, next)| first.0..next.0).collect()
    }

    /// What can be read, and which positions are said to be lost.
    fn read(log: &Log, id: LogId, end: u64) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let partition = log.partition(id, P0).unwrap();
        let (mut found, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for at in 0..end {
            match partition.reader().read(Offset(at), Offset::LIMIT, 1, 1 << 20) {
                Ok(Some(batch)) if batch.offsets[0] == at => drop(found.insert(at)),
                Ok(other) => assert!(at >= end - 1 || other.is_none(), "{at} was skipped"),
                Err(ReadError::Lost { .. } | ReadError::BelowStart { .. }) => {
                    lost.insert(at);
                }
                Err(other) => panic!("{at}: {other}"),
            }
        }
        (found, lost)
    }

    /// Any of files, appends and a copy may be lost: what is intact anywhere is there, the rest is said
    /// to be lost, and no offset is given out again.
    #[test]
    fn what_is_intact_anywhere_is_kept_and_the_rest_is_named() {
        let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("run again with SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for round in 0..12 {
            let whole = round % 2 == 0;
            let dir = tempfile::tempdir().unwrap();
            let log = open(dir.path());
            let id = LogId(log.allocate_id());
            let spec = LogSpec { id, kind: LogKind::Records, partitions: 1, owner: "t".into() };
            log.commit_blocking(Commit { creates: vec![spec], ..Commit::default() }).unwrap();
            let (appends, copied_at) = (random.usize(5..40), random.usize(0..40));
            let mut copy = entries(&log);
            for n in 0..appends {
                append(&log, id, random.usize(1..20));
                if n == copied_at {
                    copy = entries(&log);
                }
            }
            let end = log.partition(id, P0).unwrap().durable_offset().0;
            log.close();
            let head = entries_of_closed(log, dir.path());
            let store = format!("{:016x}", head.1);
            let head = head.0;
            let (mut kept, mut salvage, mut damaged) = (BTreeSet::new(), head.clone(), Vec::new());
            salvage.retain(|key, _| {
                let keep = key.first() != Some(&keys::HEAD) || random.bool();
                if !keep {
                    damaged.push(key.clone());
                }
                keep
            });
            let mut names: Vec<String> =
                Files::list(&*fs(), dir.path()).unwrap().into_keys().collect();
            names.retain(|_| random.f32() < 0.7);
            let files = Files::examine(&*fs(), dir.path(), names, &mut |_| {});
            kept.extend(offsets(
                files.found.values().flatten().map(|s| (s.entry.first, s.entry.next)),
            ));
            let base = if whole { &salvage } else { &copy };
            for entries in [base, &salvage] {
                let image = Image::read(entries);
                kept.extend(offsets(image.partitions[&(id, P0)].runs.clone()));
            }
            let repair = Repair {
                base,
                whole,
                damaged: &damaged,
                salvage: &salvage,
                files: &files,
                store: &store,
                now_ms: 5,
                why: "a test",
            };
            let made = repair.new_head();

            let new = tempfile::tempdir().unwrap();
            let store_id = u64::from_str_radix(&store, 16).unwrap();
            create_head(new.path(), &fs(), store_id, 1_000, &made.entries).unwrap();
            let from = dir.path().join(SEGMENTS_DIR).join(id.to_string());
            let to = new.path().join(SEGMENTS_DIR).join(id.to_string());
            std::fs::create_dir_all(&to).unwrap();
            for file in files.found.keys() {
                let name = file.split_once('/').unwrap().1;
                std::fs::copy(from.join(name), to.join(name)).unwrap();
            }
            let log = open(new.path());
            let (found, lost) = read(&log, id, end);
            assert_eq!(found, kept, "SEED={seed} round {round}, whole: {whole}");
            let told = made.losses.iter().flat_map(|l| l.from.0..l.next.map_or(end, |n| n.0));
            let told: BTreeSet<u64> = told.filter(|at| *at < end).collect();
            let missing: BTreeSet<u64> = (0..end).filter(|at| !kept.contains(at)).collect();
            assert_eq!(told, missing, "SEED={seed} round {round}, whole: {whole}");
            // Where a head was lost, whoever stands at the known end goes on; all others are told.
            let open_end = kept.last().map_or(0, |last| last + 1);
            let untold = missing.iter().filter(|at| !lost.contains(at) && **at != open_end);
            assert_eq!(untold.count(), 0, "SEED={seed} round {round}, whole: {whole}");
            assert!(append(&log, id, 1).0 >= end, "SEED={seed} round {round}, whole: {whole}");
        }
    }

    /// What stands in the head of a log that was closed, and its store's id.
    fn entries_of_closed(log: Log, dir: &Path) -> (Entries, u64) {
        drop(log);
        let clock = ManualClock::new(1_000, 7);
        let storage = Storage::open(dir, &fs(), &(clock as _)).unwrap();
        let mut entries = Entries::new();
        storage.scan(b"", |key, value| drop(entries.insert(key.to_vec(), value))).unwrap();
        entries.retain(|key, _| key.first() != Some(&b'm'));
        (entries, storage.store_id())
    }
}
