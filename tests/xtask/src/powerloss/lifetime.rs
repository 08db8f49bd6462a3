//! A recorded lifetime of a host: what it did to its disk, and what its clients knew at each moment.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;

use super::{events, is_complete, replay};
use crate::crash::host::{Home, Host, Start};
use crate::crash::journal::{Answer, Journal};
use crate::crash::load::{Load, PADDING};
use crate::crash::operator::{History, Operator, Told};
use crate::crash::plan::Phase;
use crate::crash::rounds::set_up;
use crate::disk::{self, Disk, Image, Policy, Position, Sync};

/// Records that each host of a lifetime acknowledges, at least.
const RECORDS: u64 = 500;
/// Bytes that records are padded with, at most, in rounds that fill more than one segment of sled.
const FAT_PADDING: usize = 40_000;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Hosts of a lifetime: each is stopped, and the next starts on what it left.
const HOSTS: usize = 2;

/// What is known before a lifetime begins.
#[derive(Default)]
pub struct Known {
    journal: Journal,
    told: Told,
}

/// A recorded lifetime.
pub struct Lifetime {
    /// What the disk held when it began.
    base: Option<Image>,
    /// What was done to it.
    pub recording: PathBuf,
    /// What producers and readers know, with positions of the recording.
    pub journal: Journal,
    /// What the operators of each host were told, and from where on.
    histories: Vec<(Position, History)>,
    /// What must be there from which position on, by path.
    pub made: Vec<(Position, String)>,
    /// From here on everything that is inspected is there.
    pub settled: Position,
    scratch: PathBuf,
}

impl Lifetime {
    /// Lets hosts work on `base` and records them.
    ///
    /// # Errors
    /// When a host does not do its work, or the recording is not all that it did.
    pub fn record(
        library: &Path,
        dir: &Path,
        settings: &[(&'static str, String)],
        base: Option<Image>,
        known: Known,
        random: &mut Rng,
    ) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        if let Some(base) = &base {
            base.write(dir)?;
        }
        let recording = dir.join("recording");
        let mut settings = settings.to_vec();
        settings.extend(disk::below(library, dir));
        settings.push(("DISK_LOG", recording.display().to_string()));
        let mut home = Home::new(dir, settings);
        let journal = Arc::new(known.journal.beside(&recording));
        let (mut told, mut made, mut settled) = (known.told, Vec::new(), 0);
        let mut histories = Vec::new();
        let padding = if random.u32(0..3) == 0 { FAT_PADDING } else { PADDING };
        for number in 0..HOSTS {
            let mut host = ready(&mut home)?;
            let client = host.client.clone();
            if told.plugins.is_empty() {
                set_up(&client, &mut told, |path| made.push((journal.position(), path)))?;
                settled = journal.position();
            }
            let from = if number == 0 { 0 } else { journal.position() };
            let before = journal.acknowledged();
            let load = Load::start(&client, &journal, random, &[0, 0], padding);
            let operator = Operator::start(&client, &told, &journal, Phase::Anytime, random);
            let began = Instant::now();
            while journal.acknowledged() - before < RECORDS {
                if let Some(end) = host.ended()? {
                    bail!("{}", end.describe());
                }
                ensure!(began.elapsed() < PATIENCE, "it acknowledged too little");
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(random.u64(100..600)));
            let fault = host.faults();
            let stopped = host.stop();
            load.finish();
            let history = operator.finish().context("the operator panicked")?;
            stopped?;
            ensure!(fault.is_none(), "it said: {}", fault.unwrap_or_default());
            told = history.last();
            histories.push((from, history));
        }
        let scratch = dir.join("scratch");
        is_complete(&recording, base.as_ref(), dir, &scratch)?;
        let journal = Arc::into_inner(journal).context("a client is still at work")?;
        Ok(Self { base, recording, journal, histories, made, settled, scratch })
    }

    /// What the operator had been told by then.
    pub fn told_at(&self, at: Position) -> Told {
        let history = self.histories.iter().rev().find(|(from, _)| *from <= at);
        history.map(|(_, history)| history.as_of(at)).unwrap_or_default()
    }

    /// What was known then, for a lifetime that begins there.
    pub fn known_at(&self, at: Position) -> Known {
        Known { journal: self.journal.as_of(at), told: self.told_at(at) }
    }

    /// Moments at which the power may fail: right after answers, after what is done rarely, and
    /// anywhere; at most `count`, in order.
    ///
    /// # Errors
    /// When the recording cannot be read.
    pub fn moments(&self, count: usize, random: &mut Rng) -> Result<Vec<Position>> {
        let (all, rare) = events(&self.recording)?;
        let answers = self.answers();
        let mut moments = BTreeSet::new();
        // One while the host starts on what its predecessor left.
        if let (true, Some(first)) = (self.base.is_some(), answers.first()) {
            let starting: Vec<_> = all.iter().filter(|at| *at < first).collect();
            moments.extend(random.choice(starting).copied());
        }
        for n in 0..count {
            let from = [&answers, &rare, &all][n % 3];
            moments.extend(random.choice(from).copied());
        }
        Ok(moments.into_iter().collect())
    }

    /// Where the recording stood when clients had acknowledgements, in order.
    pub fn answers(&self) -> Vec<Position> {
        let requests = self.journal.requests();
        let acknowledged = requests.iter().filter(|r| matches!(r.answer, Answer::Acknowledged(_)));
        let mut answers: Vec<_> =
            acknowledged.map(|r| r.answered_at).filter(|at| *at > 0).collect();
        answers.sort_unstable();
        answers
    }

    /// Reads the recording as if the syncs that `ignored` picks had never been made, and hands the disk
    /// to `see` at each of these moments, until it has seen enough.
    ///
    /// # Errors
    /// When the recording cannot be read, or `see` says so.
    pub fn replay(
        &self,
        ignored: impl Fn(Sync<'_>) -> bool + 'static,
        moments: &[Position],
        see: impl FnMut(&Disk, Position) -> Result<bool>,
    ) -> Result<()> {
        replay(self.base.as_ref(), &self.recording, &self.scratch, ignored, moments, see)
    }

    /// What lay on the disk when the second host was at work.
    ///
    /// # Errors
    /// When the recording cannot be read.
    pub fn middle(&self) -> Result<Image> {
        let (from, _) = self.histories.last().context("no host was at work")?;
        let mut image = None;
        self.replay(
            |_| false,
            &[*from],
            |disk, _| {
                image = Some(disk.image(Policy::Everything, &mut Rng::with_seed(0)));
                Ok(false)
            },
        )?;
        image.context("no image was made")
    }
}

fn ready(home: &mut Home) -> Result<Host> {
    match home.start()? {
        Start::Ready(host) => Ok(host),
        Start::Ended(end) => bail!("it does not start: {}", end.describe()),
    }
}
