//! What is refused when it is pushed: what wants more than is granted, costs too much to take, or does
//! harm before it is asked for anything.

use std::time::Instant;

use serde_json::json;

use super::modules::{HARMLESS, Module, component, many_instances, slow_to_compile};
use super::{Good, deploy, send};
use crate::support::{Client, Host, Reply, wait_until};

fn push(client: &Client, bytes: &[u8]) -> Reply {
    client.send("POST", "/v1/plugins", "application/wasm", bytes)
}

/// Pushes what is to be refused; says how long that took, and sees that nothing was kept.
fn refused(client: &Client, what: &str, bytes: &[u8], status: u16, code: &str, parts: &[&str]) {
    let began = Instant::now();
    let reply = push(client, bytes);
    println!("{what}: {:?}: {}", began.elapsed(), reply.body["detail"]);
    reply.refused(status, code, parts);
    let kept = client.get("/v1/plugins").ok();
    let names: Vec<_> = kept.as_array().unwrap().iter().map(|plugin| &plugin["name"]).collect();
    assert_eq!(names, ["count"], "{what}");
}

#[test]
fn what_wants_more_than_is_granted() {
    let host = Host::start();
    let mut good = Good::deploy(&host);
    let wants = [
        ("clock", "wasi:clocks/wall-clock@0.2.0", "clock_time_get"),
        ("monotonic clock", "wasi:clocks/monotonic-clock@0.2.0", "poll_oneoff"),
        ("randomness", "wasi:random/random@0.2.0", "random_get"),
        ("environment", "wasi:cli/environment@0.2.0", "environ_get"),
        ("files", "wasi:filesystem/preopens@0.2.0", "path_open"),
        ("sockets", "wasi:sockets/tcp@0.2.0", "sock_accept"),
        ("http", "wasi:http/outgoing-handler@0.2.0", "sock_send"),
    ];
    for (what, interface, function) in wants {
        let bytes = component(&format!("(import \"{interface}\" (instance))"));
        let says = format!("the plugin imports {interface}, which is not granted: plugins see no");
        refused(&host, what, &bytes, 400, "plugin_refused", &[&says]);
        let import = format!("(import \"wasi_snapshot_preview1\" \"{function}\" (func))");
        let bytes = Module { items: &import, ..HARMLESS }.build();
        let says =
            "the plugin imports wasi_snapshot_preview1, which is not granted: plugins see no";
        refused(&host, what, &bytes, 400, "plugin_refused", &[says]);
    }
    good.stays_exact(&host, 1_000);
}

#[test]
fn ten_thousand_imports() {
    let host = Host::start();
    let mut good = Good::deploy(&host);
    let many = |import: &dyn Fn(usize) -> String| -> String { (0..10_000).map(import).collect() };

    let unknown = many(&|i| format!("(import \"acme:a/i{i}@1.0.0\" (instance))"));
    let says = ["imports acme:a/i0@1.0.0, which is not granted"];
    refused(&host, "interfaces", &component(&unknown), 400, "plugin_refused", &says);

    let known = many(&|i| format!("(export \"f{i}\" (func))"));
    let known = format!("(import \"anabranch:plugin/log@0.1.0\" (instance {known}))");
    let says = ["does not match anabranch:plugin@0.1.0", "anabranch:plugin/log@0.1.0"];
    refused(&host, "functions", &component(&known), 400, "plugin_refused", &says);

    let core = many(&|i| format!("(import \"anabranch:plugin/log@0.1.0\" \"f{i}\" (func))"));
    let bytes = Module { items: &core, ..HARMLESS }.build();
    let says = ["this core module cannot be made a component"];
    refused(&host, "of a module", &bytes, 400, "plugin_refused", &says);

    // A name is shown without what would steer a terminal, and not at any length.
    let long = format!("(import \"env\\1b[31m{}\" \"f\" (func))", "x".repeat(90_000));
    let bytes = Module { items: &long, ..HARMLESS }.build();
    let reply = push(&host, &bytes);
    reply.refused(400, "plugin_refused", &["the plugin imports env [31mxxx"]);
    assert!(reply.text.len() < 4_000 && !reply.text.contains("\\u001b"), "{}", reply.text);
    good.stays_exact(&host, 1_000);
}

#[test]
fn two_hundred_megabytes() {
    let host = Host::start();
    let mut good = Good::deploy(&host);
    let mut bytes = HARMLESS.build();
    bytes.resize(200 << 20, 0);
    let file = host.file("large.wasm", &bytes);
    drop(bytes);
    let (code, _, error) = host.cli(&["plugin", "push", file.to_str().unwrap()]);
    assert_eq!(code, 5, "{error}");
    assert!(error.contains("larger than 67108864 bytes"), "{error}");
    good.stays_exact(&host, 1_000);

    // Where the operator takes such bodies, plugins have a limit of their own.
    let settings = [
        ("ANABRANCH_HTTP_MAX_BODY_BYTES", "300000000"),
        ("ANABRANCH_PLUGINS_MAX_BYTES", "1000000"),
    ];
    let host = Host::start_with(&settings);
    let reply = push(&host, &std::fs::read(file).unwrap());
    let says = ["209715200 bytes, the limit is 1000000 (max_bytes in [plugins])"];
    reply.refused(422, "plugin_too_costly", &says);
}

#[test]
fn what_takes_long_to_compile() {
    let slow = slow_to_compile(40);
    let cases = [
        (
            ("CPU_SECONDS", "1"),
            "more than 1 seconds of processor time (compile_cpu_seconds in [plugins])",
        ),
        (("TIMEOUT_MS", "300"), "more than 300 milliseconds (compile_timeout_ms in [plugins])"),
        (
            ("MEMORY_BYTES", "150000000"),
            "more than 150000000 bytes of memory (compile_memory_bytes in [plugins])",
        ),
        (
            ("OUTPUT_BYTES", "1000"),
            "more than 1000 bytes of code (compile_output_bytes in [plugins])",
        ),
    ];
    for ((name, value), says) in cases {
        let host = Host::start();
        let mut good = Good::deploy(&host);
        good.stays_exact(&host, 500);
        // The limit is for what comes now: the good plugin was compiled under the default ones.
        let name = format!("ANABRANCH_PLUGINS_COMPILE_{name}");
        let host = host.restart_with(&[(&name, value)]);
        let bytes = if value == "1000" { HARMLESS.build() } else { slow.clone() };
        refused(&host, &name, &bytes, 422, "plugin_too_costly", &[says]);
        good.stays_exact(&host, 500);
        let compiled = host.data().join("compiled");
        let left: Vec<_> =
            std::fs::read_dir(compiled).unwrap().map(|f| f.unwrap().path()).collect();
        assert_eq!(left.len(), 1, "only what was compiled is kept: {left:?}");
    }
}

#[test]
fn what_does_harm_when_it_starts_or_describes_itself() {
    let host = Host::start_with(&[("ANABRANCH_PLUGINS_FUEL_PER_START", "100000000")]);
    let mut good = Good::deploy(&host);
    let spin = "(loop $l (br $l)) (i32.const 8)";
    let recursion = "(func $r (param i64) (call $r (i64.add (local.get 0) (i64.const 1))))";
    let tables: String = (0..40).map(|_| "(table 1048576 funcref)").collect();
    let fuel = "exceeded its units of fuel of 100000000 (limit fuel_per_start)";
    let memory = "exceeded its bytes of memory of 268435456 (limit memory_bytes)";
    let cases = [
        ("a loop in describe", Module { describe: spin, ..HARMLESS }, fuel),
        (
            "a loop at the start",
            Module { items: "(func $s (loop $l (br $l))) (start $s)", ..HARMLESS },
            fuel,
        ),
        (
            "recursion",
            Module {
                items: recursion,
                describe: "(call $r (i64.const 0)) (i32.const 8)",
                ..HARMLESS
            },
            "call stack exhausted",
        ),
        (
            "memory growth",
            Module {
                describe: "(loop $l (drop (memory.grow (i32.const 64))) (br $l)) (i32.const 8)",
                ..HARMLESS
            },
            memory,
        ),
        (
            "table growth",
            Module {
                items: "(table $t 0 funcref)",
                describe: "(loop $l (br_if $l (i32.ne (i32.const -1)
                    (table.grow $t (ref.null func) (i32.const 100000))))) unreachable",
                ..HARMLESS
            },
            "unreachable",
        ),
        ("a large table", Module { items: "(table 1048577 funcref)", ..HARMLESS }, "table"),
        ("many tables", Module { items: &tables, ..HARMLESS }, memory),
        (
            "a lie about its length",
            Module {
                items: "(data (i32.const 2000) \"\\64\\00\\00\\00\\ff\\ff\\ff\\ff\")",
                describe: "(i32.const 2000)",
                ..HARMLESS
            },
            "out of bounds",
        ),
        (
            "a trap",
            Module { describe: "unreachable", ..HARMLESS },
            "`unreachable` instruction executed",
        ),
    ];
    for (what, module, says) in cases {
        let says = ["the plugin does not describe itself", says];
        refused(&host, what, &module.build(), 400, "plugin_refused", &says);
    }
    let says = ["the plugin does not describe itself", "instance count too high at"];
    refused(&host, "instances", &many_instances(500), 400, "plugin_refused", &says);
    let says = ["not valid WebAssembly", "instances count exceeds limit of 1000"];
    refused(&host, "more instances", &many_instances(10_000), 400, "plugin_refused", &says);
    good.stays_exact(&host, 1_000);
}

#[test]
fn the_harmless_module_is_a_plugin() {
    // What the refusals above rest on: the harmless module is taken and runs.
    let host = Host::start();
    let digest = push(&host, &HARMLESS.build()).ok()["digest"].as_str().unwrap().to_owned();
    deploy(&host, "bare", &digest, "", &json!({}));
    send(&host, "bare", &["a", "b"]);
    host.wait_processed("bare", 1, 2);
    assert_eq!(push(&host, &many_instances(2)).ok()["name"], "bare");
}

#[test]
fn a_plugin_goes_once_no_generation_runs_it() {
    let host = Host::start();
    let digest = push(&host, &HARMLESS.build()).ok()["digest"].as_str().unwrap().to_owned();
    let path = format!("/v1/plugins/{digest}");
    let delete = || host.ask("DELETE", &path, &[], b"").unwrap();
    deploy(&host, "bare", &digest, "", &json!({}));
    delete().refused(409, "plugin_in_use", &["generation 1 of deployment bare", "delete the"]);
    host.ask("DELETE", "/v1/deployments/bare", &[], b"").unwrap();
    let (code, said, error) = host.cli(&["plugin", "delete", &digest]);
    assert_eq!((code, said), (0, format!("plugin {digest} is deleted\n")), "{error}");
    delete().refused(404, "plugin_not_found", &["push it first"]);
    for folder in ["plugins", "compiled"] {
        let left = std::fs::read_dir(host.data().join(folder)).unwrap().count();
        assert_eq!(left, 0, "{folder}");
    }
    let host = host.restart();
    host.get(&path).refused(404, "plugin_not_found", &[]);
    push(&host, &HARMLESS.build()).ok();
    deploy(&host, "bare", &digest, "", &json!({}));
}

#[test]
fn a_compiler_ends_with_its_host() {
    let mut host = Host::start();
    let compilers = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let command = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).ok();
        let host = format!("--host\0{}\0", host.id());
        let ours = |command: &Vec<u8>| String::from_utf8_lossy(command).contains(&host);
        processes.filter_map(command).filter(ours).count()
    };
    let (client, slow) = (host.client(), slow_to_compile(40));
    let pushing = std::thread::spawn(move || {
        // The host goes away meanwhile.
        let _ = client.ask("POST", "/v1/plugins", &[("content-type", "application/wasm")], &slow);
    });
    wait_until("the compiler works", || compilers() > 0);
    host.signal(rustix::process::Signal::KILL);
    wait_until("the compiler is gone", || compilers() == 0);
    host.kill();
    pushing.join().unwrap();
}
