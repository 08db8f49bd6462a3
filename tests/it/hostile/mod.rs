//! Strangers' code: each hostile act is stopped at its limit, costs only itself, and leaves a clear
//! reason.
//!
//! What a guest does wrong while it runs is in `acts`; what is refused when it is pushed, in `pushes`;
//! what it says too much of, in `words`; `together` does it all at once. Beside every act a good
//! deployment goes on, and what it makes stays exact.

mod acts;
mod modules;
mod pushes;
mod together;
mod words;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use crate::support::{Client, wait_until};

/// The good deployment: `count` over the topic `good`.
struct Good {
    sent: usize,
}

impl Good {
    /// Deploys it.
    fn deploy(client: &Client) -> Self {
        client.topic("good", &json!({}));
        client.deploy("good", "count", &["good"], &json!({"counts": "good-counts"}));
        Self { sent: 0 }
    }

    /// Sends so many more records and checks that all that it has made is exactly right.
    fn stays_exact(&mut self, client: &Client, records: usize) {
        let key = |i: usize| format!("k{}", i % 100);
        let more: Vec<Value> = (self.sent..self.sent + records)
            .map(|i| json!({"key": key(i), "value": i, "timestamp": i}))
            .collect();
        client.append("good", &more);
        self.sent += records;
        client.wait_processed("good", 1, self.sent as u64);
        wait_until("good's counts are there", || {
            client.get("/v1/topics/good-counts").ok()["partitions"][0]["records"]
                == json!(self.sent)
        });
        let made = client.records("good-counts", 0);
        assert_eq!(made.len(), self.sent);
        for (i, record) in made.iter().enumerate() {
            assert_eq!(
                (record["key"].as_str(), count_of(record)),
                (Some(&*key(i)), i as i64 / 100 + 1)
            );
        }
    }
}

/// The bytes of a record's value.
pub fn value_of(record: &Value) -> Vec<u8> {
    match &record["value"] {
        Value::String(text) => text.as_bytes().to_vec(),
        other => BASE64_STANDARD.decode(other["$bytes"].as_str().expect("a value")).unwrap(),
    }
}

/// The count that a record of `count` says.
fn count_of(record: &Value) -> i64 {
    i64::from_le_bytes(value_of(record).try_into().expect("eight bytes"))
}

/// Deploys the guest of a digest over a topic of its own, `<name>-in`.
fn deploy(client: &Client, name: &str, digest: &str, config: &str, limits: &Value) {
    let input = format!("{name}-in");
    client.topic(&input, &json!({"format": "utf8"}));
    let outputs = match config {
        "" => json!({}),
        _ => json!({"out": format!("{name}-out"), "side": format!("{name}-side")}),
    };
    let spec = json!({
        "name": name, "plugin": digest, "inputs": [input], "outputs": outputs,
        "config": config, "limits": limits,
    });
    client.put(&format!("/v1/deployments/{name}"), &spec).ok();
}

/// Sends values to a deployment made by [`deploy`].
fn send(client: &Client, name: &str, values: &[&str]) {
    let records: Vec<Value> = values.iter().map(|value| json!({ "value": value })).collect();
    client.append(&format!("{name}-in"), &records);
}

/// The reasons and values of its dead letters.
fn dead_letters(client: &Client, name: &str) -> Vec<(String, String)> {
    let letters = client.records(&format!("{name}.dead-letters"), 0);
    let reason = |record: &Value| {
        let headers = record["headers"].as_array().unwrap().clone();
        let found = headers.iter().find(|header| header[0] == "anabranch-reason");
        found.expect("a dead letter has a reason")[1].as_str().unwrap().to_owned()
    };
    let value = |record: &Value| String::from_utf8(value_of(record)).unwrap();
    letters.iter().map(|record| (reason(record), value(record))).collect()
}
