//! Server-sent events, as a client reads them.

use std::io::BufRead;

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ServerEvent {
    /// Where to go on after it.
    pub id: Option<String>,
    /// What it is; `message` when the stream does not say.
    pub kind: String,
    /// Its data; lines are joined by line breaks.
    pub data: String,
}

/// Reads the next event; `None` at the end of the stream. Comments, heartbeats among them, are left
/// out.
///
/// # Errors
/// When the stream breaks off.
pub fn next_event(stream: &mut impl BufRead) -> std::io::Result<Option<ServerEvent>> {
    let mut event = ServerEvent::default();
    let mut seen = false;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let text = line.trim_end_matches(['\n', '\r']);
        if text.is_empty() {
            if seen {
                if event.kind.is_empty() {
                    event.kind.push_str("message");
                }
                return Ok(Some(event));
            }
            continue;
        }
        let (field, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => event.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut event.kind),
            "data" => {
                if !event.data.is_empty() {
                    event.data.push('\n');
                }
                event.data.push_str(value);
            }
            _ => continue,
        }
        seen = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_and_comments_left_out() {
        let mut text =
            ": heartbeat\n\nid: 4\nevent: record\ndata: {}\n\n: x\n\ndata: a\ndata:b\n\nid: 9\n"
                .as_bytes();
        let first = next_event(&mut text).unwrap().unwrap();
        assert_eq!((first.id.as_deref(), &*first.kind, &*first.data), (Some("4"), "record", "{}"));
        let second = next_event(&mut text).unwrap().unwrap();
        assert_eq!((second.id, &*second.kind, &*second.data), (None, "message", "a\nb"));
        assert_eq!(next_event(&mut text).unwrap(), None, "an event without its end is none");
    }
}
