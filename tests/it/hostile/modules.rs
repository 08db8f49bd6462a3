//! Modules and components that are easier said in WebAssembly's text than in Rust.

use std::io::Write as _;
use std::process::Stdio;

use crate::support::anabranch;

/// A core module with the three exports of the columnar world. `items` stand in the module, the others
/// are bodies; each leaves its result, an address, on the stack.
pub struct Module<'a> {
    pub items: &'a str,
    pub describe: &'a str,
    pub init: &'a str,
    pub process: &'a str,
}

/// Nothing hostile: a plugin without outputs.
pub const HARMLESS: Module<'_> = Module {
    items: "",
    describe: "(i32.const 8)",
    init: "(i32.const 1024)",
    process: "(i32.const 1024)",
};

impl Module<'_> {
    /// Its bytes.
    pub fn build(&self) -> Vec<u8> {
        let Self { items, describe, init, process } = self;
        let text = format!(
            r#"(module {items}
            (memory (export "memory") 1)
            (data (i32.const 100) "{{\"anabranch\": \"0.1\", \"name\": \"bare\", \"version\": \"1\"}}")
            (data (i32.const 8) "\64\00\00\00\34\00\00\00")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
            (func (export "describe") (result i32) {describe})
            (func (export "init") (param i32 i32) (result i32) {init})
            (func (export "process") (param i32) (result i32) {process}))"#
        );
        wat::parse_str(text).unwrap()
    }
}

/// A core module of the record world with one output `o` and `pages` of memory, all of it zero but the
/// lowest. `process` may change what comes of each record, an output record without key, value and headers,
/// at the addresses of [`record`].
pub fn record_module(items: &str, pages: u32, process: &str) -> Vec<u8> {
    let text = format!(
        r#"(module {items}
        (memory (export "memory") {pages})
        (data (i32.const 100) "{{\"anabranch\": \"0.1\", \"name\": \"rows\", \"version\": \"1\", \"outputs\": [{{\"name\": \"o\", \"kind\": \"stream\"}}]}}")
        (data (i32.const 8) "\64\00\00\00\62\00\00\00")
        (data (i32.const 900) "o")
        (data (i32.const 1032) "\00\08\00\00\01\00\00\00")
        (data (i32.const 2048) "\84\03\00\00\01\00\00\00")
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
        (func (export "describe") (result i32) (i32.const 8))
        (func (export "init") (param i32 i32) (result i32) (i32.const 3072))
        (func (export "process-record")
            (param i32 i32 i64 i64 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
            {process} (i32.const 1024)))"#
    );
    wat::parse_str(text).unwrap()
}

/// Where things lie in a [`record_module`]: the verdict's case, its text or list, and of the output record
/// whether there is a value, that value, and the headers; each text or list is an address and a length.
pub mod record {
    pub const IS_REJECTED: u32 = 1028;
    pub const TEXT: u32 = 1032;
    pub const HAS_VALUE: u32 = 2092;
    pub const VALUE: u32 = 2096;
    pub const HEADERS: u32 = 2104;
    /// Memory that nothing else uses.
    pub const FREE: u32 = 65_536;

    /// Stores `number` at `address`.
    pub fn set(address: u32, number: u32) -> String {
        format!("(i32.store (i32.const {address}) (i32.const {number}))")
    }

    /// Has the text or list at `address` be `length` long, in memory that is zero.
    pub fn point(address: u32, length: u32) -> String {
        set(address, FREE) + &set(address + 4, length)
    }
}

/// A module that is valid and takes its compiler long: `functions` of nested loops over many locals.
pub fn slow_to_compile(functions: usize) -> Vec<u8> {
    let locals = "(local ".to_owned() + &"i64 ".repeat(1_000) + ")";
    let mut body = String::new();
    for i in 0..5_000 {
        let (a, b, c) = (i % 1_000, (i * 7 + 3) % 1_000, (i * 13 + 5) % 1_000);
        body += &format!(
            "(loop (local.set {a} (i64.add (i64.mul (local.get {b}) (local.get {c})) (i64.const {i})))
             (br_if 0 (i64.eqz (local.get {a}))))"
        );
    }
    let function = format!("(func {locals} {body})");
    let items = function.repeat(functions);
    Module { items: &items, ..HARMLESS }.build()
}

/// A component with the three exports, of wrong types, and `items`.
pub fn component(items: &str) -> Vec<u8> {
    let text = format!(
        r#"(component {items}
        (core module $m (func (export "f")))
        (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i "f")))
        (export "describe" (func $f)) (export "init" (func $f)) (export "process" (func $f)))"#
    );
    wat::parse_str(text).unwrap()
}

/// A component, made of a core module as the host makes it.
pub fn componentize(module: &[u8]) -> Vec<u8> {
    let mut child = anabranch()
        .args(["compile-plugin", "componentize", "--memory-bytes", "1000000000"])
        .args(["--cpu-seconds", "10", "--output-bytes", "10000000"])
        .args(["--host", &std::process::id().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(module).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// A component that does as the contract says and has `count` instances of its core module beside the
/// one that it needs.
pub fn many_instances(count: u32) -> Vec<u8> {
    let mut component = componentize(&HARMLESS.build());
    let leb = |n: u32| [(n & 0x7f) as u8 | 0x80, (n >> 7 & 0x7f) as u8 | 0x80, (n >> 14) as u8];
    // A section of core instances: each is module 0 without arguments.
    component.push(2);
    component.extend(leb(3 + 3 * count));
    component.extend(leb(count));
    component.extend([0, 0, 0].repeat(count as usize));
    component
}
