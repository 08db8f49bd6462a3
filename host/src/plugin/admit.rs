//! Admission: what `push` does with the bytes it is given.
//!
//! **Invariant:** what is admitted can be loaded: its exports and imports match the contract, it
//! compiles, and it has said what it is. What is refused is refused in one sentence that names the
//! export, import or version at fault and says what to do. In this process bytes are only looked at:
//! sections are walked once, names are compared. What makes components and code of them is `compile`.

use wasmparser::{ComponentTypeRef, Encoding, Parser, Payload, TypeBounds};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::compile::{CompileError, Work};
use super::contract::{PACKAGE, VERSION, WIT};
use super::description::Description;
use super::engine::{DescribeError, Runtime};
use super::imports::reason;
use crate::storage::{Niceness, stand_back};
use crate::types::Digest;

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
        "the plugin has {bytes} bytes, the limit is {limit} (max_bytes in [plugins]): build it optimised and strip debug information"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest that is taken.
        limit: usize,
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
    /// It costs too much to compile, or the compiler could not be had.
    #[error(transparent)]
    Compile(CompileError),
}

impl Runtime {
    /// Judges uploaded bytes: a component, or a core module, which becomes one. It is done on a thread
    /// of its own, which stands back behind the others: a plugin may use up all its fuel to say what
    /// it is.
    ///
    /// # Errors
    /// Why they are no plugin that may be loaded.
    pub fn admit(&self, bytes: &[u8]) -> Result<Admitted, Refusal> {
        let judge = || {
            stand_back(Niceness::TENTH);
            self.judge(bytes)
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("plugin-admission".into());
            let judging = thread.spawn_scoped(scope, judge).map_err(|error| {
                Refusal::Compile(CompileError::Host(format!("no thread: {error}")))
            })?;
            judging.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn judge(&self, bytes: &[u8]) -> Result<Admitted, Refusal> {
        let limit = self.max_bytes();
        if bytes.len() > limit {
            return Err(Refusal::TooLarge { bytes: bytes.len(), limit });
        }
        let encoding = encoding(bytes)?;
        let names = read_names(bytes)
            .map_err(|error| Refusal::Invalid { reason: reason(&error.to_string()) })?;
        names.imports.iter().try_for_each(|import| check_import(import))?;
        check_exports(&names.exports)?;
        let _turn = self.turn();
        let component = match encoding {
            Encoding::Component => bytes.to_vec(),
            Encoding::Module => {
                self.run_compiler(Work::Componentize, bytes).map_err(|error| match error {
                    CompileError::Invalid(reason) => Refusal::Module { reason },
                    other => Refusal::Compile(other),
                })?
            }
        };
        let compiled = self.compile(&component).map_err(|error| match error {
            CompileError::Invalid(reason) => Refusal::Invalid { reason },
            other => Refusal::Compile(other),
        })?;
        let pre = self
            .link(&compiled)
            .map_err(|error| Refusal::Mismatch { reason: reason(&format!("{error:#}")) })?;
        let digest = Digest::of(bytes);
        let plugin = self.describe(digest, pre).map_err(|error| Refusal::Describe {
            reason: match error {
                DescribeError::Call(error) => reason(&error.to_string()),
                DescribeError::Description(error) => reason(&error.to_string()),
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

/// The names that a module or component itself, not what lies within it, imports and exports.
#[derive(Default)]
struct Names {
    /// Whether it carries the WIT that it was built against.
    described: bool,
    imports: Vec<String>,
    exports: Vec<String>,
}

fn read_names(bytes: &[u8]) -> Result<Names, wasmparser::BinaryReaderError> {
    let mut names = Names::default();
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            _ if depth > 0 => {}
            Payload::CustomSection(section) => {
                names.described |= section.name().starts_with("component-type");
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    names.imports.push(import?.module.to_owned());
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    names.exports.push(export?.name.to_owned());
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    let import = import?;
                    // Another name for a type asks for nothing.
                    if !matches!(import.ty, ComponentTypeRef::Type(TypeBounds::Eq(_))) {
                        names.imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    names.exports.push(export?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

/// Makes a core module a component. Most carry the WIT they were built against; to one that does not
/// the host gives its own.
pub(super) fn componentize(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let names = read_names(bytes).map_err(|error| error.to_string())?;
    let failed = |error: anyhow::Error| format!("{error:#}");
    let mut bytes = bytes.to_vec();
    if !names.described {
        let records = names.exports.iter().any(|name| name == RECORD_EXPORT);
        let world = if records { "record-plugin" } else { "column-plugin" };
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

fn check_exports(exports: &[String]) -> Result<(), Refusal> {
    let exported = |name: &str| exports.iter().any(|export| export == name);
    let mut missing: Vec<&str> =
        COMMON_EXPORTS.into_iter().filter(|name| !exported(name)).collect();
    if !exported(COLUMN_EXPORT) && !exported(RECORD_EXPORT) {
        missing.push("process or process-record");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Refusal::MissingExport { missing: missing.join(", ") })
}

/// Checks the name of an import: `namespace:package/interface@version`, or a core module's.
fn check_import(import: &str) -> Result<(), Refusal> {
    let name = reason(import);
    let refuse =
        |hint: &str| Err(Refusal::NotGranted { import: name.clone(), hint: hint.to_owned() });
    let (path, version) = import.split_once('@').unwrap_or((import, ""));
    match path.strip_prefix(PACKAGE).and_then(|rest| rest.strip_prefix('/')) {
        Some(interface)
            if version != VERSION && (GRANTED.contains(&interface) || !version.is_empty()) =>
        {
            Err(Refusal::OtherVersion { import: name })
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
