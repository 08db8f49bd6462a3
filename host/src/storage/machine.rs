//! What the machine has left, for estimates made before work begins.

/// Bytes of memory that can be had without swapping, as Linux estimates them; `None` elsewhere.
pub fn available_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes << 10)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_linux_machine_tells() {
        assert!(super::available_memory_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
