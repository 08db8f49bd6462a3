//! A real host in a process of its own, on a temporary directory and a free port, and a small client.
//!
//! **Invariant:** a host ends with its test, however the test ends.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, guest};
use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body};

/// A host that serves.
pub struct Host {
    child: Child,
    dir: tempfile::TempDir,
    /// Where it serves.
    pub url: String,
    agent: Agent,
}

/// A reply: its status, its body as JSON (null where it is none), and its headers.
pub struct Reply {
    pub status: u16,
    pub body: Value,
    pub headers: ureq::http::HeaderMap,
    pub text: String,
}

/// The command line of the binary under test, away from the environment's settings.
pub fn anabranch() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anabranch"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ANABRANCH_")) {
        command.env_remove(name);
    }
    command
}

/// What a run of the command line said: exit code, standard output, standard error.
pub fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

impl Host {
    /// A host on a fresh directory.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A host on a fresh directory, with settings as environment variables.
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::start_on(dir, settings)
    }

    fn start_on(dir: tempfile::TempDir, settings: &[(&str, &str)]) -> Self {
        let mut child = anabranch()
            .args(["serve", "--listen", "127.0.0.1:0", "--json", "--data"])
            .arg(dir.path().join("data"))
            .current_dir(dir.path())
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary under test runs");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
        out.read_line(&mut line).expect("its output can be read");
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("the host did not say that it is ready, but {line:?}"));
        let url = ready["url"].as_str().expect("it says where").to_owned();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .build();
        Self { child, dir, url, agent: config.into() }
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A path for a test's own files.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("a file can be written");
        path
    }

    /// Sends a request with a body.
    pub fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Reply {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("content-type", kind)
            .body(body.to_vec())
            .expect("a request");
        reply(self.agent.run(request).expect("the host answers"))
    }

    pub fn get(&self, path: &str) -> Reply {
        reply(self.agent.get(format!("{}{path}", self.url)).call().expect("the host answers"))
    }

    pub fn put(&self, path: &str, body: &Value) -> Reply {
        self.send("PUT", path, "application/json", body.to_string().as_bytes())
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, "application/json", body.to_string().as_bytes())
    }

    /// Appends NDJSON records.
    pub fn produce(&self, topic: &str, lines: &str) -> Reply {
        let path = format!("/v1/topics/{topic}/records");
        self.send("POST", &path, "application/x-ndjson", lines.as_bytes())
    }

    /// Creates a topic.
    pub fn topic(&self, name: &str, options: &Value) {
        self.put(&format!("/v1/topics/{name}"), options).ok();
    }

    /// Pushes a guest; its digest.
    pub fn push(&self, name: &str) -> String {
        let pushed = self.send("POST", "/v1/plugins", "application/wasm", &guest(name));
        pushed.ok()["digest"].as_str().expect("a digest").to_owned()
    }

    /// Deploys the guest over `input`, its one output renamed.
    pub fn deploy(&self, name: &str, plugin: &str, input: &str, outputs: &Value) {
        let digest = self.push(plugin);
        let spec = json!({"name": name, "plugin": digest, "inputs": [input], "outputs": outputs});
        self.put(&format!("/v1/deployments/{name}"), &spec).ok();
    }

    /// Waits until `done` says so about a deployment.
    pub fn wait(&self, deployment: &str, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let status = self.get(&format!("/v1/deployments/{deployment}")).ok();
            if done(&status) {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain until {what}: {status:#}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A stream of server-sent events.
    pub fn events(&self, path: &str, last: Option<&str>) -> Events {
        let mut request =
            self.agent.get(format!("{}{path}", self.url)).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let reply = request.call().expect("the host answers");
        assert_eq!(reply.status(), 200);
        Events(BufReader::new(Box::new(reply.into_body().into_reader())))
    }

    /// Runs the command line against this host.
    pub fn cli(&self, args: &[&str]) -> (i32, String, String) {
        let output = anabranch().args(["--url", &self.url]).args(args).output();
        outcome(&output.expect("the binary under test runs"))
    }

    /// Asks the host to stop.
    pub fn terminate(&self) {
        let id = rustix::process::Pid::from_child(&self.child);
        let sent = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        sent.expect("a signal can be sent");
    }

    /// Waits for the process to end; its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is a child") {
                return status.code();
            }
            assert!(began.elapsed() < PATIENCE, "the host does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the host and starts another on its directory.
    pub fn restart(mut self) -> Self {
        self.terminate();
        assert_eq!(self.ended(), Some(0));
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().expect("a directory"));
        Self::start_on(dir, &[])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Reply {
    /// The body of a success.
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{}: {}", self.status, self.text);
        self.body
    }

    /// Checks a refusal: its status, its code, and that its sentence says `parts`. Every problem has
    /// the request's id, as its header does.
    pub fn refused(&self, status: u16, code: &str, parts: &[&str]) {
        let found = (self.status, self.body["code"].as_str());
        assert_eq!(found, (status, Some(code)), "{}", self.text);
        let detail = self.body["detail"].as_str().expect("a detail");
        for part in parts {
            assert!(detail.contains(part), "{part:?} is not in {detail:?}");
        }
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.body["request_id"].as_str(), self.headers["x-request-id"].to_str().ok());
    }

    /// A header as a number.
    pub fn number(&self, header: &str) -> u64 {
        let text = self.headers.get(header).and_then(|value| value.to_str().ok());
        text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {header}"))
    }
}

fn reply(reply: Response<Body>) -> Reply {
    let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
    let mut text = String::new();
    let read = reply.into_body().into_reader().read_to_string(&mut text);
    read.expect("the reply can be read");
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    Reply { status, body, headers, text }
}

/// A stream of server-sent events: id, kind, data.
pub struct Events(BufReader<Box<dyn std::io::Read>>);

impl Iterator for Events {
    type Item = (String, String, Value);

    fn next(&mut self) -> Option<Self::Item> {
        let (mut id, mut kind) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).expect("the stream is whole") == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("id", text)) => id = text.to_owned(),
                Some(("event", text)) => kind = text.to_owned(),
                Some(("data", text)) => {
                    return Some((id, kind, serde_json::from_str(text).expect("data is JSON")));
                }
                _ => {}
            }
        }
    }
}

/// Whether `path` cannot be written, although permissions say nothing to a superuser.
pub fn make_read_only(path: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o555)).expect("our own");
    match std::fs::write(path.join("probe"), b"") {
        Err(_) => path.to_owned(),
        // A superuser writes anywhere but into the kernel's own file systems.
        Ok(()) => PathBuf::from("/sys/kernel"),
    }
}
