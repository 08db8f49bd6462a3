//! Clients that are slow, many, loud or ambiguous: each is refused at its limit, and others go on.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use super::{audited, connect, heard, metric, ms, say, token, wait_audited};
use crate::support::{Host, lines, wait_until};

#[test]
fn headers_that_do_not_come_end_the_connection() {
    let host = Host::start_with(&[("ANABRANCH_HTTP_HEADER_TIMEOUT_MS", "500")]);
    let began = Instant::now();
    // A byte now and then keeps nothing alive.
    let mut socket = connect(&host);
    socket.write_all(b"GET /v1/topics HTTP/1.1\r\nhost: localhost\r\nx-slow: ").unwrap();
    for _ in 0..3 {
        std::thread::sleep(ms(100));
        // It may have given up already.
        let _ = socket.write_all(b"a");
    }
    let reply = heard(&mut socket);
    assert!(reply.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{reply}");
    assert!(
        reply.contains("\"code\":\"header_timeout\"") && reply.contains("header_timeout_ms"),
        "{reply}"
    );
    assert!(began.elapsed() < ms(10_000), "{:?}", began.elapsed());
    // Who has asked nothing is closed without a word, also after a request.
    assert_eq!(heard(&mut connect(&host)), "");
    let reply = say(&host, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(
        reply.starts_with("HTTP/1.1 200 OK") && reply.matches("HTTP/1.1").count() == 1,
        "{reply}"
    );
    assert_eq!(metric(&host, "anabranch_http_refused_total{code=\"header_timeout\"}"), 1.0);
    wait_audited(&host, "header_timeout", 408, 1);
}

#[test]
fn headers_that_are_too_many_or_too_large_are_refused() {
    let host = Host::start_with(&[
        ("ANABRANCH_HTTP_MAX_HEADERS", "10"),
        ("ANABRANCH_HTTP_MAX_HEADER_BYTES", "9000"),
    ]);
    let asked = |extra: &str| {
        say(
            &host,
            &format!(
                "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{extra}\r\n"
            ),
        )
    };
    assert!(asked(&"x-a: b\r\n".repeat(8)).starts_with("HTTP/1.1 200 "));
    for extra in ["x-a: b\r\n".repeat(9), format!("x-a: {}\r\n", "b".repeat(9_000))] {
        let reply = asked(&extra);
        assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
        assert!(
            reply.contains("\"code\":\"headers_too_large\"") && reply.contains("max_headers"),
            "{reply}"
        );
    }
    let long = say(
        &host,
        &format!(
            "GET /{} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
            "a".repeat(9_000)
        ),
    );
    assert!(long.starts_with("HTTP/1.1 431 "), "{long}");
    // Far beyond it nothing is kept to say more.
    for extra in ["x-a: b\r\n".repeat(1_000), format!("x-a: {}\r\n", "b".repeat(1 << 20))] {
        let reply = asked(&extra);
        assert!(reply.starts_with("HTTP/1.1 431 ") || reply.is_empty(), "{reply}");
    }
    wait_audited(&host, "headers_too_large", 431, 5);
    assert_eq!(host.get("/readyz").status, 200);
}

#[test]
fn a_body_that_does_not_come_is_given_up() {
    let host = Host::start_with(&[
        ("ANABRANCH_HTTP_STALL_TIMEOUT_MS", "500"),
        ("ANABRANCH_HTTP_MIN_BYTES_PER_SECOND", "10000"),
    ]);
    host.topic("t", &json!({}));
    let head = "POST /v1/topics/t/records HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\ncontent-length: 1000000\r\n\r\n";
    let mut silent = connect(&host);
    silent.write_all(head.as_bytes()).unwrap();
    let mut trickle = connect(&host);
    trickle.write_all(head.as_bytes()).unwrap();
    let began = Instant::now();
    let mut reply = [0; 1];
    trickle.set_nonblocking(true).unwrap();
    // Until the host has answered.
    while trickle.peek(&mut reply).is_err() {
        assert!(began.elapsed() < ms(20_000), "a byte now and then keeps it alive");
        // It may have given up already.
        let _ = trickle.write_all(b" ");
        std::thread::sleep(ms(20));
    }
    trickle.set_nonblocking(false).unwrap();
    for socket in [&mut silent, &mut trickle] {
        let reply = heard(socket);
        assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
        assert!(
            reply.contains("\"code\":\"body_too_slow\"") && reply.contains("stall_timeout_ms"),
            "{reply}"
        );
    }
    // One that takes longer than the limit in all, and is fast enough, is taken.
    let record = format!("{}\n", json!({"value": "x".repeat(4_000)}));
    let mut steady = connect(&host);
    let length = record.len() * 10;
    let head =
        head.replace("1000000", &length.to_string()).replace("host:", "connection: close\r\nhost:");
    steady.write_all(head.as_bytes()).unwrap();
    for _ in 0..10 {
        std::thread::sleep(ms(100));
        steady.write_all(record.as_bytes()).unwrap();
    }
    let reply = heard(&mut steady);
    assert!(reply.starts_with("HTTP/1.1 200 ") && reply.contains("\"appended\":10"), "{reply}");
    assert_eq!(metric(&host, "anabranch_http_refused_total{code=\"body_too_slow\"}"), 2.0);
    wait_audited(&host, "body_too_slow", 408, 2);
}

#[test]
fn a_reader_that_takes_nothing_is_cut_off() {
    let host = Host::start_with(&[("ANABRANCH_HTTP_STALL_TIMEOUT_MS", "500")]);
    host.topic("t", &json!({}));
    let record = json!({"value": "x".repeat(1 << 20)});
    for _ in 0..4 {
        host.append("t", &vec![record.clone(); 8]);
    }
    let path = "/v1/topics/t/partitions/0/records";
    let mut page = connect(&host);
    let mut follower = connect(&host);
    for (socket, query) in [(&mut page, ""), (&mut follower, "?follow=true")] {
        let request = format!("GET {path}{query} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
    }
    let cut = || metric(&host, "anabranch_http_refused_total{code=\"slow_reader\"}");
    wait_until("both are cut off", || cut() == 2.0);
    // What had been on its way, and then no end.
    for socket in [&mut page, &mut follower] {
        let taken = heard(socket);
        assert!(taken.len() < 30 << 20 && !taken.ends_with("0\r\n\r\n"), "{}", taken.len());
    }
    assert_eq!(host.records("t", 0).len(), 32, "who reads gets all");
}

#[test]
fn bodies_have_room_in_all() {
    let host = Host::start_with(&[("ANABRANCH_HTTP_MAX_BODIES_BYTES", "1000000")]);
    host.topic("t", &json!({}));
    let body = lines(&vec![json!({"value": "x".repeat(999)}); 800]);
    let head = format!(
        "POST /v1/topics/t/records HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut slow = connect(&host);
    slow.write_all(head.as_bytes()).unwrap();
    slow.write_all(&body.as_bytes()[..body.len() / 2]).unwrap();
    let mut reply = None;
    wait_until("the other half has no room", || {
        let asked = host.produce("t", &body);
        let busy = asked.status == 503;
        reply = Some(asked);
        busy
    });
    let reply = reply.unwrap();
    reply.refused(503, "too_many_bodies", &["max_bodies_bytes"]);
    assert_eq!(reply.headers["retry-after"], "1");
    slow.write_all(&body.as_bytes()[body.len() / 2..]).unwrap();
    assert!(heard(&mut slow).starts_with("HTTP/1.1 200 "));
    host.produce("t", &body).ok();
}

#[test]
fn requests_have_a_rate_for_each_token() {
    let (host, root) = Host::start_guarded(&[
        ("ANABRANCH_HTTP_MAX_REQUESTS_PER_SECOND", "20"),
        ("ANABRANCH_AUDIT_REFUSALS_PER_SECOND", "5"),
    ]);
    let admin = host.bearer(&root);
    let loud = host.bearer(&token(&admin, "observe", &["*"]));
    let mut limited = None;
    for _ in 0..1_000 {
        let reply = loud.get("/v1/topics");
        if reply.status == 429 {
            limited = Some(reply);
            break;
        }
    }
    let limited = limited.expect("a thousand at once are too many");
    limited.refused(429, "too_many_requests", &["max_requests_per_second"]);
    assert_eq!(limited.headers["retry-after"], "1");
    assert_eq!(admin.get("/v1/topics").status, 200, "another token has its own");
    // Guessing has that of its address, and does not fill the log.
    let guesses = (0..200).map(|_| host.bearer("anabranch_guess").get("/v1/topics").status);
    assert!(guesses.filter(|status| *status == 429).count() > 100);
    wait_until("a second has passed", || admin.get("/v1/tokens").status == 200);
    let audit = std::fs::read_to_string(host.data().join("audit.log")).unwrap();
    assert!(audit.lines().count() < 100 && audit.contains("\"left_out\":"), "{audit}");
    wait_until("it may go on", || loud.get("/v1/topics").status == 200);
}

#[test]
fn ten_thousand_connections_leave_the_host_as_it_was() {
    // Both ends are on this machine, and the process under test has limits of its own.
    let allowed = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: allowed, maximum: allowed }).unwrap();
    let many = allowed.map_or(10_000, |allowed| (allowed / 2).min(10_000)) as usize;
    let most = 100;
    let host = Host::start_with(&[("ANABRANCH_HTTP_MAX_CONNECTIONS", "100")]);
    host.topic("t", &json!({}));
    host.append("t", &[json!({"value": 1})]);
    let before = host.open_files();
    let mut follower = host.events("/v1/topics/t/partitions/0/records", None);
    assert_eq!(follower.find(|(_, kind, _)| kind == "record").unwrap().2["value"], 1);
    let address = host.url().strip_prefix("http://").unwrap().parse().unwrap();
    let mut sockets: Vec<TcpStream> = Vec::with_capacity(many);
    for n in 0..many {
        // Some are reset or do not get through: the system's queue is bounded, too.
        if let Ok(socket) = TcpStream::connect_timeout(&address, ms(50)) {
            // The system would remember each for a minute, and others need its ports.
            rustix::net::sockopt::set_socket_linger(&socket, Some(ms(0))).unwrap();
            sockets.push(socket);
        }
        if n % 1_000 == 0 {
            assert!(host.open_files() <= before + most + 100, "{}", host.open_files());
        }
    }
    assert!(host.open_files() <= before + most + 100, "{}", host.open_files());
    // Some were told why, as a whole; others were reset, or never got past the system's queue.
    std::thread::sleep(ms(500));
    let told = sockets.iter_mut().filter_map(|socket| {
        let mut text = [0; 4_096];
        socket.set_nonblocking(true).unwrap();
        let length = socket.read(&mut text).ok().filter(|length| *length > 0)?;
        Some(String::from_utf8_lossy(&text[..length]).into_owned())
    });
    let told: Vec<String> = told.collect();
    assert!(sockets.len() > many / 2 && !told.is_empty(), "{}", sockets.len());
    for text in told {
        assert!(
            text.starts_with("HTTP/1.1 503 ") && text.contains("too_many_connections"),
            "{text}"
        );
    }
    // Whoever was there goes on, and so does everyone once they are gone.
    drop(sockets);
    wait_until("there is room again", || {
        host.ask("GET", "/readyz", &[], b"").is_ok_and(|reply| reply.status == 200)
    });
    host.append("t", &[json!({"value": 2})]);
    assert_eq!(follower.find(|(_, kind, _)| kind == "record").unwrap().2["value"], 2);
    wait_until("their places are free", || metric(&host, "anabranch_http_connections") < 10.0);
    // A flood fills no disk: the lines that were left out are counted.
    let lines = audited(&host);
    assert!(lines.iter().any(|line| line["code"] == "too_many_connections"), "{lines:?}");
    assert!(lines.len() < many / 5, "{} lines of {many}", lines.len());
}

#[test]
fn one_address_leaves_room_for_others() {
    let host = Host::start_with(&[("ANABRANCH_HTTP_MAX_CONNECTIONS_PER_ADDRESS", "5")]);
    let port = host.url().rsplit(':').next().unwrap().to_owned();
    let held: Vec<TcpStream> = (0..5).map(|_| connect(&host)).collect();
    let mut full = String::new();
    wait_until("the sixth is refused", || {
        full = heard(&mut connect(&host));
        !full.is_empty()
    });
    assert!(
        full.starts_with("HTTP/1.1 503 ") && full.contains("too_many_connections_of_one"),
        "{full}"
    );
    wait_until("it is written down", || {
        audited(&host).iter().any(|line| line["code"] == "too_many_connections_of_one")
    });
    // Another address of this machine.
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    );
    let socket = socket.unwrap();
    rustix::net::bind(&socket, &"127.0.0.2:0".parse::<std::net::SocketAddr>().unwrap()).unwrap();
    let to: std::net::SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    let mut other = TcpStream::from(socket);
    other
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    assert!(heard(&mut other).starts_with("HTTP/1.1 200 "));
    drop(held);
}

#[test]
fn what_two_programs_could_read_two_ways_is_refused_or_ends_the_connection() {
    let (host, root) = Host::start_guarded(&[]);
    let admin = host.bearer(&root);
    admin.topic("t", &json!({}));
    let good = token(&admin, "produce", &["t"]);
    let smuggled = format!(
        "DELETE /v1/topics/t HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {root}\r\n\r\n"
    );
    let post = |headers: &str, body: &str| {
        let head = format!(
            "POST /v1/topics/t/records HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {good}\r\ncontent-type: application/x-ndjson\r\n{headers}\r\n\r\n{body}"
        );
        say(&host, &head)
    };
    // Chunked, with a length that says otherwise: what follows is not taken for a request.
    for (headers, body) in [
        ("content-length: 5\r\ntransfer-encoding: chunked", format!("0\r\n\r\n{smuggled}")),
        ("transfer-encoding: chunked\r\ncontent-length: 5", format!("0\r\n\r\n{smuggled}")),
        ("transfer-encoding: chunked", format!("0\r\n\r\n{smuggled}")),
    ] {
        let reply = post(headers, &body);
        assert_eq!(reply.matches("HTTP/1.1").count(), 1, "{headers}: {reply}");
        assert!(reply.contains("connection: close"), "{reply}");
    }
    for headers in [
        "content-length: 0\r\ncontent-length: 5",
        "content-length: 0, 5",
        "content-length: +5",
        "content-length: 0x5",
        "transfer-encoding: identity, chunked, gzip",
        "transfer-encoding: xchunked",
        "transfer-encoding : chunked",
        "content-length: 0\r\n transfer-encoding: chunked",
        "content\u{b}length: 0",
    ] {
        let reply = post(headers, &smuggled);
        assert!(reply.starts_with("HTTP/1.1 400 "), "{headers:?}: {reply}");
        assert_eq!(reply.matches("HTTP/1.1").count(), 1, "{headers:?}: {reply}");
    }
    for twice in [
        "host: example.org",
        "authorization: Bearer x",
        "content-type: application/json",
        "last-event-id: 1\r\nlast-event-id: 2",
    ] {
        let reply = post(&format!("{twice}\r\ncontent-length: 0\r\nconnection: close"), "");
        assert!(
            reply.starts_with("HTTP/1.1 400 ") && reply.contains("duplicate_header"),
            "{reply}"
        );
    }
    // A token in a query, a cookie or the other scheme is none.
    for request in [
        format!("GET /v1/topics?token={root} HTTP/1.1\r\nhost: localhost\r\n"),
        format!("GET /v1/topics HTTP/1.1\r\nhost: localhost\r\ncookie: token={root}\r\n"),
        format!("GET /v1/topics HTTP/1.1\r\nhost: localhost\r\nauthorization: Basic {root}\r\n"),
        format!("GET /v1/topics HTTP/1.1\r\nhost: localhost\r\nauthorization: {root}\r\n"),
    ] {
        let reply = say(&host, &format!("{request}connection: close\r\n\r\n"));
        assert!(reply.starts_with("HTTP/1.1 401 "), "{reply}");
    }
    assert_eq!(admin.get("/v1/topics/t").status, 200, "nothing was smuggled");
    assert!(!host.said().contains(&root[28..]));
}

#[test]
fn a_body_is_refused_by_what_it_announces() {
    let host = Host::start_with(&[("ANABRANCH_HTTP_MAX_BODY_BYTES", "1000")]);
    host.topic("t", &json!({}));
    let ask = |headers: &str, body: &str| {
        let head = "POST /v1/topics/t/records HTTP/1.1\r\nhost: localhost\r\nconnection: close";
        say(
            &host,
            &format!("{head}\r\ncontent-type: application/x-ndjson\r\n{headers}\r\n\r\n{body}"),
        )
    };
    // A client that waits to be asked for it is not; whoever announces nothing is found out on the way.
    let asked = ask("content-length: 1000000000000\r\nexpect: 100-continue", "");
    let on_the_way = format!("7d0\r\n{}\r\n0\r\n\r\n", "x".repeat(2_000));
    for reply in [asked, ask("transfer-encoding: chunked", &on_the_way)] {
        assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
        assert!(reply.contains("body_too_large") && reply.contains("max_body_bytes"), "{reply}");
    }
}
