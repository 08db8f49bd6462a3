//! Who wants to be called when something was published.
//!
//! **Invariant:** listeners are called outside the lock, on the thread that published: they must be
//! quick and must not wait for a commit.

use std::any::Any;
use std::sync::{Arc, Weak};

use crate::threads::Mutex;

type Listener = Arc<dyn Fn() + Send + Sync>;

/// A list of listeners.
#[derive(Default)]
pub(super) struct Signal {
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    next_id: u64,
    list: Vec<(u64, Listener)>,
}

/// Ends the subscription when it is dropped.
pub struct Subscription {
    _guards: Box<dyn Any + Send + Sync>,
}

impl Subscription {
    pub(super) fn of(guards: impl Any + Send + Sync) -> Self {
        Self { _guards: Box::new(guards) }
    }
}

struct Entry {
    signal: Weak<Signal>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(signal) = self.signal.upgrade() {
            signal.listeners.lock().list.retain(|(id, _)| *id != self.id);
        }
    }
}

impl Signal {
    pub(super) fn subscribe(self: &Arc<Self>, listener: Listener) -> Subscription {
        let mut listeners = self.listeners.lock();
        let id = listeners.next_id;
        listeners.next_id += 1;
        listeners.list.push((id, listener));
        Subscription::of(Entry { signal: Arc::downgrade(self), id })
    }

    pub(super) fn notify(&self) {
        let list = self.listeners.lock().list.clone();
        for (_, listener) in list {
            listener();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_dropped_subscription_is_silent() {
        let (signal, calls) = (Arc::new(Signal::default()), Arc::new(AtomicU32::new(0)));
        let count = Arc::clone(&calls);
        let listener = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let subscription = signal.subscribe(listener);
        signal.notify();
        drop(subscription);
        signal.notify();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}
