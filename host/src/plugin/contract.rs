//! The contract of `wit/`, as generated bindings: the Rust types that cross the boundary.
//!
//! **Invariant:** the types are generated, so the host cannot drift from the WIT package. What goes in
//! borrows from the host's Arrow buffers (`...Param`), what comes out is owned (`...Result`).

/// The WIT package, for core modules that carry no description of their own.
pub const WIT: &str =
    concat!(include_str!("../../../wit/types.wit"), include_str!("../../../wit/worlds.wit"));

/// The package's name.
pub const PACKAGE: &str = "anabranch:plugin";

/// The package's version.
pub const VERSION: &str = "0.1.0";

/// The columnar world, and the imports of both worlds.
pub mod column {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "column-plugin",
        ownership: Borrowing { duplicate_if_necessary: true },
        imports: { default: trappable },
        exports: { default: async },
    });
}

/// The record world; its imports are those of the columnar world.
pub mod record {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "record-plugin",
        ownership: Borrowing { duplicate_if_necessary: true },
        imports: { default: trappable },
        exports: { default: async },
        with: {
            "anabranch:plugin/types": super::column::anabranch::plugin::types,
            "anabranch:plugin/headers": super::column::anabranch::plugin::headers,
            "anabranch:plugin/state": super::column::anabranch::plugin::state,
            "anabranch:plugin/stream-time": super::column::anabranch::plugin::stream_time,
            "anabranch:plugin/log": super::column::anabranch::plugin::log,
            "anabranch:plugin/metrics": super::column::anabranch::plugin::metrics,
        },
    });
}

pub use column::anabranch::plugin::headers::HeaderColumn;
pub use column::anabranch::plugin::types::{BytesColumnParam, BytesColumnResult, Results};
pub use column::anabranch::plugin::{headers, log, metrics, state, stream_time, types};
pub use column::{ColumnPlugin, ColumnPluginPre};
pub use record::anabranch::plugin::rows;
pub use record::anabranch::plugin::rows::{HeaderParam, InputRecord, OutputRecord, Verdict};
pub use record::{RecordPlugin, RecordPluginPre};
