//! The log's contract: what was committed is read back, in order, once, also after a reopen.

use std::path::Path;
use std::sync::Arc;

use arrow_array::{Array as _, BinaryArray};

use super::*;
use crate::clock::{ManualClock, SystemClock};
use crate::simulation::{Disk, Fault, IO_ERROR};
use crate::storage::{FileSystem, OsFileSystem, Pace, Storage};
use crate::types::{Batch, LogId, Offset, PartitionId, Records, RecordsBuilder, TopicId};

const P0: PartitionId = PartitionId(0);
const END: Offset = Offset::LIMIT;

fn open(dir: &Path, config: LogConfig) -> Log {
    let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
    let clock = ManualClock::new(1_000, 7);
    let storage = Storage::open(dir, &fs, &(clock.clone() as _)).unwrap();
    Log::open(Arc::new(storage), fs, clock, config).unwrap()
}

fn rows(from: u32, count: u32) -> Records {
    let mut rows = RecordsBuilder::default();
    for i in from..from + count {
        let header = (i % 3 == 0).then(|| ("n".to_owned(), Some(vec![i as u8])));
        rows.push(i64::from(i), Some(&i.to_be_bytes()), Some(&[b'v'; 20]), header);
    }
    rows.finish()
}

fn create(log: &Log, partitions: u32) -> LogId {
    let id = LogId(log.allocate_id());
    let spec = LogSpec { id, kind: LogKind::Records, partitions, owner: "test".into() };
    log.commit_blocking(Commit { creates: vec![spec], ..Commit::default() }).unwrap();
    id
}

fn append(log: &Log, id: LogId, records: Records) -> (Offset, Offset) {
    let appends = vec![Append { log: id, partition: P0, records }];
    log.commit_blocking(Commit { appends, ..Commit::default() }).unwrap().appended[0]
}

fn read_all(log: &Log, id: LogId, max_records: usize) -> Vec<(u64, i64)> {
    let mut reader = log.partition(id, P0).unwrap().reader();
    let mut at = log.partition(id, P0).unwrap().log_start_offset();
    let mut seen = Vec::new();
    while let Some(batch) = reader.read(at, END, max_records, 1 << 20).unwrap() {
        assert!(batch.len() <= max_records);
        at = batch.next_offset().unwrap();
        seen.extend(batch.offsets.iter().copied().zip(batch.records.timestamps.iter().copied()));
    }
    seen
}

fn expected(count: u32) -> Vec<(u64, i64)> {
    (0..count).map(|i| (u64::from(i), i64::from(i))).collect()
}

#[test]
fn what_is_committed_is_read_back_also_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), LogConfig::default());
    let id = create(&log, 2);
    assert_eq!(append(&log, id, rows(0, 5)), (Offset(0), Offset(5)));
    assert_eq!(append(&log, id, rows(5, 1)), (Offset(5), Offset(6)));
    assert_eq!(append(&log, id, rows(6, 4000)), (Offset(6), Offset(4006)));
    for max in [1, 7, 100_000] {
        assert_eq!(read_all(&log, id, max), expected(4006), "{max} a batch");
    }
    let next_id = log.allocate_id();
    append(&log, id, rows(4006, 1));
    log.close();
    drop(log);
    let log = open(dir.path(), LogConfig::default());
    assert_eq!(read_all(&log, id, 1000), expected(4007));
    assert!(log.allocate_id() > next_id, "an id was given out twice");
    assert_eq!(append(&log, id, rows(4007, 1)), (Offset(4007), Offset(4008)));
}

#[test]
fn a_refused_commit_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), LogConfig::default());
    let id = create(&log, 1);
    let epoch = |n: u8| (b"g/epoch".to_vec(), Some(vec![n]));
    let metadata = vec![epoch(1)];
    log.commit_blocking(Commit { metadata, ..Commit::default() }).unwrap();
    let fenced = Commit {
        guards: vec![Guard { key: b"g/epoch".to_vec(), expected: Some(vec![0]) }],
        appends: vec![Append { log: id, partition: P0, records: rows(0, 1) }],
        metadata: vec![epoch(9)],
        ..Commit::default()
    };
    let error = log.commit_blocking(fenced).unwrap_err();
    assert_eq!(error, CommitError::Fenced { key: "g/epoch".into() });
    assert_eq!(log.metadata_get(b"g/epoch").unwrap(), Some(vec![1]));
    assert_eq!(log.partition(id, P0).unwrap().durable_offset(), Offset(0));
    let missing = vec![Append { log: LogId(99), partition: P0, records: rows(0, 1) }];
    let error = log.commit_blocking(Commit { appends: missing, ..Commit::default() });
    let unknown = CommitError::UnknownPartition { log: LogId(99), partition: P0 };
    assert_eq!(error.unwrap_err(), unknown);
    log.close();
    let error = log.commit_blocking(Commit::default()).unwrap_err();
    assert!(matches!(error, CommitError::Stopped { .. }), "{error}");
}

#[test]
fn a_guard_that_cannot_be_read_refuses_one_commit_and_stops_nothing() {
    let disk = Disk::new(1);
    let (fs, clock) = (Arc::new(disk.clone()) as Arc<dyn FileSystem>, ManualClock::new(1_000, 7));
    let storage = Storage::open(Path::new("/data"), &fs, &(clock.clone() as _)).unwrap();
    let log = Log::open(Arc::new(storage), fs, clock, LogConfig::default()).unwrap();
    let guarded = || Commit {
        guards: vec![Guard { key: b"g/epoch".to_vec(), expected: None }],
        metadata: vec![(b"g/epoch".to_vec(), Some(vec![1]))],
        ..Commit::default()
    };
    // The committer syncs once before its first commit: that is not the operation to fail.
    log.commit_blocking(Commit::default()).unwrap();
    disk.plan(Some(Fault { after: 0, errno: IO_ERROR, lasts: false }));
    let error = log.commit_blocking(guarded()).unwrap_err();
    assert!(matches!(error, CommitError::Unread { .. }), "{error}");
    assert!(error.to_string().contains("/data/head"), "{error}");
    assert_eq!(log.metadata_get(b"g/epoch").unwrap(), None);
    log.commit_blocking(guarded()).unwrap();
}

#[test]
fn a_full_disk_refuses_records_and_takes_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { min_free_bytes: u64::MAX, ..LogConfig::default() };
    let log = open(dir.path(), config);
    let id = create(&log, 1);
    let appends = vec![Append { log: id, partition: P0, records: rows(0, 1) }];
    let error = log.commit_blocking(Commit { appends, ..Commit::default() }).unwrap_err();
    assert!(matches!(error, CommitError::DiskFull { .. }), "{error}");
    create(&log, 1);
    log.commit_blocking(Commit { deletes: vec![id], ..Commit::default() }).unwrap();
}

#[test]
fn a_commit_is_refused_that_would_leave_too_little_free() {
    let fs: Arc<dyn FileSystem> = Arc::new(Disk::new(7));
    let clock = ManualClock::new(1_000, 7);
    let dir = Path::new("/data");
    let storage = Storage::open(dir, &fs, &(clock.clone() as _)).unwrap();
    let free = fs.free_bytes(dir).unwrap();
    let config = LogConfig { min_free_bytes: free - 100_000, ..LogConfig::default() };
    let log = Log::open(Arc::new(storage), fs, clock, config).unwrap();
    let id = create(&log, 1);
    append(&log, id, rows(0, 100));
    let appends = vec![Append { log: id, partition: P0, records: rows(0, 2_000) }];
    let error = log.commit_blocking(Commit { appends, ..Commit::default() }).unwrap_err();
    assert!(
        matches!(error, CommitError::DiskFull { free_bytes, .. } if free_bytes == free),
        "{error}"
    );
    append(&log, id, rows(100, 100));
}

#[test]
fn truncated_records_are_gone_and_the_error_says_where_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), LogConfig::default());
    let id = create(&log, 1);
    append(&log, id, rows(0, 5));
    append(&log, id, rows(5, 5));
    let truncates = vec![(id, P0, Offset(7))];
    log.commit_blocking(Commit { truncates, ..Commit::default() }).unwrap();
    for reopened in [false, true] {
        let log = if reopened {
            log.close();
            open_again(&log, dir.path())
        } else {
            log.clone()
        };
        let partition = log.partition(id, P0).unwrap();
        let error = partition.reader().read(Offset(0), END, 10, 1000).unwrap_err();
        let below = ReadError::BelowStart { partition: P0, from: Offset(0), start: Offset(7) };
        assert_eq!(error, below);
        let error = partition.reader().read(Offset(11), END, 10, 1000).unwrap_err();
        let beyond = ReadError::BeyondEnd { partition: P0, from: Offset(11), end: Offset(10) };
        assert_eq!(error, beyond);
        assert_eq!(read_all(&log, id, 10), [(7, 7), (8, 8), (9, 9)]);
        if reopened {
            break;
        }
    }
}

/// A copy of the directory, opened: the original stays locked while its handle lives.
fn open_again(_closed: &Log, dir: &Path) -> Log {
    let copy = tempfile::tempdir().unwrap().keep();
    copy_dir(dir, &copy);
    open(&copy, LogConfig::default())
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_reader_reaches_the_marker_hops_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), LogConfig::default());
    let (old, new) = (create(&log, 1), create(&log, 1));
    append(&log, old, rows(0, 4));
    append(&log, new, rows(100, 3));
    let name: crate::types::TopicName = "delays".parse().unwrap();
    let id = TopicId(log.allocate_id());
    let state = TopicState::plain(id, name.clone(), TopicFormat::Json, 1, old);
    let topics = vec![TopicChange::Create(state.clone())];
    log.commit_blocking(Commit { topics, ..Commit::default() }).unwrap();
    let topic = log.topics().get(&name).unwrap();
    let partition = topic.partition(P0).unwrap();
    let (mut wakes, _guard) = partition.watch();
    let mut reader = partition.reader();
    let mut read = |from: u64| match reader.read(Offset(from), END, 2, 1000).unwrap() {
        TopicRead::Records(mut batch) => {
            batch.records.headers = None;
            TopicRead::Records(batch)
        }
        other => other,
    };
    let batch = |first: u64, value: u32, n: u32| {
        let records = Records { headers: None, ..rows(value, n) };
        TopicRead::Records(Batch::contiguous(Offset(first), records))
    };
    assert_eq!(read(0), batch(0, 0, 2));
    assert_eq!(read(2), batch(2, 2, 2));
    assert_eq!(read(4), TopicRead::End);
    wakes.mark_unchanged();
    let swapped = state.swapped(vec![Offset(4)], new, Some(2), vec![Offset(2)]);
    let stale = TopicChange::Put(state);
    let topics = vec![TopicChange::Put(swapped)];
    log.commit_blocking(Commit { topics, ..Commit::default() }).unwrap();
    assert!(wakes.has_changed().unwrap(), "followers were not woken by the swap");
    wakes.mark_unchanged();
    let hop = TopicRead::Swap {
        at: Offset(4),
        next: Offset(7),
        generation_from: None,
        generation_to: Some(2),
    };
    assert_eq!(read(4), hop);
    assert_eq!(read(7), batch(7, 102, 1));
    assert_eq!(read(5), batch(5, 100, 2), "the rebuilt history");
    assert_eq!((partition.start_offset(), partition.end_offset()), (Offset(5), Offset(8)));
    append(&log, new, rows(103, 1));
    assert!(wakes.has_changed().unwrap(), "followers were not moved to the new log");
    assert_eq!(read(8), batch(8, 103, 1));
    let count = |from, to| partition.count_between(Offset(from), Offset(to)).unwrap();
    assert_eq!((count(0, 9), count(1, 3), count(5, 9), count(4, 9), count(9, 9)), (6, 2, 4, 2, 0));
    for (time, at) in [(0, 5), (102, 7), (104, 9)] {
        assert_eq!(partition.offset_for_time(time).unwrap(), Offset(at));
    }
    let topics = vec![stale];
    let error = log.commit_blocking(Commit { topics, ..Commit::default() }).unwrap_err();
    assert_eq!(error, CommitError::Conflict { topic: name, current: 2 });
}

/// A head so small that nearly every commit is sealed.
fn tiny() -> LogConfig {
    LogConfig { head_bytes: 2_000, segment_bytes: 4_000, ..LogConfig::default() }
}

fn settle(log: &Log) {
    let clock = SystemClock::shared();
    while log.head_bytes() > 2_000 {
        assert!(clock.monotonic().as_secs() < 20, "the sealer does not come to an end");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// A log of 2,000 records that lie in files.
fn sealed(log: &Log) -> LogId {
    let id = create(log, 1);
    for i in 0..40 {
        append(log, id, rows(i * 50, 50));
    }
    settle(log);
    id
}

#[test]
fn sealed_records_read_as_the_head_did_also_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), tiny());
    let id = sealed(&log);
    let check = |log: &Log| {
        for max in [1, 7, 100_000] {
            assert_eq!(read_all(log, id, max), expected(2000), "{max} a batch");
        }
        let partition = log.partition(id, P0).unwrap();
        assert_eq!(partition.count_between(Offset(13), Offset(1777)).unwrap(), 1764);
        for time in [-1i64, 0, 13, 777, 1999, 5000] {
            let wanted = Offset(time.clamp(0, 2000) as u64);
            assert_eq!(partition.offset_for_time(time).unwrap(), wanted, "time {time}");
        }
        assert!(partition.file_bytes() > 0, "nothing was sealed");
    };
    check(&log);
    let mut reader = log.partition(id, P0).unwrap().reader();
    let batch = reader.read(Offset(3), Offset(4), 10, 1000).unwrap().unwrap();
    assert_eq!(batch, Batch { offsets: vec![3].into(), records: rows(3, 1) });
    log.close();
    drop(reader);
    drop(log);
    check(&open(dir.path(), tiny()));
}

/// Whoever ignores values sees the same, whether records lie in files, in the head or in both.
#[test]
fn what_nobody_wants_is_null_wherever_records_lie() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), tiny());
    let id = sealed(&log);
    append(&log, id, rows(2000, 3));
    let partition = log.partition(id, P0).unwrap();
    assert!(partition.file_bytes() > 0 && partition.tail_bytes() > 0, "all lies in one place");
    let (mut whole, mut only) = (partition.reader(), partition.reader());
    only.only(Wanted { values: false, sources: false });
    let mut at = Offset(0);
    while let Some(batch) = only.read(at, END, 77, 1 << 20).unwrap() {
        let next = batch.next_offset().unwrap();
        let mut expected = whole.read(at, next, 77, 1 << 20).unwrap().unwrap();
        assert_eq!(expected.records.values.null_count(), 0);
        expected.records.values = BinaryArray::new_null(expected.len());
        assert_eq!(batch, expected);
        at = next;
    }
    assert_eq!(at, Offset(2003));
}

#[test]
fn unknown_files_are_set_aside_and_missing_ones_refuse_to_open() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), tiny());
    let id = create(&log, 1);
    append(&log, id, rows(0, 500));
    settle(&log);
    log.close();
    drop(log);
    let folder = dir.path().join("segments").join(id.to_string());
    std::fs::write(folder.join("stranger.arrow"), b"?").unwrap();
    let log = open(dir.path(), tiny());
    let aside = log.quarantined().to_vec();
    assert_eq!(aside.len(), 1);
    assert_eq!(std::fs::read(&aside[0]).unwrap(), b"?");
    assert_eq!(read_all(&log, id, 1000), expected(500));
    log.close();
    drop(log);
    let segment = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(&segment).unwrap();
    let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
    let clock = ManualClock::new(0, 1);
    let storage = Arc::new(Storage::open(dir.path(), &fs, &(clock.clone() as _)).unwrap());
    let error = Log::open(storage, fs, clock, tiny()).err().unwrap().to_string();
    assert!(error.contains(segment.to_str().unwrap()), "{error}");
}

fn direct(log: &Log, id: LogId, room: u64, records: &Records) -> SealedSegment {
    let mut writer = SegmentWriter::new(log.reserve(id, P0, room).unwrap(), Pace::Full);
    writer.append(records).unwrap();
    writer.finish().unwrap().unwrap()
}

#[test]
fn direct_segments_leave_no_gap_when_newest_and_no_trace_when_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), LogConfig::default());
    let id = create(&log, 1);
    let partition = log.partition(id, P0).unwrap();
    append(&log, id, rows(0, 10));
    let sealed = direct(&log, id, 1000, &rows(10, 10));
    let segments = vec![sealed];
    log.commit_blocking(Commit { segments, ..Commit::default() }).unwrap();
    assert_eq!(partition.durable_offset(), Offset(20));
    assert_eq!(append(&log, id, rows(20, 5)), (Offset(20), Offset(25)));
    assert_eq!(read_all(&log, id, 7), expected(25));
    // An older reservation holds readers back, and leaves a gap.
    let sealed = direct(&log, id, 100, &rows(25, 5));
    assert_eq!(append(&log, id, rows(125, 5)), (Offset(125), Offset(130)));
    assert_eq!(partition.durable_offset(), Offset(25));
    let dropped = log.reserve(id, P0, 50).unwrap();
    let segments = vec![sealed];
    log.commit_blocking(Commit { segments, ..Commit::default() }).unwrap();
    drop(dropped);
    assert_eq!(partition.durable_offset(), Offset(130));
    let mut wanted = expected(30);
    wanted.extend((125..130).map(|i| (i, i as i64)));
    assert_eq!(read_all(&log, id, 7), wanted);
    assert_eq!(partition.count_between(Offset(0), END).unwrap(), 35);
    drop(direct(&log, id, 10, &rows(0, 10)));
    let files = std::fs::read_dir(dir.path().join("segments").join(id.to_string())).unwrap();
    assert_eq!(files.count(), 2, "a dropped segment left its file");
    let mut writer = SegmentWriter::new(log.reserve(id, P0, 3).unwrap(), Pace::Gentle);
    assert!(matches!(writer.append(&rows(0, 4)), Err(SegmentError::Full { room: 3, .. })));
    assert!(writer.finish().unwrap().is_none());
    assert_eq!(append(&log, id, rows(130, 1)), (Offset(130), Offset(131)));
    wanted.push((130, 130));
    log.close();
    let log = open_again(&log, dir.path());
    assert_eq!(read_all(&log, id, 1000), wanted);
}

#[test]
fn a_truncated_or_deleted_segment_goes_with_its_last_reader() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), LogConfig::default());
    let id = create(&log, 1);
    let segments = vec![direct(&log, id, 10, &rows(0, 10))];
    log.commit_blocking(Commit { segments, ..Commit::default() }).unwrap();
    let partition = log.partition(id, P0).unwrap();
    let mut reader = partition.reader();
    assert_eq!(reader.read(Offset(0), END, 5, 1000).unwrap().unwrap().len(), 5);
    let files = || std::fs::read_dir(dir.path().join("segments/1")).unwrap().count();
    let truncates = vec![(id, P0, Offset(10))];
    log.commit_blocking(Commit { truncates, ..Commit::default() }).unwrap();
    assert_eq!(files(), 1, "the reader still holds the file");
    drop(reader);
    // The sealer holds it, too, until it has come to it.
    let is_gone = |_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        files() == 0
    };
    assert!((0..30_000).any(is_gone), "the file of a truncated segment stays");
    append(&log, id, rows(10, 5));
    log.commit_blocking(Commit { deletes: vec![id], ..Commit::default() }).unwrap();
    let gone = partition.reader().read(Offset(10), END, 5, 1000).unwrap_err();
    assert_eq!(gone, ReadError::Deleted { log: id, partition: P0 });
    assert!(log.partition(id, P0).is_none());
    log.close();
    let log = open_again(&log, dir.path());
    assert!(log.partition(id, P0).is_none());
    assert_eq!((log.head_bytes(), log.quarantined().len()), (0, 0));
}

/// Random commits, direct segments, truncations, seals and reopens against a plain list.
#[test]
fn random_histories_read_as_a_list_does() {
    let seed = crate::clock::test_seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), tiny());
    let id = create(&log, 1);
    let (mut wanted, mut value) = (Vec::<(u64, i64)>::new(), 0u32);
    for step in 0..150 {
        let count = random.u32(1..80);
        let fresh = value;
        let expect =
            |first: Offset| (0..count).map(move |i| (first.0 + u64::from(i), i64::from(fresh + i)));
        value += count;
        match random.u32(0..20) {
            0..12 => {
                let (first, _) = append(&log, id, rows(fresh, count));
                wanted.extend(expect(first));
            }
            12..16 => {
                let sealed =
                    direct(&log, id, u64::from(count) + random.u64(0..9), &rows(fresh, count));
                let (first, _) = sealed.range();
                if random.bool() {
                    let segments = vec![sealed];
                    log.commit_blocking(Commit { segments, ..Commit::default() }).unwrap();
                    wanted.extend(expect(first));
                }
            }
            16..18 => {
                log.close();
                drop(log);
                log = open(dir.path(), tiny());
            }
            18 if !wanted.is_empty() => {
                let start = Offset(wanted[random.usize(0..wanted.len())].0);
                let truncates = vec![(id, P0, start)];
                log.commit_blocking(Commit { truncates, ..Commit::default() }).unwrap();
                wanted.retain(|(offset, _)| *offset >= start.0);
            }
            _ => settle(&log),
        }
        let max = random.usize(1..200);
        assert_eq!(read_all(&log, id, max), wanted, "step {step}");
        assert!(log.quarantined().is_empty(), "step {step}: {:?}", log.quarantined());
    }
}

/// The bytes of format version 1: what lies under each key, and a segment file. `ANABRANCH_BLESS=1`
/// writes them anew, which is right only together with a new format version.
#[test]
fn golden_bytes_of_version_1_hold() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/v1/log");
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), LogConfig::default());
    let id = LogId(log.allocate_id());
    let topic = TopicId(log.allocate_id());
    let state = TopicState::plain(topic, "delays".parse().unwrap(), TopicFormat::Json, 1, id);
    let spec = LogSpec { id, kind: LogKind::Outputs, partitions: 1, owner: "delays/g1".into() };
    log.commit_blocking(Commit {
        creates: vec![spec],
        topics: vec![TopicChange::Create(state)],
        metadata: vec![(b"c/1".to_vec(), Some(b"cursor".to_vec()))],
        ..Commit::default()
    })
    .unwrap();
    let sample = codec::tests::sample();
    append(&log, id, sample.clone());
    let segments = vec![direct(&log, id, 3, &sample)];
    log.commit_blocking(Commit { segments, ..Commit::default() }).unwrap();
    append(&log, id, Records { sources: None, ..sample.slice(0, 2) });
    let truncates = vec![(id, P0, Offset(1))];
    log.commit_blocking(Commit { truncates, ..Commit::default() }).unwrap();
    let mut keys = String::new();
    log.metadata_scan(b"", |key, value| {
        keys += &format!("{}\n    {}\n", hex::encode(key), hex::encode(&value));
        keys += &format!("    {} = {}\n", key.escape_ascii(), value.escape_ascii());
    })
    .unwrap();
    let folder = dir.path().join("segments/1");
    let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap();
    let segment = std::fs::read(file.path()).unwrap();
    let mut reader = log.partition(id, P0).unwrap().reader();
    let batch = reader.read(Offset(3), Offset(6), 10, 10_000).unwrap().unwrap();
    assert_eq!(batch, Batch::contiguous(Offset(3), sample));
    let files = [
        ("keys.txt", keys.into_bytes()),
        ("segment.arrow", segment),
        ("segment.ndjson", ndjson(&batch).into_bytes()),
    ];
    for (name, bytes) in files {
        let path = golden.join(name);
        if std::env::var_os("ANABRANCH_BLESS").is_some() {
            std::fs::create_dir_all(&golden).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let held = std::fs::read(&path).unwrap();
        assert!(held == bytes, "{name} is not what version 1 of the format says");
    }
}

/// What tests/pyarrow_check.py compares a segment with.
fn ndjson(batch: &Batch) -> String {
    let binary = |column: &arrow_array::BinaryArray, i: usize| {
        let valid = arrow_array::Array::is_valid(column, i);
        valid.then(|| hex::encode(column.value(i)))
    };
    let row = |i: usize| {
        let records = &batch.records;
        let headers = records.headers.iter().flat_map(|h| h.get(i));
        let headers: Vec<_> = headers.map(|(name, value)| (name, value.map(hex::encode))).collect();
        let source = records.sources.as_ref().map(|s| {
            let place = (s.inputs[i], s.partitions[i], s.offsets[i], s.ordinals[i]);
            (s.generation.0, place.0, place.1, place.2, place.3)
        });
        let row = serde_json::json!({
            "offset": batch.offsets[i],
            "timestamp": records.timestamps[i],
            "key": binary(&records.keys, i),
            "value": binary(&records.values, i),
            "headers": headers,
            "source": source,
        });
        format!("{row}\n")
    };
    (0..batch.len()).map(row).collect()
}

#[test]
fn every_flipped_byte_of_a_segment_is_found_or_changes_nothing() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/v1/log/segment.arrow");
    let good = std::fs::read(golden).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.arrow");
    let read = |bytes: &[u8]| -> Option<Vec<Batch>> {
        std::fs::write(&path, bytes).unwrap();
        let file = crate::storage::ArrowFile::open(&OsFileSystem, &path).ok()?;
        let blocks = 0..file.blocks().len();
        blocks.map(|i| columns::from_columns(&file.read(i).ok()?)).collect()
    };
    let whole = read(&good).unwrap();
    for (i, batch) in whole.iter().enumerate() {
        std::fs::write(&path, &good).unwrap();
        let file = crate::storage::ArrowFile::open(&OsFileSystem, &path).unwrap();
        for wanted in [Wanted::ALL, Wanted::NONE, Wanted { values: true, ..Wanted::NONE }] {
            let rows = file.read_columns(i, &|column| wanted.column(column)).unwrap();
            let found = columns::from_columns(&rows);
            let Batch { offsets, records } = batch.clone();
            assert_eq!(found, Some(Batch { offsets, records: wanted.of(records) }), "{wanted:?}");
        }
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(read(&bad).is_none_or(|found| found == whole), "bit {} of byte {at}", at % 8);
    }
}
