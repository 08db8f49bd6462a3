//! What the disk takes to make something durable, measured beside what is judged by it.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::report::median;
use crate::cli::client::Error;
use crate::clock::SharedClock;

/// Between two probes: few enough to be no load.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes that a probe appends.
const PROBE_BYTES: usize = 4 << 10;

/// Appends to a file and syncs it, now and then, until stopped.
pub struct DiskProbe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Vec<f64>>>,
}

impl DiskProbe {
    /// Begins, in directory `dir`.
    pub fn start(dir: &Path, clock: &SharedClock) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (path, clock, stopped) = (dir.join("probe"), Arc::clone(clock), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut file = File::create(path)?;
            let mut millis = Vec::new();
            while !stopped.load(Ordering::Relaxed) || millis.is_empty() {
                file.write_all(&[7; PROBE_BYTES])?;
                let begun = clock.monotonic();
                file.sync_data()?;
                millis.push((clock.monotonic() - begun).as_secs_f64() * 1e3);
                std::thread::sleep(PAUSE);
            }
            Ok(millis)
        });
        Self { stop, thread }
    }

    /// Ends; returns the median of fdatasync in milliseconds.
    ///
    /// # Errors
    /// When the disk took a probe not.
    pub fn stop(self) -> Result<f64, Error> {
        self.stop.store(true, Ordering::Relaxed);
        let millis = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let millis = millis.map_err(|error| Error::Failed(format!("the disk's probe: {error}")))?;
        Ok(median(&millis))
    }
}
