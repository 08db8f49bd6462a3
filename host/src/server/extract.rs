//! How handlers take their input: query, path and body, each refused in one clear sentence.
//!
//! **Invariant:** nothing of a request is silently ignored: unknown query parameters and unknown
//! fields of a body are refused by name.

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::app::App;
use super::problem::{Place, Problem};

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
        Bytes::from_request(request, app).await.map(Self).map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "body_too_large",
                    format!(
                        "the body is larger than {limit} bytes; send it in parts, or raise max_body_bytes in [http]"
                    ),
                )
            } else {
                Problem::invalid("body_incomplete", format!("the body broke off: {rejection}"))
            }
        })
    }
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
