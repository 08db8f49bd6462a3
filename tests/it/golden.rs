//! What earlier builds of this format version wrote: a backup of a host that holds a bit of everything is
//! restored, says what it said, and goes on.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::recovery::{doctor, offline};
use crate::support::{Client, Host, root};
use crate::swap::{deploy, plain_tallies, records, stored_tallies, swap, wait_idle};

/// A host that seals and writes checkpoints often.
const SETTINGS: [(&str, &str); 3] = [
    ("ANABRANCH_AUTH_REQUIRED", "true"),
    ("ANABRANCH_STORAGE_HEAD_BYTES", "20000"),
    ("ANABRANCH_TASKS_CHECKPOINT_BYTES", "3000"),
];

/// Where the backup lies, and beside it what the host said.
fn golden() -> PathBuf {
    root().join("tests/golden/v1/host")
}

/// What a host says of everything that it holds.
fn said(client: &Client) -> Value {
    let status = client.status("t");
    let generations = status["generations"].as_array().unwrap().iter();
    let generations: Vec<_> = generations
        .map(|g| json!({"number": g["number"], "phase": g["phase"], "plugin": g["plugin"], "records": g["progress"]["records"]}))
        .collect();
    let topics = ["in", "t-out", "t.dead-letters"].map(|topic| {
        let held: Vec<_> = (0..2).map(|partition| client.records(topic, partition)).collect();
        (topic, held)
    });
    json!({
        "live": status["live"],
        "generations": generations,
        "topics": topics,
        "stores": stored_tallies(client, "t", 2),
        "tokens": client.get("/v1/tokens").ok(),
    })
}

/// Makes the backup anew, and writes down what the host said before.
fn bless(golden: &Path) {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let token = |name: &str, role: &str| {
        let (code, token, error) =
            offline(&["token", "create", name, "--role", role, "--topics", "*"], &data);
        assert_eq!(code, 0, "{error}");
        token.trim().to_owned()
    };
    let (admin, observer) = (token("root", "admin"), token("watch", "observe"));
    let mut host = Host::on(home.path(), &SETTINGS);
    let client = host.bearer(&admin);
    client.partitions("in", 2);
    let policy = json!({"on_poison": "dead-letter", "swap": {"warm_lease": "3650d"}});
    deploy(&client, "t", &["in"], &policy);
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..5 {
        client.append("in", &records(&mut random, 200));
        client.append("in", &[json!({"key": "bad", "value": "poison"})]);
        wait_idle(&client, "t");
    }
    swap(&client, "t", &json!({"reason": "to have two generations"}));
    client.wait_live("t", 2);
    client.append("in", &records(&mut random, 200));
    wait_idle(&client, "t");
    let said = json!({"admin": admin, "observer": observer, "said": said(&client)});
    host.stop();
    drop(std::fs::remove_dir_all(golden));
    std::fs::create_dir_all(golden).unwrap();
    let backup = golden.join("backup");
    let (code, _, error) = offline(&["backup", backup.to_str().unwrap()], &data);
    assert_eq!(code, 0, "{error}");
    std::fs::write(golden.join("said.json"), format!("{said}\n")).unwrap();
}

/// The bytes of all that a host of format version 1 keeps: deployments, generations, cursors, journals,
/// changelogs, checkpoints, tokens, plugins. `ANABRANCH_BLESS=1` writes them anew, which is right only
/// together with a new format version.
#[test]
fn a_backup_of_version_1_comes_back_and_goes_on() {
    let golden = golden();
    if std::env::var_os("ANABRANCH_BLESS").is_some() {
        bless(&golden);
    }
    let held: Value =
        serde_json::from_slice(&std::fs::read(golden.join("said.json")).unwrap()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let backup = golden.join("backup");
    let (code, _, error) = offline(&["restore", backup.to_str().unwrap()], &data);
    assert_eq!(code, 0, "{error}");
    assert!(std::fs::read_dir(data.join("checkpoints")).unwrap().next().is_some());
    let (code, report, error) = doctor(&data, &[]);
    assert_eq!(code, 0, "{report} {error}");

    let host = Host::on(home.path(), &SETTINGS);
    let client = host.bearer(held["admin"].as_str().unwrap());
    let observer = host.bearer(held["observer"].as_str().unwrap());
    observer.get("/v1/deployments/t").ok();
    assert_eq!(observer.get("/v1/tokens").status, 403);
    wait_idle(&client, "t");
    assert_eq!(said(&client), held["said"]);
    client.append("in", &records(&mut fastrand::Rng::with_seed(2), 100));
    wait_idle(&client, "t");
    assert_eq!(stored_tallies(&client, "t", 2), plain_tallies(&client, "in", 2));
    client.post("/v1/deployments/t/rollback", &json!({})).ok();
    wait_idle(&client, "t");
    assert_eq!(stored_tallies(&client, "t", 1), plain_tallies(&client, "in", 2));
}
