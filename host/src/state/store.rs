//! Stores in memory, and the overlay that a plugin's call writes to.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use arrow_array::builder::BinaryBuilder;
use arrow_array::{Array, BinaryArray};
use hashbrown::HashMap;

use super::Changes;

type Bytes = Box<[u8]>;

/// One store. Point reads go to the hash map; the ordered index exists from the first scan on, so
/// that plugins which never scan do not pay for it.
#[derive(Debug, Default)]
struct Store {
    entries: HashMap<Bytes, Bytes>,
    index: Option<BTreeSet<Bytes>>,
    size_bytes: u64,
}

impl Store {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.size_bytes += value.len() as u64;
        if let Some(old) = self.entries.get_mut(key) {
            self.size_bytes -= old.len() as u64;
            if old.len() == value.len() {
                old.copy_from_slice(value);
            } else {
                *old = value.into();
            }
            return;
        }
        self.size_bytes += key.len() as u64;
        self.entries.insert(key.into(), value.into());
        if let Some(index) = &mut self.index {
            index.insert(key.into());
        }
    }

    fn delete(&mut self, key: &[u8]) {
        if let Some(old) = self.entries.remove(key) {
            self.size_bytes -= (key.len() + old.len()) as u64;
            if let Some(index) = &mut self.index {
                index.remove(key);
            }
        }
    }

    fn index(&mut self) -> &BTreeSet<Bytes> {
        self.index.get_or_insert_with(|| self.entries.keys().cloned().collect())
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

/// All stores of a task, by the plugin's index of them.
#[derive(Debug, Default)]
pub struct StoreSet {
    stores: Vec<Store>,
    uncommitted: Changes,
}

impl StoreSet {
    /// `stores` empty stores.
    pub fn new(stores: usize) -> Self {
        Self { stores: (0..stores).map(|_| Store::default()).collect(), ..Self::default() }
    }

    /// The value of `key`.
    ///
    /// # Panics
    /// When there is no store of that index, here and below: the plugin floor opens stores by name.
    pub fn get(&self, store: usize, key: &[u8]) -> Option<&[u8]> {
        self.stores[store].entries.get(key).map(AsRef::as_ref)
    }

    /// Whether there are no stores at all.
    pub fn is_empty(&self) -> bool {
        self.stores.is_empty()
    }

    /// The number of entries of a store.
    pub fn len(&self, store: usize) -> usize {
        self.stores[store].entries.len()
    }

    /// The bytes of a store's keys and values.
    pub fn size_bytes(&self, store: usize) -> u64 {
        self.stores[store].size_bytes
    }

    /// The bytes of all stores' keys and values.
    pub fn total_bytes(&self) -> u64 {
        self.stores.iter().map(|s| s.size_bytes).sum()
    }

    /// Makes the changes of a call that succeeded part of the state and of the next commit.
    pub fn apply(&mut self, overlay: Overlay) {
        for (store, changes) in overlay.stores.into_iter().enumerate() {
            for (key, value) in changes {
                match &value {
                    Some(value) => self.stores[store].put(&key, value),
                    None => self.stores[store].delete(&key),
                }
                self.uncommitted.set(store, key, value);
            }
        }
    }

    /// Applies changes that are durable: a checkpoint's or a changelog's.
    pub fn restore(&mut self, store: usize, key: &[u8], value: Option<&[u8]>) {
        match value {
            Some(value) => self.stores[store].put(key, value),
            None => self.stores[store].delete(key),
        }
    }

    /// Takes what changed since the last call, for the changelog.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.uncommitted)
    }

    /// The bytes that [`StoreSet::take_changes`] would take.
    pub fn uncommitted_bytes(&self) -> usize {
        self.uncommitted.size_bytes()
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
    fn scan_through(
        &mut self,
        store: usize,
        start: &[u8],
        end: Option<&[u8]>,
        limit: PageLimit,
        over: &BTreeMap<&[u8], Option<&[u8]>>,
    ) -> Page {
        let store = &mut self.stores[store];
        store.index();
        let (entries, index) = (&store.entries, store.index.iter().flatten_range(start, end));
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
                    entries.get(key).map(|value| (key, value.as_ref()))
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

/// The changes of one call of a plugin, over the state that it began with.
#[derive(Debug)]
pub struct Overlay {
    stores: Vec<HashMap<Bytes, Option<Bytes>>>,
}

impl Overlay {
    /// No changes, over `stores` stores.
    pub fn new(stores: usize) -> Self {
        Self { stores: (0..stores).map(|_| HashMap::new()).collect() }
    }

    /// The value of each key, null where there is none, through these changes. Stops after the value
    /// that brings their bytes beyond `limit_bytes`: fewer values than keys mean that it was reached.
    pub fn get_many(
        &self,
        base: &StoreSet,
        store: usize,
        keys: &BinaryArray,
        limit_bytes: usize,
    ) -> BinaryArray {
        let (changes, entries) = (&self.stores[store], &base.stores[store].entries);
        let mut values = BinaryBuilder::with_capacity(keys.len(), keys.len() * 16);
        let mut bytes = 0;
        for i in 0..keys.len() {
            let key = keys.value(i);
            let changed = if changes.is_empty() { None } else { changes.get(key) };
            let value = match changed {
                Some(change) => change.as_deref(),
                None => entries.get(key).map(AsRef::as_ref),
            };
            values.append_option(value);
            bytes += value.map_or(0, <[u8]>::len);
            if bytes > limit_bytes {
                break;
            }
        }
        values.finish()
    }

    /// Writes one value for each key, in order.
    pub fn put_many(&mut self, store: usize, keys: &BinaryArray, values: &BinaryArray) {
        let changes = &mut self.stores[store];
        changes.reserve(keys.len());
        for i in 0..keys.len() {
            changes.insert(keys.value(i).into(), Some(values.value(i).into()));
        }
    }

    /// Deletes each key.
    pub fn delete_many(&mut self, store: usize, keys: &BinaryArray) {
        for i in 0..keys.len() {
            self.stores[store].insert(keys.value(i).into(), None);
        }
    }

    /// Entries with `start <= key < end`, in key order, through these changes.
    pub fn scan(
        &self,
        base: &mut StoreSet,
        store: usize,
        start: &[u8],
        end: Option<&[u8]>,
        limit: PageLimit,
    ) -> Page {
        let over = self.stores[store]
            .iter()
            .map(|(key, value)| (key.as_ref(), value.as_deref()))
            .collect::<BTreeMap<_, _>>();
        base.scan_through(store, start, end, limit, &over)
    }
}

#[cfg(test)]
mod tests {
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
        first.put_many(0, &column(&["a", "b"]), &column(&["1", "2"]));
        stores.apply(first);
        let mut failed = Overlay::new(1);
        failed.put_many(0, &column(&["a"]), &column(&["9"]));
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
        base.put_many(1, &column(&["b", "d", "f"]), &column(&["1", "2", "3"]));
        stores.apply(base);
        let mut over = Overlay::new(2);
        over.put_many(1, &column(&["a", "d", "e"]), &column(&["4", "5", "6"]));
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
}
