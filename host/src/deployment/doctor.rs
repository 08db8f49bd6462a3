//! Checking a data directory that no host runs on, and repairing it.
//!
//! A check reads everything: each value of the head, each block of each file, and whether they fit
//! together. A repair makes a new head from what is intact; the old one goes to quarantine, and so do,
//! at the next start, files that the new one does not name.
//!
//! **Invariant:** a check changes nothing. A repair deletes nothing, and loses nothing that it was not
//! told to accept: every range of offsets that is gone is named before, and readers are told of it after.
//! Nothing is repaired as long as anything cannot be read: it may be whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::backup::Meter;
use super::exam::Exam;
use super::{Error, Kind};
use crate::clock::Clock;
use crate::log::{LogKind, Loss};
use crate::storage::{self, FileSystem, HEAD_COPY, finish_repair, repair_is_pending, replace_head};

/// Something that is wrong, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// File, key, topic or deployment.
    pub place: String,
    /// What is wrong there.
    pub problem: String,
    /// What to do.
    pub remedy: String,
    /// Whether a repair takes care of it.
    pub by_repair: bool,
}

/// Records that a repair cannot bring back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRange {
    /// Whose they are.
    pub place: String,
    /// The first offset that is lost.
    pub from: u64,
    /// The first offset after them; absent where it is not known how many there were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// What a check found, and a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What could not be read, so that nobody knows whether it is wrong.
    pub unread: Vec<Finding>,
    /// What is worth knowing and not wrong.
    pub notes: Vec<String>,
    /// What a repair would lose, or has lost.
    pub losses: Vec<LostRange>,
    /// Values of the head, files and bytes that were checked.
    pub values: u64,
    /// Files that were read to the end.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether a repair was carried out.
    pub repaired: bool,
}

impl Report {
    /// How many findings there are that no repair has taken care of.
    pub fn left(&self) -> usize {
        self.findings.iter().filter(|finding| !(self.repaired && finding.by_repair)).count()
    }
}

/// What to do.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    /// Make a new head.
    pub repair: bool,
    /// Even if records are lost by it.
    pub accept_loss: bool,
    /// Where the head is copied to be opened.
    pub scratch: PathBuf,
}

/// Checks the data directory `dir`, and repairs it if it is told to.
///
/// # Errors
/// When the directory cannot be looked at, a host runs on it, or a repair is refused or fails.
pub fn examine(
    dir: &Path,
    fs: &Arc<dyn FileSystem>,
    clock: &dyn Clock,
    orders: &Orders,
    meter: &Meter,
) -> Result<Report, Error> {
    let internal = |e: storage::Error| Error::new(Kind::Internal, "doctor_failed", e.to_string());
    let _lock = lock(dir, &**fs)?;
    if repair_is_pending(dir, &**fs).map_err(internal)? {
        if !orders.repair {
            let finding = Finding {
                place: dir.join("repair").display().to_string(),
                problem: "a repair was interrupted".to_owned(),
                remedy: "finish it: anabranch doctor --repair".to_owned(),
                by_repair: true,
            };
            return Ok(Report { findings: vec![finding], ..Report::default() });
        }
        finish_repair(dir, &**fs).map_err(internal)?;
    }
    let mut exam = Exam::read(dir, fs, &orders.scratch, meter).map_err(internal)?;
    if let Some(sentence) = exam.other_version() {
        return Err(Error::new(Kind::Refused, "other_version", sentence));
    }
    exam.check(meter);
    if !exam.report.unread.is_empty() {
        return match orders.repair {
            true => Err(cannot_read(&exam.report.unread)),
            false => Ok(exam.report),
        };
    }
    let head = exam.new_head(clock.now_ms());
    exam.report.losses = head.losses.iter().map(lost_range).collect();
    for (log, topic) in &head.recovered {
        let note = format!(
            "log {log} is in no catalogue that is left: a repair shows its records as topic {topic}"
        );
        exam.report.notes.push(note);
    }
    for loss in head.losses.iter().filter(|loss| loss.kind == LogKind::Journal) {
        let note = format!(
            "{}: if the deployment has several inputs, the order in which it took them there is not known any more: a swap replays them all the same, one input after the other; where results depend on the order, they differ from those that the live generation made",
            loss.place
        );
        exam.report.notes.push(note);
    }
    let mut report = std::mem::take(&mut exam.report);
    if !orders.repair || !report.findings.iter().any(|finding| finding.by_repair) {
        return Ok(report);
    }
    if !orders.accept_loss && (!report.losses.is_empty() || !exam.whole) {
        let message = "nothing was repaired, because acknowledged records would be lost: restore a backup, or say --accept-loss as well (the losses are listed by `anabranch doctor` without --repair)";
        return Err(Error::new(Kind::Refused, "loss_not_accepted", message));
    }
    let Some(store_id) = exam.store_id else {
        let message =
            "no file says which store this is, so nothing can be repaired: restore a backup";
        return Err(Error::new(Kind::Refused, "cannot_repair", message));
    };
    let sequence = exam.sequence + 1;
    let aside = replace_head(dir, fs, store_id, sequence, &head.entries).map_err(internal)?;
    if let Some(name) = aside {
        report.notes.push(format!("the old head is in quarantine/{name}"));
    }
    report.repaired = true;
    Ok(report)
}

/// A repair takes what is not there for lost, and what cannot be read may be there.
fn cannot_read(unread: &[Finding]) -> Error {
    let named = unread.first().map(|first| format!("{}: {}", first.place, first.problem));
    let more = match unread.len() {
        0 | 1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    let message = format!(
        "nothing was repaired, because not everything can be read, and what cannot be read may be whole: {}{more}; see to disk, mounts and permissions (`anabranch doctor` without --repair lists all), then run it again",
        named.unwrap_or_default()
    );
    Error::new(Kind::Unavailable, "cannot_read", message)
}

fn lost_range(loss: &Loss) -> LostRange {
    LostRange { place: loss.place.clone(), from: loss.from.0, next: loss.next.map(|n| n.0) }
}

/// Takes the directory; `None` where the disk cannot be written, as then no host can run there.
fn lock(dir: &Path, fs: &dyn FileSystem) -> Result<Option<Box<dyn Send + Sync>>, Error> {
    let known = ["format", "head", "high-water", "segments", HEAD_COPY];
    let there = fs.list(dir).map_err(|e| {
        let message =
            format!("cannot list {}: {e}; name the data directory with --data", dir.display());
        Error::new(Kind::NotFound, "no_data_directory", message)
    })?;
    if !there.iter().any(|entry| known.contains(&entry.name.as_str())) {
        let message = format!(
            "{} is no data directory: nothing in it is this host's; name the data directory with --data",
            dir.display()
        );
        return Err(Error::new(Kind::NotFound, "no_data_directory", message));
    }
    let path = dir.join("lock");
    match fs.lock(&path) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => {
            let message = format!(
                "a host runs on {}, or a backup or another doctor is at work there: stop it or wait for it, then run this again",
                dir.display()
            );
            Err(Error::new(Kind::Conflict, "host_running", message))
        }
        Err(e) if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        Err(e) => {
            let message = format!(
                "cannot lock {}: {e}; without the lock a host could run there: run this as the user that the host runs as, on a disk that works",
                path.display()
            );
            Err(Error::new(Kind::Internal, "doctor_failed", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::io;

    use super::super::record::PluginRecord;
    use super::*;
    use crate::clock::ManualClock;
    use crate::log::{Append, Commit, Files, Log, LogConfig, LogSpec};
    use crate::state::{Changes, checkpoint};
    use crate::storage::{
        AboutHead, Entry, File, Head, OsFileSystem, Storage, write_file, write_head_copy,
    };
    use crate::task::{CheckpointManifest, checkpoint_prefix};
    use crate::threads::Mutex;
    use crate::types::{
        DeploymentId, Digest, GenerationId, GenerationNumber, LogId, Offset, PartitionId,
        RecordsBuilder,
    };

    /// An operation of reading, by path and name.
    type Reading = (PathBuf, &'static str);

    /// The system's files; notes what is read below a directory, and refuses one reading.
    #[derive(Default)]
    struct Refusing {
        below: PathBuf,
        refused: Option<Reading>,
        seen: Mutex<BTreeSet<Reading>>,
    }

    impl Refusing {
        fn pass(&self, path: &Path, what: &'static str) -> io::Result<()> {
            if !path.starts_with(&self.below) {
                return Ok(());
            }
            let reading = (path.to_owned(), what);
            // A missing right for what is opened, a bad sector for what is read.
            let errno = if what == "open" { 13 } else { 5 };
            let refused = self.refused.as_ref() == Some(&reading);
            self.seen.lock().insert(reading);
            if refused { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
        }
    }

    struct RefusingFile(Box<dyn File>, PathBuf, Arc<Refusing>);

    impl File for RefusingFile {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.2.pass(&self.1, "read")?;
            self.0.read_at(buffer, offset)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            self.0.write_at(bytes, offset)
        }
        fn write_back(&self, offset: u64, length: u64) {
            self.0.write_back(offset, length);
        }

        fn write_out(&self, offset: u64, length: u64) -> io::Result<()> {
            self.0.write_out(offset, length)
        }
        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
    }

    struct Disk(Arc<Refusing>);

    impl FileSystem for Disk {
        fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
            OsFileSystem.create(path)
        }
        fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
            self.0.pass(path, "open")?;
            let file = OsFileSystem.open(path)?;
            Ok(Box::new(RefusingFile(file, path.to_owned(), Arc::clone(&self.0))))
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            OsFileSystem.rename(from, to)
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            OsFileSystem.remove(path)
        }
        fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
            self.0.pass(dir, "list")?;
            OsFileSystem.list(dir)
        }
        fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
            OsFileSystem.create_dir_all(dir)
        }
        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            OsFileSystem.sync_dir(dir)
        }
        fn free_bytes(&self, path: &Path) -> io::Result<u64> {
            OsFileSystem.free_bytes(path)
        }
        fn open_head(&self, dir: &Path) -> Result<Box<dyn Head>, storage::Error> {
            OsFileSystem.open_head(dir)
        }
        fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
            OsFileSystem.lock(path)
        }
    }

    /// A directory with two segments, records in the head, a checkpoint, a plugin and a copy of the head.
    fn make(dir: &Path) {
        let (fs, clock): (Arc<dyn FileSystem>, _) =
            (Arc::new(OsFileSystem), ManualClock::new(1_000, 7));
        let storage = Storage::open(dir, &fs, &(Arc::clone(&clock) as _)).unwrap();
        let limits = LogConfig { head_bytes: 3_000, segment_bytes: 1 << 20, min_free_bytes: 0 };
        let log = Log::open(Arc::new(storage), Arc::clone(&fs), clock, limits).unwrap();
        let id = LogId(log.allocate_id());
        let spec = LogSpec { id, kind: LogKind::Records, partitions: 1, owner: "t".into() };
        log.commit_blocking(Commit { creates: vec![spec], ..Commit::default() }).unwrap();
        let partition = PartitionId(0);
        while Files::list(&*fs, dir).unwrap().len() < 2 {
            let mut records = RecordsBuilder::default();
            records.push(0, Some(b"k"), Some(&[7; 500]), []);
            let append = Append { log: id, partition, records: records.finish() };
            log.commit_blocking(Commit { appends: vec![append], ..Commit::default() }).unwrap();
        }
        let folders = ["checkpoints", "plugins"].map(|name| dir.join(name));
        folders.iter().for_each(|folder| fs.create_dir_all(folder).unwrap());
        let mut changes = Changes::default();
        changes.push(
            &[Some([0, 0, b'k'])].into_iter().collect(),
            [Some([7; 50])].into_iter().collect(),
        );
        let path = folders[0].join("c.arrow");
        let written = checkpoint::write(&fs, &path, None, &changes, serde_json::json!({})).unwrap();
        let manifest = CheckpointManifest {
            file: "c.arrow".to_owned(),
            changelog: Offset::ZERO,
            entries: written.entries,
            size_bytes: written.size_bytes,
            crc32c: Some(written.crc32c),
        };
        let generation = GenerationId { deployment: DeploymentId(1), number: GenerationNumber(1) };
        let checkpoint_key = [checkpoint_prefix(generation), vec![0; 4]].concat();
        let digest = Digest::of(b"a plugin");
        let path = folders[1].join(format!("{}.wasm", digest.hex()));
        write_file(&*fs, &path, b"a plugin").unwrap();
        let description = serde_json::json!({});
        let component = Some(digest);
        let plugin = PluginRecord { digest, size_bytes: 8, pushed_ms: 0, description, component };
        let json = |value| Some(serde_json::to_vec(&value).unwrap());
        let metadata = vec![
            (checkpoint_key, json(serde_json::to_value(&manifest).unwrap())),
            (PluginRecord::key(&digest), json(serde_json::to_value(&plugin).unwrap())),
        ];
        log.commit_blocking(Commit { metadata, ..Commit::default() }).unwrap();
        let taken = log.snapshot().unwrap();
        let about = AboutHead::new(taken.store_id, taken.sequence, 0, Vec::new());
        write_head_copy(&fs, &dir.join(HEAD_COPY), &about, taken.entries()).unwrap();
        log.close();
    }

    /// Everything below a directory but its lock.
    fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => files.extend(tree(&path)),
                false if path.ends_with("lock") => {}
                false => drop(files.insert(path.clone(), std::fs::read(path).unwrap())),
            }
        }
        files
    }

    #[test]
    fn what_cannot_be_read_is_said_to_be_so_and_nothing_is_repaired() {
        type Harm = fn(&Path);
        let harms: [(&str, Harm); 3] = [
            ("nothing is wrong", |_| ()),
            ("a segment is lost", |dir| {
                let name = Files::list(&OsFileSystem, dir).unwrap().into_keys().next().unwrap();
                std::fs::remove_file(dir.join("segments").join(name)).unwrap();
            }),
            ("the head is lost", |dir| std::fs::remove_dir_all(dir.join("head")).unwrap()),
        ];
        for (name, harm) in harms {
            let home = tempfile::tempdir().unwrap();
            let dir = home.path().join("data");
            make(&dir);
            harm(&dir);
            let run = |refused: Option<Reading>, repair: bool| {
                let refusing = Refusing { below: dir.clone(), refused, seen: Mutex::default() };
                let refusing = Arc::new(refusing);
                let fs: Arc<dyn FileSystem> = Arc::new(Disk(Arc::clone(&refusing)));
                let orders = Orders { repair, accept_loss: repair, scratch: home.path().into() };
                let clock = ManualClock::new(2_000, 7);
                let told = examine(&dir, &fs, &*clock, &orders, &Meter::default());
                let seen = refusing.seen.lock().clone();
                (told, seen)
            };
            let (told, seen) = run(None, false);
            let wrong = told.unwrap().findings.len();
            assert_eq!(wrong > 0, name != "nothing is wrong", "{name}");
            assert!(seen.len() > 12, "{name}: {seen:?}");
            let before = tree(&dir);
            for (n, reading) in seen.into_iter().enumerate() {
                // `repair` is not there, and a folder that is not there is not listed.
                let place = reading.0.display().to_string();
                let told = match n % 2 {
                    0 => match run(Some(reading.clone()), true).0 {
                        Err(error) => error.to_string(),
                        Ok(report) => panic!("{name}, {reading:?}: {report:?}"),
                    },
                    _ => match run(Some(reading.clone()), false).0 {
                        Err(error) => error.to_string(),
                        Ok(report) => {
                            let found = report.findings.iter().any(|f| f.place == place);
                            assert!(!found, "{name}, {reading:?}: {:?}", report.findings);
                            assert_eq!(report.losses, [], "{name}, {reading:?}");
                            report
                                .unread
                                .iter()
                                .map(|u| format!("{}: {}", u.place, u.problem))
                                .collect()
                        }
                    },
                };
                assert!(
                    told.contains(&place) && told.contains("os error"),
                    "{name}, {reading:?}: {told}"
                );
                assert_eq!(tree(&dir), before, "{name}, {reading:?}: something was changed");
            }
            let report = run(None, true).0.unwrap();
            assert_eq!(report.repaired, wrong > 0, "{name}");
            assert_eq!(run(None, false).0.unwrap().findings, [], "{name}");
        }
    }
}
