//! The host's metrics, in Prometheus' text format.
//!
//! What happens is counted where it happens; what is (lag, bytes, progress) is read from the
//! registry when someone asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry as Metrics;

use super::guests::Guests;
use crate::clock::SharedClock;
use crate::plugin::{CallOutput, Level, Metric};
use crate::task::{Observer, TaskSpec};
use crate::threads::Mutex;

/// A topic's partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PartitionLabels {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
}

/// A generation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct GenerationLabels {
    /// The deployment.
    pub deployment: String,
    /// The generation.
    pub generation: u32,
}

/// A plugin's own metric.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginLabels {
    /// The deployment.
    pub deployment: String,
    /// The generation.
    pub generation: u32,
    /// The name that the plugin gave.
    pub name: String,
}

/// Why a call or a connection was refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabel {
    /// The code of the problem.
    pub code: &'static str,
}

/// What the HTTP surface counts; it is there before the host is open.
#[derive(Debug, Clone, Default)]
pub struct HttpMetrics {
    /// Connections that are open.
    pub connections: Gauge,
    /// Calls and connections that were refused: for who asked, or by a limit.
    pub refused: Family<RefusalLabel, Counter>,
}

impl HttpMetrics {
    /// Counts a refusal.
    pub fn refuse(&self, code: &'static str) {
        self.refused.get_or_create(&RefusalLabel { code }).inc();
    }
}

type FloatGauge = Gauge<f64, AtomicU64>;

/// How often something was done, and how long it took in all.
#[derive(Debug, Default)]
pub struct Durations {
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Durations {
    /// Counts one more.
    pub fn add(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Takes over what was counted elsewhere.
    pub fn set(&self, count: u64, sum_us: u64) {
        self.count.store(count, Ordering::Relaxed);
        self.sum_us.store(sum_us, Ordering::Relaxed);
    }

    /// As a Prometheus summary without quantiles.
    fn show(&self, name: &str, help: &str, text: &mut String) {
        let count = self.count.load(Ordering::Relaxed);
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        text.push_str(&format!(
            "# HELP anabranch_{name} {help}.\n# TYPE anabranch_{name} summary\n\
             anabranch_{name}_sum {sum}\nanabranch_{name}_count {count}\n"
        ));
    }
}

/// Everything that `/metrics` shows.
#[derive(Default)]
pub struct HostMetrics {
    registry: Mutex<Metrics>,
    /// Records that producers appended.
    pub produced: Family<PartitionLabels, Counter>,
    /// Records handed to plugins.
    pub records_in: Family<GenerationLabels, Counter>,
    /// Records that plugins made.
    pub records_out: Family<GenerationLabels, Counter>,
    /// Records that a plugin could not process.
    pub traps: Family<GenerationLabels, Counter>,
    /// Records that went to dead letters, or would have.
    pub dead_letters: Family<GenerationLabels, Counter>,
    /// Fuel that plugins burned.
    pub fuel: Family<GenerationLabels, Counter>,
    /// Input records ahead of a generation.
    pub lag: Family<GenerationLabels, Gauge>,
    /// Seconds since a generation with records ahead of it last had none.
    pub lag_seconds: Family<GenerationLabels, FloatGauge>,
    /// Instances of plugins that are alive.
    pub instances: Family<GenerationLabels, Gauge>,
    /// Tasks that stand back behind those of others.
    pub standing_back: Family<GenerationLabels, Gauge>,
    /// Bytes of a topic's files.
    pub segment_bytes: Family<PartitionLabels, Gauge>,
    /// Bytes of a generation's stores.
    pub state_bytes: Family<GenerationLabels, Gauge>,
    /// How much of its history a generation has replayed.
    pub replay_progress: Family<GenerationLabels, FloatGauge>,
    /// How long the last flip of a deployment held its live tasks.
    pub swap_pause: Family<GenerationLabels, FloatGauge>,
    /// Bytes of the log's head.
    pub head_bytes: Gauge,
    /// Bytes of the head beyond its budget, which are to be sealed.
    pub seal_backlog: Gauge,
    /// From a produce request to its durable end.
    pub commits: Durations,
    /// Syncs of the head.
    pub syncs: Durations,
    /// Bytes free on the data directory's disk.
    pub disk_free: Gauge,
    /// Bytes of log lines that were dropped.
    pub log_dropped: Family<GenerationLabels, Counter>,
    /// Changes of plugins' metrics that were dropped.
    pub metrics_dropped: Family<GenerationLabels, Counter>,
    plugin_counters: Family<PluginLabels, Counter>,
    plugin_gauges: Family<PluginLabels, FloatGauge>,
    guests: Guests,
}

impl HostMetrics {
    /// All metrics, at zero.
    pub fn new(clock: SharedClock) -> Self {
        let metrics = Self { guests: Guests::new(clock), ..Self::default() };
        {
            let mut registry = metrics.registry.lock();
            let r = registry.sub_registry_with_prefix("anabranch");
            r.register(
                "records_produced",
                "Records that producers appended",
                metrics.produced.clone(),
            );
            r.register("records_in", "Input records processed", metrics.records_in.clone());
            r.register("records_out", "Output records made", metrics.records_out.clone());
            r.register("traps", "Records a plugin could not process", metrics.traps.clone());
            r.register("dead_letters", "Records refused or poison", metrics.dead_letters.clone());
            r.register("fuel", "Fuel burned by plugins", metrics.fuel.clone());
            r.register("lag_records", "Input records ahead of a generation", metrics.lag.clone());
            let lag_seconds = metrics.lag_seconds.clone();
            r.register("lag_seconds", "Seconds since nothing was ahead", lag_seconds);
            r.register("instances", "Instances alive", metrics.instances.clone());
            let standing_back = metrics.standing_back.clone();
            r.register("tasks_standing_back", "Tasks that stand back", standing_back);
            let segments = metrics.segment_bytes.clone();
            r.register("segment_bytes", "Bytes of a topic's files", segments);
            let backlog = metrics.seal_backlog.clone();
            r.register("seal_backlog_bytes", "Bytes of the head beyond its budget", backlog);
            r.register("state_bytes", "Bytes of stores", metrics.state_bytes.clone());
            let progress = metrics.replay_progress.clone();
            r.register("replay_progress_ratio", "Share of history replayed", progress);
            let pause = metrics.swap_pause.clone();
            r.register("swap_pause_seconds", "How long the last flip held live tasks", pause);
            r.register("head_bytes", "Bytes of the log's head", metrics.head_bytes.clone());
            r.register("disk_free_bytes", "Bytes free on disk", metrics.disk_free.clone());
            let dropped = metrics.log_dropped.clone();
            r.register("plugin_log_dropped_bytes", "Bytes of plugins' log lines dropped", dropped);
            let dropped = metrics.metrics_dropped.clone();
            r.register("plugin_metrics_dropped", "Changes of plugins' metrics dropped", dropped);
            let counters = metrics.plugin_counters.clone();
            r.register("plugin_counter", "Counters that plugins add to", counters);
            r.register("plugin_gauge", "Gauges that plugins set", metrics.plugin_gauges.clone());
        }
        metrics
    }

    /// Shows what the HTTP surface counts, too.
    pub fn show_http(&self, http: &HttpMetrics) {
        let mut registry = self.registry.lock();
        let r = registry.sub_registry_with_prefix("anabranch_http");
        r.register("connections", "Connections that are open", http.connections.clone());
        r.register("refused", "Calls and connections refused", http.refused.clone());
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry.lock()) {
            Ok(()) => {
                let end = text.strip_suffix("# EOF\n").map_or(text.len(), str::len);
                text.truncate(end);
                self.commits.show("commit_seconds", "From a produce request to durable", &mut text);
                self.syncs.show("fsync_seconds", "Syncs of the head", &mut text);
                text.push_str("# EOF\n");
                text
            }
            Err(error) => format!("# cannot be shown: {error}\n"),
        }
    }
}

impl HostMetrics {
    /// A line of or about a plugin, if its generation may say so much now, and whether it may. What was
    /// dropped before is told by the next line that is not.
    fn say(&self, spec: &TaskSpec, labels: &GenerationLabels, level: Level, message: &str) -> bool {
        let bytes = message.len() as u64;
        let (deployment, generation) = (&*labels.deployment, labels.generation);
        let Some(missed) = self.guests.may_say(labels, bytes, spec.limits.log_bytes_per_second)
        else {
            self.log_dropped.get_or_create(labels).inc_by(bytes);
            return false;
        };
        if missed > 0 {
            tracing::warn!(
                target: "plugin", deployment, generation,
                "{missed} lines were dropped (limit log_bytes_per_second)"
            );
        }
        match level {
            Level::Debug => tracing::debug!(target: "plugin", deployment, generation, "{message}"),
            Level::Info => tracing::info!(target: "plugin", deployment, generation, "{message}"),
            Level::Warn => tracing::warn!(target: "plugin", deployment, generation, "{message}"),
            Level::Error => tracing::error!(target: "plugin", deployment, generation, "{message}"),
        }
        true
    }
}

/// The labels of a task's generation.
fn labels(spec: &TaskSpec) -> GenerationLabels {
    let generation = spec.generation.number.0;
    GenerationLabels { deployment: spec.deployment.clone(), generation }
}

impl Observer for HostMetrics {
    fn called(&self, spec: &TaskSpec, records: usize, output: &CallOutput) -> bool {
        let labels = labels(spec);
        self.records_in.get_or_create(&labels).inc_by(records as u64);
        let made: usize = output.outputs.iter().map(|o| o.sources.len()).sum();
        self.records_out.get_or_create(&labels).inc_by(made as u64);
        self.fuel.get_or_create(&labels).inc_by(output.fuel_used);
        if !output.rejections.is_empty() {
            self.dead_letters.get_or_create(&labels).inc_by(output.rejections.len() as u64);
        }
        let mut kept = output.dropped_log_bytes == 0;
        for (level, message) in &output.logs {
            kept &= self.say(spec, &labels, *level, message);
        }
        if output.dropped_log_bytes > 0 {
            self.log_dropped.get_or_create(&labels).inc_by(output.dropped_log_bytes);
        }
        for change in &output.metrics {
            if !self.guests.may_name(&labels, &change.name, spec.limits.metrics_per_generation) {
                self.metrics_dropped.get_or_create(&labels).inc();
                kept = false;
                continue;
            }
            let label = |name: &str| PluginLabels {
                deployment: labels.deployment.clone(),
                generation: labels.generation,
                name: name.to_owned(),
            };
            match change.change {
                Metric::Add(delta) => {
                    self.plugin_counters.get_or_create(&label(&change.name)).inc_by(delta);
                }
                Metric::Set(value) => {
                    self.plugin_gauges.get_or_create(&label(&change.name)).set(value);
                }
            }
        }
        kept
    }

    fn poison(&self, spec: &TaskSpec, reason: &str) {
        let labels = labels(spec);
        self.traps.get_or_create(&labels).inc();
        self.dead_letters.get_or_create(&labels).inc();
        self.say(spec, &labels, Level::Warn, &format!("poison record: {reason}"));
    }
}
