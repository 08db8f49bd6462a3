//! A client of the public surface, as small as tests need it.

use std::time::Duration;

use serde_json::{Value, json};

/// Talks to one host.
#[derive(Clone)]
pub struct Client {
    url: String,
    agent: ureq::Agent,
}

/// What a host answered.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, if it is JSON.
    pub body: Value,
}

impl Client {
    /// A client of the host at `url`.
    pub fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build();
        Self { url: url.to_owned(), agent: config.into() }
    }

    fn answer(
        result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Answer, ureq::Error> {
        let mut response = result?;
        let text = response.body_mut().with_config().limit(1 << 30).read_to_string()?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status: response.status().as_u16(), body })
    }

    /// GET, whatever the answer; an error when the host is not there.
    pub fn try_get(&self, path: &str) -> Result<Answer, ureq::Error> {
        let request = self.agent.get(format!("{}{path}", self.url));
        Self::answer(request.header("accept", "application/json").call())
    }

    /// GET, which must succeed.
    pub fn get(&self, path: &str) -> Value {
        expect(path, self.try_get(path).unwrap())
    }

    /// PUT, whatever the answer.
    pub fn try_put(&self, path: &str, body: &Value) -> Result<Answer, ureq::Error> {
        Self::answer(self.agent.put(format!("{}{path}", self.url)).send_json(body))
    }

    /// PUT, which must succeed.
    pub fn put(&self, path: &str, body: &Value) -> Value {
        expect(path, self.try_put(path, body).unwrap())
    }

    /// POST, whatever the answer.
    pub fn try_post(&self, path: &str, body: &Value) -> Result<Answer, ureq::Error> {
        Self::answer(self.agent.post(format!("{}{path}", self.url)).send_json(body))
    }

    /// POST, which must succeed.
    pub fn post(&self, path: &str, body: &Value) -> Value {
        expect(path, self.try_post(path, body).unwrap())
    }

    /// POST of bytes, whatever the answer.
    pub fn try_send(&self, path: &str, kind: &str, bytes: &[u8]) -> Result<Answer, ureq::Error> {
        let request = self.agent.post(format!("{}{path}", self.url)).content_type(kind);
        Self::answer(request.send(bytes))
    }

    /// Creates a topic.
    pub fn topic(&self, name: &str, partitions: u32) {
        self.put(&format!("/v1/topics/{name}"), &json!({ "partitions": partitions }));
    }

    /// Pushes a guest and gives its digest.
    pub fn push(&self, guest: &str) -> String {
        let answer = self.try_send("/v1/plugins", "application/wasm", &super::guest(guest));
        expect(guest, answer.unwrap())["digest"].as_str().unwrap().to_owned()
    }

    /// Appends records, one JSON object a line.
    pub fn try_produce(&self, topic: &str, records: &[Value]) -> Result<Answer, ureq::Error> {
        let lines: Vec<String> = records.iter().map(Value::to_string).collect();
        let path = format!("/v1/topics/{topic}/records");
        self.try_send(&path, "application/x-ndjson", lines.join("\n").as_bytes())
    }

    /// Appends records, which must succeed.
    pub fn produce(&self, topic: &str, records: &[Value]) -> Value {
        expect(topic, self.try_produce(topic, records).unwrap())
    }

    /// All records of a partition, from `earliest` on.
    pub fn records(&self, topic: &str, partition: u32) -> Vec<Value> {
        self.records_from(topic, partition, "earliest")
    }

    /// All records of a partition from a position on.
    pub fn records_from(&self, topic: &str, partition: u32, from: &str) -> Vec<Value> {
        let (mut all, mut from) = (Vec::new(), from.to_owned());
        loop {
            let path = format!(
                "/v1/topics/{topic}/partitions/{partition}/records?from={from}&limit=50000"
            );
            let page = self.get(&path);
            let Value::Array(page) = page else { panic!("{path} is no array") };
            let Some(last) = page.last() else { return all };
            from = (last["offset"].as_u64().unwrap() + 1).to_string();
            all.extend(page);
        }
    }

    /// A deployment's status.
    pub fn status(&self, name: &str) -> Value {
        self.get(&format!("/v1/deployments/{name}"))
    }

    /// Waits until a generation has processed everything there is to read.
    pub fn wait_processed(&self, name: &str, generation: u32, records: u64) {
        super::wait_until(&format!("{name} g{generation} processes {records}"), || {
            let status = self.status(name);
            let generations = status["generations"].as_array().unwrap();
            generations.iter().any(|g| {
                g["number"] == generation && g["progress"]["records"].as_u64() == Some(records)
            })
        });
    }

    /// Waits until a generation is live.
    pub fn wait_live(&self, name: &str, generation: u32) {
        super::wait_until(&format!("{name} g{generation} is live"), || {
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
            let page = self.get(&path);
            all.extend(page["entries"].as_array().unwrap().iter().cloned());
            match page["cursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return all,
            }
        }
    }
}

/// The body of an answer that must be a success.
pub fn expect(what: &str, answer: Answer) -> Value {
    let shown: String = answer.body.to_string().chars().take(1_000).collect();
    assert!(answer.status < 300, "{what}: {} {shown}", answer.status);
    answer.body
}
