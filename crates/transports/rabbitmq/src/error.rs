//! The client's errors as ours: which kind, and whether trying again is safe.

use throughline_core::{Error, ErrorKind, Retry};

/// AMQP 0.9.1 reply codes that mean something to us; <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>.
mod code {
    pub(super) const CONTENT_TOO_LARGE: u16 = 311;
    pub(super) const CONNECTION_FORCED: u16 = 320;
    pub(super) const INVALID_PATH: u16 = 402;
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const RESOURCE_LOCKED: u16 = 405;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
    pub(super) const RESOURCE_ERROR: u16 = 506;
    pub(super) const NOT_ALLOWED: u16 = 530;
    pub(super) const NOT_IMPLEMENTED: u16 = 540;
    pub(super) const INTERNAL_ERROR: u16 = 541;
}

/// What an error is, in our terms. Its retry class is that of an operation that the broker has certainly not performed;
/// who knows that it may have says so.
pub(crate) fn map(error: lapin::Error) -> Error {
    let (kind, retry, text) = classify(&error);
    Error::new(kind, text).with_retry(retry).with_source(error)
}

/// [`map`] while logging in.
pub(crate) fn map_connect(error: lapin::Error) -> Error {
    let refused = reply(&error).is_some_and(|(code, _)| code == code::ACCESS_REFUSED)
        || matches!(error.kind(), lapin::ErrorKind::AuthProviderError(_));
    if refused {
        return Error::new(ErrorKind::Unauthenticated, "the broker refused the user name or password")
            .with_source(error);
    }
    if let lapin::ErrorKind::IOError(io) = error.kind()
        && let Some(tls) = tls_failure(io)
    {
        return Error::new(ErrorKind::Disconnected, tls).with_source(error);
    }
    map(error)
}

/// A failed TLS handshake does not mend by waiting: the certificates do not match.
fn tls_failure(error: &std::io::Error) -> Option<String> {
    // rustls reports what is wrong with a certificate or the protocol as invalid data.
    (error.kind() == std::io::ErrorKind::InvalidData).then(|| {
        format!("TLS failed: {error}; does 'ca' name the authority of the broker's certificate, and is this its TLS port?")
    })
}

/// What a broken connection means for what was not written.
pub(crate) fn disconnected(text: &'static str) -> Error {
    Error::new(ErrorKind::Disconnected, text).with_retry(Retry::Safe)
}

/// An answer that did not come in time; by then the connection is as good as lost.
pub(crate) fn no_answer() -> Error {
    Error::new(ErrorKind::Timeout, "the broker does not answer").with_retry(Retry::Safe)
}

/// Whether a missing queue or exchange is really missing, and not only unavailable for the moment.
pub(crate) fn is_missing(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound && error.retry() == Retry::Never
}

/// Whether a queue is another connection's own.
pub(crate) fn is_locked(error: &Error) -> bool {
    error.native().and_then(reply).is_some_and(|(code, _)| code == code::RESOURCE_LOCKED)
}

/// The broker's reply, where it closed a channel or the connection.
pub(crate) fn reply(error: &lapin::Error) -> Option<(u16, String)> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().to_string())),
        _ => None,
    }
}

fn classify(error: &lapin::Error) -> (ErrorKind, Retry, String) {
    use lapin::ErrorKind as Lapin;
    if let Some((code, text)) = reply(error) {
        let (kind, retry) = classify_reply(code, &text);
        return (kind, retry, format!("the broker says: {text}"));
    }
    let lost = |text: String| (ErrorKind::Disconnected, Retry::Safe, text);
    match error.kind() {
        Lapin::IOError(io) => lost(format!("the connection failed: {io}")),
        Lapin::MissingHeartbeatError => lost("the connection is lost: no heartbeat from the broker".into()),
        Lapin::InvalidChannel(_) | Lapin::InvalidChannelState(..) | Lapin::InvalidConnectionState(_) => {
            lost("the connection is lost".into())
        }
        Lapin::RuntimeShutdownError(_) => {
            (ErrorKind::Closed, Retry::Never, "the runtime is shutting down".into())
        }
        Lapin::ChannelsLimitReached => (
            ErrorKind::Throttled,
            Retry::Safe,
            "no more channels on this connection (the broker's channel_max)".into(),
        ),
        Lapin::InvalidProtocolVersion(_) => {
            (ErrorKind::Unsupported, Retry::Never, "the server does not speak AMQP 0.9.1".into())
        }
        // Nothing of these names a credential; the parse error's text would hold bytes of messages.
        Lapin::ParsingError(_) => lost("the broker sent what cannot be read".into()),
        _ => (ErrorKind::Internal, Retry::Never, "the AMQP client failed".into()),
    }
}

fn classify_reply(code: u16, text: &str) -> (ErrorKind, Retry) {
    // A queue whose leader or node is just not up: mends by itself.
    let starting = ["process is stopped", "is down", "inaccessible", "timeout", "timed out", "leader"]
        .iter()
        .any(|sign| text.contains(sign));
    match code {
        // "no queue 'q' in vhost '/'": first, because a name may hold anything.
        code::NOT_FOUND if starting && !text.contains(" - no ") => (ErrorKind::Disconnected, Retry::Safe),
        code::NOT_FOUND | code::INVALID_PATH => (ErrorKind::NotFound, Retry::Never),
        code::ACCESS_REFUSED | code::RESOURCE_LOCKED => (ErrorKind::PermissionDenied, Retry::Never),
        code::PRECONDITION_FAILED if text.contains("larger than") => (ErrorKind::LimitExceeded, Retry::Never),
        code::PRECONDITION_FAILED => (ErrorKind::Conflict, Retry::Never),
        code::CONTENT_TOO_LARGE => (ErrorKind::LimitExceeded, Retry::Never),
        code::NOT_ALLOWED if text.contains("not found") => (ErrorKind::NotFound, Retry::Never),
        code::NOT_ALLOWED if starting => (ErrorKind::Disconnected, Retry::Safe),
        code::NOT_ALLOWED => (ErrorKind::PermissionDenied, Retry::Never),
        code::NOT_IMPLEMENTED => (ErrorKind::Unsupported, Retry::Never),
        code::CONNECTION_FORCED | code::RESOURCE_ERROR | code::INTERNAL_ERROR => {
            (ErrorKind::Disconnected, Retry::Safe)
        }
        _ => (ErrorKind::Internal, Retry::Never),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_classed_by_what_mends_them() {
        for (code, text, kind, retry) in [
            (404, "NOT_FOUND - no queue 'leader' in vhost '/'", ErrorKind::NotFound, Retry::Never),
            (
                404,
                "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor",
                ErrorKind::Disconnected,
                Retry::Safe,
            ),
            (
                404,
                "NOT_FOUND - home node 'r@h' of durable queue 'q' in vhost '/' is down or inaccessible",
                ErrorKind::Disconnected,
                Retry::Safe,
            ),
            (530, "NOT_ALLOWED - vhost nope not found", ErrorKind::NotFound, Retry::Never),
            (
                530,
                "NOT_ALLOWED - access to vhost 'x' refused for user 'y'",
                ErrorKind::PermissionDenied,
                Retry::Never,
            ),
            (541, "INTERNAL_ERROR - vhost '/' is down", ErrorKind::Disconnected, Retry::Safe),
            (320, "CONNECTION_FORCED - broker forced", ErrorKind::Disconnected, Retry::Safe),
            (406, "PRECONDITION_FAILED - inequivalent arg", ErrorKind::Conflict, Retry::Never),
            (
                406,
                "PRECONDITION_FAILED - message size 9 is larger than configured max size 8",
                ErrorKind::LimitExceeded,
                Retry::Never,
            ),
            (403, "ACCESS_REFUSED - access to queue", ErrorKind::PermissionDenied, Retry::Never),
        ] {
            assert_eq!(classify_reply(code, text), (kind, retry), "{text}");
        }
    }

    #[test]
    fn the_native_error_is_the_source() {
        let error = map(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into());
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Disconnected, Retry::Safe));
        assert!(error.native::<lapin::Error>().is_some());
    }
}
