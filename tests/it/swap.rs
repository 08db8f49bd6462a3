//! Swaps under live traffic: what followers and producers see, what a bad candidate leaves, and that
//! both generations are exact.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Host, anabranch, seed, wait_until};

/// The order-dependent number that the tally keeps, computed plainly.
pub fn tally(order: u64, input: u64, offset: u64) -> u64 {
    order.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(((input << 48) ^ offset) + 1)
}

/// What the tally's store must hold after these inputs were taken one after the other.
pub fn plain_tallies(client: &Client, topic: &str, partitions: u32) -> BTreeMap<String, Value> {
    let mut tallies: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for partition in 0..partitions {
        for record in client.records(topic, partition) {
            if record["value"] == "poison" {
                continue;
            }
            let entry = tallies.entry(record["key"].as_str().unwrap().to_owned()).or_default();
            entry.0 += 1;
            entry.1 = tally(entry.1, 0, record["offset"].as_u64().unwrap());
        }
    }
    let show = |(count, order): (u64, u64)| json!({ "count": count, "order": order });
    tallies.into_iter().map(|(key, tally)| (key, show(tally))).collect()
}

/// The tally's store of a generation.
pub fn stored_tallies(client: &Client, name: &str, generation: u32) -> BTreeMap<String, Value> {
    let entries = client.store(name, "tallies", generation).into_iter();
    entries.map(|e| (e["key"].as_str().unwrap().to_owned(), e["value"].clone())).collect()
}

/// Deploys the tally over `inputs`; its output topic is the name and `-out`.
pub fn deploy(client: &Client, name: &str, inputs: &[&str], more: &Value) {
    let mut spec = json!({
        "name": name, "plugin": client.push("fixture_tally"), "inputs": inputs,
        "outputs": { "tallies": format!("{name}-out") },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    client.put(&format!("/v1/deployments/{name}"), &spec).ok();
}

/// Asks for a swap to the tally again.
pub fn swap(client: &Client, name: &str, more: &Value) -> Value {
    let mut request = json!({ "plugin": client.push("fixture_tally") });
    for (key, value) in more.as_object().into_iter().flatten() {
        request[key] = value.clone();
    }
    client.post(&format!("/v1/deployments/{name}/swap"), &request).ok()
}

/// Records with seeded keys.
pub fn records(random: &mut fastrand::Rng, count: usize) -> Vec<Value> {
    let record = |_| json!({ "key": format!("k{}", random.u32(0..100)), "value": "x" });
    (0..count).map(record).collect()
}

/// Waits until all generations that run have read everything.
pub fn wait_idle(client: &Client, name: &str) {
    wait_until("nothing is left to read", || {
        let status = client.status(name);
        assert!(status["generations"][0]["failure"].is_null(), "{status}");
        let generations = status["generations"].as_array().unwrap().iter();
        generations.filter(|g| !g["tasks"].as_array().unwrap().is_empty()).all(|g| {
            let tasks = g["tasks"].as_array().unwrap();
            g["progress"]["remaining"] == 0 && tasks.iter().all(|task| task["state"] == "idle")
        })
    });
}

/// A producer that never stops, and the longest time that one of its requests took.
struct Producer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(u64, Duration)>,
}

impl Producer {
    /// About `rate` records a second, in small requests.
    fn start(client: &Client, topic: &str, rate: u64, seed: u64) -> Self {
        let (client, topic) = (client.clone(), topic.to_owned());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut produced, mut longest, began) = (0, Duration::ZERO, Instant::now());
            while !stopped.load(Ordering::SeqCst) {
                let batch = records(&mut random, 25);
                let asked = Instant::now();
                client.append(&topic, &batch);
                longest = longest.max(asked.elapsed());
                produced += 25;
                let due = Duration::from_secs_f64(produced as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
            (produced, longest)
        });
        Self { stop, thread }
    }

    fn finish(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// A follower of one partition, by server-sent events: what it saw, in order.
struct Follower {
    events: Arc<parking_lot::Mutex<Vec<(Instant, Value)>>>,
    seen: Arc<AtomicU64>,
}

impl Follower {
    fn start(host: &Host, topic: &str, partition: u32) -> Self {
        use std::io::BufRead as _;
        let url = format!(
            "{}/v1/topics/{topic}/partitions/{partition}/records?from=earliest&follow=true",
            host.url()
        );
        let events = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let seen = Arc::new(AtomicU64::new(0));
        let (sink, count) = (Arc::clone(&events), Arc::clone(&seen));
        std::thread::spawn(move || {
            let agent: ureq::Agent = ureq::Agent::config_builder().build().into();
            let response = agent.get(&url).header("accept", "text/event-stream").call().unwrap();
            let lines = std::io::BufReader::new(response.into_body().into_reader()).lines();
            let mut kind = String::new();
            // The stream ends with its host.
            for line in lines.map_while(Result::ok) {
                if let Some(event) = line.strip_prefix("event: ") {
                    event.clone_into(&mut kind);
                } else if let Some(data) = line.strip_prefix("data: ") {
                    let mut value: Value = serde_json::from_str(data).unwrap();
                    if kind == "swap" {
                        value["swap"] = json!(true);
                    } else {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                    sink.lock().push((Instant::now(), value));
                }
            }
        });
        Self { events, seen }
    }
}

#[test]
fn thirty_swaps_under_traffic_lose_and_double_nothing() {
    let seed = seed();
    let host = Host::start();
    let client = host.client();
    client.partitions("in", 1);
    deploy(&client, "t", &["in"], &json!({}));
    let follower = Follower::start(&host, "t-out", 0);
    let producer = Producer::start(&client, "in", 5_000, seed);
    wait_until("traffic flows", || follower.seen.load(Ordering::SeqCst) > 500);
    let mut pauses = Vec::new();
    for round in 0..30u32 {
        if round % 3 == 2 {
            client.post("/v1/deployments/t/rollback", &json!({})).ok();
        } else {
            let generation = swap(&client, "t", &json!({}))["generation"].as_u64().unwrap();
            client.wait_live("t", generation as u32);
        }
        pauses.push(client.status("t")["last_pause_ms"].as_f64().unwrap());
    }
    let (produced, longest_produce) = producer.finish();
    wait_idle(&client, "t");
    wait_until("the follower has seen all", || follower.seen.load(Ordering::SeqCst) >= produced);
    std::thread::sleep(Duration::from_millis(100));
    let events = follower.events.lock();
    let swaps = events.iter().filter(|(_, event)| event["swap"] == true).count();
    assert_eq!(swaps, 30, "a follower is told of every flip");
    assert_eq!(follower.seen.load(Ordering::SeqCst), produced, "each record once, seed {seed}");
    // The count in the n-th update of a key is n, whichever generation made it.
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (_, record) in events.iter().filter(|(_, event)| event["swap"] != true) {
        let count = counts.entry(record["key"].as_str().unwrap().to_owned()).or_default();
        *count += 1;
        assert_eq!(record["value"]["count"], *count, "{record}, seed {seed}");
    }
    let gap = events.windows(2).map(|pair| pair[1].0 - pair[0].0).max().unwrap_or_default();
    pauses.sort_by(f64::total_cmp);
    println!(
        "30 flips at 5,000 records/s: live tasks held {:.1} ms (median), {:.1} ms (longest); \
         longest gap of the follower {:.1} ms, of the producer {:.1} ms",
        pauses[15],
        pauses[29],
        gap.as_secs_f64() * 1e3,
        longest_produce.as_secs_f64() * 1e3,
    );
    let status = client.status("t");
    let expected = plain_tallies(&client, "in", 1);
    for number in [&status["live"], &status["warm"]] {
        let generation = number.as_u64().unwrap() as u32;
        assert_eq!(stored_tallies(&client, "t", generation), expected, "generation {generation}");
    }
}

#[test]
fn a_candidate_that_fails_leaves_no_trace() {
    // So small that a candidate has committed much before it comes to the record at which it fails.
    let mut host = Host::start_with(&[
        ("ANABRANCH_TASKS_BATCH_MAX_RECORDS", "50"),
        ("ANABRANCH_TASKS_NEAR_END_RECORDS", "10"),
        ("ANABRANCH_TASKS_REPLAY_COMMIT_BYTES", "2000"),
    ]);
    let client = host.client();
    client.partitions("in", 2);
    let mut random = fastrand::Rng::with_seed(3);
    deploy(&client, "t", &["in"], &json!({ "on_poison": "stop" }));
    client.append("in", &records(&mut random, 500));
    wait_idle(&client, "t");
    let seen = || {
        (
            stored_tallies(&client, "t", 1),
            [0, 1].map(|partition| client.records("t-out", partition)),
        )
    };
    let files = || {
        let logs = std::fs::read_dir(host.data().join("segments")).unwrap();
        let files = logs.flat_map(|log| std::fs::read_dir(log.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect::<std::collections::BTreeSet<_>>()
    };
    let (before, files_before) = (seen(), files());
    for (config, reason) in [
        (json!({ "fails_to_start": true }), "asked not to start"),
        (json!({ "traps_always": true }), "asked to trap"),
        (json!({ "traps_at": 200 }), "asked to trap there"),
    ] {
        let generation = swap(&client, "t", &json!({ "config": config }))["generation"].clone();
        wait_until("the candidate fails", || {
            let path = format!("/v1/deployments/t/generations/{generation}");
            let candidate = client.get(&path).ok();
            let failed = candidate["phase"] == "failed";
            if failed {
                let failure = candidate["failure"].as_str().unwrap();
                assert!(failure.contains(reason), "{failure}");
            }
            failed
        });
    }
    let status = client.status("t");
    assert_eq!((&status["live"], &status["candidate"]), (&json!(1), &Value::Null));
    assert_eq!(seen(), before);
    // What was there before the candidates is all that is there: they left no logs behind.
    wait_until("the candidates' files are gone", || files() == files_before);
    client.append("in", &records(&mut random, 10));
    client.wait_processed("t", 1, 510);
    host.stop();
}

#[test]
fn poison_is_found_alone_and_all_else_is_exact() {
    let host = Host::start();
    let client = host.client();
    client.partitions("in", 1);
    let mut random = fastrand::Rng::with_seed(5);
    let mut input = records(&mut random, 4_096);
    for index in [0, 1_777, 4_095] {
        input[index]["value"] = json!("poison");
    }
    client.append("in", &input);
    deploy(&client, "t", &["in"], &json!({}));
    client.wait_processed("t", 1, 4_096);
    let letters = client.records("t.dead-letters", 0);
    let places: Vec<_> = letters.iter().map(|l| header(l, "anabranch-offset")).collect();
    assert_eq!(places, ["0", "1777", "4095"]);
    assert!(header(&letters[0], "anabranch-reason").contains("poison"), "{}", letters[0]);
    assert_eq!(letters[1]["key"], input[1_777]["key"]);
    assert_eq!(stored_tallies(&client, "t", 1), plain_tallies(&client, "in", 1));
    assert_eq!(client.records("t-out", 0).len(), 4_093);
    // Whatever is swapped in meets the same three.
    swap(&client, "t", &json!({}));
    client.wait_live("t", 2);
    assert_eq!(stored_tallies(&client, "t", 2), stored_tallies(&client, "t", 1));
    assert_eq!(client.records("t.dead-letters", 0).len(), 3);
}

/// Random numbers belong to a record of a deployment: neither cuts nor workers, a restart, the host or the
/// generation change them.
#[test]
fn chance_is_the_same_wherever_batches_are_cut() {
    let seed = seed();
    let input = records(&mut fastrand::Rng::with_seed(seed), 3_000);
    let run = |batch: &str, workers: &str| {
        let dir = tempfile::tempdir().unwrap();
        let settings =
            [("ANABRANCH_TASKS_BATCH_MAX_RECORDS", batch), ("ANABRANCH_TASKS_WORKERS", workers)];
        let mut host = Host::on(dir.path(), &settings);
        host.partitions("in", 2);
        deploy(&host, "t", &["in"], &json!({ "config": { "chance": true } }));
        host.append("in", &input[..1_700]);
        wait_idle(&host, "t");
        host.kill();
        let host = Host::on(dir.path(), &settings);
        host.append("in", &input[1_700..]);
        wait_idle(&host, "t");
        swap(&host, "t", &json!({ "config": { "chance": true } }));
        host.wait_live("t", 2);
        wait_idle(&host, "t");
        [1, 2].map(|generation| stored_tallies(&host, "t", generation))
    };
    let [first, again] = run("1", "2");
    assert_eq!(first.values().filter_map(|t| t["count"].as_u64()).sum::<u64>(), 3_000);
    assert!(first == again, "another generation has other random numbers, SEED={seed}");
    for (batch, workers) in [("7", "1"), ("100000", "2")] {
        let same = run(batch, workers).iter().all(|tallies| *tallies == first);
        assert!(same, "batches of {batch}, {workers} workers, SEED={seed}");
    }
}

fn header(record: &Value, name: &str) -> String {
    let headers = record["headers"].as_array().unwrap();
    let found = headers.iter().find(|h| h[0] == name);
    found.unwrap_or_else(|| panic!("{record} has no {name}"))[1].as_str().unwrap().to_owned()
}

/// Everybody's commits wait behind one that goes through the head. So what a candidate makes before it knows
/// that little is left to read goes to files, if it is more than `tasks.follow_commit_bytes`.
#[test]
fn a_candidate_gives_the_head_little_at_once() {
    let host = Host::start();
    let client = host.client();
    client.partitions("in", 1);
    deploy(&client, "t", &["in"], &json!({}));
    let mut random = fastrand::Rng::with_seed(seed());
    for _ in 0..20 {
        client.append("in", &records(&mut random, 1_000));
    }
    wait_idle(&client, "t");
    let file_bytes = || {
        let text = client.get("/metrics").text;
        let name = "anabranch_segment_bytes{topic=\"t-out\",partition=\"0\"} ";
        let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        value.parse::<u64>().unwrap_or_else(|_| panic!("no {name}: {text}"))
    };
    assert_eq!(file_bytes(), 0);
    swap(&client, "t", &json!({}));
    client.wait_live("t", 2);
    assert!(file_bytes() > 0);
    client.append("in", &records(&mut random, 100));
    wait_idle(&client, "t");
    assert_eq!(stored_tallies(&client, "t", 2), plain_tallies(&client, "in", 1));
}

#[test]
fn a_gate_waits_for_its_operator() {
    let host = Host::start();
    let client = host.client();
    client.partitions("in", 2);
    deploy(&client, "t", &["in"], &json!({ "swap": { "warm_lease": "0s" } }));
    client.append("in", &records(&mut fastrand::Rng::with_seed(9), 300));
    wait_idle(&client, "t");
    let phase = |generation: usize| {
        client.status("t")["generations"][generation - 1]["phase"].as_str().unwrap().to_owned()
    };
    swap(&client, "t", &json!({ "approve": "manual", "reason": "to be turned down" }));
    wait_until("the gate is reached", || phase(2) == "caught-up");
    let again = json!({ "plugin": client.push("fixture_tally") });
    let second = client.post("/v1/deployments/t/swap", &again);
    assert_eq!((second.status, &second.body["code"]), (409, &json!("swap_under_way")));
    client.post("/v1/deployments/t/reject", &json!({})).ok();
    assert_eq!((phase(1).as_str(), phase(2).as_str()), ("live", "rejected"));
    swap(&client, "t", &json!({ "approve": "manual" }));
    wait_until("the gate is reached", || phase(3) == "caught-up");
    client.post("/v1/deployments/t/promote", &json!({})).ok();
    assert_eq!(phase(3), "live");
    // A lease of nothing: the old generation retires at once, and there is no way back to it.
    wait_until("the lease ends", || phase(1) == "retired");
    let back = client.post("/v1/deployments/t/rollback", &json!({}));
    assert_eq!((back.status, &back.body["code"]), (409, &json!("no_warm_generation")));
    assert_eq!(stored_tallies(&client, "t", 3), plain_tallies(&client, "in", 2));
    let old = client.get("/v1/topics/t-out/partitions/0/records?from=0");
    old.refused(410, "offset_retired", &[]);
    assert!(old.body["next_offset"].is_u64(), "{}", old.body);
}

#[test]
fn of_operators_at_once_one_is_heard() {
    let host = Host::start();
    host.partitions("in", 1);
    deploy(&host, "t", &["in"], &json!({}));
    let request = json!({ "plugin": host.push("fixture_tally"), "approve": "manual" });
    let client = host.client();
    let heard = |what: &str, body: &Value| {
        let ask = || client.post(&format!("/v1/deployments/t/{what}"), body).status;
        let all: Vec<u16> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).collect()
        });
        let heard = all.iter().filter(|status| **status < 300).count();
        assert!(heard <= 1, "{what}: {all:?}");
        assert!(all.iter().all(|status| *status < 300 || *status == 409), "{what}: {all:?}");
        heard == 1
    };
    for generation in 2..12 {
        wait_until("one swap is begun", || heard("swap", &request));
        wait_until("the gate is reached", || {
            let status = client.status("t");
            let mut all = status["generations"].as_array().unwrap().iter();
            all.any(|g| g["number"] == generation && g["phase"] == "caught-up")
        });
        wait_until("one promotion is heard", || heard("promote", &json!({})));
        assert_eq!(client.status("t")["live"], generation);
    }
}

#[test]
fn a_candidate_begins_where_it_is_told() {
    let host = Host::start();
    host.partitions("in", 1);
    let record =
        |i: usize| json!({ "key": format!("k{}", i % 7), "value": "x", "timestamp": i * 1_000 });
    host.append("in", &(0..400).map(record).collect::<Vec<_>>());
    deploy(&host, "t", &["in"], &json!({}));
    wait_idle(&host, "t");
    // Record 100 by its offset, record 250 by its time.
    for (generation, from, begin) in [(2, "100", 100), (3, "1970-01-01T00:04:10Z", 250)] {
        swap(&host, "t", &json!({ "from": from }));
        host.wait_live("t", generation);
        let mut expected: BTreeMap<String, u64> = BTreeMap::new();
        (begin..400).for_each(|i: usize| *expected.entry(format!("k{}", i % 7)).or_default() += 1);
        let stored = stored_tallies(&host, "t", generation).into_iter();
        let counts: BTreeMap<_, _> =
            stored.map(|(key, tally)| (key, tally["count"].as_u64().unwrap())).collect();
        assert_eq!(counts, expected, "from {from}");
        assert_eq!(host.records("t-out", 0).len(), 400 - begin);
    }
    let beyond = json!({ "plugin": host.push("fixture_tally"), "from": "401" });
    let reply = host.post("/v1/deployments/t/swap", &beyond);
    reply.refused(400, "offset_out_of_range", &["401", "0 to 400"]);
}

#[test]
fn a_lease_waits_for_those_who_still_read() {
    let mut host = Host::start();
    host.partitions("in", 1);
    deploy(&host, "up", &["in"], &json!({ "swap": { "warm_lease": "0s" } }));
    deploy(&host, "down", &["up-out"], &json!({}));
    host.append("in", &records(&mut fastrand::Rng::with_seed(1), 200));
    host.wait_processed("down", 1, 200);
    host.post("/v1/deployments/down/pause", &json!({})).ok();
    host.append("in", &records(&mut fastrand::Rng::with_seed(2), 100));
    wait_idle(&host, "up");
    swap(&host, "up", &json!({}));
    host.wait_live("up", 2);
    std::thread::sleep(Duration::from_millis(1_500));
    let phase = |host: &Host| host.status("up")["generations"][0]["phase"].clone();
    assert_eq!(phase(&host), "warm", "100 records of it are not read yet");
    // Also while nothing runs that could say where it stands.
    host.stop();
    let mut safe = anabranch();
    safe.args(["serve", "--safe", "--listen", "127.0.0.1:0", "--data"]).arg(host.data());
    let mut safe = safe.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(safe.try_wait().unwrap().is_none(), "it serves");
    safe.kill().unwrap();
    safe.wait().unwrap();
    let host = host.restart_stopped(&[]);
    assert_eq!(phase(&host), "warm");
    let processed = &host.status("down")["generations"][0]["progress"]["records"];
    assert_eq!(*processed, 200, "it is paused, and took a step at the start");
    assert_eq!(phase(&host), "warm");
    host.post("/v1/deployments/down/resume", &json!({})).ok();
    host.wait_processed("down", 1, 300);
    wait_until("the lease ends", || phase(&host) == "retired");
    host.append("in", &records(&mut fastrand::Rng::with_seed(3), 50));
    host.wait_processed("down", 1, 350);
}

#[test]
fn a_warm_generation_that_fails_stays_for_those_who_still_read() {
    let host = Host::start();
    host.partitions("in", 1);
    deploy(&host, "up", &["in"], &json!({ "config": { "traps_at": 250 }, "on_poison": "stop" }));
    deploy(&host, "down", &["up-out"], &json!({}));
    host.append("in", &records(&mut fastrand::Rng::with_seed(1), 200));
    host.wait_processed("down", 1, 200);
    host.post("/v1/deployments/down/pause", &json!({})).ok();
    host.append("in", &records(&mut fastrand::Rng::with_seed(2), 30));
    wait_idle(&host, "up");
    swap(&host, "up", &json!({ "config": {} }));
    host.wait_live("up", 2);
    host.append("in", &records(&mut fastrand::Rng::with_seed(3), 50));
    let first = |host: &Host| host.status("up")["generations"][0].clone();
    wait_until("the warm generation fails", || first(&host)["tasks"][0]["failure"].is_string());
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(first(&host)["phase"], "warm", "30 records of it are not read yet");
    let reply = host.post("/v1/deployments/up/rollback", &json!({}));
    reply.refused(409, "no_warm_generation", &["generation 1", "asked to trap there"]);
    host.post("/v1/deployments/down/resume", &json!({})).ok();
    host.wait_processed("down", 1, 280);
    wait_until("what was read is let go", || first(&host)["phase"] == "failed");
    assert!(first(&host)["failure"].as_str().unwrap().contains("asked to trap there"));
}

#[test]
fn several_inputs_are_taken_in_one_order_by_all_generations() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let host = Host::start_with(&[("ANABRANCH_TASKS_BATCH_MAX_RECORDS", "97")]);
    let client = host.client();
    for topic in ["a", "b", "c"] {
        client.partitions(topic, 2);
    }
    deploy(&client, "t", &["a", "b", "c"], &json!({}));
    let mut total = 0;
    let mut produce = |rounds: usize| {
        for _ in 0..rounds {
            let topic = ["a", "b", "c"][random.usize(0..3)];
            let count = random.usize(1..60);
            // Times that fall: an order made anew from them would not be the one that was taken.
            let mut some = records(&mut random, count);
            some.iter_mut().for_each(|record| record["timestamp"] = json!(1_000_000 - total));
            client.append(topic, &some);
            total += count as u64;
        }
        total
    };
    produce(60);
    swap(&client, "t", &json!({}));
    client.wait_live("t", 2);
    let all = produce(60);
    for generation in [1, 2] {
        client.wait_processed("t", generation, all);
    }
    assert_eq!(stored_tallies(&client, "t", 1), stored_tallies(&client, "t", 2));
    // The generation that followed leads now, and is followed in turn.
    client.post("/v1/deployments/t/rollback", &json!({})).ok();
    let all = produce(40);
    swap(&client, "t", &json!({}));
    client.wait_live("t", 3);
    client.wait_processed("t", 1, all);
    client.wait_processed("t", 3, all);
    assert_eq!(stored_tallies(&client, "t", 1), stored_tallies(&client, "t", 3));
}
