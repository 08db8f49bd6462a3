//! Backup, restore and repair, each recorded as a host's lifetime is and lost at moments by lot.
//!
//! In the middle of one, a loss of power may leave what the command found or what it was to make: a backup
//! the one before it or the new one, a restore no target or a whole one, a repair what it can be run again
//! on; always a store in which nothing is wrong. What a command said it made is there after its end. Then
//! each kind of sync is left out, and must be missed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use serde_json::Value;

use super::lifetime::Lifetime;
use super::syncs::{Kind, TRIES};
use super::{events, is_complete, replay};
use crate::disk::{self, DATA, Image, Policy, Position};
use crate::steps::anabranch;

/// Where the store is, below the root of a recording.
const STORE: &str = "data/data";
/// Where its backup is.
const BACKUP: &str = "data/backups/nightly";
/// Where that is restored to.
const RESTORED: &str = "data/restored";

/// A command of which a recording is made.
struct Act {
    name: &'static str,
    run: fn(&Path) -> Command,
    /// What is wrong with what lies in a folder, if something is.
    check: fn(&Path, &Promise<'_>) -> Result<Option<String>>,
    /// Syncs that its promise rests on.
    kinds: &'static [Kind],
}

/// What a command owes at a moment.
struct Promise<'a> {
    /// Whether it had come to its end.
    is_done: bool,
    /// What it printed in the end.
    said: &'a Value,
    /// What the backup before it printed, if there was one.
    before: Option<&'a Value>,
    /// What the doctor says of what it made.
    report: &'a Value,
}

const BACK_UP: Act = Act {
    name: "a backup",
    run: back_up,
    check: check_backup,
    kinds: &[
        ("the files of a backup", |s| is_in(s.path, BACKUP) && !s.is_dir && !is_head(s.path)),
        ("the folders of a backup", |s| is_in(s.path, BACKUP) && s.is_dir),
        ("the head of a backup", |s| is_head(s.path)),
        ("the folders that a backup is in", |s| ["data/backups", "data"].contains(&s.path)),
    ],
};

const BACK_UP_ANEW: Act = Act { name: "a backup onto another", kinds: &[], ..BACK_UP };

const RESTORE: Act = Act {
    name: "a restore",
    run: restore,
    check: check_restored,
    kinds: &[
        ("restored files", |s| is_unfinished(s.path) && !s.is_dir && !s.path.contains("/repair")),
        ("restored folders", |s| is_unfinished(s.path) && s.is_dir),
        ("the restored head", |s| is_unfinished(s.path) && s.path.contains("/repair")),
        ("the folder that is restored to", |s| s.path == DATA),
    ],
};

const REPAIR: Act = Act {
    name: "a repair",
    run: repair,
    check: check_repaired,
    kinds: &[
        ("the repaired head", |s| s.path.contains("/repair") && !s.is_dir),
        ("the folders of the repaired head", |s| s.path.contains("/repair") && s.is_dir),
        ("the folder that is repaired", |s| s.path == STORE),
    ],
};

fn is_in(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_head(path: &str) -> bool {
    path.starts_with("data/backups/nightly/backup.arrow")
}

fn is_unfinished(path: &str) -> bool {
    path.starts_with("data/restored.")
}

fn back_up(dir: &Path) -> Command {
    on(STORE, dir, &["backup", &text(&dir.join(BACKUP))])
}

fn restore(dir: &Path) -> Command {
    on(RESTORED, dir, &["restore", &text(&dir.join(BACKUP))])
}

fn repair(dir: &Path) -> Command {
    on(STORE, dir, &["doctor", "--repair", "--accept-loss"])
}

fn examine(folder: &str, dir: &Path) -> Command {
    on(folder, dir, &["doctor"])
}

/// A command on the data directory `folder` below `dir`.
fn on(folder: &str, dir: &Path, args: &[&str]) -> Command {
    let mut command = anabranch();
    command.args(args).args(["--json", "--data"]).arg(dir.join(folder));
    command
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// How a command ended: with which code, what it printed and what it said.
struct Ended {
    code: Option<i32>,
    printed: Value,
    said: String,
}

fn end_of(mut command: Command) -> Result<Ended> {
    let output = command.output().context("cannot run anabranch")?;
    Ok(Ended {
        code: output.status.code(),
        printed: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        said: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// What a command prints that must not fail.
fn printed(command: Command) -> Result<Value> {
    let ended = end_of(command)?;
    ensure!(ended.code == Some(0), "{:?}: {}{}", ended.code, ended.said, ended.printed);
    Ok(ended.printed)
}

/// Why a command failed, if it did.
fn failure(what: &str, command: Command) -> Result<Option<String>> {
    let Ended { code, printed, said } = end_of(command)?;
    Ok((code != Some(0)).then(|| format!("{what} ends with {code:?}: {said}{printed}")))
}

/// What a backup holds.
fn holds(said: &Value) -> (&Value, &Value) {
    (&said["sequence"], &said["topics"])
}

/// How much the doctor looked at.
fn looked_at(report: &Value) -> [&Value; 3] {
    ["bytes", "files", "values"].map(|name| &report[name])
}

fn check_backup(dir: &Path, promise: &Promise<'_>) -> Result<Option<String>> {
    if let Some(wrong) = failure("a look at the store", examine(STORE, dir))? {
        return Ok(Some(wrong));
    }
    let restored = end_of(restore(dir))?;
    let found = holds(&restored.printed);
    let is_new = restored.code == Some(0) && found == holds(promise.said);
    let is_legal = match promise.before {
        _ if promise.is_done => is_new,
        Some(before) => is_new || restored.code == Some(0) && found == holds(before),
        None => is_new || restored.said.contains("holds no finished backup"),
    };
    if !is_legal {
        return Ok(Some(format!("what is restored is {found:?}: {}", restored.said)));
    }
    failure("a backup after it", back_up(dir))
}

fn check_restored(dir: &Path, promise: &Promise<'_>) -> Result<Option<String>> {
    if !dir.join(RESTORED).exists() {
        if promise.is_done {
            return Ok(Some("what was restored is not there".to_owned()));
        }
        if let Some(wrong) = failure("a restore after it", restore(dir))? {
            return Ok(Some(wrong));
        }
    }
    is_as_made(RESTORED, dir, promise)
}

fn check_repaired(dir: &Path, promise: &Promise<'_>) -> Result<Option<String>> {
    if !promise.is_done
        && let Some(wrong) = failure("a repair after it", repair(dir))?
    {
        return Ok(Some(wrong));
    }
    is_as_made(STORE, dir, promise)
}

/// Whether nothing is wrong with a data directory, and it holds as much as what was made.
fn is_as_made(folder: &str, dir: &Path, promise: &Promise<'_>) -> Result<Option<String>> {
    let Ended { code, printed, said } = end_of(examine(folder, dir))?;
    let is_whole = code == Some(0) && looked_at(&printed) == looked_at(promise.report);
    Ok((!is_whole).then(|| format!("{said}{printed} instead of {}", promise.report)))
}

/// A command that was recorded.
struct Recorded<'a> {
    act: Act,
    dir: PathBuf,
    base: Image,
    said: Value,
    before: Option<&'a Value>,
    report: Value,
}

impl Act {
    /// Runs and records it in `dir`, in place of what was recorded there before.
    fn record<'a>(
        self,
        library: &Path,
        dir: &Path,
        before: Option<&'a Value>,
    ) -> Result<Recorded<'a>> {
        let base = Image::of(dir, DATA)?;
        let recording = dir.join("recording");
        if recording.exists() {
            std::fs::remove_file(&recording)?;
        }
        let mut command = (self.run)(dir);
        command.envs(disk::below(library, dir)).env("DISK_LOG", &recording);
        let said = printed(command).with_context(|| self.name)?;
        is_complete(&recording, Some(&base), dir, &dir.join("scratch"))?;
        let made = if dir.join(RESTORED).exists() { RESTORED } else { STORE };
        let report = printed(examine(made, dir))?;
        Ok(Recorded { act: self, dir: dir.to_owned(), base, said, before, report })
    }
}

impl Recorded<'_> {
    fn replay(
        &self,
        ignored: impl Fn(disk::Sync<'_>) -> bool + 'static,
        moments: &[Position],
        see: impl FnMut(&disk::Disk, Position) -> Result<bool>,
    ) -> Result<()> {
        let (recording, scratch) = (self.dir.join("recording"), self.dir.join("scratch"));
        replay(Some(&self.base), &recording, &scratch, ignored, moments, see)
    }

    /// What is wrong with an image, if something is.
    fn check(&self, image: &Image, is_done: bool) -> Result<Option<String>> {
        let home = self.dir.join("image");
        if home.exists() {
            std::fs::remove_dir_all(&home)?;
        }
        image.write(&home)?;
        let (said, report) = (&self.said, &self.report);
        (self.act.check)(&home, &Promise { is_done, said, before: self.before, report })
    }

    /// Opens `count` images of moments by lot, and as many of the end.
    fn open(&self, count: usize, random: &mut Rng) -> Result<String> {
        let (all, rare) = events(&self.dir.join("recording"))?;
        let end = *all.last().context("nothing was recorded")?;
        let mut moments: Vec<_> =
            (0..count).filter_map(|n| random.choice([&all, &rare][n % 2]).copied()).collect();
        moments.sort_unstable();
        moments.extend(vec![end; count]);
        self.replay(|_| false, &moments, |disk, at| {
            let policy = Policy::draw(random);
            if let Some(what) = self.check(&disk.image(policy, random), at == end)? {
                bail!(
                    "{}: an image ({}) of what was written up to byte {at} of {end}: {what}; it is kept \
                     in {}",
                    self.act.name, policy.name(), self.dir.display()
                );
            }
            Ok(true)
        })?;
        Ok(format!("{} images of {}", moments.len(), self.act.name))
    }

    /// Leaves out each kind of sync.
    fn prove(&self, random: &mut Rng) -> Result<()> {
        let (all, _) = events(&self.dir.join("recording"))?;
        let end = *all.last().context("nothing was recorded")?;
        for (name, is_ignored) in self.act.kinds {
            let mut caught = None;
            self.replay(is_ignored, &[end; TRIES], |disk, _| {
                let policy = if random.bool() { Policy::Late } else { Policy::Nothing };
                caught = self.check(&disk.image(policy, random), true)?;
                Ok(caught.is_none())
            })?;
            let caught = caught.with_context(|| format!("nobody misses syncs of {name}"))?;
            let line = caught.lines().next().unwrap_or_default();
            println!("without syncs of {name}: caught: {line}");
        }
        Ok(())
    }
}

/// Makes a backup of what `lifetime` had in its middle and one onto it of what it had in the end, restores
/// it, and repairs the store whose head was lost; each is recorded in `home` and lost at moments by lot.
///
/// # Errors
/// When something cannot be run, an image is found wanting, or a missing sync goes unnoticed.
pub fn prove(
    library: &Path,
    home: &Path,
    lifetime: &Lifetime,
    images: usize,
    random: &mut Rng,
) -> Result<()> {
    let dir = home.join("commands");
    let mut opened = Vec::new();
    let mut see = |recorded: &Recorded<'_>| {
        opened.push(recorded.open(images, random)?);
        recorded.prove(random)
    };
    lifetime.middle()?.write(&dir.join(DATA))?;
    let first = BACK_UP.record(library, &dir, None)?;
    see(&first)?;

    std::fs::remove_dir_all(dir.join(STORE))?;
    Image::of(home, DATA)?.write(&dir.join(DATA))?;
    let second = BACK_UP_ANEW.record(library, &dir, Some(&first.said))?;
    ensure!(holds(&first.said) != holds(&second.said), "both backups hold the same");
    see(&second)?;

    see(&RESTORE.record(library, &dir, None)?)?;

    std::fs::remove_dir_all(dir.join(RESTORED))?;
    std::fs::remove_file(dir.join(STORE).join("head/db"))?;
    see(&REPAIR.record(library, &dir, None)?)?;
    println!("{}: nothing that was made is missing", opened.join(", "));
    Ok(())
}
