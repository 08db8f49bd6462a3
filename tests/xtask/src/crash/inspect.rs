//! The inspection after each kill: waits until the host has finished its work, reads everything over
//! the public API, and compares it with the journal and the plain computation.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::client::{Client, Read};
use super::expected::Expected;
use super::history::{self, Kind, Violation};
use super::journal::Journal;
use super::load::{INPUT, PARTITIONS};
use super::operator::{DEPLOYMENTS, Told, of_reason};
use super::outputs::{Follower, Makes, tally};
use super::record::{Entry, Shown};

/// How long a host may take to finish what a round left.
const PATIENCE: Duration = Duration::from_secs(60);

/// Records at the end of what was read before that are read again each time.
const AGAIN_RECORDS: usize = 300;

/// Generations that ended and are still listed by the host, fewer than it promises.
const LISTED_GENERATIONS: usize = 40;

/// What the inspection knows from the rounds before.
pub struct Inspector {
    /// The input, by partition, as it was read last.
    log: Vec<Vec<Entry>>,
    /// Followers of the outputs, those of the first deployment first.
    followers: Vec<Follower>,
    /// The salt of each generation of the first deployment.
    salts: BTreeMap<u32, u64>,
    /// Whether a candidate may have failed: its host had a reason.
    forgiving: bool,
    /// Records compared so far.
    pub compared: u64,
}

/// What a deployment is, as its status tells.
#[derive(Debug)]
struct Deployment {
    live: u32,
    /// Generations whose tasks run.
    running: Vec<u32>,
}

impl Inspector {
    /// One that has seen nothing.
    pub fn new() -> Self {
        let makes = [Makes::Tally, Makes::Count];
        let followers = DEPLOYMENTS.iter().zip(makes).flat_map(|(name, makes)| {
            (0..PARTITIONS).map(move |p| Follower::new(&format!("{name}-out"), p, makes))
        });
        Self {
            log: vec![Vec::new(); PARTITIONS as usize],
            followers: followers.collect(),
            salts: BTreeMap::new(),
            forgiving: false,
            compared: 0,
        }
    }

    /// One that has seen nothing, for hosts whose disk failed: their candidates may have, too.
    pub fn forgiving() -> Self {
        Self { forgiving: true, ..Self::new() }
    }

    /// The next offset of each partition of the input.
    pub fn ends(&self) -> Vec<u64> {
        self.log.iter().map(|entries| entries.last().map_or(0, |last| last.offset + 1)).collect()
    }

    /// Reads what is new, or everything if `afresh`, and compares.
    ///
    /// # Errors
    /// When the host does not answer, fails, or does not finish its work.
    pub fn inspect(
        &mut self,
        client: &Client,
        journal: &Journal,
        told: &Told,
        afresh: bool,
    ) -> Result<Vec<Violation>> {
        self.read_input(client, afresh)?;
        let mut violations = history::check(&journal.requests(), &journal.sightings(), &self.log);
        if !violations.is_empty() {
            // What is derived from a wrong input tells nothing.
            return Ok(violations);
        }
        let expected = Expected::of(&self.log);
        self.compared += expected.records();
        let mut deployments = Vec::new();
        for (name, records) in DEPLOYMENTS.iter().zip([expected.records(), expected.keyed()]) {
            let status = finish(client, name, records, self.forgiving)?;
            violations.extend(generations(name, &status, told, self.forgiving));
            deployments.push(self.deployment(name, &status)?);
        }
        violations.extend(self.stores(client, &deployments, &expected)?);
        violations.extend(self.outputs(client, &deployments, &expected, afresh)?);
        violations.extend(letters(client, &expected)?);
        violations.extend(plugins(client, told)?);
        Ok(violations)
    }

    fn read_input(&mut self, client: &Client, afresh: bool) -> Result<()> {
        for (partition, entries) in (0..).zip(&mut self.log) {
            let keep = if afresh { 0 } else { entries.len().saturating_sub(AGAIN_RECORDS) };
            let mut from = match entries.get(keep).filter(|_| keep > 0) {
                Some(entry) => entry.offset.to_string(),
                None => "earliest".to_owned(),
            };
            entries.truncate(keep);
            loop {
                let Read::Page(page) = client.read(INPUT, partition, &from)? else {
                    bail!("{INPUT} partition {partition} from {from} is said to be retired");
                };
                for line in page.lines.lines() {
                    entries.push(Shown::read(line)?.entry());
                }
                if page.next >= page.end {
                    break;
                }
                from = page.next.to_string();
            }
        }
        Ok(())
    }

    fn deployment(&mut self, name: &str, status: &Value) -> Result<Deployment> {
        let mut running = Vec::new();
        for generation in status["generations"].as_array().context("no generations")? {
            let number = generation["number"].as_u64().context("no number")? as u32;
            if name == DEPLOYMENTS[0] {
                self.salts.insert(number, of_reason(generation["reason"].as_str()).0);
            }
            if generation["tasks"].as_array().is_some_and(|tasks| !tasks.is_empty()) {
                running.push(number);
            }
        }
        let live = status["live"].as_u64().context("no live generation")? as u32;
        Ok(Deployment { live, running })
    }

    fn salt(&self, generation: u32) -> u64 {
        self.salts.get(&generation).copied().unwrap_or(0)
    }

    fn outputs(
        &mut self,
        client: &Client,
        deployments: &[Deployment],
        expected: &Expected,
        afresh: bool,
    ) -> Result<Vec<Violation>> {
        let mut violations = Vec::new();
        let mut followers = std::mem::take(&mut self.followers);
        for (deployment, followers) in
            deployments.iter().zip(followers.chunks_mut(PARTITIONS as usize))
        {
            for (follower, updates) in followers.iter_mut().zip(&expected.updates) {
                if afresh {
                    follower.rewind();
                }
                let salt = |generation| self.salt(generation);
                violations.extend(follower.read(client, deployment.live, updates, salt)?);
            }
        }
        self.followers = followers;
        Ok(violations)
    }

    /// The stores of all generations that run.
    fn stores(
        &self,
        client: &Client,
        deployments: &[Deployment],
        expected: &Expected,
    ) -> Result<Vec<Violation>> {
        let mut violations = Vec::new();
        for ((deployment, name), store) in
            deployments.iter().zip(DEPLOYMENTS).zip(["tallies", "counts"])
        {
            for generation in &deployment.running {
                let place = format!("{name} generation {generation} store {store}");
                let path = format!(
                    "/v1/deployments/{name}/stores/{store}?generation={generation}&limit=10000"
                );
                let reply = client.get(&path)?;
                let page: StorePage<'_> = match reply.status {
                    200 => serde_json::from_str(&reply.text).with_context(|| place.clone())?,
                    _ => bail!("{place}: {}", reply.text),
                };
                let mut found = BTreeMap::new();
                for entry in page.entries {
                    let value = match store {
                        "tallies" => tally(entry.value)?,
                        _ => (entry.value.get().parse()?, 0),
                    };
                    if found.insert(entry.key.clone(), value).is_some() {
                        let detail = format!("{place}: {} is there twice", entry.key);
                        violations.push(Violation::new(Kind::Derived, detail));
                    }
                }
                let salt = self.salt(*generation);
                let plain: BTreeMap<_, _> = expected
                    .last
                    .iter()
                    .map(|(key, update)| match store {
                        "tallies" => (key.clone(), (update.count, update.order(salt))),
                        _ => (key.clone(), (update.count, 0)),
                    })
                    .collect();
                violations.extend(differ(&place, &found, &plain));
                if name == DEPLOYMENTS[0] {
                    let ends: Vec<u64> =
                        page.inputs.iter().flat_map(|i| i.offsets.clone()).collect();
                    if ends != self.ends() {
                        let detail = format!("{place} stands for {ends:?}, not {:?}", self.ends());
                        violations.push(Violation::new(Kind::Derived, detail));
                    }
                }
            }
        }
        Ok(violations)
    }
}

#[derive(Deserialize)]
struct StorePage<'a> {
    #[serde(borrow)]
    entries: Vec<StoreEntry<'a>>,
    inputs: Vec<StorePosition>,
}

#[derive(Deserialize)]
struct StoreEntry<'a> {
    key: String,
    #[serde(borrow)]
    value: &'a RawValue,
}

#[derive(Deserialize)]
struct StorePosition {
    offsets: Vec<u64>,
}

/// The first key at which two stores differ.
fn differ(
    place: &str,
    found: &BTreeMap<String, (u64, u64)>,
    expected: &BTreeMap<String, (u64, u64)>,
) -> Option<Violation> {
    let mut keys = found.keys().chain(expected.keys());
    let key = keys.find(|key| found.get(*key) != expected.get(*key))?;
    let (a, b) = (found.get(key), expected.get(key));
    Some(Violation::new(Kind::Derived, format!("{place}: {key} is {a:?}, expected {b:?}")))
}

/// Waits until a deployment has taken all of its input in all generations, and is not about to
/// change; its status then.
fn finish(client: &Client, name: &str, records: u64, forgiving: bool) -> Result<Value> {
    let began = Instant::now();
    loop {
        let status = client.get(&format!("/v1/deployments/{name}"))?.json()?;
        if status["paused"] == true {
            client.send("POST", &format!("/v1/deployments/{name}/resume"), &json!({}))?.json()?;
        }
        match waits_for(&status, records) {
            None => return Ok(status),
            Some(what) if failure(&status, forgiving).is_some() => {
                bail!("{name}: {what}: {}", failure(&status, forgiving).unwrap_or_default())
            }
            Some(what) if began.elapsed() > PATIENCE => {
                bail!("{name}: waited {PATIENCE:?} in vain: {what}: {status}")
            }
            Some(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Why a generation that should run does not, if one does not.
fn failure(status: &Value, forgiving: bool) -> Option<&str> {
    let mut all = status["generations"].as_array().into_iter().flatten();
    let runs = |g: &Value| match g["phase"].as_str() {
        Some("live" | "warm" | "caught-up") => true,
        Some("failed") => !forgiving,
        _ => false,
    };
    all.find_map(|g| g["failure"].as_str().filter(|_| runs(g)))
}

/// What a deployment still has to do.
fn waits_for(status: &Value, records: u64) -> Option<String> {
    if status["paused"] == true {
        return Some("it is paused".to_owned());
    }
    let mut warm = 0;
    for generation in status["generations"].as_array().into_iter().flatten() {
        let phase = generation["phase"].as_str().unwrap_or_default();
        let (_, approve) = of_reason(generation["reason"].as_str());
        let is = |what: &str| Some(format!("generation {}: {what}", generation["number"]));
        match phase {
            "replaying" => return is("it replays"),
            "caught-up" if approve == "auto" => return is("it is about to be promoted"),
            "warm" => warm += 1,
            "live" | "caught-up" => {}
            _ => continue,
        }
        let tasks = generation["tasks"].as_array().map_or(&[][..], Vec::as_slice);
        let done = &generation["progress"]["records"];
        if tasks.is_empty() || tasks.iter().any(|task| task["state"] != "idle") {
            return is("its tasks are not idle");
        }
        if generation["progress"]["remaining"] != 0 || *done != records {
            return Some(format!("generation {}: {done} of {records}", generation["number"]));
        }
    }
    // An older warm generation goes once nobody reads it; the second deployment keeps none.
    let kept = usize::from(status["spec"]["swap"]["warm_lease"] != "0s");
    (warm > kept).then(|| format!("{warm} generations are warm"))
}

/// One generation is live, none has failed, and those that were acknowledged are known.
fn generations(name: &'static str, status: &Value, told: &Told, forgiving: bool) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut wrong = |detail: String| violations.push(Violation::new(Kind::Generations, detail));
    let all = status["generations"].as_array().map_or(&[][..], Vec::as_slice);
    let live: Vec<_> = all.iter().filter(|g| g["phase"] == "live").map(|g| &g["number"]).collect();
    if live != [&status["live"]] {
        wrong(format!("{name}: live is {}, but {live:?} say that they are", status["live"]));
    }
    let failed = |g: &&Value| !g["failure"].is_null() || g["phase"] == "failed";
    let forgiven = |g: &&Value| forgiving && g["phase"] == "failed";
    for generation in all.iter().filter(failed).filter(|g| !forgiven(g)) {
        wrong(format!("{name}: generation {generation} failed"));
    }
    let known = |number: u64| all.iter().any(|g| g["number"] == number);
    let swaps = told.swaps.iter().filter(|(of, _)| *of == name).map(|(_, number)| *number);
    for number in swaps.rev().take(LISTED_GENERATIONS).filter(|number| !known(*number)) {
        wrong(format!("{name}: generation {number} was acknowledged and is unknown"));
    }
    if let Some(number) = told.live.get(name).filter(|number| status["live"] != **number) {
        wrong(format!("{name}: generation {number} was acknowledged as live, now {live:?} is"));
    }
    violations
}

/// The dead letters are the records without a key, in order.
fn letters(client: &Client, expected: &Expected) -> Result<Vec<Violation>> {
    let mut violations = Vec::new();
    let topic = format!("{}.dead-letters", DEPLOYMENTS[0]);
    for (partition, expected) in (0..).zip(&expected.letters) {
        let (mut found, mut from) = (Vec::new(), "earliest".to_owned());
        loop {
            let Read::Page(page) = client.read(&topic, partition, &from)? else {
                bail!("{topic} partition {partition} has no earliest record");
            };
            for line in page.lines.lines() {
                let headers = Shown::read(line)?.headers.map_or("[]", RawValue::get);
                let headers: Vec<(String, String)> = serde_json::from_str(headers)?;
                let offset = headers.iter().find(|(name, _)| name == "anabranch-offset");
                let offset = offset.with_context(|| format!("{line} names no offset"))?;
                found.push(offset.1.parse::<u64>()?);
            }
            if page.next >= page.end {
                break;
            }
            from = page.next.to_string();
        }
        if found != *expected {
            let detail = format!("{topic} partition {partition}: {found:?}, expected {expected:?}");
            violations.push(Violation::new(Kind::Derived, detail));
        }
    }
    Ok(violations)
}

/// All plugins that were acknowledged are there.
fn plugins(client: &Client, told: &Told) -> Result<Vec<Violation>> {
    let all = client.get("/v1/plugins")?.json()?;
    let all = all.as_array().context("no list of plugins")?;
    let there = |digest: &str, size: u64| {
        all.iter().any(|plugin| plugin["digest"] == digest && plugin["size_bytes"] == size)
    };
    let gone = told.pushes.iter().filter(|(digest, size)| !there(digest, **size));
    let gone =
        gone.map(|(digest, _)| format!("plugin {digest} was acknowledged and is not listed"));
    Ok(gone.map(|detail| Violation::new(Kind::Lost, detail)).collect())
}
