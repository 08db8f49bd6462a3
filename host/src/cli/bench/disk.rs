//! What the disk takes to make something durable: by itself, and beside what is judged by it.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Bench;
use super::report::{Report, Row, median, percentile};
use crate::cli::client::Error;
use crate::clock::SharedClock;

/// Where data lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The file system's type, as the kernel names it.
    pub filesystem: String,
    /// Whether it keeps nothing on a disk.
    pub in_memory: bool,
}

impl Default for Volume {
    fn default() -> Self {
        Self { filesystem: "an unknown file system".to_owned(), in_memory: false }
    }
}

impl Volume {
    /// The one that `dir` is on.
    pub fn of(dir: &Path) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        Self::among(&mounts, &dir)
    }

    /// The same by the lines of `/proc/self/mounts`: the longest path that leads to `dir`, of the same
    /// paths the last.
    fn among(mounts: &str, dir: &Path) -> Self {
        let mount = |line: &str| {
            let mut words = line.split(' ').skip(1);
            // Blanks within a path are written so.
            let path = words.next()?.replace("\\040", " ");
            let filesystem = words.next()?.to_owned();
            dir.starts_with(&path).then_some((path.len(), filesystem))
        };
        let found = mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length);
        found.map_or_else(Self::default, |(_, filesystem)| {
            let in_memory = matches!(filesystem.as_str(), "tmpfs" | "ramfs");
            Self { filesystem, in_memory }
        })
    }
}

/// Between two probes: few enough to be little load, and shorter than the gaps that are judged.
const PAUSE: Duration = Duration::from_millis(10);
/// Bytes that a probe appends.
const PROBE_BYTES: usize = 4 << 10;

/// Bytes a second that are written beside the probe.
const WRITTEN: [u64; 3] = [0, 25_000_000, 100_000_000];
/// Bytes that are written and synced at once.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces of a file.
const PIECES: u64 = 64;
/// A sync that takes longer is counted, in milliseconds.
const LONG_MS: f64 = 20.0;

impl Bench<'_> {
    /// What a sync of the probe takes while nothing else is written, and beside a file that is written and
    /// synced a piece at a time. No host has a part in it.
    pub fn measure_disk(&self, report: &mut Report) -> Result<(), Error> {
        for bytes_per_second in WRITTEN {
            let name = format!("disk, {} MB/s", bytes_per_second / 1_000_000);
            let probe = DiskProbe::start(self.workshop.dir(), &self.workshop.clock);
            let written = self.write_evenly(&name, bytes_per_second, self.sized(60.0, 0.5));
            let syncs = probe.stop()?;
            let mut row = |measure: &str, unit: &str, runs: Vec<f64>| {
                report.rows.push(Row::new(&name, measure, unit, self.workers(), runs));
            };
            row("fdatasync", "ms", syncs.millis().into());
            row(
                &format!("longer than {LONG_MS} ms"),
                "syncs",
                vec![syncs.longer_than(LONG_MS) as f64],
            );
            row("written", "MB/s", vec![written? / 1e6]);
        }
        Ok(())
    }

    /// Writes for some seconds; returns how many bytes a second it came to.
    fn write_evenly(&self, what: &str, bytes_per_second: u64, seconds: f64) -> Result<f64, Error> {
        let failed = |error| Error::Failed(format!("writing beside the disk's probe: {error}"));
        let (clock, path) = (&self.workshop.clock, self.workshop.dir().join("bulk"));
        let bar = self.bar(what, seconds as u64);
        let words = (0..PIECE_BYTES / 8).flat_map(|_| clock.random().to_le_bytes());
        let (mut piece, mut pieces) = (words.collect::<Vec<u8>>(), 0_u64);
        let mut file = File::create(&path).map_err(failed)?;
        let begun = clock.monotonic();
        loop {
            let passed = (clock.monotonic() - begun).as_secs_f64();
            bar.set_position(passed as u64);
            if passed >= seconds {
                break;
            }
            if (pieces * PIECE_BYTES as u64) as f64 >= passed * bytes_per_second as f64 {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            // A disk may keep only once what is equal.
            for page in piece.chunks_exact_mut(PROBE_BYTES) {
                page[..8].copy_from_slice(&pieces.to_le_bytes());
            }
            file.write_all(&piece).and_then(|()| file.sync_data()).map_err(failed)?;
            pieces += 1;
            if pieces.is_multiple_of(PIECES) {
                file = File::create(&path).map_err(failed)?;
            }
        }
        bar.finish_and_clear();
        Ok((pieces * PIECE_BYTES as u64) as f64 / (clock.monotonic() - begun).as_secs_f64())
    }
}

/// Syncs of the probe: when each began and ended, in microseconds of the clock.
pub struct Syncs(Vec<(u64, u64)>);

impl Syncs {
    /// What they took: the shortest, the median and the longest, in milliseconds.
    pub fn millis(&self) -> [f64; 3] {
        let millis: Vec<f64> = self.0.iter().map(|(from, to)| (to - from) as f64 / 1e3).collect();
        [percentile(&millis, 0.0), median(&millis), percentile(&millis, 1.0)]
    }

    /// How many took longer.
    fn longer_than(&self, millis: f64) -> usize {
        self.0.iter().filter(|(from, to)| (to - from) as f64 / 1e3 > millis).count()
    }

    /// What the longest took that was under way at some moment of a span of time, in milliseconds.
    pub fn longest_ms(&self, from_us: u64, to_us: u64) -> f64 {
        let met = self.0.iter().filter(|(from, to)| *from < to_us && *to > from_us);
        met.map(|(from, to)| (to - from) as f64 / 1e3).fold(0.0, f64::max)
    }
}

/// Appends to a file and syncs it, now and then, until stopped.
pub struct DiskProbe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Syncs>>,
}

impl DiskProbe {
    /// Begins, in directory `dir`.
    pub fn start(dir: &Path, clock: &SharedClock) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (path, clock, stopped) = (dir.join("probe"), Arc::clone(clock), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut file = File::create(path)?;
            let now_us = || clock.monotonic().as_micros() as u64;
            let mut syncs = Vec::new();
            while !stopped.load(Ordering::Relaxed) || syncs.is_empty() {
                file.write_all(&[7; PROBE_BYTES])?;
                let begun = now_us();
                file.sync_data()?;
                syncs.push((begun, now_us()));
                std::thread::sleep(PAUSE);
            }
            Ok(Syncs(syncs))
        });
        Self { stop, thread }
    }

    /// Ends.
    ///
    /// # Errors
    /// When the disk took a probe not.
    pub fn stop(self) -> Result<Syncs, Error> {
        self.stop.store(true, Ordering::Relaxed);
        let syncs = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        syncs.map_err(|error| Error::Failed(format!("the disk's probe: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_that_met_a_span_of_time_are_found() {
        let syncs = Syncs(vec![(0, 2_000), (5_000, 9_000), (20_000, 21_000)]);
        assert_eq!(syncs.millis(), [1.0, 2.0, 4.0]);
        assert_eq!(syncs.longer_than(1.5), 2);
        assert_eq!(syncs.longest_ms(8_000, 20_500), 4.0);
        assert_eq!(syncs.longest_ms(9_000, 20_500), 1.0);
        assert_eq!(syncs.longest_ms(9_000, 20_000), 0.0);
    }

    #[test]
    fn a_directory_is_on_the_nearest_mount_above_it() {
        let mounts =
            "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmp/a\\040b xfs rw 0 0\n";
        let on = |dir: &str| {
            let volume = Volume::among(mounts, Path::new(dir));
            (volume.filesystem, volume.in_memory)
        };
        assert_eq!(on("/srv/data"), ("ext4".to_owned(), false));
        assert_eq!(on("/tmp/data"), ("tmpfs".to_owned(), true));
        assert_eq!(on("/tmp/a b/data"), ("xfs".to_owned(), false));
        assert_eq!(Volume::among("", Path::new("/")), Volume::default());
    }
}
