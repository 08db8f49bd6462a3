//! The systems on a JVM: a Kafka broker, and Kafka Streams and Flink that replay from it.
//!
//! **Invariant:** each system runs in a virtual machine of its own, on a class path of its own: Kafka
//! Streams and Flink bring different builds of RocksDB.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::arguments::{Job, System};
use super::child::{Child, tied};
use super::command::Shop;
use crate::steps::root;

const NEEDS: &str = "Kafka Streams and Flink need a JDK of version 17 or later and Maven: install them (on Debian: apt-get install openjdk-17-jdk-headless maven), or name other systems with --system";

/// The oldest Java that will do.
const JAVA: u32 = 17;

/// How long Maven may take to bring 90 files.
const BUILD: Duration = Duration::from_secs(900);

/// How long the broker may take to answer.
const READY: Duration = Duration::from_secs(90);

/// A broker that holds the input, and what its clients need.
pub struct Kafka {
    build: PathBuf,
    run: PathBuf,
    port: u16,
    /// Ends when this is dropped.
    _broker: Child,
}

impl Kafka {
    /// Builds, starts a broker on fresh files, and writes the input.
    ///
    /// # Errors
    /// When a JDK or Maven is missing, a download fails, or the broker does not get ready.
    pub fn open(shop: &Shop, records: u64) -> Result<Self> {
        let build = build(shop)?;
        let files = shop.run.join("broker");
        std::fs::create_dir_all(&files)?;
        let (port, controller) = (free_port()?, free_port()?);
        let mut command = java(&build, System::KafkaStreams, "1g", "Broker");
        command.arg(&files).args([port.to_string(), controller.to_string()]);
        let mut broker = Child::start("broker", command, &shop.run)?;
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if !broker.runs() || begun.elapsed() > READY {
                bail!("the Kafka broker did not get ready; its log ends:\n{}", broker.tail());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let kafka = Self { build, run: shop.run.clone(), port, _broker: broker };
        let mut load = java(&kafka.build, System::KafkaStreams, "1g", "Load");
        load.args([kafka.servers(), records.to_string()]);
        let load = Child::start("load", load, &shop.run)?;
        let loaded = load.answer(limit(records, 20_000))?;
        shop.same_data("Kafka", &loaded)?;
        let seconds = loaded["seconds"].as_f64().unwrap_or_default();
        shop.say(&format!("a Kafka broker holds {records} records, written in {seconds:.0} s"));
        Ok(kafka)
    }

    /// Replays all records through a system; returns what it said.
    ///
    /// # Errors
    /// When it fails, takes too long, or commits other than what is expected.
    pub fn replay(&self, system: System, job: Job, records: u64) -> Result<Value> {
        let state = self.run.join("state");
        std::fs::create_dir_all(&state)?;
        let main = if system == System::Flink { "FlinkPeer" } else { "StreamsPeer" };
        let mut command = java(&self.build, system, "3g", main);
        let warm_up = records / 10;
        command.arg(self.servers()).arg(&state).arg(job.name());
        command.args([records.to_string(), warm_up.to_string()]);
        let child = Child::start(&format!("{}-{}", system.name(), job.name()), command, &self.run)?;
        let answer = child.answer(limit(records, 8_000));
        // The next one begins on an empty directory.
        std::fs::remove_dir_all(&state)?;
        answer
    }

    fn servers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// The time in which `records` are done at the slowest rate that is still believed, in records a second.
fn limit(records: u64, slowest: u64) -> Duration {
    Duration::from_secs(120 + records / slowest)
}

/// Compiles the peers and brings what they need; returns where it is.
fn build(shop: &Shop) -> Result<PathBuf> {
    let version = Command::new("java").arg("-version").output().context(NEEDS)?;
    let version = String::from_utf8_lossy(&version.stderr).into_owned();
    let major = major(&version);
    ensure!(major.is_some_and(|major| major >= JAVA), "{NEEDS} (`java -version` says {version:?})");
    for tool in ["javac", "mvn"] {
        let mut ask = Command::new(tool);
        let there = ask.arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(there.is_ok_and(|status| status.success()), "{NEEDS} ({tool} does not run)");
    }
    let to = shop.dir.join("java");
    shop.say(
        "Maven builds Kafka Streams' and Flink's programs; the first time it downloads 200 MB",
    );
    let mut maven = tied("mvn");
    maven.args(["-q", "-B", "process-classes", "dependency:copy-dependencies"]);
    maven.arg(format!("-Dbuild.to={}", to.display())).current_dir(root().join("tests/peers"));
    let maven = Child::start("maven", maven, &shop.run)?;
    maven.end(BUILD).context("Kafka Streams and Flink could not be built with Maven")?;
    Ok(to)
}

/// The version in `openjdk version "17.0.15" 2025-04-15`.
fn major(version: &str) -> Option<u32> {
    version.split('"').nth(1)?.split(['.', '-', '+']).next()?.parse().ok()
}

/// A virtual machine that runs one of our classes: as each does best, with the parallel collector.
fn java(build: &Path, system: System, heap: &str, main: &str) -> Command {
    let other_rocksdb = if system == System::Flink { "rocksdbjni" } else { "frocksdbjni" };
    let mut path = build.join("classes").into_os_string();
    let jars = std::fs::read_dir(build.join("dependency")).into_iter().flatten().flatten();
    for jar in jars.filter(|jar| !jar.file_name().to_string_lossy().starts_with(other_rocksdb)) {
        path.push(":");
        path.push(jar.path());
    }
    let mut command = tied("java");
    command.args([format!("-Xms{heap}"), format!("-Xmx{heap}")]);
    command.args(["-XX:+UseParallelGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]);
    // Flink's metrics complain of names that its own Kafka clients give twice.
    command.arg("-Dorg.slf4j.simpleLogger.log.org.apache.flink.metrics=error");
    command.args(
        ["java.util", "java.lang", "java.net"]
            .map(|package| format!("--add-opens=java.base/{package}=ALL-UNNAMED")),
    );
    command.arg("-cp").arg(path).arg(format!("peers.{main}"));
    command
}

/// A port that is free now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_java_are_read() {
        assert_eq!(major("openjdk version \"17.0.15\" 2025-04-15"), Some(17));
        assert_eq!(major("openjdk version \"25-ea\" 2025-09-16"), Some(25));
        assert_eq!(major("java version \"1.8.0_412\""), Some(1));
        assert_eq!(major("command not found"), None);
    }
}
