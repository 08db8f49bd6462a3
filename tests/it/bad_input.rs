//! Bad input gets one clear sentence: what, where, what to do. Nothing is lost, nothing panics.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::{Host, anabranch, outcome};

/// The number of records in a topic's first partition.
fn count(host: &Host, topic: &str) -> u64 {
    host.get(&format!("/v1/topics/{topic}")).ok()["partitions"][0]["records"].as_u64().unwrap()
}

#[test]
fn an_unknown_topic() {
    let host = Host::start();
    let says = ["no topic nope", "create it"];
    host.get("/v1/topics/nope").refused(404, "topic_not_found", &says);
    host.produce("nope", "{\"value\":1}").refused(404, "topic_not_found", &says);
    let records = host.get("/v1/topics/nope/partitions/0/records");
    records.refused(404, "topic_not_found", &says);
    let (code, _, error) = host.cli(&["consume", "nope"]);
    assert_eq!(code, 3, "{error}");
    assert!(error.contains("no topic nope"), "{error}");
}

#[test]
fn an_offset_out_of_range() {
    let host = Host::start();
    host.topic("t", &json!({}));
    host.produce("t", "{\"value\":1}\n{\"value\":2}").ok();
    let reply = host.get("/v1/topics/t/partitions/0/records?from=3");
    reply.refused(416, "offset_out_of_range", &["offset 3", "partition 0", "will be at 2"]);
    assert_eq!(reply.body["next_offset"], 2);
    // Also above all that offsets can be, and for who would wait for it.
    for from in [1 << 53, u64::MAX] {
        for query in [format!("from={from}"), format!("from={from}&follow=true")] {
            let reply = host.get(&format!("/v1/topics/t/partitions/0/records?{query}"));
            reply.refused(416, "offset_out_of_range", &["will be at 2"]);
        }
    }
    host.get("/v1/topics/t/partitions/7/records").refused(
        404,
        "partition_not_found",
        &["topic t", "no partition 7", "has 1"],
    );
    let words = ["from=soon", "earliest", "latest"];
    host.get("/v1/topics/t/partitions/0/records?from=soon").refused(400, "invalid_query", &words);
}

#[test]
fn a_malformed_line() {
    let host = Host::start();
    host.topic("t", &json!({}));
    let mut lines: Vec<String> = (1..=6_000).map(|n| format!("{{\"value\":{n}}}")).collect();
    lines[5_011] = "{\"value\":".to_owned();
    let reply = host.produce("t", &lines.join("\n"));
    reply.refused(400, "malformed_record", &["line 5012", "nothing of this request was appended"]);
    assert_eq!(reply.body["line"], 5_012);
    assert_eq!(count(&host, "t"), 0, "all or nothing");

    let file = host.file("bad.ndjson", lines.join("\n").as_bytes());
    let file = file.to_str().unwrap();
    let (code, _, error) = host.cli(&["produce", "t", "--format", "records", file]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("bad.ndjson line 5012: "), "{error}");
}

#[test]
fn a_record_that_is_too_large() {
    let host = Host::start_with(&[
        ("ANABRANCH_STORAGE_MAX_VALUE_BYTES", "100"),
        ("ANABRANCH_HTTP_MAX_BODY_BYTES", "1000"),
    ]);
    host.topic("t", &json!({}));
    let large = format!("{{\"value\":1}}\n{{\"value\":\"{}\"}}", "x".repeat(200));
    let says = ["line 2", "value has 202 bytes", "limit is 100"];
    host.produce("t", &large).refused(413, "record_too_large", &says);
    let whole = host.produce("t", &"{\"value\":1}\n".repeat(100));
    whole.refused(413, "body_too_large", &["1000 bytes", "in parts"]);
    assert_eq!(count(&host, "t"), 0);
}

#[test]
fn a_wrong_content_type() {
    let host = Host::start();
    host.topic("t", &json!({}));
    let reply = host.send("POST", "/v1/topics/t/records", "text/csv", b"a,b");
    let says = ["\"text/csv\"", "application/x-ndjson"];
    reply.refused(415, "unsupported_media_type", &says);
    let reply = host.send("PUT", "/v1/topics/u", "text/plain", b"{}");
    reply.refused(415, "unsupported_media_type", &["application/json"]);
    let utf16 = "application/x-ndjson; charset=utf-16";
    let reply = host.send("POST", "/v1/topics/t/records", utf16, b"{\"value\":1}");
    reply.refused(415, "unsupported_media_type", &["utf-16", "in UTF-8"]);
    let reply = host.send("PUT", "/v1/topics/u", "application/json", b" [2]");
    reply.refused(400, "invalid_body", &["a JSON object is expected"]);
    assert_eq!(count(&host, "t"), 0);
    let utf8 = "application/x-ndjson; charset=\"UTF-8\"";
    host.send("POST", "/v1/topics/t/records", utf8, b"{\"value\":1}").ok();
}

#[test]
fn a_text_file_pushed_as_a_plugin() {
    let host = Host::start();
    let text = host.file("plugin.rs", b"fn main() {}\n");
    let (code, _, error) = host.cli(&["plugin", "push", text.to_str().unwrap()]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("plugin.rs") && error.contains("text file"), "{error}");
    assert_eq!(host.get("/v1/plugins").ok(), json!([]), "nothing was kept");
}

#[test]
fn a_deployment_with_an_unknown_key() {
    let host = Host::start();
    let spec = json!({"name": "d", "plugin": "sha256:0", "inputs": ["t"], "inptus": []});
    host.put("/v1/deployments/d", &spec).refused(400, "invalid_body", &["`inptus`", "`inputs`"]);
    let file = host.file("d.toml", b"name = 'd'\nplugin = 'p.wasm'\ninputs = []\ninptus = []\n");
    let (code, _, error) = host.cli(&["deploy", file.to_str().unwrap()]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("d.toml") && error.contains("unknown field `inptus`"), "{error}");
}

#[test]
fn a_deployment_that_says_too_much() {
    let host = Host::start();
    host.topic("t", &json!({}));
    let digest = host.push("count");
    let spec = |config: &str| json!({"name": "d", "plugin": digest, "inputs": ["t"], "outputs": {"counts": "o"}, "config": config});
    let long = "x".repeat(2 << 20);
    let says = ["[config] has 2097154 bytes", "limit is 1048576", "topic"];
    host.put("/v1/deployments/d", &spec(&long)).refused(400, "invalid_config", &says);
    host.put("/v1/deployments/d", &spec("")).ok();
    let swap = |more: serde_json::Value| {
        let mut request = json!({"plugin": digest});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        host.post("/v1/deployments/d/swap", &request)
    };
    let mut beyond = spec("");
    beyond["limits"] = json!({"deadline_ms": u64::MAX});
    let says = ["[limits]", "deadline_ms is 18446744073709551615", "between 100 and 3600000"];
    beyond["name"] = json!("e");
    host.put("/v1/deployments/e", &beyond).refused(400, "invalid_limits", &says);
    let says = ["[config] has 2097154 bytes", "limit is 1048576", "topic"];
    swap(json!({"config": long})).refused(400, "invalid_config", &says);
    swap(json!({"reason": long})).refused(400, "invalid_reason", &["2097152", "limit is 4096"]);
    assert_eq!(host.status("d")["generations"].as_array().unwrap().len(), 1);
}

#[test]
fn a_cycle_of_deployments() {
    let host = Host::start();
    host.topic("a", &json!({}));
    host.deploy("first", "passthrough", &["a"], &json!({"records": "b"}));
    let digest = host.push("passthrough");
    let outputs = json!({"records": "a"});
    let back = json!({"name": "second", "plugin": digest, "inputs": ["b"], "outputs": outputs});
    let says = ["second → a → first → b → second", "break the cycle"];
    let reply = host.put("/v1/deployments/second", &back);
    reply.refused(400, "cycle", &says);
    let own =
        json!({"name": "own", "plugin": digest, "inputs": ["c"], "outputs": {"records": "c"}});
    host.topic("c", &json!({}));
    host.put("/v1/deployments/own", &own).refused(400, "cycle", &["own → c → own"]);
    assert_eq!(host.get("/v1/deployments").ok().as_array().map(Vec::len), Some(1));
}

#[test]
fn a_setting_that_makes_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value, says) in [
        ("HTTP_MAX_HEADERS", "9223372036854775807", "http.max_headers"),
        ("TASKS_WORKERS", "9223372036854775807", "tasks.workers"),
        ("TASKS_BATCH_MAX_BYTES", "0", "tasks.batch_max_bytes"),
        ("STORAGE_SYNC_TIMEOUT_MS", "0", "storage.sync_timeout_ms"),
    ] {
        let host = anabranch()
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(dir.path().join("data"))
            .env(format!("ANABRANCH_{name}"), value)
            .output();
        let (code, _, error) = outcome(&host.unwrap());
        assert_eq!(code, 1, "{error}");
        let says = format!("{says} is {value}, it must be between");
        assert!(error.contains(&says) && !error.contains("panicked"), "{error}");
    }
}

#[test]
fn a_second_host_on_the_same_data() {
    let host = Host::start();
    let second =
        anabranch().args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(host.data()).output();
    let (code, out, error) = outcome(&second.unwrap());
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    let dir = host.data();
    assert!(error.contains(dir.to_str().unwrap()) && error.contains("another host"), "{error}");
    assert_eq!(host.get("/readyz").status, 200, "the first one serves on");
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let host = anabranch().args(["serve", "--listen", &address, "--data"]).arg(&data).output();
    let (code, _, error) = outcome(&host.unwrap());
    assert_eq!(code, 1, "{error}");
    assert!(error.contains(&address) && error.contains("--listen"), "{error}");
    assert!(!data.exists(), "the data directory was not touched");
}

#[test]
fn an_address_that_others_reach() {
    let dir = tempfile::tempdir().unwrap();
    let host = anabranch()
        .args(["serve", "--listen", "0.0.0.0:0", "--data"])
        .arg(dir.path().join("data"))
        .output();
    let (code, _, error) = outcome(&host.unwrap());
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("0.0.0.0:0") && error.contains("--insecure"), "{error}");
}

/// A place that cannot be written, although permissions say nothing to a superuser.
fn make_read_only(path: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o555)).expect("our own");
    match std::fs::write(path.join("probe"), b"") {
        Err(_) => path.to_owned(),
        // A superuser writes anywhere but into the kernel's own file systems.
        Ok(()) => PathBuf::from("/sys/kernel"),
    }
}

#[test]
fn a_read_only_directory() {
    let dir = tempfile::tempdir().unwrap();
    let place = make_read_only(dir.path()).join("anabranch-data");
    let host =
        anabranch().args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&place).output();
    let (code, _, error) = outcome(&host.unwrap());
    assert_eq!(code, 1, "{error}");
    assert!(error.contains(place.to_str().unwrap()) && error.contains("writable"), "{error}");
}

#[test]
fn a_page_of_another_site() {
    let host = Host::start();
    let port = host.url().rsplit(':').next().unwrap();
    let ask = |path: &str, headers: &[(&str, &str)]| host.ask("GET", path, headers, b"").unwrap();
    let lured = format!("anabranch.example.org:{port}");
    // Its name was made to lead here, so its origin fits what it asks for.
    let origin = format!("http://{lured}");
    for path in ["/v1/topics", "/metrics", "/openapi.json"] {
        let reply = ask(path, &[("host", &lured), ("origin", &origin)]);
        reply.refused(403, "foreign_host", &[&lured, "localhost"]);
    }
    for name in ["127.0.0.1", "localhost", "[::1]"] {
        let own = format!("{name}:{port}");
        let origin = format!("http://{own}");
        assert_eq!(ask("/v1/topics", &[("host", &own), ("origin", &origin)]).status, 200);
        let reply = ask("/v1/topics", &[("host", &own), ("origin", "https://example.org")]);
        reply.refused(403, "foreign_origin", &["https://example.org"]);
    }
}

#[test]
fn what_no_route_takes() {
    let host = Host::start();
    host.get("/v1/nope").refused(404, "route_not_found", &["/v1/nope", "/openapi.json"]);
    host.get("/v1/topics?x=1").refused(400, "invalid_query", &["unknown field `x`"]);
    let patch = host.send("PATCH", "/v1/topics", "application/json", b"{}");
    patch.refused(405, "method_not_allowed", &["PATCH"]);
    host.put("/v1/topics/Bad", &json!({})).refused(400, "invalid_name", &["\"Bad\"", "a-z"]);
    let unreached = anabranch().args(["--url", "http://127.0.0.1:1", "status"]).output();
    let (code, _, error) = outcome(&unreached.unwrap());
    assert_eq!(code, 6, "{error}");
    assert!(error.contains("http://127.0.0.1:1") && error.contains("anabranch serve"), "{error}");
}
