//! Backup, restore and repair that are killed at any change of the disk, and at work at the same time;
//! and what is left when several things are lost at once.
//!
//! A command is killed before its Nth change of a file or folder, for a few N that the seed chooses, until
//! one N is beyond its last change.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::recovery::{SMALL, append_all, assert_says, copy, doctor, offline, refusal, segments};
use crate::support::{Host, anabranch, outcome, seed, wait_until};
use crate::swap::{deploy, records, stored_tallies, swap, wait_idle};

/// Kills of one command.
const KILLS: usize = 5;

/// Runs a command that is killed before its `n`th change of the disk; whether it came to that. If not, it
/// ends well.
fn is_killed(args: &[&str], data: &Path, n: usize) -> bool {
    let mut command = anabranch();
    command.args(args).arg("--data").arg(data);
    let output = command.env("ANABRANCH_CRASH_AT", format!("disk-change:{n}")).output().unwrap();
    if output.status.signal() == Some(9) {
        return true;
    }
    assert_eq!(output.status.code(), Some(0), "{:?} {n}: {}", args, outcome(&output).2);
    false
}

/// Before which changes a command is killed that makes `most` of them.
fn moments(random: &mut fastrand::Rng, most: usize) -> Vec<usize> {
    (0..KILLS).map(|k| 1 + (k * most + random.usize(0..most)) / KILLS).collect()
}

/// How many changes a command makes.
fn changes(mut is_killed: impl FnMut(usize) -> bool) -> usize {
    let (mut low, mut high) = (1, 2);
    while is_killed(high) {
        (low, high) = (high, high * 2);
    }
    while high - low > 1 {
        let middle = (low + high) / 2;
        if is_killed(middle) { low = middle } else { high = middle }
    }
    low
}

/// A host's directory with topic `in`, whose segments and head hold `count` records, and a token.
fn filled(home: &Path, count: usize) {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut host = Host::on(home, &SMALL);
    host.partitions("in", 1);
    append_all(&host, "in", &records(&mut random, count));
    host.stop();
}

/// What a directory holds once a host runs on it.
fn held(home: &Path) -> Vec<Value> {
    let mut host = Host::on(home, &SMALL);
    let records = host.records("in", 0);
    host.stop();
    records
}

#[test]
fn a_backup_that_is_killed_is_none_and_leaves_the_one_before_it() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let home = tempfile::tempdir().unwrap();
    filled(home.path(), 1_500);
    let earlier = home.path().join("earlier");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    assert_eq!(offline(&["backup", &text(&earlier)], &home.path().join("data")).0, 0);
    let mut host = Host::on(home.path(), &SMALL);
    append_all(&host, "in", &records(&mut random, 1_500));
    let all = host.records("in", 0);
    host.stop();

    let case = |onto: Option<&Path>, n: usize| {
        let case = tempfile::tempdir().unwrap();
        let (data, dest) = (case.path().join("data"), case.path().join("backup"));
        copy(&home.path().join("data"), &data);
        onto.inspect(|onto| copy(onto, &dest));
        let killed = is_killed(&["backup", &text(&dest)], &data, n);
        (case, data, dest, killed)
    };
    for onto in [Some(earlier.as_path()), None] {
        let most = changes(|n| case(onto, n).3);
        for n in moments(&mut random, most) {
            let told = format!("SEED={seed}, change {n} of {most}, onto {onto:?}");
            let (case, data, dest, killed) = case(onto, n);
            assert!(killed, "{told}");
            let restored = case.path().join("restored");
            let (code, out, error) = offline(&["restore", &text(&dest), "--json"], &restored);
            let status: Value = serde_json::from_str(&out).unwrap_or_default();
            match (onto, code) {
                // The one before it, or, if it was killed at its very end, the new one.
                (Some(_), _) => {
                    assert_eq!(code, 0, "{told}: {error}");
                    let end = status["topics"]["in"][0].as_u64().unwrap();
                    assert!(end == 1_500 || end == 3_000, "{told}: {status}");
                    assert_eq!(doctor(&restored, &[]).0, 0, "{told}");
                }
                (None, 0) => assert_eq!(status["topics"]["in"][0], 3_000, "{told}"),
                (None, _) => {
                    assert_says(&error, &["no finished backup"]);
                    assert!(!restored.exists(), "{told}");
                }
            }
            // It is made again, and is whole.
            let (code, _, error) = offline(&["backup", &text(&dest)], &data);
            assert_eq!(code, 0, "{told}: {error}");
            let whole = tempfile::tempdir().unwrap();
            assert_eq!(offline(&["restore", &text(&dest)], &whole.path().join("data")).0, 0);
            if n % 2 == 0 {
                assert_eq!(held(whole.path()), all, "{told}");
            }
        }
    }
}

#[test]
fn a_host_that_is_killed_while_it_makes_a_backup_leaves_the_one_before_it() {
    /// Before a backup is whole: a segment and the head are written, synced and named, with their folders.
    const LEAST_CHANGES: usize = 6;
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let home = tempfile::tempdir().unwrap();
    filled(home.path(), 1_000);
    let (aim, backups) = (home.path().join("aim"), home.path().join("backups"));
    let crash = format!("@{}", aim.display());
    let settings = [
        SMALL[0],
        SMALL[1],
        ("ANABRANCH_BACKUP_DIR", backups.to_str().unwrap()),
        ("ANABRANCH_CRASH_AT", &crash),
    ];
    let mut sequence = 0;
    for round in 0..3 {
        let mut host = Host::on(home.path(), &settings);
        append_all(&host, "in", &records(&mut random, 500));
        if round == 0 {
            let (code, out, error) = host.cli(&["backup", "nightly", "--json"]);
            assert_eq!(code, 0, "{error}");
            let status: Value = serde_json::from_str(&out).unwrap();
            sequence = status["sequence"].as_u64().unwrap();
            append_all(&host, "in", &records(&mut random, 500));
        }
        // Nothing else is written while nobody appends.
        let n = random.usize(1..12);
        std::fs::write(&aim, format!("disk-change:{n}")).unwrap();
        // The host may be gone before it answers.
        let _ = host.try_post("/v1/backups/nightly", &json!({}));
        assert_eq!(host.ended(), None, "SEED={seed} round {round}: change {n} is not reached");
        std::fs::remove_file(&aim).unwrap();
        let target = tempfile::tempdir().unwrap();
        let restored = target.path().join("data");
        let source = backups.join("nightly");
        let (code, out, error) =
            offline(&["restore", source.to_str().unwrap(), "--json"], &restored);
        assert_eq!(code, 0, "SEED={seed} round {round}, change {n}: {error}");
        let status: Value = serde_json::from_str(&out).unwrap();
        // The one before it, or, if it was killed at its very end, the new one.
        let found = status["sequence"].as_u64().unwrap();
        assert!(found >= sequence, "SEED={seed} round {round}, change {n}: {found} of {sequence}");
        assert!(found == sequence || n > LEAST_CHANGES, "SEED={seed} round {round}, change {n}");
        sequence = found;
        assert_eq!(doctor(&restored, &[]).0, 0, "SEED={seed} round {round}, change {n}");
    }
}

#[test]
fn a_restore_that_is_killed_keeps_hosts_away_until_it_is_run_again() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let home = tempfile::tempdir().unwrap();
    filled(home.path(), 2_000);
    let backup = home.path().join("backup");
    let source = backup.to_str().unwrap();
    assert_eq!(offline(&["backup", source], &home.path().join("data")).0, 0);
    let all = held(home.path());

    let case = |n: usize| {
        let case = tempfile::tempdir().unwrap();
        let killed = is_killed(&["restore", source], &case.path().join("data"), n);
        (case, killed)
    };
    let most = changes(|n| case(n).1);
    for n in moments(&mut random, most).into_iter().chain([most]) {
        let told = format!("SEED={seed}, change {n} of {most}");
        let (case, killed) = case(n);
        assert!(killed, "{told}");
        let data = case.path().join("data");
        if data.exists() {
            assert!(n + 2 > most, "{told}: it has its name at the very end");
            assert_eq!(offline(&["restore", source], &data).0, 4, "{told}");
        } else {
            if case.path().join("data.anabranch-restoring").exists() {
                let refused = refusal(&data);
                assert_says(
                    &refused,
                    &["interrupted", "anabranch restore BACKUP", "again", "remove"],
                );
                assert!(!data.exists(), "{told}: nothing is begun there");
            }
            let (code, _, error) = offline(&["restore", source], &data);
            assert_eq!(code, 0, "{told}: {error}");
        }
        assert_eq!(doctor(&data, &[]).0, 0, "{told}");
        assert_eq!(held(case.path()), all, "{told}");
    }
}

#[test]
fn a_repair_that_is_killed_is_run_again_and_loses_nothing_more() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let home = tempfile::tempdir().unwrap();
    filled(home.path(), 2_000);
    let repair = ["doctor", "--repair", "--accept-loss"];
    let case = |n: usize| {
        let case = tempfile::tempdir().unwrap();
        let data = case.path().join("data");
        copy(&home.path().join("data"), &data);
        std::fs::remove_file(data.join("head/db")).unwrap();
        let killed = is_killed(&repair, &data, n);
        (case, data, killed)
    };
    let (uninterrupted, data, killed) = case(1_000_000);
    assert!(!killed);
    assert_eq!(doctor(&data, &[]).0, 0);
    let kept = held(uninterrupted.path());
    assert!(kept.len() > 1_000, "segments are there: {}", kept.len());
    let most = changes(|n| case(n).2);
    for n in moments(&mut random, most).into_iter().chain([most]) {
        let told = format!("SEED={seed}, change {n} of {most}");
        let (case, data, killed) = case(n);
        assert!(killed, "{told}");
        if n < most {
            assert_says(&refusal(&data), &["anabranch doctor"]);
        }
        let (code, _, error) = offline(&repair, &data);
        assert_eq!(code, 0, "{told}: {error}");
        let (code, report, _) = doctor(&data, &[]);
        assert_eq!((code, &report["findings"]), (0, &json!([])), "{told}");
        assert_eq!(held(case.path()), kept, "{told}");
    }
}

/// Holds a lock as a process does that is at work.
fn locked(path: &Path) -> std::fs::File {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(path).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    file
}

#[test]
fn two_at_once_on_one_directory_are_refused_but_for_one() {
    let home = tempfile::tempdir().unwrap();
    filled(home.path(), 1_000);
    let (data, backup) = (home.path().join("data"), home.path().join("backup"));
    let source = backup.to_str().unwrap();
    assert_eq!(offline(&["backup", source], &data).0, 0);
    // A command beside one that is at work, which is this test.
    let work = locked(&data.join("lock"));
    assert_says(&refusal(&data), &["in use by another host", "doctor", "wait"]);
    for (args, expected) in [
        (&["doctor"][..], 4),
        (&["doctor", "--repair", "--accept-loss"], 4),
        (&["backup", source], 4),
        (&["restore", source], 4),
    ] {
        let (code, _, error) = offline(args, &data);
        assert_eq!(code, expected, "{args:?}: {error}");
        assert!(error.contains("wait") || error.contains("not empty"), "{args:?}: {error}");
    }
    drop(work);
    let work = locked(&backup.join("lock"));
    let (code, _, error) = offline(&["backup", source], &data);
    assert_eq!(code, 4, "{error}");
    assert_says(&error, &["another backup", "wait"]);
    drop(work);
    let target = home.path().join("target");
    let unfinished = home.path().join("target.anabranch-restoring");
    let work = locked(&unfinished.join("lock"));
    let (code, _, error) = offline(&["restore", source], &target);
    assert_eq!(code, 4, "{error}");
    assert_says(&error, &["being restored by another process", "wait"]);
    assert_says(&refusal(&target), &["interrupted or is under way"]);
    drop(work);

    // Restores that begin at the same time: one target, one that is whole, and clear words for the others.
    let begin = |_| {
        let mut command = anabranch();
        command.args(["restore", source, "--data"]).arg(&target);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let begun: Vec<_> = (0..4).map(begin).collect();
    let ended: Vec<Output> =
        begun.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let codes: Vec<_> = ended.iter().map(|output| output.status.code().unwrap()).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}: {ended:?}");
    assert_eq!(doctor(&target, &[]).0, 0);
    assert!(!unfinished.exists());
    // A host that runs keeps a restore away, and a link is not replaced.
    let host = Host::on(home.path(), &SMALL);
    let (code, _, error) = offline(&["restore", source], &data);
    assert_eq!(code, 4, "{error}");
    drop(host);
    let (empty, link) = (home.path().join("empty"), home.path().join("link"));
    std::fs::create_dir(&empty).unwrap();
    std::os::unix::fs::symlink(&empty, &link).unwrap();
    let (code, _, error) = offline(&["restore", source], &link);
    assert_eq!(code, 4, "{error}");
    assert_says(&error, &["is a link", "name a directory"]);
}

#[test]
fn without_head_and_copy_the_records_of_segments_are_left() {
    let home = tempfile::tempdir().unwrap();
    filled(home.path(), 3_000);
    let data = home.path().join("data");
    let all = held(home.path());
    for name in ["head", "head.old"] {
        // The second is there after a start that changed nothing.
        let _ = std::fs::remove_dir_all(data.join(name));
    }
    // Nor does any small file say which store it is: the segments do.
    for name in ["head-copy.arrow", "format", "high-water"] {
        std::fs::remove_file(data.join(name)).unwrap();
    }
    let log = std::fs::read_dir(data.join("segments")).unwrap().next().unwrap().unwrap();
    let log = log.file_name().into_string().unwrap();
    let (code, report, _) = doctor(&data, &[]);
    assert_eq!(code, 1, "{report}");
    let topic = format!("recovered-log-{log}");
    assert_says(&report["findings"].to_string(), &["names of topics and deployments are lost"]);
    assert_says(&report["notes"].to_string(), &[&topic, "shows its records"]);
    let loss = &report["losses"][0];
    assert_eq!(loss["place"], format!("topic {topic} partition 0"), "{report}");
    let sealed = loss["from"].as_u64().unwrap() as usize;
    assert!(1_000 < sealed && sealed <= all.len(), "{report}");
    assert_eq!(doctor(&data, &["--repair"]).0, 5);
    assert_eq!(doctor(&data, &["--repair", "--accept-loss"]).0, 0);
    assert_eq!(doctor(&data, &[]).0, 0);
    let host = Host::on(home.path(), &SMALL);
    let kept = host.records(&topic, 0);
    let keys = |records: &[Value]| -> Vec<_> {
        records.iter().map(|r| (r["offset"].clone(), r["timestamp"].clone())).collect()
    };
    assert_eq!(keys(&kept), keys(&all[..kept.len()]));
    assert!(kept.len() == sealed || kept.len() + 1 == sealed, "{} {sealed}", kept.len());
    host.partitions("in", 1);
    host.append("in", &[json!({"key": "k", "value": "x"})]);
}

#[test]
fn a_lost_journal_of_several_inputs_is_survived_by_a_swap() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let home = tempfile::tempdir().unwrap();
    let settings = [("ANABRANCH_STORAGE_HEAD_BYTES", "1000"), SMALL[1]];
    let mut host = Host::on(home.path(), &settings);
    for topic in ["a", "b"] {
        host.partitions(topic, 1);
    }
    deploy(&host, "t", &["a", "b"], &json!({}));
    for round in 1..=60 {
        let (topic, count) = (["a", "b"][random.usize(0..2)], random.usize(10..30));
        host.append(topic, &records(&mut random, count));
        if round % 10 == 0 {
            wait_idle(&host, "t");
        }
    }
    let ends = ["a", "b"].map(|topic| host.records(topic, 0).len() as u64);
    host.wait_processed("t", 1, ends[0] + ends[1]);
    let counted = |host: &Host, generation: u32| -> Vec<_> {
        let tallies = stored_tallies(host, "t", generation).into_iter();
        tallies.map(|(key, tally)| (key, tally["count"].clone())).collect()
    };
    let before = counted(&host, 1);
    host.stop();
    let data = home.path().join("data");
    // Which of the logs it is, the doctor says of one that has lost a segment between two others.
    let logs = std::fs::read_dir(data.join("segments")).unwrap();
    let found = logs.into_iter().find_map(|log| {
        let log = log.unwrap().file_name().into_string().unwrap();
        let files = segments(&data, &log, 0);
        let file = files.get(files.len() / 2).filter(|_| files.len() > 2)?;
        let aside = home.path().join("aside");
        std::fs::rename(file, &aside).unwrap();
        let (_, report, _) = doctor(&data, &[]);
        if report["losses"][0]["place"].as_str().unwrap().contains("journal") {
            return Some(report);
        }
        std::fs::rename(&aside, file).unwrap();
        None
    });
    let report = found.expect("the journal has segments");
    assert_says(&report["notes"].to_string(), &["the order", "a swap replays them"]);
    let (code, _, error) = doctor(&data, &["--repair", "--accept-loss"]);
    assert_eq!(code, 0, "SEED={seed}: {error}");
    let host = Host::on(home.path(), &settings);
    assert_eq!(counted(&host, 1), before, "SEED={seed}: what was computed stays");
    swap(&host, "t", &json!({}));
    host.wait_live("t", 2);
    host.append("a", &records(&mut random, 10));
    host.wait_processed("t", 2, ends[0] + ends[1] + 10);
    wait_until("both have all", || counted(&host, 1) == counted(&host, 2));
}
