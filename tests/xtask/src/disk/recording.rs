//! What the interposer wrote down, entry by entry; its format is in `tests/disk/interposer.c`.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// A position in a recording: the bytes of what is recorded before it.
pub type Position = u64;

/// Length of an entry without its paths and data.
const ENTRY_BYTES: usize = 40;

/// One thing that a process did to its disk. Paths are relative to the recorded root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file or folder was opened; `handle` stands for it from now on.
    Open { handle: u64, path: String, create: bool, empty: bool },
    /// Bytes were written.
    Write { handle: u64, offset: u64, data: Vec<u8> },
    /// A file got this length.
    Truncate { handle: u64, length: u64 },
    /// A sync was asked for; `data_only` tells fdatasync from fsync.
    SyncBegin { handle: u64, data_only: bool },
    /// A sync was done.
    SyncEnd { handle: u64, data_only: bool },
    /// A name was changed.
    Rename { from: String, to: String },
    /// A name of a file was removed.
    Unlink { path: String },
    /// A folder was made.
    MakeDir { path: String },
    /// A folder was removed.
    RemoveDir { path: String },
}

/// A recording, read from its beginning.
pub struct Recording {
    file: BufReader<File>,
    position: Position,
}

impl Recording {
    /// Opens a recording.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Ok(Self { file: BufReader::with_capacity(1 << 20, file), position: 0 })
    }

    /// The next event and the position after it; `None` at the end.
    ///
    /// # Errors
    /// When it cannot be read, or holds what cannot be rebuilt.
    pub fn next(&mut self) -> Result<Option<(Event, Position)>> {
        let mut entry = [0; ENTRY_BYTES];
        if !self.fill(&mut entry)? {
            return Ok(None);
        }
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap_or_default());
        let long = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap_or_default());
        let (kind, flags, handle, offset) = (word(0), word(4), long(8), long(16));
        let (path, other) = (self.text(word(32))?, self.text(word(36))?);
        let event = match kind {
            1 => Event::Open { handle, path, create: flags & 1 > 0, empty: flags & 2 > 0 },
            2 => {
                let mut data = vec![0; usize::try_from(long(24))?];
                self.file.read_exact(&mut data).context("the recording is cut off")?;
                self.position += data.len() as u64;
                Event::Write { handle, offset, data }
            }
            3 => Event::Truncate { handle, length: offset },
            4 => Event::SyncBegin { handle, data_only: flags & 1 > 0 },
            5 => Event::SyncEnd { handle, data_only: flags & 1 > 0 },
            6 => Event::Rename { from: path, to: other },
            7 => Event::Unlink { path },
            8 => Event::MakeDir { path },
            9 => Event::RemoveDir { path },
            _ => bail!("the host did what the recorder does not understand: {path}"),
        };
        Ok(Some((event, self.position)))
    }

    /// Fills `buffer`; `false` at the end.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read(&mut buffer[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => bail!("the recording is cut off"),
                count => filled += count,
            }
        }
        self.position += buffer.len() as u64;
        Ok(true)
    }

    fn text(&mut self, bytes: u32) -> Result<String> {
        let mut text = vec![0; bytes as usize];
        self.file.read_exact(&mut text).context("the recording is cut off")?;
        self.position += u64::from(bytes);
        Ok(String::from_utf8(text)?)
    }
}
