//! Batches as the columns of a segment file, and back.
//!
//! Columns, in order: `offset` u64, `timestamp` ms UTC, `key` and `value` binary or null, `headers`
//! list of (`name`, `value`); where records have sources also `source_generation`, `source_input`,
//! `source_partition` u32, `source_offset` u64, `source_ordinal` u32, null where a record has none.
//!
//! **Invariant:** columns of another name, order or type are refused, never guessed at.

use std::sync::Arc;

use arrow_array::types::{TimestampMillisecondType, UInt32Type, UInt64Type};
use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, BinaryArray, PrimitiveArray, RecordBatch,
    TimestampMillisecondArray, UInt32Array, UInt64Array,
};
use arrow_buffer::ScalarBuffer;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::storage::Column;
use crate::types::{Batch, GenerationNumber, Headers, Records, Sources};

/// The columns of a segment, with or without sources.
pub fn schema(sources: bool) -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let mut fields = vec![
        Field::new("offset", DataType::UInt64, false),
        Field::new("timestamp", time, false),
        Field::new("key", DataType::Binary, true),
        Field::new("value", DataType::Binary, true),
        Field::new("headers", DataType::List(Headers::item_field()), false),
    ];
    if sources {
        for name in ["source_generation", "source_input", "source_partition"] {
            fields.push(Field::new(name, DataType::UInt32, true));
        }
        fields.push(Field::new("source_offset", DataType::UInt64, true));
        fields.push(Field::new("source_ordinal", DataType::UInt32, true));
    }
    Arc::new(Schema::new(fields))
}

/// The columns of `batch`, copied nowhere; sources only where the schema has them.
///
/// # Errors
/// When they do not fit the schema, which must be one of [`schema`].
pub fn to_columns(batch: &Batch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let (n, records) = (batch.len(), &batch.records);
    let time = TimestampMillisecondArray::new(records.timestamps.clone(), None);
    let headers = records.headers.clone().unwrap_or_else(|| Headers::none(n));
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::new(batch.offsets.clone(), None)),
        Arc::new(time.with_timezone("UTC")),
        Arc::new(records.keys.clone()),
        Arc::new(records.values.clone()),
        Arc::new(headers.as_list().clone()),
    ];
    match &records.sources {
        Some(s) if schema.fields().len() > columns.len() => {
            columns.push(Arc::new(UInt32Array::from_value(s.generation.0, n)));
            columns.push(Arc::new(UInt32Array::new(s.inputs.clone(), None)));
            columns.push(Arc::new(UInt32Array::new(s.partitions.clone(), None)));
            columns.push(Arc::new(UInt64Array::new(s.offsets.clone(), None)));
            columns.push(Arc::new(UInt32Array::new(s.ordinals.clone(), None)));
        }
        _ => {
            for field in schema.fields().iter().skip(columns.len()) {
                columns.push(arrow_array::new_null_array(field.data_type(), n));
            }
        }
    }
    RecordBatch::try_new(Arc::clone(schema), columns)
}

/// Which columns of a partition somebody reads. All others always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Values; null where nobody wants them.
    pub values: bool,
    /// Where records came from; absent where nobody wants them.
    pub sources: bool,
}

impl Wanted {
    /// Everything.
    pub const ALL: Self = Self { values: true, sources: true };
    /// No more than what always is.
    pub const NONE: Self = Self { values: false, sources: false };

    /// How column `i` of a segment is read.
    pub(super) fn column(self, i: usize) -> Column {
        let wanted = match i {
            3 => self.values,
            5.. => self.sources,
            _ => true,
        };
        if wanted { Column::Stored } else { Column::Unwanted }
    }

    /// `records` without what nobody wants.
    pub(super) fn of(self, mut records: Records) -> Records {
        if !self.values {
            records.values = BinaryArray::new_null(records.len());
        }
        if !self.sources {
            records.sources = None;
        }
        records
    }
}

/// The reverse of [`to_columns`]; `None` when the columns are not a segment's.
pub(super) fn from_columns(rows: &RecordBatch) -> Option<Batch> {
    let with_sources = rows.num_columns() > 5;
    if rows.schema_ref().fields() != schema(with_sources).fields() {
        return None;
    }
    let n = rows.num_rows();
    let headers: &arrow_array::ListArray = rows.column(4).as_any().downcast_ref()?;
    let ends = headers.value_offsets();
    let headers = (ends[0] != ends[n]).then(|| Headers::from_list(headers.clone()));
    let sources = match with_sources && rows.column(5).null_count() == 0 && n > 0 {
        true => Some(Sources {
            generation: GenerationNumber(*numbers::<UInt32Type>(rows, 5)?.first()?),
            inputs: numbers::<UInt32Type>(rows, 6)?,
            partitions: numbers::<UInt32Type>(rows, 7)?,
            offsets: numbers::<UInt64Type>(rows, 8)?,
            ordinals: numbers::<UInt32Type>(rows, 9)?,
        }),
        false => None,
    };
    let records = Records {
        timestamps: numbers::<TimestampMillisecondType>(rows, 1)?,
        keys: rows.column(2).as_any().downcast_ref::<BinaryArray>()?.clone(),
        values: rows.column(3).as_any().downcast_ref::<BinaryArray>()?.clone(),
        headers,
        sources,
    };
    Some(Batch { offsets: numbers::<UInt64Type>(rows, 0)?, records })
}

fn numbers<T: ArrowPrimitiveType>(rows: &RecordBatch, i: usize) -> Option<ScalarBuffer<T::Native>> {
    let column = rows.column(i).as_any().downcast_ref::<PrimitiveArray<T>>()?;
    Some(column.values().clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::codec::tests::sample;

    #[test]
    fn columns_round_trip() {
        let all = Batch { offsets: vec![4, 6, 1 << 50].into(), records: sample() };
        let rows = to_columns(&all, &schema(true)).unwrap();
        assert_eq!(from_columns(&rows), Some(all.clone()));
        let records = Records { sources: None, headers: None, ..all.records };
        let plain = Batch { offsets: all.offsets, records };
        for sources in [false, true] {
            let rows = to_columns(&plain, &schema(sources)).unwrap();
            assert_eq!(from_columns(&rows), Some(plain.clone()), "sources: {sources}");
        }
        let foreign = rows.project(&[0, 1, 3, 2, 4]).unwrap();
        assert_eq!(from_columns(&foreign), None);
    }
}
