//! The filter as a SmartModule: it keeps the records of level `warn`, told without parsing them.

use fluvio_smartmodule::{Result, SmartModuleRecord, smartmodule};

#[smartmodule(filter)]
pub fn filter(record: &SmartModuleRecord) -> Result<bool> {
    Ok(record.value.as_ref().starts_with(br#"{"level":"warn""#))
}
