//! The state file: read and written so that it is whole at any moment, and one process works on it at a time.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind as IoKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use throughline::{Error, ErrorKind, Result};

use super::state::{MigrationState, VERSION};

/// So long somebody may only have looked whether a phase runs.
const LOOKED_AT: Duration = Duration::from_secs(5);

const AGAIN: Duration = Duration::from_millis(25);

/// Where a migration's files are: the state, and beside it a folder with ledgers and locks.
#[derive(Clone, Debug)]
pub(super) struct StateFile {
    path: PathBuf,
}

/// Held while a phase runs; the operating system lets it go with the process.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "held, not used")] File);

impl StateFile {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// The folder of ledgers and locks: the state file's name with `.d`.
    fn folder(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".d");
        self.path.with_file_name(name)
    }

    /// A ledger's path, and as the state file gives it.
    pub(super) fn ledger(&self, name: &str) -> (PathBuf, String) {
        let folder = self.folder();
        let relative = Path::new(folder.file_name().unwrap_or_default()).join(name);
        (folder.join(name), relative.display().to_string())
    }

    /// One phase at a time.
    pub(super) fn lock_run(&self) -> Result<Lock> {
        let file = self.open_lock("run.lock")?;
        let end = Instant::now() + LOOKED_AT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(AGAIN),
                Err(TryLockError::WouldBlock) => {
                    return Err(self.conflict(
                        "another process runs a phase of this migration; let it end, or stop it (Ctrl-C), and try again",
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(self.failed("cannot be locked", error)),
            }
        }
    }

    /// Whether a process runs a phase.
    pub(super) fn is_running(&self) -> Result<bool> {
        let file = self.open_lock("run.lock")?;
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(self.failed("cannot be locked", error)),
        }
    }

    /// Opens a lock, in the folder, which is made where it is missing.
    fn open_lock(&self, name: &str) -> Result<File> {
        let folder = self.folder();
        std::fs::create_dir_all(&folder).map_err(|error| self.failed("has no folder beside it", error))?;
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        options.open(folder.join(name)).map_err(|error| self.failed("cannot be locked", error))
    }

    /// Reads it.
    ///
    /// Errors: `NotFound`; `Conflict` where others can read it, where it is of a newer version or is no state file.
    pub(super) fn read(&self) -> Result<MigrationState> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == IoKind::NotFound => {
                let text = format!("{} does not exist: start the migration first", self.path.display());
                return Err(Error::new(ErrorKind::NotFound, text));
            }
            Err(error) => return Err(self.failed("cannot be read", error)),
        };
        self.check_mode()?;
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // First of all: a newer form need not be readable.
        // What it says may quote the text, and so a password.
        let broken = |error: serde_json::Error| {
            let (line, column) = (error.line(), error.column());
            self.conflict(&format!("is no state of a migration: see line {line}, column {column}"))
        };
        let Versioned { version } = serde_json::from_str(&text).map_err(broken)?;
        if version != VERSION {
            return Err(self.conflict(&format!(
                "is of version {version}; this program knows version {VERSION}: use the one that has written it"
            )));
        }
        serde_json::from_str(&text).map_err(broken)
    }

    /// Reads, changes and writes it, which nobody else does meanwhile.
    pub(super) fn update(&self, change: impl FnOnce(&mut MigrationState)) -> Result<MigrationState> {
        let writing = self.open_lock("write.lock")?;
        writing.lock().map_err(|error| self.failed("cannot be locked", error))?;
        let mut state = self.read()?;
        change(&mut state);
        self.write(&state)?;
        Ok(state)
    }

    /// Writes it: a reader sees the old state or the new one, also after a power failure. Only its owner can read it, because
    /// the addresses may hold credentials.
    pub(super) fn write(&self, state: &MigrationState) -> Result<()> {
        let cannot = |error| self.failed("cannot be written", error);
        let mut text =
            serde_json::to_string_pretty(state).map_err(|error| cannot(std::io::Error::other(error)))?;
        text.push('\n');
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        // Readable by its owner only, from the first moment on.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(cannot)?;
        file.write_all(text.as_bytes()).map_err(cannot)?;
        file.as_file().sync_all().map_err(cannot)?;
        file.persist(&self.path).map_err(|error| cannot(error.error))?;
        // The new name, too, is to outlive a power failure; elsewhere a folder cannot be opened as a file.
        #[cfg(unix)]
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(cannot)?;
        Ok(())
    }

    /// Removes the ledgers of an earlier migration: they would take its messages for moved.
    pub(super) fn forget_ledgers(&self, names: &[&str]) -> Result<()> {
        for name in names {
            for suffix in ["", "-wal", "-shm"] {
                match std::fs::remove_file(self.folder().join(format!("{name}{suffix}"))) {
                    Err(error) if error.kind() != IoKind::NotFound => {
                        return Err(self.failed("has a ledger that cannot be removed", error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    #[cfg(unix)]
    fn check_mode(&self) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let metadata = std::fs::metadata(&self.path).map_err(|error| self.failed("cannot be read", error))?;
        if metadata.permissions().mode() & 0o077 == 0 {
            return Ok(());
        }
        let path = self.path.display();
        let text = format!("can be read by others, and may hold credentials: chmod 600 {path}");
        Err(self.conflict(&text))
    }

    #[cfg(not(unix))]
    fn check_mode(&self) -> Result<()> {
        Ok(())
    }

    fn conflict(&self, what: &str) -> Error {
        Error::new(ErrorKind::Conflict, format!("{}: {what}", self.path.display()))
    }

    fn failed(&self, what: &str, error: std::io::Error) -> Error {
        let text = format!("{} {what}: {error}", self.path.display());
        Error::new(ErrorKind::Internal, text).with_source(error)
    }
}
