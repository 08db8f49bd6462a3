//! Whether what deployments keep fits together: generations, cursors, changelogs and checkpoints.
//!
//! **Invariant:** as in `exam`, nothing is changed, and what could not be read is not called wrong.

use std::collections::BTreeSet;
use std::path::Path;

use super::Phase;
use super::backup::Meter;
use super::exam::Exam;
use super::record::{DeploymentRecord, GenerationRecord, PluginRecord};
use crate::state::checkpoint;
use crate::storage::{Flaw, list_folder};
use crate::task::{CheckpointManifest, Cursor, about_checkpoint, checkpoint_prefix, cursor_key};
use crate::types::{GenerationId, Offset, PartitionId};

/// Whose state a checkpoint is.
struct TaskOf {
    /// Deployment and generation, in the words of an operator.
    whose: String,
    generation: GenerationId,
    partition: PartitionId,
}

impl Exam<'_> {
    /// Reads all checkpoints; `meter` is told of their bytes.
    pub(super) fn check_checkpoints(&mut self, meter: &Meter) {
        let mut named = BTreeSet::new();
        for (key, manifest) in self.of::<CheckpointManifest>(b'k') {
            let path = self.dir.join("checkpoints").join(&manifest.file);
            let task = self.task_of(&key);
            if let Some(flaw) = self.checkpoint_flaw(&path, &manifest, task.as_ref()) {
                let whose = task.map_or("the deployment".to_owned(), |task| task.whose);
                let remedy = format!(
                    "restore a backup, or start the host and replay {whose} from its inputs: anabranch swap NAME --plugin DIGEST, with the digest that `anabranch status NAME --json` says"
                );
                self.flaw(&path, flaw, &remedy);
            }
            meter.add(manifest.size_bytes);
            named.insert(manifest.file);
        }
        // What cannot be listed was noted when all was read.
        for entry in list_folder(&**self.fs, self.dir, "checkpoints").unwrap_or_default() {
            if !named.contains(&entry.name) {
                let note = format!(
                    "checkpoints/{}: nothing names it; the next start moves it to quarantine",
                    entry.name
                );
                self.report.notes.push(note);
            }
        }
    }

    /// What is wrong with a checkpoint. The changelog that it was made of is gone, but for what came
    /// after; what it has to be is what the commit that let go of that changelog says.
    fn checkpoint_flaw(
        &self,
        path: &Path,
        manifest: &CheckpointManifest,
        task: Option<&TaskOf>,
    ) -> Option<Flaw> {
        let (mut entries, mut last): (u64, Option<(usize, Vec<u8>)>) = (0, None);
        let mut sorted = true;
        let loaded = checkpoint::load(&**self.fs, manifest.source(path), |store, key, _| {
            let now = (store, key.to_vec());
            sorted &= last.as_ref().is_none_or(|last| *last < now);
            (entries, last) = (entries + 1, Some(now));
        });
        let damage = |problem: String| Some(Flaw::Damage(problem));
        let about = match loaded {
            Ok(about) => about,
            Err(e) => return Some(e.into()),
        };
        let expected =
            task.map(|task| about_checkpoint(task.generation, task.partition, manifest.changelog));
        if expected.as_ref().is_some_and(|expected| *expected != about) {
            return damage(format!(
                "it says that it is {about}, and the catalogue names it for {}",
                expected.unwrap_or_default()
            ));
        }
        if entries != manifest.entries {
            let expected = manifest.entries;
            return damage(format!("it has {entries} entries, and the catalogue says {expected}"));
        }
        if sorted { None } else { damage("its entries are not in order".to_owned()) }
    }

    /// The task that a key of its state is about, if its deployment is known.
    fn task_of(&self, key: &[u8]) -> Option<TaskOf> {
        let records = self.base.range(vec![b'd']..vec![b'd' + 1]);
        let mut records =
            records.filter_map(|(_, v)| serde_json::from_slice::<DeploymentRecord>(v).ok());
        records.find_map(|record| {
            record.generations.iter().find_map(|generation| {
                let id = record.generation_id(generation.number);
                let partition = key.strip_prefix(checkpoint_prefix(id).as_slice())?;
                Some(TaskOf {
                    whose: format!("{} (generation {})", record.name(), generation.number),
                    generation: id,
                    partition: PartitionId(u32::from_be_bytes(partition.try_into().ok()?)),
                })
            })
        })
    }

    pub(super) fn check_deployments(&mut self) {
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
}
