//! The clients' own journal: what was sent, what was answered, what was read. It alone says what must
//! be in the log.
//!
//! **Invariant:** a request is in the journal before it is sent, without an answer; it has one only
//! once the client has read it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A record as it was sent.
#[derive(Debug, Clone)]
pub struct Sent {
    /// A number that no other record has; it stands in the record's value.
    pub id: u64,
    /// All of the record, as [`super::record::text`] writes it.
    pub text: String,
}

/// What became of a request, as far as its client knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was acknowledged: the next offset of each partition that took records of it.
    Acknowledged(BTreeMap<u32, u64>),
    /// It was refused: nothing of it may be there.
    Refused,
    /// No answer was seen: all of it is there, or nothing.
    Unknown,
}

/// A request of a producer.
#[derive(Debug, Clone)]
pub struct Request {
    /// When it was sent, on the journal's clock.
    pub begun: u64,
    /// When its answer was read, or the connection was found broken.
    pub ended: u64,
    /// Its records, in order.
    pub records: Vec<Sent>,
    /// What became of it.
    pub answer: Answer,
}

/// A record that a reader was shown at an offset of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The partition.
    pub partition: u32,
    /// The record's offset.
    pub offset: u64,
    /// The record.
    pub id: u64,
}

/// What all clients of one data directory know.
#[derive(Default)]
pub struct Journal {
    /// Counts events, so that of two requests it is known which was over before the other began.
    clock: AtomicU64,
    next_id: AtomicU64,
    acknowledged: AtomicU64,
    requests: Mutex<Vec<Request>>,
    sightings: Mutex<Vec<Sighting>>,
}

impl Journal {
    /// The number of a new record.
    pub fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::SeqCst)
    }

    /// Notes a request that is about to be sent; its number is for [`Journal::end`].
    pub fn begin(&self, records: Vec<Sent>) -> usize {
        let mut requests = held(&self.requests);
        let (begun, answer) = (self.tick(), Answer::Unknown);
        requests.push(Request { begun, ended: u64::MAX, records, answer });
        requests.len() - 1
    }

    /// Notes what became of a request.
    pub fn end(&self, request: usize, answer: Answer) {
        let mut requests = held(&self.requests);
        let request = &mut requests[request];
        if matches!(answer, Answer::Acknowledged(_)) {
            self.acknowledged.fetch_add(request.records.len() as u64, Ordering::SeqCst);
        }
        (request.ended, request.answer) = (self.tick(), answer);
    }

    /// Notes that a reader was shown a record.
    pub fn saw(&self, sighting: Sighting) {
        held(&self.sightings).push(sighting);
    }

    /// Records acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// All requests so far.
    pub fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        held(&self.requests)
    }

    /// All that readers were shown so far.
    pub fn sightings(&self) -> MutexGuard<'_, Vec<Sighting>> {
        held(&self.sightings)
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }
}

/// The lists are only pushed to: one that a panic left is whole.
fn held<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}
