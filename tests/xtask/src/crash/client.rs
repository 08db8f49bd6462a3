//! A client of the public surface: what producers, readers, operators and the checker ask for.

use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use ureq::Agent;
use ureq::http::Request;

/// The longest that a request may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Records of one page.
const PAGE_RECORDS: usize = 50_000;

/// Talks to one host. Clones share connections.
#[derive(Clone)]
pub struct Client {
    url: String,
    agent: Agent,
}

/// What a host answered.
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub text: String,
    headers: ureq::http::HeaderMap,
}

/// A page of records.
pub struct Page {
    /// A record a line.
    pub lines: String,
    /// Where to go on.
    pub next: u64,
    /// Where the partition ends.
    pub end: u64,
    /// The marker that ended the page, or that lies before its records.
    pub swap: Option<Swap>,
}

/// The marker of a swap in an output.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub struct Swap {
    /// Its offset.
    pub at: u64,
    /// The generation of the records before it.
    pub generation_from: u32,
    /// The generation of the records after it.
    pub generation_to: u32,
}

/// What reading from a position gives.
pub enum Read {
    /// Records.
    Page(Page),
    /// The position lies in what is retired.
    Retired,
}

impl Client {
    /// A client of the host at `url`.
    pub fn new(url: &str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .build();
        Self { url: url.to_owned(), agent: config.into() }
    }

    /// Sends a request; an error when there was no whole answer.
    ///
    /// # Errors
    /// When the host is not there, or goes away before it has answered.
    pub fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Reply> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        let mut reply = match method {
            "GET" => self.agent.run(request.body(())?)?,
            _ => self.agent.run(request.header("content-type", kind).body(body.to_vec())?)?,
        };
        let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
        let text = reply.body_mut().with_config().limit(1 << 30).read_to_string()?;
        Ok(Reply { status, text, headers })
    }

    /// GET.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.ask("GET", path, "", b"")
    }

    /// POST or PUT of JSON.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn send(&self, method: &str, path: &str, body: &Value) -> Result<Reply> {
        self.ask(method, path, "application/json", body.to_string().as_bytes())
    }

    /// Records of a partition from a position on.
    ///
    /// # Errors
    /// As [`Client::ask`], or when they are refused for another reason than that they are retired.
    pub fn read(&self, topic: &str, partition: u32, from: &str) -> Result<Read> {
        let path = format!(
            "/v1/topics/{topic}/partitions/{partition}/records?from={from}&limit={PAGE_RECORDS}"
        );
        let reply = self.get(&path)?;
        if reply.status == 410 && reply.text.contains("offset_retired") {
            return Ok(Read::Retired);
        }
        ensure!(reply.status == 200, "{path}: {}", reply.text);
        let header = |name: &str| reply.headers.get(name).and_then(|v| v.to_str().ok());
        let number = |name: &str| -> Result<u64> {
            header(name).and_then(|v| v.parse().ok()).with_context(|| format!("{path}: no {name}"))
        };
        let swap = header("anabranch-swap").map(serde_json::from_str).transpose();
        Ok(Read::Page(Page {
            next: number("anabranch-next-offset")?,
            end: number("anabranch-end-offset")?,
            swap: swap.with_context(|| format!("{path}: no marker of a swap"))?,
            lines: reply.text,
        }))
    }

    /// Hands each record of a partition to `each`, from an offset on, as they come; ends with the host,
    /// or when `each` has had enough.
    pub fn follow(
        &self,
        topic: &str,
        partition: u32,
        from: u64,
        mut each: impl FnMut(&str) -> bool,
    ) {
        let path = format!(
            "{}/v1/topics/{topic}/partitions/{partition}/records?from={from}&follow=true",
            self.url
        );
        let Ok(reply) = self.agent.get(path).call() else { return };
        let mut lines = BufReader::new(reply.into_body().into_reader());
        let mut line = String::new();
        // A line without its end was cut off by the kill: nobody was shown it.
        while lines.read_line(&mut line).is_ok() && line.ends_with('\n') && each(&line) {
            line.clear();
        }
    }
}

impl Reply {
    /// The body of a success.
    ///
    /// # Errors
    /// When it was refused, or is no JSON.
    pub fn json(&self) -> Result<Value> {
        ensure!((200..300).contains(&self.status), "{}: {}", self.status, self.text);
        serde_json::from_str(&self.text).with_context(|| self.text.clone())
    }
}
