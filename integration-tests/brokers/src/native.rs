//! A native broker that is one process, from the start of its program to the removal of its folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::Export;
use crate::folder::{Folder, Origin};
use crate::process::{self, ProcessId, Running, Signal, StartError};

/// How many times a lost race for a port is run again.
const ATTEMPTS: usize = 4;

/// Runs a start again that lost a race for a port.
pub(crate) fn retried<T>(mut start: impl FnMut() -> Result<T, StartError>) -> Result<T> {
    let mut attempt = 1;
    loop {
        match start() {
            Err(StartError::LostPort(_)) if attempt < ATTEMPTS => attempt += 1,
            other => return other.map_err(Into::into),
        }
    }
}

/// A folder, and the process that works in it. Dropping it kills the process and removes the folder.
#[derive(Debug)]
pub(crate) struct Native {
    folder: Folder,
    /// `None` while it is stopped.
    server: Option<Running>,
    /// Set once the process is to outlive this value.
    left_running: bool,
}

impl Native {
    /// A folder for a broker of this kind; nothing runs yet.
    pub(crate) fn create(base: &Path, kind: &str) -> Result<Self> {
        let folder = Folder::create(base, kind, Origin::Native)?;
        Ok(Self { folder, server: None, left_running: false })
    }

    /// Its own folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts a helper's process on record, so that it is stopped if we are killed.
    pub(crate) fn record(&self, process: &ProcessId) -> Result<()> {
        self.folder.add_process(process)
    }

    /// Puts on record where it is to be found.
    pub(crate) fn add_endpoint(&mut self, exports: &[Export], version: &str) -> Result<()> {
        self.folder.add_endpoint(exports, Some(version))
    }

    /// Starts the program and waits until `ready` holds, which is given the log so far.
    pub(crate) fn start_server(
        &mut self,
        name: &str,
        mut command: Command,
        timeout: Duration,
        ready: impl Fn(&str) -> bool,
    ) -> Result<(), StartError> {
        let log = File::create(self.log_file()).context("cannot make the broker's log file")?;
        command
            .current_dir(self.folder.path())
            .stdout(log.try_clone().context("cannot share the broker's log file")?)
            .stderr(log);
        let mut server = process::spawn(&mut command, |id| self.folder.add_process(id))?;
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = server.ended() {
                let log = self.log();
                let error = anyhow!("{name} ended while starting ({status}):\n{}", end_of(&log));
                let lost = log.to_lowercase().contains("address already in use");
                return Err(if lost { StartError::LostPort(error) } else { StartError::Other(error) });
            }
            if ready(&self.log()) {
                self.server = Some(server);
                return Ok(());
            }
            if Instant::now() >= deadline {
                server.kill();
                return Err(
                    anyhow!("{name} did not answer within {timeout:?}:\n{}", end_of(&self.log())).into()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether the process runs (paused counts).
    pub(crate) fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| server.ended().is_none())
    }

    /// SIGKILL. Returns when the process is gone; the folder stays.
    pub(crate) fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// SIGTERM, and SIGKILL after `timeout`.
    pub(crate) fn stop(&mut self, timeout: Duration) {
        if let Some(server) = &mut self.server {
            // A paused one could not hear anything else.
            server.id().signal(Signal::CONT);
            server.id().signal(Signal::TERM);
            server.wait(timeout);
        }
        self.kill();
    }

    /// SIGSTOP.
    pub(crate) fn pause(&self) {
        if let Some(server) = &self.server {
            server.id().signal(Signal::STOP);
        }
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        if let Some(server) = &self.server {
            server.id().signal(Signal::CONT);
        }
    }

    /// Lets the process outlive us.
    pub(crate) fn leave_running(mut self) -> Result<()> {
        self.folder.leave_running()?;
        self.left_running = true;
        Ok(())
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        if self.left_running {
            return;
        }
        self.kill();
        if std::thread::panicking() {
            // The test that fails wants to know why; the next `reap` removes it.
            crate::say(&format!("the broker's log is {}", self.log_file().display()));
        } else if let Err(error) = self.folder.remove() {
            crate::say(&format!("warning: {error:#}"));
        }
    }
}

/// What a person wants to see of a log that ends in a failure.
fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
}
