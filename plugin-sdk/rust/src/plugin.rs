//! The trait that a plugin implements, and the macro that makes a component of it.
//!
//! **Invariant:** an author's file holds neither `unsafe` nor generated code.

use crate::{Batch, Record, Result, Setup};

/// A plugin. One value lives in each sandbox; the host may throw it away between any two batches, so what
/// it must remember lives in stores, which is why `process` takes `&self`.
pub trait Plugin: Sized + 'static {
    /// Declares stores and outputs, then reads the configuration with [`Setup::config`].
    ///
    /// The host also runs this to learn what the plugin declares, when there is no configuration yet: it
    /// then ends where `config` is called. So declarations come first, and depend on nothing.
    fn new(setup: &mut Setup) -> Result<Self>;

    /// Processes a record. An error refuses it: what it wrote and sent is undone, and the deployment's
    /// `on_poison` policy decides. A panic stops the sandbox, with the same end and at a higher price.
    fn process(&self, record: &Record<'_>) -> Result<()>;

    /// Processes a batch; by default, record by record. Whoever works on whole columns implements this:
    /// see [`Batch::values`] and [`Output::forward_range`](crate::Output::forward_range). An error here
    /// fails the whole call.
    fn process_batch(&self, batch: &Batch) -> Result<()> {
        batch.each(|record| self.process(record))
    }
}

/// Makes the crate a plugin: `plugin!(Count)`. Name and version are those of the crate, unless given:
/// `plugin!(Count, name = "count", version = "1.0.0")`.
#[macro_export]
macro_rules! plugin {
    ($plugin:ty) => {
        $crate::plugin!($plugin, name = ::std::env!("CARGO_PKG_NAME"));
    };
    ($plugin:ty, name = $name:expr) => {
        $crate::plugin!($plugin, name = $name, version = ::std::env!("CARGO_PKG_VERSION"));
    };
    ($plugin:ty, name = $name:expr, version = $version:expr) => {
        const _: () = {
            fn describe() -> ::std::string::String {
                $crate::__private::describe::<$plugin>($name, $version)
            }

            #[cfg(not(target_arch = "wasm32"))]
            const _: fn() -> ::std::string::String = describe;

            #[cfg(target_arch = "wasm32")]
            const _: () = {
                ::std::thread_local! {
                    static SLOT: $crate::__private::Slot<$plugin> =
                        const { $crate::__private::Slot::empty() };
                }

                struct Exports;

                impl $crate::bindings::Guest for Exports {
                    fn describe() -> ::std::string::String {
                        describe()
                    }

                    fn init(
                        config: ::std::string::String,
                    ) -> ::std::result::Result<(), ::std::string::String> {
                        SLOT.with(|slot| slot.init(config))
                    }

                    fn process(
                        batch: $crate::bindings::Batch,
                    ) -> ::std::result::Result<$crate::bindings::Results, ::std::string::String>
                    {
                        SLOT.with(|slot| slot.process(batch))
                    }
                }

        $crate::bindings::export!(Exports with_types_in $crate::bindings);
            };
        };
    };
}
