//! Counters and gauges that reach the host once a call.
//!
//! **Invariant:** they count what was done for every record, also for one that is refused in the end.

use std::cell::Cell;
use std::rc::Rc;

use crate::host::Host;

/// A counter; made by [`Setup::counter`](crate::Setup::counter).
pub struct Counter(pub(crate) Rc<CounterCell>);

impl Counter {
    /// Adds to the counter.
    pub fn add(&self, delta: u64) {
        self.0.delta.set(self.0.delta.get().saturating_add(delta));
    }
}

/// A gauge; made by [`Setup::gauge`](crate::Setup::gauge).
pub struct Gauge(pub(crate) Rc<GaugeCell>);

impl Gauge {
    /// Sets the gauge.
    pub fn set(&self, value: f64) {
        self.0.value.set(Some(value));
    }
}

pub(crate) struct CounterCell {
    pub(crate) name: String,
    pub(crate) delta: Cell<u64>,
}

impl CounterCell {
    pub(crate) fn flush(&self, host: &dyn Host) {
        let delta = self.delta.take();
        if delta > 0 {
            host.add(&self.name, delta);
        }
    }
}

pub(crate) struct GaugeCell {
    pub(crate) name: String,
    pub(crate) value: Cell<Option<f64>>,
}

impl GaugeCell {
    pub(crate) fn flush(&self, host: &dyn Host) {
        if let Some(value) = self.value.take() {
            host.set(&self.name, value);
        }
    }
}
