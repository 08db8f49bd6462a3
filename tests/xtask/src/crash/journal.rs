//! The clients' own journal: what was sent, what was answered, what was read. It alone says what must
//! be in the log.
//!
//! **Invariant:** a request is in the journal before it is sent, without an answer; it has one only
//! once the client has read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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
    /// Where the recording of the host's disk stood before it was sent.
    pub sent_at: u64,
    /// Where it stood after the answer was read.
    pub answered_at: u64,
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
    /// Where the recording of the host's disk stood after it was shown.
    pub at: u64,
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
    /// The recording of the host's disk, if there is one.
    recording: Option<PathBuf>,
}

impl Journal {
    /// The same journal beside a recording, in which all that is known is known from the beginning.
    pub fn beside(self, recording: &Path) -> Self {
        for request in held(&self.requests).iter_mut() {
            (request.sent_at, request.answered_at) = (0, 0);
        }
        held(&self.sightings).iter_mut().for_each(|sighting| sighting.at = 0);
        Self { recording: Some(recording.to_owned()), ..self }
    }

    /// Where the recording stands; 0 without one.
    pub fn position(&self) -> u64 {
        let length = |path: &PathBuf| std::fs::metadata(path).map_or(0, |about| about.len());
        self.recording.as_ref().map_or(0, length)
    }

    /// What was known when the recording stood at `position`.
    pub fn as_of(&self, position: u64) -> Self {
        let sent = |request: &Request| (request.sent_at <= position).then(|| request.clone());
        let mut requests: Vec<_> = held(&self.requests).iter().filter_map(sent).collect();
        for request in requests.iter_mut().filter(|r| r.answered_at > position) {
            (request.ended, request.answer) = (u64::MAX, Answer::Unknown);
        }
        let seen = |sighting: &&Sighting| sighting.at <= position;
        let sightings = held(&self.sightings).iter().filter(seen).copied().collect();
        let copy = |number: &AtomicU64| AtomicU64::new(number.load(Ordering::SeqCst));
        Self {
            clock: copy(&self.clock),
            next_id: copy(&self.next_id),
            acknowledged: copy(&self.acknowledged),
            requests: Mutex::new(requests),
            sightings: Mutex::new(sightings),
            recording: None,
        }
    }

    /// The number of a new record.
    pub fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::SeqCst)
    }

    /// Notes a request that is about to be sent; its number is for [`Journal::end`].
    pub fn begin(&self, records: Vec<Sent>) -> usize {
        let sent_at = self.position();
        let mut requests = held(&self.requests);
        let (begun, answer) = (self.tick(), Answer::Unknown);
        let (ended, answered_at) = (u64::MAX, u64::MAX);
        requests.push(Request { begun, ended, records, answer, sent_at, answered_at });
        requests.len() - 1
    }

    /// Notes what became of a request.
    pub fn end(&self, request: usize, answer: Answer) {
        let answered_at = self.position();
        let mut requests = held(&self.requests);
        let request = &mut requests[request];
        request.answered_at = answered_at;
        if matches!(answer, Answer::Acknowledged(_)) {
            self.acknowledged.fetch_add(request.records.len() as u64, Ordering::SeqCst);
        }
        (request.ended, request.answer) = (self.tick(), answer);
    }

    /// Notes that a reader was shown record `id` at an offset of a partition.
    pub fn saw(&self, partition: u32, offset: u64, id: u64) {
        let at = self.position();
        held(&self.sightings).push(Sighting { partition, offset, id, at });
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
