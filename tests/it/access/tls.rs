//! TLS with certificates made here: the command line and other clients, reloads, and what is refused.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{audited, connect, heard, say, token};
use crate::support::{Host, anabranch, outcome, wait_until};

/// A certificate of its own authority, for this machine: certificate and key, in PEM.
fn certificate() -> (String, String) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// Certificate and key as files in `dir`.
fn files(dir: &Path, pair: &(String, String)) -> [PathBuf; 2] {
    let paths = [dir.join("cert.pem"), dir.join("key.pem")];
    std::fs::write(&paths[0], &pair.0).unwrap();
    std::fs::write(&paths[1], &pair.1).unwrap();
    paths
}

/// The settings of a host with a certificate in `dir`.
fn settings<'a>(paths: &'a [PathBuf; 2], reload_ms: &'a str) -> [(&'a str, &'a str); 3] {
    let [cert, key] = paths.each_ref().map(|path| path.to_str().unwrap());
    [
        ("ANABRANCH_HTTP_TLS_CERT", cert),
        ("ANABRANCH_HTTP_TLS_KEY", key),
        ("ANABRANCH_HTTP_TLS_RELOAD_MS", reload_ms),
    ]
}

#[test]
fn clients_speak_tls_with_a_host_that_they_trust() {
    let dir = tempfile::tempdir().unwrap();
    let pair = certificate();
    let paths = files(dir.path(), &pair);
    let (host, root) = Host::start_guarded(&settings(&paths, "60000"));
    assert!(host.url().starts_with("https://127.0.0.1:"), "{}", host.url());
    let admin = host.trusting(&pair.0).bearer(&root);
    admin.topic("t", &json!({}));
    admin.append("t", &[json!({"value": 1})]);
    assert_eq!(admin.records("t", 0).len(), 1);
    let reader = host.trusting(&pair.0).bearer(&token(&admin, "consume", &["t"]));
    let mut events = reader.events("/v1/topics/t/partitions/0/records", None);
    assert_eq!(events.find(|(_, kind, _)| kind == "record").unwrap().2["value"], 1);

    let cli = |ca: Option<&Path>, args: &[&str]| {
        let mut command = anabranch();
        command.args(["--url", host.url()]).args(args).env("ANABRANCH_TOKEN", &root);
        ca.map(|ca| command.env("ANABRANCH_CA", ca));
        outcome(&command.output().unwrap())
    };
    let (code, out, error) = cli(Some(&paths[0]), &["consume", "t", "--format", "values"]);
    assert_eq!((code, out.as_str()), (0, "1\n"), "{error}");
    // 8 MB through it, both ways.
    let lines = format!("{}\n", json!("x".repeat(1 << 20))).repeat(8);
    let file = host.file("lines", lines.as_bytes());
    let (code, _, error) = cli(Some(&paths[0]), &["produce", "t", file.to_str().unwrap()]);
    assert_eq!(code, 0, "{error}");
    let (_, out, _) = cli(Some(&paths[0]), &["consume", "t", "--format", "values"]);
    assert_eq!(out, format!("1\n{lines}"));

    let (code, _, error) = cli(None, &["topic", "list"]);
    assert!(code == 6 && error.contains("certificate") && error.contains("--ca"), "{code} {error}");
    let other = dir.path().join("other.pem");
    std::fs::write(&other, certificate().0).unwrap();
    assert_eq!(cli(Some(&other), &["topic", "list"]).0, 6, "another's certificate");
    assert_eq!(cli(Some(&paths[1]), &["topic", "list"]).0, 2, "a key is no certificate");

    let plain = say(&host, "GET /v1/topics HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(
        plain.starts_with("HTTP/1.1 400 ") && plain.contains("\"code\":\"tls_required\""),
        "{plain}"
    );
    let mut garbage = connect(&host);
    garbage.write_all(b"\x16\x03\x01\x00\x05hello, this is no handshake").unwrap();
    assert!(!heard(&mut garbage).contains("HTTP"));
    // That one, who spoke plainly, and two of the command line's that did not believe the certificate.
    wait_until("handshakes that failed are written down", || {
        let failed = |line: &Value| line["code"] == "tls_failed" && line["outcome"] == "refused";
        audited(&host).iter().filter(|line| failed(line)).count() >= 3
    });
    assert_eq!(admin.get("/readyz").status, 200);
}

#[test]
fn a_new_certificate_is_taken_without_a_restart_and_a_broken_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, third) = (certificate(), certificate(), certificate());
    let paths = files(dir.path(), &first);
    let (host, root) = Host::start_guarded(&settings(&paths, "50"));
    let trusts = |pair: &(String, String)| {
        host.trusting(&pair.0)
            .ask("GET", "/readyz", &[], b"")
            .is_ok_and(|reply| reply.status == 200)
    };
    assert!(trusts(&first) && !trusts(&second));
    let held = host.trusting(&first.0).bearer(&root);
    held.topic("t", &json!({}));
    let mut follower = held.events("/v1/topics/t/partitions/0/records", None);

    files(dir.path(), &second);
    wait_until("the second certificate is taken", || trusts(&second));
    assert!(!trusts(&first), "new connections get the new one");
    // Half of a pair, no certificate, no file: the old one stays, and the host says so.
    let broken: [&dyn Fn(); 3] = [
        &|| std::fs::write(&paths[0], &third.0).unwrap(),
        &|| std::fs::write(&paths[0], "-----BEGIN CERTIFICATE-----\nno\n").unwrap(),
        &|| std::fs::remove_file(&paths[0]).unwrap(),
    ];
    for (n, damage) in broken.iter().enumerate() {
        damage();
        let told = || host.said().matches("the new certificate is not taken").count();
        wait_until("the host says that it keeps the old one", || told() > n);
        assert!(trusts(&second));
    }
    assert!(host.said().contains("cert.pem"), "{}", host.said());
    files(dir.path(), &third);
    wait_until("the third certificate is taken", || trusts(&third));
    // Who was connected all along never noticed.
    host.trusting(&third.0).bearer(&root).append("t", &[json!({"value": "after"})]);
    assert_eq!(follower.find(|(_, kind, _)| kind == "record").unwrap().2["value"], "after");
}

#[test]
fn sighup_reads_the_certificate_again() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (certificate(), certificate());
    let paths = files(dir.path(), &first);
    let host = Host::start_with(&settings(&paths, "86400000"));
    let trusts =
        |pair: &(String, String)| host.trusting(&pair.0).ask("GET", "/readyz", &[], b"").is_ok();
    files(dir.path(), &second);
    assert!(trusts(&first), "nobody has looked yet");
    host.signal(Signal::HUP);
    wait_until("the second certificate is taken", || trusts(&second));
}

#[test]
fn an_address_that_others_reach_needs_both_or_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let pair = certificate();
    let [cert, key] = files(dir.path(), &pair);
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let tls = [("ANABRANCH_HTTP_TLS_CERT", cert), ("ANABRANCH_HTTP_TLS_KEY", key)];
    let tokens = [("ANABRANCH_AUTH_REQUIRED", "true")];
    let refused = |settings: &[(&str, &str)]| {
        let host = anabranch()
            .args(["serve", "--listen", "0.0.0.0:0", "--data"])
            .arg(dir.path().join("data"))
            .envs(settings.iter().copied())
            .output();
        let (code, _, error) = outcome(&host.unwrap());
        assert_eq!(code, 1, "{error}");
        error
    };
    let error = refused(&[]);
    assert!(error.contains("tls_cert") && error.contains("[auth] required"), "{error}");
    let error = refused(&tokens);
    assert!(error.contains("tls_cert") && !error.contains("[auth]"), "{error}");
    let error = refused(&tls);
    assert!(error.contains("[auth] required") && !error.contains("tls_cert"), "{error}");
    assert!(refused(&tls[..1]).contains("go together"));
    let swapped = [("ANABRANCH_HTTP_TLS_CERT", key), ("ANABRANCH_HTTP_TLS_KEY", cert)];
    let error = refused(&[&swapped[..], &tokens[..]].concat());
    assert!(error.contains("key.pem holds no certificate"), "{error}");
    assert!(!dir.path().join("data").exists(), "nothing was touched");

    // With both, or the word, the address is taken; this one is nobody's (RFC 5737), so that no test
    // listens where others could ask.
    let taken = |settings: &[(&str, &str)], word: &[&str]| {
        let host = anabranch()
            .args(["serve", "--listen", "192.0.2.1:1"])
            .args(word)
            .arg("--data")
            .arg(dir.path().join("data"))
            .envs(settings.iter().copied())
            .output();
        let (code, _, error) = outcome(&host.unwrap());
        assert!(code == 1 && error.contains("cannot listen on 192.0.2.1:1"), "{error}");
    };
    taken(&[&tls[..], &tokens[..]].concat(), &[]);
    taken(&[], &["--insecure"]);
    taken(&tokens, &["--insecure"]);
}
