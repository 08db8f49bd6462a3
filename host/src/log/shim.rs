//! Temporary.
#![allow(missing_docs)]
use super::*;
use crate::types::Offset;
impl TopicPartition {
    pub fn offset_for_time(&self, _ms: i64) -> Result<Offset, ReadError> {
        Ok(self.start_offset())
    }
    pub fn count_between(&self, a: Offset, b: Offset) -> u64 {
        b.0.saturating_sub(a.0)
    }
    pub fn size_bytes(&self) -> u64 {
        0
    }
}
impl Log {
    pub fn failure(&self) -> Option<String> {
        None
    }
}
impl LogConfig {
    pub fn from_config(_c: &crate::config::Config) -> Self {
        Self::default()
    }
}
