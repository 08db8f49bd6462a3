//! Routes of topics: create, list, describe, delete, and append records.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use tokio::sync::oneshot;

use super::access::topic_name;
use super::app::{App, run_blocking};
use super::extract::{JsonBody, NoParams, Params, Path, Whole, expect_type};
use super::problem::{Place, Problem, ProblemBody};
use super::records::{ARROW_STREAM, DecodeError, Decoder, Limits, RawFields};
use crate::deployment::{Caller, CreateTopic, Produced, TopicStatus};

/// All topics that the caller reaches, by name.
#[utoipa::path(get, path = "/v1/topics", tag = "topics",
    responses((status = 200, body = Vec<TopicStatus>)))]
pub async fn list_topics(
    State(app): State<App>,
    caller: Caller,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<Vec<TopicStatus>>, Problem> {
    let mut topics = app.blocking(|registry| Ok(registry.topics())).await?;
    topics.retain(|topic| caller.reaches(&topic.name));
    Ok(Json(topics))
}

/// One topic.
#[utoipa::path(get, path = "/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path)),
    responses((status = 200, body = TopicStatus), (status = 404, body = ProblemBody)))]
pub async fn get_topic(
    State(app): State<App>,
    caller: Caller,
    Path(topic): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<TopicStatus>, Problem> {
    let name = topic_name(&caller, &topic)?;
    app.blocking(move |registry| registry.topic(&name)).await.map(Json)
}

/// Creates a topic. The same topic again changes nothing; another one under the name is a conflict.
#[utoipa::path(put, path = "/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path)),
    request_body = CreateTopic,
    responses((status = 200, body = TopicStatus), (status = 409, body = ProblemBody)))]
pub async fn create_topic(
    State(app): State<App>,
    caller: Caller,
    Path(topic): Path<String>,
    Params(NoParams {}): Params<NoParams>,
    JsonBody(options): JsonBody<CreateTopic>,
) -> Result<Json<TopicStatus>, Problem> {
    let name = topic_name(&caller, &topic)?;
    app.blocking(move |registry| registry.create_topic(&name, &options)).await.map(Json)
}

/// Deletes a topic and its records. One that a deployment reads or writes is refused.
#[utoipa::path(delete, path = "/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path)),
    responses((status = 204), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn delete_topic(
    State(app): State<App>,
    caller: Caller,
    Path(topic): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<StatusCode, Problem> {
    let name = topic_name(&caller, &topic)?;
    app.blocking(move |registry| registry.delete_topic(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How the body of a produce request is read.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ProduceParams {
    /// `records` (the default): each line is a record. `raw`: each line is a bare JSON value.
    #[serde(default)]
    values: Values,
    /// With `values=raw`: the field of the value that is the key.
    key: Option<String>,
    /// With `values=raw`: the field that is the timestamp, in milliseconds or RFC 3339.
    timestamp: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Values {
    #[default]
    Records,
    Raw,
}

impl ProduceParams {
    fn raw_fields(self) -> Result<Option<RawFields>, Problem> {
        match self.values {
            Values::Raw => Ok(Some(RawFields { key: self.key, timestamp: self.timestamp })),
            Values::Records if self.key.is_some() || self.timestamp.is_some() => {
                Err(Problem::invalid(
                    "invalid_query",
                    "key and timestamp name fields of bare values: add values=raw, or leave them out",
                ))
            }
            Values::Records => Ok(None),
        }
    }
}

/// Appends records, all of the body or nothing, and answers once they are durable.
///
/// A record is `{"key", "value", "timestamp", "headers", "partition"}`; only `value` is needed.
/// Without a timestamp it gets the host's time, without a partition that of its key. In an Arrow
/// stream these are columns: `key` and `value` binary or utf8, `timestamp` a timestamp or int64
/// milliseconds, `headers` a list of structs of `name` and `value`, `partition` int32 or uint32.
#[utoipa::path(post, path = "/v1/topics/{topic}/records", tag = "topics",
    params(("topic" = String, Path), ProduceParams),
    request_body(content((String = "application/x-ndjson"), (Vec<Object> = "application/json"),
        (Vec<u8> = "application/vnd.apache.arrow.stream"))),
    responses((status = 200, body = Produced), (status = 400, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 413, body = ProblemBody),
        (status = 415, body = ProblemBody)))]
pub async fn produce(
    State(app): State<App>,
    caller: Caller,
    Path(topic): Path<String>,
    Params(params): Params<ProduceParams>,
    headers: HeaderMap,
    Whole(body, _room): Whole,
) -> Result<Json<Produced>, Problem> {
    let kind = expect_type(&headers, &["application/x-ndjson", "application/json", ARROW_STREAM])?;
    let name = topic_name(&caller, &topic)?;
    let raw = params.raw_fields()?;
    if raw.is_some() && kind == ARROW_STREAM {
        return Err(Problem::invalid("invalid_query", "values=raw is for JSON: leave it out"));
    }
    let registry = app.registry()?.clone();
    let (storage, max_bytes) = (app.config().storage.clone(), app.config().http.max_body_bytes);
    let now_ms = app.clock().now_ms();
    let answer = run_blocking(move || {
        let state = registry.topic_handle(&name)?.state();
        let decoder = Decoder {
            format: state.format,
            partitions: state.partitions,
            limits: Limits {
                key_bytes: storage.max_key_bytes,
                value_bytes: storage.max_value_bytes,
                header_bytes: storage.max_header_bytes,
            },
            now_ms,
        };
        let decoded = match kind {
            "application/json" => decoder.array(&body, raw.as_ref()),
            ARROW_STREAM => decoder.arrow(&body, max_bytes),
            _ => decoder.ndjson(&body, raw.as_ref()),
        }?;
        let (sender, answer) = oneshot::channel();
        // A client that has gone away waits for no answer.
        let done = Box::new(move |result| drop(sender.send(result)));
        registry.produce(&name, decoded.records, decoded.partitions.as_deref(), done);
        Ok(answer)
    })
    .await?;
    let produced = answer.await.map_err(|_| {
        Problem::unavailable(
            "stopping",
            "the host stopped before the records were durable; send them again when it is back",
        )
    })?;
    Ok(Json(produced?))
}

impl From<DecodeError> for Problem {
    fn from(error: DecodeError) -> Self {
        let status = match error.code {
            "record_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        let detail = error.to_string();
        let (line, record) = match error.what {
            "line" => (Some(error.line), None),
            "record" => (None, Some(error.line)),
            _ => (None, None),
        };
        let (column, reason) = (error.column, Some(error.reason));
        Self::new(status, error.code, detail).at(Place {
            line,
            record,
            column,
            reason,
            next_offset: None,
        })
    }
}
