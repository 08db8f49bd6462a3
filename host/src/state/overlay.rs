//! The overlay that a plugin's call writes to: it takes effect if the call succeeds, or not at all.

use arrow_array::builder::BinaryBuilder;
use arrow_array::{Array, BinaryArray};
use hashbrown::HashMap;

use super::own_keys::OwnKeys;
use super::prefetch::AHEAD;
use super::store::{NO_ROW, Page, PageLimit, StoreSet};
use crate::types::column_bytes;

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
    /// What was put, in order.
    pub(super) columns: Vec<Columns>,
    /// What came after `columns`.
    pub(super) entries: HashMap<Bytes, Option<Bytes>>,
    /// The keys that were read last, if many, and their rows in the store: mostly those are written.
    pub(super) asked: Option<(BinaryArray, Vec<u32>)>,
    /// The keys of the batch's records.
    pub(super) own: OwnKeys,
}

/// Changes as they came.
#[derive(Debug)]
pub(super) enum Columns {
    /// Keys and their values.
    Keyed(BinaryArray, BinaryArray),
    /// Numbers of the batch's own keys, and values; null deletes.
    Own(Vec<u32>, BinaryArray),
}

impl Columns {
    fn len(&self) -> usize {
        let (Self::Keyed(_, values) | Self::Own(_, values)) = self;
        values.len()
    }
}

/// Rows from which on a put is kept as columns.
const COLUMN_ROWS: usize = 64;
/// Most puts of a call that are kept as columns.
const MAX_COLUMNS: usize = 8;

/// Bytes that a commit has for each change beside its key and value.
const CHANGE_BYTES: usize = 20;

impl CallChanges {
    fn size_bytes(&self) -> usize {
        let columns = self.columns.iter().map(|columns| {
            let (keys, values) = match columns {
                Columns::Keyed(keys, values) => (column_bytes(keys), values),
                Columns::Own(_, values) => (self.own.size_bytes(), values),
            };
            keys + column_bytes(values) + CHANGE_BYTES * columns.len()
        });
        let entries = self.entries.iter().map(|(key, value)| {
            CHANGE_BYTES + key.len() + value.as_ref().map_or(0, |value| value.len())
        });
        columns.sum::<usize>() + entries.sum::<usize>()
    }

    /// All changes by key.
    fn entries(&mut self) -> &mut HashMap<Bytes, Option<Bytes>> {
        for columns in std::mem::take(&mut self.columns) {
            self.entries.reserve(columns.len());
            let mut set = |key: &[u8], value: Option<&[u8]>| {
                self.entries.insert(key.into(), value.map(Into::into));
            };
            match columns {
                Columns::Keyed(keys, values) => {
                    (0..keys.len()).for_each(|i| set(keys.value(i), Some(values.value(i))));
                }
                Columns::Own(entries, values) => {
                    entries.iter().zip(&values).for_each(|(&e, value)| set(self.own.key(e), value));
                }
            }
        }
        &mut self.entries
    }

    /// Keeps changes as they came where they are many, and the first.
    fn push(&mut self, columns: Columns) {
        let keep = self.entries.is_empty()
            && self.columns.len() < MAX_COLUMNS
            && columns.len() >= COLUMN_ROWS;
        self.columns.push(columns);
        if !keep {
            self.entries();
        }
    }

    /// The value of a key that has `row` in the store, through the changes, of which none are columns.
    fn value<'a>(
        &'a self,
        base: &'a StoreSet,
        store: usize,
        row: u32,
        key: impl FnOnce() -> &'a [u8],
    ) -> Option<&'a [u8]> {
        let changed = match self.entries.is_empty() {
            true => None,
            false => self.entries.get(key()),
        };
        match changed {
            Some(change) => change.as_deref(),
            None if row == NO_ROW => None,
            None => base.value_of(store, row),
        }
    }
}

impl Overlay {
    /// No changes, over `stores` stores.
    pub fn new(stores: usize) -> Self {
        Self { stores: (0..stores).map(|_| CallChanges::default()).collect() }
    }

    /// Bytes of the changes as a commit has them, at most: a key that was put more than once may count
    /// as often.
    pub fn size_bytes(&self) -> usize {
        self.stores.iter().map(CallChanges::size_bytes).sum()
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
            let value = changes.value(base, store, row, || keys.value(i));
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
        self.stores[store].push(Columns::Keyed(keys, values));
    }

    /// Numbers the keys of a batch's records, for a store whose keys are text, or else bytes. For each
    /// record the number of its key, [`NO_ROW`] where it cannot be one of the store, and the value of
    /// each number, null where there is none. Stops as [`get_many`](Self::get_many) does.
    pub fn get_own(
        &mut self,
        base: &mut StoreSet,
        store: usize,
        keys: &BinaryArray,
        text: bool,
        limit_bytes: usize,
    ) -> (Vec<u32>, BinaryArray) {
        let changes = &mut self.stores[store];
        changes.entries();
        changes.own = base.number(store, keys, text);
        let rows = &changes.own.rows;
        let mut values = BinaryBuilder::with_capacity(rows.len(), rows.len() * 16);
        let mut bytes = 0;
        for (entry, &row) in rows.iter().enumerate() {
            base.ask_for(store, rows, entry + AHEAD);
            let value = changes.value(base, store, row, || changes.own.key(entry as u32));
            values.append_option(value);
            bytes += value.map_or(0, <[u8]>::len);
            if bytes > limit_bytes {
                break;
            }
        }
        (std::mem::take(&mut changes.own.entries), values.finish())
    }

    /// Sets the values of numbers that [`get_own`](Self::get_own) gave, in order; null deletes.
    pub fn put_own(&mut self, store: usize, entries: Vec<u32>, values: BinaryArray) {
        self.stores[store].push(Columns::Own(entries, values));
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
