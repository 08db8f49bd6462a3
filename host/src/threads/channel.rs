//! Channels: queues between threads, unbounded, with a lane for what must not wait.
//!
//! **Invariant:** what is sent is received once, urgent things first and otherwise in order. When one
//! side is gone the other is told; what nobody can receive any more is dropped at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{Condvar, Mutex};

struct Queue<T> {
    urgent: VecDeque<T>,
    items: VecDeque<T>,
    senders: usize,
    receivers: usize,
}

impl<T> Queue<T> {
    fn pop(&mut self) -> Option<T> {
        self.urgent.pop_front().or_else(|| self.items.pop_front())
    }
}

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    ready: Condvar,
}

/// The end that sends. Clones share it.
pub struct Sender<T>(Arc<Shared<T>>);

/// The end that receives. Of clones, one gets each thing.
pub struct Receiver<T>(Arc<Shared<T>>);

/// A channel.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let (urgent, items) = (VecDeque::new(), VecDeque::new());
    let queue = Mutex::new(Queue { urgent, items, senders: 1, receivers: 1 });
    let shared = Arc::new(Shared { queue, ready: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    /// Sends behind everything.
    ///
    /// # Errors
    /// When nobody can receive it: it comes back.
    pub fn send(&self, item: T) -> Result<(), T> {
        self.put(item, |queue| &mut queue.items)
    }

    /// Sends before all that is not urgent.
    ///
    /// # Errors
    /// When nobody can receive it: it comes back.
    pub fn send_urgent(&self, item: T) -> Result<(), T> {
        self.put(item, |queue| &mut queue.urgent)
    }

    fn put(&self, item: T, lane: fn(&mut Queue<T>) -> &mut VecDeque<T>) -> Result<(), T> {
        let mut queue = self.0.queue.lock();
        if queue.receivers == 0 {
            return Err(item);
        }
        lane(&mut queue).push_back(item);
        drop(queue);
        self.0.ready.notify_one();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// The next thing, once there is one; `None` when there is none and nobody can send one.
    pub fn recv(&self) -> Option<T> {
        let mut queue = self.0.queue.lock();
        loop {
            if let Some(item) = queue.pop() {
                return Some(item);
            }
            if queue.senders == 0 {
                return None;
            }
            self.0.ready.wait(&mut queue);
        }
    }

    /// The next thing, if there is one now.
    pub fn try_recv(&self) -> Option<T> {
        self.0.queue.lock().pop()
    }

    /// The next thing, if there is one within about `timeout`.
    pub fn recv_within(&self, timeout: Duration) -> Option<T> {
        self.wait(timeout, Queue::pop, |queue| queue.urgent.is_empty() && queue.items.is_empty())
    }

    /// The next urgent thing, if there is one within about `timeout`.
    pub fn recv_urgent(&self, timeout: Duration) -> Option<T> {
        self.wait(timeout, |queue| queue.urgent.pop_front(), |queue| queue.urgent.is_empty())
    }

    fn wait(
        &self,
        timeout: Duration,
        pop: fn(&mut Queue<T>) -> Option<T>,
        lacks: fn(&Queue<T>) -> bool,
    ) -> Option<T> {
        let mut queue = self.0.queue.lock();
        let waits = |queue: &mut Queue<T>| lacks(queue) && queue.senders > 0;
        self.0.ready.wait_while_for(&mut queue, waits, timeout);
        pop(&mut queue)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.queue.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.queue.lock().receivers += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.senders -= 1;
        let last = queue.senders == 0;
        drop(queue);
        if last {
            self.0.ready.notify_all();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.receivers -= 1;
        let last = queue.receivers == 0;
        let left =
            last.then(|| (std::mem::take(&mut queue.urgent), std::mem::take(&mut queue.items)));
        // What is dropped may answer someone, who may send again: not under the lock.
        drop(queue);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_things_go_first_and_nothing_is_lost() {
        let (sender, receiver) = channel();
        for i in 0..3 {
            sender.send(i).unwrap();
        }
        sender.clone().send_urgent(9).unwrap();
        assert_eq!(receiver.recv_urgent(Duration::ZERO), Some(9));
        assert_eq!(receiver.recv_urgent(Duration::from_millis(1)), None);
        assert_eq!([receiver.recv(), receiver.try_recv()], [Some(0), Some(1)]);
        assert_eq!(receiver.recv_within(Duration::from_secs(60)), Some(2));
        assert_eq!(receiver.recv_within(Duration::from_millis(1)), None);
        sender.send(2).unwrap();
        drop(sender);
        assert_eq!([receiver.recv(), receiver.recv(), receiver.try_recv()], [Some(2), None, None]);
    }

    #[test]
    fn what_nobody_can_receive_is_dropped() {
        let (sender, receiver) = channel();
        let (thing, other) = (Arc::new(()), receiver.clone());
        sender.send(Arc::clone(&thing)).unwrap();
        drop(receiver);
        assert_eq!(Arc::strong_count(&thing), 2);
        drop(other);
        assert_eq!(Arc::strong_count(&thing), 1);
        assert!(sender.send(Arc::clone(&thing)).is_err());
        assert_eq!(Arc::strong_count(&thing), 1);
    }

    #[test]
    fn a_receiver_is_woken() {
        let (sender, receiver) = channel();
        let waits = std::thread::spawn(move || (receiver.recv(), receiver.recv()));
        sender.send(1).unwrap();
        drop(sender);
        assert_eq!(waits.join().unwrap(), (Some(1), None));
    }
}
