//! Serving: records in and out, followers through swaps and restarts, and the way a host stops.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Host, PATIENCE, guest, wait_until};

/// `n` flights of one carrier.
fn flights(carrier: &str, n: usize) -> String {
    let line =
        json!({"key": carrier, "value": {"carrier": carrier, "dep_delay": 20}, "timestamp": 5});
    format!("{line}\n").repeat(n)
}

#[test]
fn records_come_out_as_they_went_in() {
    let host = Host::start();
    host.topic("t", &json!({"partitions": 2}));
    let lines = concat!(
        "{\"key\":\"k\",\"value\":{\"a\" : 1.50},\"timestamp\":7,\"partition\":1,",
        "\"headers\":[[\"h\",\"1\"],[\"h\",null]]}\n",
        "{\"value\":null,\"timestamp\":\"1970-01-01T00:00:01Z\",\"partition\":1}\n",
    );
    let produced = host.produce("t", lines).ok();
    assert_eq!(produced, json!({"appended": 2, "partitions": {"1": {"next_offset": 2}}}));
    let page = host.get("/v1/topics/t/partitions/1/records");
    let expected = concat!(
        "{\"key\":\"k\",\"value\":{\"a\" : 1.50},\"timestamp\":7,",
        "\"headers\":[[\"h\",\"1\"],[\"h\",null]],\"partition\":1,\"offset\":0}\n",
        "{\"key\":null,\"value\":null,\"timestamp\":1000,\"partition\":1,\"offset\":1}\n",
    );
    assert_eq!(page.text, expected);
    assert_eq!((page.number("anabranch-next-offset"), page.number("anabranch-end-offset")), (2, 2));
    let again = host.produce("t", &page.text).ok();
    assert_eq!(again["partitions"]["1"]["next_offset"], 4, "what was consumed can be produced");

    let copies = host.get("/v1/topics/t/partitions/1/records?from=2");
    let moved =
        expected.replace("\"offset\":0", "\"offset\":2").replace("\"offset\":1", "\"offset\":3");
    assert_eq!(copies.text, moved);

    let host = host.restart();
    let page = host.get("/v1/topics/t/partitions/1/records?limit=2");
    assert_eq!(page.text, expected, "and it lasts");
    assert_eq!(page.number("anabranch-next-offset"), 2);
    assert_eq!(page.number("anabranch-end-offset"), 4);
    let latest = host.get("/v1/topics/t/partitions/1/records?from=latest");
    assert_eq!((latest.text.as_str(), latest.number("anabranch-next-offset")), ("", 4));
}

#[test]
fn a_time_finds_its_record_sealed_or_not() {
    // Budgets of a few records: what is older than the last ones is in segments.
    let host = Host::start_with(&[("ANABRANCH_STORAGE_HEAD_BYTES", "2000")]);
    host.topic("t", &json!({}));
    // Every second has two records, from 2013-01-01T00:00:00Z on; the third minute is out of order.
    let second = |n: i64| match n / 2 {
        s @ 120..180 => 299 - s,
        s => s,
    };
    let start = 1_356_998_400_000;
    let records: Vec<Value> = (0..600)
        .map(|n| json!({"value": "x".repeat(50), "timestamp": start + 1_000 * second(n)}))
        .collect();
    for some in records.chunks(40) {
        host.append("t", some);
    }
    let segments = || {
        let log = host.data().join("segments/1");
        std::fs::read_dir(log).map_or(0, |files| files.count())
    };
    wait_until("most is sealed", || segments() > 1);
    let fresh = Host::start();
    fresh.topic("t", &json!({}));
    fresh.append("t", &records);
    assert!(!fresh.data().join("segments/1").exists(), "all is in the head");
    for (host, place) in [(&host, "sealed"), (&fresh, "in the head")] {
        let ask = |from: &str| {
            let path = format!("/v1/topics/t/partitions/0/records?limit=1&from={from}");
            host.get(&path).ok()["offset"].as_i64()
        };
        for n in [0, 1, 59, 60, 119, 120, 150, 179, 180, 240, 299] {
            let time = format!("2013-01-01T00:{:02}:{:02}Z", n / 60, n % 60);
            let first = (0..600).find(|i| second(*i) >= n);
            assert_eq!(ask(&time), first, "{time}, {place}");
        }
        assert_eq!(ask("2012-12-31T23:59:59.999Z"), Some(0));
        assert_eq!(ask("2013-01-01T00:00:00.001Z"), Some(2), "the first at or after it");
        assert_eq!(ask("2013-01-01T01:00:01%2B01:00"), Some(2), "a time in another zone");
        assert_eq!(ask("2014-01-01T00:00:00Z"), None, "a time to come: the end");
    }
}

#[test]
fn the_surface_is_described() {
    let host = Host::start();
    let document = host.get("/openapi.json").ok();
    assert!(document["paths"]["/v1/topics/{topic}/records"]["post"].is_object());
    for (path, item) in document["paths"].as_object().unwrap() {
        if item["get"].is_object() && path != "/v1/events" {
            let filled = path.replace("{partition}", "0").replace("{generation}", "1");
            let reply = host.get(&filled.replace(['{', '}'], "x"));
            assert_ne!(reply.body["code"], "route_not_found", "{path}");
        }
    }
    let metrics = host.get("/metrics");
    assert!(metrics.text.contains("anabranch_head_bytes"), "{}", metrics.text);
}

#[test]
fn a_follower_sees_each_mount_once_and_the_swaps_between() {
    let host = Host::start();
    host.topic("flights", &json!({}));
    host.produce("flights", &flights("AA", 10)).ok();
    host.deploy("fd", "flights_delays_v1", &["flights"], &json!({"delays": "delays"}));
    let follow = "/v1/topics/delays/partitions/0/records?follow=true";
    let mut stream = host.events(follow, None);
    let flown = |event: &(String, String, Value)| event.2["value"]["flights"].as_u64().unwrap();
    let first: Vec<_> = stream.by_ref().take(10).collect();
    assert_eq!(first.iter().map(flown).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());

    let digest = host.push("flights_delays_v2");
    host.post("/v1/deployments/fd/swap", &json!({"plugin": digest})).ok();
    host.wait_live("fd", 2);
    host.produce("flights", &flights("AA", 2)).ok();
    let (id, kind, swap) = stream.next().unwrap();
    assert_eq!((kind.as_str(), &swap["generation_to"]), ("swap", &json!(2)));
    assert_eq!(id, swap["next_offset"].to_string());
    let after: Vec<_> = stream.by_ref().take(2).collect();
    assert_eq!(after.iter().map(flown).collect::<Vec<_>>(), [11, 12]);

    host.post("/v1/deployments/fd/rollback", &json!({})).ok();
    assert_eq!(stream.next().unwrap().2["generation_to"], 1);
    host.produce("flights", &flights("AA", 1)).ok();
    assert_eq!(flown(&stream.next().unwrap()), 13);

    // Who reconnects goes on after the event that it saw last, across both swaps.
    let resumed: Vec<_> = host.events(follow, Some(&first[7].0)).take(7).collect();
    let kinds: Vec<&str> = resumed.iter().map(|event| event.1.as_str()).collect();
    assert_eq!(kinds, ["record", "record", "swap", "record", "record", "swap", "record"]);
    let counts: Vec<_> = resumed.iter().filter(|event| event.1 == "record").map(flown).collect();
    assert_eq!(counts, [9, 10, 11, 12, 13]);

    // A page ends at a swap, and says so.
    let page = host.get(&format!("/v1/topics/delays/partitions/0/records?from={}", first[7].0));
    assert_eq!(page.text.lines().count(), 2);
    assert!(page.headers.contains_key("anabranch-swap"));
    assert_eq!(page.number("anabranch-next-offset").to_string(), id);

    let told: Vec<_> = host.events("/v1/events", Some("0")).take(4).map(|event| event.1).collect();
    assert_eq!(told, ["deployed", "swap-started", "caught-up", "promoted"]);
}

#[test]
fn a_stopping_host_drains_and_says_so() {
    let mut host = Host::start();
    host.topic("t", &json!({}));
    let stream = host.events("/v1/topics/t/partitions/0/records?from=latest", None);
    // A request that is under way while the host is asked to stop.
    let body = "{\"value\":1}\n{\"value\":2}";
    let mut slow = TcpStream::connect(host.url().trim_start_matches("http://")).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "POST /v1/topics/t/records HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    slow.write_all(head.as_bytes()).unwrap();
    slow.write_all(&body.as_bytes()[..5]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    host.terminate();
    wait_until("the host is not ready", || host.get("/readyz").status != 200);
    host.get("/readyz").refused(503, "stopping", &["stopping"]);
    host.get("/v1/topics").refused(503, "stopping", &["stopping"]);
    assert_eq!(host.get("/healthz").status, 200);
    assert_eq!(stream.count(), 0, "streams end, and end cleanly");
    slow.write_all(&body.as_bytes()[5..]).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"appended\":2"), "{answer}");
    assert_eq!(host.ended(), Some(0));
}

#[test]
fn a_stopping_host_waits_for_no_client_beyond_its_limit() {
    let mut host = Host::start_with(&[("ANABRANCH_HTTP_DRAIN_MS", "300")]);
    host.topic("t", &json!({}));
    let mut stalled = TcpStream::connect(host.url().trim_start_matches("http://")).unwrap();
    let head =
        "POST /v1/topics/t/records HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20\r\n\r\n{";
    stalled.write_all(head.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let started = std::time::Instant::now();
    host.terminate();
    assert_eq!(host.ended(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn the_command_line_does_the_whole_round() {
    let host = Host::start();
    let run = |args: &[&str]| {
        let (code, out, error) = host.cli(args);
        assert_eq!(code, 0, "{args:?}: {error}");
        out
    };
    run(&["topic", "create", "flights", "--partitions", "2"]);
    let lines: String = (0..5_000)
        .map(|n| format!("{{\"carrier\":\"C{}\",\"dep_delay\":{},\"t\":{n}}}\n", n % 7, n % 30))
        .collect();
    let file = host.file("flights.ndjson", lines.as_bytes());
    let file = file.to_str().unwrap();
    let fields = ["--key", "carrier", "--timestamp", "t"];
    let produced = run(&[&["--json", "produce", "flights", file][..], &fields].concat());
    let produced: Value = serde_json::from_str(&produced).unwrap();
    assert_eq!(produced["appended"], 5_000);
    let consumed = run(&["consume", "flights", "--format", "values"]);
    let (mut sent, mut got): (Vec<_>, Vec<_>) =
        (lines.lines().collect(), consumed.lines().collect());
    sent.sort_unstable();
    got.sort_unstable();
    assert_eq!(sent, got);

    host.file("v1.wasm", &guest("flights_delays_v1"));
    let v2 = host.file("v2.wasm", &guest("flights_delays_v2"));
    let spec =
        "name = 'fd'\nplugin = 'v1.wasm'\ninputs = ['flights']\n[outputs]\ndelays = 'delays'\n";
    let spec = host.file("fd.toml", spec.as_bytes());
    run(&["deploy", spec.to_str().unwrap(), "--wait"]);
    let v2 = v2.to_str().unwrap();
    let swapped = run(&["swap", "fd", "--plugin", v2, "--approve", "manual", "--wait"]);
    assert!(swapped.contains("anabranch promote fd"), "{swapped}");
    run(&["promote", "fd"]);
    let status = run(&["status", "fd"]);
    assert!(status.contains("live") && status.contains("warm"), "{status}");
    let table = run(&["store", "scan", "fd", "delays"]);
    assert_eq!(table.lines().count(), 8, "{table}");
    assert_eq!(host.cli(&["store", "get", "fd", "delays", "C9"]).0, 3);
    assert_eq!(host.cli(&["reject", "fd"]).0, 4);
    run(&["rollback", "fd"]);
    let before = run(&["consume", "delays"]);
    run(&["undeploy", "fd"]);
    assert_eq!(run(&["consume", "delays"]), before, "an output outlives its deployment");
    run(&["topic", "delete", "delays"]);
}

#[test]
fn who_waits_is_told_of_a_failure() {
    let host = Host::start();
    host.topic("in", &json!({}));
    host.append("in", &[json!({"key": "k", "value": 1})]);
    host.file("tally.wasm", &guest("fixture_tally"));
    let deploy = |name: &str, config: &str| {
        let spec = format!(
            "name = '{name}'\nplugin = 'tally.wasm'\ninputs = ['in']\non_poison = 'stop'\n\
             [outputs]\ntallies = '{name}-out'\n[config]\n{config}"
        );
        let file = host.file(&format!("{name}.toml"), spec.as_bytes());
        host.cli(&["deploy", file.to_str().unwrap(), "--wait"])
    };
    let failed = |(code, out, error): (i32, String, String), parts: &[&str]| {
        assert_eq!((code, out.as_str()), (1, ""), "{error}");
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    };
    failed(deploy("refuses", "fails_to_start = true"), &["refuses", "asked not to start"]);
    failed(deploy("traps", "traps_always = true"), &["traps stopped", "asked to trap"]);

    assert_eq!(deploy("fine", "").0, 0);
    let plugin = host.file("tally.wasm", &guest("fixture_tally"));
    for (config, why) in
        [("fails_to_start = true", "asked not to start"), ("traps_always = true", "asked to trap")]
    {
        let config = host.file("config.toml", config.as_bytes());
        let (plugin, config) = (plugin.to_str().unwrap(), config.to_str().unwrap());
        let swap = ["swap", "fine", "--plugin", plugin, "--config", config, "--wait"];
        failed(host.cli(&swap), &["generation", "of fine failed", why]);
    }
    assert_eq!(host.status("fine")["live"], 1);
}
