//! Rounds: load, kill, start, inspect; a batch of them on one data directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use serde_json::json;

use super::client::Client;
use super::history::{Kind, Violation};
use super::host::{End, Home, Host, Start};
use super::inspect::Inspector;
use super::journal::Journal;
use super::load::{INPUT, Load, PADDING, PARTITIONS, ROUND_RECORDS};
use super::operator::{DEPLOYMENTS, Operator, Told};
use super::plan::{Batch, Phase, Plan, Round};
use super::report::Report;
use crate::steps::guest_dir;

/// How long a host may take to acknowledge the records of a round.
const LOAD_PATIENCE: Duration = Duration::from_secs(60);

/// How long a host is waited for to come to its point before it is killed where it is.
const POINT_PATIENCE: Duration = Duration::from_secs(30);

/// Of so many rounds, one reads everything again instead of what is new.
const AFRESH_ROUNDS: u64 = 8;

/// What a violation leaves: where, and what to look at.
pub struct Failure {
    /// The round.
    pub round: u64,
    /// The first round of its batch, from which it is run again.
    pub first: u64,
    /// What was found.
    pub violations: Vec<Violation>,
    /// The data directory, with the logs of all hosts and the journal.
    pub kept: PathBuf,
}

/// Runs the rounds of one batch from its first to `last`, in `dir`, which goes if all is well.
///
/// # Errors
/// When the batch cannot be run at all.
pub fn run_batch(
    plan: Plan,
    batch: &Batch,
    last: u64,
    dir: &Path,
    report: &mut Report,
) -> Result<Option<Failure>> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    std::fs::create_dir_all(dir)?;
    let mut world = World::begin(batch, dir)?;
    let end = batch.next.min(last + 1);
    for number in batch.first..end {
        let round = plan.round(number);
        let afresh = number % AFRESH_ROUNDS == 0 || number + 1 == end;
        let violations = match world.round(round, afresh, report) {
            Ok(violations) => violations,
            Err(error) => vec![Violation::new(Kind::Host, format!("{error:#}"))],
        };
        report.round_ends();
        if !violations.is_empty() {
            world.keep_journal(dir)?;
            let (first, kept) = (batch.first, dir.to_owned());
            return Ok(Some(Failure { round: number, first, violations, kept }));
        }
    }
    report.batch_ends(&world.journal, &world.told, world.inspector.compared);
    // The last host of a batch is not killed but stopped, which must end well.
    if let Some(host) = world.host.take()
        && let Err(error) = host.stop()
    {
        let violations = vec![Violation::new(Kind::Host, format!("{error:#}"))];
        let (first, kept) = (batch.first, dir.to_owned());
        return Ok(Some(Failure { round: end - 1, first, violations, kept }));
    }
    std::fs::remove_dir_all(dir)?;
    Ok(None)
}

/// Makes the topic and the two deployments; after each answer `done` gets the path of what must be
/// there from then on.
///
/// # Errors
/// When the host does not answer, or refuses.
pub fn set_up(client: &Client, told: &mut Told, mut done: impl FnMut(String)) -> Result<()> {
    let topic = json!({ "partitions": PARTITIONS });
    let path = format!("/v1/topics/{INPUT}");
    client.send("PUT", &path, &topic)?.json()?;
    done(path);
    let first_out = format!("{}-out", DEPLOYMENTS[0]);
    for (name, guest, output, input, lease) in [
        (DEPLOYMENTS[0], "fixture_tally", "tallies", INPUT, "1h"),
        (DEPLOYMENTS[1], "count", "counts", &*first_out, "0s"),
    ] {
        let bytes = std::fs::read(guest_dir().join(format!("{guest}.wasm")))?;
        let pushed = client.ask("POST", "/v1/plugins", "application/wasm", &bytes)?.json()?;
        let digest = pushed["digest"].as_str().context("no digest")?.to_owned();
        done(format!("/v1/plugins/{digest}"));
        let spec = json!({
            "name": name, "plugin": digest, "inputs": [input],
            "outputs": { output: format!("{name}-out") }, "swap": { "warm_lease": lease },
        });
        let path = format!("/v1/deployments/{name}");
        client.send("PUT", &path, &spec)?.json()?;
        done(path);
        told.plugins.insert(name, (digest, bytes.into()));
    }
    Ok(())
}

/// One data directory, and all that is known of it.
struct World {
    home: Home,
    host: Option<Host>,
    journal: Arc<Journal>,
    told: Told,
    inspector: Inspector,
}

impl World {
    /// A fresh host with its topic and its two deployments.
    fn begin(batch: &Batch, dir: &Path) -> Result<Self> {
        let home = Home::new(dir, batch.settings.clone());
        let (journal, told, inspector) = (Arc::default(), Told::default(), Inspector::new());
        let mut world = Self { home, host: None, journal, told, inspector };
        world.start()?;
        let client = world.host()?.client.clone();
        set_up(&client, &mut world.told, |_| ())?;
        Ok(world)
    }

    fn host(&mut self) -> Result<&mut Host> {
        self.host.as_mut().context("no host runs")
    }

    /// Starts a host that must get ready.
    fn start(&mut self) -> Result<()> {
        match self.home.start()? {
            Start::Ready(host) => self.host = Some(host),
            Start::Ended(end) => bail!("it does not start: {}", end.describe()),
        }
        Ok(())
    }

    fn round(&mut self, round: Round, afresh: bool, report: &mut Report) -> Result<Vec<Violation>> {
        let Round { phase, mut random } = round;
        let before = self.journal.acknowledged();
        let client = self.host()?.client.clone();
        let ends = self.inspector.ends();
        let load = Load::start(&client, &self.journal, &mut random, &ends, PADDING);
        let operator = Operator::start(&client, &self.told, &self.journal, phase, &mut random);
        let end = self.loaded_and_killed(phase, before, &mut random);
        if end.is_err() {
            // Whatever went wrong, nobody works on.
            self.host = None;
        }
        load.finish();
        let told = operator.finish();
        let mut end = end?;
        self.told = told.context("the operator panicked")?.last();
        match phase {
            Phase::Point("open", point) => end = self.killed_while_opening(point)?,
            Phase::Recovering => {
                ensure!(end.was_killed(), "{}", end.describe());
                self.start()?;
                std::thread::sleep(Duration::from_millis(random.u64(0..150)));
                end = self.host.take().context("no host runs")?.kill()?;
            }
            _ => {}
        }
        self.home.aim_nowhere();
        let stopped = phase == Phase::Stopping && end.was_asked();
        ensure!(end.was_killed() || stopped, "{}", end.describe());
        if let Some(fault) = end.faults() {
            bail!("before it was killed it said: {fault}");
        }
        let point = end.point();
        let killed = match phase {
            Phase::Point(_, name) if point.as_deref() == Some(name) => Some(phase),
            // It was quicker than the kill.
            _ if stopped => None,
            Phase::Recovering | Phase::Stopping if point.is_none() => Some(phase),
            _ if point.is_none() => Some(Phase::Anytime),
            _ => bail!("aimed at {:?}, killed at {point:?}", phase.names()),
        };
        let acknowledged = self.journal.acknowledged() - before;
        report.killed(phase, killed, acknowledged);
        self.start()?;
        let client = self.host()?.client.clone();
        let violations = self.inspector.inspect(&client, &self.journal, &self.told, afresh);
        let host = self.host()?;
        if let Some(end) = host.ended()? {
            bail!("after its start {}", end.describe());
        }
        if let Some(fault) = host.faults() {
            bail!("after its start it said: {fault}");
        }
        violations
    }

    /// Lets the host work until the round's records are acknowledged, then has it killed.
    fn loaded_and_killed(&mut self, phase: Phase, before: u64, random: &mut Rng) -> Result<End> {
        let began = Instant::now();
        while self.journal.acknowledged() - before < ROUND_RECORDS {
            if let Some(end) = self.host()?.ended()? {
                bail!("nobody killed it, but {}", end.describe());
            }
            ensure!(began.elapsed() < LOAD_PATIENCE, "it acknowledged too little: {before}");
            std::thread::sleep(Duration::from_millis(1));
        }
        let patience = match phase {
            Phase::Anytime | Phase::Recovering | Phase::Stopping | Phase::Point("open", _) => {
                Duration::from_millis(random.u64(0..100))
            }
            Phase::Point(_, name) => {
                self.home.aim(name)?;
                POINT_PATIENCE
            }
        };
        let began = Instant::now();
        while began.elapsed() < patience {
            if let Some(end) = self.host()?.ended()? {
                self.host = None;
                return Ok(end);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if phase == Phase::Stopping {
            self.host()?.ask_to_stop()?;
            std::thread::sleep(Duration::from_millis(random.u64(0..30)));
        }
        self.host.take().context("no host runs")?.kill()
    }

    /// Starts a host that is killed before it is ready.
    fn killed_while_opening(&mut self, point: &str) -> Result<End> {
        self.home.aim(point)?;
        match self.home.start()? {
            Start::Ended(end) => Ok(end),
            Start::Ready(host) => host.kill(),
        }
    }

    /// Leaves the journal beside the data, for whoever looks for the reason.
    fn keep_journal(&self, dir: &Path) -> Result<()> {
        let mut text = String::new();
        for request in self.journal.requests().iter() {
            let records: Vec<_> = request.records.iter().map(|r| r.id).collect();
            let (begun, ended) = (request.begun, request.ended);
            text += &format!("{begun} to {ended}: {:?} for records {records:?}\n", request.answer);
        }
        Ok(std::fs::write(dir.join("journal.txt"), text)?)
    }
}
