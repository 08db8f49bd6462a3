//! What is pushed is taken or refused in one sentence that says why.

use super::super::Runtime;
use super::support::{RUNTIME, admit, guest};
use crate::config::Plugins;
use crate::types::Digest;

fn refusal(bytes: &[u8]) -> String {
    RUNTIME.0.admit(bytes).map(|admitted| admitted.digest).unwrap_err().to_string()
}

/// A core module with the three exports of the columnar world and `more` inside.
fn module(more: &str) -> Vec<u8> {
    let text = format!(
        r#"(module {more}
            (memory (export "memory") 1)
            (data (i32.const 100) "{{\"anabranch\": \"0.1\", \"name\": \"bare\", \"version\": \"1\"}}")
            (data (i32.const 8) "\64\00\00\00\34\00\00\00")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
            (func (export "describe") (result i32) (i32.const 8))
            (func (export "init") (param i32 i32) (result i32) (i32.const 1024))
            (func (export "process") (param i32) (result i32) (i32.const 1024)))"#
    );
    wat::parse_str(text).unwrap()
}

#[test]
fn what_is_no_webassembly_is_named() {
    let cases: [(&[u8], &str); 7] = [
        (b"", "an empty file"),
        (b"name = \"flight-delays\"\nplugin = \"a.wasm\"\n", "a text file"),
        ("d\u{e9}j\u{e0} vu".as_bytes(), "a text file"),
        (b"(module)", "WebAssembly in its text format"),
        (b"\x7fELF\x02\x01", "a native program or library"),
        (b"PK\x03\x04....", "an archive"),
        (b"\xff\xfe\x00\x01", "a binary file of another kind"),
    ];
    for (bytes, what) in cases {
        let error = refusal(bytes);
        assert!(error.starts_with(&format!("this is {what}, not a WebAssembly")), "{error}");
    }
}

#[test]
fn broken_webassembly_is_refused() {
    let mut torn = guest("echo");
    torn.truncate(torn.len() / 2);
    for bytes in
        [&b"\0asm"[..], b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0\xff", b"\0asm\x63\0\0\0", &torn]
    {
        let error = refusal(bytes);
        let known = ["not valid WebAssembly", "does not export describe, init, process"];
        assert!(known.iter().any(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn what_is_too_large_is_refused_before_it_is_read() {
    let error = refusal(&vec![0; Plugins::default().max_bytes + 1]);
    assert!(error.contains("67108865 bytes, the limit is 67108864"), "{error}");
}

#[test]
fn missing_exports_are_named() {
    let error = refusal(&wat::parse_str(r#"(module (func (export "init")))"#).unwrap());
    assert!(error.contains("does not export describe, process or process-record:"), "{error}");
    let error = refusal(&wat::parse_str("(component)").unwrap());
    assert!(
        error.contains("does not export describe, init, process or process-record:"),
        "{error}"
    );
}

#[test]
fn imports_that_are_not_granted_are_named() {
    let interface = |name: &str| format!(r#"(component (import "{name}" (instance)) {EXPORTS})"#);
    let cases = [
        (
            "wasi:clocks/wall-clock@0.2.0",
            "imports wasi:clocks/wall-clock@0.2.0, which is not granted: plugins see no files",
        ),
        (
            "anabranch:plugin/sockets@0.1.0",
            "imports anabranch:plugin/sockets@0.1.0, which is not granted: anabranch:plugin@0.1.0 offers types",
        ),
        (
            "acme:secrets/store@1.0.0",
            "imports acme:secrets/store@1.0.0, which is not granted: a plugin may import",
        ),
        (
            "anabranch:plugin/log@0.2.0",
            "speaks anabranch:plugin/log@0.2.0, this host speaks anabranch:plugin@0.1.0",
        ),
        ("anabranch:plugin/state", "speaks anabranch:plugin/state, this host speaks"),
    ];
    for (import, part) in cases {
        let error = refusal(&wat::parse_str(interface(import)).unwrap());
        assert!(error.contains(part), "{import}: {error}");
    }
    let cases = [
        (
            r#"(import "wasi_snapshot_preview1" "fd_write" (func))"#,
            "imports wasi_snapshot_preview1, which",
        ),
        (
            r#"(import "env" "missing" (func))"#,
            "imports env, which is not granted: a symbol was left undefined",
        ),
        (
            r#"(import "anabranch:plugin/log@0.3.0" "write" (func))"#,
            "speaks anabranch:plugin/log@0.3.0",
        ),
    ];
    for (import, part) in cases {
        let error = refusal(&module(import));
        assert!(error.contains(part), "{import}: {error}");
    }
}

/// A component's exports by name, of wrong types.
const EXPORTS: &str = r#"
    (core module $m (func (export "f")))
    (core instance $i (instantiate $m))
    (func $f (canon lift (core func $i "f")))
    (export "describe" (func $f)) (export "init" (func $f)) (export "process" (func $f))"#;

#[test]
fn exports_of_other_types_do_not_match() {
    let error = refusal(&wat::parse_str(format!("(component {EXPORTS})")).unwrap());
    assert!(error.starts_with("the plugin does not match anabranch:plugin@0.1.0: "), "{error}");
    assert!(error.contains("describe"), "{error}");
    let shout = r#"(import "anabranch:plugin/log@0.1.0" (instance (export "shout" (func))))"#;
    let error = refusal(&wat::parse_str(format!("(component {shout} {EXPORTS})")).unwrap());
    assert!(error.starts_with("the plugin does not match anabranch:plugin@0.1.0: "), "{error}");
    assert!(error.contains("anabranch:plugin/log@0.1.0") && error.contains("shout"), "{error}");
    let wrong = r#"(module (memory (export "memory") 1) (func (export "describe"))
        (func (export "init")) (func (export "process")))"#;
    let error = refusal(&wat::parse_str(wrong).unwrap());
    assert!(error.contains("cannot be made a component: "), "{error}");
}

#[test]
fn a_core_module_without_its_wit_is_given_the_hosts() {
    let bytes = module("");
    let admitted = RUNTIME.0.admit(&bytes).unwrap();
    assert_eq!(admitted.digest, Digest::of(&bytes));
    assert_eq!(admitted.description.name, "bare");
    let again = RUNTIME.0.admit(&admitted.component).unwrap();
    assert_eq!(again.component, admitted.component);
    assert_ne!(again.digest, admitted.digest);
}

#[test]
fn a_plugin_must_say_what_it_is() {
    let with = |json: &str| {
        let bytes = module("");
        let at = bytes.windows(9).position(|part| part == b"anabranch").unwrap();
        let mut bytes = bytes;
        bytes[at - 2..][..json.len()].copy_from_slice(json.as_bytes());
        refusal(&bytes)
    };
    assert!(
        with("nonsense").contains("does not describe itself: describe does not return the JSON")
    );
    let error = with(r#"{"anabranch": "0.7""#);
    assert!(error.contains("a document of format \"0.7\", this host reads \"0.1\""), "{error}");
}

#[test]
fn both_worlds_are_admitted_and_described() {
    assert_eq!(admit("echo").description.outputs[0].name, "out");
    assert_eq!(admit("echo-record").description.outputs.len(), 2);
    assert_eq!(admit("stateful").description.output_index("counts"), Some(0));
}

#[test]
fn a_plugin_is_compiled_once_and_again_when_its_entry_is_corrupt() {
    let directory = tempfile::tempdir().unwrap();
    let entries = || -> Vec<_> {
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let admitted = admit("echo");
    let load = || {
        let runtime = Runtime::new(directory.path()).unwrap();
        runtime.load(admitted.digest, &admitted.component).unwrap()
    };
    assert_eq!(load().description(), &admitted.description);
    let [entry] = <[_; 1]>::try_from(entries()).unwrap();
    let (code, written) = (std::fs::read(&entry).unwrap(), modified(&entry));

    load();
    assert_eq!(modified(&entry), written, "the entry was not used");

    // Bits that flip, whether in the checksum, the engine's own header or the code.
    for at in [0, 40, code.len() / 2] {
        let mut bad = code.clone();
        bad[at] ^= 0x10;
        std::fs::write(&entry, &bad).unwrap();
        assert_eq!(load().description().name, "echo");
        assert!(std::fs::read(&entry).unwrap() != bad, "the entry was not written anew");
        assert_eq!(entries().len(), 1);
    }
}

#[test]
fn a_plugin_that_cannot_start_within_limits_is_refused() {
    let traps = r#"(func $trap unreachable) (start $trap)"#;
    let error = refusal(&module(traps));
    assert!(error.contains("wasm `unreachable` instruction executed"), "{error}");
    let greedy = "(memory $more 65536)";
    let error = refusal(&module(greedy));
    assert!(error.contains("bytes of memory of 268435456 (limit memory_bytes)"), "{error}");
}

fn modified(path: &std::path::Path) -> std::time::SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}
