//! The second way to commit: replays and imports write segment files themselves.
//!
//! A [`Reservation`] takes a range of offsets, a [`SegmentWriter`] fills a file with it, and a commit
//! that carries the [`SealedSegment`] makes it visible. History is written once.
//!
//! **Invariant:** while a reservation is out, its partition's durable offset does not pass it. What is
//! not used of the newest reservation goes back; of an older one it stays a gap.

use std::sync::Arc;

use super::commit::{CommitError, LogKind};
use super::handle::{Log, Shared};
use super::segment::{Segment, SegmentFile};
use crate::storage::{ArrowFileError, Pace};
use crate::types::{LogId, Offset, PartitionId, Records};

/// Why a segment could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The file could not be written.
    #[error(transparent)]
    File(#[from] ArrowFileError),
    /// More records than were reserved.
    #[error(
        "the reservation of log {log}/{partition} has room for {room} records, not {records}; reserve more"
    )]
    Full {
        /// The log.
        log: LogId,
        /// The partition.
        partition: PartitionId,
        /// Offsets left.
        room: u64,
        /// Records that came.
        records: u64,
    },
}

/// A range of offsets that nobody else gets.
pub struct Reservation {
    shared: Arc<Shared>,
    pub(super) log: LogId,
    pub(super) partition: PartitionId,
    pub(super) first: Offset,
    pub(super) end: Offset,
    pub(super) settled: bool,
}

impl Reservation {
    pub(super) fn take(
        shared: &Arc<Shared>,
        log: LogId,
        partition: PartitionId,
        max_records: u64,
    ) -> Result<Self, CommitError> {
        let mut catalog = shared.catalog.lock();
        let unknown = CommitError::UnknownPartition { log, partition };
        let held = shared.partition(log, partition).ok_or(unknown.clone())?;
        let assigned = catalog.partitions.get_mut(&(log, partition)).ok_or(unknown)?;
        let first = assigned.next;
        let end = Offset(first.0 + max_records.max(1));
        assigned.next = end;
        held.state.write().reserved.insert(first, end);
        Ok(Self { shared: Arc::clone(shared), log, partition, first, end, settled: false })
    }

    /// The first offset of the range.
    pub fn first(&self) -> Offset {
        self.first
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut catalog = self.shared.catalog.lock();
        if let Some(assigned) = catalog.partitions.get_mut(&(self.log, self.partition))
            && assigned.next == self.end
        {
            assigned.next = self.first;
        }
        let held = self.shared.partition(self.log, self.partition);
        if let Some(partition) = held {
            partition.state.write().reserved.remove(&self.first);
            drop(catalog);
            partition.announce();
        }
    }
}

/// Fills a segment file with records for a reservation.
pub struct SegmentWriter {
    reservation: Reservation,
    kind: LogKind,
    next: Offset,
    pace: Pace,
    /// Begun by the first records.
    file: Option<SegmentFile>,
}

impl SegmentWriter {
    /// A writer of `reservation`.
    pub fn new(reservation: Reservation, pace: Pace) -> Self {
        let catalog = reservation.shared.catalog.lock();
        let kind = catalog.logs.get(&reservation.log).map_or(LogKind::Records, |spec| spec.kind);
        drop(catalog);
        let next = reservation.first;
        Self { reservation, kind, next, pace, file: None }
    }

    /// The offset that the next record gets.
    pub fn next_offset(&self) -> Offset {
        self.next
    }

    /// Records that still fit.
    pub fn room(&self) -> u64 {
        self.reservation.end.0 - self.next.0
    }

    /// Bytes of records so far, before compression.
    pub fn size_bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, SegmentFile::size_bytes)
    }

    /// Adds records; they get the next offsets.
    pub fn append(&mut self, records: &Records) -> Result<(), SegmentError> {
        let Reservation { log, partition, .. } = self.reservation;
        let (room, count) = (self.room(), records.len() as u64);
        if count > room {
            return Err(SegmentError::Full { log, partition, room, records: count });
        }
        if count == 0 {
            return Ok(());
        }
        let shared = &self.reservation.shared;
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let sources = self.kind == LogKind::Outputs || records.sources.is_some();
                let place = shared.segment_place(log, partition, sources, self.pace);
                self.file.insert(SegmentFile::create(place, self.next)?)
            }
        };
        file.append(self.next, records, shared.clock.now_ms())?;
        self.next = Offset(self.next.0 + count);
        Ok(())
    }

    /// Writes out what was gathered for a block.
    pub fn flush(&mut self) -> Result<(), SegmentError> {
        Ok(self.file.as_mut().map_or(Ok(()), SegmentFile::flush)?)
    }

    /// Makes the file durable; `None` if there was no record, and then nothing was reserved.
    pub fn finish(self) -> Result<Option<SealedSegment>, SegmentError> {
        let Some(file) = self.file else { return Ok(None) };
        let segment = Arc::new(file.finish()?);
        Ok(Some(SealedSegment { segment, reservation: self.reservation }))
    }
}

/// A durable file that no commit named yet. Dropped, it leaves nothing.
pub struct SealedSegment {
    pub(super) segment: Arc<Segment>,
    pub(super) reservation: Reservation,
}

impl std::fmt::Debug for SealedSegment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.segment.fmt(f)
    }
}

impl SealedSegment {
    /// The log.
    pub fn log(&self) -> LogId {
        self.reservation.log
    }

    /// The partition.
    pub fn partition(&self) -> PartitionId {
        self.reservation.partition
    }

    /// First offset and next offset.
    pub fn range(&self) -> (Offset, Offset) {
        (self.segment.entry.first, self.segment.entry.next)
    }
}

impl Log {
    /// Reserves offsets for up to `max_records` records that a [`SegmentWriter`] writes.
    pub fn reserve(
        &self,
        log: LogId,
        partition: PartitionId,
        max_records: u64,
    ) -> Result<Reservation, CommitError> {
        Reservation::take(self.shared(), log, partition, max_records)
    }
}
