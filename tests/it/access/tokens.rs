//! Tokens from their making to their end, and the log of who did what.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::time::Instant;

use serde_json::{Value, json};

use super::{audited, connect, heard, ms, token};
use crate::support::{Client, Host, anabranch, outcome, wait_until};

/// Runs the command line with a token in its environment.
fn cli(host: &Host, token: &str, args: &[&str]) -> (i32, String, String) {
    let output =
        anabranch().args(["--url", host.url()]).args(args).env("ANABRANCH_TOKEN", token).output();
    outcome(&output.unwrap())
}

#[test]
fn the_command_line_makes_lists_and_revokes_tokens() {
    let (mut host, root) = Host::start_guarded(&[]);
    let (code, _, error) = host.cli(&["topic", "list"]);
    assert_eq!(code, 5, "{error}");
    assert!(error.contains("ANABRANCH_TOKEN"), "{error}");
    let (code, _, error) = cli(&host, &root, &["topic", "create", "flights"]);
    assert_eq!(code, 0, "{error}");

    let create = ["token", "create", "sensor", "--role", "produce", "--topics", "flights"];
    let (code, made, notes) = cli(&host, &root, &create);
    assert_eq!(code, 0, "{notes}");
    let sensor = made.trim();
    assert!(made == format!("{sensor}\n") && sensor.starts_with("anabranch_"), "{made:?}");
    assert!(!notes.contains(sensor) && notes.contains("only time"), "{notes}");
    let file = host.file("sensor.token", made.as_bytes());
    let lines = host.file("lines", b"{\"carrier\":\"AA\"}\n");
    let (file, lines) = (file.to_str().unwrap(), lines.to_str().unwrap());
    let (code, _, error) = host.cli(&["--token-file", file, "produce", "flights", lines]);
    assert_eq!(code, 0, "{error}");
    let (code, _, error) = host.cli(&["--token-file", file, "consume", "flights"]);
    assert_eq!(code, 5, "{error}");
    assert!(error.contains("needs the role consume"), "{error}");

    let (_, listed, _) = cli(&host, &root, &["token", "list", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let found = listed.as_array().unwrap().iter().find(|token| token["name"] == "sensor").unwrap();
    assert_eq!((&found["role"], &found["topics"]), (&json!("produce"), &json!(["flights"])));
    assert!(!listed.to_string().contains(&sensor[40..]), "no secret is listed: {listed}");
    let id = found["id"].as_str().unwrap();
    let (_, table, _) = cli(&host, &root, &["token", "list"]);
    assert!(table.contains(id) && table.contains("sensor") && table.contains("never"), "{table}");
    assert_eq!(cli(&host, &root, &["token", "revoke", id]).0, 0);
    assert_eq!(cli(&host, &root, &["token", "revoke", id]).0, 3);
    assert_eq!(host.cli(&["--token-file", file, "produce", "flights", lines]).0, 5);

    // Beside a running host the data cannot be opened; once it is stopped no token is needed.
    let data = host.data();
    let data = data.to_str().unwrap();
    let (code, _, error) = host.cli(&["token", "list", "--data", data]);
    assert!(code == 4 && error.contains("another host"), "{error}");
    let nowhere = format!("{data}-mistyped");
    let (code, _, error) = host.cli(&["token", "list", "--data", &nowhere]);
    assert!(code == 1 && error.contains("is no data directory"), "{error}");
    assert!(!std::path::Path::new(&nowhere).exists());
    host.stop();
    let offline =
        |args: &[&str]| outcome(&anabranch().args(args).args(["--data", data]).output().unwrap());
    let (code, made, error) =
        offline(&["token", "create", "b", "--role", "observe", "--topics", "*"]);
    assert_eq!(code, 0, "{error}");
    let (code, _, error) = offline(&["token", "create", "b", "--role", "observe"]);
    assert!(code == 2 && error.contains("--topics") || error.contains("topics"), "{error}");
    for span in ["0s", "99999999999999d"] {
        let (code, _, error) = offline(&[
            "token",
            "create",
            "c",
            "--role",
            "observe",
            "--topics",
            "*",
            "--expires",
            span,
        ]);
        assert!(code == 2 && error.contains("at most 36500d"), "{code} {error}");
    }
    let settings = [("ANABRANCH_AUTH_REQUIRED", "true")];
    let host = host.restart_stopped(&settings);
    assert_eq!(host.bearer(made.trim()).get("/v1/topics").status, 200);
    assert_eq!(host.bearer(sensor).get("/v1/topics").status, 401, "revoked for good");
}

/// A stream that follows a topic, as lines; its head is read.
fn follow(host: &Host, token: &str) -> BufReader<std::net::TcpStream> {
    let mut socket = connect(host);
    let path = "/v1/topics/t/partitions/0/records?follow=true";
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    let mut stream = BufReader::new(socket);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).unwrap();
        assert!(!line.starts_with("HTTP/1.1") || line.contains("200"), "{line}");
    }
    stream
}

/// Reads on until the connection is closed, which must not look like the end of the body.
fn broken_off(mut stream: BufReader<std::net::TcpStream>) -> String {
    let mut rest = Vec::new();
    // It may be reset or closed.
    let _ = stream.read_to_end(&mut rest);
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(!rest.ends_with("0\r\n\r\n"), "it ended as if it were whole: {rest:?}");
    rest
}

#[test]
fn a_revoked_or_expired_token_ends_its_streams() {
    let (host, root) = Host::start_guarded(&[]);
    let admin = host.bearer(&root);
    admin.topic("t", &json!({}));
    admin.append("t", &[json!({"value": "first"})]);
    let made = |expires: Value| {
        let asked = json!({"name": "r", "role": "consume", "topics": ["t"], "expires_in": expires});
        let made = admin.post("/v1/tokens", &asked).ok();
        (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
    };
    let (id, reader) = made(Value::Null);
    let (_, other) = made(Value::Null);
    let (_, short) = made(json!("2s"));
    let (stream, kept, expiring) =
        (follow(&host, &reader), follow(&host, &other), follow(&host, &short));
    let gone = admin.ask("DELETE", &format!("/v1/tokens/{id}"), &[], b"").unwrap();
    assert_eq!(gone.status, 204);
    let revoked = Instant::now();
    // What is appended from now on is not for it.
    admin.append("t", &[json!({"value": "second"})]);
    let rest = broken_off(stream);
    assert!(revoked.elapsed() < ms(5_000), "{:?}", revoked.elapsed());
    assert!(rest.contains("first") && !rest.contains("second"), "{rest:?}");
    host.bearer(&reader).get("/v1/topics/t").refused(401, "token_invalid", &["revoked"]);
    assert!(broken_off(expiring).contains("first"));
    host.bearer(&short).get("/v1/topics/t").refused(401, "token_expired", &["expired at"]);
    // Another's stream never noticed.
    admin.append("t", &[json!({"value": "third"})]);
    let seen: String =
        kept.lines().map(Result::unwrap).find(|line| line.contains("third")).unwrap();
    assert!(seen.contains("\"offset\":2"), "{seen}");
    // The command line does not try for ever.
    let (code, _, error) = cli(&host, &reader, &["consume", "t", "--follow"]);
    assert_eq!(code, 5, "{error}");
}

#[test]
fn the_audit_log_holds_who_did_what_and_who_was_refused() {
    let (host, root) = Host::start_guarded(&[("ANABRANCH_AUDIT_REFUSALS_PER_SECOND", "1000")]);
    let admin = host.bearer(&root);
    admin.topic("t", &json!({}));
    let reader = token(&admin, "consume", &["t"]);
    let asked = |client: &Client, method: &str, path: &str| {
        let headers = [("x-request-id", "the-request"), ("content-type", "application/json")];
        client.ask(method, path, &headers, b"{\"value\": \"not-for-the-log\"}").unwrap().status
    };
    let as_reader = host.bearer(&reader);
    assert_eq!(asked(&as_reader, "GET", "/v1/topics/t"), 200);
    assert_eq!(asked(&as_reader, "GET", "/v1/topics/u/partitions/0/records?from=hidden"), 403);
    assert_eq!(asked(&as_reader, "POST", "/v1/topics/t/records"), 403);
    assert_eq!(asked(&host, "DELETE", "/v1/topics/%1b%5B2J%e2%80%ae"), 401);
    assert_eq!(asked(&host.bearer(&root.replace("anabranch_", "x")), "GET", "/v1/tokens"), 401);
    assert_eq!(asked(&admin, "DELETE", "/v1/topics/none"), 404);
    let long = "a".repeat(40_000);
    assert_eq!(asked(&admin, "GET", &format!("/v1/topics/{long}")), 431);
    let lines = audited(&host);
    let made: Vec<_> = lines.iter().map(|line| line["made"].as_str()).collect();
    assert_eq!(made[..3], [Some(&root[10..26]), None, Some(&reader[10..26])], "{lines:?}");
    assert_eq!(made.iter().flatten().count(), 2);
    let told = |line: &Value| {
        let text = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} {} {} {} {}",
            text("method"),
            text("path").chars().take(40).collect::<String>(),
            line["status"],
            text("outcome"),
            text("code"),
            text("role")
        )
    };
    let told: Vec<String> = lines.iter().map(told).collect();
    assert_eq!(
        told,
        [
            "POST /v1/tokens 0 done offline - -",
            "PUT /v1/topics/t 200 done - admin",
            "POST /v1/tokens 200 done - admin",
            "GET /v1/topics/u/partitions/0/records 403 refused topic_forbidden consume",
            "POST /v1/topics/t/records 403 refused role_forbidden consume",
            "DELETE /v1/topics/%1b%5B2J%e2%80%ae 401 refused token_missing -",
            "GET /v1/tokens 401 refused token_invalid -",
            "DELETE /v1/topics/none 404 failed topic_not_found admin",
            &format!("GET /v1/topics/{} 431 refused headers_too_large admin", &long[..29]),
        ]
    );
    for line in &lines[3..] {
        assert_eq!(line["request_id"], "the-request");
        assert!(line["remote"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    }
    let text = std::fs::read_to_string(host.data().join("audit.log")).unwrap();
    let said = host.said();
    for secret in [&root[28..], &reader[28..], "not-for-the-log", "hidden"] {
        assert!(!text.contains(secret) && !said.contains(secret), "{secret}");
    }
    assert!(text.contains(&root[10..26]), "by its id");
}

#[test]
fn a_call_whose_client_leaves_is_carried_through_and_written_down() {
    let host = Host::start();
    // The answer takes as long as a compilation; the client does not wait for it.
    let plugin = crate::support::guest("count");
    let mut socket = connect(&host);
    let head = format!(
        "POST /v1/plugins HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/wasm\r\ncontent-length: {}\r\n\r\n",
        plugin.len()
    );
    socket.write_all(head.as_bytes()).unwrap();
    socket.write_all(&plugin).unwrap();
    std::thread::sleep(ms(50));
    drop(socket);
    wait_until("it is written down", || {
        let lines = audited(&host);
        lines.iter().any(|line| line["path"] == "/v1/plugins" && line["token"].is_null())
    });
    // Without tokens, too, a page of another site that was refused is there.
    let mut lured = connect(&host);
    lured
        .write_all(b"GET /v1/topics HTTP/1.1\r\nhost: example.org\r\nconnection: close\r\n\r\n")
        .unwrap();
    assert!(heard(&mut lured).contains("foreign_host"));
    assert_eq!(audited(&host).last().unwrap()["code"], "foreign_host");
}
