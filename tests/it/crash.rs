//! Kills at each step of a swap by name: afterwards there is exactly one live generation, nothing is
//! lost or doubled, and the swap can be carried on.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Host, lines, seed};
use crate::swap::{deploy, plain_tallies, records, stored_tallies, swap, wait_idle};

/// Every named point that a swap passes, and whether it has passed the point of no return there.
const STEPS: [&str; 14] = [
    "swap-drafted",
    "swap-recorded",
    "replay-files-written",
    "task-commit",
    "checkpoint-written",
    "checkpoint-recorded",
    "caught-up",
    "caught-up-recorded",
    "flip-held",
    "flip-reached",
    "flip-committed",
    "flip-done",
    "end-stopped",
    "end-recorded",
];

const SMALL: [(&str, &str); 3] = [
    ("ANABRANCH_TASKS_BATCH_MAX_RECORDS", "100"),
    ("ANABRANCH_TASKS_CHECKPOINT_BYTES", "2000"),
    ("ANABRANCH_TASKS_REPLAY_COMMIT_BYTES", "20000"),
];

/// The updates of each key are numbered without gap or repeat.
pub fn assert_outputs(client: &Client, partitions: u32, step: &str) {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for partition in 0..partitions {
        for record in client.records("t-out", partition) {
            let count = counts.entry(record["key"].as_str().unwrap().to_owned()).or_default();
            *count += 1;
            assert_eq!(record["value"]["count"], *count, "{step}: {record}");
        }
    }
}

fn live(status: &Value) -> Vec<u64> {
    let generations = status["generations"].as_array().unwrap().iter();
    generations.filter(|g| g["phase"] == "live").map(|g| g["number"].as_u64().unwrap()).collect()
}

#[test]
fn a_kill_at_any_step_of_a_swap_leaves_one_live_generation() {
    let seed = seed();
    for step in STEPS {
        let mut random = fastrand::Rng::with_seed(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host::on(dir.path(), &SMALL);
        host.partitions("in", 2);
        let spec = json!({ "swap": { "warm_lease": "0s" } });
        deploy(&host, "t", &["in"], &spec);
        for _ in 0..4 {
            host.append("in", &records(&mut random, 500));
        }
        wait_idle(&host, "t");
        host.stop();

        let mut environment = SMALL.to_vec();
        environment.push(("ANABRANCH_CRASH_AT", step));
        let mut host = Host::on(dir.path(), &environment);
        let client = host.client();
        let request = json!({ "plugin": client.push("fixture_tally") });
        // The host may be gone before it answers, or before it takes the records.
        let _ = client.try_post("/v1/deployments/t/swap", &request);
        let mut sure = 2_000;
        for _ in 0..200 {
            if client.try_produce("in", &lines(&records(&mut random, 10))).is_err() {
                break;
            }
            sure += 10;
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(host.ended(), None, "the host was killed by a signal at {step}");

        let mut host = Host::on(dir.path(), &SMALL);
        let client = host.client();
        wait_idle(&client, "t");
        let status = client.status("t");
        assert_eq!(live(&status), [status["live"].as_u64().unwrap()], "{step}: {status}");
        let appended: usize = (0..2).map(|p| client.records("in", p).len()).sum();
        assert!(appended >= sure, "{step}: {sure} were acknowledged, {appended} are there");
        // A swap that was begun goes on by itself; one that was not recorded is asked for again.
        if status["generations"].as_array().unwrap().len() == 1 {
            swap(&client, "t", &json!({}));
        }
        client.wait_live("t", 2);
        client.wait_processed("t", 2, appended as u64);
        assert_eq!(stored_tallies(&client, "t", 2), plain_tallies(&client, "in", 2), "{step}");
        assert_outputs(&client, 2, step);
        host.stop();
    }
}

#[test]
fn kills_leave_one_order_of_several_inputs() {
    let mut random = fastrand::Rng::with_seed(seed());
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::on(dir.path(), &SMALL);
    ["a", "b"].iter().for_each(|topic| host.partitions(topic, 1));
    deploy(&host, "t", &["a", "b"], &json!({}));
    for n in 0..60 {
        // Times that fall: an order made anew from them would not be the one that was taken.
        let mut some = records(&mut random, 20);
        some.iter_mut().for_each(|record| record["timestamp"] = json!(1_000 - n));
        host.append(["a", "b"][random.usize(0..2)], &some);
        if n % 15 == 14 {
            host.kill();
            host = Host::on(dir.path(), &SMALL);
        }
    }
    swap(&host, "t", &json!({}));
    host.wait_live("t", 2);
    for generation in [1, 2] {
        host.wait_processed("t", generation, 1_200);
    }
    assert_eq!(stored_tallies(&host, "t", 1), stored_tallies(&host, "t", 2));
    assert_outputs(&host, 1, "kills");
}
