//! The day a disk fails: what a host says, what `doctor` finds and repairs, and what happens when
//! space runs out. What `backup` and `restore` bring back is in [`crate::backup`].

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Client, Host, anabranch, guest, lines, outcome, seed, wait_until};
use crate::swap::{deploy, plain_tallies, records, stored_tallies, swap, wait_idle};

/// A head that is sealed often, and copied when its catalogue changes or the host stops.
pub const SMALL: [(&str, &str); 2] =
    [("ANABRANCH_STORAGE_HEAD_BYTES", "30000"), ("ANABRANCH_STORAGE_HEAD_COPY_MS", "3600000")];

/// Runs the command line on a directory, without a host.
pub fn offline(args: &[&str], data: &Path) -> (i32, String, String) {
    let mut command = anabranch();
    outcome(&command.args(args).arg("--data").arg(data).output().expect("the binary runs"))
}

/// What `doctor` reports, and its exit code.
pub fn doctor(data: &Path, more: &[&str]) -> (i32, Value, String) {
    let (code, out, error) = offline(&[&["doctor", "--json"], more].concat(), data);
    (code, serde_json::from_str(&out).unwrap_or_default(), error)
}

/// What a host says that cannot start on `data`.
pub fn refusal(data: &Path) -> String {
    let (code, out, error) = offline(&["serve", "--listen", "127.0.0.1:0"], data);
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    let complaints: Vec<&str> = error.lines().filter(|l| l.starts_with("anabranch: ")).collect();
    assert_eq!(complaints.len(), 1, "one sentence, not: {error}");
    assert!(!error.contains("panicked") && !error.contains("backtrace"), "{error}");
    complaints[0].to_owned()
}

pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, target) =
            (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// The files of a log's segments, in the order of offsets.
pub fn segments(data: &Path, log: &str, partition: u32) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(data.join("segments").join(log)).unwrap();
    let mut files: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    let prefix = format!("{partition}-");
    files.retain(|f| f.file_name().unwrap().to_string_lossy().starts_with(&prefix));
    files.sort();
    files
}

pub fn flip_a_byte(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(file, bytes).unwrap();
}

pub fn end(client: &Client, topic: &str, partition: usize) -> u64 {
    let topic = client.get(&format!("/v1/topics/{topic}")).ok();
    topic["partitions"][partition]["end_offset"].as_u64().unwrap()
}

/// Sends records in small requests.
pub fn append_all(client: &Client, topic: &str, records: &[Value]) {
    records.chunks(100).for_each(|part| drop(client.append(topic, part)));
}

/// A stopped host's directory: topic `in` of two partitions with segments and a head, and the tally of
/// it, which is exact.
pub fn stopped(home: &Path) -> PathBuf {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut host = Host::on(home, &SMALL);
    host.partitions("in", 2);
    deploy(&host, "t", &["in"], &json!({}));
    append_all(&host, "in", &records(&mut random, 6_000));
    host.wait_processed("t", 1, 6_000);
    host.stop();
    host.data()
}

#[test]
fn strangers_among_checkpoints_are_all_kept() {
    let home = tempfile::tempdir().unwrap();
    let data = stopped(home.path());
    for content in ["one", "two"] {
        std::fs::write(data.join("checkpoints/stranger"), content).unwrap();
        Host::on(home.path(), &SMALL).stop();
    }
    let kept = |n: usize| std::fs::read(data.join(format!("quarantine/stranger.{n}"))).unwrap();
    assert_eq!((kept(0), kept(1)), (b"one".to_vec(), b"two".to_vec()));
}

#[test]
fn what_a_host_writes_is_for_its_own_user_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    // A directory that others may read, as an operator or a service manager makes it.
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(stopped(home.path()), data);
    let mut folders = vec![data];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let about = std::fs::symlink_metadata(&path).unwrap();
            assert_eq!(about.permissions().mode() & 0o077, 0, "{}", path.display());
            seen += 1;
            if about.is_dir() {
                folders.push(path);
            }
        }
    }
    assert!(seen > 10, "{seen} entries");
}

#[test]
fn a_damaged_segment_is_named_and_the_rest_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let data = stopped(home.path());
    let log = std::fs::read_dir(data.join("segments")).unwrap();
    let mut logs: Vec<u64> =
        log.map(|e| e.unwrap().file_name().to_string_lossy().parse().unwrap()).collect();
    logs.sort_unstable();
    let input = logs[0].to_string();
    assert!(segments(&data, &input, 0).len() > 2, "there is a segment between two others");
    type Harm = fn(&Path);
    let harms: [(&str, Harm, bool); 3] = [
        ("lost", |file| std::fs::remove_file(file).unwrap(), true),
        (
            "cut off",
            |file| {
                let length = std::fs::metadata(file).unwrap().len();
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(file)
                    .unwrap()
                    .set_len(length / 2)
                    .unwrap();
            },
            true,
        ),
        ("flipped", |file| flip_a_byte(file, 700), false),
    ];
    for (name, harm, refuses) in harms {
        let case = tempfile::tempdir().unwrap();
        let damaged = case.path().join("data");
        copy(&data, &damaged);
        let file = segments(&damaged, &input, 0)[1].clone();
        let file_name = file.file_name().unwrap().to_string_lossy().into_owned();
        harm(&file);
        if refuses {
            assert_says(&refusal(&damaged), &[&file_name, "anabranch doctor", "backup"]);
        }
        let (code, report, _) = doctor(&damaged, &[]);
        assert_eq!(code, 1, "{name}: {report}");
        let place = report["findings"][0]["place"].as_str().unwrap();
        assert_says(place, &[&file_name]);
        assert_eq!(report["losses"][0]["place"], "topic in partition 0", "{name}: {report}");
        let range = |field: &str| report["losses"][0][field].as_u64().unwrap();
        let (from, next) = (range("from"), range("next"));
        if !refuses {
            // Before it is repaired, too, what is flipped is an error, and the rest is read.
            let mut host = Host::on(case.path(), &SMALL);
            let at = |offset: u64| {
                host.get(&format!("/v1/topics/in/partitions/0/records?limit=1&from={offset}"))
            };
            assert_says(&at(from).text, &[&file_name]);
            assert_eq!((at(0).status, at(from).status, at(next).status), (200, 500, 200));
            host.stop();
        }
        let (code, _, error) = doctor(&damaged, &["--repair"]);
        assert_eq!(code, 5, "{error}");
        let (code, report, error) = doctor(&damaged, &["--repair", "--accept-loss"]);
        assert_eq!((code, &report["repaired"]), (0, &json!(true)), "{error}");
        assert_eq!(doctor(&damaged, &[]).0, 0, "{name}");

        let host = Host::on(case.path(), &SMALL);
        let path = "/v1/topics/in/partitions/0/records?from=";
        for at in [from, (from + next) / 2, next - 1] {
            let lost = host.get(&format!("{path}{at}"));
            lost.refused(410, "offset_lost", &["not intact", "repaired"]);
            assert_eq!(lost.body["next_offset"], next, "{name}");
        }
        let before = host.get(&format!("{path}0"));
        assert_eq!(before.number("anabranch-next-offset"), from, "{name}: up to the gap");
        let behind =
            host.ask("GET", &format!("{path}{next}"), &[("accept", "application/json")], b"");
        assert_eq!(behind.unwrap().ok()[0]["offset"], next);
        // What was computed stays, records still come, and a replay goes on behind the gap.
        host.append("in", &[json!({"key": "k1", "value": "x", "partition": 0})]);
        host.wait_processed("t", 1, 6_001);
        swap(&host, "t", &json!({}));
        host.wait_live("t", 2);
        wait_idle(&host, "t");
        let status = host.status("t");
        let count = status["generations"].as_array().unwrap().iter().find(|g| g["number"] == 2);
        assert_eq!(count.unwrap()["progress"]["records"], 6_001 - (next - from), "{name}");
    }
}

#[test]
fn a_lost_state_is_made_again_by_a_swap() {
    let home = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(seed());
    let settings = [&SMALL[..], &[("ANABRANCH_TASKS_CHECKPOINT_BYTES", "3000")]].concat();
    let mut host = Host::on(home.path(), &settings);
    host.partitions("in", 1);
    deploy(&host, "t", &["in"], &json!({}));
    let checkpoints = host.data().join("checkpoints");
    let files = || std::fs::read_dir(&checkpoints).unwrap().map(|e| e.unwrap().path());
    append_all(&host, "in", &records(&mut random, 1_000));
    let mut earlier = None;
    wait_until("a checkpoint is written", || {
        let whole = files().find(|f| f.extension().is_some_and(|e| e == "arrow"));
        // It may be replaced by another at any time.
        earlier = whole.and_then(|file| Some((std::fs::read(&file).ok()?, file)));
        earlier.is_some()
    });
    let (earlier, file) = earlier.unwrap();
    append_all(&host, "in", &records(&mut random, 2_000));
    host.wait_processed("t", 1, 3_000);
    wait_until("another takes its place", || !file.exists());
    host.stop();
    // Another checkpoint, every checksum in it right, is not taken for this one.
    files().for_each(|file| std::fs::write(file, &earlier).unwrap());
    let (code, report, _) = doctor(&host.data(), &[]);
    assert_eq!((code, report["findings"].as_array().unwrap().len()), (1, 1), "{report}");
    assert_says(&report["findings"].to_string(), &["another checkpoint", "anabranch swap"]);
    // A repair takes no care of it, and says so.
    let (code, report, _) = doctor(&host.data(), &["--repair"]);
    assert_eq!((code, &report["repaired"]), (1, &json!(false)), "{report}");
    let mut host = host.restart_stopped(&SMALL);
    let failure = |host: &Host| host.status("t")["generations"][0]["tasks"][0]["failure"].clone();
    wait_until("the task says why it stopped", || failure(&host).is_string());
    assert_says(&failure(&host).to_string(), &["another checkpoint", "checkpoints/"]);
    host.stop();
    files().for_each(|file| std::fs::remove_file(file).unwrap());
    let (code, report, _) = doctor(&host.data(), &[]);
    assert_eq!((code, report["findings"].as_array().unwrap().len()), (1, 1), "{report}");
    let finding = report["findings"][0].to_string();
    assert_says(&finding, &["checkpoints/", "t (generation 1)", "anabranch swap"]);

    let host = Host::on(home.path(), &SMALL);
    wait_until("the task says why it stopped", || failure(&host).is_string());
    assert_says(&failure(&host).to_string(), &["checkpoints/"]);
    assert_eq!(host.records("in", 0).len(), 3_000, "all else is served");
    host.append("in", &records(&mut random, 10));
    swap(&host, "t", &json!({}));
    host.wait_live("t", 2);
    host.wait_processed("t", 2, 3_010);
    assert_eq!(stored_tallies(&host, "t", 2), plain_tallies(&host, "in", 1));
}

#[test]
fn a_damaged_plugin_is_pushed_again() {
    let home = tempfile::tempdir().unwrap();
    let data = stopped(home.path());
    let file = std::fs::read_dir(data.join("plugins")).unwrap().next().unwrap().unwrap().path();
    flip_a_byte(&file, 2_000);
    let (code, report, _) = doctor(&data, &[]);
    assert_eq!((code, report["findings"].as_array().unwrap().len()), (1, 1), "{report}");
    assert_says(&report["findings"].to_string(), &["plugins/", "digest", "push the plugin again"]);
    let host = Host::on(home.path(), &SMALL);
    assert_says(&host.status("t").to_string(), &["plugins/", "push the plugin again"]);
    host.append("in", &[json!({"key": "k1", "value": "x"})]);
    host.push("fixture_tally");
    host.post("/v1/deployments/t/resume", &json!({})).ok();
    host.wait_processed("t", 1, 6_001);
    assert_eq!(stored_tallies(&host, "t", 1), plain_tallies(&host, "in", 2));
}

#[test]
fn a_lost_head_is_made_again_and_no_offset_is_used_twice() {
    let home = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(seed());
    let mut host = Host::on(home.path(), &SMALL);
    host.partitions("in", 1);
    deploy(&host, "t", &["in"], &json!({}));
    // A copy of this catalogue, before any record.
    let copy_of_head = host.data().join("head-copy.arrow");
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    assert!(copy_of_head.exists(), "the head is copied");
    append_all(&host, "in", &records(&mut random, 5_000));
    host.wait_processed("t", 1, 5_000);
    // The newest are few, and stay in the head.
    host.append("in", &records(&mut random, 10));
    let acknowledged = end(&host, "in", 0);
    let original = host.records("in", 0);
    host.kill();
    let data = host.data();
    std::fs::rename(data.join("head"), home.path().join("lost")).unwrap();
    assert_says(&refusal(&data), &["not there", "anabranch doctor", "backup"]);
    let (code, report, _) = doctor(&data, &[]);
    assert_eq!(code, 1, "{report}");
    let loss = &report["losses"][0];
    assert_eq!((&loss["place"], &loss["next"]), (&json!("topic in partition 0"), &Value::Null));
    let from = loss["from"].as_u64().unwrap();
    assert!(0 < from && from <= acknowledged, "segments are there and the head is not: {report}");
    assert_eq!(doctor(&data, &["--repair"]).0, 5);
    let (code, _, error) = doctor(&data, &["--repair", "--accept-loss"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(doctor(&data, &[]).0, 0);

    let host = Host::on(home.path(), &SMALL);
    let kept = host.records("in", 0);
    assert_eq!(kept[..], original[..from as usize], "everything up to the loss, and nothing else");
    let appended = host.append("in", &records(&mut random, 10));
    let next = appended["partitions"]["0"]["next_offset"].as_u64().unwrap();
    assert!(next - 10 >= acknowledged, "{next}");
    let lost = host.get(&format!("/v1/topics/in/partitions/0/records?from={}", acknowledged + 1));
    lost.refused(410, "offset_lost", &["go on at"]);
    host.wait_processed("t", 1, from + 10);
    assert_eq!(stored_tallies(&host, "t", 1), plain_tallies(&host, "in", 1));
}

#[test]
fn a_head_that_sled_cannot_open_is_a_sentence_and_never_a_panic() {
    let home = tempfile::tempdir().unwrap();
    let data = stopped(home.path());
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut refused = 0;
    for round in 0..6 {
        let case = tempfile::tempdir().unwrap();
        let damaged = case.path().join("data");
        copy(&data, &damaged);
        let db = damaged.join("head/db");
        let mut bytes = std::fs::read(&db).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        for _ in 0..1 << round {
            bytes[random.usize(0..used)] ^= 1 << random.u32(0..8);
        }
        std::fs::write(&db, bytes).unwrap();
        let (code, report, error) = doctor(&damaged, &[]);
        assert!(!error.contains("panicked"), "SEED={seed} round {round}: {error}");
        if code == 0 {
            // The bits lay where nothing is.
            continue;
        }
        refused += 1;
        assert_eq!(code, 1, "SEED={seed} round {round}: {error}");
        assert_ne!(report["findings"], json!([]));
        assert_says(&refusal(&damaged), &["anabranch doctor", "backup"]);
        let (code, _, error) = doctor(&damaged, &["--repair", "--accept-loss"]);
        assert_eq!(code, 0, "SEED={seed} round {round}: {error}");
        assert_eq!(doctor(&damaged, &[]).0, 0, "SEED={seed} round {round}");
        // The copy was written when the host stopped: nothing is lost at all.
        let host = Host::on(case.path(), &SMALL);
        assert_eq!(host.records("in", 0).len() + host.records("in", 1).len(), 6_000);
        wait_idle(&host, "t");
        assert_eq!(stored_tallies(&host, "t", 1), plain_tallies(&host, "in", 2));
    }
    assert!(refused > 0, "SEED={seed}: no damage was found at all");
}

#[test]
fn each_directory_that_cannot_be_opened_has_a_way_out() {
    let home = tempfile::tempdir().unwrap();
    let data = stopped(home.path());
    let case = |harm: &dyn Fn(&Path)| {
        let case = tempfile::tempdir().unwrap();
        let damaged = case.path().join("data");
        copy(&data, &damaged);
        harm(&damaged);
        (case, damaged)
    };
    // A newer format: neither a host nor a repair touches it.
    let (_newer, newer) = case(&|dir| {
        let text = std::fs::read_to_string(dir.join("format")).unwrap();
        std::fs::write(dir.join("format"), text.replace("anabranch 1", "anabranch 9")).unwrap();
    });
    assert_says(&refusal(&newer), &["format version 9", "reads version 1", "run the version"]);
    let (code, _, error) = doctor(&newer, &["--repair", "--accept-loss"]);
    assert_eq!(code, 5, "{error}");
    assert_says(&error, &["format version 9"]);
    // Small files of our own: nothing is lost with them.
    for name in ["format", "high-water"] {
        let (_gone, gone) = case(&|dir| std::fs::remove_file(dir.join(name)).unwrap());
        assert_says(&refusal(&gone), &[name, "anabranch doctor"]);
        assert_eq!(doctor(&gone, &[]).0, 1, "{name}");
        let (code, report, error) = doctor(&gone, &["--repair"]);
        assert_eq!((code, &report["losses"]), (0, &json!([])), "{name}: {error}");
        assert_eq!(doctor(&gone, &[]).0, 0, "{name}");
    }
    // What sled remembers of how it was made, which is always the same: nothing is lost with it either.
    let (_odd, odd) = case(&|dir| flip_a_byte(&dir.join("head/conf"), 0));
    assert_says(&refusal(&odd), &["damaged", "anabranch doctor"]);
    let (code, report, _) = doctor(&odd, &[]);
    assert_eq!(code, 1);
    assert_says(&report["findings"].to_string(), &["head/conf", "keeps hosts from starting"]);
    let (code, report, error) = doctor(&odd, &["--repair"]);
    assert_eq!((code, &report["losses"]), (0, &json!([])), "{error}");
    assert_eq!(doctor(&odd, &[]).0, 0);
    let host = Host::on(odd.parent().unwrap(), &SMALL);
    assert_eq!(host.records("in", 0).len() + host.records("in", 1).len(), 6_000);
    drop(host);
    // Files that were moved to another disk, with links to them, are where they were.
    let (elsewhere, moved) = case(&|dir| {
        for log in std::fs::read_dir(dir.join("segments")).unwrap() {
            for segment in std::fs::read_dir(log.unwrap().path()).unwrap() {
                let path = segment.unwrap().path();
                let to = path.with_extension("moved");
                let to = dir.with_file_name(to.file_name().unwrap());
                if !to.exists() {
                    std::fs::rename(&path, &to).unwrap();
                    std::os::unix::fs::symlink(&to, &path).unwrap();
                }
            }
        }
    });
    assert_eq!(doctor(&moved, &[]).0, 0);
    let host = Host::on(elsewhere.path(), &SMALL);
    assert_eq!(host.records("in", 0).len() + host.records("in", 1).len(), 6_000);
    drop(host);
    // A repair that was ended between two renames is finished by the next.
    let (_half, half) = case(&|dir| {
        std::fs::create_dir(dir.join("repair")).unwrap();
        std::fs::rename(dir.join("head"), dir.join("repair/head")).unwrap();
    });
    assert_says(&refusal(&half), &["repair", "interrupted", "doctor --data", "--repair"]);
    assert_eq!(doctor(&half, &[]).0, 1);
    let (code, report, error) = doctor(&half, &["--repair"]);
    assert_eq!((code, &report["findings"]), (0, &json!([])), "{error}");
    // A file where the directory should be, and a directory that is none.
    let file = home.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert_says(&refusal(&file), &["cannot create", "file"]);
    let (code, _, error) = doctor(home.path(), &[]);
    assert_eq!(code, 3, "{error}");
    assert_says(&error, &["no data directory", "--data"]);
    // The lock of a host that is gone is no obstacle; that of one that runs is.
    std::fs::write(data.join("lock"), "left over").unwrap();
    let host = Host::on(home.path(), &SMALL);
    let (code, _, error) = doctor(&data, &[]);
    assert_eq!(code, 4, "{error}");
    assert_says(&error, &["a host runs on", "stop it"]);
    drop(host);
}

#[test]
fn producers_are_refused_below_the_floor_of_free_space_and_taken_again_above_it() {
    let home = tempfile::tempdir().unwrap();
    let free = || {
        let stat = rustix::fs::statvfs(home.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    // The floor lies far enough from what is free now and later that others may write meanwhile.
    let step = (free() / 8).min(2 << 30);
    let floor = (free() - step).to_string();
    let settings = [SMALL[0], SMALL[1], ("ANABRANCH_STORAGE_MIN_FREE_BYTES", &floor)];
    let host = Host::on(home.path(), &settings);
    host.partitions("in", 1);
    deploy(&host, "t", &["in"], &json!({}));
    let follower = host.events("/v1/topics/in/partitions/0/records?from=earliest", None);
    host.append("in", &[json!({"key": "a", "value": 1})]);
    host.wait_processed("t", 1, 1);

    let ballast = home.path().join("ballast");
    let file = std::fs::File::create(&ballast).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 2 * step).unwrap();
    let record = lines(&[json!({"key": "b", "value": 2})]);
    wait_until("producers are refused", || host.produce("in", &record).status == 503);
    let refused = host.produce("in", &record);
    refused.refused(503, "disk_full", &["must stay free", "make space", "storage.min_free_bytes"]);
    let pushed = host.send("POST", "/v1/plugins", "application/wasm", &guest("fixture_echo"));
    pushed.refused(503, "disk_full", &["must stay free", "make space"]);
    // Everything else goes on.
    let before = host.records("in", 0).len();
    assert!(before >= 1);
    assert_eq!(host.get("/readyz").status, 200);
    // What is answered is durable; a task that waits for space with more has to be asked later.
    let stored = host.get("/v1/deployments/t/stores/tallies?generation=1");
    assert!(stored.status == 200 || stored.body["code"] == "state_not_ready", "{}", stored.text);
    assert!(host.status("t")["generations"][0]["failure"].is_null());
    assert_eq!(follower.take(1).count(), 1);
    host.partitions("other", 1);
    let deleted = host.ask("DELETE", "/v1/topics/other", &[], b"").unwrap();
    assert!(deleted.status < 300, "{}", deleted.text);

    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    wait_until("producers are taken again", || host.produce("in", &record).status == 200);
    let all = host.records("in", 0).len() as u64;
    host.wait_processed("t", 1, all);
    assert_eq!(stored_tallies(&host, "t", 1), plain_tallies(&host, "in", 1));
}
