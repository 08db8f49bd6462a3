//! The history checker: what the log holds against what the clients know.
//!
//! It sees nothing but the journal and the log as it was read, and is told nothing about kills: what
//! it finds wrong is wrong in any history.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::journal::{Answer, Request, Sighting};
use super::record::Entry;

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// What was acknowledged, or seen by a reader, is not there.
    Lost,
    /// A record is there twice.
    Doubled,
    /// A record stands after one that was sent after it had been acknowledged, or that follows it in
    /// its request.
    Reordered,
    /// A record is not as it was sent.
    Altered,
    /// An offset was acknowledged, shown or stored for two records.
    OffsetReused,
    /// A part of a request is there.
    Torn,
    /// A record is there that nobody sent, or whose request was refused.
    Unsent,
    /// The acknowledged offset of a request is not where its records end.
    Misplaced,
    /// Outputs, stores or dead letters are not what a plain computation makes of the input.
    Derived,
    /// Not exactly one generation is live, or one that was acknowledged is unknown.
    Generations,
    /// The host did not come back, failed, or did not finish its work.
    Host,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What.
    pub kind: Kind,
    /// Where, and what was found instead.
    pub detail: String,
}

impl Violation {
    /// A violation in words.
    pub fn new(kind: Kind, detail: String) -> Self {
        Self { kind, detail }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Lost => "lost",
            Kind::Doubled => "doubled",
            Kind::Reordered => "reordered",
            Kind::Altered => "altered",
            Kind::OffsetReused => "offset reused",
            Kind::Torn => "torn request",
            Kind::Unsent => "never sent",
            Kind::Misplaced => "acknowledged elsewhere",
            Kind::Derived => "outputs or stores",
            Kind::Generations => "generations",
            Kind::Host => "host",
        };
        write!(f, "{kind}: {}", self.detail)
    }
}

/// Where a record was found.
#[derive(Clone, Copy)]
struct Place {
    partition: u32,
    offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {} offset {}", self.partition, self.offset)
    }
}

/// Checks all partitions of the log, each from its beginning, against what the clients know.
pub fn check(requests: &[Request], sightings: &[Sighting], log: &[Vec<Entry>]) -> Vec<Violation> {
    let mut checker = Checker { requests, found: HashMap::new(), violations: Vec::new() };
    let sent = checker.sent();
    for (partition, entries) in (0..).zip(log) {
        checker.partition(partition, entries, &sent);
    }
    requests.iter().for_each(|request| checker.request(request, log));
    for (partition, entries) in (0..).zip(log) {
        checker.order(partition, entries, &sent);
    }
    checker.sightings(sightings, log);
    checker.violations
}

struct Checker<'a> {
    requests: &'a [Request],
    /// Where each record was found first.
    found: HashMap<u64, Place>,
    violations: Vec<Violation>,
}

impl<'a> Checker<'a> {
    fn report(&mut self, kind: Kind, detail: String) {
        self.violations.push(Violation::new(kind, detail));
    }

    /// Each record's request and text.
    fn sent(&self) -> HashMap<u64, (&'a Request, &'a str)> {
        let each = self.requests.iter();
        each.flat_map(|request| request.records.iter().map(move |r| (r.id, (request, &*r.text))))
            .collect()
    }

    /// Offsets rise; every record was sent, is as it was sent, and is there once.
    fn partition(
        &mut self,
        partition: u32,
        entries: &[Entry],
        sent: &HashMap<u64, (&'a Request, &'a str)>,
    ) {
        for pair in entries.windows(2) {
            let (before, offset) = (pair[0].offset, pair[1].offset);
            let at = Place { partition, offset };
            if offset == before {
                self.report(Kind::OffsetReused, format!("{at} is there twice"));
            } else if offset < before {
                self.report(Kind::Reordered, format!("{at} comes after offset {before}"));
            }
        }
        for entry in entries {
            let at = Place { partition, offset: entry.offset };
            match entry.id.and_then(|id| Some((id, sent.get(&id)?))) {
                None if entry.id.is_none() => {
                    self.report(
                        Kind::Altered,
                        format!("{at} is no record of ours: {}", entry.text),
                    );
                }
                None => self.report(Kind::Unsent, format!("{at}: {}", entry.text)),
                Some((id, (_, text))) => {
                    if *text != entry.text {
                        let found = &entry.text;
                        self.report(Kind::Altered, format!("{at}: sent {text}, found {found}"));
                    }
                    if let Some(first) = self.found.get(&id).copied() {
                        self.report(Kind::Doubled, format!("record {id} at {first} and at {at}"));
                    } else {
                        self.found.insert(id, at);
                    }
                }
            }
        }
    }

    /// A request is there as its answer says, whole and in order.
    fn request(&mut self, request: &Request, log: &[Vec<Entry>]) {
        let places: Vec<_> =
            request.records.iter().map(|r| self.found.get(&r.id).copied()).collect();
        let there = places.iter().flatten().count();
        let of = |n: usize| format!("record {}", request.records[n].id);
        let missing = places.iter().position(Option::is_none);
        match (&request.answer, missing) {
            (Answer::Acknowledged(ends), Some(first)) => {
                let lost = places.len() - there;
                let detail = format!(
                    "{} ({lost} of its {}) acknowledged at {ends:?}",
                    of(first),
                    places.len()
                );
                self.report(Kind::Lost, detail);
            }
            (Answer::Acknowledged(ends), None) => self.ends(request, ends, log),
            (Answer::Refused, _) if there > 0 => {
                let detail = format!("{there} records of a refused request, with {}", of(0));
                self.report(Kind::Unsent, detail);
            }
            (Answer::Unknown, Some(first)) if there > 0 => {
                let detail = format!("{there} of {} are there, {} is not", places.len(), of(first));
                self.report(Kind::Torn, detail);
            }
            _ => {}
        }
        let mut last: HashMap<u32, u64> = HashMap::new();
        for (n, place) in places.iter().enumerate() {
            let Some(place) = place else { continue };
            if last.insert(place.partition, place.offset).is_some_and(|o| o > place.offset) {
                let detail = format!("{} of a request at {place}, before those it follows", of(n));
                self.report(Kind::Reordered, detail);
            }
        }
    }

    /// An acknowledged request ends where its answer says, in each partition.
    fn ends(&mut self, request: &Request, acknowledged: &BTreeMap<u32, u64>, log: &[Vec<Entry>]) {
        let mut ends = BTreeMap::new();
        for place in request.records.iter().filter_map(|r| self.found.get(&r.id)) {
            let end: &mut u64 = ends.entry(place.partition).or_default();
            *end = (*end).max(place.offset + 1);
        }
        if ends == *acknowledged {
            return;
        }
        let first = request.records.first().map_or(0, |r| r.id);
        for (partition, next) in acknowledged {
            // Somebody else's record where this request's last one was acknowledged.
            let entries = log.get(*partition as usize).map_or(&[][..], Vec::as_slice);
            let at = entries.partition_point(|e| e.offset + 1 < *next);
            let other = entries
                .get(at)
                .filter(|e| e.offset + 1 == *next && ends.get(partition) != Some(next));
            if let Some(other) = other {
                let at = Place { partition: *partition, offset: other.offset };
                let detail = format!(
                    "{at} was acknowledged for the request of record {first}, and holds {}",
                    other.text
                );
                return self.report(Kind::OffsetReused, detail);
            }
        }
        let detail =
            format!("the request of record {first}: {acknowledged:?}, but it ends at {ends:?}");
        self.report(Kind::Misplaced, detail);
    }

    /// What was over before another request began stands before it.
    fn order(
        &mut self,
        partition: u32,
        entries: &[Entry],
        sent: &HashMap<u64, (&'a Request, &'a str)>,
    ) {
        let mut earliest: Option<(u64, u64)> = None;
        for entry in entries.iter().rev() {
            let Some((request, _)) = entry.id.and_then(|id| sent.get(&id)) else { continue };
            if let Some((ended, offset)) = earliest.filter(|(ended, _)| *ended < request.begun) {
                let at = Place { partition, offset: entry.offset };
                let detail = format!(
                    "{at} was sent at {}, after offset {offset} had been answered at {ended}",
                    request.begun
                );
                return self.report(Kind::Reordered, detail);
            }
            if earliest.is_none_or(|(ended, _)| request.ended < ended) {
                earliest = Some((request.ended, entry.offset));
            }
        }
    }

    /// What a reader was shown is there, at its offset.
    fn sightings(&mut self, sightings: &[Sighting], log: &[Vec<Entry>]) {
        for seen in sightings {
            let entries = log.get(seen.partition as usize).map_or(&[][..], Vec::as_slice);
            let at = Place { partition: seen.partition, offset: seen.offset };
            let found = entries.binary_search_by_key(&seen.offset, |e| e.offset);
            match found.ok().map(|n| &entries[n]) {
                None => {
                    self.report(Kind::Lost, format!("{at}: a reader was shown record {}", seen.id))
                }
                Some(entry) if entry.id != Some(seen.id) => {
                    let detail = format!(
                        "{at}: a reader was shown record {}, now it is {}",
                        seen.id, entry.text
                    );
                    self.report(Kind::OffsetReused, detail);
                }
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::{Journal, Sent};
    use super::super::record::text;
    use super::*;

    /// Six requests of four records each, as a journal has them, and the log that holds
    /// them in order, in two partitions by turns.
    fn history() -> (Vec<Request>, Vec<Vec<Entry>>) {
        let (journal, mut log) = (Journal::default(), vec![Vec::new(), Vec::new()]);
        for _ in 0..6 {
            let ids: Vec<u64> = (0..4).map(|_| journal.new_id()).collect();
            let line = |id: &u64| text(Some("k"), &format!("{{\"id\":{id}}}"), 7, None);
            let request =
                journal.begin(ids.iter().map(|id| Sent { id: *id, text: line(id) }).collect());
            let mut ends = BTreeMap::new();
            for id in &ids {
                let partition = (id % 2) as usize;
                let offset = log[partition].len() as u64;
                log[partition].push(entry(offset, *id, line(id)));
                ends.insert(partition as u32, offset + 1);
            }
            journal.end(request, Answer::Acknowledged(ends));
        }
        let requests = journal.requests().clone();
        (requests, log)
    }

    fn entry(offset: u64, id: u64, text: String) -> Entry {
        Entry { offset, id: Some(id), text, key: Some("k".to_owned()), timestamp: 7 }
    }

    fn kinds(requests: &[Request], seen: &[Sighting], log: &[Vec<Entry>]) -> Vec<Kind> {
        let mut kinds: Vec<_> = check(requests, seen, log).iter().map(|v| v.kind).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    }

    #[test]
    fn a_true_history_passes() {
        let (requests, log) = history();
        let seen = [Sighting { partition: 1, offset: 3, id: 7, at: 0 }];
        assert_eq!(check(&requests, &seen, &log), []);
    }

    #[test]
    fn an_unanswered_request_may_be_there_or_not_but_whole() {
        let (mut requests, log) = history();
        requests[5].answer = Answer::Unknown;
        requests[5].ended = u64::MAX;
        assert_eq!(check(&requests, &[], &log), []);
        let mut without = log.clone();
        without.iter_mut().for_each(|entries| entries.truncate(10));
        assert_eq!(check(&requests, &[], &without), []);
        let mut half = log;
        half[1].truncate(11);
        assert_eq!(kinds(&requests, &[], &half), [Kind::Torn]);
    }

    #[test]
    fn a_lost_record_is_named() {
        let (requests, mut log) = history();
        let gone = log[0].pop().unwrap();
        let found = check(&requests, &[], &log);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].kind, Kind::Lost);
        assert!(found[0].detail.contains(&format!("record {}", gone.id.unwrap())), "{}", found[0]);
    }

    #[test]
    fn what_a_reader_saw_is_missed() {
        let (mut requests, mut log) = history();
        requests[5].answer = Answer::Unknown;
        let seen = [Sighting { partition: 0, offset: 11, id: log[0][11].id.unwrap(), at: 0 }];
        assert_eq!(check(&requests, &seen, &log), []);
        log.iter_mut().for_each(|entries| entries.truncate(10));
        assert_eq!(kinds(&requests, &seen, &log), [Kind::Lost]);
    }

    #[test]
    fn a_doubled_record_is_named() {
        let (requests, mut log) = history();
        let mut again = log[1][4].clone();
        again.offset = 12;
        let id = again.id.unwrap();
        log[1].push(again);
        let found = check(&requests, &[], &log);
        let doubled = found.iter().find(|v| v.kind == Kind::Doubled).expect("it is found");
        assert!(doubled.detail.contains(&format!("record {id}")), "{doubled}");
    }

    #[test]
    fn reordered_records_are_named() {
        // Two records of one request, then two whole requests, in the other order.
        let (requests, mut log) = history();
        log[0].swap(0, 1);
        renumber(&mut log[0]);
        assert_eq!(kinds(&requests, &[], &log), [Kind::Reordered]);
        let (mut requests, mut log) = history();
        for entries in &mut log {
            entries[..4].rotate_left(2);
            renumber(entries);
        }
        let end = |end: u64| Answer::Acknowledged([(0, end), (1, end)].into());
        (requests[0].answer, requests[1].answer) = (end(4), end(2));
        assert_eq!(kinds(&requests, &[], &log), [Kind::Reordered]);
        // Offsets that do not rise.
        let (requests, mut log) = history();
        log[0].swap(2, 3);
        assert!(kinds(&requests, &[], &log).contains(&Kind::Reordered));
    }

    fn renumber(entries: &mut [Entry]) {
        (0..).zip(entries).for_each(|(offset, entry)| entry.offset = offset);
    }

    #[test]
    fn an_altered_record_is_named() {
        for (field, other) in [("\"k\"", "\"q\""), ("7}", "8}"), ("\"id\":5", "\"id\":5 ")] {
            let (requests, mut log) = history();
            let altered = &mut log[1][2];
            altered.text = altered.text.replace(field, other);
            let found = check(&requests, &[], &log);
            assert_eq!(found.len(), 1, "{field}: {found:?}");
            assert_eq!(found[0].kind, Kind::Altered);
            assert!(found[0].detail.contains("partition 1 offset 2"), "{}", found[0]);
        }
        let (requests, mut log) = history();
        (log[0][0].id, log[0][0].text) = (None, "{}".to_owned());
        assert_eq!(kinds(&requests, &[], &log), [Kind::Lost, Kind::Altered]);
    }

    #[test]
    fn a_reused_offset_is_named() {
        // Stored twice.
        let (requests, mut log) = history();
        log[0][11].offset = 10;
        assert!(kinds(&requests, &[], &log).contains(&Kind::OffsetReused));
        // Shown for one record, given to another.
        let (requests, log) = history();
        let seen = [Sighting { partition: 0, offset: 3, id: 99, at: 0 }];
        assert_eq!(kinds(&requests, &seen, &log), [Kind::OffsetReused]);
        // Acknowledged for one request, held by another: the last two swapped places.
        let (mut requests, log) = history();
        let other = requests[4].answer.clone();
        requests[5].answer = other;
        assert_eq!(kinds(&requests, &[], &log), [Kind::OffsetReused]);
    }

    #[test]
    fn what_nobody_sent_and_what_was_refused_are_named() {
        let (mut requests, log) = history();
        requests[5].answer = Answer::Refused;
        assert_eq!(kinds(&requests, &[], &log), [Kind::Unsent]);
        requests.pop();
        assert_eq!(kinds(&requests, &[], &log), [Kind::Unsent]);
        let (mut requests, log) = history();
        requests[5].answer = Answer::Acknowledged([(0, 12), (1, 13)].into());
        assert_eq!(kinds(&requests, &[], &log), [Kind::Misplaced]);
    }
}
