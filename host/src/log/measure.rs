//! Questions about the extent of a topic's partition: counts, bytes, times, across its mounts.

use std::sync::Arc;

use super::partition::Partition;
use super::reader::ReadError;
use super::topics::{Mount, TopicPartition};
use crate::types::Offset;

impl TopicPartition {
    /// Records that a reader meets between two positions: from `from` to the end of its mount, then
    /// in each later mount from where it goes on. Gaps and markers do not count.
    ///
    /// # Errors
    /// When a position lies in a mount whose records are gone, or a segment cannot be read.
    pub fn count_between(&self, from: Offset, to: Offset) -> Result<u64, ReadError> {
        if from >= to {
            return Ok(0);
        }
        let state = self.topic().state();
        let p = self.id().0 as usize;
        let first = state.mounts.partition_point(|m| m.base[p] <= from).max(1) - 1;
        let mut count = 0;
        for (index, mount) in state.mounts.iter().enumerate().skip(first) {
            let base = mount.base[p];
            if base >= to {
                break;
            }
            let begin = if index == first { Offset(from.0 - base.0) } else { mount.from[p] };
            let end = mount.to.as_ref().map_or(Offset::LIMIT, |to| to[p]);
            let end = end.min(Offset(to.0 - base.0));
            count += self.mounted(mount)?.map_or(Ok(0), |log| log.count_between(begin, end))?;
        }
        Ok(count)
    }

    /// Bytes of the records that `earliest` to `latest` reads, before compression.
    pub fn size_bytes(&self) -> u64 {
        let state = self.topic().state();
        self.mounted(state.open_mount()).ok().flatten().map_or(0, |log| log.size_bytes())
    }

    /// Bytes of the files that hold what `earliest` to `latest` reads; the head not included.
    pub fn file_bytes(&self) -> u64 {
        let state = self.topic().state();
        self.mounted(state.open_mount()).ok().flatten().map_or(0, |log| log.file_bytes())
    }

    /// The first record of the open mount at or after a time, in milliseconds since the Unix epoch;
    /// the end when there is none.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn offset_for_time(&self, timestamp_ms: i64) -> Result<Offset, ReadError> {
        let state = self.topic().state();
        let mount = state.open_mount();
        let base = mount.base[self.id().0 as usize];
        let Some(log) = self.mounted(mount)? else { return Ok(base) };
        Ok(Offset(base.0 + log.offset_for_time(timestamp_ms)?.0))
    }

    fn mounted(&self, mount: &Mount) -> Result<Option<Arc<Partition>>, ReadError> {
        if mount.retired {
            let (from, next) = (mount.base[self.id().0 as usize], self.start_offset());
            return Err(ReadError::Retired { partition: self.id(), from, next });
        }
        Ok(self.topic().physical(mount, self.id()))
    }
}
