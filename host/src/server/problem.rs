//! Refusals as `application/problem+json` (RFC 9457): one shape for every error of the surface.
//!
//! **Invariant:** every reply that is not a success carries a stable `code`, a sentence that says
//! what, where and what to do, and the request's id. A handler returns a [`Problem`]; the id is
//! known only to the layer around all routes, which renders the body ([`Problem::render`]).

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use crate::deployment::{Error, Kind};

/// A refusal on its way to the client.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    members: Map<String, Value>,
}

/// The body of a problem, for the API's description.
#[derive(utoipa::ToSchema)]
pub struct ProblemBody {
    /// `urn:anabranch:problem:` and the code.
    pub r#type: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable, for programs.
    pub code: String,
    /// What, where, and what to do.
    pub detail: String,
    /// The request's id, as in the header `x-request-id` and in the host's log.
    pub request_id: String,
    /// For a malformed body: its line, counted from 1.
    pub line: Option<u64>,
    /// For a malformed line: its column, counted from 1.
    pub column: Option<u64>,
    /// For a malformed body: what is wrong, without the place.
    pub reason: Option<String>,
}

impl Problem {
    /// A refusal with a status and a stable code.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), members: Map::new() }
    }

    /// What the request says cannot be.
    pub fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// The host cannot do it now.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
    }

    /// A fault of the host.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// With one more member, such as the line of a malformed body.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The sentence.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Puts the body into `reply`, which came from this problem.
    pub fn render(&self, request_id: &str, reply: &mut Response) {
        let mut body = Map::new();
        body.insert("type".into(), format!("urn:anabranch:problem:{}", self.code).into());
        body.insert("title".into(), self.status.canonical_reason().unwrap_or("Error").into());
        body.insert("status".into(), self.status.as_u16().into());
        body.insert("code".into(), self.code.into());
        body.insert("detail".into(), self.detail.as_str().into());
        body.insert("request_id".into(), request_id.into());
        body.extend(self.members.clone());
        let text = Value::Object(body).to_string();
        reply.headers_mut().remove(header::CONTENT_LENGTH);
        let kind = HeaderValue::from_static("application/problem+json");
        reply.headers_mut().insert(header::CONTENT_TYPE, kind);
        *reply.body_mut() = Body::from(text);
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut reply = self.status.into_response();
        reply.extensions_mut().insert(self);
        reply
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match error.kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
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
        let problem = Problem::from(error).with("line", 3);
        let mut reply = problem.clone().into_response();
        problem.render("r1", &mut reply);
        assert_eq!(reply.status(), StatusCode::NOT_FOUND);
        assert_eq!(reply.headers()[header::CONTENT_TYPE], "application/problem+json");
        let bytes = axum::body::to_bytes(reply.into_body(), 1 << 16).await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(body["code"], "topic_not_found");
        assert_eq!(body["type"], "urn:anabranch:problem:topic_not_found");
        assert_eq!((&body["request_id"], &body["line"]), (&"r1".into(), &3.into()));
    }
}
