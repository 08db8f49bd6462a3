//! Plugins in the host's own process, so that a benchmark can tell what the sandbox costs.
//!
//! Only with the feature `native`, which no host that serves has. A plugin is pushed and described as
//! ever; if its code was registered here under its name, instances are made of that. Everything else
//! stays as it is: batches, overlays, checks of what comes back, commits.
//!
//! **Invariant:** nothing is native unless the program registered it.

use parking_lot::Mutex;

use super::call::{Input, StateAccess};
pub use super::contract::types::{BytesColumnResult, Output, Rejection, Results};

/// An instance without a sandbox. Its memory may be thrown away between two calls, as a guest's may.
pub trait NativeInstance: Send {
    /// Starts it.
    ///
    /// # Errors
    /// As the guest's `init`.
    fn init(&self, config: &str) -> Result<(), String>;

    /// Processes a batch; the state comes back whatever happens.
    fn process(
        &self,
        input: &Input,
        state: Box<dyn StateAccess>,
    ) -> (Result<Results, String>, Box<dyn StateAccess>);
}

/// Makes an instance.
pub type Make = fn() -> Box<dyn NativeInstance>;

static REGISTERED: Mutex<Vec<(&'static str, Make)>> = Mutex::new(Vec::new());

/// From now on, plugins of this name that are loaded run natively.
pub fn register(name: &'static str, make: Make) {
    REGISTERED.lock().push((name, make));
}

pub(super) fn find(name: &str) -> Option<Make> {
    REGISTERED.lock().iter().find(|(known, _)| *known == name).map(|(_, make)| *make)
}
