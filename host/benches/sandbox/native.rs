//! The plugins of plugins/bench as native instances: the SDK's boundary on the host's, without a sandbox.
//!
//! Columns are copied once on their way in and moved on their way out, as with the sandbox.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use anabranch::plugin::native::{
    BytesColumnResult, Make, NativeInstance, Output, Rejection, Results,
};
use anabranch::plugin::{Input, StateAccess};
use anabranch_plugin::Level;
use anabranch_plugin::bindings::{self, BytesColumn, HeaderColumn, OwnEntries, Page};
use anabranch_plugin::native::{Host, Native, instantiate};
use arrow_array::{Array as _, BinaryArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};

/// Has the plugins of these names run natively in this process.
pub fn register() {
    let plugins: [(&str, Make); 2] = [
        ("bench-maps", || Box::new(Instance::new(instantiate::<bench_maps::Maps>))),
        ("bench-counts", || Box::new(Instance::new(instantiate::<bench_counts::Counts>))),
    ];
    for (name, make) in plugins {
        anabranch::plugin::native::register(name, make);
    }
}

type Instantiate = fn(Rc<dyn Host>, &str) -> Result<Box<dyn Native>, String>;
/// A plugin and the host it sees.
type Made = (Box<dyn Native>, Rc<Boundary>);

thread_local! {
    /// Plugins by instance: they stay on the thread that made them. Another thread makes its own, as if
    /// the memory had been thrown away, which the contract allows.
    static MADE: RefCell<HashMap<u64, Made>> = RefCell::default();
}

struct Instance {
    id: u64,
    instantiate: Instantiate,
    config: parking_lot::Mutex<String>,
}

impl Instance {
    fn new(instantiate: Instantiate) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), instantiate, config: Default::default() }
    }

    fn make(&self) -> Result<Made, String> {
        let boundary = Rc::new(Boundary::default());
        let native = (self.instantiate)(Rc::clone(&boundary) as Rc<dyn Host>, &self.config.lock())?;
        Ok((native, boundary))
    }
}

impl NativeInstance for Instance {
    fn init(&self, config: &str) -> Result<(), String> {
        config.clone_into(&mut self.config.lock());
        Ok(())
    }

    fn process(
        &self,
        input: &Input,
        state: Box<dyn StateAccess>,
    ) -> (Result<Results, String>, Box<dyn StateAccess>) {
        MADE.with_borrow_mut(|made| {
            let (native, boundary) = match made.entry(self.id) {
                Entry::Occupied(made) => made.into_mut(),
                Entry::Vacant(place) => match self.make() {
                    Ok(new) => place.insert(new),
                    Err(error) => return (Err(error), state),
                },
            };
            *boundary.state.borrow_mut() = Some(state);
            *boundary.time.borrow_mut() = (input.stream_time_ms, input.seed);
            *boundary.keys.borrow_mut() = Some(input.batch.records.keys.clone());
            let results = native.process(batch(input));
            let state = boundary.state.take().expect("put there above");
            (results.map(lift), state)
        })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Another thread's goes with that thread.
        MADE.with_borrow_mut(|made| drop(made.remove(&self.id)));
    }
}

/// What a plugin may ask, answered from the call at hand.
#[derive(Default)]
struct Boundary {
    state: RefCell<Option<Box<dyn StateAccess>>>,
    time: RefCell<(Option<i64>, u64)>,
    keys: RefCell<Option<BinaryArray>>,
}

impl Boundary {
    fn with_state<T>(&self, ask: impl FnOnce(&mut dyn StateAccess) -> T) -> T {
        ask(self.state.borrow_mut().as_deref_mut().expect("asked only within a call"))
    }
}

impl Host for Boundary {
    fn headers(&self) -> Option<HeaderColumn> {
        None
    }

    fn set_headers(&self, output: &str, _: &HeaderColumn) -> Result<(), String> {
        Err(format!("output {output}: the benchmark's jobs set no headers"))
    }

    fn open(&self, _: &str) -> Result<u32, String> {
        Ok(0) // The benchmark's plugins have one store at most.
    }

    fn get_many(&self, store: u32, keys: &BytesColumn) -> BytesColumn {
        let values = self.with_state(|state| state.get_many(store, &array(keys), 1 << 30));
        column(&values.expect("state in memory does not fail"))
    }

    fn put_many(&self, store: u32, keys: &BytesColumn, values: &BytesColumn) {
        let put = self.with_state(|state| state.put_many(store, &array(keys), &array(values)));
        put.expect("state in memory does not fail");
    }

    fn delete_many(&self, store: u32, keys: &BytesColumn) {
        let deleted = self.with_state(|state| state.delete_many(store, &array(keys)));
        deleted.expect("state in memory does not fail");
    }

    fn get_own(&self, store: u32, _: &BytesColumn, text: bool) -> OwnEntries {
        let keys = self.keys.borrow().clone().expect("asked only within a call");
        let own = self.with_state(|state| state.get_own(store, &keys, text, 1 << 30));
        let (entries, values) = own.expect("state in memory does not fail");
        OwnEntries { entries, values: column(&values) }
    }

    fn put_own(&self, store: u32, entries: &[u32], values: &BytesColumn) {
        let put =
            |state: &mut dyn StateAccess| state.put_own(store, entries.to_vec(), array(values));
        self.with_state(put).expect("state in memory does not fail");
    }

    fn scan(&self, store: u32, start: &[u8], end: Option<&[u8]>, limit: u32) -> Page {
        let page = self.with_state(|state| state.scan(store, start, end, limit, 1 << 20));
        let page = page.expect("state in memory does not fail");
        Page { keys: column(&page.keys), values: column(&page.values), next: page.next }
    }

    fn time_before_batch(&self) -> Option<i64> {
        self.time.borrow().0
    }

    fn seed(&self) -> u64 {
        self.time.borrow().1
    }

    fn log(&self, _: Level, _: &str) {}

    fn add(&self, _: &str, _: u64) {}

    fn set(&self, _: &str, _: f64) {}
}

/// A batch as a guest gets it: its own copy.
fn batch(input: &Input) -> bindings::Batch {
    let records = &input.batch.records;
    let run = |run: &anabranch::plugin::Run| bindings::Run {
        input: run.input,
        partition: run.partition,
        count: run.count,
    };
    bindings::Batch {
        offsets: input.batch.offsets.to_vec(),
        timestamps: records.timestamps.to_vec(),
        keys: column(&records.keys),
        values: column(&records.values),
        runs: input.runs.iter().map(run).collect(),
    }
}

fn column(array: &BinaryArray) -> BytesColumn {
    let offsets = array.value_offsets();
    let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
    let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
    BytesColumn {
        ends: offsets.iter().map(|end| (end - first) as u32).collect(),
        data: array.value_data()[first as usize..last as usize].to_vec(),
        validity: nulls.map(|nulls| nulls.inner().sliced().to_vec()),
    }
}

fn array(column: &BytesColumn) -> BinaryArray {
    let ends = Buffer::from_vec(column.ends.clone());
    let offsets = OffsetBuffer::new(ScalarBuffer::new(ends, 0, column.ends.len()));
    let nulls = column.validity.as_ref().map(|bits| {
        let bits = Buffer::from_slice_ref(bits);
        NullBuffer::new(BooleanBuffer::new(bits, 0, column.ends.len() - 1))
    });
    BinaryArray::new(offsets, Buffer::from_vec(column.data.clone()), nulls)
}

fn lift(results: bindings::Results) -> Results {
    let lift_column = |column: BytesColumn| BytesColumnResult {
        ends: column.ends,
        data: column.data,
        validity: column.validity,
    };
    let output = |output: bindings::Output| Output {
        name: output.name,
        sources: output.sources,
        keys: lift_column(output.keys),
        values: lift_column(output.values),
        timestamps: output.timestamps,
        partitions: output.partitions,
    };
    let rejection = |r: bindings::Rejection| Rejection { index: r.index, reason: r.reason };
    Results {
        outputs: results.outputs.into_iter().map(output).collect(),
        rejections: results.rejections.into_iter().map(rejection).collect(),
    }
}
