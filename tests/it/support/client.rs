//! A client of the public surface, as small as tests need it.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::Arc;

use arrow_ipc::reader::StreamReader;
use serde_json::{Value, json};
use ureq::http::{HeaderMap, Request, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::{PATIENCE, guest, wait_until};

/// Talks to one host.
#[derive(Clone)]
pub struct Client {
    url: String,
    agent: Agent,
    token: Option<String>,
}

/// Records as they come, in columns.
pub type Batches = StreamReader<Stream>;

type Stream = BufReader<Box<dyn Read + Send>>;

/// What a host answered.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body; null where it is no JSON.
    pub body: Value,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as it came.
    pub text: String,
}

impl Client {
    /// A client of the host at `url`.
    pub fn new(url: &str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .build();
        Self { url: url.to_owned(), agent: config.into(), token: None }
    }

    /// The same host, asked with a token.
    pub fn bearer(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// The same host, on new connections, believed if this certificate (PEM) vouches for it.
    pub fn trusting(&self, ca: &str) -> Self {
        let certificate = Certificate::from_pem(ca.as_bytes()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[certificate]))
            .unversioned_rustls_crypto_provider(provider);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .tls_config(tls.build())
            .build();
        Self { agent: config.into(), ..self.clone() }
    }

    /// The host's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends a request with headers and a body; an error when the host is not there.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Reply, ureq::Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let sent = match method {
            "GET" => self.agent.run(request.body(())?),
            _ => self.agent.run(request.body(body)?),
        };
        Reply::read(sent?)
    }

    /// Sends a body of a kind.
    pub fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Reply {
        self.ask(method, path, &[("content-type", kind)], body).expect("the host answers")
    }

    /// GET; records come as lines.
    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], b"").expect("the host answers")
    }

    /// PUT of JSON.
    pub fn put(&self, path: &str, body: &Value) -> Reply {
        self.send("PUT", path, "application/json", body.to_string().as_bytes())
    }

    /// POST of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.try_post(path, body).expect("the host answers")
    }

    /// POST of JSON; an error when the host is not there.
    pub fn try_post(&self, path: &str, body: &Value) -> Result<Reply, ureq::Error> {
        let headers = [("content-type", "application/json")];
        self.ask("POST", path, &headers, body.to_string().as_bytes())
    }

    /// Appends NDJSON records; an error when the host is not there.
    pub fn try_produce(&self, topic: &str, lines: &str) -> Result<Reply, ureq::Error> {
        let path = format!("/v1/topics/{topic}/records");
        self.ask("POST", &path, &[("content-type", "application/x-ndjson")], lines.as_bytes())
    }

    /// Appends NDJSON records.
    pub fn produce(&self, topic: &str, lines: &str) -> Reply {
        self.try_produce(topic, lines).expect("the host answers")
    }

    /// Appends records, which must succeed.
    pub fn append(&self, topic: &str, records: &[Value]) -> Value {
        self.produce(topic, &lines(records)).ok()
    }

    /// Creates a topic.
    pub fn topic(&self, name: &str, options: &Value) {
        self.put(&format!("/v1/topics/{name}"), options).ok();
    }

    /// Creates a topic of so many partitions.
    pub fn partitions(&self, name: &str, partitions: u32) {
        self.topic(name, &json!({ "partitions": partitions }));
    }

    /// Pushes a guest; its digest.
    pub fn push(&self, name: &str) -> String {
        let pushed = self.send("POST", "/v1/plugins", "application/wasm", &guest(name));
        pushed.ok()["digest"].as_str().expect("a digest").to_owned()
    }

    /// Deploys the guest over `inputs`.
    pub fn deploy(&self, name: &str, plugin: &str, inputs: &[&str], outputs: &Value) {
        let spec = json!({
            "name": name, "plugin": self.push(plugin), "inputs": inputs, "outputs": outputs,
        });
        self.put(&format!("/v1/deployments/{name}"), &spec).ok();
    }

    /// All records of a partition, from `earliest` on.
    pub fn records(&self, topic: &str, partition: u32) -> Vec<Value> {
        let (mut all, mut from) = (Vec::new(), "earliest".to_owned());
        loop {
            let path = format!(
                "/v1/topics/{topic}/partitions/{partition}/records?from={from}&limit=50000"
            );
            let headers = [("accept", "application/json")];
            let reply = self.ask("GET", &path, &headers, b"").expect("the host answers");
            let Value::Array(page) = reply.ok() else { panic!("{path} is no array") };
            let Some(last) = page.last() else { return all };
            from = (last["offset"].as_u64().unwrap() + 1).to_string();
            all.extend(page);
        }
    }

    /// A partition's first `count` records in batches of columns, as many at once as the host sends:
    /// for more of them than a test can hold as JSON.
    pub fn batches(&self, topic: &str, partition: u32, count: usize) -> Batches {
        let path = format!("/v1/topics/{topic}/partitions/{partition}/records");
        let path = format!("{path}?from=earliest&follow=true&limit={count}");
        let body = self.stream(&path, &[("accept", "application/vnd.apache.arrow.stream")]);
        StreamReader::try_new(body, None).expect("a stream of Arrow")
    }

    /// A deployment's status.
    pub fn status(&self, name: &str) -> Value {
        self.get(&format!("/v1/deployments/{name}")).ok()
    }

    /// Waits until a generation has processed so many records.
    pub fn wait_processed(&self, name: &str, generation: u32, records: u64) {
        wait_until(&format!("{name} g{generation} processes {records}"), || {
            let status = self.status(name);
            let generations = status["generations"].as_array().unwrap();
            generations.iter().any(|g| {
                g["number"] == generation && g["progress"]["records"].as_u64() == Some(records)
            })
        });
    }

    /// Waits until a generation is live.
    pub fn wait_live(&self, name: &str, generation: u32) {
        wait_until(&format!("{name} g{generation} is live"), || {
            let status = self.status(name);
            for candidate in status["generations"].as_array().unwrap() {
                let failed = candidate["number"] == generation && candidate["phase"] == "failed";
                assert!(!failed, "{candidate}");
            }
            status["live"] == generation
        });
    }

    /// All entries of a store, sorted by partition and key.
    pub fn store(&self, deployment: &str, store: &str, generation: u32) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let mut path = format!(
                "/v1/deployments/{deployment}/stores/{store}?generation={generation}&limit=10000"
            );
            if let Some(cursor) = &cursor {
                path += &format!("&cursor={cursor}");
            }
            let page = self.get(&path).ok();
            assert_eq!(page["generation"], generation, "an answer names whose it is");
            all.extend(page["entries"].as_array().unwrap().iter().cloned());
            match page["cursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return all,
            }
        }
    }

    /// A stream of server-sent events.
    pub fn events(&self, path: &str, last: Option<&str>) -> Events {
        let accept = ("accept", "text/event-stream");
        match last {
            Some(last) => Events(self.stream(path, &[accept, ("last-event-id", last)])),
            None => Events(self.stream(path, &[accept])),
        }
    }

    /// What a success says, as it comes.
    fn stream(&self, path: &str, headers: &[(&str, &str)]) -> Stream {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let reply = request.call().expect("the host answers");
        assert_eq!(reply.status(), 200);
        BufReader::new(Box::new(reply.into_body().into_reader()))
    }
}

/// Records as NDJSON.
pub fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

impl Reply {
    fn read(mut reply: Response<Body>) -> Result<Self, ureq::Error> {
        let text = reply.body_mut().with_config().limit(1 << 30).read_to_string()?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Self { status: reply.status().as_u16(), body, headers: reply.headers().clone(), text })
    }

    /// The body of a success.
    pub fn ok(self) -> Value {
        let shown: String = self.text.chars().take(1_000).collect();
        assert!((200..300).contains(&self.status), "{}: {shown}", self.status);
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

/// A stream of server-sent events: id, kind, data.
pub struct Events(Stream);

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
