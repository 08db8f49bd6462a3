//! Reading records: a page, or a stream that follows the partition, across swaps.
//!
//! A page ends where a swap lies, so that it holds the records of one generation; where to go on is
//! in the header `anabranch-next-offset`. A stream goes on with the new generation's records and,
//! as server-sent events, tells of the swap; lines of NDJSON are records and nothing else.
//!
//! **Invariant:** the id of an event is the next offset to read, so that `Last-Event-ID` resumes
//! exactly; a stream that cannot go on is broken off or says so, and never skips.

use std::time::Duration;

use arrow_schema::ArrowError;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::access::topic_name;
use super::app::{App, run_blocking};
use super::extract::{Params, Path};
use super::operations::last_event_id;
use super::problem::{Place, Problem, ProblemBody};
use super::records::{ARROW_STREAM, ArrowShower, Shower, show_event};
use super::stream::{self, Sink, Woken};
use crate::deployment::{Caller, StartAt};
use crate::log::{ReadError, TopicPartition, TopicRead, TopicReader};
use crate::types::{Batch, Offset, PartitionId};

/// Most records that a stream reads at once, so that a slow client holds few in memory.
const STEP_RECORDS: usize = 4_096;
/// Most bytes that a stream reads at once.
const STEP_BYTES: usize = 1 << 20;

/// Which records are read.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct FetchParams {
    /// `earliest` (the default), `latest`, an offset, or a time (RFC 3339).
    from: Option<String>,
    /// Most records; a page also has the host's limits.
    limit: Option<usize>,
    /// Whether to go on with what is appended later; event streams do by default.
    follow: Option<bool>,
}

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Ndjson,
    Json,
    Events,
    Arrow,
}

impl Form {
    fn media_type(self) -> &'static str {
        match self {
            Form::Ndjson => "application/x-ndjson",
            Form::Json => "application/json",
            Form::Events => "text/event-stream",
            Form::Arrow => ARROW_STREAM,
        }
    }
}

/// Reads records of one partition.
///
/// By `Accept`: NDJSON (the default), a JSON array, an Arrow stream (`offset`, `timestamp`, `key`,
/// `value`, `headers`), or server-sent events: `record`, whose data is the record, and `swap`, whose
/// data names the generations and the next offset. A page's headers
/// `anabranch-next-offset` and `anabranch-end-offset` say where to go on and where the partition
/// ends; a page that ended at a swap has it in `anabranch-swap`.
#[utoipa::path(get, path = "/v1/topics/{topic}/partitions/{partition}/records", tag = "topics",
    params(("topic" = String, Path), ("partition" = u32, Path), FetchParams,
        ("last-event-id" = Option<u64>, Header, description = "The id of the last event seen; wins over `from`")),
    responses((status = 200, content((String = "application/x-ndjson"),
            (Vec<Object> = "application/json"), (String = "text/event-stream"),
            (Vec<u8> = "application/vnd.apache.arrow.stream"))),
        (status = 404, body = ProblemBody), (status = 410, body = ProblemBody),
        (status = 416, body = ProblemBody)))]
pub async fn fetch(
    State(app): State<App>,
    caller: Caller,
    Path((topic, partition)): Path<(String, u32)>,
    Params(params): Params<FetchParams>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let form = form(&headers)?;
    let follow = params.follow.unwrap_or(form == Form::Events);
    if follow && form == Form::Json {
        return Err(Problem::invalid(
            "invalid_query",
            "a JSON array has an end; to follow, accept application/x-ndjson, text/event-stream or an Arrow stream",
        ));
    }
    if follow && params.limit == Some(0) {
        return Err(Problem::invalid("invalid_query", "limit=0 leaves nothing to follow"));
    }
    let name = topic_name(&caller, &topic)?;
    let topic = app.blocking(move |registry| registry.topic_handle(&name)).await?;
    let count = topic.state().partitions;
    let partition = topic.partition(PartitionId(partition)).ok_or_else(|| {
        let detail = format!(
            "topic {} has no partition {partition}; it has {count}, counted from 0",
            topic.state().name
        );
        Problem::new(StatusCode::NOT_FOUND, "partition_not_found", detail)
    })?;
    let resumed = last_event_id(&headers)?.map(|id| id.to_string());
    let from = resumed.or(params.from).unwrap_or_else(|| "earliest".to_owned());
    let http = &app.config().http;
    let cursor = Cursor {
        shower: Shower { format: topic.state().format, partition: partition.id() },
        form,
        arrow: None,
        position: Offset::ZERO,
        left: params.limit.unwrap_or(usize::MAX),
        reader: partition.reader(),
        partition,
    };
    if !follow {
        let records = cursor.left.min(http.max_fetch_records);
        let bytes = http.max_fetch_bytes;
        return run_blocking(move || cursor.at(&from)?.page(records, bytes)).await;
    }
    let heartbeat = (form == Form::Events).then(|| Duration::from_millis(http.heartbeat_ms));
    // The first step is taken before the reply, so that a bad position is refused as one. An event
    // stream begins with its position, so that who loses it before the first record loses nothing.
    let (cursor, first) = run_blocking(move || {
        let mut cursor = cursor.at(&from)?;
        let mut begin = match cursor.form {
            Form::Events => format!("id: {}\n\n", cursor.position).into_bytes(),
            Form::Ndjson | Form::Json | Form::Arrow => Vec::new(),
        };
        if let Step::Piece(piece) = cursor.step()? {
            begin.extend(piece);
        }
        Ok((cursor, begin))
    })
    .await?;
    let (sink, reply) = stream::open(form.media_type(), heartbeat, app.until(caller)?);
    tokio::spawn(run(cursor, first, sink));
    Ok(reply)
}

/// Sends what a cursor finds, and waits for more.
async fn run(mut cursor: Cursor, first: Vec<u8>, mut sink: Sink) {
    let (mut changed, _subscription) = cursor.partition.watch();
    let mut step = Step::Piece(first);
    loop {
        let ended = match step {
            Step::Piece(piece) => sink.send(piece).await == Woken::Over || cursor.left == 0,
            Step::Nothing => match sink.wait(changed.changed()).await {
                Ok(_) => false,
                Err(_over) => true,
            },
        };
        if ended {
            return;
        }
        changed.mark_unchanged();
        let stepped = run_blocking(move || {
            let step = cursor.step();
            Ok((cursor, step))
        });
        let Ok((back, next)) = stepped.await else { return };
        cursor = back;
        step = match next {
            Ok(step) => step,
            Err(problem) => {
                if cursor.form == Form::Events {
                    let mut piece = Vec::new();
                    let data = json!({"code": problem.code(), "detail": problem.detail()});
                    show_event(&mut piece, cursor.position, "error", |out| {
                        out.extend_from_slice(data.to_string().as_bytes());
                    });
                    sink.send(piece).await;
                }
                return sink.abort(problem.detail()).await;
            }
        };
    }
}

/// A position in a partition, and how what is found there is written.
struct Cursor {
    partition: TopicPartition,
    reader: TopicReader,
    shower: Shower,
    form: Form,
    /// The stream under way, with [`Form::Arrow`].
    arrow: Option<ArrowShower>,
    position: Offset,
    /// Records that may still be written.
    left: usize,
}

/// What a step of a stream found.
enum Step {
    Piece(Vec<u8>),
    Nothing,
}

impl Cursor {
    /// Goes to where `from` says.
    fn at(mut self, from: &str) -> Result<Self, Problem> {
        let start: Result<StartAt, _> = from.parse();
        self.position = match (from, start) {
            ("latest", _) => self.partition.end_offset(),
            (_, Ok(StartAt::Earliest)) => self.partition.start_offset(),
            (_, Ok(StartAt::Offset(offset))) => self.offset(Offset(offset))?,
            (_, Ok(StartAt::Time(ms))) => self.partition.offset_for_time(ms)?,
            (_, Err(_)) => {
                return Err(Problem::invalid(
                    "invalid_query",
                    format!(
                        "from={from} is no position: say earliest, latest, an offset such as 1000, or a time such as 2013-01-01T00:00:00Z"
                    ),
                ));
            }
        };
        Ok(self)
    }

    /// An offset that is not beyond the end: of one above all offsets nobody else would say so.
    fn offset(&self, from: Offset) -> Result<Offset, ReadError> {
        let (partition, end) = (self.partition.id(), self.partition.end_offset());
        if from > end { Err(ReadError::BeyondEnd { partition, from, end }) } else { Ok(from) }
    }

    /// The next records or swap of a stream.
    fn step(&mut self) -> Result<Step, Problem> {
        let most = self.left.min(STEP_RECORDS);
        let mut piece = Vec::new();
        match self.reader.read(self.position, Offset::LIMIT, most, STEP_BYTES)? {
            TopicRead::Records(batch) => {
                self.write(&mut piece, &batch, true)?;
                self.left -= batch.len();
                self.position = batch.next_offset().unwrap_or(self.position);
                if self.left == 0 {
                    self.end(&mut piece)?;
                }
                Ok(Step::Piece(piece))
            }
            TopicRead::Swap { at, next, generation_from, generation_to } => {
                self.position = next;
                if self.form == Form::Events {
                    let data = swap_json(at, next, generation_from, generation_to);
                    show_event(&mut piece, next, "swap", |out| {
                        out.extend_from_slice(data.as_bytes());
                    });
                }
                Ok(Step::Piece(piece))
            }
            TopicRead::End => Ok(Step::Nothing),
        }
    }

    /// What is there now, within the limits, as one reply.
    fn page(mut self, max_records: usize, max_bytes: usize) -> Result<Response, Problem> {
        let (mut body, mut records, mut bytes) = (Vec::new(), 0, 0);
        let (mut swap, mut at_end) = (None, false);
        while records < max_records && bytes < max_bytes {
            let room = (max_records - records, max_bytes - bytes);
            let read = match self.reader.read(self.position, Offset::LIMIT, room.0, room.1) {
                // What was read is the reply; the error is that of the next page.
                Err(_) if records > 0 => break,
                read => read?,
            };
            match read {
                TopicRead::Records(batch) => {
                    self.write(&mut body, &batch, records == 0)?;
                    records += batch.len();
                    bytes += batch.records.size_bytes();
                    self.position = batch.next_offset().unwrap_or(self.position);
                }
                TopicRead::Swap { at, next, generation_from, generation_to } => {
                    self.position = next;
                    swap = Some(swap_json(at, next, generation_from, generation_to));
                    if records > 0 {
                        break;
                    }
                }
                TopicRead::End => {
                    at_end = true;
                    break;
                }
            }
        }
        self.end(&mut body)?;
        Ok(self.reply(body, swap, at_end))
    }

    /// `at_end`: nothing was left to read. The partition may end at a higher offset, with none between.
    fn reply(&self, body: Vec<u8>, swap: Option<String>, at_end: bool) -> Response {
        let body = match self.form {
            Form::Ndjson | Form::Events | Form::Arrow => body,
            Form::Json => [b"[", &body[..], b"]"].concat(),
        };
        let mut reply = ([(header::CONTENT_TYPE, self.form.media_type())], body).into_response();
        let end = match at_end {
            true => self.position,
            false => self.partition.end_offset().max(self.position),
        };
        let headers = reply.headers_mut();
        headers.insert("anabranch-next-offset", self.position.0.into());
        headers.insert("anabranch-end-offset", end.0.into());
        if let Some(value) = swap.and_then(|swap| HeaderValue::from_str(&swap).ok()) {
            headers.insert("anabranch-swap", value);
        }
        reply
    }

    /// Writes records in the reply's form; `first` when none came before.
    fn write(&mut self, out: &mut Vec<u8>, batch: &Batch, first: bool) -> Result<(), Problem> {
        if self.form == Form::Arrow {
            return self.write_arrow(out, |stream| stream.batch(batch));
        }
        let shower = &self.shower;
        for i in 0..batch.len() {
            match self.form {
                Form::Events => {
                    let next = Offset(batch.offsets[i] + 1);
                    show_event(out, next, "record", |out| shower.record(out, batch, i));
                    continue;
                }
                Form::Json if i > 0 || !first => out.push(b','),
                _ => {}
            }
            shower.record(out, batch, i);
            if self.form == Form::Ndjson {
                out.push(b'\n');
            }
        }
        Ok(())
    }

    /// Writes what follows the last record.
    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), Problem> {
        match self.form {
            Form::Arrow => self.write_arrow(out, ArrowShower::finish),
            Form::Ndjson | Form::Json | Form::Events => Ok(()),
        }
    }

    /// Goes on with the Arrow stream.
    fn write_arrow(
        &mut self,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut ArrowShower) -> Result<(), ArrowError>,
    ) -> Result<(), Problem> {
        let written = (|| {
            let mut stream = match self.arrow.take() {
                Some(stream) => stream,
                None => ArrowShower::open()?,
            };
            write(&mut stream)?;
            out.append(&mut stream.take());
            self.arrow = Some(stream);
            Ok(())
        })();
        written.map_err(|error: ArrowError| Problem::internal(format!("an Arrow stream: {error}")))
    }
}

fn swap_json(at: Offset, next: Offset, from: Option<u32>, to: Option<u32>) -> String {
    json!({"at": at, "next_offset": next, "generation_from": from, "generation_to": to}).to_string()
}

/// The first of the accepted types that records can be written as.
fn form(headers: &HeaderMap) -> Result<Form, Problem> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let Some(accept) = accept else { return Ok(Form::Ndjson) };
    let known = |kind: &str| match kind.split(';').next().unwrap_or_default().trim() {
        "application/x-ndjson" | "application/*" | "*/*" => Some(Form::Ndjson),
        "application/json" => Some(Form::Json),
        "text/event-stream" => Some(Form::Events),
        ARROW_STREAM => Some(Form::Arrow),
        _ => None,
    };
    accept.split(',').find_map(known).ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_ACCEPTABLE,
            "not_acceptable",
            format!(
                "records come as application/x-ndjson, application/json, {ARROW_STREAM} or text/event-stream, not as {accept:?}"
            ),
        )
    })
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        let (status, code, next) = match &error {
            ReadError::BelowStart { start, .. } => {
                (StatusCode::GONE, "offset_out_of_range", Some(start))
            }
            ReadError::BeyondEnd { end, .. } => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "offset_out_of_range", Some(end))
            }
            ReadError::Lost { next, .. } => (StatusCode::GONE, "offset_lost", Some(next)),
            ReadError::Retired { next, .. } => (StatusCode::GONE, "offset_retired", Some(next)),
            ReadError::Deleted { .. } => (StatusCode::NOT_FOUND, "topic_deleted", None),
            ReadError::Corrupt { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "corrupt", None),
        };
        let next_offset = next.map(|next| next.0);
        Self::new(status, code, error.to_string()).at(Place { next_offset, ..Place::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accepted_form_is_chosen() {
        let cases = [
            (None, Ok(Form::Ndjson)),
            (Some("*/*"), Ok(Form::Ndjson)),
            (Some("text/html, application/json;q=0.9"), Ok(Form::Json)),
            (Some("text/event-stream"), Ok(Form::Events)),
            (Some("text/html"), Err("not_acceptable")),
        ];
        for (accept, expected) in cases {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(form(&headers).map_err(|problem| problem.code()), expected, "{accept:?}");
        }
    }
}
