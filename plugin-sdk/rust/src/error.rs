//! Why a plugin refuses a record.
//!
//! **Invariant:** an error is words for the operator, nothing more: the host's policy decides what
//! becomes of the record, never the kind of error.

use std::fmt;

/// A reason, made from any error by `?` or in words by [`bail!`](crate::bail).
///
/// Like `anyhow::Error` it is not itself a `std::error::Error`, so that all of those convert into it.
pub struct Error(String);

/// A result with a reason.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A reason in words.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }

    /// The same reason, with what was being done before it.
    pub fn context(self, doing: impl fmt::Display) -> Self {
        Self(format!("{doing}: {}", self.0))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Returns an [`Error`] from the function: `process` then refuses the record.
#[macro_export]
macro_rules! bail {
    ($($args:tt)+) => {
        return ::std::result::Result::Err($crate::Error::new(::std::format_args!($($args)+)))
    };
}
