//! How handlers take their input: query, path and body, each refused in one clear sentence.
//!
//! **Invariant:** nothing of a request is silently ignored: unknown query parameters and unknown
//! fields of a body are refused by name.

use std::time::Duration;

use axum::body::{BodyDataStream, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::BytesMut;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_stream::StreamExt as _;

use super::app::App;
use super::problem::{Place, Problem};

/// How much of a body that is too large is read and thrown away, and for how long at most.
const DISCARD_BYTES: usize = 1 << 30;
const DISCARD_TIME: Duration = Duration::from_secs(10);

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

/// A whole body, within the host's limit.
pub struct Whole(pub Bytes);

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
        let limit = app.config().http.max_body_bytes;
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|n| n.to_str().ok()?.parse::<u64>().ok()).unwrap_or(0);
        let mut body = request.into_body().into_data_stream();
        let mut bytes = BytesMut::with_capacity((announced as usize).min(limit));
        while let Some(part) = body.next().await {
            let part = part.map_err(|error| {
                Problem::invalid("body_incomplete", format!("the body broke off: {error}"))
            })?;
            if bytes.len() + part.len() > limit {
                drop(bytes);
                discard(body).await;
                return Err(Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "body_too_large",
                    format!(
                        "the body is larger than {limit} bytes; send it in parts, or raise max_body_bytes in [http]"
                    ),
                ));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(Self(bytes.freeze()))
    }
}

/// Reads on for a while without keeping anything: most clients listen only once they have said all,
/// and one that is cut off while it speaks never hears why.
async fn discard(mut body: BodyDataStream) {
    let all = async {
        let mut bytes = 0;
        while let Some(Ok(part)) = body.next().await {
            bytes += part.len();
            if bytes > DISCARD_BYTES {
                break;
            }
        }
    };
    // Whoever is slower is cut off after all.
    let _ = tokio::time::timeout(DISCARD_TIME, all).await;
}

/// A JSON body; `T` denies unknown fields.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        expect_type(request.headers(), &["application/json"])?;
        let Whole(bytes) = Whole::from_request(request, app).await?;
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
    let essence = given.split(';').next().unwrap_or_default().trim();
    allowed.iter().find(|name| name.eq_ignore_ascii_case(essence)).copied().ok_or_else(|| {
        let says = if given.is_empty() { "no content type".into() } else { format!("{given:?}") };
        Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!("the request says {says}; this route takes {}", allowed.join(" or ")),
        )
    })
}
