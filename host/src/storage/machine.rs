//! What the machine has left, for estimates made before work begins, and who may use how much of it.

/// Bytes of memory that can be had without swapping, as Linux estimates them; `None` elsewhere.
pub fn available_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// By how much threads that stand back do so: what runs at the usual priority gets ten times as much.
const NICENESS: i32 = 10;

/// Has the calling thread stand back behind all that do not, for the rest of its life. A host needs
/// no rights to lower a priority, and some to raise it again.
pub fn stand_back() {
    #[cfg(test)]
    if crate::threads::scheduler::is_simulated() {
        return;
    }
    // On Linux this is about the calling thread; elsewhere it would be the whole process.
    if cfg!(target_os = "linux")
        && let Err(error) = rustix::process::setpriority_process(None, NICENESS)
    {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

/// What this process writes from now on, by sled too, is for its own user alone.
pub fn keep_files_private() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_linux_machine_tells() {
        assert!(super::available_memory_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn one_thread_stands_back_and_no_other() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let before = niceness();
        let other = std::thread::spawn(move || {
            super::stand_back();
            niceness()
        });
        assert_eq!(other.join().unwrap(), super::NICENESS.max(before));
        assert_eq!(niceness(), before);
    }
}
