//! One cheap error for every operation: what was wrong, where, what to do, and whether sending again is safe.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::Address;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong. Match on this, not on texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The address cannot be parsed, names an unknown scheme or option, or lacks what the operation needs.
    InvalidAddress,
    /// The message, or an option of the call, is not valid; nothing was sent.
    InvalidMessage,
    /// A limit of the destination would be exceeded (size, count, delay); nothing was sent. The message names the limit.
    LimitExceeded,
    /// The transport cannot do this (see its capabilities); nothing was sent.
    Unsupported,
    /// The queue, topic, exchange, bus or virtual host does not exist.
    NotFound,
    /// It exists already, with other properties.
    Conflict,
    /// The broker knows us but forbids this.
    PermissionDenied,
    /// The broker refused the credentials.
    Unauthenticated,
    /// The broker took the message but nothing is bound that would receive it.
    Unroutable,
    /// The broker refused this message (a full queue, a negative confirm). What it would refuse of any message (no rights, no
    /// queue, a damaged file) is of another kind: a bridge rejects messages by this one.
    Refused,
    /// The broker asks for fewer requests.
    Throttled,
    /// No answer within the time allowed.
    Timeout,
    /// The connection could not be made, or was lost.
    Disconnected,
    /// This publisher, consumer or transport has been closed.
    Closed,
    /// The delivery is no longer ours to settle: its lease expired or its connection is gone. It will be delivered again.
    Stale,
    /// Not sent, because an earlier message of the same ordering key failed; see `Publisher::resume`.
    HeldBack,
    /// A received message cannot be decoded, or its payload is not what was asked for.
    Undecodable,
    /// A rejected message has nowhere to go: no dead-letter address is known. The message stays where it is.
    NoDeadLetter,
    /// A fault of Throughline's own, or an answer of the broker that nobody foresaw.
    Internal,
}

/// Whether the same operation may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// It would fail again.
    Never,
    /// The broker has certainly not accepted it: trying again cannot make a duplicate.
    Safe,
    /// It was sent and the outcome is unknown: trying again may make a duplicate.
    Uncertain,
}

/// An error of any operation. Cloning is one reference count, so that one cause can answer a whole batch.
///
/// The text never holds payloads or credentials, and addresses are redacted. The client's own error, where there is
/// one, is the [`source`](StdError::source) and can be had by type with [`Error::native`].
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    retry: Retry,
    message: Cow<'static, str>,
    operation: Option<&'static str>,
    address: Option<String>,
    source: Option<Arc<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// An error that would happen again ([`Retry::Never`]).
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            retry: Retry::Never,
            message: message.into(),
            operation: None,
            address: None,
            source: None,
        }))
    }

    /// A limit that the message would exceed: which, how much, and how much is allowed.
    pub fn limit(limit: &str, actual: impl fmt::Display, allowed: impl fmt::Display) -> Self {
        Self::new(ErrorKind::LimitExceeded, format!("{limit} is {actual}, the limit is {allowed}"))
    }

    /// The same error with another retry class.
    pub fn with_retry(mut self, retry: Retry) -> Self {
        Arc::make_mut(&mut self.0).retry = retry;
        self
    }

    /// The same error, naming the operation and the address (redacted) it happened at. What an inner layer has already
    /// named stays.
    pub fn at(mut self, operation: &'static str, address: &Address) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.operation.get_or_insert(operation);
        inner.address.get_or_insert_with(|| address.to_string());
        self
    }

    /// The same error with its cause, usually the client library's own error.
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether trying again is safe.
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// What was being done, such as `publish`.
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// Where, with credentials redacted.
    pub fn address(&self) -> Option<&str> {
        self.0.address.as_deref()
    }

    /// What was wrong, without operation and address.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The client library's own error, if that is the cause.
    pub fn native<E: StdError + 'static>(&self) -> Option<&E> {
        self.0.source.as_deref().and_then(|source| source.downcast_ref())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.operation, &self.0.address) {
            (Some(operation), Some(address)) => write!(f, "{operation} {address}: ")?,
            (Some(operation), None) => write!(f, "{operation}: ")?,
            (None, Some(address)) => write!(f, "{address}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("retry", &self.0.retry)
            .field("message", &format_args!("{self}"))
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_operation_and_redacted_address_once() {
        let address: Address = "amqp://guest:hunter2@localhost/%2f?queue=jobs".parse().unwrap();
        let error = Error::new(ErrorKind::NotFound, "no queue 'jobs'")
            .at("publish", &address)
            .at("connect", &address);
        let text = format!("{error} {error:?}");
        assert!(text.starts_with("publish amqp://***@localhost/%2f?queue=jobs: no queue 'jobs'"), "{text}");
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn the_native_error_can_be_had_by_type() {
        let error = Error::new(ErrorKind::Internal, "x").with_source(std::io::Error::other("cause"));
        assert!(error.clone().native::<std::io::Error>().is_some());
        assert!(error.native::<fmt::Error>().is_none());
    }
}
