//! Checking a data directory that no host runs on, and repairing it.
//!
//! A check reads everything: each value of the head, each block of each file, and whether they fit
//! together. A repair makes a new head from what is intact; the old one goes to quarantine, and so do,
//! at the next start, files that the new one does not name.
//!
//! **Invariant:** a check changes nothing. A repair deletes nothing, and loses nothing that it was not
//! told to accept: every range of offsets that is gone is named before, and readers are told of it after.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::backup::Meter;
use super::events::rfc3339;
use super::head_copies::HEAD_COPY;
use super::record::{DeploymentRecord, GenerationRecord, PluginRecord};
use super::{Error, Kind, Phase};
use crate::clock::Clock;
use crate::log::{FileFault, Files, Image, Loss, NewHead, Repair};
use crate::state::checkpoint;
use crate::storage::{
    self, AboutHead, Entries, Examined, FileSystem, HeadExam, finish_repair, read_head_copy,
    repair_is_pending, replace_head,
};
use crate::task::{CheckpointManifest, Cursor, checkpoint_prefix, cursor_key};
use crate::types::{Offset, PartitionId};

/// Something that is wrong, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// File, key, topic or deployment.
    pub place: String,
    /// What is wrong there.
    pub problem: String,
    /// What to do.
    pub remedy: String,
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

const REPAIR: &str = "restore a backup, or stop the host and run `anabranch doctor --repair`, which says what is lost";

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
    if repair_is_pending(dir, &**fs) {
        if !orders.repair {
            let finding = Finding {
                place: dir.join("repair").display().to_string(),
                problem: "a repair was interrupted".to_owned(),
                remedy: "finish it: anabranch doctor --repair".to_owned(),
            };
            return Ok(Report { findings: vec![finding], ..Report::default() });
        }
        finish_repair(dir, &**fs).map_err(internal)?;
    }
    let mut exam = Exam::read(dir, fs, &orders.scratch, meter).map_err(internal)?;
    if let Some(sentence) = exam.examined.other_version.take() {
        return Err(Error::new(Kind::Refused, "other_version", sentence));
    }
    exam.check_head();
    exam.check_files(meter);
    exam.check_deployments();
    let now_ms = clock.now_ms();
    let head = exam.new_head(now_ms);
    exam.report.losses = head.losses.iter().map(lost_range).collect();
    for (log, topic) in &head.recovered {
        let note = format!(
            "log {log} is in no catalogue that is left: a repair shows its records as topic {topic}"
        );
        exam.report.notes.push(note);
    }
    let mut report = std::mem::take(&mut exam.report);
    if !orders.repair || report.findings.is_empty() {
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
    match fs.lock(&dir.join("lock")) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => {
            let message = format!("a host runs on {}: stop it first", dir.display());
            Err(Error::new(Kind::Conflict, "host_running", message))
        }
        Err(e) if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        Err(e) => {
            let message = format!("cannot lock {}: {e}", dir.join("lock").display());
            Err(Error::new(Kind::Internal, "doctor_failed", message))
        }
    }
}

/// What was read, and what is wrong with it.
struct Exam<'a> {
    dir: &'a Path,
    fs: &'a Arc<dyn FileSystem>,
    report: Report,
    examined: Examined,
    /// What is intact of the head.
    head: Entries,
    /// Keys whose values are not.
    damaged: Vec<Vec<u8>>,
    copy: Option<(AboutHead, Entries)>,
    /// What is checked and built upon: the head, or its copy.
    base: Entries,
    /// Whether that is the head with everything that was acknowledged, but for single appends.
    whole: bool,
    /// At least as high as every commit that was acknowledged.
    sequence: u64,
    store_id: Option<u64>,
    image: Image,
    files: Files,
}

impl<'a> Exam<'a> {
    fn read(
        dir: &'a Path,
        fs: &'a Arc<dyn FileSystem>,
        scratch: &Path,
        meter: &Meter,
    ) -> Result<Self, storage::Error> {
        let head_exam = HeadExam::copy(dir, scratch)?;
        let (mut report, mut head) = (Report::default(), Entries::new());
        let (mut damaged, mut highest) = (Vec::new(), 0);
        let examined = head_exam.run(&**fs, |key, value| {
            report.values += 1;
            match value {
                Ok((sequence, value)) => {
                    highest = highest.max(sequence);
                    head.insert(key.to_vec(), value);
                }
                Err(problem) => {
                    let place = format!("key \"{}\" of the head", key.escape_ascii());
                    report.findings.push(Finding { place, problem, remedy: REPAIR.to_owned() });
                    damaged.push(key.to_vec());
                }
            }
        });
        // One of another store was put there by hand.
        let own = |about: &AboutHead| examined.format.is_none_or(|id| id == about.store_id());
        let copy = read_head_copy(&**fs, &dir.join(HEAD_COPY)).ok().filter(|(about, _)| own(about));
        let acknowledged = examined.high_water.unwrap_or(0);
        let tip = examined.tip.unwrap_or(0);
        let copied = copy.as_ref().map_or(0, |(about, _)| about.sequence);
        let ids =
            [examined.format, examined.store_id, copy.as_ref().map(|(about, _)| about.store_id())];
        let store_id = ids.into_iter().flatten().next();
        // One append more or less leaves everything else as it was; any other value that is missing
        // leaves what refers to it in the air.
        let sound = examined.complete && damaged.iter().all(|key| key.first() == Some(&b'h'));
        let whole = sound && tip >= acknowledged && tip > 0;
        let use_head = whole || (sound && tip > 0 && tip >= copied);
        let base = match (use_head, &copy) {
            (false, Some((_, entries))) => entries.clone(),
            (false, None) if !sound => Entries::new(),
            _ => head.clone(),
        };
        let listed = Files::list(&**fs, dir).unwrap_or_default();
        let checkpoints = fs.list(&dir.join("checkpoints")).unwrap_or_default();
        let total: u64 = listed.values().chain(checkpoints.iter().map(|e| &e.size_bytes)).sum();
        meter.total_bytes.store(total, Ordering::Relaxed);
        report.files = listed.len() as u64;
        report.bytes = total;
        let files = Files::examine(&**fs, dir, listed.into_keys(), &mut |bytes| meter.add(bytes));
        let image = Image::read(&base);
        let sequence = tip.max(acknowledged).max(copied).max(highest);
        Ok(Self {
            dir,
            fs,
            report,
            examined,
            head,
            damaged,
            copy,
            base,
            whole,
            sequence,
            store_id,
            image,
            files,
        })
    }

    fn find(&mut self, place: impl Into<String>, problem: impl Into<String>, remedy: &str) {
        let (place, problem) = (place.into(), problem.into());
        self.report.findings.push(Finding { place, problem, remedy: remedy.to_owned() });
    }

    fn check_head(&mut self) {
        for (place, problem) in std::mem::take(&mut self.examined.faults) {
            self.find(place.display().to_string(), problem, REPAIR);
        }
        let Examined { format, store_id, tip, high_water, .. } = self.examined;
        let (tip, mark) = (tip.unwrap_or(0), high_water.unwrap_or(0));
        if self.examined.complete && tip < mark.max(1) {
            let problem = format!("it ends at commit {tip}, but {mark} was acknowledged");
            self.find("the head", problem, REPAIR);
        }
        if let (Some(a), Some(b)) = (format, store_id)
            && a != b
        {
            let problem = format!("file format names store {a:016x}, the head store {b:016x}");
            self.find(
                self.dir.display().to_string(),
                problem,
                "put head and format of one store together, or restore a backup",
            );
        }
        for (key, problem) in std::mem::take(&mut self.image.faults) {
            let place = format!("key \"{}\" of the head", key.escape_ascii());
            self.find(place, problem, REPAIR);
        }
        for key in self
            .base
            .keys()
            .filter(|key| !key.first().is_some_and(|k| b"tlpsxhndckwgv".contains(k)))
        {
            let note = format!(
                "key \"{}\" of the head is none that this version writes",
                key.escape_ascii()
            );
            self.report.notes.push(note);
        }
        for (place, problem) in self.image.check() {
            self.find(place, problem, "report this: it is a fault of the host; restore a backup");
        }
        match (&self.copy, self.whole) {
            (Some((about, _)), _) => {
                let taken = rfc3339(about.written_ms);
                let note = format!(
                    "{HEAD_COPY} is of commit {}, {taken}; the last commit that is known to be acknowledged is {mark}",
                    about.sequence
                );
                self.report.notes.push(note);
            }
            (None, true) => {
                let note = format!(
                    "{HEAD_COPY} is not there or damaged: a host writes it a second after its start"
                );
                self.report.notes.push(note);
            }
            (None, false) => {
                let place = self.dir.join(HEAD_COPY).display().to_string();
                self.find(place, "it is not there or damaged, and the head is, too: names of topics and deployments are lost", "restore a backup; a repair saves the records of sealed segments alone");
            }
        }
    }

    fn check_files(&mut self, meter: &Meter) {
        let store = self.store();
        let (listed, unlisted): (Vec<_>, Vec<_>) =
            self.image.check_files(&self.files, &store).into_iter().partition(|fault| fault.listed);
        for FileFault { path, problem, .. } in listed {
            self.find(self.dir.join(path).display().to_string(), problem, REPAIR);
        }
        if !self.whole && !unlisted.is_empty() {
            let note = format!(
                "{} segments are not in the copy of the head; a repair takes the records of producers from them",
                unlisted.len()
            );
            self.report.notes.push(note);
        } else {
            let note = |fault: FileFault| {
                format!("{}: {}; the next start moves it to quarantine", fault.path, fault.problem)
            };
            self.report.notes.extend(unlisted.into_iter().map(note));
        }
        let mut named = BTreeSet::new();
        let manifests = self.of::<CheckpointManifest>(b'k');
        for (key, manifest) in manifests {
            let path = self.dir.join("checkpoints").join(&manifest.file);
            let (mut entries, mut last): (u64, Option<(usize, Vec<u8>)>) = (0, None);
            let mut sorted = true;
            let loaded = checkpoint::load(&**self.fs, &path, |store, key, _| {
                let now = (store, key.to_vec());
                sorted &= last.as_ref().is_none_or(|last| *last < now);
                (entries, last) = (entries + 1, Some(now));
            });
            meter.add(manifest.size_bytes);
            let problem = match loaded {
                Err(e) => Some(e.to_string()),
                Ok(()) if entries != manifest.entries => Some(format!(
                    "it has {entries} entries, and the catalogue says {}",
                    manifest.entries
                )),
                Ok(()) if !sorted => Some("its entries are not in order".to_owned()),
                Ok(()) => None,
            };
            if let Some(problem) = problem {
                let whose = self.whose(&key);
                let remedy = format!(
                    "restore a backup, or start the host and replay {whose} from its inputs: anabranch swap NAME --plugin DIGEST, with the digest that `anabranch status NAME --json` says"
                );
                self.find(path.display().to_string(), problem, &remedy);
            }
            named.insert(manifest.file);
        }
        for entry in self.fs.list(&self.dir.join("checkpoints")).unwrap_or_default() {
            self.report.files += 1;
            if !named.contains(&entry.name) {
                let note = format!(
                    "checkpoints/{}: nothing names it; the next start moves it to quarantine",
                    entry.name
                );
                self.report.notes.push(note);
            }
        }
        for (_, plugin) in self.of::<PluginRecord>(b'w') {
            let path = self.dir.join("plugins").join(format!("{}.wasm", plugin.digest.hex()));
            match storage::read_file(&**self.fs, &path) {
                Ok(bytes) if bytes.starts_with(b"\0asm") => self.report.files += 1,
                Ok(_) => self.find(
                    path.display().to_string(),
                    "it is no WebAssembly",
                    "restore it from a backup, or remove it and push the plugin again",
                ),
                Err(e) => {
                    self.find(path.display().to_string(), e.to_string(), "restore it from a backup")
                }
            }
        }
        let quarantined = self.fs.list(&self.dir.join("quarantine")).unwrap_or_default();
        if !quarantined.is_empty() {
            let note = format!(
                "{} files or heads are in quarantine/; a running host never looks at them",
                quarantined.len()
            );
            self.report.notes.push(note);
        }
    }

    fn store(&self) -> String {
        format!("{:016x}", self.store_id.unwrap_or_default())
    }

    /// The catalogue's records of a kind; those that cannot be read become findings.
    fn of<T: serde::de::DeserializeOwned>(&mut self, kind: u8) -> Vec<(Vec<u8>, T)> {
        let (mut parsed, mut faults) = (Vec::new(), Vec::new());
        for (key, value) in self.base.range(vec![kind]..vec![kind + 1]) {
            match serde_json::from_slice(value) {
                Ok(value) => parsed.push((key.clone(), value)),
                Err(e) => faults.push((key.escape_ascii().to_string(), e.to_string())),
            }
        }
        for (key, problem) in faults {
            self.find(format!("key \"{key}\" of the head"), problem, REPAIR);
        }
        parsed
    }

    /// The deployment and generation that a key of a task is about.
    fn whose(&self, key: &[u8]) -> String {
        let records = self.base.range(vec![b'd']..vec![b'd' + 1]);
        let records =
            records.filter_map(|(_, v)| serde_json::from_slice::<DeploymentRecord>(v).ok());
        for record in records {
            for generation in &record.generations {
                if key.starts_with(&checkpoint_prefix(record.generation_id(generation.number))) {
                    return format!("{} (generation {})", record.name(), generation.number);
                }
            }
        }
        "the deployment".to_owned()
    }

    fn check_deployments(&mut self) {
        let plugins: BTreeSet<_> =
            self.of::<PluginRecord>(b'w').into_iter().map(|(_, p)| p.digest).collect();
        let mut tasks: BTreeSet<Vec<u8>> = BTreeSet::new();
        for (_, record) in self.of::<DeploymentRecord>(b'd') {
            let place = format!("deployment {}", record.name());
            let live =
                record.generations.iter().filter(|g| g.phase == Phase::Live).map(|g| g.number);
            if live.collect::<Vec<_>>() != [record.live] {
                let problem = format!("generation {} should be the only live one", record.live);
                self.find(
                    place.clone(),
                    problem,
                    "report this: it is a fault of the host; restore a backup",
                );
            }
            for generation in record.generations.iter().filter(|g| g.phase.runs()) {
                let place = format!("{place} generation {}", generation.number);
                if !plugins.contains(&generation.plugin) {
                    let problem =
                        format!("its plugin {} is not in the catalogue", generation.plugin);
                    self.find(place.clone(), problem, "push the plugin again");
                }
                for problem in self.task_faults(&record, generation, &mut tasks) {
                    self.find(place.clone(), problem, "report this: it is a fault of the host; restore a backup, or delete the deployment and deploy it again");
                }
            }
        }
        let strays = self
            .base
            .range(vec![b'c']..vec![b'd'])
            .filter(|(key, _)| !tasks.contains(*key))
            .count();
        if strays > 0 {
            self.report.notes.push(format!("{strays} cursors belong to no generation that runs"));
        }
    }

    /// What is wrong with the cursors and logs of a generation that runs.
    fn task_faults(
        &self,
        record: &DeploymentRecord,
        generation: &GenerationRecord,
        tasks: &mut BTreeSet<Vec<u8>>,
    ) -> Vec<String> {
        let mut faults = Vec::new();
        let Some(logs) = &generation.logs else { return vec!["it has no logs".to_owned()] };
        let own = [(logs.changelog, record.tasks), (logs.journal, record.tasks)];
        let outputs = logs.mounted().map(|output| (output.log, output.partitions));
        for (log, partitions) in own.into_iter().chain(outputs) {
            if self.image.partitions_of(log) != Some(partitions) {
                faults.push(format!("its log {log} with {partitions} partitions is not there"));
            }
        }
        for p in (0..record.tasks).map(PartitionId) {
            let id = record.generation_id(generation.number);
            let key = cursor_key(id, p);
            let Some(bytes) = self.base.get(&key) else { continue };
            tasks.insert(key);
            let cursor = match Cursor::decode(bytes) {
                Ok(cursor) => cursor,
                Err(e) => {
                    faults.push(format!("the cursor of partition {p} cannot be read: {e}"));
                    continue;
                }
            };
            for (name, at) in record.spec.inputs.iter().zip(&cursor.inputs) {
                let Some(topic) = self.image.topic(name) else {
                    faults.push(format!("its input {name} is not there"));
                    continue;
                };
                let mount = topic.open_mount();
                let base = mount.base.get(p.0 as usize).copied().unwrap_or_default();
                let end = self.image.bounds(mount.log, p).map(|(_, end)| base.0 + end.0);
                if end.is_some_and(|end| at.0 > end) {
                    faults.push(format!(
                        "partition {p} stands at offset {at} of {name}, which ends at {}",
                        end.unwrap_or_default()
                    ));
                }
            }
            let mut key = checkpoint_prefix(id);
            key.extend_from_slice(&p.0.to_be_bytes());
            let manifest = self
                .base
                .get(&key)
                .and_then(|v| serde_json::from_slice::<CheckpointManifest>(v).ok());
            let first = manifest.map_or(Offset::ZERO, |manifest| manifest.changelog);
            if let Some((start, end)) = self.image.bounds(logs.changelog, p)
                && (first < start || first > end)
            {
                faults.push(format!("the changelog of partition {p} has offsets {start} to {end}, and its state needs it from {first} on"));
            }
        }
        faults
    }

    fn new_head(&self, now_ms: i64) -> NewHead {
        let why = format!(
            "it was not intact when the data directory was repaired at {}",
            rfc3339(now_ms)
        );
        let repair = Repair {
            base: &self.base,
            whole: self.whole,
            damaged: &self.damaged,
            salvage: &self.head,
            files: &self.files,
            store: &self.store(),
            now_ms,
            why: &why,
        };
        repair.new_head()
    }
}
