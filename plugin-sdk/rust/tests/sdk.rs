//! The SDK's promises, through plugins that use all of it.

use anabranch_plugin::testing::{TestDriver, TestRecord, assert_cut_independent, record};
use anabranch_plugin::{
    Batch, Counter, Json, Level, Options, Output, Plugin, Record, Result, Setup, Store, bail, info,
    plugin,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sum {
    count: i64,
    total: f64,
}

/// Counts, and looks at what it says that it ignores where a key says so.
struct Ignoring {
    counts: Store<String, i64>,
    out: Output<Vec<u8>, Vec<u8>>,
}

impl Plugin for Ignoring {
    fn new(setup: &mut Setup) -> Result<Self> {
        setup.ignore_values();
        Ok(Self { counts: setup.store("counts"), out: setup.stream("out") })
    }

    fn process(&self, record: &Record<'_>) -> Result<()> {
        match record.key_str()? {
            "text" => record.text().map(drop),
            "json" => record.json::<serde_json::Value>().map(drop),
            "forward" => self.out.forward(record),
            "value" => record.value().map_or(Ok(()), |_| bail!("there is one")),
            key => self.counts.update(key, |count| *count += 1).map(drop),
        }
    }
}

#[test]
fn a_value_that_is_ignored_is_never_taken_for_a_tombstone() {
    let mut driver = TestDriver::<Ignoring>::new(json!({})).unwrap();
    let keys = ["a", "text", "json", "forward", "a", "value"];
    driver.send_all(keys.map(|key| record(key, "x")));
    assert_eq!(driver.store::<String, i64>("counts"), [("a".to_owned(), 2)]);
    let refused = driver.rejections();
    assert_eq!(refused.iter().map(|r| r.offset).collect::<Vec<_>>(), [1, 2, 3, 5]);
    assert!(refused.iter().all(|r| r.reason.contains("Setup::ignore_values")), "{refused:?}");
    assert!(driver.outputs("out").is_empty());
}

/// Does a little of everything, by the command in the record's value, and fails where it says so, after
/// everything else.
struct Everything {
    by_key: Store<String, Json<Sum>>,
    events: Store<(String, i64), String>,
    out: Output<Option<String>, String>,
    placed: Output<(), f64>,
    seen: Counter,
}

impl Plugin for Everything {
    fn new(setup: &mut Setup) -> Result<Self> {
        Ok(Self {
            by_key: setup.store("by-key"),
            events: setup.store_version("events", 3),
            out: setup.stream("out"),
            placed: setup.stream("placed").choosing_partitions(),
            seen: setup.counter("seen"),
        })
    }

    fn process(&self, record: &Record<'_>) -> Result<()> {
        self.seen.add(1);
        let (key, command) = (record.key_str()?, record.text()?);
        let time = record.stream_time();
        if command.contains("early-other") {
            self.add_to_another(key)?;
        }
        if command.contains("delete") {
            self.by_key.delete(key)?;
        } else {
            self.by_key.update(key, |sum| {
                sum.count += 1;
                sum.total += record.random().next_f64();
            })?;
        }
        if command.contains("late-other") {
            self.add_to_another(key)?;
        }
        let event = (key, record.offset() as i64 % 5);
        if command.contains("blind") {
            self.events.put(event, command)?;
        } else {
            let before = self.events.get(event)?.unwrap_or_default();
            self.events.put(event, &format!("{}{command}", before.len()))?;
        }
        if command.contains("scan") {
            for entry in self.events.scan_prefix::<String>(key) {
                let ((of, number), text) = entry?;
                assert_eq!(of, key);
                self.out.send(Some(key), &format!("{number}: {text}"))?;
                // Changes of the record after a scan must be undone as well.
                self.events.put((key, number), &format!("{text}."))?;
            }
            self.events.delete((key, 4))?;
            let counts: Result<Vec<_>> = self
                .by_key
                .scan(..)
                .map(|entry| entry.map(|(key, sum)| (key, sum.count)))
                .collect();
            self.out.send(Some(key), &format!("{:?}", counts?))?;
            let all: Result<Vec<_>> = self.events.scan(("b", i64::MIN)..("d", 0)).collect();
            self.out.send(None, &format!("{} from b to d at {time}", all?.len()))?;
        }
        let headers = Options::new().timestamp(time).header("command", Some(command.as_bytes()));
        self.out.send_with(Some(key), &record.random().below(100).to_string(), &headers)?;
        self.placed.send_with((), 0.5, &Options::new().partition(record.partition()))?;
        if command.contains("log") {
            info!("{key} at {time}");
        }
        if command.contains("panic") {
            panic!("asked to panic");
        }
        if command.contains("fail") {
            bail!("asked to fail at {}", record.offset());
        }
        Ok(())
    }
}

impl Everything {
    /// Counts under a key that is not the record's, but may be that of others.
    fn add_to_another(&self, key: &str) -> Result<()> {
        let other = if key == "a" { "b" } else { "a" };
        match self.by_key.get(other)? {
            Some(sum) if sum.count > 20 => self.by_key.delete(other),
            Some(sum) => self.by_key.put(other, &Sum { count: sum.count + 10, ..sum }),
            None => Ok(()),
        }
    }
}

plugin!(Everything);

/// A record to come: key, command, time and partition.
type Command = (&'static str, String, i64, u32);

fn commands(seed: u64, count: usize, panics: bool) -> Vec<Command> {
    let mut random = fastrand::Rng::with_seed(seed);
    let words = ["delete", "blind", "scan", "fail", "early-other", "late-other", "log", "panic"];
    let words = &words[..words.len() - usize::from(!panics)];
    (0..count)
        .map(|_| {
            let chosen: Vec<_> = words.iter().copied().filter(|_| random.u32(0..4) == 0).collect();
            let key = ["a", "b", "c", "d\0"][random.usize(0..4)];
            (key, chosen.join("+"), random.i64(0..1000), random.u32(0..2))
        })
        .collect()
}

fn to_record((key, command, time, partition): &Command) -> TestRecord {
    record(*key, command.as_str()).at(*time).partition(*partition)
}

/// Records that fail leave nothing behind, wherever batches are cut and instances end.
#[test]
fn cuts_change_nothing() {
    for seed in 0..30 {
        let records: Vec<_> = commands(seed, 60, false).iter().map(to_record).collect();
        let outcome = assert_cut_independent::<Everything>(&json!({}), &records, seed);
        assert!(!outcome.rejections.is_empty() && outcome.outputs["out"].len() > 60);
    }
}

/// What failed had no effect: the same as if records without a key, which are refused before they touch
/// anything, had come in its place. However it failed, stream time goes on.
#[test]
fn a_refused_record_had_no_effect() {
    for seed in 0..30 {
        let commands = commands(seed, 60, true);
        let loud = commands.iter().map(to_record);
        let quiet = commands.iter().map(|command| {
            let (_, text, time, partition) = command;
            if text.contains("fail") || text.contains("panic") {
                record(None, "").at(*time).partition(*partition)
            } else {
                to_record(command)
            }
        });
        let [loud, quiet] = [loud.collect::<Vec<_>>(), quiet.collect()].map(|records| {
            let mut driver = TestDriver::<Everything>::new(json!({})).unwrap();
            driver.send_all(records);
            let mut outcome = driver.outcome();
            outcome.rejections.iter_mut().for_each(|refused| refused.reason.clear());
            outcome
        });
        assert!(!loud.rejections.is_empty());
        assert_eq!(loud.outputs, quiet.outputs, "seed {seed}");
        assert_eq!(loud.stores, quiet.stores, "seed {seed}");
        assert_eq!(loud.rejections, quiet.rejections, "seed {seed}");
    }
}

#[test]
fn records_carry_time_chance_and_headers() {
    let mut driver = TestDriver::<Everything>::new(json!({})).unwrap();
    driver.send_all([record("a", "log").at(50), record("a", "").at(20).partition(1)]);
    let out = driver.outputs("out");
    assert_eq!((out[0].timestamp, out[1].timestamp), (50, 50));
    assert_eq!(out[0].headers, [("command".to_owned(), Some(b"log".to_vec()))]);
    assert_ne!(out[0].value, out[1].value, "two records drew the same number");
    assert_eq!(driver.outputs("placed")[1].partition, Some(1));
    assert_eq!(driver.outputs("placed")[1].source, (0, 1, 0));
    assert_eq!(driver.outputs("placed")[0].decode::<f64>().unwrap(), 0.5);
    assert_eq!(driver.logs(), [(Level::Info, "a at 50".to_owned())]);
    assert_eq!(driver.counter("seen"), 2);
    let sums = driver.store::<String, Json<Sum>>("by-key");
    assert_eq!((sums[0].0.as_str(), sums[0].1.count), ("a", 2));
}

#[test]
fn a_panic_costs_one_record() {
    let mut driver = TestDriver::<Everything>::new(json!({})).unwrap();
    let records = (0..64).map(|i| record("a", if i == 40 { "panic" } else { "" }));
    driver.send_all(records);
    assert_eq!(driver.outputs("out").len(), 63);
    let [refused] = driver.rejections() else { panic!("{:?}", driver.rejections()) };
    assert_eq!((refused.offset, refused.reason.as_str()), (40, "panicked: asked to panic"));
}

/// Says what is text and what is not.
struct Texts(Output<(), String>);

impl Plugin for Texts {
    fn new(setup: &mut Setup) -> Result<Self> {
        Ok(Self(setup.stream("out")))
    }

    fn process(&self, record: &Record<'_>) -> Result<()> {
        let shown = |text: Result<&str>| text.map_or_else(|e| e.to_string(), str::to_owned);
        self.0.send((), &format!("{} | {}", shown(record.key_str()), shown(record.text())))
    }
}

/// One record that is not text, or whose bytes would be only together with its neighbour's, is told apart
/// from those around it.
#[test]
fn what_is_not_text_is_told_record_by_record() {
    let umlaut = "ü".as_bytes();
    let bytes = [b"plain", umlaut, &umlaut[..1], &umlaut[1..], b"end"];
    let mut driver = TestDriver::<Texts>::new(json!({})).unwrap();
    driver.send_all(bytes.iter().map(|bytes| record(bytes.to_vec(), bytes.to_vec())));
    driver.send_all([record(None, None), record("a", "ü")]);
    let out = driver.outputs("out").iter().map(|r| r.decode::<String>().unwrap());
    let bad = "the record's key is not UTF-8 | the record's value is not UTF-8";
    let none = "the record has no key | the record is a tombstone: it has no value";
    let expected = ["plain | plain", "ü | ü", bad, bad, "end | end", none, "a | ü"];
    assert!(out.eq(expected), "{:?}", driver.outputs("out"));
}

/// Works on columns: drops empty values, refuses tombstones, forwards the rest in ranges.
struct Columns(Output<Vec<u8>, Vec<u8>>);

impl Plugin for Columns {
    fn new(setup: &mut Setup) -> Result<Self> {
        Ok(Self(setup.stream("out")))
    }

    fn process(&self, _: &Record<'_>) -> Result<()> {
        bail!("not called: process_batch does it all")
    }

    fn process_batch(&self, batch: &Batch) -> Result<()> {
        let (mut start, values) = (0, batch.values());
        for i in 0..batch.len() {
            if values.get(i).is_none_or(<[u8]>::is_empty) {
                self.0.forward_range(batch, start..i)?;
                start = i + 1;
                if !values.is_valid(i) {
                    batch.reject(i, "a tombstone")?;
                }
            }
        }
        self.0.forward_range(batch, start..batch.len())
    }
}

#[test]
fn columns_are_forwarded_in_ranges() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut value = || [None, Some(""), Some("x"), Some("yz")][random.usize(0..4)];
    let records: Vec<_> = (0..100).map(|i| record(value(), value()).at(i)).collect();
    let outcome = assert_cut_independent::<Columns>(&json!({}), &records, 3);
    let sent = &outcome.outputs["out"];
    assert!(sent.iter().all(|r| r.value.as_ref().is_some_and(|v| !v.is_empty())));
    assert!(sent.iter().any(|r| r.key.is_none()) && sent.iter().any(|r| r.key.is_some()));
    assert!(sent.len() > 20 && outcome.rejections.len() > 10);
    assert!(sent.is_sorted_by_key(|r| r.timestamp));
}

/// Declares wrongly, as its configuration says.
#[derive(Debug)]
struct Wrong;

impl Plugin for Wrong {
    fn new(setup: &mut Setup) -> Result<Self> {
        let _: Store<String, i64> = setup.store("one");
        let kind: String = setup.config()?;
        match kind.as_str() {
            "late" => drop(setup.stream::<(), String>("late")),
            "early" => drop(setup.store::<String, i64>("early").get("x")?),
            _ => {}
        }
        Ok(Self)
    }

    fn process(&self, _: &Record<'_>) -> Result<()> {
        Ok(())
    }
}

#[test]
fn declarations_are_checked() {
    let error = |config: serde_json::Value| {
        TestDriver::<Wrong>::new(config).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(error(json!("fine")), "");
    assert!(error(json!("late")).contains("declared after the configuration was read"));
    assert!(error(json!("early")).contains("declared after the configuration was read"));
    assert!(error(json!(1)).starts_with("the configuration is not as expected"));
}

/// The sum of many fractions, which a careless reader of JSON would bend at every step.
#[test]
fn fractions_are_read_back_exactly() {
    use anabranch_plugin::Format;
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..10_000 {
        let number = random.f64() * 10f64.powi(random.i32(-30..30));
        let mut bytes = Vec::new();
        Json::<f64>::encode(&number, &mut bytes).unwrap();
        assert_eq!(Json::<f64>::decode(&bytes).unwrap().to_bits(), number.to_bits());
    }
}
