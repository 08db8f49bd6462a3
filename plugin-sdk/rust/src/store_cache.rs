//! The cache of one store: what the plugin has read and written, as bytes.
//!
//! Where a plugin looks up its records' own keys, the host finds the entries of the whole batch in one
//! crossing and numbers them: no key is encoded, hashed or moved here, and writes go back by number. Other
//! keys are looked up one by one and kept. Writes stay until the end of the call (or a scan).
//!
//! **Invariant:** after `undo_record` the store reads as before the record. **Invariant:** what is in the
//! cache is what the host would answer: values are kept encoded, so nothing survives in memory that
//! would not survive in the store.

use std::hash::BuildHasher;
use std::rc::Rc;

use anabranch_key::PartType;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::bindings::{BytesColumn, OwnEntries, Page};
use crate::call::Call;
use crate::column::{Column, ColumnBuilder};
use crate::host::Host;
use crate::{Error, Result};

/// The cache is dropped after a call that leaves more than this in it.
const MAX_ENTRIES: usize = 1 << 17;
const MAX_BYTES: usize = 32 << 20;

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
    #[inline]
    fn new(bytes: &[u8]) -> Self {
        if bytes.len() > 24 {
            return Self::Many(bytes.into());
        }
        // One by one: the compiler makes a loop a call to the host, which copies.
        let word = |i: usize| match bytes.get(8 * i..) {
            Some(rest) => match rest.first_chunk() {
                Some(word) => u64::from_le_bytes(*word),
                None => anabranch_key::last_word(rest),
            },
            None => 0,
        };
        Self::Few(bytes.len() as u8, [word(0), word(1), word(2)])
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
            Self::Few(length, few) => column.push_words(few, usize::from(*length)),
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

/// What an entry belongs to.
enum EntryKey {
    /// The batch's own key of this number.
    Own(u32),
    /// This one, encoded.
    Encoded(Bytes),
}

struct Entry {
    key: EntryKey,
    value: Known,
    /// Whether the host does not have this value yet.
    dirty: bool,
}

impl Entry {
    fn is(&self, key: &Bytes) -> bool {
        matches!(&self.key, EntryKey::Encoded(own) if own == key)
    }
}

/// How an entry was before the record at hand changed it.
struct Undo {
    slot: usize,
    value: Known,
    dirty: bool,
}

/// The entries of the batch's own keys.
struct Own {
    /// The slot of each record's key, or [`NO_SLOT`].
    slots: Vec<u32>,
    /// Whether they are in the table, too, because other keys were looked up.
    hashed: bool,
}

/// Stands for a record whose key cannot be one of the store.
const NO_SLOT: u32 = u32::MAX;

pub(crate) struct StoreCache {
    name: String,
    host: Rc<dyn Host>,
    /// How records' keys are written where they can be keys of the store.
    own_form: Option<PartType>,
    /// The store's number in the host, once opened.
    number: Option<u32>,
    hasher: DefaultHashBuilder,
    /// The slots of entries with encoded keys.
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
    /// Known once the plugin looked up a record's own key in this call.
    own: Option<Own>,
}

impl StoreCache {
    /// The cache of a store whose keys have these parts.
    pub(crate) fn new(name: &str, parts: &[PartType], host: Rc<dyn Host>) -> Self {
        let own_form = match *parts {
            [form @ (PartType::Utf8 | PartType::Bytes)] => Some(form),
            _ => None,
        };
        Self {
            name: name.to_owned(),
            host,
            own_form,
            number: None,
            hasher: DefaultHashBuilder::default(),
            slots: HashTable::new(),
            entries: Vec::new(),
            size_bytes: 0,
            dirty: Vec::new(),
            undo: Vec::new(),
            flushed_in_record: false,
            scratch: Vec::new(),
            own: None,
        }
    }

    /// Where `key` is, unencoded, if it is the own key of the record at hand; its value is known then.
    #[inline]
    pub(crate) fn find_own(&mut self, key: &[u8], call: &Call) -> Result<Option<usize>> {
        let Some((input, index)) = call.record() else { return Ok(None) };
        let own = Column::new(&input.batch.keys).get(index);
        if !own.is_some_and(|own| std::ptr::eq(own, key) || own == key) {
            return Ok(None);
        }
        if self.own.is_none() {
            self.fetch_own(&input.batch.keys)?;
        }
        let slot = self.own.as_ref().map_or(NO_SLOT, |own| own.slots[index]);
        Ok((slot != NO_SLOT).then_some(slot as usize))
    }

    /// Where an encoded `key` is, its value known; it stays there until the call ends.
    pub(crate) fn find(&mut self, key: &[u8], call: &Call) -> Result<usize> {
        let slot = self.slot(Bytes::new(key), call)?;
        if self.entries[slot].value.is_nothing() {
            let number = self.number()?;
            self.ask(number, slot);
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
        let slot = self.slot(Bytes::new(key), call)?;
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
        if self.own.take().is_some()
            || self.entries.len() > MAX_ENTRIES
            || self.size_bytes > MAX_BYTES
        {
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

    /// The slot of an encoded key, new if need be.
    fn slot(&mut self, key: Bytes, call: &Call) -> Result<usize> {
        let input = call.input()?;
        if self.own.as_ref().is_some_and(|own| !own.hashed) {
            self.hash_own(&input.batch.keys);
        }
        Ok(self.encoded_slot(key))
    }

    fn encoded_slot(&mut self, key: Bytes) -> usize {
        let hash = self.hasher.hash_one(&key);
        let entries = &self.entries;
        if let Some(&slot) = self.slots.find(hash, |&slot| entries[slot].is(&key)) {
            return slot;
        }
        let slot = self.entries.len();
        self.size_bytes += key.len();
        let key = EntryKey::Encoded(key);
        self.entries.push(Entry { key, value: Known::Nothing, dirty: false });
        self.insert(hash, slot);
        slot
    }

    fn insert(&mut self, hash: u64, slot: usize) {
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.slots.insert_unique(hash, slot, |&slot| match &entries[slot].key {
            EntryKey::Encoded(key) => hasher.hash_one(key),
            EntryKey::Own(_) => unreachable!("only encoded keys are in the table"),
        });
    }

    /// Has the host find the entries of the batch's own keys.
    fn fetch_own(&mut self, keys: &BytesColumn) -> Result<()> {
        let Some(form) = self.own_form else { return Ok(()) };
        let number = self.number()?;
        let OwnEntries { entries: mut slots, values } =
            self.host.get_own(number, keys, form == PartType::Utf8);
        let values = Column::new(&values);
        assert_eq!(slots.len(), keys.ends.len() - 1, "the host answered for another batch");
        let hashed = !self.entries.is_empty();
        if hashed {
            // Some of the batch's keys may have entries already, which are newer than the host's.
            let mut slot_of = Vec::with_capacity(values.len());
            for (record, entry) in slots.iter_mut().enumerate().filter(|(_, e)| **e != NO_SLOT) {
                if *entry as usize == slot_of.len() {
                    let slot = self.encoded_slot(own_key(keys, record, form));
                    if self.entries[slot].value.is_nothing() {
                        self.fill(slot, values.get(*entry as usize));
                    }
                    slot_of.push(slot as u32);
                }
                *entry = slot_of[*entry as usize];
            }
        } else {
            for (number, value) in values.iter().enumerate() {
                let key = EntryKey::Own(number as u32);
                self.entries.push(Entry { key, value: Known::Nothing, dirty: false });
                self.fill(number, value);
            }
        }
        self.own = Some(Own { slots, hashed });
        Ok(())
    }

    /// Gives the entries of the batch's own keys their keys, because another key may be one of them.
    fn hash_own(&mut self, keys: &BytesColumn) {
        let (Some(mut own), Some(form)) = (self.own.take(), self.own_form) else { return };
        own.hashed = true;
        let mut next = 0;
        for (record, &slot) in own.slots.iter().enumerate() {
            // They were numbered in the order of the records that have them first.
            if slot as usize == next {
                let key = own_key(keys, record, form);
                let hash = self.hasher.hash_one(&key);
                self.size_bytes += key.len();
                self.entries[next].key = EntryKey::Encoded(key);
                self.insert(hash, next);
                next += 1;
            }
        }
        self.own = Some(own);
    }

    /// What the host says of the value at a slot.
    fn fill(&mut self, slot: usize, value: Option<&[u8]>) {
        let value = Known::new(value);
        self.size_bytes += value.size_bytes();
        self.entries[slot].value = value;
    }

    /// Asks the host for an entry with an encoded key.
    fn ask(&mut self, number: u32, slot: usize) {
        let values = self.host.get_many(number, &self.keys_of(&[slot]));
        let values = Column::new(&values);
        assert_eq!(values.len(), 1, "the host answered for other keys than asked");
        self.fill(slot, values.get(0));
    }

    /// The keys of entries that are not the batch's own.
    fn keys_of(&self, slots: &[usize]) -> BytesColumn {
        let mut keys = ColumnBuilder::with_capacity(slots.len(), 16 * slots.len());
        for &slot in slots {
            if let EntryKey::Encoded(key) = &self.entries[slot].key {
                key.push_to(&mut keys);
            }
        }
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
        let mut keys = ColumnBuilder::default();
        let mut values = ColumnBuilder::default();
        let mut deleted = ColumnBuilder::default();
        let mut own = Vec::new();
        let mut own_values = ColumnBuilder::default();
        if self.own.as_ref().is_some_and(|own| !own.hashed) {
            own.reserve(rows);
            own_values = ColumnBuilder::with_capacity(rows, 16 * rows);
        }
        for slot in self.dirty.drain(..) {
            let entry = &mut self.entries[slot];
            if !std::mem::take(&mut entry.dirty) {
                continue;
            }
            match (&entry.key, &entry.value) {
                (_, Known::Nothing) => {}
                (EntryKey::Own(number), value) => {
                    own.push(*number);
                    match value {
                        Known::Value(bytes) => bytes.push_to(&mut own_values),
                        _ => own_values.push(None),
                    }
                }
                (EntryKey::Encoded(key), Known::Value(bytes)) => {
                    key.push_to(&mut keys);
                    bytes.push_to(&mut values);
                }
                (EntryKey::Encoded(key), Known::Absent) => key.push_to(&mut deleted),
            }
        }
        if !own.is_empty() {
            self.host.put_own(number, &own, &own_values.finish());
        }
        if keys.len() > 0 {
            self.host.put_many(number, &keys.finish(), &values.finish());
        }
        if deleted.len() > 0 {
            self.host.delete_many(number, &deleted.finish());
        }
    }
}

/// The key of a record, as the store has it.
fn own_key(keys: &BytesColumn, record: usize, form: PartType) -> Bytes {
    let key = Column::new(keys).get(record).unwrap_or_default();
    let mut encoded = Vec::with_capacity(key.len() + 2);
    match (form, std::str::from_utf8(key)) {
        (PartType::Utf8, Ok(text)) => anabranch_key::push_utf8(&mut encoded, text),
        _ => anabranch_key::push_bytes(&mut encoded, key),
    }
    Bytes::new(&encoded)
}
