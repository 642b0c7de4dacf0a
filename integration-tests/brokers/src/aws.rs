//! SQS, SNS and EventBridge: an emulator over HTTP on loopback.
//!
//! Ministack for daily work; it forgets everything when it ends. Roto keeps queues on disk: for tests that kill it. Both
//! come from the Python package index.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::folder;
use crate::install::Permission;
use crate::native::{Native, retried};
use crate::process::StartError;
use crate::python::Environment;
use crate::{Export, Health, Kind, Started, base_folder, compose, http, ports};

/// The variable for the emulator's address: `http://HOST:PORT`.
pub const ENDPOINT_VAR: &str = "THROUGHLINE_AWS_ENDPOINT";

/// The kind, for [`crate::kinds`].
pub(crate) const KIND: AwsKind = AwsKind;

/// Two seconds on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// What is in memory is written.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

const MINISTACK: Environment =
    Environment { name: "ministack", requirements: &["ministack==1.5.33"], check: "import ministack.app" };

const ROTO: Environment = Environment {
    name: "roto",
    requirements: &["roto-aws==0.10.1"],
    check: "import importlib.metadata as m; m.version('roto-aws')",
};

/// Which emulator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Emulator {
    /// SQS, SNS, EventBridge; in memory.
    #[default]
    Ministack,
    /// SQS and SNS; on disk.
    Roto,
}

impl Emulator {
    fn environment(self) -> &'static Environment {
        match self {
            Self::Ministack => &MINISTACK,
            Self::Roto => &ROTO,
        }
    }

    fn version(self) -> String {
        self.environment().requirements.join(" ").replace("==", " ")
    }

    /// What answers once it is up.
    fn health_path(self) -> &'static str {
        match self {
            Self::Ministack => "/_ministack/health",
            Self::Roto => "/",
        }
    }

    fn command(self, python: &Path, port: u16, data: &Path) -> Command {
        match self {
            Self::Ministack => {
                let mut command = Command::new(python);
                command
                    .args(["-m", "ministack"])
                    .env("IOT_MTLS_ENABLED", "0")
                    .env("BIND_HOST", "127.0.0.1")
                    .env("GATEWAY_PORT", port.to_string());
                command
            }
            Self::Roto => {
                let beside = |folder: &str| {
                    python.ancestors().nth(2).map(|home| home.join(folder).join("roto-server"))
                };
                // In a virtual environment beside Python, else beside the packages.
                let program =
                    [beside("bin"), beside("packages/bin")].into_iter().flatten().find(|path| path.exists());
                let mut command = Command::new(program.unwrap_or_else(|| PathBuf::from("roto-server")));
                command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--data-dir"]).arg(data);
                command
            }
        }
    }
}

/// What a private emulator is started with.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// The folder below which the emulator's own folder is made.
    pub base: PathBuf,
    /// Which one.
    pub emulator: Emulator,
}

impl Default for StartOptions {
    fn default() -> Self {
        Self { base: base_folder(), emulator: Emulator::default() }
    }
}

/// A private emulator. Dropping it kills it and removes its folder.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// use throughline_brokers::Aws;
/// use throughline_brokers::aws::{Emulator, StartOptions};
///
/// let options = StartOptions { emulator: Emulator::Roto, ..StartOptions::default() };
/// let mut aws = Aws::start(&options)?;
/// println!("{} answers at {}", aws.version(), aws.endpoint());
/// aws.kill();
/// aws.restart()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Aws {
    native: Native,
    emulator: Emulator,
    python: PathBuf,
    port: u16,
    version: String,
}

impl Aws {
    /// Whether this machine can start this one.
    pub fn installed(emulator: Emulator) -> bool {
        emulator.environment().made().is_some()
    }

    /// Starts an emulator of its own and waits until it answers. Stops what dead owners have left below the same base.
    pub fn start(options: &StartOptions) -> Result<Self> {
        folder::reap(&options.base);
        let emulator = options.emulator;
        let python = emulator.environment().made().with_context(|| {
            format!("{} is not installed (`cargo xtask brokers up aws` brings it)", emulator.version())
        })?;
        retried(|| Self::try_start(&python, options))
    }

    fn try_start(python: &Path, options: &StartOptions) -> Result<Self, StartError> {
        let [port] = ports::free(1)?[..] else {
            return Err(anyhow::anyhow!("the wrong number of ports").into());
        };
        let emulator = options.emulator;
        let mut native = Native::create(&options.base, KIND.name())?;
        native.add_endpoint(&exports(port), &emulator.version())?;
        let mut aws =
            Self { native, emulator, python: python.to_path_buf(), port, version: emulator.version() };
        aws.start_server()?;
        Ok(aws)
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        endpoint(self.port)
    }

    /// Which emulator, and its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// SIGKILL. Returns when the process is gone; what is on disk stays for [`restart`](Self::restart).
    pub fn kill(&mut self) {
        self.native.kill();
    }

    /// Stops it in good order. What is on disk stays for [`restart`](Self::restart).
    pub fn stop(&mut self) {
        self.native.stop(STOP_TIMEOUT);
    }

    /// Starts it again with the same port and data, and waits until it answers. Stops it first if it runs.
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
        let command = self.emulator.command(&self.python, self.port, &self.native.folder().join("data"));
        let url = format!("{}{}", self.endpoint(), self.emulator.health_path());
        let ready = |_: &str| http::get(&url, Duration::from_secs(2)).is_ok();
        self.native.start_server("the AWS emulator", command, START_TIMEOUT, ready)
    }
}

impl Started for Aws {
    fn exports(&self) -> Vec<Export> {
        exports(self.port)
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn leave_running(self: Box<Self>) -> Result<()> {
        self.native.leave_running()
    }
}

/// [`Kind`] for the AWS emulator.
pub(crate) struct AwsKind;

impl Kind for AwsKind {
    fn name(&self) -> &'static str {
        "aws"
    }

    fn serves(&self, transport: &str) -> bool {
        ["sqs", "sns", "eventbridge"].contains(&transport)
    }

    fn endpoint_var(&self) -> &'static str {
        ENDPOINT_VAR
    }

    fn vars(&self) -> &'static [&'static str] {
        &[ENDPOINT_VAR]
    }

    fn installed(&self) -> bool {
        Aws::installed(Emulator::Ministack) && Aws::installed(Emulator::Roto)
    }

    fn install(&self, permission: Permission) -> Result<()> {
        for emulator in [Emulator::Ministack, Emulator::Roto] {
            emulator.environment().python(permission)?;
        }
        Ok(())
    }

    fn start(&self, base: &Path) -> Result<Box<dyn Started>> {
        let options = StartOptions { base: base.to_path_buf(), ..StartOptions::default() };
        Ok(Box::new(Aws::start(&options)?))
    }

    fn compose_ports(&self) -> &'static [compose::Port] {
        &[compose::Port { variable: "THROUGHLINE_AWS_PORT" }]
    }

    fn compose_exports(&self, ports: &[u16]) -> Vec<Export> {
        ports.first().map(|port| exports(*port)).unwrap_or_default()
    }

    fn probe(&self, endpoint: &str, timeout: Duration) -> Result<Health> {
        // An emulator says what it is; whatever else speaks HTTP may be another one.
        let body = http::get(&format!("{}/_ministack/health", endpoint.trim_end_matches('/')), timeout)
            .with_context(|| format!("no AWS emulator answers at {endpoint}"))?;
        Ok(Health { version: version_in(&body) })
    }
}

/// The version in a health answer, which is JSON.
fn version_in(body: &str) -> Option<String> {
    let (_, rest) = body.split_once("\"version\"")?;
    rest.split('"').nth(1).map(|version| format!("ministack {version}"))
}

fn endpoint(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn exports(port: u16) -> Vec<Export> {
    vec![(ENDPOINT_VAR.to_owned(), endpoint(port))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_health_answer() {
        let body = r#"{"services": {"sqs": "available"}, "edition": "light", "version": "1.5.33", "x": 1}"#;
        assert_eq!(version_in(body).as_deref(), Some("ministack 1.5.33"));
        assert_eq!(version_in("<html>"), None);
    }
}
