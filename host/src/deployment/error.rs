//! What can go wrong with a request, sorted by what the caller does next.

/// What kind of refusal it is; HTTP statuses and exit codes follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request says something that cannot be: mend it.
    Invalid,
    /// It does not say who asks, or not so that the host believes it.
    Unauthenticated,
    /// Who asks may not.
    Forbidden,
    /// What it names is not there.
    NotFound,
    /// It does not go with what is there now: look, then ask again.
    Conflict,
    /// A limit or a gate refuses it.
    Refused,
    /// What it names was there and is gone for good.
    Gone,
    /// The host cannot do it now (stopping, storage failed, disk full).
    Unavailable,
    /// A fault of the host.
    Internal,
}

/// A refusal: a stable code for programs, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of refusal.
    pub kind: Kind,
    /// Stable, for programs: `topic_not_found`, `offset_out_of_range`, …
    pub code: &'static str,
    /// What, where, and what to do.
    pub message: String,
}

impl Error {
    /// A refusal.
    pub fn new(kind: Kind, code: &'static str, message: impl Into<String>) -> Self {
        Self { kind, code, message: message.into() }
    }
}
