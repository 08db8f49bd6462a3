//! A plugin at work: one value of its type with the call it shares with its handles.
//!
//! **Invariant:** an instance that failed a call is not used again; the host drops it, and the test
//! driver does the same.

use std::cell::RefCell;
use std::rc::Rc;

use crate::bindings::{self, BytesColumn, HeaderColumn, OwnEntries, Page, Results};
use crate::call::Call;
use crate::host::{self, Host};
use crate::{Batch, Level, Plugin, Setup};

/// A plugin with its host.
pub(crate) struct Instance<P> {
    plugin: P,
    call: Rc<Call>,
}

impl<P: Plugin> Instance<P> {
    /// Makes the plugin with a configuration in JSON.
    pub(crate) fn new(host: Rc<dyn Host>, config: String) -> Result<Self, String> {
        host::enter(&host);
        let call = Rc::new(Call::new(host));
        let mut setup = Setup::new(Rc::clone(&call), Some(config));
        let plugin = P::new(&mut setup);
        setup.check().map_err(|error| error.to_string())?;
        Ok(Self { plugin: plugin.map_err(|error| error.to_string())?, call })
    }

    /// Processes a batch.
    pub(crate) fn process(&self, batch: bindings::Batch) -> Result<Results, String> {
        host::enter(&self.call.host);
        let batch = Batch::new(self.call.begin(batch), Rc::clone(&self.call));
        let processed = self.plugin.process_batch(&batch);
        processed.and_then(|()| self.call.end()).map_err(|error| error.to_string())
    }
}

/// What the plugin declares, as the JSON document that the host reads.
///
/// # Panics
/// When the declarations contradict each other.
pub fn describe<P: Plugin>(name: &str, version: &str) -> String {
    let call = Rc::new(Call::new(Rc::new(NoHost)));
    let mut setup = Setup::new(call, None);
    // An error is expected of those that read their configuration: it comes after the declarations.
    let _ = P::new(&mut setup);
    if let Err(error) = setup.check() {
        panic!("{error}");
    }
    setup.description(name, version)
}

/// Where the `plugin!` macro keeps the instance of a sandbox.
pub struct Slot<P>(RefCell<Option<Instance<P>>>);

impl<P: Plugin> Slot<P> {
    /// Nothing yet.
    pub const fn empty() -> Self {
        Self(RefCell::new(None))
    }

    /// Makes the instance.
    #[cfg(target_arch = "wasm32")]
    pub fn init(&self, config: String) -> Result<(), String> {
        std::panic::set_hook(Box::new(|info| {
            crate::log(Level::Error, format_args!("{info}"));
        }));
        let instance = Instance::new(Rc::new(bindings::Imports), config)?;
        *self.0.borrow_mut() = Some(instance);
        Ok(())
    }

    /// Processes a batch.
    pub fn process(&self, batch: bindings::Batch) -> Result<Results, String> {
        match &*self.0.borrow() {
            Some(instance) => instance.process(batch),
            None => Err("process was called before init".to_owned()),
        }
    }
}

/// The host of a plugin that is only being described: there is nothing to ask.
struct NoHost;

const NOTHING: &str = "a plugin that is being described has no host: use stores only in `process`";

impl Host for NoHost {
    fn headers(&self) -> Option<HeaderColumn> {
        None
    }

    fn set_headers(&self, _: &str, _: &HeaderColumn) -> Result<(), String> {
        Err(NOTHING.to_owned())
    }

    fn open(&self, _: &str) -> Result<u32, String> {
        Err(NOTHING.to_owned())
    }

    fn get_many(&self, _: u32, _: &BytesColumn) -> BytesColumn {
        panic!("{NOTHING}")
    }

    fn put_many(&self, _: u32, _: &BytesColumn, _: &BytesColumn) {
        panic!("{NOTHING}")
    }

    fn delete_many(&self, _: u32, _: &BytesColumn) {
        panic!("{NOTHING}")
    }

    fn get_own(&self, _: u32, _: &BytesColumn, _: bool) -> OwnEntries {
        panic!("{NOTHING}")
    }

    fn put_own(&self, _: u32, _: &[u32], _: &BytesColumn) {
        panic!("{NOTHING}")
    }

    fn scan(&self, _: u32, _: &[u8], _: Option<&[u8]>, _: u32) -> Page {
        panic!("{NOTHING}")
    }

    fn time_before_batch(&self) -> Option<i64> {
        None
    }

    fn seed(&self) -> u64 {
        0
    }

    fn log(&self, _: Level, _: &str) {}

    fn add(&self, _: &str, _: u64) {}

    fn set(&self, _: &str, _: f64) {}
}
