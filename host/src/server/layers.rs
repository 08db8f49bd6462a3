//! What wraps every route: the request id, what is refused before its route is known, the gate, the
//! log lines, and the bodies of problems.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access::{Asked, WrittenDown, identify, is_refusal, refuse_unread};
use super::app::App;
use super::problem::Problem;
use super::rates::{Client, counted};
use crate::deployment::Caller;

/// The header that carries the request's id, both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The other end of the connection that a request came on.
#[derive(Debug, Clone, Copy)]
pub struct Remote(pub SocketAddr);

/// Gives the request an id (the client's own, if it sent one of at most 128 visible characters), finds
/// out who asks, lets it through the gate, and renders the problem that comes back, if one does.
pub async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let given = given.filter(|id| (1..=128).contains(&id.len()));
    let id = given.map_or_else(|| format!("{:016x}", app.clock().random()), str::to_owned);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let started = app.clock().monotonic();

    let remote = request.extensions().get::<Remote>().map(|Remote(remote)| *remote);
    let caller = identify(&app, request.headers());
    let gate = app.enter();
    let refused = screen(&app, &request, remote, &caller, gate.is_some());
    let asked = Asked::new(app.clone(), id.clone(), remote, &request, caller, gate);
    let mut reply = answer(&app, request, next, &asked, refused).await;

    let mut detail = String::new();
    if is_refusal(reply.status()) && reply.extensions().get::<WrittenDown>().is_none() {
        asked.write_down(asked.entry(&reply)).await;
    }
    if let Some(problem) = reply.extensions_mut().remove::<Problem>() {
        problem.detail().clone_into(&mut detail);
        if is_refusal(reply.status()) || problem.is_limit() {
            app.http_metrics().refuse(problem.code());
        }
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
    if chunked {
        // A body whose length two programs could read two ways is the last thing on its connection: what
        // follows is never taken for a request.
        reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    reply
}

/// The handler's reply, or the refusal.
async fn answer(
    app: &App,
    mut request: Request,
    next: Next,
    asked: &Asked,
    refused: Result<(), Problem>,
) -> Response {
    match refused {
        Err(problem) if problem.status() == StatusCode::SERVICE_UNAVAILABLE => {
            problem.into_response()
        }
        Err(problem) => refuse_unread(app, request, problem).await,
        Ok(()) => {
            request.extensions_mut().insert(asked.clone());
            next.run(request).await
        }
    }
}

/// What is refused whatever the route: by the shape of the request, by where it comes from, by how
/// often, and by whether the host is open.
fn screen(
    app: &App,
    request: &Request,
    remote: Option<SocketAddr>,
    caller: &Result<Caller, Problem>,
    is_open: bool,
) -> Result<(), Problem> {
    let (http, headers) = (&app.config().http, request.headers());
    too_large(request, http.max_headers, http.max_header_bytes)?;
    twice(headers)?;
    if http.listen.ip().is_loopback() {
        foreign_host(headers).map_or(Ok(()), Err)?;
    }
    let token = caller.as_ref().ok().and_then(Caller::token);
    let client = match (token, remote) {
        (Some(token), _) => Client::Token(token.id.clone()),
        (None, Some(remote)) => Client::Address(counted(remote.ip())),
        (None, None) => return Err(Problem::internal("a request without a connection")),
    };
    app.take_turn(client)?;
    if !request.uri().path().starts_with("/v1/") {
        return Ok(());
    }
    app.admit()?;
    if !is_open {
        return Err(Problem::unavailable("stopping", "the host is stopping"));
    }
    foreign_origin(headers).map_or(Ok(()), Err)
}

/// Refuses more headers than are needed to say anything.
fn too_large(request: &Request, most: usize, most_bytes: usize) -> Result<(), Problem> {
    let headers = request.headers();
    let line = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let of_headers = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let (count, bytes) = (headers.len(), line + of_headers.sum::<usize>());
    if count <= most && bytes <= most_bytes {
        return Ok(());
    }
    let code = "headers_too_large";
    Err(Problem::new(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        code,
        format!(
            "the request has {count} headers and {bytes} bytes of them; at most {most} and {most_bytes} are taken (max_headers and max_header_bytes in [http])"
        ),
    ))
}

/// Refuses a request that says twice what can be meant once: the host and a proxy before it might each
/// believe another.
fn twice(headers: &HeaderMap) -> Result<(), Problem> {
    const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
    let once = [
        header::HOST,
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::ORIGIN,
        LAST_EVENT_ID,
    ];
    match once.iter().find(|name| headers.get_all(*name).iter().nth(1).is_some()) {
        None => Ok(()),
        Some(name) => Err(Problem::invalid(
            "duplicate_header",
            format!("the request has the header {name} more than once: send it once"),
        )),
    }
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

/// Refuses what a web page of another site sends: a browser on this machine reaches a loopback address
/// too, where no token may be asked for.
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
