//! Who may do what: tokens, roles and topics; TLS; limits on clients that mean no good.

mod limits;
mod roles;
mod tls;
mod tokens;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Host, PATIENCE, wait_until};

/// Makes a token, as an admin.
fn token(admin: &Client, role: &str, topics: &[&str]) -> String {
    let asked = json!({"name": format!("test {role}"), "role": role, "topics": topics});
    admin.post("/v1/tokens", &asked).ok()["token"].as_str().unwrap().to_owned()
}

/// A connection to a host, for what no well-behaved client says.
fn connect(host: &Host) -> TcpStream {
    let address = host.url().split_once("://").unwrap().1;
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Says `text` and hears what is answered until the host closes.
fn say(host: &Host, text: &str) -> String {
    let mut socket = connect(host);
    if let Err(error) = socket.write_all(text.as_bytes()) {
        // Who is refused may be closed before all is said.
        let closed = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(closed.contains(&error.kind()), "{error}");
    }
    heard(&mut socket)
}

/// What is answered until the host closes the connection, one way or the other.
fn heard(socket: &mut TcpStream) -> String {
    let (mut all, mut part) = (Vec::new(), [0; 1 << 16]);
    loop {
        match socket.read(&mut part) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&part[..n]),
            Err(error) => {
                let closed = error.kind() == ErrorKind::ConnectionReset;
                assert!(closed, "{error}, after {:?}", String::from_utf8_lossy(&all));
                break;
            }
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// The value of a metric without labels, or with exactly these.
fn metric(host: &Client, name: &str) -> f64 {
    let text = host.get("/metrics").text;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// A moment, in milliseconds, as settings and tests say it.
fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The audit log's lines.
fn audited(host: &Host) -> Vec<Value> {
    let text = std::fs::read_to_string(host.data().join("audit.log")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until connections that were refused for `code` are in the audit log: so many, with this status.
fn wait_audited(host: &Host, code: &str, status: u16, count: usize) {
    wait_until(code, || {
        let lines = audited(host).into_iter().filter(|line| line["code"] == code);
        let fits = |line: Value| {
            line["status"] == status
                && line["outcome"] == "refused"
                && line["remote"].as_str().is_some_and(|remote| remote.starts_with("127.0.0."))
        };
        lines.map(fits).collect::<Vec<_>>() == vec![true; count]
    });
}
