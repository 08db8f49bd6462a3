//! What the command is asked for.

use anyhow::{Context as _, Result, bail};

/// How to use the command.
pub const USAGE: &str = "\
Usage: cargo xtask bench-peers [--json] [--quick] [--job JOB]... [--system SYSTEM]... [--records N] [--rounds N]

  --json     print one JSON document
  --quick    a million records, one run of each: shows that it works, measures little
  --job      pass-through, filter, json-map, count-100k, count-100k-rocksdb (all)
  --system   anabranch, kafka-streams, flink, bytewax, fluvio-smartengine, native (all)
  --records  records that the systems on Kafka replay (20000000)
  --rounds   rounds over all jobs and systems, as far as half an hour lasts (3)";

/// What is done with the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Every record as it came.
    PassThrough,
    /// The 30 % whose level is `warn`.
    Filter,
    /// A JSON value from a JSON value.
    JsonMap,
    /// A count by key for each record, with state in memory.
    Count,
    /// The same with state in RocksDB.
    CountRocksdb,
}

impl Job {
    /// All, in the order in which they are measured.
    pub const ALL: [Self; 5] =
        [Self::PassThrough, Self::Filter, Self::JsonMap, Self::Count, Self::CountRocksdb];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::PassThrough => "pass-through",
            Self::Filter => "filter",
            Self::JsonMap => "json-map",
            Self::Count => "count-100k",
            Self::CountRocksdb => "count-100k-rocksdb",
        }
    }

    /// The job of which this is a variant: the name under which systems know it that have one kind of state.
    pub fn plain(self) -> Self {
        if self == Self::CountRocksdb { Self::Count } else { self }
    }
}

/// What does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// This project: a replay from sealed segments.
    Anabranch,
    /// Kafka Streams on a Kafka broker.
    KafkaStreams,
    /// Flink on a Kafka broker.
    Flink,
    /// Bytewax, from memory.
    Bytewax,
    /// fluvio's engine for SmartModules, from memory.
    Fluvio,
    /// The transform alone, in native Rust.
    Native,
}

impl System {
    /// All, in the order in which they are measured.
    pub const ALL: [Self; 6] = [
        Self::Anabranch,
        Self::Native,
        Self::KafkaStreams,
        Self::Flink,
        Self::Bytewax,
        Self::Fluvio,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Anabranch => "anabranch",
            Self::KafkaStreams => "kafka-streams",
            Self::Flink => "flink",
            Self::Bytewax => "bytewax",
            Self::Fluvio => "fluvio-smartengine",
            Self::Native => "native",
        }
    }

    /// Whether it replays from a Kafka broker.
    pub fn on_kafka(self) -> bool {
        matches!(self, Self::KafkaStreams | Self::Flink)
    }

    /// Whether it has this job.
    pub fn does(self, job: Job) -> bool {
        match self {
            Self::KafkaStreams | Self::Flink => true,
            Self::Fluvio => job == Job::Filter,
            Self::Anabranch | Self::Bytewax | Self::Native => job != Job::CountRocksdb,
        }
    }
}

/// What the command is asked for.
#[derive(Debug)]
pub struct Arguments {
    /// One JSON document instead of a table.
    pub json: bool,
    /// Rounds over all jobs and systems, at most.
    pub rounds: usize,
    /// The jobs.
    pub jobs: Vec<Job>,
    /// The systems.
    pub systems: Vec<System>,
    /// Records that the systems on Kafka replay.
    pub records: u64,
}

impl Arguments {
    /// Understands the command line after the command's name.
    ///
    /// # Errors
    /// The first thing that is not understood, with what there is instead.
    pub fn parse(words: &[&str]) -> Result<Self> {
        let (mut json, mut quick, mut records, mut rounds) = (false, false, None, None);
        let (mut jobs, mut systems) = (Vec::new(), Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value =
                || words.next().with_context(|| format!("{word} needs a value\n{USAGE}"));
            match *word {
                "--json" => json = true,
                "--quick" => quick = true,
                "--job" => jobs.push(find(value()?, &Job::ALL, Job::name)?),
                "--system" => systems.push(find(value()?, &System::ALL, System::name)?),
                "--records" => {
                    let value = value()?;
                    let number = value.parse().ok().filter(|n| (100_000..=100_000_000).contains(n));
                    let number = number
                        .with_context(|| format!("--records {value}: from 100000 to 100000000"));
                    records = Some(number?);
                }
                "--rounds" => {
                    let value = value()?;
                    let number = value.parse().ok().filter(|n| (1..=100).contains(n));
                    let number = number.with_context(|| format!("--rounds {value}: from 1 to 100"));
                    rounds = Some(number?);
                }
                _ => bail!("bench-peers has no {word}\n{USAGE}"),
            }
        }
        let in_order =
            |jobs: Vec<Job>| Job::ALL.into_iter().filter(|job| jobs.contains(job)).collect();
        let jobs = if jobs.is_empty() { Job::ALL.to_vec() } else { in_order(jobs) };
        let all = systems.is_empty();
        let asked = |system: &System| all || systems.contains(system);
        let systems = System::ALL.into_iter().filter(asked).collect();
        let records = records.unwrap_or(if quick { 1_000_000 } else { 20_000_000 });
        let rounds = rounds.unwrap_or(if quick { 1 } else { 3 });
        Ok(Self { json, rounds, jobs, systems, records })
    }
}

fn find<T: Copy>(name: &str, all: &[T], name_of: impl Fn(T) -> &'static str) -> Result<T> {
    let found = all.iter().find(|one| name_of(**one) == name);
    let known = || all.iter().map(|one| name_of(*one)).collect::<Vec<_>>().join(", ");
    found.copied().with_context(|| format!("there is no {name}; there are {}", known()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_and_systems_are_those_named_or_all() {
        let all = Arguments::parse(&[]).unwrap();
        assert_eq!((all.jobs.len(), all.systems.len(), all.records), (5, 6, 20_000_000));
        let some =
            ["--json", "--job", "count-100k", "--job", "filter", "--system", "flink", "--quick"];
        let some = Arguments::parse(&some).unwrap();
        assert_eq!((some.jobs, some.systems), (vec![Job::Filter, Job::Count], vec![System::Flink]));
        assert!(some.json && (some.rounds, some.records) == (1, 1_000_000));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (words, said) in [
            (&["--job", "maps"][..], "there is no maps; there are pass-through, filter"),
            (&["--job"], "--job needs a value"),
            (&["--records", "7"], "from 100000 to"),
            (&["--fast"], "bench-peers has no --fast"),
        ] {
            let error = Arguments::parse(words).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
