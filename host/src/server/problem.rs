//! Refusals as `application/problem+json` (RFC 9457): one shape for every error of the surface.
//!
//! **Invariant:** every reply that is not a success carries a stable `code`, a sentence that says
//! what, where and what to do, and the request's id. A handler returns a [`Problem`]; the id is
//! known only to the layer around all routes, which renders the body ([`Problem::render`]).

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::deployment::{Error, Kind};

/// The content type of all problems.
const PROBLEM_JSON: &str = "application/problem+json";

/// A refusal on its way to the client.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    header: Option<(HeaderName, HeaderValue)>,
    body: Box<ProblemBody>,
}

/// The body of a problem.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ProblemBody {
    /// `urn:anabranch:problem:` and the code.
    r#type: String,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// Stable, for programs.
    code: &'static str,
    /// What, where, and what to do.
    detail: String,
    /// The request's id, as in the header `x-request-id` and in the host's log.
    request_id: String,
    /// Where and why, for a body that was refused; where to go on, for a position.
    #[serde(flatten)]
    place: Place,
}

/// What more a problem may say.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Place {
    /// The line of the body, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The element of the body's array, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<usize>,
    /// The column of that line or element, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// What is wrong there, without the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The offset at which a reader can go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<u64>,
}

impl Problem {
    /// A refusal with a status and a stable code.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let body = Box::new(ProblemBody {
            r#type: format!("urn:anabranch:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code,
            detail: detail.into(),
            ..ProblemBody::default()
        });
        Self { status, header: None, body }
    }

    /// What the request says cannot be.
    pub fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// Nobody that the host knows asks.
    pub fn unauthenticated(code: &'static str, detail: impl Into<String>) -> Self {
        let how = match code {
            "token_missing" => "Bearer realm=\"anabranch\"",
            _ => "Bearer realm=\"anabranch\", error=\"invalid_token\"",
        };
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(how))
    }

    /// The host cannot do it now.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
    }

    /// A fault of the host.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// With where and why, or where to go on.
    pub fn at(mut self, place: Place) -> Self {
        self.body.place = place;
        self
    }

    /// With a header that tells programs what to do.
    pub fn with_header(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.header = Some((name, value.into()));
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Whether a limit of the HTTP surface refuses it.
    pub fn is_limit(&self) -> bool {
        matches!(
            self.status,
            StatusCode::REQUEST_TIMEOUT
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        ) || self.body.code == "too_many_bodies"
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.body.code
    }

    /// The sentence.
    pub fn detail(&self) -> &str {
        &self.body.detail
    }

    /// Puts the body into `reply`, which came from this problem.
    pub fn render(mut self, request_id: &str, reply: &mut Response) {
        let text = self.text(request_id);
        reply.headers_mut().remove(header::CONTENT_LENGTH);
        let kind = HeaderValue::from_static(PROBLEM_JSON);
        reply.headers_mut().insert(header::CONTENT_TYPE, kind);
        *reply.body_mut() = Body::from(text);
    }

    /// The whole reply, for a connection on which no request was read.
    pub fn into_bytes(mut self, request_id: &str) -> Vec<u8> {
        let text = self.text(request_id);
        let (status, length) = (self.status, text.len());
        let more = self.header.as_ref().map_or_else(String::new, |(name, value)| {
            format!("{name}: {}\r\n", value.to_str().unwrap_or_default())
        });
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: {PROBLEM_JSON}\r\nx-request-id: {request_id}\r\n{more}\
             content-length: {length}\r\nconnection: close\r\n\r\n{text}"
        )
        .into_bytes()
    }

    fn text(&mut self, request_id: &str) -> String {
        request_id.clone_into(&mut self.body.request_id);
        serde_json::to_string(&self.body).expect("a struct of texts and numbers")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut reply = self.status.into_response();
        if let Some((name, value)) = &self.header {
            reply.headers_mut().insert(name, value.clone());
        }
        reply.extensions_mut().insert(self);
        reply
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match error.kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Unauthenticated => return Self::unauthenticated(error.code, error.message),
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::Refused => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::Gone => StatusCode::GONE,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.code, error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_becomes_a_problem_with_its_id() {
        let error = Error::new(Kind::NotFound, "topic_not_found", "there is no topic \"x\"");
        let problem = Problem::from(error).at(Place { line: Some(3), ..Place::default() });
        let mut reply = problem.clone().into_response();
        problem.render("r1", &mut reply);
        assert_eq!(reply.status(), StatusCode::NOT_FOUND);
        assert_eq!(reply.headers()[header::CONTENT_TYPE], "application/problem+json");
        let bytes = axum::body::to_bytes(reply.into_body(), 1 << 16).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(body["code"], "topic_not_found");
        assert_eq!(body["type"], "urn:anabranch:problem:topic_not_found");
        assert_eq!((&body["request_id"], &body["line"]), (&"r1".into(), &3.into()));
    }
}
