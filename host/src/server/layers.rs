//! What wraps every route: the request id, the gate, the log line, and the bodies of problems.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
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

    let mut reply = if path.starts_with("/v1/") {
        match (app.enter(), app.admit()) {
            (Some(_held), Ok(())) => next.run(request).await,
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
