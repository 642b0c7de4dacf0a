//! What ends the command, and with which exit code.

use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

use throughline::{Error, ErrorKind};

use crate::output::Console;

/// The exit codes; `--help` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Denied = 4,
    Rejected = 5,
    Different = 6,
    Interrupted = 130,
}

impl Exit {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 8] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::NotFound,
        Self::Denied,
        Self::Rejected,
        Self::Different,
        Self::Interrupted,
    ];

    pub(crate) fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidAddress
            | ErrorKind::InvalidMessage
            | ErrorKind::LimitExceeded
            | ErrorKind::Unsupported => Self::Usage,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::PermissionDenied | ErrorKind::Unauthenticated => Self::Denied,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why the command ends without having done its work: one line, the causes below it, and what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), causes: Vec::new(), hint: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the chain of causes, each told once.
    pub(crate) fn caused_by(mut self, cause: &(dyn StdError + 'static)) -> Self {
        let mut next = Some(cause);
        while let Some(cause) = next {
            let text = cause.to_string();
            let told = self.message.contains(&text) || self.causes.iter().any(|known| known.contains(&text));
            if !told {
                self.causes.push(text);
            }
            next = cause.source();
        }
        self
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    pub(crate) fn tell(&self, console: &Console) {
        console.error(&self.message);
        for cause in &self.causes {
            console.detail("cause", cause);
        }
        if let Some(hint) = &self.hint {
            console.detail("hint", hint);
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Self::new(Exit::of(error.kind()), error.to_string());
        match error.source() {
            Some(cause) => failure.caused_by(cause),
            None => failure,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once_each() {
        let native = std::io::Error::other("connection refused");
        let error =
            Error::new(ErrorKind::Disconnected, "cannot connect: connection refused").with_source(native);
        assert!(Failure::from(error).causes.is_empty());
        let native = std::io::Error::other("connection refused");
        let error = Error::new(ErrorKind::Disconnected, "cannot connect").with_source(native);
        assert_eq!(Failure::from(error).causes, ["connection refused"]);
    }
}
