//! `doctor`, `backup` and `restore`: what an operator does for the day when a disk fails.
//!
//! **Invariant:** nothing here is done to a data directory on which a host runs, but what that host does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use super::args::{Backup, Doctor, Restore};
use super::client::{Error, segment};
use super::commands::{Context, shaped};
use super::print::{count, duration, size};
use super::progress::ByteBar;
use crate::deployment::{
    self, BackupStatus, Kind, Meter, Orders, Report, back_up, examine, restore,
};
use crate::log::{Log, LogConfig};
use crate::storage::{self, FileSystem, OsFileSystem, Storage};

/// Between two looks at how far something is.
const POLL: Duration = Duration::from_millis(100);

/// `doctor`
pub fn doctor(context: &Context, args: &Doctor) -> Result<(), Error> {
    let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
    let orders = Orders {
        repair: args.repair,
        accept_loss: args.accept_loss,
        scratch: args.scratch.clone().unwrap_or_else(std::env::temp_dir),
    };
    let report = metered(context, "checking", |meter| {
        examine(&args.data, &fs, &*context.clock, &orders, meter).map_err(local)
    })?;
    let value = serde_json::to_value(&report).unwrap_or_default();
    context.print(&value, || told(&args.data, &report))?;
    let place = args.data.display();
    match (report.left(), report.unread.len()) {
        (0, 0) => Ok(()),
        (n, 0) if report.repaired => Err(Error::Failed(format!(
            "{place}: repaired, but for {n} that no repair takes care of: see what there is to do"
        ))),
        (1, 0) => Err(Error::Failed(format!("{place}: 1 finding"))),
        (n, 0) => Err(Error::Failed(format!("{place}: {n} findings"))),
        (n, unread) => Err(Error::Failed(format!(
            "{place}: not all is known, as not everything could be read (places: {unread}); findings: {n}"
        ))),
    }
}

/// The report for people.
fn told(data: &Path, report: &Report) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        out += &format!(
            "{}\n  wrong: {}\n  to do: {}\n",
            finding.place, finding.problem, finding.remedy
        );
    }
    for unread in &report.unread {
        out += &format!(
            "{}\n  could not be read: {}\n  to do: {}\n",
            unread.place, unread.problem, unread.remedy
        );
    }
    if !report.losses.is_empty() {
        out += match report.repaired {
            true => "lost by the repair:\n",
            false => "a repair would lose:\n",
        };
    }
    for loss in &report.losses {
        let to = match loss.next {
            Some(next) => format!("offsets {} to {}", loss.from, next - 1),
            None => format!("what was at offset {} and after it", loss.from),
        };
        out += &format!("  {}: {to}\n", loss.place);
    }
    for note in &report.notes {
        out += &format!("note: {note}\n");
    }
    let checked = format!(
        "{}: {} values of the head and {} files ({}) checked",
        data.display(),
        count(report.values),
        count(report.files),
        size(report.bytes)
    );
    out + &match (report.findings.len() + report.unread.len(), report.repaired) {
        (0, _) => format!("{checked}; nothing is wrong\n"),
        (_, true) if report.left() > 0 => format!("{checked}; repaired what a repair can\n"),
        (_, true) => format!("{checked}; repaired: start the host\n"),
        (_, false) => format!("{checked}\n"),
    }
}

/// `backup`
pub fn backup(context: &Context, args: &Backup) -> Result<(), Error> {
    let status = match &args.data {
        Some(data) => {
            metered(context, "backing up", |meter| offline(context, data, &args.dest, meter))?
        }
        None => online(context, &args.dest)?,
    };
    let value = serde_json::to_value(&status).unwrap_or_default();
    context.print(&value, || {
        format!(
            "{} holds everything up to {} (commit {}): {} files, {}, {} of it copied now, in {}\n",
            status.path,
            status.taken_at.as_deref().unwrap_or_default(),
            status.sequence,
            count(status.files),
            size(status.total_bytes),
            size(status.copied_bytes),
            duration(status.seconds.unwrap_or_default()),
        )
    })
}

fn offline(
    context: &Context,
    data: &Path,
    dest: &Path,
    meter: &Meter,
) -> Result<BackupStatus, Error> {
    let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
    if !data.join("format").exists() {
        let message = format!("{} is no data directory: name it with --data", data.display());
        return Err(Error::Failed(message));
    }
    let open = |e: &dyn std::fmt::Display| Error::Failed(e.to_string());
    let storage = Storage::open(data, &fs, &context.clock).map_err(|e| match e {
        storage::Error::Locked { .. } => Error::Refused {
            status: 409,
            detail: e.to_string(),
            problem: json!({"code": "cannot_open", "detail": e.to_string()}),
        },
        _ => open(&e),
    })?;
    let clock = Arc::clone(&context.clock);
    let log = Log::open(Arc::new(storage), Arc::clone(&fs), clock, LogConfig::default());
    let log = log.map_err(|e| open(&e))?;
    let made = back_up(&log, &fs, &*context.clock, dest, meter).map_err(local);
    log.close();
    made
}

fn online(context: &Context, dest: &Path) -> Result<BackupStatus, Error> {
    let name = dest.to_str().filter(|name| !name.contains('/')).ok_or_else(|| {
        Error::Usage(format!(
            "{}: a running host makes its backups below its [backup] dir, so give the name of a folder there; with --data DIR it can be any folder",
            dest.display()
        ))
    })?;
    let path = format!("/v1/backups/{}", segment(name));
    context.client.post(&path, "application/json", b"")?;
    let bar = ByteBar::new(context.json, "backing up");
    loop {
        let status: BackupStatus = shaped(&context.client.get(&path, &[])?)?;
        bar.show(status.done_bytes, status.total_bytes);
        match status.state.as_str() {
            "running" => std::thread::sleep(POLL),
            "done" => return Ok(status),
            _ => return Err(Error::Failed(status.failure.unwrap_or_default())),
        }
    }
}

/// `restore`
pub fn restore_backup(context: &Context, args: &Restore) -> Result<(), Error> {
    let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
    let status = metered(context, "restoring", |meter| {
        restore(&args.source, &args.data, &fs, &*context.clock, meter).map_err(local)
    })?;
    let value = serde_json::to_value(&status).unwrap_or_default();
    context.print(&value, || {
        let mut out = format!(
            "{} is restored up to {} (commit {}): {} files, {}, in {}\n",
            status.path,
            status.taken_at.as_deref().unwrap_or_default(),
            status.sequence,
            count(status.files),
            size(status.total_bytes),
            duration(status.seconds.unwrap_or_default()),
        );
        for (topic, ends) in &status.topics {
            for (partition, end) in ends.iter().enumerate() {
                out += &format!("topic {topic} partition {partition} ends at offset {end}\n");
            }
        }
        out + "what was acknowledged later is not in it; its offsets are not given out again\n"
    })
}

/// Does `work` and shows how far it is.
fn metered<T: Send>(
    context: &Context,
    what: &'static str,
    work: impl FnOnce(&Meter) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let meter = Meter::default();
    let bar = ByteBar::new(context.json, what);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| work(&meter));
        while !running.is_finished() {
            let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            bar.show(read(&meter.done_bytes), read(&meter.total_bytes));
            std::thread::sleep(POLL / 5);
        }
        running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The refusal of something that was done here, with the exit code that a host's refusal has.
fn local(error: deployment::Error) -> Error {
    let status = match error.kind {
        Kind::NotFound => 404,
        Kind::Conflict => 409,
        Kind::Refused => 422,
        _ => 500,
    };
    let problem = json!({"code": error.code, "detail": error.message});
    Error::Refused { status, detail: error.message, problem }
}
