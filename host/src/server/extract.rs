//! How handlers take their input: query, path and body, each refused in one clear sentence.
//!
//! **Invariant:** nothing of a request is silently ignored: unknown query parameters and unknown
//! fields of a body are refused by name.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{BodyDataStream, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::BytesMut;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::StreamExt as _;

use super::app::{App, BODY_UNIT};
use super::patience::Patience;
use super::problem::{Place, Problem};
use crate::config::Http;

/// Query parameters; `T` denies unknown fields.
pub struct Params<T>(pub T);

/// For a route without query parameters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

impl<T: DeserializeOwned> FromRequestParts<App> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let query = Query::<T>::from_request_parts(parts, app).await;
        query.map(|Query(params)| Self(params)).map_err(|rejection| {
            let text = rejection.body_text();
            let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            Problem::invalid("invalid_query", format!("query of {}: {text}", parts.uri.path()))
        })
    }
}

/// Path parameters.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, app).await;
        path.map(|path| Self(path.0)).map_err(|rejection| match rejection {
            PathRejection::FailedToDeserializePathParams(inner) => {
                Problem::invalid("invalid_path", format!("{}: {inner}", parts.uri.path()))
            }
            other => Problem::internal(other.body_text()),
        })
    }
}

/// A whole body, within the host's limits, and its share of the room that there is for bodies.
pub struct Whole(pub Bytes, pub Option<OwnedSemaphorePermit>);

impl FromRequest<App> for Whole {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        if let Some(encoding) = request.headers().get(header::CONTENT_ENCODING) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_encoding",
                format!("content-encoding {encoding:?} is not taken; send the body as it is"),
            ));
        }
        let http = &app.config().http;
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|n| n.to_str().ok()?.parse::<u64>().ok()).unwrap_or(0);
        if announced > http.max_body_bytes as u64 {
            discard_unread(http, request).await;
            return Err(too_large(http));
        }
        let mut body = request.into_body().into_data_stream();
        let mut bytes = BytesMut::with_capacity(announced as usize);
        let mut room: Option<OwnedSemaphorePermit> = None;
        let mut patience = Patience::new(http);
        loop {
            let asked = app.clock().monotonic();
            let part = tokio::time::timeout(patience.left(), body.next()).await;
            let part = part.map_err(|_| too_slow(http, bytes.len()))?;
            let Some(part) = part else { return Ok(Self(bytes.freeze(), room)) };
            let part = part.map_err(|error| {
                Problem::invalid("body_incomplete", format!("the body broke off: {error}"))
            })?;
            patience.waited(app.clock().monotonic().saturating_sub(asked), part.len());
            let taken = match bytes.len() + part.len() > http.max_body_bytes {
                true => Err(too_large(http)),
                false => reserve(app, &mut room, bytes.len() + part.len()),
            };
            if let Err(problem) = taken {
                drop((bytes, room));
                discard(http, body).await;
                return Err(problem);
            }
            bytes.extend_from_slice(&part);
        }
    }
}

/// Takes room for `bytes` in all.
fn reserve(
    app: &App,
    room: &mut Option<OwnedSemaphorePermit>,
    bytes: usize,
) -> Result<(), Problem> {
    let missing = bytes.div_ceil(BODY_UNIT) - room.as_ref().map_or(0, |room| room.num_permits());
    if missing == 0 {
        return Ok(());
    }
    let missing = u32::try_from(missing).unwrap_or(u32::MAX);
    let more = Arc::clone(app.bodies()).try_acquire_many_owned(missing).map_err(|_| {
        Problem::unavailable(
            "too_many_bodies",
            "the host holds as many bodies of requests as it may (max_bodies_bytes in [http]): send it again in a moment",
        )
        .with_header(header::RETRY_AFTER, 1)
    })?;
    match room {
        Some(room) => room.merge(more),
        None => *room = Some(more),
    }
    Ok(())
}

fn too_large(http: &Http) -> Problem {
    let limit = http.max_body_bytes;
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        format!(
            "the body is larger than {limit} bytes; send it in parts, or raise max_body_bytes in [http]"
        ),
    )
}

fn too_slow(http: &Http, bytes: usize) -> Problem {
    Problem::new(
        StatusCode::REQUEST_TIMEOUT,
        "body_too_slow",
        format!(
            "the body stopped after {bytes} bytes, or came too slowly: the host waits {} ms beyond {} bytes a second (stall_timeout_ms and min_bytes_per_second in [http]); nothing of it was taken",
            http.stall_timeout_ms, http.min_bytes_per_second
        ),
    )
    // What may still come would be taken for the next request.
    .with_header(header::CONNECTION, HeaderValue::from_static("close"))
}

/// The shortest rest for which reading on stops: timers count in milliseconds.
const DISCARD_REST: Duration = Duration::from_millis(20);

/// Reads a body that nobody has read and throws it away, unless its client waits to be asked for it.
pub async fn discard_unread(http: &Http, request: Request) {
    if !request.headers().contains_key(header::EXPECT) {
        discard(http, request.into_body().into_data_stream()).await;
    }
}

/// Reads on for a while without keeping anything: most clients listen only once they have said all,
/// and one that is cut off while it speaks never hears why.
async fn discard(http: &Http, mut body: BodyDataStream) {
    let all = async {
        let (mut bytes, mut rest) = (0, Duration::ZERO);
        while let Some(Ok(part)) = body.next().await {
            bytes += part.len();
            if bytes > http.discard_bytes {
                break;
            }
            let seconds = part.len() as f64 / http.discard_bytes_per_second as f64;
            rest += Duration::from_secs_f64(seconds);
            if rest >= DISCARD_REST {
                tokio::time::sleep(std::mem::take(&mut rest)).await;
            }
        }
    };
    // Whoever is slower is cut off after all.
    let _ = tokio::time::timeout(Duration::from_millis(http.discard_ms), all).await;
}

/// A JSON body; `T` denies unknown fields.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        expect_type(request.headers(), &["application/json"])?;
        let Whole(bytes, _room) = Whole::from_request(request, app).await?;
        // A list would be taken for an object's fields in their order.
        if bytes.trim_ascii_start().first().is_some_and(|&byte| byte == b'[') {
            return Err(Problem::invalid("invalid_body", "the body: a JSON object is expected"));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let (line, column) = (Some(error.line()), Some(error.column()));
            Problem::invalid("invalid_body", format!("the body: {error}")).at(Place {
                line,
                column,
                ..Place::default()
            })
        })
    }
}

/// The content type of the request, which must be one of `allowed`.
///
/// # Errors
/// 415 that names what is taken.
pub fn expect_type(headers: &HeaderMap, allowed: &[&'static str]) -> Result<&'static str, Problem> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let given = given.unwrap_or_default();
    let mut parts = given.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let charset = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    });
    let is_utf8 = |charset: &str| {
        ["utf-8", "utf8", "us-ascii"].iter().any(|known| known.eq_ignore_ascii_case(charset))
    };
    let is_taken = |name: &&&str| name.eq_ignore_ascii_case(essence) && charset.is_none_or(is_utf8);
    allowed.iter().find(is_taken).copied().ok_or_else(|| {
        let says = if given.is_empty() { "no content type".into() } else { format!("{given:?}") };
        Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!(
                "the request says {says}; this route takes {}, in UTF-8 where it is text",
                allowed.join(" or ")
            ),
        )
    })
}
