//! Stores in memory: point reads, scans, and what changed since the last commit.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::ops::Bound;

use arrow_array::builder::BinaryBuilder;
use arrow_array::{Array, BinaryArray};
use arrow_buffer::OffsetBuffer;
use hashbrown::DefaultHashBuilder;
use smallvec::SmallVec;

use super::changes::changelog_key;
use super::overlay::{Columns, Overlay};
use super::own_keys::OwnKeys;
use super::prefetch::{AHEAD, prefetch};
use super::row_index::RowIndex;

/// Bytes in place where they are few, so that most entries are a cache line.
type Bytes = SmallVec<[u8; 16]>;

/// Stands for a key that has no row.
pub(super) const NO_ROW: u32 = u32::MAX;

/// Keys that are looked up together: so many that memory is not waited for, so few that it stays near.
const ROUND: usize = 64;

/// One entry: a line of the processor's cache, where key and value are small.
#[derive(Debug)]
#[repr(align(64))]
struct Entry {
    key: Bytes,
    /// Empty without one.
    value: Bytes,
    /// Whether it has a value. Without one it was deleted, and the changelog does not say so yet.
    is_present: bool,
    /// Whether it is among the store's changed entries.
    changed: bool,
    /// The batch that had this key last, as the store counts them, and the key's index among its own.
    own: (u32, u32),
}

const _: () = assert!(size_of::<Entry>() == 64);

impl Entry {
    fn value(&self) -> Option<&[u8]> {
        self.is_present.then_some(&self.value)
    }
}

/// One store. Entries lie in rows, which a hash table finds by key; what changed since the last
/// commit is a list of rows. The ordered index exists from the first scan on, so that plugins which
/// never scan do not pay for it.
#[derive(Debug, Default)]
struct Store {
    hasher: DefaultHashBuilder,
    rows: RowIndex,
    entries: Vec<Entry>,
    /// Rows that hold no entry.
    free: Vec<u32>,
    changed: Vec<u32>,
    /// Bytes of the changed entries in the changelog.
    changed_bytes: usize,
    index: Option<BTreeSet<Bytes>>,
    len: usize,
    size_bytes: u64,
    /// Batches whose keys were numbered.
    numbered: u32,
}

impl Store {
    fn row(&self, hash: u64, key: &[u8]) -> Option<u32> {
        self.rows.find(hash, |row| *self.entries[row as usize].key == *key)
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let row = self.row(self.hasher.hash_one(key), key)?;
        self.entries[row as usize].value()
    }

    /// The row of each key, or [`NO_ROW`].
    fn rows_of(&self, keys: &BinaryArray) -> Vec<u32> {
        self.look_up(keys.len(), |i| keys.value(i)).1
    }

    /// The hash of each of `count` keys and its row, or [`NO_ROW`]. In rounds: the table is asked for many
    /// keys before it is looked at for any, and so are entries, and what came is still at hand.
    fn look_up<'k>(&self, count: usize, key: impl Fn(usize) -> &'k [u8]) -> (Vec<u64>, Vec<u32>) {
        let (mut hashes, mut rows) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for from in (0..count).step_by(ROUND) {
            let round = from..(from + ROUND).min(count);
            hashes.extend(round.clone().map(|i| {
                let hash = self.hasher.hash_one(key(i));
                self.rows.ask_for(hash);
                hash
            }));
            // The first row that has the hash: nearly always the right one.
            rows.extend(hashes[from..].iter().map(|&hash| {
                let row = self.rows.find(hash, |_| true).unwrap_or(NO_ROW);
                prefetch(&self.entries, row as usize);
                row
            }));
            for i in round {
                let key = key(i);
                if self.entries.get(rows[i] as usize).is_some_and(|entry| *entry.key != *key) {
                    rows[i] = self.row(hashes[i], key).unwrap_or(NO_ROW);
                }
            }
        }
        (hashes, rows)
    }

    /// Numbers the keys of a batch's records.
    fn number(&mut self, keys: &BinaryArray, text: bool) -> OwnKeys {
        self.numbered = self.numbered.wrapping_add(1);
        if self.numbered == 0 {
            self.entries.iter_mut().for_each(|entry| entry.own.0 = 0);
            self.numbered = 1;
        }
        let mut own = OwnKeys::encode(keys, text);
        let (hashes, rows) = self.look_up(keys.len(), |i| own.of_record(i));
        own.entries.reserve(keys.len());
        // Keys that the store does not have.
        let mut unknown = RowIndex::default();
        for (record, row) in rows.into_iter().enumerate() {
            let key = own.of_record(record);
            if key.is_empty() {
                own.entries.push(NO_ROW);
                continue;
            }
            let next = own.rows.len() as u32;
            let entry = match row {
                NO_ROW => match unknown.find(hashes[record], |entry| own.key(entry) == key) {
                    Some(entry) => entry,
                    None => {
                        unknown.insert(hashes[record], next);
                        next
                    }
                },
                row => match &mut self.entries[row as usize].own {
                    (batch, entry) if *batch == self.numbered => *entry,
                    new => {
                        *new = (self.numbered, next);
                        next
                    }
                },
            };
            if entry == next {
                own.rows.push(row);
                own.firsts.push(record as u32);
            }
            own.entries.push(entry);
        }
        own
    }

    /// Asks for the memory of the entry in the row that stands at `i`.
    #[inline]
    fn ask_for(&self, rows: &[u32], i: usize) {
        prefetch(&self.entries, rows.get(i).map_or(usize::MAX, |row| *row as usize));
    }

    /// Sets the value of `key`, or deletes it; `durable` when the changelog has it already.
    fn set(&mut self, key: &[u8], value: Option<&[u8]>, durable: bool) {
        let hash = self.hasher.hash_one(key);
        let row = match self.row(hash, key) {
            Some(row) => row,
            None if value.is_none() => return,
            None => self.insert(hash, key),
        };
        self.set_row(row, value, durable);
    }

    /// Sets the value of `key`, or deletes it, where `row` was its row, or [`NO_ROW`].
    fn set_at<'k>(&mut self, row: u32, key: impl FnOnce() -> &'k [u8], value: Option<&[u8]>) {
        match row {
            // The same key may have come before.
            NO_ROW => self.set(key(), value, false),
            row => self.set_row(row, value, false),
        }
    }

    /// Sets the value of the key that has `row`, or deletes it.
    fn set_row(&mut self, row: u32, value: Option<&[u8]>, durable: bool) {
        let entry = &mut self.entries[row as usize];
        let (key, changed) = (&entry.key, entry.changed);
        let old_bytes = entry.is_present.then_some(entry.value.len());
        match value {
            Some(new) if entry.value.len() == new.len() => entry.value.copy_from_slice(new),
            value => entry.value = value.map_or_else(Bytes::new, Bytes::from_slice),
        }
        entry.is_present = value.is_some();
        let new_bytes = value.map_or(0, <[u8]>::len);
        if !durable && changed {
            self.changed_bytes = self.changed_bytes + new_bytes - old_bytes.unwrap_or(0);
        } else if !durable {
            entry.changed = true;
            self.changed.push(row);
            self.changed_bytes += changelog_key::PREFIX_BYTES + key.len() + new_bytes;
        }
        self.size_bytes += new_bytes as u64;
        match (old_bytes, value) {
            (Some(old), Some(_)) => self.size_bytes -= old as u64,
            (None, Some(_)) => {
                self.len += 1;
                self.size_bytes += key.len() as u64;
                if let Some(index) = &mut self.index {
                    index.insert(key.clone());
                }
            }
            (Some(old), None) => {
                self.len -= 1;
                self.size_bytes -= (key.len() + old) as u64;
                if let Some(index) = &mut self.index {
                    index.remove(key);
                }
                if durable && !changed {
                    self.forget(row);
                }
            }
            (None, None) => {}
        }
    }

    /// A new row without a value.
    fn insert(&mut self, hash: u64, key: &[u8]) -> u32 {
        let (key, value) = (Bytes::from_slice(key), Bytes::new());
        let entry = Entry { key, value, is_present: false, changed: false, own: (0, 0) };
        let row = match self.free.pop() {
            Some(row) => {
                self.entries[row as usize] = entry;
                row
            }
            None => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).expect("memory ends before 2^32 entries")
            }
        };
        self.rows.insert(hash, row);
        row
    }

    /// Frees the row of a deleted entry.
    fn forget(&mut self, row: u32) {
        let key = std::mem::take(&mut self.entries[row as usize].key);
        self.rows.remove(self.hasher.hash_one(&*key), row);
        self.free.push(row);
    }

    fn index(&mut self) -> &BTreeSet<Bytes> {
        let live = |entry: &Entry| entry.is_present.then(|| entry.key.clone());
        self.index.get_or_insert_with(|| self.entries.iter().filter_map(live).collect())
    }
}

/// Entries of a scan, in key order.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Keys, none null.
    pub keys: BinaryArray,
    /// Values, none null.
    pub values: BinaryArray,
    /// Where the next page starts; `None` at the end.
    pub next: Option<Vec<u8>>,
}

/// How much one page of a scan may hold.
#[derive(Debug, Clone, Copy)]
pub struct PageLimit {
    /// Most entries.
    pub entries: usize,
    /// Bytes of keys and values: the entry that reaches them is the page's last.
    pub bytes: usize,
}

/// Memory of an entry beside its key and value: its row, its place in the table, allocations if any.
const ENTRY_BYTES: u64 = 64;

/// All stores of a task, by the plugin's index of them.
#[derive(Debug, Default)]
pub struct StoreSet {
    stores: Vec<Store>,
}

impl StoreSet {
    /// `stores` empty stores.
    pub fn new(stores: usize) -> Self {
        Self { stores: (0..stores).map(|_| Store::default()).collect() }
    }

    /// The value of `key`.
    ///
    /// # Panics
    /// When there is no store of that index, here and below: the plugin floor opens stores by name.
    pub fn get(&self, store: usize, key: &[u8]) -> Option<&[u8]> {
        self.stores[store].get(key)
    }

    /// The row of each key, or [`NO_ROW`]; they hold until a store changes.
    pub(super) fn rows_of(&self, store: usize, keys: &BinaryArray) -> Vec<u32> {
        self.stores[store].rows_of(keys)
    }

    /// Numbers the keys of a batch's records, of a store whose keys are text, or else bytes.
    pub(super) fn number(&mut self, store: usize, keys: &BinaryArray, text: bool) -> OwnKeys {
        self.stores[store].number(keys, text)
    }

    /// Asks for the memory of the entry in the row that stands at `i`, without waiting for it.
    #[inline]
    pub(super) fn ask_for(&self, store: usize, rows: &[u32], i: usize) {
        self.stores[store].ask_for(rows, i);
    }

    /// The value in a row.
    pub(super) fn value_of(&self, store: usize, row: u32) -> Option<&[u8]> {
        self.stores[store].entries.get(row as usize)?.value()
    }

    /// Whether there are no stores at all.
    pub fn is_empty(&self) -> bool {
        self.stores.is_empty()
    }

    /// The number of entries of a store.
    pub fn len(&self, store: usize) -> usize {
        self.stores[store].len
    }

    /// The bytes of a store's keys and values.
    pub fn size_bytes(&self, store: usize) -> u64 {
        self.stores[store].size_bytes
    }

    /// The bytes of all stores' keys and values.
    pub fn total_bytes(&self) -> u64 {
        self.stores.iter().map(|s| s.size_bytes).sum()
    }

    /// The memory that all stores take in bytes: keys, values, and some for each entry.
    pub fn memory_bytes(&self) -> u64 {
        self.stores.iter().map(|s| s.size_bytes + ENTRY_BYTES * s.len as u64).sum()
    }

    /// Makes the changes of a call that succeeded part of the state and of the next commit.
    pub fn apply(&mut self, overlay: Overlay) {
        for (store, changes) in self.stores.iter_mut().zip(overlay.stores) {
            for columns in &changes.columns {
                match columns {
                    Columns::Keyed(keys, values) => {
                        let same = |asked: &BinaryArray| {
                            asked.value_offsets() == keys.value_offsets()
                                && asked.value_data() == keys.value_data()
                        };
                        let rows = changes.asked.as_ref().filter(|(asked, _)| same(asked));
                        let rows =
                            rows.map_or_else(|| store.rows_of(keys), |(_, rows)| rows.clone());
                        for (i, &row) in rows.iter().enumerate() {
                            store.ask_for(&rows, i + AHEAD);
                            let value = Some(values.value(i));
                            store.set_at(row, || keys.value(i), value);
                        }
                    }
                    Columns::Own(entries, values) => {
                        let rows: Vec<_> =
                            entries.iter().map(|&entry| changes.own.rows[entry as usize]).collect();
                        for (i, (&entry, value)) in entries.iter().zip(values).enumerate() {
                            store.ask_for(&rows, i + AHEAD);
                            let row = rows[i];
                            store.set_at(row, || changes.own.key(entry), value);
                        }
                    }
                }
            }
            // The changelog has changes in the order in which they are made here: not the hasher's.
            let mut entries: Vec<_> = changes.entries.into_iter().collect();
            entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            for (key, value) in entries {
                store.set(&key, value.as_deref(), false);
            }
        }
    }

    /// Applies changes that are durable: a checkpoint's or a changelog's.
    pub fn restore(&mut self, store: usize, key: &[u8], value: Option<&[u8]>) {
        self.stores[store].set(key, value, true);
    }

    /// Takes what changed since the last call, as the keys and values of changelog records, one a
    /// changed key, in the order in which keys changed first.
    pub fn take_changes(&mut self) -> (BinaryArray, BinaryArray) {
        let rows: usize = self.stores.iter().map(|s| s.changed.len()).sum();
        let bytes = self.uncommitted_bytes();
        let (mut ends, mut keys) = (Vec::with_capacity(rows + 1), Vec::with_capacity(bytes));
        ends.push(0);
        let mut values = BinaryBuilder::with_capacity(rows, bytes);
        for (number, store) in self.stores.iter_mut().enumerate() {
            store.changed_bytes = 0;
            let changed = std::mem::take(&mut store.changed);
            for (i, &row) in changed.iter().enumerate() {
                store.ask_for(&changed, i + AHEAD);
                let entry = &mut store.entries[row as usize];
                entry.changed = false;
                changelog_key::join(number, &entry.key, &mut keys);
                ends.push(i32::try_from(keys.len()).expect("a commit is far below 2 GiB"));
                values.append_option(entry.value());
                if !entry.is_present {
                    store.forget(row);
                }
            }
        }
        (BinaryArray::new(OffsetBuffer::new(ends.into()), keys.into(), None), values.finish())
    }

    /// The bytes that [`StoreSet::take_changes`] would take.
    pub fn uncommitted_bytes(&self) -> usize {
        self.stores.iter().map(|s| s.changed_bytes).sum()
    }

    /// Entries with `start <= key < end`, in key order.
    pub fn scan(
        &mut self,
        store: usize,
        start: &[u8],
        end: Option<&[u8]>,
        limit: PageLimit,
    ) -> Page {
        self.scan_through(store, start, end, limit, &BTreeMap::new())
    }

    /// A scan that sees the changes of `over` as if they had been applied.
    pub(super) fn scan_through(
        &mut self,
        store: usize,
        start: &[u8],
        end: Option<&[u8]>,
        limit: PageLimit,
        over: &BTreeMap<&[u8], Option<&[u8]>>,
    ) -> Page {
        let store = &mut self.stores[store];
        store.index();
        let store = &*store;
        let index = store.index.iter().flatten_range(start, end);
        let mut page = PageBuilder::new(limit);
        let mut changed = over.range::<[u8], _>(range(start, end)).peekable();
        let mut stored = index.peekable();
        loop {
            let (key, over): (Option<&[u8]>, Option<&[u8]>) =
                (stored.peek().copied().map(AsRef::as_ref), changed.peek().map(|(key, _)| **key));
            let entry = match (key, over) {
                (None, None) => break,
                (Some(key), over) if over.is_none_or(|over| key < over) => {
                    stored.next();
                    store.get(key).map(|value| (key, value))
                }
                (key, _) => {
                    if key == over {
                        stored.next();
                    }
                    changed.next().and_then(|(key, value)| Some((*key, (*value)?)))
                }
            };
            if let Some((key, value)) = entry
                && !page.push(key, value)
            {
                break;
            }
        }
        page.finish()
    }
}

fn range<'a>(start: &'a [u8], end: Option<&'a [u8]>) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    // An end at or before the start is an empty range, which `BTreeMap::range` would refuse.
    match end {
        Some(end) if end <= start => (Bound::Included(start), Bound::Excluded(start)),
        Some(end) => (Bound::Included(start), Bound::Excluded(end)),
        None => (Bound::Included(start), Bound::Unbounded),
    }
}

/// The range of the ordered index, if it exists.
trait FlattenRange<'a> {
    fn flatten_range(
        self,
        start: &'a [u8],
        end: Option<&'a [u8]>,
    ) -> impl Iterator<Item = &'a Bytes>;
}

impl<'a, I: Iterator<Item = &'a BTreeSet<Bytes>>> FlattenRange<'a> for I {
    fn flatten_range(
        self,
        start: &'a [u8],
        end: Option<&'a [u8]>,
    ) -> impl Iterator<Item = &'a Bytes> {
        self.flat_map(move |index| index.range::<[u8], _>(range(start, end)))
    }
}

struct PageBuilder {
    keys: BinaryBuilder,
    values: BinaryBuilder,
    entries: usize,
    bytes: usize,
    limit: PageLimit,
    next: Option<Vec<u8>>,
}

impl PageBuilder {
    fn new(limit: PageLimit) -> Self {
        Self {
            keys: BinaryBuilder::new(),
            values: BinaryBuilder::new(),
            entries: 0,
            bytes: 0,
            limit,
            next: None,
        }
    }

    /// Adds an entry, or notes that the next page starts here.
    fn push(&mut self, key: &[u8], value: &[u8]) -> bool {
        let full = self.entries >= self.limit.entries || self.bytes >= self.limit.bytes;
        if self.entries > 0 && full {
            self.next = Some(key.to_vec());
            return false;
        }
        self.keys.append_value(key);
        self.values.append_value(value);
        self.entries += 1;
        self.bytes += key.len() + value.len();
        true
    }

    fn finish(mut self) -> Page {
        Page { keys: self.keys.finish(), values: self.values.finish(), next: self.next }
    }
}

#[cfg(test)]
mod tests {
    use anabranch_key::Part;

    use super::*;

    fn column(rows: &[&str]) -> BinaryArray {
        rows.iter().map(|r| Some(r.as_bytes())).collect()
    }

    fn rows(page: &Page) -> Vec<(String, String)> {
        let text = |b: Option<&[u8]>| String::from_utf8(b.unwrap().to_vec()).unwrap();
        page.keys.iter().map(text).zip(page.values.iter().map(text)).collect()
    }

    const ALL: PageLimit = PageLimit { entries: 100, bytes: 1 << 20 };

    #[test]
    fn a_failed_call_leaves_no_trace() {
        let mut stores = StoreSet::new(1);
        let mut first = Overlay::new(1);
        first.put_many(0, column(&["a", "b"]), column(&["1", "2"]));
        stores.apply(first);
        let mut failed = Overlay::new(1);
        failed.put_many(0, column(&["a"]), column(&["9"]));
        failed.delete_many(0, &column(&["b"]));
        let seen = failed.get_many(&stores, 0, &column(&["a", "b", "c"]), 100);
        assert_eq!(failed.get_many(&stores, 0, &column(&["a", "b"]), 0).len(), 1);
        assert_eq!(seen.iter().collect::<Vec<_>>(), [Some(&b"9"[..]), None, None]);
        drop(failed);
        assert_eq!((stores.get(0, b"a"), stores.get(0, b"b")), (Some(&b"1"[..]), Some(&b"2"[..])));
        assert_eq!((stores.len(0), stores.size_bytes(0)), (2, 4));
    }

    #[test]
    fn scans_see_the_calls_own_changes_in_order() {
        let mut stores = StoreSet::new(2);
        let mut base = Overlay::new(2);
        base.put_many(1, column(&["b", "d", "f"]), column(&["1", "2", "3"]));
        stores.apply(base);
        let mut over = Overlay::new(2);
        over.put_many(1, column(&["a", "d", "e"]), column(&["4", "5", "6"]));
        over.delete_many(1, &column(&["f", "x"]));
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let page = over.scan(&mut stores, 1, b"", None, ALL);
        assert_eq!(rows(&page), [pair("a", "4"), pair("b", "1"), pair("d", "5"), pair("e", "6")]);
        let page = over.scan(&mut stores, 1, b"b", Some(b"e"), ALL);
        assert_eq!(rows(&page), [pair("b", "1"), pair("d", "5")]);
        let page = over.scan(&mut stores, 1, b"e", Some(b"b"), ALL);
        assert!(rows(&page).is_empty());
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_repeat() {
        let mut stores = StoreSet::new(1);
        for i in 0..10u8 {
            stores.restore(0, &[i], Some(&[i; 10]));
        }
        let limit = PageLimit { entries: 3, bytes: 25 };
        let (mut seen, mut start) = (Vec::new(), Vec::new());
        loop {
            let page = stores.scan(0, &start, None, limit);
            seen.extend(page.keys.iter().map(|k| k.unwrap()[0]));
            let Some(next) = page.next else { break };
            start = next;
        }
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        stores.restore(0, &[3], None);
        assert_eq!(stores.scan(0, &[3], Some(&[5]), ALL).keys.value(0), [4]);
        assert_eq!(stores.size_bytes(0), 9 * 11);
    }

    #[test]
    fn changes_are_net_and_in_an_order_that_does_not_change() {
        let mut stores = StoreSet::new(2);
        stores.restore(1, b"gone", Some(b"0"));
        stores.restore(1, b"kept", Some(b"0"));
        let mut call = Overlay::new(2);
        call.put_many(1, column(&["a", "abcdefgh-2", "abcdefgh-1"]), column(&["1", "2", "3"]));
        call.put_many(0, column(&["z"]), column(&["22"]));
        call.delete_many(1, &column(&["a", "gone", "never"]));
        stores.apply(call);
        let full = |store: u8, key: &str| [&[0, store], key.as_bytes()].concat();
        let expected = [
            (full(0, "z"), Some(b"22".to_vec())),
            (full(1, "abcdefgh-1"), Some(b"3".to_vec())),
            (full(1, "abcdefgh-2"), Some(b"2".to_vec())),
            (full(1, "gone"), None),
        ];
        let bytes: usize =
            expected.iter().map(|(k, v)| k.len() + v.as_ref().map_or(0, Vec::len)).sum();
        assert_eq!(stores.uncommitted_bytes(), bytes);
        let (keys, values) = stores.take_changes();
        let pair = |i: usize| {
            let value = values.is_valid(i).then(|| values.value(i).to_vec());
            (keys.value(i).to_vec(), value)
        };
        assert_eq!((0..keys.len()).map(pair).collect::<Vec<_>>(), expected);
        assert_eq!((stores.uncommitted_bytes(), stores.take_changes().0.len()), (0, 0));
        assert_eq!((stores.len(0), stores.len(1), stores.get(1, b"a")), (1, 3, None));
    }

    #[test]
    fn a_store_is_what_a_map_is() {
        let seed = crate::clock::test_seed();
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut stores, mut plain) = (StoreSet::new(1), BTreeMap::<Vec<u8>, Vec<u8>>::new());
        let mut durable = plain.clone();
        for round in 0..300 {
            let mut call = Overlay::new(1);
            let mut after = plain.clone();
            for _ in 0..random.usize(..5) {
                let count = random.usize(1..130);
                let keys: Vec<_> = (0..count).map(|_| vec![b'k', random.u8(..60)]).collect();
                let column = |rows: &[Vec<u8>]| rows.iter().map(Some).collect::<BinaryArray>();
                if random.bool() {
                    // The same keys as a batch's own, of which some are changed.
                    let stored = |key: &Vec<u8>| anabranch_key::encode(&[Part::Bytes(key.into())]);
                    let all = usize::MAX;
                    let (numbers, values) =
                        call.get_own(&mut stores, 0, &column(&keys), false, all);
                    let expected = keys.iter().map(|key| after.get(&stored(key)).cloned());
                    let value = |n: &u32| {
                        values.is_valid(*n as usize).then(|| values.value(*n as usize).to_vec())
                    };
                    assert!(numbers.iter().map(value).eq(expected), "round {round} of seed {seed}");
                    let (mut entries, mut changes) = (Vec::new(), Vec::new());
                    for (key, number) in keys.iter().zip(numbers) {
                        let value = (random.u8(..4) > 0).then(|| vec![random.u8(..); 8]);
                        match &value {
                            Some(value) => drop(after.insert(stored(key), value.clone())),
                            None => drop(after.remove(&stored(key))),
                        }
                        entries.push(number);
                        changes.push(value);
                    }
                    call.put_own(0, entries, changes.iter().map(Option::as_ref).collect());
                    continue;
                }
                if random.u8(..3) == 0 {
                    call.delete_many(0, &column(&keys));
                    keys.iter().for_each(|key| drop(after.remove(key)));
                } else {
                    let values: Vec<_> =
                        keys.iter().map(|_| vec![random.u8(..); random.usize(..4)]).collect();
                    call.put_many(0, column(&keys), column(&values));
                    after.extend(keys.iter().cloned().zip(values));
                }
                if random.bool() {
                    let seen = call.get_many(&stores, 0, &column(&keys), usize::MAX);
                    let expected = keys.iter().map(|key| after.get(key).map(Vec::as_slice));
                    assert!(seen.iter().eq(expected), "round {round} of seed {seed}");
                }
                if random.u8(..9) == 0 {
                    let page =
                        call.scan(&mut stores, 0, b"", None, PageLimit { entries: 999, ..ALL });
                    let pairs = page.keys.iter().flatten().zip(page.values.iter().flatten());
                    let expected = after.iter().map(|(k, v)| (k.as_slice(), v.as_slice()));
                    assert!(pairs.eq(expected), "round {round} of seed {seed}");
                }
            }
            if random.u8(..4) > 0 {
                stores.apply(call);
                plain = after;
            }
            if random.bool() {
                let (keys, values) = stores.take_changes();
                for (key, value) in keys.iter().zip(&values) {
                    let key = key.unwrap()[2..].to_vec();
                    match value {
                        Some(value) => drop(durable.insert(key, value.to_vec())),
                        None => drop(durable.remove(&key)),
                    }
                }
                assert_eq!(durable, plain, "round {round} of seed {seed}");
            }
            let bytes: usize = plain.iter().map(|(k, v)| k.len() + v.len()).sum();
            let size = (stores.len(0), stores.size_bytes(0));
            assert_eq!(size, (plain.len(), bytes as u64), "round {round} of seed {seed}");
        }
    }
}
