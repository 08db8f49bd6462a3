//! What wraps every route: the request id, the gate, the log line, and the bodies of problems.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::app::App;
use super::problem::Problem;

/// The header that carries the request's id, both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives the request an id (the client's own, if it sent one of at most 128 visible characters),
/// lets it through the gate, and renders the problem that comes back, if one does.
pub async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let given = given.filter(|id| (1..=128).contains(&id.len()));
    let id = given.map_or_else(|| format!("{:016x}", app.clock().random()), str::to_owned);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = app.clock().monotonic();

    let loopback = app.config().http.listen.ip().is_loopback();
    let foreign = loopback.then(|| foreign_host(request.headers())).flatten();
    let mut reply = if let Some(problem) = foreign {
        problem.into_response()
    } else if path.starts_with("/v1/") {
        match (app.enter(), app.admit()) {
            (Some(_held), Ok(())) => match foreign_origin(request.headers()) {
                None => next.run(request).await,
                Some(problem) => problem.into_response(),
            },
            (_, Err(problem)) => problem.into_response(),
            (None, Ok(())) => {
                Problem::unavailable("stopping", "the host is stopping").into_response()
            }
        }
    } else {
        next.run(request).await
    };

    let mut detail = String::new();
    if let Some(problem) = reply.extensions_mut().remove::<Problem>() {
        problem.detail().clone_into(&mut detail);
        problem.render(&id, &mut reply);
    }
    let took_us = (app.clock().monotonic() - started).as_micros() as u64;
    let status = reply.status().as_u16();
    if reply.status().is_server_error() && reply.status() != StatusCode::SERVICE_UNAVAILABLE {
        tracing::error!(%method, path, status, took_us, request_id = id, detail, "request failed");
    } else {
        tracing::debug!(%method, path, status, took_us, request_id = id, detail, "request");
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        reply.headers_mut().insert(REQUEST_ID, value);
    }
    reply
}

/// Refuses what was not sent to this machine by its own name. A page of another site whose name was
/// made to lead here (DNS rebinding) has an origin that fits its host; the name still gives it away.
fn foreign_host(headers: &HeaderMap) -> Option<Problem> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let own = host.parse::<Authority>().is_ok_and(|authority| {
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        let address = name.parse::<IpAddr>().ok();
        name.eq_ignore_ascii_case("localhost")
            || address.is_some_and(|address| address.to_canonical().is_loopback())
    });
    (!own).then(|| {
        Problem::new(
            StatusCode::FORBIDDEN,
            "foreign_host",
            format!(
                "the host listens on loopback and was asked as {host:?}: ask 127.0.0.1, [::1] or localhost"
            ),
        )
    })
}

/// Refuses what a web page of another site sends: there is no authentication yet, and a browser on
/// this machine reaches a loopback address too.
fn foreign_origin(headers: &HeaderMap) -> Option<Problem> {
    let origin = headers.get(header::ORIGIN)?.to_str().unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let same = origin.split_once("://").is_some_and(|(_, name)| name == host);
    (!same).then(|| {
        Problem::new(
            StatusCode::FORBIDDEN,
            "foreign_origin",
            format!("a page of {origin:?} may not ask the host at {host:?}"),
        )
    })
}

/// For a path that no route has.
pub async fn no_route(request: Request) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "route_not_found",
        format!("there is no route {}; /openapi.json lists them all", request.uri().path()),
    )
}

/// For a route that does not take the request's method.
pub async fn no_method(request: Request) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!(
            "{} does not take {}; /openapi.json says what it takes",
            request.uri().path(),
            request.method()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_the_host_itself_may_ask() {
        let cases = [
            (None, true),
            (Some("http://127.0.0.1:7766"), true),
            (Some("http://127.0.0.1:7767"), false),
            (Some("https://example.org"), false),
            (Some("null"), false),
        ];
        for (origin, allowed) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:7766"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            assert_eq!(foreign_origin(&headers).is_none(), allowed, "{origin:?}");
        }
    }

    #[test]
    fn only_names_of_loopback_are_the_host() {
        let cases = [
            ("127.0.0.1:7766", true),
            ("127.0.0.1", true),
            ("127.9.9.9:1", true),
            ("localhost:7766", true),
            ("LocalHost", true),
            ("[::1]:7766", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]:7766", true),
            ("example.org:7766", false),
            ("localhost.example.org", false),
            ("127.0.0.1.example.org:7766", false),
            ("localhost@example.org", false),
            ("192.168.0.1:7766", false),
            ("0.0.0.0:7766", false),
            ("[::]:7766", false),
            ("", false),
        ];
        for (host, allowed) in cases {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
            assert_eq!(foreign_host(&headers).is_none(), allowed, "{host:?}");
        }
        assert!(foreign_host(&HeaderMap::new()).is_some(), "a request has to say whom it asks");
    }
}
