//! The operator: swaps, gates, rollbacks, pauses and plugin pushes, as the state of the deployments
//! allows, until the host is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};

use super::client::{Client, Reply};
use super::journal::Journal;
use super::plan::Phase;

/// The deployments; the second reads what the first makes.
pub const DEPLOYMENTS: [&str; 2] = ["first", "second"];

/// What the operator was told, over all rounds of a batch.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Told {
    /// Swaps that were acknowledged: the deployment and the generation.
    pub swaps: Vec<(&'static str, u64)>,
    /// Plugins that were acknowledged: digest and size.
    pub pushes: BTreeMap<String, u64>,
    /// The generation that must be live, where nothing was asked of the deployment since it was told.
    pub live: BTreeMap<&'static str, u64>,
    /// Flips that were acknowledged.
    pub flips: u64,
    /// The plugin of each deployment: its digest and bytes.
    pub plugins: BTreeMap<&'static str, (String, Arc<[u8]>)>,
    /// Counts salts, so that no two generations make the same.
    salts: u64,
}

/// What the operator was told, as it changed, with where the recording of the host's disk stood.
#[derive(Debug)]
pub struct History(Vec<(u64, Told)>);

impl History {
    /// What it was told in the end.
    pub fn last(&self) -> Told {
        self.as_of(u64::MAX)
    }

    /// What it had been told when the recording stood at `position`.
    pub fn as_of(&self, position: u64) -> Told {
        let told = self.0.iter().rev().find(|(at, _)| *at <= position);
        let mut told = told.map(|(_, told)| told.clone()).unwrap_or_default();
        // What was asked then may have been done.
        told.salts = self.0.last().map_or(0, |(_, last)| last.salts);
        told
    }
}

/// An operator at work.
pub struct Operator {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<History>,
}

impl Operator {
    /// Starts one that does what leads to the phase, and by chance something else beside it.
    pub fn start(
        client: &Client,
        told: &Told,
        journal: &Arc<Journal>,
        phase: Phase,
        random: &mut Rng,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut work = Work {
            client: client.clone(),
            random: random.fork(),
            told: told.clone(),
            journal: Arc::clone(journal),
            history: History(vec![(0, told.clone())]),
        };
        let thread = std::thread::spawn(move || {
            let mut left = match phase {
                Phase::Point("swap" | "push", _) | Phase::Anytime => u32::MAX,
                _ => work.random.u32(0..8),
            };
            let push = matches!(phase, Phase::Point("push", _));
            // An error means that the host is gone.
            while left > 0 && !stopped.load(Ordering::SeqCst) && work.step(push).is_ok() {
                left -= 1;
                std::thread::sleep(Duration::from_millis(3));
            }
            work.note();
            work.history
        });
        Self { stop, thread }
    }

    /// What it was told.
    pub fn finish(self) -> Option<History> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().ok()
    }
}

struct Work {
    client: Client,
    random: Rng,
    told: Told,
    journal: Arc<Journal>,
    history: History,
}

impl Work {
    /// Keeps what is known, with where the recording stands: before something is asked of which the
    /// outcome is not known, and after it was answered.
    fn note(&mut self) {
        let at = self.journal.position();
        if self.history.0.last().is_none_or(|(_, last)| *last != self.told) {
            self.history.0.push((at, self.told.clone()));
        }
    }

    /// Does one thing; an error when the host is gone.
    fn step(&mut self, push: bool) -> Result<()> {
        if push || self.random.u32(0..40) == 0 {
            return self.push();
        }
        let name = DEPLOYMENTS[self.random.usize(0..2)];
        let Ok(status) = self.client.get(&format!("/v1/deployments/{name}"))?.json() else {
            return Ok(());
        };
        let candidate = &status["candidate"];
        let phase = status["generations"].as_array().into_iter().flatten();
        let phase = phase.filter(|g| g["number"] == *candidate).find_map(|g| g["phase"].as_str());
        let dice = self.random.u32(0..12);
        match (phase, dice) {
            (Some("replaying"), 0..2) => self.ask(name, "cancel", &json!({})).map(drop),
            (Some("caught-up"), 0..3) => self.ask(name, "promote", &json!({})).map(drop),
            (Some("caught-up"), 3..5) => self.ask(name, "reject", &json!({})).map(drop),
            (Some(_), _) => Ok(()),
            (None, 0) => {
                self.ask(name, "pause", &json!({}))?;
                std::thread::sleep(Duration::from_millis(self.random.u64(0..20)));
                self.ask(name, "resume", &json!({})).map(drop)
            }
            (None, 1..5) if !status["warm"].is_null() => {
                self.ask(name, "rollback", &json!({})).map(drop)
            }
            _ => self.swap(name),
        }
    }

    fn swap(&mut self, name: &'static str) -> Result<()> {
        let manual = self.random.u32(0..4) == 0;
        let approve = if manual { "manual" } else { "auto" };
        self.told.salts += 1;
        let salt = self.told.salts;
        let mut request = json!({
            "plugin": self.told.plugins[name].0, "approve": approve,
            "reason": reason(salt, approve),
        });
        if name == DEPLOYMENTS[0] {
            request["config"] = json!({ "salt": salt });
        }
        let reply = self.ask(name, "swap", &request)?;
        let generation = reply.json().ok().and_then(|body| body["generation"].as_u64());
        self.told.swaps.extend(generation.map(|number| (name, number)));
        self.note();
        Ok(())
    }

    /// Asks something of a deployment, and notes what is sure afterwards.
    fn ask(&mut self, name: &'static str, what: &str, body: &Value) -> Result<Reply> {
        self.told.live.remove(name);
        self.note();
        let reply = self.client.send("POST", &format!("/v1/deployments/{name}/{what}"), body)?;
        if matches!(what, "promote" | "rollback")
            && let Ok(status) = reply.json()
        {
            self.told.flips += 1;
            if let Some(live) = status["live"].as_u64().filter(|_| status["candidate"].is_null()) {
                self.told.live.insert(name, live);
            }
        }
        self.note();
        Ok(reply)
    }

    /// Pushes a plugin that was never pushed: one that is there, with a section of its own.
    fn push(&mut self) -> Result<()> {
        let name = DEPLOYMENTS[self.random.usize(0..2)];
        let mark = self.random.u64(..).to_le_bytes();
        let mut bytes = self.told.plugins[name].1.to_vec();
        // A custom section: id 0, its length, the length of its name, the name, and the mark.
        bytes.extend([0, 14, 5]);
        bytes.extend(b"crash");
        bytes.extend(mark);
        let reply = self.client.ask("POST", "/v1/plugins", "application/wasm", &bytes)?;
        if let Ok(body) = reply.json() {
            let digest = body["digest"].as_str().unwrap_or_default().to_owned();
            self.told.pushes.insert(digest.clone(), body["size_bytes"].as_u64().unwrap_or(0));
            // What was acknowledged can be run: later swaps take it.
            self.told.plugins.entry(name).and_modify(|(current, _)| *current = digest);
            self.note();
        }
        Ok(())
    }
}

/// What a generation's `reason` says of it, so that it is known even when the answer was lost.
fn reason(salt: u64, approve: &str) -> String {
    format!("salt {salt} {approve}")
}

/// The salt and the approval that a `reason` tells of; salt 0 and `auto` where there is none.
pub fn of_reason(reason: Option<&str>) -> (u64, &str) {
    let mut words = reason.unwrap_or_default().split(' ').skip(1);
    let salt = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    (salt, words.next().unwrap_or("auto"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_say_what_they_were_told() {
        assert_eq!(of_reason(Some(&reason(17, "manual"))), (17, "manual"));
        assert_eq!(of_reason(None), (0, "auto"));
    }
}
