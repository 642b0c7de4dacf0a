//! SQLite's errors, told so that one knows what to do.

use std::path::Path;

use rusqlite::ErrorCode;
use throughline_core::{Error, ErrorKind, Retry};

/// What an error of SQLite means. Nothing was committed: where it may pass, trying again is safe.
pub(crate) fn sqlite(error: rusqlite::Error) -> Error {
    let code = error.sqlite_error_code();
    let (kind, retry, what) = match code {
        Some(ErrorCode::NotADatabase) => (
            ErrorKind::Conflict,
            Retry::Never,
            "the file is no SQLite database, or an encrypted one; it is left as it is: name another file",
        ),
        Some(ErrorCode::DatabaseCorrupt) => (
            ErrorKind::Conflict,
            Retry::Never,
            "the database is damaged; stop all that use it and restore a backup, or save what can be read: \
             sqlite3 FILE .recover | sqlite3 NEW-FILE",
        ),
        Some(
            ErrorCode::ReadOnly
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::AuthorizationForStatementDenied,
        ) => (
            ErrorKind::PermissionDenied,
            Retry::Never,
            "the file cannot be written: it, and the folder it is in (for the files -wal and -shm beside it), must be \
             writable by this user",
        ),
        Some(ErrorCode::DiskFull) => {
            (ErrorKind::Refused, Retry::Safe, "the disk is full: free some space, and it goes on")
        }
        Some(ErrorCode::SystemIoFailure) => (
            ErrorKind::Refused,
            Retry::Safe,
            "the disk cannot be read or written; see the cause, and the system's log",
        ),
        // The protocol: readers and writers have met while opening the log too often in a row.
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => {
            (ErrorKind::Throttled, Retry::Safe, "other processes keep the database locked")
        }
        Some(ErrorCode::TooBig) => {
            (ErrorKind::LimitExceeded, Retry::Never, "the message is larger than SQLite takes in a row")
        }
        Some(ErrorCode::NoLargeFileSupport) => (
            ErrorKind::Conflict,
            Retry::Never,
            "the file is larger than its file system's files can be; put it on another disk",
        ),
        _ => (ErrorKind::Internal, Retry::Never, "SQLite refuses a statement of ours"),
    };
    Error::new(kind, format!("{what} ({error})")).with_retry(retry).with_source(error)
}

/// What a failed commit means: where writing failed, nobody knows whether it is in the file.
pub(crate) fn commit(error: rusqlite::Error) -> Error {
    let uncertain = error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure);
    let told = sqlite(error);
    if uncertain { told.with_retry(Retry::Uncertain) } else { told }
}

/// Whether waiting may help, and nobody is to be told.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    let busy = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked, ErrorCode::FileLockingProtocolFailed];
    error.sqlite_error_code().is_some_and(|code| busy.contains(&code))
}

pub(crate) fn still_busy() -> Error {
    Error::new(
        ErrorKind::Throttled,
        "not written: another process kept the database locked until the transport was closed",
    )
    .with_retry(Retry::Safe)
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the transport is closed")
}

/// The writing thread is gone without an answer.
pub(crate) fn unanswered() -> Error {
    Error::new(ErrorKind::Internal, "the thread that writes the database has failed")
        .with_retry(Retry::Uncertain)
}

pub(crate) fn missing(what: &str, name: &str, file: &Path) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!(
            "there is no {what} '{name}' in {}; create it first (throughline create), or leave out create=never",
            file.display()
        ),
    )
}

pub(crate) fn missing_file(file: &Path) -> Error {
    let text = format!(
        "there is no database {}; create it first (throughline create), or leave out create=never",
        file.display()
    );
    Error::new(ErrorKind::NotFound, text)
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn a_lost_race_for_the_log_is_busy() {
        for code in [ffi::SQLITE_BUSY, ffi::SQLITE_BUSY_SNAPSHOT, ffi::SQLITE_LOCKED, ffi::SQLITE_PROTOCOL] {
            let failed = || rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            assert!(is_busy(&failed()), "{code}");
            let told = sqlite(failed());
            assert_eq!((told.kind(), told.retry()), (ErrorKind::Throttled, Retry::Safe), "{code}");
        }
        assert!(!is_busy(&rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None)));
    }
}
