//! Routes for who operates the host: events, health, readiness, metrics, the API's description.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::broadcast::error::RecvError;

use super::app::App;
use super::extract::{NoParams, Params};
use super::problem::{Problem, ProblemBody};
use super::stream::{self, Sink, Woken};
use crate::deployment::{Caller, Event, Registry};

/// What happens on the host, as server-sent events: swaps, failures, pauses of the deployments that
/// the caller reaches.
///
/// The event's name is its kind, its data an `Event`. `Last-Event-ID` goes on after that event, as
/// far as the host remembers; without it the stream begins now.
#[utoipa::path(get, path = "/v1/events", tag = "operations",
    params(("last-event-id" = Option<u64>, Header, description = "Go on after this event")),
    responses((status = 200, body = Event, content_type = "text/event-stream"),
        (status = 400, body = ProblemBody)))]
pub async fn events(
    State(app): State<App>,
    caller: Caller,
    Params(NoParams {}): Params<NoParams>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let registry = app.registry()?.clone();
    let last = last_event_id(&headers)?;
    let heartbeat = Duration::from_millis(app.config().http.heartbeat_ms);
    let until = app.until(caller.clone())?;
    let (sink, reply) = stream::open("text/event-stream", Some(heartbeat), until);
    tokio::spawn(tell(registry, caller, last, sink));
    Ok(reply)
}

/// The position in the header `Last-Event-ID`.
///
/// # Errors
/// 400 when it is none that this host gave.
pub fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    id.map(Some).ok_or_else(|| {
        Problem::invalid(
            "invalid_event_id",
            format!("Last-Event-ID {value:?} is no id that this host gave; leave it out"),
        )
    })
}

async fn tell(registry: Registry, caller: Caller, last: Option<u64>, mut sink: Sink) {
    let mut coming = registry.subscribe_events();
    // Subscribed first, read second: an event between the two comes twice and is left out once.
    let mut told = last.unwrap_or(0);
    let mut missed = if last.is_some() { registry.events_after(told) } else { Vec::new() };
    loop {
        let mut piece = Vec::new();
        for event in missed.drain(..) {
            if event.id > told {
                told = event.id;
                if registry.may_hear(&caller, &event) {
                    show(&mut piece, &event);
                }
            }
        }
        if sink.send(piece).await == Woken::Over {
            return;
        }
        missed = match sink.wait(coming.recv()).await {
            Ok(Ok(event)) => vec![event],
            Ok(Err(RecvError::Lagged(_))) => registry.events_after(told),
            Ok(Err(RecvError::Closed)) | Err(_) => return,
        };
    }
}

fn show(out: &mut Vec<u8>, event: &Arc<Event>) {
    let data = serde_json::to_string(&**event).unwrap_or_default();
    out.extend_from_slice(
        format!("id: {}\nevent: {}\ndata: {data}\n\n", event.id, event.kind).as_bytes(),
    );
}

/// Whether the process answers at all.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 200, body = String)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the host takes requests: 503 with the reason while it starts, stops or cannot store.
#[utoipa::path(get, path = "/readyz", tag = "operations",
    responses((status = 200, body = String), (status = 503, body = ProblemBody)))]
pub async fn readyz(State(app): State<App>) -> Result<&'static str, Problem> {
    app.ready().map(|()| "ready\n")
}

/// Metrics in the text format of Prometheus. They name every topic: the caller has to reach all.
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, body = String), (status = 503, body = ProblemBody)))]
pub async fn metrics(State(app): State<App>, caller: Caller) -> Result<Response, Problem> {
    caller.check_all("metrics")?;
    let text = app.blocking(|registry| Ok(registry.metrics())).await?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
