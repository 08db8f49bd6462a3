//! What happened to deployments: remembered for a while, and told to whoever listens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::broadcast;

use super::Event;
use crate::clock::SharedClock;
use crate::threads::Mutex;

/// Events that are remembered for those who come back with `Last-Event-ID`.
const REMEMBERED: usize = 1_024;

/// The host's events.
pub struct Events {
    clock: SharedClock,
    /// Begins at the time of the start, so that ids rise across restarts.
    next_id: AtomicU64,
    remembered: Mutex<VecDeque<Arc<Event>>>,
    sender: broadcast::Sender<Arc<Event>>,
}

impl Events {
    /// No events yet.
    pub fn new(clock: SharedClock) -> Self {
        let (sender, _) = broadcast::channel(REMEMBERED);
        let next_id = AtomicU64::new(clock.now_ms().max(1).unsigned_abs());
        Self { clock, next_id, remembered: Mutex::default(), sender }
    }

    /// Tells of an event, in the log too.
    pub fn tell(&self, kind: &str, deployment: &str, generation: Option<u32>, message: String) {
        let mut remembered = self.remembered.lock();
        let event = Arc::new(Event {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            at: rfc3339(self.clock.now_ms()),
            kind: kind.to_owned(),
            deployment: deployment.to_owned(),
            generation,
            message,
        });
        tracing::info!(deployment, generation, kind, "{}", event.message);
        if remembered.len() == REMEMBERED {
            remembered.pop_front();
        }
        remembered.push_back(Arc::clone(&event));
        // No one listening is no error.
        drop(self.sender.send(event));
    }

    /// Events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }

    /// Events after `id` that are still remembered.
    pub fn after(&self, id: u64) -> Vec<Arc<Event>> {
        self.remembered.lock().iter().filter(|e| e.id > id).map(Arc::clone).collect()
    }
}

/// A time as people and programs read it.
pub fn rfc3339(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| time.to_string())
}
