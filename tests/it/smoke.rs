use anabranch::config::Config;
use anabranch::deployment::*;
use anabranch::types::*;
use anabranch_tests::guest;
use std::time::{Duration, Instant};

fn wait(what: &str, mut f: impl FnMut() -> bool) {
    let t = Instant::now();
    while !f() {
        assert!(t.elapsed() < Duration::from_secs(20), "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn produce(r: &Registry, topic: &TopicName, rows: &[(String, String)]) {
    let mut b = RecordsBuilder::default();
    for (i, (k, v)) in rows.iter().enumerate() {
        b.push(i as i64, Some(k.as_bytes()), Some(v.as_bytes()), []);
    }
    let (tx, rx) = std::sync::mpsc::channel();
    r.produce(topic, b.finish(), None, Box::new(move |x| tx.send(x).unwrap()));
    rx.recv().unwrap().unwrap();
}

#[test]
fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.data.dir = dir.path().join("data");
    let r = Registry::open(&config, false).unwrap();
    let flights: TopicName = "flights".parse().unwrap();
    r.create_topic(&flights, &serde_json::from_str(r#"{"partitions":2}"#).unwrap()).unwrap();
    let row = |c: &str, d: &str| (c.to_string(), format!(r#"{{"carrier":"{c}","dep_delay":{d}}}"#));
    produce(&r, &flights, &[row("AA", "20"), row("UA", "null"), row("AA", "null"), row("DL", "1")]);
    let v1 = r.push_plugin(&guest("flights_delays_v1")).unwrap();
    let v2 = r.push_plugin(&guest("flights_delays_v2")).unwrap();
    let spec: DeploymentSpec = serde_json::from_value(serde_json::json!({
        "name": "fd", "plugin": v1.digest, "inputs": ["flights"], "outputs": {"delays": "delays"}
    }))
    .unwrap();
    r.deploy(&spec).unwrap();
    wait("live", || r.deployment("fd").unwrap().generations[0].progress.records == 4);
    let show = |r: &Registry| {
        let page = r
            .store_scan("fd", "delays", &StoreScan { limit: 100, ..StoreScan::default() })
            .unwrap();
        for e in &page.answer.entries {
            println!("{} {} {}", e.key, e.value, e.partition);
        }
    };
    show(&r);
    r.swap("fd", &serde_json::from_value(serde_json::json!({"plugin": v2.digest})).unwrap())
        .unwrap();
    wait("swapped", || r.deployment("fd").unwrap().live == 2);
    println!("{}", serde_json::to_string_pretty(&r.deployment("fd").unwrap()).unwrap());
    show(&r);
    produce(&r, &flights, &[row("AA", "0")]);
    wait("both", || {
        r.deployment("fd").unwrap().generations.iter().all(|g| g.progress.records == 5)
    });
    r.rollback("fd").unwrap();
    show(&r);
    println!("{:?}", r.deployment("fd").unwrap().last_pause_ms);
    println!("{}", serde_json::to_string(&r.topics()).unwrap());
    r.close();
    drop(r);
    let r = Registry::open(&config, false).unwrap();
    wait("restarted", || {
        r.deployment("fd")
            .unwrap()
            .generations
            .iter()
            .all(|g| g.tasks.iter().all(|t| t.state == "idle"))
    });
    show(&r);
    println!("{}", r.metrics());
    r.close();
}
