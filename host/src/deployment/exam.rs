//! What was read of a data directory that no host runs on, and what is wrong with it: head, files, and
//! whether they fit together. What deployments keep is looked at in `consistency`.
//!
//! **Invariant:** nothing is changed. What could not be read is never said to be wrong, nor built upon.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::TokenRecord;
use super::backup::Meter;
use super::doctor::{Finding, Report};
use super::events::rfc3339;
use super::record::PluginRecord;
use crate::log::{FileFault, Files, Image, NewHead, Repair};
use crate::storage::{
    self, AboutHead, Entries, Examined, FileSystem, Flaw, HEAD_COPY, HeadExam, list_folder,
    read_head_copy,
};

/// What to do where a repair helps.
pub(super) const REPAIR: &str = "restore a backup, or stop the host and run `anabranch doctor --repair`, which says what is lost";

/// The same where little is left to be saved.
const SALVAGE: &str = "restore a backup; a repair saves the records of sealed segments alone";

/// What was read, and what is wrong with it.
pub(super) struct Exam<'a> {
    pub(super) dir: &'a Path,
    pub(super) fs: &'a Arc<dyn FileSystem>,
    pub(super) report: Report,
    examined: Examined,
    /// What is intact of the head.
    head: Entries,
    /// Keys whose values are not.
    damaged: Vec<Vec<u8>>,
    copy: Option<(AboutHead, Entries)>,
    /// What is checked and built upon: the head, or its copy.
    pub(super) base: Entries,
    /// Whether that is the head with everything that was acknowledged, but for single appends.
    pub(super) whole: bool,
    /// At least as high as every commit that was acknowledged.
    pub(super) sequence: u64,
    pub(super) store_id: Option<u64>,
    pub(super) image: Image,
    files: Files,
}

impl<'a> Exam<'a> {
    /// Reads everything in `dir`; the head by way of a copy in `scratch`.
    ///
    /// # Errors
    /// When the head cannot be copied.
    pub(super) fn read(
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
                    let remedy = REPAIR.to_owned();
                    report.findings.push(Finding { place, problem, remedy, by_repair: true });
                    damaged.push(key.to_vec());
                }
            }
        });
        // One of another store was put there by hand.
        let own = |about: &AboutHead| examined.format.is_none_or(|id| id == about.store_id());
        let copy_path = dir.join(HEAD_COPY);
        let copy = match read_head_copy(&**fs, &copy_path) {
            Ok((about, entries)) => own(&about).then_some((about, entries)),
            Err(e) => {
                if let Flaw::Unread(problem) = e.into() {
                    report.unread.push(unread(&copy_path, problem));
                }
                None
            }
        };
        let files = read_files(dir, fs, &mut report, meter);
        let acknowledged = examined.high_water.unwrap_or(0);
        let tip = examined.tip.unwrap_or(0);
        let copied = copy.as_ref().map_or(0, |(about, _)| about.sequence);
        let of_copy = copy.as_ref().map(|(about, _)| about.store_id());
        let of_files = files.store().and_then(|id| u64::from_str_radix(id, 16).ok());
        let ids = [examined.format, examined.store_id, of_copy, of_files];
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

    /// What is to be said if the directory is of another version.
    pub(super) fn other_version(&mut self) -> Option<String> {
        self.examined.other_version.take()
    }

    /// Finds what is wrong. Where the head or its copy cannot be read nothing else can be judged.
    pub(super) fn check(&mut self, meter: &Meter) {
        for (place, flaw) in std::mem::take(&mut self.examined.faults) {
            self.flaw(&place, flaw, REPAIR);
        }
        if !self.report.unread.is_empty() {
            return;
        }
        self.check_head();
        self.check_segments();
        self.check_checkpoints(meter);
        self.check_plugins();
        // Only whether each can be read: nothing else refers to them.
        self.of::<TokenRecord>(b'a');
        self.check_deployments();
        self.look_at_quarantine();
    }

    fn look_at_quarantine(&mut self) {
        match list_folder(&**self.fs, self.dir, "quarantine") {
            Ok(entries) if entries.is_empty() => {}
            Ok(entries) => {
                let note = format!(
                    "{} files or heads are in quarantine/; a running host never looks at them",
                    entries.len()
                );
                self.report.notes.push(note);
            }
            Err(e) => self.report.unread.push(unread(&self.dir.join("quarantine"), e.to_string())),
        }
    }

    /// Notes what is wrong with a file, or that it could not be read.
    pub(super) fn flaw(&mut self, path: &Path, flaw: Flaw, remedy: &str) {
        match flaw {
            Flaw::Damage(problem) => self.find(path.display().to_string(), problem, remedy),
            Flaw::Unread(problem) => self.report.unread.push(unread(path, problem)),
        }
    }

    pub(super) fn find(
        &mut self,
        place: impl Into<String>,
        problem: impl Into<String>,
        remedy: &str,
    ) {
        let (place, problem) = (place.into(), problem.into());
        let by_repair = [REPAIR, SALVAGE].contains(&remedy);
        let remedy = remedy.to_owned();
        self.report.findings.push(Finding { place, problem, remedy, by_repair });
    }

    fn check_head(&mut self) {
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
            .filter(|key| !key.first().is_some_and(|k| b"tlpsxhndckwgva".contains(k)))
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
                self.find(place, "it is not there or damaged, and the head is, too: names of topics and deployments are lost", SALVAGE);
            }
        }
    }

    fn check_segments(&mut self) {
        let faults = self.image.check_files(&self.files, &self.store());
        let mut unnamed = Vec::new();
        for FileFault { path, flaw, listed } in faults {
            match flaw {
                Flaw::Damage(problem) if !listed => unnamed.push((path, problem)),
                // Also one that nothing names: it may be what a repair would take records from.
                flaw => self.flaw(&self.dir.join(path), flaw, REPAIR),
            }
        }
        if !self.whole && !unnamed.is_empty() {
            let note = format!(
                "{} segments are not in the copy of the head; a repair takes the records of producers from them",
                unnamed.len()
            );
            self.report.notes.push(note);
        } else {
            let note = |(path, problem)| {
                format!("{path}: {problem}; the next start moves it to quarantine")
            };
            self.report.notes.extend(unnamed.into_iter().map(note));
        }
    }

    fn check_plugins(&mut self) {
        let remedy = "start the host, push the plugin again and resume its deployments, or restore the file from a backup";
        for (_, plugin) in self.of::<PluginRecord>(b'w') {
            let path = self.dir.join("plugins").join(format!("{}.wasm", plugin.digest.hex()));
            match storage::read_file(&**self.fs, &path) {
                Ok(bytes) => match plugin.fault(&bytes) {
                    None => self.report.files += 1,
                    Some(fault) => self.find(path.display().to_string(), fault, remedy),
                },
                Err(e) => self.flaw(&path, e.into(), remedy),
            }
        }
    }

    pub(super) fn store(&self) -> String {
        format!("{:016x}", self.store_id.unwrap_or_default())
    }

    /// The catalogue's records of a kind; those that cannot be read become findings.
    pub(super) fn of<T: serde::de::DeserializeOwned>(&mut self, kind: u8) -> Vec<(Vec<u8>, T)> {
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

    /// The head that a repair would make of what is intact.
    pub(super) fn new_head(&self, now_ms: i64) -> NewHead {
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

/// Reads all segments.
fn read_files(dir: &Path, fs: &Arc<dyn FileSystem>, report: &mut Report, meter: &Meter) -> Files {
    let listed = Files::list(&**fs, dir).unwrap_or_else(|(place, e)| {
        report.unread.push(unread(&place, e.to_string()));
        Default::default()
    });
    let checkpoints = list_folder(&**fs, dir, "checkpoints").unwrap_or_else(|e| {
        report.unread.push(unread(&dir.join("checkpoints"), e.to_string()));
        Vec::new()
    });
    let total: u64 = listed.values().chain(checkpoints.iter().map(|e| &e.size_bytes)).sum();
    meter.total_bytes.store(total, Ordering::Relaxed);
    report.files = (listed.len() + checkpoints.len()) as u64;
    report.bytes = total;
    Files::examine(&**fs, dir, listed.into_keys(), &mut |bytes| meter.add(bytes))
}

fn unread(path: &Path, problem: String) -> Finding {
    let remedy = "nothing is known to be lost: see to disk, mounts and permissions (the system's log says more), then run this again";
    let (place, remedy) = (path.display().to_string(), remedy.to_owned());
    Finding { place, problem, remedy, by_repair: false }
}
