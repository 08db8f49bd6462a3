//! Stores as an author sees them: typed keys and values over a cache of bytes.
//!
//! **Invariant:** a store remembers nothing that the host does not: what `get` gives was decoded from the
//! bytes that `put` wrote.

use std::cell::{RefCell, RefMut};
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::rc::Rc;
use std::vec;

use crate::call::Call;
use crate::column::Column;
use crate::store_cache::StoreCache;
use crate::{Error, Format, Key, Result};

/// A keyed store, made by [`Setup::store`](crate::Setup::store): `Store<String, i64>`,
/// `Store<(String, i64), Json<Visit>>`.
///
/// Reads and writes are batched underneath; changes are seen at once by the plugin, and take effect in
/// the host together with the outputs.
pub struct Store<K, V> {
    cache: Rc<RefCell<StoreCache>>,
    call: Rc<Call>,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Key, V: Format> Store<K, V> {
    pub(crate) fn new(cache: Rc<RefCell<StoreCache>>, call: Rc<Call>) -> Self {
        Self { cache, call, types: PhantomData }
    }

    /// The value of `key`, if there is one.
    pub fn get(&self, key: K::Ref<'_>) -> Result<Option<V::Owned>> {
        let (cache, slot) = self.find(key)?;
        cache.value(slot, V::decode).transpose()
    }

    /// Sets the value of `key`.
    pub fn put(&self, key: K::Ref<'_>, value: V::Ref<'_>) -> Result<()> {
        let mut bytes = self.call.scratch.take();
        let present = V::encode(value, &mut bytes)?;
        let value = present.then_some(bytes.as_slice());
        self.set(key, value)?;
        bytes.clear();
        self.call.scratch.set(bytes);
        Ok(())
    }

    /// Removes `key`, if it is there.
    pub fn delete(&self, key: K::Ref<'_>) -> Result<()> {
        self.set(key, None)
    }

    /// Changes the value of `key`, from its default if there is none, and returns the new one.
    pub fn update(&self, key: K::Ref<'_>, change: impl FnOnce(&mut V::Owned)) -> Result<V::Owned>
    where
        V::Owned: Default,
    {
        let (cache, slot) = self.find(key)?;
        let mut value = cache.value(slot, V::decode).transpose()?.unwrap_or_default();
        drop(cache);
        // May use the store itself.
        change(&mut value);
        let mut bytes = self.call.scratch.take();
        let present = V::encode(V::borrow(&value), &mut bytes)?;
        self.cache.borrow_mut().set_at(slot, present.then_some(bytes.as_slice()));
        bytes.clear();
        self.call.scratch.set(bytes);
        Ok(value)
    }

    /// The entries with keys in `range`, in the order of keys: `store.scan("a".."b")`, `store.scan(..)`.
    pub fn scan<'k>(&self, range: impl RangeBounds<K::Ref<'k>>) -> Scan<K, V> {
        let encode = |key: K::Ref<'k>, after: bool| {
            let mut bytes = Vec::new();
            K::encode(key, &mut bytes);
            // Nothing lies between a key and the same with a zero behind it.
            bytes.extend(after.then_some(0));
            bytes
        };
        let start = match range.start_bound() {
            Bound::Included(&key) => encode(key, false),
            Bound::Excluded(&key) => encode(key, true),
            Bound::Unbounded => Vec::new(),
        };
        let end = match range.end_bound() {
            Bound::Included(&key) => Some(encode(key, true)),
            Bound::Excluded(&key) => Some(encode(key, false)),
            Bound::Unbounded => None,
        };
        self.scan_bytes(start, end)
    }

    /// The entries whose keys begin with the parts of `prefix`: those of `("AA", ..)` for a key of
    /// `(String, i64)` are `store.scan_prefix::<String>("AA")`.
    pub fn scan_prefix<P: Key>(&self, prefix: P::Ref<'_>) -> Scan<K, V> {
        let mut start = Vec::new();
        P::encode(prefix, &mut start);
        let end = anabranch_key::prefix_end(&start);
        self.scan_bytes(start, Some(end))
    }

    fn scan_bytes(&self, start: Vec<u8>, end: Option<Vec<u8>>) -> Scan<K, V> {
        Scan {
            cache: Rc::clone(&self.cache),
            call: Rc::clone(&self.call),
            next: Some(start),
            end,
            page: Vec::new().into_iter(),
            types: PhantomData,
        }
    }

    /// The cache, and where in it `key` is, its value known.
    #[inline]
    fn find(&self, key: K::Ref<'_>) -> Result<(RefMut<'_, StoreCache>, usize)> {
        let mut cache = self.cache.borrow_mut();
        let own = K::single(key).map(|key| cache.find_own(key, &self.call)).transpose()?.flatten();
        let slot = match own {
            Some(slot) => slot,
            None => {
                with_encoded::<K, _>(&mut cache, key, |key, cache| cache.find(key, &self.call))?
            }
        };
        Ok((cache, slot))
    }

    fn set(&self, key: K::Ref<'_>, value: Option<&[u8]>) -> Result<()> {
        let cache = &mut *self.cache.borrow_mut();
        match K::single(key).map(|key| cache.find_own(key, &self.call)).transpose()?.flatten() {
            Some(slot) => cache.set_at(slot, value),
            None => {
                with_encoded::<K, _>(cache, key, |key, cache| cache.set(key, value, &self.call))?
            }
        }
        Ok(())
    }
}

fn with_encoded<K: Key, R>(
    cache: &mut StoreCache,
    key: K::Ref<'_>,
    then: impl FnOnce(&[u8], &mut StoreCache) -> R,
) -> R {
    let mut bytes = std::mem::take(&mut cache.scratch);
    K::encode(key, &mut bytes);
    let done = then(&bytes, cache);
    bytes.clear();
    cache.scratch = bytes;
    done
}

/// Entries of a scan. They are fetched a page at a time, each as the store is then.
pub struct Scan<K, V> {
    cache: Rc<RefCell<StoreCache>>,
    call: Rc<Call>,
    /// Where the next page begins; `None` after the last.
    next: Option<Vec<u8>>,
    end: Option<Vec<u8>>,
    page: vec::IntoIter<(Vec<u8>, Vec<u8>)>,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Key, V: Format> Iterator for Scan<K, V> {
    type Item = Result<(K, V::Owned)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.page.next() {
                let entry = crate::key::decode(&key)
                    .and_then(|key| Ok((key, V::decode(&value)?)))
                    .map_err(|error: Error| error.context("in a scan"));
                return Some(entry);
            }
            let start = self.next.take()?;
            let page = self.cache.borrow_mut().scan(&start, self.end.as_deref(), &self.call);
            match page {
                Err(error) => return Some(Err(error)),
                Ok(page) => {
                    let entries =
                        Column::new(&page.keys).iter().zip(Column::new(&page.values).iter());
                    let entries: Vec<_> = entries
                        .filter_map(|(key, value)| Some((key?.to_vec(), value?.to_vec())))
                        .collect();
                    self.page = entries.into_iter();
                    self.next = page.next;
                }
            }
        }
    }
}
