//! Input in batches: whole lines of files or standard input, with the number of their first line.
//!
//! A thread reads ahead, so that reading overlaps with sending. What has arrived is sent without
//! waiting for more, so that a slow source (`tail -f`) is not held back, and a fast one fills batches.
//!
//! **Invariant:** lines keep their order; a batch holds lines of one source only.

use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::client::Error;

/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;
/// Bytes after which a batch is full: enough to make a request's cost small, and few to hold.
pub const BATCH_BYTES: usize = 2 << 20;
/// Pieces that may wait to be sent.
const AHEAD: usize = 16;
/// Longest line; the host's limits are stricter, but this end has to hold the line to say so.
const MAX_LINE_BYTES: usize = 256 << 20;

/// Whole lines of one source.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Index of the source.
    pub source: usize,
    /// Number of the first line, counted from 1.
    pub first_line: u64,
    /// Lines, empty ones included.
    pub lines: u64,
    /// The lines, each with its line break but perhaps the last.
    pub text: Vec<u8>,
    /// Bytes of all sources read so far, this batch included.
    pub end_bytes: u64,
}

/// Batches of all sources, in order.
pub struct Batches {
    pieces: Receiver<Result<Batch, Error>>,
    held: Option<Result<Batch, Error>>,
    max_lines: u64,
}

/// Reads `sources` (standard input where there is no path). A batch holds at most `max_lines`.
pub fn read(sources: Vec<Option<PathBuf>>, max_lines: u64) -> Batches {
    let (sender, pieces) = sync_channel(AHEAD);
    std::thread::spawn(move || {
        let mut end_bytes = 0;
        for (source, path) in sources.iter().enumerate() {
            let name = path.clone().unwrap_or_else(|| PathBuf::from("standard input"));
            let result = match path {
                None => {
                    lines_of(std::io::stdin().lock(), source, max_lines, &mut end_bytes, &sender)
                }
                Some(path) => std::fs::File::open(path)
                    .and_then(|file| lines_of(file, source, max_lines, &mut end_bytes, &sender)),
            };
            if let Err(error) = result {
                // If the receiver has gone, nobody is left to be told.
                let _ = sender.send(Err(Error::file(&name, &error)));
                return;
            }
        }
    });
    Batches { pieces, held: None, max_lines }
}

impl Iterator for Batches {
    type Item = Result<Batch, Error>;

    /// The next batch: waits for its first piece, and takes what else is there.
    fn next(&mut self) -> Option<Self::Item> {
        let mut batch = match self.held.take().or_else(|| self.pieces.recv().ok())? {
            Ok(batch) => batch,
            error => return Some(error),
        };
        while batch.text.len() < BATCH_BYTES {
            match self.pieces.try_recv() {
                Ok(Ok(piece))
                    if piece.source == batch.source
                        && batch.lines + piece.lines <= self.max_lines
                        && batch.text.ends_with(b"\n") =>
                {
                    batch.lines += piece.lines;
                    batch.text.extend_from_slice(&piece.text);
                    batch.end_bytes = piece.end_bytes;
                }
                Ok(other) => {
                    self.held = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        Some(Ok(batch))
    }
}

/// Sends the lines of one source in pieces.
fn lines_of(
    mut input: impl Read,
    source: usize,
    max_lines: u64,
    end_bytes: &mut u64,
    to: &SyncSender<Result<Batch, Error>>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    let mut line = 1;
    loop {
        let before = buffer.len();
        let read = input.by_ref().take(READ_BYTES as u64).read_to_end_once(&mut buffer)?;
        let ended = read == 0;
        let complete = match ended {
            true => buffer.len(),
            false => match buffer[before..].iter().rposition(|&byte| byte == b'\n') {
                Some(at) => before + at + 1,
                None if buffer.len() > MAX_LINE_BYTES => {
                    let text = format!("line {line} is longer than {MAX_LINE_BYTES} bytes");
                    return Err(std::io::Error::other(text));
                }
                None => 0,
            },
        };
        let rest = buffer.split_off(complete);
        for text in cut(std::mem::replace(&mut buffer, rest), max_lines) {
            let lines = text.split_inclusive(|&byte| byte == b'\n').count() as u64;
            *end_bytes += text.len() as u64;
            let piece = Batch { source, first_line: line, lines, text, end_bytes: *end_bytes };
            line += lines;
            if to.send(Ok(piece)).is_err() {
                return Ok(());
            }
        }
        if ended {
            return Ok(());
        }
    }
}

/// `text` in parts of at most `max_lines` lines.
fn cut(text: Vec<u8>, max_lines: u64) -> Vec<Vec<u8>> {
    if text.is_empty() {
        return Vec::new();
    }
    if max_lines == u64::MAX {
        return vec![text];
    }
    let lines: Vec<&[u8]> = text.split_inclusive(|&byte| byte == b'\n').collect();
    lines.chunks(max_lines as usize).map(<[&[u8]]>::concat).collect()
}

/// One read, appended; what is there is enough.
trait ReadOnce {
    fn read_to_end_once(&mut self, into: &mut Vec<u8>) -> std::io::Result<usize>;
}

impl<R: Read> ReadOnce for std::io::Take<R> {
    fn read_to_end_once(&mut self, into: &mut Vec<u8>) -> std::io::Result<usize> {
        let from = into.len();
        into.resize(from + READ_BYTES, 0);
        loop {
            match self.read(&mut into[from..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    into.truncate(from);
                    return Err(error);
                }
                Ok(read) => {
                    into.truncate(from + read);
                    return Ok(read);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(texts: &[&str], max_lines: u64) -> Vec<(usize, u64, u64, String)> {
        let files: Vec<_> = texts
            .iter()
            .map(|text| {
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), text).unwrap();
                file
            })
            .collect();
        let sources = files.iter().map(|file| Some(file.path().to_owned())).collect();
        read(sources, max_lines)
            .map(|batch| batch.unwrap())
            .map(|b| (b.source, b.first_line, b.lines, String::from_utf8(b.text).unwrap()))
            .collect()
    }

    #[test]
    fn lines_keep_their_numbers_and_sources_apart() {
        // How much of a source has arrived when it is asked for is up to the scheduler.
        let joined = all(&["a\n\nb", "c\n"], u64::MAX).into_iter().fold(
            Vec::<(usize, u64, u64, String)>::new(),
            |mut joined, next| {
                match joined.last_mut() {
                    Some(last) if last.0 == next.0 => {
                        assert_eq!(last.1 + last.2, next.1);
                        last.2 += next.2;
                        last.3 += &next.3;
                    }
                    _ => joined.push(next),
                }
                joined
            },
        );
        assert_eq!(joined, [(0, 1, 3, "a\n\nb".into()), (1, 1, 1, "c\n".into())]);
        let batches = all(&["a\nb\nc\n"], 2);
        assert_eq!(batches, [(0, 1, 2, "a\nb\n".into()), (0, 3, 1, "c\n".into())]);
        assert_eq!(all(&[""], 2), []);
    }

    #[test]
    fn large_files_come_whole_and_in_order() {
        let text: String = (0..500_000).map(|i| format!("line {i}\n")).collect();
        let batches = all(&[&text], u64::MAX);
        assert!(batches.len() > 1);
        let mut line = 1;
        for (_, first, lines, _) in &batches {
            assert_eq!(*first, line);
            line += lines;
        }
        assert_eq!(batches.iter().map(|b| b.3.as_str()).collect::<String>(), text);
    }

    #[test]
    fn a_missing_file_is_named() {
        let mut batches = read(vec![Some(PathBuf::from("/nowhere/x.ndjson"))], u64::MAX);
        let error = batches.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("/nowhere/x.ndjson"), "{error}");
    }
}
