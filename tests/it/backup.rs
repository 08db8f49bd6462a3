//! What `backup` and `restore` bring back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::recovery::{SMALL, append_all, assert_says, doctor, end, flip_a_byte, offline, stopped};
use crate::support::{Host, seed, wait_until};
use crate::swap::{deploy, plain_tallies, records, stored_tallies, swap, wait_idle};

#[test]
fn a_backup_under_load_is_one_moment_and_comes_back_whole() {
    let mut random = fastrand::Rng::with_seed(seed());
    let home = tempfile::tempdir().unwrap();
    let backups = home.path().join("backups");
    let settings = [SMALL[0], SMALL[1], ("ANABRANCH_BACKUP_DIR", backups.to_str().unwrap())];
    let settings = [&settings[..], &[("ANABRANCH_TASKS_CHECKPOINT_BYTES", "20000")]].concat();
    let mut host = Host::on(home.path(), &settings);
    host.partitions("in", 2);
    deploy(&host, "t", &["in"], &json!({}));
    append_all(&host, "in", &records(&mut random, 4_000));
    let (code, first, error) = host.cli(&["backup", "nightly", "--json"]);
    assert_eq!(code, 0, "{error}");
    let first: Value = serde_json::from_str(&first).unwrap();

    // Again, while records keep coming: only what is new is copied.
    let stop = Arc::new(AtomicBool::new(false));
    let producer = {
        let (stop, client, seed) = (Arc::clone(&stop), host.client(), random.u64(..));
        std::thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(seed);
            while !stop.load(Ordering::Relaxed) {
                client.append("in", &records(&mut random, 100));
            }
        })
    };
    wait_until("records come", || end(&host, "in", 0) > 3_000);
    let (code, second, error) = host.cli(&["backup", "nightly", "--json"]);
    assert_eq!(code, 0, "{error}");
    let second: Value = serde_json::from_str(&second).unwrap();
    wait_until("more records come", || {
        end(&host, "in", 0) > second["topics"]["in"][0].as_u64().unwrap() + 500
    });
    stop.store(true, Ordering::Relaxed);
    producer.join().unwrap();
    let number = |status: &Value, field: &str| status[field].as_u64().unwrap();
    assert!(number(&second, "sequence") > number(&first, "sequence"));
    assert!(number(&second, "copied_bytes") < number(&second, "total_bytes"), "{second}");
    host.post("/v1/backups/..", &json!({})).refused(400, "invalid_name", &[".."]);
    host.post("/v1/backups/a%2Fb", &json!({})).refused(400, "invalid_name", &["a/b"]);
    host.get("/v1/backups/weekly").refused(404, "backup_not_found", &["weekly"]);
    let original: Vec<_> = (0..2).map(|p| host.records("in", p)).collect();
    host.stop();

    // What is restored is what was there at one moment, and it goes on from there.
    let (source, again) = (backups.join("nightly"), tempfile::tempdir().unwrap());
    let data = again.path().join("data");
    let source_text = source.to_str().unwrap();
    let (code, out, error) = offline(&["restore", source_text, "--json"], &data);
    assert_eq!(code, 0, "{error}");
    let restored: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&restored["topics"], &restored["sequence"]),
        (&second["topics"], &second["sequence"])
    );
    let (code, report, error) = doctor(&data, &[]);
    assert_eq!((code, &report["findings"]), (0, &json!([])), "{error}");
    let host = Host::on(again.path(), &SMALL);
    let mut count = 0;
    for (p, original) in original.iter().enumerate() {
        let own = host.records("in", p as u32);
        let last = second["topics"]["in"][p].as_u64().unwrap();
        assert_eq!(own.last().unwrap()["offset"].as_u64().unwrap() + 1, last);
        assert!(original.len() > own.len(), "records came after the backup");
        assert_eq!(own[..], original[..own.len()]);
        count += own.len() as u64;
        // A follower that was further than the backup is told; one at its end goes on.
        let path = format!("/v1/topics/in/partitions/{p}/records?from=");
        let further = host.get(&format!("{path}{}", last + 1));
        further.refused(410, "offset_lost", &["restored from a backup", "go on at"]);
        assert_eq!(host.get(&format!("{path}{last}")).status, 200);
        // No offset is given out a second time.
        let record = json!({"key": format!("new{p}"), "value": "x", "partition": p});
        let appended = host.append("in", &[record]);
        let next = appended["partitions"][p.to_string()]["next_offset"].as_u64().unwrap();
        assert!(next > original.last().unwrap()["offset"].as_u64().unwrap() + (1 << 31), "{next}");
        let page =
            host.ask("GET", &format!("{path}{last}"), &[("accept", "application/json")], b"");
        assert_eq!(page.unwrap().ok()[0]["offset"], next - 1);
    }
    host.wait_processed("t", 1, count + 2);
    assert_eq!(stored_tallies(&host, "t", 1), plain_tallies(&host, "in", 2));
    crate::crash::assert_outputs(&host, 2, "restored");
    swap(&host, "t", &json!({}));
    host.wait_live("t", 2);
    wait_idle(&host, "t");
    assert_eq!(stored_tallies(&host, "t", 2), plain_tallies(&host, "in", 2));
    let host = host.restart_with(&SMALL);
    wait_idle(&host, "t");
    assert_eq!(stored_tallies(&host, "t", 2), plain_tallies(&host, "in", 2));

    // A target that holds something is left alone, and damage in a backup is found.
    let (code, _, error) = offline(&["restore", source_text], &host.data());
    assert_eq!(code, 4, "{error}");
    assert_says(&error, &["is not empty"]);
    let logs = std::fs::read_dir(source.join("segments")).unwrap();
    let mut files = logs.flat_map(|log| std::fs::read_dir(log.unwrap().path()).unwrap());
    let file = files.next().unwrap().unwrap().path();
    flip_a_byte(&file, 700);
    let target = again.path().join("other");
    let (code, _, error) = offline(&["restore", source_text], &target);
    assert_eq!(code, 1, "{error}");
    assert_says(&error, &[file.to_str().unwrap(), "damaged", "another backup"]);
    assert!(!target.exists(), "what is not whole has no name");
}

#[test]
fn a_stopped_host_is_backed_up_and_backups_are_off_by_default() {
    let home = tempfile::tempdir().unwrap();
    let data = stopped(home.path());
    let made = |name| {
        let (code, token, error) = offline(&["token", "create", name, "--role", "admin"], &data);
        assert_eq!(code, 0, "{error}");
        token.trim().to_owned()
    };
    let (kept, revoked) = (made("kept"), made("revoked"));
    assert_eq!(offline(&["token", "revoke", &revoked[10..26]], &data).0, 0);
    let dest = home.path().join("backup");
    let (code, _, error) = offline(&["backup", dest.to_str().unwrap()], &data);
    assert_eq!(code, 0, "{error}");
    let restored = tempfile::tempdir().unwrap();
    let again = restored.path().join("data");
    assert_eq!(offline(&["restore", dest.to_str().unwrap()], &again).0, 0);
    assert_eq!(doctor(&again, &[]).0, 0);
    // Tokens are in it, and so is that one was revoked.
    let host = Host::on(restored.path(), &[("ANABRANCH_AUTH_REQUIRED", "true")]);
    assert_eq!(host.bearer(&kept).get("/v1/topics/in").status, 200);
    host.bearer(&revoked).get("/v1/topics/in").refused(401, "token_invalid", &["revoked"]);
    drop(host);
    // A folder that holds something else is left alone.
    let (code, _, error) = offline(&["backup", home.path().to_str().unwrap()], &data);
    assert_eq!(code, 4, "{error}");
    assert_says(&error, &["no part of a backup"]);
    assert!(!home.path().join("segments").exists(), "nothing is put there");
    let host = Host::on(home.path(), &SMALL);
    let off = host.post("/v1/backups/nightly", &json!({}));
    off.refused(422, "backups_off", &["[backup] dir", "--data DIR"]);
}
