//! The cache of one store: what the plugin has read and written, as bytes.
//!
//! Reads come from the cache, or from the host in one crossing for all keys of the batch as soon as the
//! plugin is seen to look up its records' own keys. Writes stay until the end of the call (or a scan).
//! Small keys and values lie in the entries themselves, and a batch's own keys leave with it unless they
//! are few: what is read next then still lies in the processor's caches.
//!
//! **Invariant:** after `undo_record` the store reads as before the record. **Invariant:** what is in the
//! cache is what the host would answer: values are kept encoded, so nothing survives in memory that
//! would not survive in the store.

use std::hash::BuildHasher;
use std::rc::Rc;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::bindings::Page;
use crate::call::Call;
use crate::column::{Column, ColumnBuilder};
use crate::host::Host;
use crate::{Error, Result};

/// The cache is dropped after a call that leaves more than this in it.
const MAX_ENTRIES: usize = 1 << 17;
const MAX_BYTES: usize = 32 << 20;
/// The same after a call whose keys were fetched together: the next one's will be, too.
const MAX_PREFETCHED: usize = 1 << 10;

/// Entries that a scan asks for at once.
const SCAN_ENTRIES: u32 = 1024;

/// Bytes that lie in place where they are few: in words that zeros fill up, so that they are compared
/// and hashed as words, too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Bytes {
    Few(u8, [u64; 3]),
    Many(Box<[u8]>),
}

impl Bytes {
    fn new(bytes: &[u8]) -> Self {
        let mut few = [0; 3];
        let (words, rest) = bytes.as_chunks::<8>();
        if words.len() > few.len() || words.len() == few.len() && !rest.is_empty() {
            return Self::Many(bytes.into());
        }
        few.iter_mut().zip(words).for_each(|(to, word)| *to = u64::from_le_bytes(*word));
        if let Some(last) = few.get_mut(words.len()) {
            *last = rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        Self::Few(bytes.len() as u8, few)
    }

    fn len(&self) -> usize {
        match self {
            Self::Few(length, _) => usize::from(*length),
            Self::Many(bytes) => bytes.len(),
        }
    }

    /// Appends the bytes to a column.
    fn push_to(&self, column: &mut ColumnBuilder) {
        match self {
            Self::Few(length, few) => {
                let few = few.map(u64::to_le_bytes);
                column.push(Some(&few.as_flattened()[..usize::from(*length)]));
            }
            Self::Many(bytes) => column.push(Some(bytes)),
        }
    }

    /// Calls `then` with the bytes.
    fn with<R>(&self, then: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Few(length, few) => {
                let few = few.map(u64::to_le_bytes);
                then(&few.as_flattened()[..usize::from(*length)])
            }
            Self::Many(bytes) => then(bytes),
        }
    }
}

/// What is known of the value of a key.
#[derive(Debug, Clone, PartialEq)]
enum Known {
    /// Not asked yet.
    Nothing,
    /// There is none.
    Absent,
    /// These bytes.
    Value(Bytes),
}

impl Known {
    fn new(value: Option<&[u8]>) -> Self {
        value.map_or(Self::Absent, |bytes| Self::Value(Bytes::new(bytes)))
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    fn size_bytes(&self) -> usize {
        if let Self::Value(bytes) = self { bytes.len() } else { 0 }
    }
}

struct Entry {
    key: Bytes,
    value: Known,
    /// Whether the host does not have this value yet.
    dirty: bool,
}

/// How an entry was before the record at hand changed it.
struct Undo {
    slot: usize,
    value: Known,
    dirty: bool,
}

/// How store keys follow from record keys.
#[derive(Clone, Copy)]
enum KeyShape {
    Utf8,
    Bytes,
}

impl KeyShape {
    fn encode(self, record_key: &[u8], out: &mut Vec<u8>) -> bool {
        match self {
            Self::Bytes => anabranch_key::push_bytes(out, record_key),
            Self::Utf8 => match std::str::from_utf8(record_key) {
                Ok(text) => anabranch_key::push_utf8(out, text),
                Err(_) => return false,
            },
        }
        true
    }
}

pub(crate) struct StoreCache {
    name: String,
    host: Rc<dyn Host>,
    /// The store's number in the host, once opened.
    number: Option<u32>,
    hasher: DefaultHashBuilder,
    slots: HashTable<usize>,
    entries: Vec<Entry>,
    /// Bytes of keys and values in `entries`.
    size_bytes: usize,
    /// Slots that became dirty; some of them may be clean again.
    dirty: Vec<usize>,
    undo: Vec<Undo>,
    /// Whether changes of the record at hand have reached the host.
    flushed_in_record: bool,
    /// An empty vector that need not grow, for the key at hand.
    pub(crate) scratch: Vec<u8>,
    /// Known once the plugin looked up a record's own key.
    shape: Option<KeyShape>,
    /// The slots of the batch's own keys once they were fetched, from record `prefetched_from` on.
    prefetched: Option<Vec<u32>>,
    prefetched_from: usize,
}

/// Stands for a record whose key cannot be one of the store.
const NO_SLOT: u32 = u32::MAX;

impl StoreCache {
    pub(crate) fn new(name: &str, host: Rc<dyn Host>) -> Self {
        Self {
            name: name.to_owned(),
            host,
            number: None,
            hasher: DefaultHashBuilder::default(),
            slots: HashTable::new(),
            entries: Vec::new(),
            size_bytes: 0,
            dirty: Vec::new(),
            undo: Vec::new(),
            flushed_in_record: false,
            scratch: Vec::new(),
            shape: None,
            prefetched: None,
            prefetched_from: 0,
        }
    }

    /// Where `key` is, its value known; it stays there until the call ends.
    pub(crate) fn find(&mut self, key: &[u8], call: &Call) -> Result<usize> {
        let slot = self.slot(Bytes::new(key), call.index_or_none());
        if self.entries[slot].value.is_nothing() {
            self.fetch(slot, call)?;
        }
        Ok(slot)
    }

    /// What `read` makes of the value at a slot that was found.
    pub(crate) fn value<R>(&self, slot: usize, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        match &self.entries[slot].value {
            Known::Value(bytes) => Some(bytes.with(read)),
            Known::Absent | Known::Nothing => None,
        }
    }

    /// Sets the value of `key`; `None` deletes it.
    pub(crate) fn set(&mut self, key: &[u8], value: Option<&[u8]>, call: &Call) -> Result<()> {
        call.check_input()?;
        let slot = self.slot(Bytes::new(key), call.index_or_none());
        self.set_at(slot, value);
        Ok(())
    }

    /// Sets the value at a slot that was found.
    pub(crate) fn set_at(&mut self, slot: usize, value: Option<&[u8]>) {
        let entry = &mut self.entries[slot];
        let value = Known::new(value);
        if entry.value == value {
            return;
        }
        self.size_bytes += value.size_bytes();
        self.size_bytes = self.size_bytes.saturating_sub(entry.value.size_bytes());
        let value = std::mem::replace(&mut entry.value, value);
        self.undo.push(Undo { slot, value, dirty: entry.dirty });
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Entries from `start`, as the host's store has them with all changes so far.
    pub(crate) fn scan(&mut self, start: &[u8], end: Option<&[u8]>, call: &Call) -> Result<Page> {
        call.check_input()?;
        let number = self.number()?;
        self.flush_in_record(number);
        Ok(self.host.scan(number, start, end, SCAN_ENTRIES))
    }

    /// What the record at hand changed stays.
    #[inline]
    pub(crate) fn commit_record(&mut self) {
        self.undo.clear();
        self.flushed_in_record = false;
    }

    /// What the record at hand changed is as it was.
    pub(crate) fn undo_record(&mut self) {
        while let Some(Undo { slot, value, dirty }) = self.undo.pop() {
            let entry = &mut self.entries[slot];
            self.size_bytes += value.size_bytes();
            self.size_bytes = self.size_bytes.saturating_sub(entry.value.size_bytes());
            entry.value = value;
            entry.dirty = dirty || self.flushed_in_record;
            if entry.dirty {
                self.dirty.push(slot);
            }
        }
        self.flushed_in_record = false;
    }

    /// Gives all changes to the host, and forgets a cache that has grown too large.
    pub(crate) fn end_call(&mut self) {
        self.commit_record();
        if let Some(number) = self.number.filter(|_| !self.dirty.is_empty()) {
            self.flush(number);
        } else if !self.dirty.is_empty() {
            let number = self.number().unwrap_or_else(|error| panic!("{error}"));
            self.flush(number);
        }
        let most = if self.prefetched.take().is_some() { MAX_PREFETCHED } else { MAX_ENTRIES };
        if self.entries.len() > most || self.size_bytes > MAX_BYTES {
            self.slots.clear();
            self.entries.clear();
            self.size_bytes = 0;
        }
    }

    fn number(&mut self) -> Result<u32> {
        if let Some(number) = self.number {
            return Ok(number);
        }
        let number = self.host.open(&self.name).map_err(|error| {
            Error::new(format_args!("the host does not open the store {:?}: {error}", self.name))
        })?;
        self.number = Some(number);
        Ok(number)
    }

    /// The slot of `key`, new if need be; mostly it is the own key of the record at hand.
    fn slot(&mut self, key: Bytes, record: Option<usize>) -> usize {
        if let (Some(slots), Some(record)) = (&self.prefetched, record) {
            let own = record.checked_sub(self.prefetched_from).and_then(|i| slots.get(i));
            let entry = own.and_then(|&slot| self.entries.get(slot as usize));
            if let (Some(&slot), Some(entry)) = (own, entry)
                && entry.key == key
            {
                return slot as usize;
            }
        }
        let hash = self.hasher.hash_one(&key);
        let entries = &self.entries;
        if let Some(&slot) = self.slots.find(hash, |&slot| entries[slot].key == key) {
            return slot;
        }
        let slot = self.entries.len();
        self.size_bytes += key.len();
        self.entries.push(Entry { key, value: Known::Nothing, dirty: false });
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.slots.insert_unique(hash, slot, |&slot| hasher.hash_one(&entries[slot].key));
        slot
    }

    /// Asks the host for `slot`, and with it for the keys of all records to come if that is what the
    /// plugin looks up.
    fn fetch(&mut self, slot: usize, call: &Call) -> Result<()> {
        let (input, here) =
            call.keys_from_here().map_or((call.input()?, None), |(i, h)| (i, Some(h)));
        let number = self.number()?;
        let mut wanted = vec![slot];
        let keys = Column::new(&input.batch.keys);
        if self.shape.is_none() {
            let own = here.and_then(|here| keys.get(here));
            self.shape = own.and_then(|own| {
                let mut encoded = Vec::new();
                [KeyShape::Utf8, KeyShape::Bytes].into_iter().find(|shape| {
                    encoded.clear();
                    shape.encode(own, &mut encoded)
                        && Bytes::new(&encoded) == self.entries[slot].key
                })
            });
        }
        if let Some((shape, here)) = self.shape.zip(here).filter(|_| self.prefetched.is_none()) {
            let known = self.entries.len();
            let mut slots = Vec::with_capacity(keys.len() - here);
            let mut encoded = Vec::new();
            for i in here..keys.len() {
                encoded.clear();
                let fits = keys.get(i).is_some_and(|key| shape.encode(key, &mut encoded));
                slots.push(match fits {
                    true => self.slot(Bytes::new(&encoded), None) as u32,
                    false => NO_SLOT,
                });
            }
            (self.prefetched, self.prefetched_from) = (Some(slots), here);
            // Slots made just now are the keys not seen before; older ones may still be unasked.
            wanted.extend(known..self.entries.len());
        }
        self.ask(number, &wanted);
        Ok(())
    }

    /// Fills `wanted` from the host, in one crossing.
    fn ask(&mut self, number: u32, wanted: &[usize]) {
        let values = self.host.get_many(number, &self.keys_of(wanted));
        let values = Column::new(&values);
        assert_eq!(values.len(), wanted.len(), "the host answered for other keys than asked");
        for (i, &slot) in wanted.iter().enumerate() {
            let value = Known::new(values.get(i));
            self.size_bytes += value.size_bytes();
            self.entries[slot].value = value;
        }
    }

    fn keys_of(&self, slots: &[usize]) -> crate::bindings::BytesColumn {
        let mut keys = ColumnBuilder::with_capacity(slots.len(), 16 * slots.len());
        slots.iter().for_each(|&slot| self.entries[slot].key.push_to(&mut keys));
        keys.finish()
    }

    /// Gives changes to the host in the middle of a record. What the record overwrote unread must be
    /// read first, or it could not be undone.
    fn flush_in_record(&mut self, number: u32) {
        let unread: Vec<usize> =
            (0..self.undo.len()).filter(|&i| self.undo[i].value.is_nothing()).collect();
        if !unread.is_empty() {
            let slots: Vec<usize> = unread.iter().map(|&i| self.undo[i].slot).collect();
            let values = self.host.get_many(number, &self.keys_of(&slots));
            for (i, value) in unread.into_iter().zip(Column::new(&values).iter()) {
                self.undo[i].value = Known::new(value);
            }
        }
        self.flushed_in_record = !self.undo.is_empty();
        self.flush(number);
    }

    fn flush(&mut self, number: u32) {
        let rows = self.dirty.len();
        let mut keys = ColumnBuilder::with_capacity(rows, 16 * rows);
        let mut values = ColumnBuilder::with_capacity(rows, 16 * rows);
        let mut deleted = ColumnBuilder::default();
        for slot in self.dirty.drain(..) {
            let entry = &mut self.entries[slot];
            if !std::mem::take(&mut entry.dirty) {
                continue;
            }
            match &entry.value {
                Known::Value(bytes) => {
                    entry.key.push_to(&mut keys);
                    bytes.push_to(&mut values);
                }
                Known::Absent => entry.key.push_to(&mut deleted),
                Known::Nothing => {}
            }
        }
        if keys.len() > 0 {
            self.host.put_many(number, &keys.finish(), &values.finish());
        }
        if deleted.len() > 0 {
            self.host.delete_many(number, &deleted.finish());
        }
    }
}
