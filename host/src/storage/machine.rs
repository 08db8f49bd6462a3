//! What the machine has left, for estimates made before work begins, and who may use how much of it.

/// Bytes of memory that can be had without swapping, as Linux estimates them; `None` elsewhere.
pub fn available_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// Returns to the system what the allocator keeps of memory that was freed, where it is glibc's: each thread
/// has a heap of its own, and what one has freed there no other finds. Locks each heap while it is looked
/// through.
pub fn return_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no memory of ours, and the allocator locks what it looks through.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How far threads stand back: by how much their priority is lower than usual, 19 at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Niceness(i32);

impl Niceness {
    /// What runs at the usual priority gets ten times as much.
    pub const TENTH: Self = Self(10);

    /// That of a thread which gets `percent` of a processor beside one of the usual priority; no thread
    /// gets more than it.
    pub fn of_share(percent: u32) -> Self {
        // A step of niceness is a quarter more or less.
        let share = f64::from(percent.clamp(1, 50)) / 100.0;
        Self(((1.0 - share) / share).log(1.25).round().clamp(0.0, 19.0) as i32)
    }
}

/// Has the calling thread stand back behind all that do not, for the rest of its life. A host needs
/// no rights to lower a priority, and some to raise it again.
pub fn stand_back(niceness: Niceness) {
    ThreadNumber::of_this().stand_back(niceness);
}

/// A thread as the system knows it, where it has priorities of its own: on Linux.
#[derive(Debug, Clone, Copy)]
pub struct ThreadNumber(Option<rustix::process::Pid>);

impl ThreadNumber {
    /// The calling thread's.
    pub fn of_this() -> Self {
        let link = std::fs::read_link("/proc/thread-self").ok();
        let number = link.and_then(|link| link.file_name()?.to_str()?.parse().ok());
        Self(number.and_then(rustix::process::Pid::from_raw))
    }

    /// Has that thread, which must not have ended, stand back like [`stand_back`].
    pub fn stand_back(self, niceness: Niceness) {
        #[cfg(test)]
        if crate::threads::scheduler::is_simulated() {
            return;
        }
        if self.0.is_some()
            && let Err(error) = rustix::process::setpriority_process(self.0, niceness.0)
        {
            tracing::debug!(%error, "a thread keeps its priority");
        }
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
    fn shares_are_weights_of_the_system() {
        // Linux gives 1,024 parts to a thread of the usual priority, and 335 to one of niceness 5.
        let shares = [0, 10, 25, 50, 100].map(|percent| super::Niceness::of_share(percent).0);
        assert_eq!(shares, [19, 10, 5, 0, 0]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn one_thread_stands_back_and_no_other() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let before = niceness();
        let other = std::thread::spawn(move || {
            super::stand_back(super::Niceness::TENTH);
            niceness()
        });
        assert_eq!(other.join().unwrap(), (super::Niceness::TENTH.0).max(before));
        assert_eq!(niceness(), before);
        let (tell, told) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            tell.send(super::ThreadNumber::of_this()).unwrap();
            wait.recv().unwrap();
            niceness()
        });
        told.recv().unwrap().stand_back(super::Niceness(19));
        go.send(()).unwrap();
        assert_eq!(other.join().unwrap(), 19);
        assert_eq!(niceness(), before);
    }
}
