//! Apache Kafka: a private, native broker on loopback.
//!
//! One JVM that is broker and controller (KRaft), from the published jars, with a folder and ports of its own.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use self::setup::{Ports, VERSION, class_path};
use crate::folder;
use crate::install::Permission;
use crate::native::{Native, retried};
use crate::process::StartError;
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
/// What a private broker is started with.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// The folder below which the broker's own folder is made.
    pub base: PathBuf,
    /// Further lines of `server.properties`.
    pub config: String,
    /// A second listener, for clients that must encrypt and say who they are.
    pub secure: Option<Secure>,
}

/// A listener of the protocol SASL_SSL, with the mechanisms PLAIN and SCRAM-SHA-512, for one user.
#[derive(Clone)]
pub struct Secure {
    /// The listener's certificate, and those that it is signed by, as PEM.
    pub certificates: String,
    /// Its key, PKCS #8 as PEM.
    pub key: String,
    /// The user's name.
    pub user: String,
    /// The user's password, by either mechanism.
    pub password: String,
}

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secure").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Default for StartOptions {
    fn default() -> Self {
        Self { base: base_folder(), config: String::new(), secure: None }
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
    native: Native,
    class_path: PathBuf,
    ports: Ports,
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
        retried(|| Self::try_start(&class_path, options))
    }

    fn try_start(class_path: &Path, options: &StartOptions) -> Result<Self, StartError> {
        let ports = Ports::free()?;
        let mut native = Native::create(&options.base, KIND.name())?;
        let mut properties = setup::properties(native.folder(), ports, &options.config);
        if let Some(secure) = &options.secure {
            properties.push_str(&setup::secure_properties(ports, secure));
        }
        fs::write(properties_file(&native), properties).context("cannot write the broker's configuration")?;
        setup::format(class_path, &properties_file(&native), options.secure.as_ref(), |id| {
            native.record(id)
        })?;
        native.add_endpoint(&exports(ports.broker), VERSION)?;
        let mut broker = Self { native, class_path: class_path.to_path_buf(), ports };
        broker.start_server()?;
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

    /// `127.0.0.1:PORT` of the listener that was asked for by [`StartOptions::secure`].
    pub fn secure_broker(&self) -> String {
        format!("127.0.0.1:{}", self.ports.secure)
    }

    /// The broker's version.
    pub fn version(&self) -> &str {
        VERSION
    }

    /// The broker's own folder: `server.properties`, `server.log`, `data/`.
    pub fn folder(&self) -> &Path {
        self.native.folder()
    }

    /// Whether the JVM runs (paused counts).
    pub fn is_running(&mut self) -> bool {
        self.native.is_running()
    }

    /// SIGKILL. Returns when the process is gone; the data stays for [`restart`](Self::restart).
    pub fn kill(&mut self) {
        self.native.kill();
    }

    /// Stops it in good order (SIGTERM; SIGKILL after a minute). The data stays for [`restart`](Self::restart).
    pub fn stop(&mut self) {
        self.native.stop(STOP_TIMEOUT);
    }

    /// Starts it again with the same ports and data, and waits until it answers. Stops it first if it runs.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.start_server().map_err(Into::into)
    }

    /// Freezes it (SIGSTOP): connections stay open and nothing answers.
    pub fn pause(&self) {
        self.native.pause();
    }

    /// Lets it go on after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.native.resume();
    }

    fn start_server(&mut self) -> Result<(), StartError> {
        let mut command = setup::java(&self.class_path, "kafka.Kafka");
        command.arg(properties_file(&self.native));
        let url = self.url();
        // It answers a little before it has registered itself and can create topics.
        let ready = |log: &str| {
            log.contains("Kafka Server started") && probe::probe(&url, Duration::from_secs(2)).is_ok()
        };
        self.native.start_server("Kafka", command, START_TIMEOUT, ready)
    }
}

fn properties_file(native: &Native) -> PathBuf {
    native.folder().join("server.properties")
}

impl Started for Kafka {
    fn exports(&self) -> Vec<Export> {
        exports(self.ports.broker)
    }

    fn version(&self) -> &str {
        VERSION
    }

    fn leave_running(self: Box<Self>) -> Result<()> {
        self.native.leave_running()
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
