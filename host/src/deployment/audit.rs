//! The audit log: refused and administrative calls, a line of JSON each, in files of its own.
//!
//! **Invariant:** a line holds no token but its id, no record, and nothing but printable ASCII. What was
//! done is always written; refused calls, and connections that were refused before they could call, are
//! each written as fast as `audit.refusals_per_second` allows, and the next line counts what was left out,
//! so that a flood of them cannot push out what came before, nor one the other. Lines
//! are not synced one by one: those of the last seconds may be lost with the machine, not with the
//! process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::allowance::Allowance;
use super::events::rfc3339;
use super::{Error, Kind};
use crate::clock::SharedClock;
use crate::config::AuditLog;
use crate::storage::{File, FileSystem};
use crate::threads::Mutex;

/// Most letters of a path that a line holds.
const PATH_LETTERS: usize = 1_024;

/// What is said of a call.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AuditEntry {
    /// The id on the call's reply; empty offline.
    pub request_id: String,
    /// The token's id. Of a refused token, the one that it claims to have.
    pub token: Option<String>,
    /// The token's role, if it is one.
    pub role: Option<&'static str>,
    /// The other end of the connection.
    pub remote: Option<String>,
    /// The method; empty where no call was made yet.
    pub method: String,
    /// The path, percent-encoded, without the query.
    pub path: String,
    /// The status of the reply.
    pub status: u16,
    /// `done`, `refused` (by its token, role, topics, origin or rate) or `failed`.
    pub outcome: &'static str,
    /// The code of the problem, if the reply was one.
    pub code: Option<&'static str>,
    /// The id of the token that was made, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    entry: &'a AuditEntry,
    #[serde(skip_serializing_if = "is_none_left_out")]
    left_out: u64,
}

fn is_none_left_out(count: &u64) -> bool {
    *count == 0
}

/// The log of one host.
pub struct Audit {
    path: PathBuf,
    limits: AuditLog,
    clock: SharedClock,
    file_system: Arc<dyn FileSystem>,
    /// The file that is written and its length; none after a failure, until one can be had again.
    file: Mutex<Option<(Box<dyn File>, u64)>>,
    refusals: Mutex<Allowance>,
    connections: Mutex<Allowance>,
    left_out: AtomicU64,
}

impl Audit {
    /// Opens the log that `limits` name, in `dir` unless they say otherwise.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(
        dir: &Path,
        limits: &AuditLog,
        file_system: Arc<dyn FileSystem>,
        clock: SharedClock,
    ) -> Result<Self, Error> {
        let audit = Self {
            path: limits.file.clone().unwrap_or_else(|| dir.join("audit.log")),
            limits: limits.clone(),
            clock,
            file_system,
            file: Mutex::default(),
            refusals: Mutex::default(),
            connections: Mutex::default(),
            left_out: AtomicU64::new(0),
        };
        let file = audit.open_file().map_err(|error| {
            let path = audit.path.display();
            let message = format!(
                "cannot write the audit log {path}: {error}; make room or name another with [audit] file"
            );
            Error::new(Kind::Internal, "cannot_open", message)
        })?;
        *audit.file.lock() = Some(file);
        Ok(audit)
    }

    /// The file that is there, or a new one.
    fn open_file(&self) -> std::io::Result<(Box<dyn File>, u64)> {
        let file = match self.file_system.open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.file_system.create(&self.path)?
            }
            opened => opened?,
        };
        let mut length = file.len()?;
        let mut last = [b'\n'];
        if length > 0 {
            file.read_at(&mut last, length - 1)?;
        }
        // A line that broke off when the host was killed stays a line of its own.
        if last != *b"\n" {
            file.write_at(b"\n", length)?;
            length += 1;
        }
        Ok((file, length))
    }

    /// Writes down a call that was refused, unless there were too many just now.
    pub fn refused(&self, entry: &AuditEntry) {
        if self.allows(&self.refusals) {
            self.write(entry);
        }
    }

    /// Whether a connection that was refused may be written down now; it is counted if not.
    pub fn takes_connection(&self) -> bool {
        self.allows(&self.connections)
    }

    fn allows(&self, kind: &Mutex<Allowance>) -> bool {
        let rate = self.limits.refusals_per_second;
        let allowed = kind.lock().take(self.clock.monotonic(), rate).is_ok();
        if !allowed {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        allowed
    }

    /// Writes down a call. The host goes on where the disk refuses, and says so in its own log.
    pub fn write(&self, entry: &AuditEntry) {
        let entry = AuditEntry {
            request_id: printable(&entry.request_id),
            method: printable(&entry.method),
            path: printable(&entry.path),
            ..entry.clone()
        };
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        let line = Line { time: rfc3339(self.clock.now_ms()), entry: &entry, left_out };
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        if let Err(error) = self.append(text.as_bytes()) {
            self.left_out.fetch_add(left_out + 1, Ordering::Relaxed);
            tracing::error!(path = %self.path.display(), %error, line = text.trim_end(), "audit log");
        }
    }

    fn append(&self, line: &[u8]) -> std::io::Result<()> {
        let mut held = self.file.lock();
        let (mut file, mut length) = match held.take() {
            Some(open) => open,
            None => self.open_file()?,
        };
        if length > 0 && length + line.len() as u64 > self.limits.max_bytes {
            drop(file);
            self.rotate()?;
            (file, length) = (self.file_system.create(&self.path)?, 0);
        }
        file.write_at(line, length)?;
        *held = Some((file, length + line.len() as u64));
        Ok(())
    }

    /// `audit.log` becomes `audit.log.1`, that `audit.log.2` and so on; the oldest goes.
    fn rotate(&self) -> std::io::Result<()> {
        let numbered = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        for n in (1..self.limits.keep_files).rev() {
            match self.file_system.rename(&numbered(n), &numbered(n + 1)) {
                Err(error) if !gone(&error) => return Err(error),
                _ => {}
            }
        }
        match self.limits.keep_files {
            0 => self.file_system.remove(&self.path),
            _ => self.file_system.rename(&self.path, &numbered(1)),
        }
    }
}

/// `text` in printable ASCII, everything else percent-encoded, and not too long.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if out.len() >= PATH_LETTERS {
            out.push_str("...");
            break;
        }
        match byte {
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::storage::OsFileSystem;

    fn entry(path: &str) -> AuditEntry {
        AuditEntry {
            method: "PUT".to_owned(),
            path: path.to_owned(),
            outcome: "done",
            ..AuditEntry::default()
        }
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn open(dir: &Path, limits: &AuditLog, clock: &Arc<ManualClock>) -> Audit {
        Audit::open(dir, limits, Arc::new(OsFileSystem), clock.clone()).unwrap()
    }

    #[test]
    fn lines_are_appended_across_restarts_and_say_nothing_that_is_no_letter() {
        let dir = tempfile::tempdir().unwrap();
        let (limits, clock) = (AuditLog::default(), ManualClock::new(0, 1));
        let path = dir.path().join("audit.log");
        open(dir.path(), &limits, &clock).write(&entry("/a\n\u{1b}[2J\u{202e}\u{7f}é\"\\"));
        std::fs::write(&path, [&std::fs::read(&path).unwrap()[..], b"{\"broken"].concat()).unwrap();
        open(dir.path(), &limits, &clock).write(&entry(&"/x".repeat(4_000)));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)), "{text:?}");
        let kept: Vec<&str> = text.lines().collect();
        assert_eq!((kept.len(), kept[1]), (3, "{\"broken"));
        let first: serde_json::Value = serde_json::from_str(kept[0]).unwrap();
        assert_eq!(first["path"], "/a%0A%1B[2J%E2%80%AE%7F%C3%A9\"\\");
        assert_eq!(first["time"], "1970-01-01T00:00:00Z");
        assert!(kept[2].len() < 2 * PATH_LETTERS);
    }

    #[test]
    fn files_are_rotated_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let limits = AuditLog { max_bytes: 400, keep_files: 2, ..AuditLog::default() };
        let audit = open(dir.path(), &limits, &ManualClock::new(0, 1));
        for n in 0..20 {
            audit.write(&entry(&format!("/{n}")));
        }
        let all = ["audit.log.2", "audit.log.1", "audit.log"].map(|name| dir.path().join(name));
        let paths: Vec<String> = all
            .iter()
            .flat_map(|path| {
                assert!(std::fs::metadata(path).unwrap().len() <= 400);
                lines(path).into_iter().map(|line| line["path"].as_str().unwrap().to_owned())
            })
            .collect();
        let newest: Vec<String> = (20 - paths.len()..20).map(|n| format!("/{n}")).collect();
        assert_eq!(paths, newest);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_flood_of_refusals_leaves_room_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let limits = AuditLog { refusals_per_second: 5, ..AuditLog::default() };
        let clock = ManualClock::new(0, 1);
        let audit = open(dir.path(), &limits, &clock);
        for _ in 0..1_000 {
            audit.refused(&entry("/refused"));
        }
        audit.write(&entry("/done"));
        let written = lines(&dir.path().join("audit.log"));
        assert_eq!(written.len(), 6);
        assert_eq!((&written[5]["path"], &written[5]["left_out"]), (&"/done".into(), &995.into()));
        // Connections have their own.
        assert_eq!((0..1_000).filter(|_| audit.takes_connection()).count(), 5);
        clock.advance_ms(200);
        audit.refused(&entry("/later"));
        assert_eq!(lines(&dir.path().join("audit.log")).len(), 7);
    }
}
