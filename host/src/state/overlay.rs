//! The overlay that a plugin's call writes to: it takes effect if the call succeeds, or not at all.

use arrow_array::builder::BinaryBuilder;
use arrow_array::{Array, BinaryArray};
use hashbrown::HashMap;

use super::store::{NO_ROW, Page, PageLimit, StoreSet};

type Bytes = Box<[u8]>;

/// The changes of one call of a plugin, over the state that it began with.
#[derive(Debug)]
pub struct Overlay {
    pub(super) stores: Vec<CallChanges>,
}

/// The changes of one call to one store. A plugin that reads first and writes once, as the SDK does,
/// leaves columns as they came; they become entries when the call goes on.
#[derive(Debug, Default)]
pub(super) struct CallChanges {
    /// Keys and values that were put, in order.
    pub(super) columns: Vec<(BinaryArray, BinaryArray)>,
    /// What came after `columns`.
    pub(super) entries: HashMap<Bytes, Option<Bytes>>,
    /// The keys that were read last, if many, and their rows in the store: mostly those are written.
    pub(super) asked: Option<(BinaryArray, Vec<u32>)>,
}

/// Rows from which on a put is kept as columns.
const COLUMN_ROWS: usize = 64;
/// Most puts of a call that are kept as columns.
const MAX_COLUMNS: usize = 8;

impl CallChanges {
    /// All changes by key.
    fn entries(&mut self) -> &mut HashMap<Bytes, Option<Bytes>> {
        for (keys, values) in std::mem::take(&mut self.columns) {
            self.entries.reserve(keys.len());
            for i in 0..keys.len() {
                self.entries.insert(keys.value(i).into(), Some(values.value(i).into()));
            }
        }
        &mut self.entries
    }
}

impl Overlay {
    /// No changes, over `stores` stores.
    pub fn new(stores: usize) -> Self {
        Self { stores: (0..stores).map(|_| CallChanges::default()).collect() }
    }

    /// The value of each key, null where there is none, through these changes. Stops after the value
    /// that brings their bytes beyond `limit_bytes`: fewer values than keys mean that it was reached.
    pub fn get_many(
        &mut self,
        base: &StoreSet,
        store: usize,
        keys: &BinaryArray,
        limit_bytes: usize,
    ) -> BinaryArray {
        let changes = &mut self.stores[store];
        changes.entries();
        let rows = base.rows_of(store, keys);
        let mut values = BinaryBuilder::with_capacity(keys.len(), keys.len() * 16);
        let mut bytes = 0;
        for (i, &row) in rows.iter().enumerate() {
            let changed = match changes.entries.is_empty() {
                true => None,
                false => changes.entries.get(keys.value(i)),
            };
            let value = match changed {
                Some(change) => change.as_deref(),
                None if row == NO_ROW => None,
                None => base.value_of(store, row),
            };
            values.append_option(value);
            bytes += value.map_or(0, <[u8]>::len);
            if bytes > limit_bytes {
                break;
            }
        }
        changes.asked = (keys.len() >= COLUMN_ROWS).then(|| (keys.clone(), rows));
        values.finish()
    }

    /// Writes one value for each key, in order.
    pub fn put_many(&mut self, store: usize, keys: BinaryArray, values: BinaryArray) {
        let changes = &mut self.stores[store];
        let keep = changes.entries.is_empty() && changes.columns.len() < MAX_COLUMNS;
        let rows = keys.len();
        changes.columns.push((keys, values));
        if !keep || rows < COLUMN_ROWS {
            changes.entries();
        }
    }

    /// Deletes each key.
    pub fn delete_many(&mut self, store: usize, keys: &BinaryArray) {
        let entries = self.stores[store].entries();
        for i in 0..keys.len() {
            entries.insert(keys.value(i).into(), None);
        }
    }

    /// Entries with `start <= key < end`, in key order, through these changes.
    pub fn scan(
        &mut self,
        base: &mut StoreSet,
        store: usize,
        start: &[u8],
        end: Option<&[u8]>,
        limit: PageLimit,
    ) -> Page {
        let entries = self.stores[store].entries().iter();
        let over = entries.map(|(key, value)| (key.as_ref(), value.as_deref())).collect();
        base.scan_through(store, start, end, limit, &over)
    }
}
