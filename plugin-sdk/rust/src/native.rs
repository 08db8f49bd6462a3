//! A plugin in the process of whoever calls it, without a sandbox: for benchmarks that tell what the
//! sandbox costs. Not for use by authors; tests have [`testing`](crate::testing).
//!
//! **Invariant:** what runs is the code that runs in the sandbox, down to the host's boundary.

use std::rc::Rc;

use crate::bindings::{Batch, Results};
use crate::instance::Instance;
use crate::{Plugin, host};

pub use host::Host;

/// A plugin that was made with its configuration.
pub trait Native {
    /// Processes a batch, as the export of that name does.
    fn process(&self, batch: Batch) -> Result<Results, String>;
}

impl<P: Plugin> Native for Instance<P> {
    fn process(&self, batch: Batch) -> Result<Results, String> {
        Self::process(self, batch)
    }
}

/// Makes a plugin with a configuration in JSON.
pub fn instantiate<P: Plugin>(host: Rc<dyn Host>, config: &str) -> Result<Box<dyn Native>, String> {
    Ok(Box::new(Instance::<P>::new(host, config.to_owned())?))
}
