//! The call at hand: which batch, which record, and what it has done so far. Handles of stores and
//! outputs share it.
//!
//! **Invariant:** a record ends either by `commit`, and what it did stays, or by `reject`, and nothing of
//! it stays but the rejection.

use std::cell::{Cell, OnceCell, Ref, RefCell};
use std::rc::Rc;

use crate::bindings::{self, HeaderColumn, Rejection, Results};
use crate::host::Host;
use crate::metrics::{CounterCell, GaugeCell};
use crate::output::OutputBuffer;
use crate::store_cache::StoreCache;
use crate::{Error, Result};

/// No record is at hand.
const NO_RECORD: u32 = u32::MAX;

/// A batch as it came in, and what was asked of the host about it.
pub(crate) struct Input {
    pub(crate) batch: bindings::Batch,
    pub(crate) headers: OnceCell<Option<HeaderColumn>>,
    pub(crate) stream_times: OnceCell<Vec<i64>>,
    /// Whether all keys, and all values, are UTF-8: found out once, not record by record.
    pub(crate) keys_are_text: OnceCell<bool>,
    pub(crate) values_are_text: OnceCell<bool>,
}

pub(crate) struct Call {
    pub(crate) host: Rc<dyn Host>,
    input: RefCell<Option<Rc<Input>>>,
    /// Index of the record at hand in the batch.
    index: Cell<u32>,
    pub(crate) seed: OnceCell<u64>,
    /// Whether values of what comes in are null, whatever they are in the log.
    pub(crate) ignores_values: Cell<bool>,
    pub(crate) stores: RefCell<Vec<Rc<RefCell<StoreCache>>>>,
    pub(crate) outputs: RefCell<Vec<Rc<RefCell<OutputBuffer>>>>,
    pub(crate) counters: RefCell<Vec<Rc<CounterCell>>>,
    pub(crate) gauges: RefCell<Vec<Rc<GaugeCell>>>,
    rejections: RefCell<Vec<Rejection>>,
    /// An empty vector that need not grow, for a value on its way to a store.
    pub(crate) scratch: Cell<Vec<u8>>,
}

impl Call {
    pub(crate) fn new(host: Rc<dyn Host>) -> Self {
        Self {
            host,
            input: RefCell::default(),
            index: Cell::new(NO_RECORD),
            seed: OnceCell::new(),
            ignores_values: Cell::new(false),
            stores: RefCell::default(),
            outputs: RefCell::default(),
            counters: RefCell::default(),
            gauges: RefCell::default(),
            rejections: RefCell::default(),
            scratch: Cell::default(),
        }
    }

    /// Begins a call.
    pub(crate) fn begin(&self, batch: bindings::Batch) -> Rc<Input> {
        let input = Rc::new(Input {
            batch,
            headers: OnceCell::new(),
            stream_times: OnceCell::new(),
            keys_are_text: OnceCell::new(),
            values_are_text: OnceCell::new(),
        });
        *self.input.borrow_mut() = Some(Rc::clone(&input));
        input
    }

    /// An error where the plugin has declared that it ignores values.
    pub(crate) fn check_values(&self) -> Result<()> {
        match self.ignores_values.get() {
            false => Ok(()),
            true => Err(Error::new("values are not read: the plugin calls Setup::ignore_values")),
        }
    }

    /// Ends a call: state changes and metrics go to the host, outputs and rejections are handed back.
    pub(crate) fn end(&self) -> Result<Results> {
        self.input.borrow_mut().take();
        for store in &*self.stores.borrow() {
            store.borrow_mut().end_call();
        }
        self.counters.borrow().iter().for_each(|counter| counter.flush(&*self.host));
        self.gauges.borrow().iter().for_each(|gauge| gauge.flush(&*self.host));
        let mut outputs = Vec::new();
        for output in &*self.outputs.borrow() {
            outputs.extend(output.borrow_mut().finish(&*self.host)?);
        }
        Ok(Results { outputs, rejections: self.rejections.take() })
    }

    /// The batch at hand.
    pub(crate) fn input(&self) -> Result<Rc<Input>> {
        self.input.borrow().clone().ok_or_else(|| {
            Error::new("stores and outputs work only while a batch is processed, not in `new`")
        })
    }

    /// Whether there is a batch at hand; the error says that there must be.
    pub(crate) fn check_input(&self) -> Result<()> {
        if self.input.borrow().is_some() { Ok(()) } else { self.input().map(drop) }
    }

    /// The index of the record at hand, if one is.
    #[inline]
    fn index_or_none(&self) -> Option<usize> {
        let index = self.index.get();
        (index != NO_RECORD).then_some(index as usize)
    }

    /// The index of the record at hand.
    #[inline]
    pub(crate) fn index(&self) -> Result<u32> {
        match self.index.get() {
            NO_RECORD => Err(Error::new("no record is at hand: send within `Batch::each`")),
            index => Ok(index),
        }
    }

    /// The batch at hand and the index of the record at hand, if one is.
    #[inline]
    pub(crate) fn record(&self) -> Option<(Ref<'_, Input>, usize)> {
        let index = self.index_or_none()?;
        let input = Ref::filter_map(self.input.borrow(), |input| input.as_deref()).ok()?;
        Some((input, index))
    }

    pub(crate) fn enter(&self, index: usize) {
        self.index.set(index as u32);
    }

    pub(crate) fn leave(&self) {
        self.index.set(NO_RECORD);
    }

    /// What the record at hand did stays.
    #[inline]
    pub(crate) fn commit(&self) {
        for store in &*self.stores.borrow() {
            store.borrow_mut().commit_record();
        }
    }

    /// What record `index` did is undone, and it is refused.
    pub(crate) fn reject(&self, index: usize, reason: String) -> Result<()> {
        let index = index as u32;
        for store in &*self.stores.borrow() {
            store.borrow_mut().undo_record();
        }
        for output in &*self.outputs.borrow() {
            output.borrow_mut().drop_record(index);
        }
        let mut rejections = self.rejections.borrow_mut();
        if rejections.last().is_some_and(|last| last.index >= index) {
            return Err(Error::new("records must be refused in their order, each once"));
        }
        rejections.push(Rejection { index, reason });
        Ok(())
    }
}
