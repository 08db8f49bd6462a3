//! Steady traffic: producers at a rate, and a follower of what comes out.
//!
//! **Invariant:** every record carries the moment at which it was due, not the one at which it was sent,
//! so that a producer that is held up makes latencies longer instead of samples fewer.

use std::io::{BufReader, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::cli::client::{Client, Error};
use crate::cli::commands::topic;
use crate::cli::follow::next_event;
use crate::clock::SharedClock;

/// Producers at once: enough that one that waits for the disk holds up no other's records.
const PRODUCERS: u64 = 4;
/// Time between requests.
const TICK: Duration = Duration::from_millis(4);

/// How long the follower may take to see what was acknowledged last.
const PATIENCE: Duration = Duration::from_secs(10);

/// Something that was seen: when, and when it was due, in microseconds of the clock.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// When it was seen.
    pub at_us: u64,
    /// When it was due.
    pub due_us: u64,
}

type Log = Arc<Mutex<Vec<Seen>>>;

/// Traffic that runs until it is stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    /// Each with what it had acknowledged, a request each.
    producers: Vec<JoinHandle<Result<Vec<Seen>, Error>>>,
    /// Records of a request.
    each: u64,
    follower: JoinHandle<Result<(), Error>>,
    followed: Log,
    clock: SharedClock,
}

/// What was seen of traffic, in the order of time.
pub struct Witnesses {
    /// By producer, what it had acknowledged: one a request.
    pub producers: Vec<Vec<Seen>>,
    /// What the follower saw: one a record.
    pub follower: Vec<Seen>,
}

impl Traffic {
    /// Produces `rate` records a second into partition 0 of `input`, all of level `warn`, and follows
    /// partition 0 of `output` from its end.
    ///
    /// # Errors
    /// When `output` cannot be followed.
    pub fn start(
        client: &Client,
        clock: &SharedClock,
        input: &str,
        output: &str,
        rate: u64,
    ) -> Result<Self, Error> {
        let followed = Log::default();
        let follower = {
            let (clock, log) = (Arc::clone(clock), Arc::clone(&followed));
            let path = topic(output, "/partitions/0/records");
            let query = [("from", "latest".to_owned()), ("follow", "true".to_owned())];
            let stream = client.events(&path, &query, None)?;
            std::thread::spawn(move || {
                follow(BufReader::with_capacity(1 << 18, stream), &clock, &log)
            })
        };
        let stop = Arc::<AtomicBool>::default();
        let next = Arc::new(AtomicU64::new(0));
        let start = clock.monotonic();
        let each = (rate as f64 * TICK.as_secs_f64()).ceil() as u64;
        let tick = Duration::from_secs_f64(each as f64 / rate as f64);
        let producer = |_| {
            let (client, clock) = (client.clone(), Arc::clone(clock));
            let (stop, next) = (Arc::clone(&stop), Arc::clone(&next));
            let path = topic(input, "/records");
            std::thread::spawn(move || {
                let mut acknowledged = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let due = start + tick * u32::try_from(number).unwrap_or(u32::MAX);
                    std::thread::sleep(due.saturating_sub(clock.monotonic()));
                    let due_us = due.as_micros() as u64;
                    let body = records(number * each, each, due_us);
                    client.post(&path, "application/x-ndjson", &body)?;
                    let at_us = clock.monotonic().as_micros() as u64;
                    acknowledged.push(Seen { at_us, due_us });
                }
                Ok(acknowledged)
            })
        };
        let producers = (0..PRODUCERS).map(producer).collect();
        let clock = Arc::clone(clock);
        Ok(Self { stop, producers, each, follower, followed, clock })
    }

    /// The clock's time in microseconds.
    pub fn now_us(&self) -> u64 {
        self.clock.monotonic().as_micros() as u64
    }

    /// Whether producers or the follower have ended, which they should not.
    pub fn has_failed(&self) -> bool {
        self.follower.is_finished() || self.producers.iter().any(JoinHandle::is_finished)
    }

    /// Stops producing, waits until the follower has all that was acknowledged, and returns what either
    /// saw.
    ///
    /// # Errors
    /// What made a producer or the follower end before; when the follower misses records or has too many.
    pub fn stop(self) -> Result<Witnesses, Error> {
        self.stop.store(true, Ordering::Relaxed);
        let mut producers = Vec::new();
        for producer in self.producers {
            producers
                .push(producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        let acknowledged = producers.iter().map(Vec::len).sum::<usize>() as u64 * self.each;
        let stopped = self.clock.monotonic();
        let has = || self.followed.lock().len() as u64;
        while has() < acknowledged
            && self.clock.monotonic() - stopped < PATIENCE
            && !self.follower.is_finished()
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.follower.is_finished() {
            self.follower.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            return Err(Error::Failed("the stream of the output ended".to_owned()));
        }
        let followed = has();
        if followed != acknowledged {
            let message =
                format!("{acknowledged} records were acknowledged, the follower has {followed}");
            return Err(Error::Failed(message));
        }
        let follower = std::mem::take(&mut *self.followed.lock());
        Ok(Witnesses { producers, follower })
    }
}

/// `count` records from number `first` on, due at `due_us`, of about 100 bytes.
fn records(first: u64, count: u64, due_us: u64) -> Vec<u8> {
    let mut body = Vec::new();
    for number in first..first + count {
        let (key, user) = (number % 100_000, number % 89_989);
        writeln!(
            body,
            r#"{{"key":"k{key:07}","partition":0,"value":{{"level":"warn","user":{user},"amount":100,"due":{due_us},"note":"delivery 7f invoice 12 expr"}}}}"#
        )
        .expect("memory takes everything");
    }
    body
}

/// Notes each record of the stream until it breaks off.
fn follow(
    mut stream: BufReader<impl std::io::Read>,
    clock: &SharedClock,
    log: &Mutex<Vec<Seen>>,
) -> Result<(), Error> {
    let broken = |error: &dyn std::fmt::Display| {
        Error::Failed(format!("the stream of the output broke off: {error}"))
    };
    while let Some(event) = next_event(&mut stream).map_err(|error| broken(&error))? {
        match event.kind.as_str() {
            "record" => {
                let at_us = clock.monotonic().as_micros() as u64;
                if let Some(due_us) = due(&event.data) {
                    log.lock().push(Seen { at_us, due_us });
                }
            }
            "error" => return Err(broken(&event.data)),
            _ => {}
        }
    }
    Ok(())
}

/// When a record was due, by its value; `None` for one of the history.
fn due(record: &str) -> Option<u64> {
    let (_, rest) = record.split_once(r#""due":"#)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_tell_when_they_were_due() {
        let body = String::from_utf8(records(5, 2, 77)).unwrap();
        let lines: Vec<serde_json::Value> =
            body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[1]["key"]), (2, &"k0000006".into()));
        let bytes = lines[0]["value"].to_string().len();
        assert!((80..120).contains(&bytes), "{bytes} bytes, not about 100");
        assert_eq!(due(body.lines().next().unwrap()), Some(77));
        assert_eq!(due("{}"), None);
    }
}
