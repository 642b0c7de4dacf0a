//! Apache Kafka: a private, native broker on loopback.
//!
//! One JVM that is broker and controller (KRaft), from the published jars, with a folder and ports of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use self::setup::{Ports, VERSION, class_path};
use crate::folder::{self, Folder, Origin};
use crate::install::Permission;
use crate::process::{self, Running, Signal, StartError};
use crate::{Export, Health, Kind, Started, base_folder, compose};

mod probe;
mod setup;

/// The variable for the broker's address, without a destination: `kafka://HOST:PORT`.
pub const URL_VAR: &str = "THROUGHLINE_KAFKA_URL";

/// The kind, for [`crate::kinds`].
pub(crate) const KIND: KafkaKind = KafkaKind;

/// About 6 s on an idle machine; compilers may keep both cores busy.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// A stop in good order hands over its partitions and writes what is in memory.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// How many times a lost race for a port is run again.
const ATTEMPTS: usize = 4;

/// What a private broker is started with.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// The folder below which the broker's own folder is made.
    pub base: PathBuf,
    /// Further lines of `server.properties`.
    pub config: String,
}

impl Default for StartOptions {
    fn default() -> Self {
        Self { base: base_folder(), config: String::new() }
    }
}

/// A private broker. Dropping it kills it and removes its folder.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// use throughline_brokers::{Kafka, kafka::StartOptions};
///
/// let mut broker = Kafka::start(&StartOptions::default())?;
/// println!("{} is {}", broker.url(), broker.version());
/// broker.kill();
/// broker.restart()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Kafka {
    folder: Folder,
    class_path: PathBuf,
    ports: Ports,
    /// `None` while it is stopped.
    server: Option<Running>,
    /// Set once the broker is to outlive this value.
    left_running: bool,
}

impl Kafka {
    /// Whether this machine can start one.
    pub fn installed() -> bool {
        class_path().is_some()
    }

    /// Starts a broker of its own and waits until it answers. Stops what dead owners have left below the same base.
    pub fn start(options: &StartOptions) -> Result<Self> {
        folder::reap(&options.base);
        let class_path = class_path().context(
            "Apache Kafka is not installed: no `java` on the PATH, or its jars are not in the cache \
             (`cargo xtask brokers up kafka` brings both)",
        )?;
        let mut attempt = 1;
        loop {
            match Self::try_start(&class_path, options) {
                Ok(broker) => return Ok(broker),
                Err(StartError::LostPort(_)) if attempt < ATTEMPTS => attempt += 1,
                Err(StartError::LostPort(error) | StartError::Other(error)) => return Err(error),
            }
        }
    }

    fn try_start(class_path: &Path, options: &StartOptions) -> Result<Self, StartError> {
        let ports = Ports::free()?;
        let folder = Folder::create(&options.base, KIND.name(), Origin::Native)?;
        // From here on dropping it leaves nothing behind.
        let class_path = class_path.to_path_buf();
        let mut broker = Self { folder, class_path, ports, server: None, left_running: false };
        let properties = setup::properties(broker.folder.path(), ports, &options.config);
        fs::write(broker.properties(), properties).context("cannot write the broker's configuration")?;
        setup::format(&broker.class_path, &broker.properties(), |id| broker.folder.add_process(id))?;
        broker.start_server()?;
        broker.folder.add_endpoint(&broker.exports(), Some(VERSION))?;
        Ok(broker)
    }

    /// `kafka://127.0.0.1:PORT`: no destination.
    pub fn url(&self) -> String {
        url(self.ports.broker)
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.ports.broker
    }

    /// The broker's version.
    pub fn version(&self) -> &str {
        VERSION
    }

    /// The broker's own folder: `server.properties`, `server.log`, `data/`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether the JVM runs (paused counts).
    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| server.ended().is_none())
    }

    /// SIGKILL. Returns when the process is gone; the data stays for [`restart`](Self::restart).
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// Stops it in good order (SIGTERM; SIGKILL after a minute). The data stays for [`restart`](Self::restart).
    pub fn stop(&mut self) {
        if let Some(server) = &mut self.server {
            // A paused one could not hear anything else.
            server.id().signal(Signal::CONT);
            server.id().signal(Signal::TERM);
            server.wait(STOP_TIMEOUT);
        }
        self.kill();
    }

    /// Starts it again with the same ports and data, and waits until it answers. Stops it first if it runs.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        match self.start_server() {
            Ok(()) => Ok(()),
            Err(StartError::LostPort(error) | StartError::Other(error)) => Err(error),
        }
    }

    /// Freezes it (SIGSTOP): connections stay open and nothing answers.
    pub fn pause(&self) {
        if let Some(server) = &self.server {
            server.id().signal(Signal::STOP);
        }
    }

    /// Lets it go on after [`pause`](Self::pause).
    pub fn resume(&self) {
        if let Some(server) = &self.server {
            server.id().signal(Signal::CONT);
        }
    }

    fn properties(&self) -> PathBuf {
        self.folder.path().join("server.properties")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    fn start_server(&mut self) -> Result<(), StartError> {
        let log = File::create(self.log_file()).context("cannot make the broker's log file")?;
        let mut command = setup::java(&self.class_path, "kafka.Kafka");
        command
            .arg(self.properties())
            .current_dir(self.folder.path())
            .stdout(log.try_clone().context("cannot share the broker's log file")?)
            .stderr(log);
        let mut server = process::spawn(&mut command, |id| self.folder.add_process(id))?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = server.ended() {
                let log = self.log();
                let error = anyhow!("Kafka ended while starting ({status}):\n{}", end_of(&log));
                let lost = log.contains("Address already in use");
                return Err(if lost { StartError::LostPort(error) } else { StartError::Other(error) });
            }
            // It answers a little before it has registered itself and can create topics.
            if self.log().contains("Kafka Server started")
                && probe::probe(&self.url(), Duration::from_secs(2)).is_ok()
            {
                self.server = Some(server);
                return Ok(());
            }
            if Instant::now() >= deadline {
                server.kill();
                let log = self.log();
                return Err(
                    anyhow!("Kafka did not answer within {START_TIMEOUT:?}:\n{}", end_of(&log)).into()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }
}

impl Drop for Kafka {
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

impl Started for Kafka {
    fn exports(&self) -> Vec<Export> {
        exports(self.ports.broker)
    }

    fn version(&self) -> &str {
        VERSION
    }

    fn leave_running(mut self: Box<Self>) -> Result<()> {
        self.folder.leave_running()?;
        self.left_running = true;
        Ok(())
    }
}

/// [`Kind`] for Kafka.
pub(crate) struct KafkaKind;

impl Kind for KafkaKind {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn endpoint_var(&self) -> &'static str {
        URL_VAR
    }

    fn vars(&self) -> &'static [&'static str] {
        &[URL_VAR]
    }

    fn installed(&self) -> bool {
        Kafka::installed()
    }

    fn install(&self, permission: Permission) -> Result<()> {
        setup::install(permission)
    }

    fn start(&self, base: &Path) -> Result<Box<dyn Started>> {
        let options = StartOptions { base: base.to_path_buf(), ..StartOptions::default() };
        Ok(Box::new(Kafka::start(&options)?))
    }

    fn compose_ports(&self) -> &'static [compose::Port] {
        &[compose::Port { variable: "THROUGHLINE_KAFKA_PORT" }]
    }

    fn compose_exports(&self, ports: &[u16]) -> Vec<Export> {
        ports.first().map(|port| exports(*port)).unwrap_or_default()
    }

    fn probe(&self, endpoint: &str, timeout: Duration) -> Result<Health> {
        probe::probe(endpoint, timeout).with_context(|| format!("no Kafka answers at {endpoint}"))
    }
}

fn url(port: u16) -> String {
    format!("kafka://127.0.0.1:{port}")
}

fn exports(port: u16) -> Vec<Export> {
    vec![(URL_VAR.to_owned(), url(port))]
}

/// What a person wants to see of a log that ends in a failure.
fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
}
