//! What an error of the sink says: of the message, of the sink, or of the moment.

use throughline::{Error, ErrorKind, Retry};

/// What a failed send means for the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may pass: send again, in order.
    Passing,
    /// The sink does not take this message, whenever it comes.
    Message,
    /// The sink takes nothing: it does not exist, or not for us. The bridge stops.
    Sink,
}

impl Verdict {
    pub(crate) fn of(error: &Error) -> Self {
        match (error.retry(), error.kind()) {
            (_, ErrorKind::HeldBack) => Self::Passing,
            (_, ErrorKind::Closed) => Self::Sink,
            (Retry::Safe | Retry::Uncertain, _) => Self::Passing,
            (
                Retry::Never,
                ErrorKind::InvalidMessage
                | ErrorKind::LimitExceeded
                | ErrorKind::Undecodable
                | ErrorKind::Refused,
            ) => Self::Message,
            (Retry::Never, ErrorKind::Disconnected | ErrorKind::Timeout | ErrorKind::Throttled) => {
                Self::Passing
            }
            // `Unsupported`, too: a bridge asks for nothing beyond the message, so that all would be refused.
            (Retry::Never, _) => Self::Sink,
        }
    }
}

/// The error's class as a word, for counts and dead letters: `limit_exceeded`.
pub(crate) fn class(kind: ErrorKind) -> String {
    let mut word = String::new();
    for (at, letter) in format!("{kind:?}").char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            word.push('_');
        }
        word.push(letter.to_ascii_lowercase());
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_sink_says_of_the_message_is_not_what_it_says_of_itself() {
        let verdict = |kind, retry| Verdict::of(&Error::new(kind, "").with_retry(retry));
        assert_eq!(verdict(ErrorKind::LimitExceeded, Retry::Never), Verdict::Message);
        assert_eq!(verdict(ErrorKind::Refused, Retry::Never), Verdict::Message);
        assert_eq!(verdict(ErrorKind::Refused, Retry::Safe), Verdict::Passing);
        assert_eq!(verdict(ErrorKind::Timeout, Retry::Uncertain), Verdict::Passing);
        assert_eq!(verdict(ErrorKind::HeldBack, Retry::Safe), Verdict::Passing);
        for of_itself in [
            ErrorKind::InvalidAddress,
            ErrorKind::NotFound,
            ErrorKind::Conflict,
            ErrorKind::PermissionDenied,
            ErrorKind::Unauthenticated,
            ErrorKind::Unroutable,
            ErrorKind::Unsupported,
            ErrorKind::Internal,
        ] {
            assert_eq!(verdict(of_itself, Retry::Never), Verdict::Sink, "{of_itself:?}");
        }
        assert_eq!(verdict(ErrorKind::Closed, Retry::Safe), Verdict::Sink);
        assert_eq!(class(ErrorKind::LimitExceeded), "limit_exceeded");
        assert_eq!(class(ErrorKind::Refused), "refused");
    }
}
