//! The Nth operation fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use serde_json::json;

use super::{Base, ends, fresh_home, panicked, said};
use crate::crash::client::Client;
use crate::crash::host::{Home, Start};
use crate::crash::inspect::Inspector;
use crate::crash::journal::Journal;
use crate::crash::load::{PADDING, produce_one};
use crate::crash::operator::DEPLOYMENTS;
use crate::disk::{self, DATA, Setting};

/// Ways to fail: what the interposer is told, and what they are called.
const WAYS: [(&str, &str); 5] = [
    ("5:once", "EIO"),
    ("5:on", "EIO from then on"),
    ("28:once", "ENOSPC"),
    ("28:on", "ENOSPC from then on"),
    ("5:short", "a short write"),
];
/// Requests of a run.
const REQUESTS: usize = 25;
/// No run has so many operations.
const MOST: u64 = 100_000;
/// About as many operations as a run has.
const USUAL: f64 = 400.0;
/// Where the interposer writes what failed.
const TOLD: &str = "told";
/// What a host says that ends because its head does not come back.
const LATE: &str = "has not come back within";
/// How long one request may take before the host is said to hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fails operations by lot, early ones more often.
pub fn some(base: &Base, setting: &Setting, runs: u64) -> Result<String> {
    let mut random = Rng::with_seed(setting.seed ^ 0xfa17);
    let mut tally = Tally::default();
    for run in 0..runs {
        let way = WAYS[run as usize % WAYS.len()];
        let n = USUAL.powf(random.f64()).ceil() as u64;
        tally.run(base, setting, "home", n, way)?;
    }
    Ok(tally.tell())
}

/// A sync or write of the head that never comes back, and which: of those that are counted of its file.
const HANGS: [(&str, &str); 3] = [
    ("a sync that hung", "12:5:hang"),
    ("a write that hung", "48:5:stall"),
    ("a write of its start that hung", "3:5:stall"),
];

/// Any of [`HANGS`] ends the host, which says so, and takes nothing along.
pub fn hangs(base: &Base, setting: &Setting) -> Result<()> {
    for (what, fail) in HANGS {
        let answered = hang(base, setting, fail).with_context(|| what.to_owned())?;
        println!("{what} ended the host after {answered} requests; everything is there");
    }
    Ok(())
}

/// The number of requests that were answered.
fn hang(base: &Base, setting: &Setting, fail: &str) -> Result<usize> {
    let dir = setting.dir.join("home");
    fresh_home(&base.image, &dir)?;
    let mut settings = base.settings.clone();
    settings.extend(disk::below(&setting.library, &dir));
    settings.push(("DISK_FAIL", fail.to_owned()));
    settings.push(("ANABRANCH_STORAGE_SYNC_TIMEOUT_MS", "1000".to_owned()));
    let journal = base.journal.as_of(u64::MAX);
    let (answered, end) = match Home::new(&dir, settings).start()? {
        Start::Ended(end) => (0, end),
        Start::Ready(host) => {
            let mut random = Rng::with_seed(setting.seed);
            let asked = || produce_one(&host.client, &journal, &mut random, PADDING);
            let answers = std::iter::repeat_with(asked).take(10 * REQUESTS);
            let answered = answers.take_while(|answer| answer.is_ok()).count();
            ensure!(answered < 10 * REQUESTS, "all requests were answered: nothing hung");
            (answered, host.end_within(PATIENCE)?)
        }
    };
    let end = end.describe();
    ensure!(end.contains(LATE), "{end}");
    after(base, &dir, &journal).context("after it")?;
    Ok(answered)
}

/// Fails one operation, in each way.
pub fn one(base: &Base, setting: &Setting, n: u64) -> Result<String> {
    let mut tally = Tally::default();
    for way in WAYS {
        tally.run(base, setting, "home", n, way)?;
    }
    Ok(tally.tell())
}

/// Fails the first, the second, the third … operation, in each way, until a run is clean.
pub fn all(base: &Base, setting: &Setting) -> Result<String> {
    let (ways, tallies) = (Mutex::new(WAYS.into_iter().enumerate()), Mutex::new(Vec::new()));
    let next = || ways.lock().unwrap_or_else(PoisonError::into_inner).next();
    let is_over = AtomicBool::new(false);
    let work = || -> Result<()> {
        while let Some((number, way)) = next() {
            let (mut tally, home, mut n) = (Tally::default(), format!("home-{number}"), 1);
            let run = |tally: &mut Tally, n| {
                let ran = tally.run(base, setting, &home, n, way);
                ran.inspect_err(|_| is_over.store(true, Ordering::SeqCst))
            };
            while run(&mut tally, n)? {
                n += 1;
                ensure!(n < MOST, "{}: a run does not come to its end", way.1);
                if is_over.load(Ordering::SeqCst) {
                    return Ok(());
                }
            }
            println!("{}: {} operations", way.1, n - 1);
            tallies.lock().unwrap_or_else(PoisonError::into_inner).push(tally);
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let tallies = tallies.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(tallies.into_iter().fold(Tally::default(), Tally::with).tell())
}

/// What came of the runs.
#[derive(Default)]
struct Tally {
    runs: u64,
    clean: u64,
    /// By what failed, the runs in which it did.
    failed: BTreeMap<String, u64>,
    refused: u64,
    ended: u64,
}

/// What one run came to.
struct Outcome {
    /// The operation that failed, and its path.
    failed: Option<(String, String)>,
    /// What was refused, in words.
    refused: Vec<String>,
    ended: bool,
}

impl Tally {
    /// Whether an operation failed.
    fn run(
        &mut self,
        base: &Base,
        setting: &Setting,
        home: &str,
        n: u64,
        (way, name): (&str, &str),
    ) -> Result<bool> {
        let home = setting.dir.join(home);
        let outcome = run(base, &setting.library, &home, n, way).with_context(|| {
            format!("seed {}, operation {n}, {name}; kept in {}", setting.seed, home.display())
        })?;
        self.runs += 1;
        self.refused += u64::from(!outcome.refused.is_empty());
        self.ended += u64::from(outcome.ended);
        let Some((what, _)) = outcome.failed else {
            self.clean += 1;
            return Ok(false);
        };
        *self.failed.entry(what).or_default() += 1;
        Ok(true)
    }

    /// Both together.
    fn with(mut self, other: Self) -> Self {
        self.runs += other.runs;
        self.clean += other.clean;
        self.refused += other.refused;
        self.ended += other.ended;
        for (what, n) in other.failed {
            *self.failed.entry(what).or_default() += n;
        }
        self
    }

    fn tell(&self) -> String {
        let failed: Vec<_> = self.failed.iter().map(|(what, n)| format!("{n} {what}")).collect();
        format!(
            "{} runs: {} had no such operation; failed: {}; {} hosts refused something, {} did not start; \
             nothing that was acknowledged is missing",
            self.runs,
            self.clean,
            failed.join(", "),
            self.refused,
            self.ended
        )
    }
}

fn run(base: &Base, library: &Path, dir: &Path, n: u64, way: &str) -> Result<Outcome> {
    fresh_home(&base.image, dir)?;
    let told = dir.join(TOLD);
    let mut settings = base.settings.clone();
    settings.extend(disk::below(library, dir));
    settings.push(("DISK_FAIL", format!("{n}:{}", way)));
    settings.push(("ANABRANCH_STORAGE_SYNC_TIMEOUT_MS", "10000".to_owned()));
    settings.push(("DISK_TOLD", told.display().to_string()));
    let mut home = Home::new(dir, settings);
    let journal = base.journal.as_of(u64::MAX);
    let mut outcome = Outcome { failed: None, refused: Vec::new(), ended: false };
    match home.start()? {
        Start::Ready(host) => {
            if let Err(error) = work(&host.client, &journal, n, &mut outcome.refused) {
                // A host whose head does not come back ends, and says so: sled waits for its own threads.
                let end = host.end_within(PATIENCE).map(|end| end.describe()).unwrap_or_default();
                ensure!(end.contains(LATE), "{error:#}; {end}");
                outcome.ended = true;
                outcome.refused.push(end);
                return judged(base, dir, &journal, outcome);
            }
            let text = std::fs::read_to_string(&told).unwrap_or_default();
            // Nothing rests on what is compiled, nor on a copy of the head that there was no space for.
            let given_up = |line: &str| line.contains("/compiled") || line.contains("/head.copy");
            let synced = |line: &str| line.starts_with("sync ") && !given_up(line);
            if text.lines().any(synced) {
                let reply = host.client.get("/readyz")?;
                ensure!(reply.status == 503, "a sync failed and it is ready: {}", reply.text);
                outcome.refused.push(reply.text);
            }
            ends(host)?;
        }
        Start::Ended(end) => {
            outcome.ended = true;
            outcome.refused.push(end.describe());
        }
    }
    judged(base, dir, &journal, outcome)
}

/// Sees that a host said what failed, did not panic, and left everything to the next one.
fn judged(base: &Base, dir: &Path, journal: &Journal, mut outcome: Outcome) -> Result<Outcome> {
    let text = std::fs::read_to_string(dir.join(TOLD)).unwrap_or_default();
    let first = text.lines().next().and_then(|line| line.split_once(' '));
    outcome.failed = first.map(|(what, path)| (what.to_owned(), path.to_owned()));
    if let Some(line) = panicked(dir)? {
        bail!("{first:?} failed: {line}");
    }
    match &outcome.failed {
        None => ensure!(outcome.refused.is_empty(), "nothing failed, but {:?}", outcome.refused),
        Some((what, path)) if !outcome.refused.is_empty() => {
            let words = outcome.refused.join("\n") + &said(dir)?;
            let mut paths = text.lines().filter_map(|line| line.split_once(' '));
            let named = paths.any(|(_, path)| names(&words, path));
            ensure!(named, "{what} {path} failed and nothing names it: {words}");
        }
        Some(_) => {}
    }
    after(base, dir, journal).with_context(|| format!("after {first:?} failed"))?;
    Ok(outcome)
}

/// Whether an error names the file, or the folder in which it is; sled's files are the head, also those
/// that were opened while it was a copy.
fn names(words: &str, path: &str) -> bool {
    let path = path.replace("/head.copy", "/head");
    let path = path.trim_end_matches(".tmp").trim_end_matches(".generating");
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    words.contains(&format!("/{file}")) || (folder != DATA && words.contains(&format!("/{folder}")))
}

/// Sends requests one after the other, with a swap among them; notes what is refused.
fn work(client: &Client, journal: &Journal, n: u64, refused: &mut Vec<String>) -> Result<()> {
    let mut random = Rng::with_seed(n);
    let mut patiently = |what: &str, asked: &mut dyn FnMut() -> Result<Option<String>>| {
        let began = Instant::now();
        let answer = asked().with_context(|| format!("{what} had no answer"))?;
        ensure!(began.elapsed() < PATIENCE, "{what} took {:?}", began.elapsed());
        refused.extend(answer);
        anyhow::Ok(())
    };
    for request in 0..REQUESTS {
        patiently("a produce request", &mut || produce_one(client, journal, &mut random, PADDING))?;
        if request == REQUESTS / 3 {
            let path = format!("/v1/deployments/{}", DEPLOYMENTS[0]);
            patiently("a swap", &mut || {
                let status = client.get(&path)?.json()?;
                let live = status["generations"].as_array().into_iter().flatten();
                let live = live.into_iter().find(|g| g["number"] == status["live"]);
                let plugin = live.context("no live generation")?["plugin"].clone();
                let body =
                    json!({ "plugin": plugin, "reason": "salt 1 auto", "config": { "salt": 1 } });
                let reply = client.send("POST", &format!("{path}/swap"), &body)?;
                Ok((reply.status >= 400).then_some(reply.text))
            })?;
        }
        std::thread::sleep(Duration::from_millis(4));
    }
    Ok(())
}

/// A host without faults has everything.
fn after(base: &Base, dir: &Path, journal: &Journal) -> Result<()> {
    let mut home = Home::new(dir, base.settings.clone());
    let host = match home.start()? {
        Start::Ready(host) => host,
        Start::Ended(end) => bail!("it does not start any more: {}", end.describe()),
    };
    let inspected = Inspector::forgiving().inspect(&host.client, journal, &base.told, true)?;
    if let Some(violation) = inspected.first() {
        bail!("{violation}");
    }
    drop(host.kill());
    Ok(())
}
