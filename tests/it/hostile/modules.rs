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
