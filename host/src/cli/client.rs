//! The one way to the host: HTTP, its problems turned into errors with exit codes.
//!
//! **Invariant:** a token goes nowhere but to the host that was named, over TLS or within the machine,
//! and is printed nowhere.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{HeaderValue, Response, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, RequestBuilder};

/// How long a stream may say nothing, heartbeats included, before it is taken for dead.
const SILENCE: Duration = Duration::from_secs(60);
/// Where systems keep the certificates that they trust.
const SYSTEM_CAS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command cannot be meant so.
    #[error("{0}")]
    Usage(String),
    /// The host refused, and said why.
    #[error("{detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What, where, and what to do.
        detail: String,
        /// The whole problem, as the host sent it.
        problem: Value,
    },
    /// What was waited for did not come about.
    #[error("{0}")]
    Gate(String),
    /// The host cannot be reached, or went away.
    #[error(
        "no host at {url}: {reason}; start one with `anabranch serve`, or name another with --url"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// Why not.
        reason: String,
    },
    /// Anything else.
    #[error("{0}")]
    Failed(String),
    /// Who reads the output has gone.
    #[error("nobody reads the output")]
    BrokenPipe,
}

impl Error {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Gate(_) => 5,
            Self::Unreachable { .. } => 6,
            Self::Refused { status, .. } => match status {
                400 | 405 | 406 | 415 => 2,
                404 | 410 => 3,
                409 => 4,
                401 | 403 | 413 | 416 | 422 | 429 | 431 => 5,
                503 => 6,
                _ => 1,
            },
        }
    }

    /// A file that cannot be read.
    pub fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::Failed(format!("cannot read {}: {error}", path.display()))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::Failed(format!("cannot write the output: {error}")),
        }
    }
}

/// A client of one host.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    url: String,
    authorization: Option<HeaderValue>,
}

impl Client {
    /// A client of the host at `url` that asks for no token.
    ///
    /// # Errors
    /// When `url` is none that this client speaks.
    pub fn new(url: &str) -> Result<Self, Error> {
        Self::with(url, None, None)
    }

    /// A client of the host at `url`, whose certificate the CAs in `ca` vouch for, or the system's.
    ///
    /// # Errors
    /// When `url` is none that this client speaks, there are no CAs, or the token would go over a network
    /// for all to read.
    pub fn with(url: &str, ca: Option<&Path>, token: Option<String>) -> Result<Self, Error> {
        let wrong = || {
            Error::Usage(format!(
                "{url:?} is no address of a host: write http://HOST:PORT or https://HOST:PORT"
            ))
        };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let secure = match (uri.scheme_str(), uri.host()) {
            (Some("http"), Some(_)) => false,
            (Some("https"), Some(_)) => true,
            _ => return Err(wrong()),
        };
        if token.is_some() && !secure && !is_this_machine(uri.host().unwrap_or_default()) {
            return Err(Error::Usage(format!(
                "a token does not go to {url} in plain text: ask by https://, or by a tunnel that ends on this machine"
            )));
        }
        let bearer = |token: String| -> Result<HeaderValue, Error> {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Error::Usage("the token is not one line of letters".to_owned()))?;
            value.set_sensitive(true);
            Ok(value)
        };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(5)));
        if secure {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = TlsConfig::builder()
                .root_certs(RootCerts::new_with_certs(&trusted(ca)?))
                .unversioned_rustls_crypto_provider(provider);
            config = config.tls_config(tls.build());
        }
        Ok(Self {
            agent: config.build().into(),
            url: url.trim_end_matches('/').to_owned(),
            authorization: token.map(bearer).transpose()?,
        })
    }

    /// The request, with the token if there is one.
    fn signed<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.authorization {
            Some(value) => request.header(header::AUTHORIZATION, value),
            None => request,
        }
    }

    /// What the host answers to a GET.
    ///
    /// # Errors
    /// The host's refusal, or that it cannot be reached.
    pub fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, Error> {
        let query = query.iter().map(|(name, value)| (*name, value.as_str()));
        let reply = self.signed(self.agent.get(self.at(path))).query_pairs(query).call();
        self.json(self.reply(reply)?)
    }

    /// The text that the host answers to a GET.
    ///
    /// # Errors
    /// The host's refusal, or that it cannot be reached.
    pub fn text(&self, path: &str) -> Result<String, Error> {
        let reply = self.reply(self.signed(self.agent.get(self.at(path))).call())?;
        Ok(String::from_utf8_lossy(&self.bytes(reply)?).into_owned())
    }

    /// A page of records as NDJSON: body, next offset, end offset.
    ///
    /// # Errors
    /// The host's refusal, or that it cannot be reached.
    pub fn page(&self, path: &str, query: &[(&str, String)]) -> Result<(Vec<u8>, u64, u64), Error> {
        let query = query.iter().map(|(name, value)| (*name, value.as_str()));
        let request =
            self.signed(self.agent.get(self.at(path))).header("accept", "application/x-ndjson");
        let reply = self.reply(request.query_pairs(query).call())?;
        let offset = |name: &str| {
            let value = reply.headers().get(name).and_then(|value| value.to_str().ok());
            value.and_then(|text| text.parse().ok()).ok_or_else(|| {
                Error::Failed(format!("the host at {} sent no {name}: is it anabranch?", self.url))
            })
        };
        let (next, end) = (offset("anabranch-next-offset")?, offset("anabranch-end-offset")?);
        Ok((self.bytes(reply)?, next, end))
    }

    /// A stream of server-sent events, resumed after event `last`.
    ///
    /// # Errors
    /// The host's refusal, or that it cannot be reached.
    pub fn events(
        &self,
        path: &str,
        query: &[(&str, String)],
        last: Option<&str>,
    ) -> Result<impl std::io::Read + use<>, Error> {
        let query = query.iter().map(|(name, value)| (*name, value.as_str()));
        let mut request =
            self.signed(self.agent.get(self.at(path))).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.query_pairs(query).config().timeout_per_read(Some(SILENCE)).build();
        let reply = self.reply(request.call())?;
        Ok(reply.into_body().into_with_config().limit(u64::MAX).reader())
    }

    /// What the host answers to a body of JSON.
    ///
    /// # Errors
    /// The host's refusal, or that it cannot be reached.
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, Error> {
        let request =
            self.signed(self.agent.put(self.at(path))).header("content-type", "application/json");
        self.json(self.reply(request.send(body.to_string()))?)
    }

    /// What the host answers to a body.
    ///
    /// # Errors
    /// The host's refusal, or that it cannot be reached.
    pub fn post(&self, path: &str, kind: &str, body: &[u8]) -> Result<Value, Error> {
        let request = self.signed(self.agent.post(self.at(path))).header("content-type", kind);
        self.json(self.reply(request.send(body))?)
    }

    /// Deletes what is at `path`.
    ///
    /// # Errors
    /// The host's refusal, or that it cannot be reached.
    pub fn delete(&self, path: &str) -> Result<(), Error> {
        self.reply(self.signed(self.agent.delete(self.at(path))).call()).map(drop)
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> Error {
        let mut reason = error.to_string();
        if reason.contains("CaUsedAsEndEntity") {
            reason += "; an authority's own certificate is none of a host: make one with basicConstraints CA:FALSE";
        } else if reason.contains("certificate") {
            reason += "; name the certificate of who signed it with --ca or ANABRANCH_CA";
        }
        Error::Unreachable { url: self.url.clone(), reason }
    }

    /// The reply, if it is no refusal.
    fn reply(&self, sent: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Error> {
        let reply = sent.map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Error::Usage(format!("{}: {error}", self.url))
            }
            other => self.unreachable(&other),
        })?;
        if reply.status().is_success() {
            return Ok(reply);
        }
        let status = reply.status().as_u16();
        let text = String::from_utf8_lossy(&self.bytes(reply)?).into_owned();
        let problem: Value = serde_json::from_str(&text).unwrap_or_default();
        let detail = match problem["detail"].as_str() {
            Some(detail) => detail.to_owned(),
            None => format!("the host at {} answered {status}: is it anabranch?", self.url),
        };
        Err(Error::Refused { status, detail, problem })
    }

    fn bytes(&self, reply: Response<Body>) -> Result<Vec<u8>, Error> {
        let mut body = reply.into_body();
        body.with_config().limit(u64::MAX).read_to_vec().map_err(|error| self.unreachable(&error))
    }

    fn json<T: DeserializeOwned>(&self, reply: Response<Body>) -> Result<T, Error> {
        let bytes = self.bytes(reply)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::Failed(format!(
                "the host at {} answered what is not understood: {error}",
                self.url
            ))
        })
    }
}

/// Whether a URL's host is this machine, by a name that cannot lead elsewhere.
fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// The certificates in `ca`, or those that the system trusts.
fn trusted(ca: Option<&Path>) -> Result<Vec<Certificate<'static>>, Error> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let system = || named.into_iter().chain(SYSTEM_CAS.map(PathBuf::from)).find(|p| p.is_file());
    let path = ca.map(Path::to_owned).or_else(system).ok_or_else(|| {
        Error::Failed(
            "the system's trusted certificates are not where they are looked for: name a file with --ca or ANABRANCH_CA".to_owned(),
        )
    })?;
    let pem = std::fs::read(&path).map_err(|error| Error::file(&path, &error))?;
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = certificates.collect();
    match certificates.is_empty() {
        true => Err(Error::Usage(format!("{} holds no certificate in PEM", path.display()))),
        false => Ok(certificates),
    }
}

/// `text` as one segment of a path.
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_status() {
        let cases =
            [(400, 2), (404, 3), (410, 3), (409, 4), (413, 5), (422, 5), (503, 6), (500, 1)];
        for (status, code) in cases {
            let error = Error::Refused { status, detail: String::new(), problem: Value::Null };
            assert_eq!(error.exit_code(), code, "{status}");
        }
        let nobody = Client::new("http://127.0.0.1:1").unwrap();
        assert_eq!(nobody.get::<Value>("/v1/topics", &[]).unwrap_err().exit_code(), 6);
        for wrong in ["localhost", "localhost:7766", "ftp://localhost", "http://", "https:///x"] {
            assert_eq!(Client::new(wrong).map(drop).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn a_token_is_not_sent_for_all_to_read() {
        let with = |url: &str| Client::with(url, None, Some("t".to_owned())).map(drop);
        for url in ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"] {
            with(url).unwrap();
        }
        for url in ["http://example.org", "http://10.0.0.1:1", "http://localhost.example.org"] {
            let error = with(url).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{url}");
            assert!(error.to_string().contains("https://"), "{error}");
        }
        let two_lines = Client::with("http://[::1]:1", None, Some("a\nb".to_owned()));
        assert_eq!(two_lines.map(drop).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn segments_are_encoded() {
        assert_eq!(segment("a/b ä?"), "a%2Fb%20%C3%A4%3F");
    }
}
