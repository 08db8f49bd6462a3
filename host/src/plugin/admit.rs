//! Admission: what `push` does with the bytes it is given.
//!
//! **Invariant:** what is admitted can be loaded: its exports and imports match the contract, it
//! compiles, and it has said what it is. What is refused is refused in one sentence that names the
//! export, import or version at fault and says what to do.

use wasmparser::{Encoding, Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::contract::{PACKAGE, VERSION, WIT};
use super::description::Description;
use super::engine::{DescribeError, Runtime};
use crate::types::Digest;

/// The largest plugin, in bytes. 64 MiB: a Python guest has 18, and compiling takes the longer and
/// the more memory the larger the code is.
pub const MAX_PLUGIN_BYTES: usize = 64 << 20;

/// The interfaces that a plugin may import.
const GRANTED: [&str; 7] = ["types", "rows", "headers", "state", "stream-time", "log", "metrics"];

/// The exports of both worlds, and of each.
const COMMON_EXPORTS: [&str; 2] = ["describe", "init"];
const COLUMN_EXPORT: &str = "process";
const RECORD_EXPORT: &str = "process-record";

/// A plugin that may be loaded.
#[derive(Debug)]
pub struct Admitted {
    /// The component: the uploaded bytes, or what was made of an uploaded core module.
    pub component: Vec<u8>,
    /// The digest of the uploaded bytes, which is the plugin's name.
    pub digest: Digest,
    /// What the plugin says of itself.
    pub description: Description,
}

/// Why bytes are not a plugin. All of it is for whoever pushed them.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Too large.
    #[error(
        "the plugin has {bytes} bytes, the limit is {MAX_PLUGIN_BYTES}: build it optimised and strip debug information"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// No WebAssembly at all.
    #[error(
        "this is {what}, not a WebAssembly component or module (these begin with the bytes 00 61 73 6d): push the .wasm file that the build wrote"
    )]
    NotWasm {
        /// What it looks like.
        what: &'static str,
    },
    /// WebAssembly that is broken.
    #[error("this is not valid WebAssembly: {reason}")]
    Invalid {
        /// What is broken.
        reason: String,
    },
    /// A core module that cannot be made a component.
    #[error("this core module cannot be made a component: {reason}")]
    Module {
        /// Why.
        reason: String,
    },
    /// Exports are missing.
    #[error(
        "the plugin does not export {missing}: a plugin exports describe, init and one of process (columns) and process-record (records), see wit/worlds.wit"
    )]
    MissingExport {
        /// Their names.
        missing: String,
    },
    /// Imports that are not granted.
    #[error("the plugin imports {import}, which is not granted: {hint}")]
    NotGranted {
        /// The import.
        import: String,
        /// What to do.
        hint: String,
    },
    /// Built against another version of the contract.
    #[error(
        "the plugin speaks {import}, this host speaks {PACKAGE}@{VERSION}: build it with the SDK of that version"
    )]
    OtherVersion {
        /// The import in its version.
        import: String,
    },
    /// Names match, types do not.
    #[error("the plugin does not match {PACKAGE}@{VERSION}: {reason}")]
    Mismatch {
        /// Where.
        reason: String,
    },
    /// It does not say what it is.
    #[error("the plugin does not describe itself: {reason}")]
    Describe {
        /// Why.
        reason: String,
    },
}

impl Runtime {
    /// Judges uploaded bytes: a component, or a core module, which becomes one.
    pub fn admit(&self, bytes: &[u8]) -> Result<Admitted, Refusal> {
        if bytes.len() > MAX_PLUGIN_BYTES {
            return Err(Refusal::TooLarge { bytes: bytes.len() });
        }
        let component = match encoding(bytes)? {
            Encoding::Component => bytes.to_vec(),
            Encoding::Module => componentize(bytes)?,
        };
        let compiled = self
            .compile(&component)
            .map_err(|error| Refusal::Invalid { reason: format!("{error:#}") })?;
        let exports = compiled.component_type();
        let exports: Vec<&str> = exports.exports(self.engine()).map(|(name, _)| name).collect();
        check_exports(&exports)?;
        for (import, _) in compiled.component_type().imports(self.engine()) {
            check_import(import)?;
        }
        let pre = self
            .link(&compiled)
            .map_err(|error| Refusal::Mismatch { reason: format!("{error:#}") })?;
        let digest = Digest::of(bytes);
        let plugin = self.describe(digest, pre).map_err(|error| Refusal::Describe {
            reason: match error {
                DescribeError::Call(error) => error.to_string(),
                DescribeError::Description(error) => error.to_string(),
            },
        })?;
        Ok(Admitted { component, digest, description: plugin.description().clone() })
    }
}

fn encoding(bytes: &[u8]) -> Result<Encoding, Refusal> {
    if !bytes.starts_with(b"\0asm") {
        return Err(Refusal::NotWasm { what: look_at(bytes) });
    }
    match Parser::new(0).parse_all(bytes).next() {
        Some(Ok(Payload::Version { encoding, .. })) => Ok(encoding),
        Some(Err(error)) => Err(Refusal::Invalid { reason: error.to_string() }),
        _ => Err(Refusal::Invalid { reason: "it ends after its first bytes".into() }),
    }
}

/// What bytes that are no WebAssembly look like.
fn look_at(bytes: &[u8]) -> &'static str {
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    if bytes.is_empty() {
        "an empty file"
    } else if begins(b"\x7fELF") {
        "a native program or library"
    } else if begins(b"PK\x03\x04") || begins(b"\x1f\x8b") {
        "an archive"
    } else if begins(b"(module") || begins(b"(component") {
        "WebAssembly in its text format"
    } else if std::str::from_utf8(&bytes[..bytes.len().min(512)])
        .map_or_else(|e| e.error_len().is_none(), |_| true)
    {
        "a text file"
    } else {
        "a binary file of another kind"
    }
}

/// What admission needs to know of a core module.
#[derive(Default)]
struct Module {
    described: bool,
    imports: Vec<String>,
    exports: Vec<String>,
}

fn read_module(bytes: &[u8]) -> Result<Module, wasmparser::BinaryReaderError> {
    let mut module = Module::default();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::CustomSection(section) => {
                module.described |= section.name().starts_with("component-type");
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    module.imports.push(import?.module.to_owned());
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    module.exports.push(export?.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(module)
}

/// Makes a core module a component. Most carry the WIT they were built against; to one that does not
/// the host gives its own.
fn componentize(bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    let invalid =
        |error: wasmparser::BinaryReaderError| Refusal::Invalid { reason: error.to_string() };
    let module = read_module(bytes).map_err(invalid)?;
    for import in &module.imports {
        check_import(import)?;
    }
    let exports: Vec<&str> = module.exports.iter().map(String::as_str).collect();
    check_exports(&exports)?;
    let failed = |error: anyhow::Error| Refusal::Module { reason: format!("{error:#}") };
    let mut bytes = bytes.to_vec();
    if !module.described {
        let world =
            if exports.contains(&RECORD_EXPORT) { "record-plugin" } else { "column-plugin" };
        let mut resolve = Resolve::default();
        let package = resolve.push_source("anabranch.wit", WIT).map_err(failed)?;
        let world = resolve.select_world(&[package], Some(world)).map_err(failed)?;
        embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8)
            .map_err(failed)?;
    }
    ComponentEncoder::default()
        .module(&bytes)
        .and_then(|encoder| encoder.validate(true).encode())
        .map_err(failed)
}

fn check_exports(exports: &[&str]) -> Result<(), Refusal> {
    let mut missing: Vec<&str> =
        COMMON_EXPORTS.into_iter().filter(|name| !exports.contains(name)).collect();
    if !exports.contains(&COLUMN_EXPORT) && !exports.contains(&RECORD_EXPORT) {
        missing.push("process or process-record");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Refusal::MissingExport { missing: missing.join(", ") })
}

/// Checks the name of an import: `namespace:package/interface@version`, or a core module's.
fn check_import(import: &str) -> Result<(), Refusal> {
    let refuse =
        |hint: &str| Err(Refusal::NotGranted { import: import.to_owned(), hint: hint.to_owned() });
    let (path, version) = import.split_once('@').unwrap_or((import, ""));
    match path.strip_prefix(PACKAGE).and_then(|rest| rest.strip_prefix('/')) {
        Some(interface)
            if version != VERSION && (GRANTED.contains(&interface) || !version.is_empty()) =>
        {
            Err(Refusal::OtherVersion { import: import.to_owned() })
        }
        Some(interface) if GRANTED.contains(&interface) => Ok(()),
        Some(_) => refuse(&format!("{PACKAGE}@{VERSION} offers {}", GRANTED.join(", "))),
        None if path.starts_with("wasi") => refuse(
            "plugins see no files, clocks, sockets or environment; build for wasm32-unknown-unknown, or without WASI",
        ),
        None if path == "env" || path == "$root" => {
            refuse("a symbol was left undefined when the plugin was linked; link what defines it")
        }
        None => refuse(&format!("a plugin may import the interfaces of {PACKAGE}@{VERSION} only")),
    }
}
