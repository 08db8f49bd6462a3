//! The jobs: what a pipeline does, and what it is given to do.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::data::Spread;
use crate::cli::client::{Client, Error};

/// One of the jobs of plugins/bench, over one kind of keys.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// What `--job` calls it.
    pub name: &'static str,
    /// The plugin's file.
    plugin: &'static str,
    /// Keys of the input, by number and spread.
    pub keys: &'static [(u64, Spread)],
}

const PLAIN: &[(u64, Spread)] = &[(100_000, Spread::Uniform)];
const COUNTED: &[(u64, Spread)] = &[
    (100_000, Spread::Uniform),
    (100_000, Spread::Zipf),
    (1_000_000, Spread::Uniform),
    (1_000_000, Spread::Zipf),
];

/// All jobs, in the order of the table.
pub const JOBS: [Job; 6] = [
    Job { name: "pass-through", plugin: "bench_maps", keys: PLAIN },
    Job { name: "filter", plugin: "bench_maps", keys: PLAIN },
    Job { name: "json-map", plugin: "bench_maps", keys: PLAIN },
    Job { name: "count", plugin: "bench_counts", keys: COUNTED },
    Job { name: "count-per-key", plugin: "bench_counts", keys: COUNTED },
    Job { name: "flat-map", plugin: "bench_maps", keys: PLAIN },
];

/// The job of this name.
///
/// # Errors
/// When there is none.
pub fn job(name: &str) -> Result<Job, Error> {
    let found = JOBS.iter().find(|job| job.name == name);
    found.copied().ok_or_else(|| Error::Usage(format!("there is no job {name}")))
}

impl Job {
    /// Its name in the table: with the keys where they matter.
    pub fn label(&self, (keys, spread): (u64, Spread)) -> String {
        if self.keys.len() == 1 {
            return self.name.to_owned();
        }
        let spread = if spread == Spread::Zipf { "zipf" } else { "uniform" };
        let keys = if keys >= 1_000_000 { "1m" } else { "100k" };
        format!("{}-{keys}-{spread}", self.name)
    }

    /// Pushes its plugin; returns the digest.
    ///
    /// # Errors
    /// When the file is not there, or the host refuses it.
    pub fn push(&self, client: &Client, plugins: &Path) -> Result<String, Error> {
        let file = plugins.join(format!("{}.wasm", self.plugin));
        let bytes = std::fs::read(&file).map_err(|error| {
            let file = file.display();
            Error::Failed(format!(
                "{file}: {error}; build the plugins with `cargo xtask guests`, or say with --plugins where they are"
            ))
        })?;
        let pushed = client.post("/v1/plugins", "application/wasm", &bytes)?;
        Ok(pushed["digest"].as_str().unwrap_or_default().to_owned())
    }

    /// A deployment of it.
    pub fn deployment(&self, name: &str, digest: &str, input: &str, output: &str) -> Value {
        json!({
            "name": name,
            "plugin": digest,
            "inputs": [input],
            "outputs": {"out": output},
            "config": {"job": self.name},
            // A refused record is a fault of the benchmark, not to be passed over.
            "on_poison": "stop",
            "swap": {"warm_lease": "1s"},
        })
    }
}

/// Where the plugins are unless said otherwise: where `cargo xtask guests` puts them, beside the
/// program or below the working directory.
pub fn usual_plugins() -> PathBuf {
    const GUESTS: &str = "wasm32-unknown-unknown/guest";
    let program = std::env::current_exe().unwrap_or_default();
    let beside = program.ancestors().skip(1).take(3).map(|dir| dir.join(GUESTS));
    let below = Path::new("target").join(GUESTS);
    beside.into_iter().find(|dir| dir.is_dir()).unwrap_or(below)
}
