//! RabbitMQ: a private, native broker on loopback.
//!
//! It is started from the distribution's files but not by the distribution's service: as any user, with a folder, a
//! node name, ports and an `epmd` of its own, so that it neither sees nor disturbs a RabbitMQ that already runs here.

use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use self::probe::handshake;
use self::setup::{Ports, Programs, script_folders, start_epmd, write_config};
use crate::compose;
use crate::folder::{self, Folder, Origin};
use crate::install::{Package, Permission};
use crate::native::retried;
use crate::process::{self, ProcessId, Running, Signal, StartError};
use crate::{Export, Health, Kind, Started, base_folder, redacted};

mod probe;
mod setup;

/// The variable for the broker's AMQP URL, without a destination.
pub const URL_VAR: &str = "THROUGHLINE_RABBITMQ_URL";
/// The variable for the URL of the management plugin's HTTP API, user and password included.
pub const MANAGEMENT_URL_VAR: &str = "THROUGHLINE_RABBITMQ_MANAGEMENT_URL";

/// The kind, for [`crate::kinds`].
pub(crate) const KIND: RabbitMqKind = RabbitMqKind;

const PACKAGE: Package = Package {
    what: "RabbitMQ",
    why: "by the tests that talk to a real broker",
    debian: &["rabbitmq-server"],
    homebrew: &["rabbitmq"],
};

const NODE: &str = "r1@localhost";

/// About 6 s on an idle machine; compilers may keep both cores busy.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// A graceful stop writes what is in memory.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// `rabbitmqctl` is an Erlang VM of its own: 1–2 s to start.
const CTL_TIMEOUT: Duration = Duration::from_secs(60);

/// What a private broker is started with.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// The folder below which the broker's own folder is made.
    pub base: PathBuf,
    /// Further lines of `rabbitmq.conf`.
    pub config: String,
    /// Also listen for TLS, see [`RabbitMq::tls_url`].
    pub tls: Option<Tls>,
}

impl Default for StartOptions {
    fn default() -> Self {
        StartOptions { base: base_folder(), config: String::new(), tls: None }
    }
}

/// What a TLS listener needs: files in PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The authority that signed the broker's certificate, and that clients' ones are checked against.
    pub ca: PathBuf,
    /// The broker's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Whether a client without a certificate of that authority is turned away.
    pub require_client_certificate: bool,
}

/// A private broker. Dropping it kills it, its `epmd` too, and removes its folder.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// use throughline_brokers::{RabbitMq, StartOptions};
///
/// let mut broker = RabbitMq::start(&StartOptions::default())?;
/// println!("{} is {}", broker.url(), broker.version());
/// broker.sync_metadata()?; // after declaring a quorum queue, before a kill
/// broker.kill();
/// broker.restart()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RabbitMq {
    folder: Folder,
    programs: Programs,
    ports: Ports,
    version: String,
    epmd: Running,
    /// `None` while it is stopped.
    server: Option<Server>,
    /// Set once the broker is to outlive this value.
    left_running: bool,
}

#[derive(Debug)]
struct Server {
    /// The start script, whose group holds the Erlang VM.
    script: Running,
    /// The Erlang VM: the broker itself.
    vm: ProcessId,
}

impl RabbitMq {
    /// Whether this machine can start one.
    pub fn installed() -> bool {
        Programs::find().is_some()
    }

    /// Starts a broker of its own and waits until it answers. Stops what dead owners have left below the same base.
    pub fn start(options: &StartOptions) -> Result<RabbitMq> {
        folder::reap(&options.base);
        let programs = Programs::find().with_context(|| {
            format!(
                "RabbitMQ is not installed: no rabbitmq-server in {}, or no epmd",
                script_folders().join(", ")
            )
        })?;
        retried(|| RabbitMq::try_start(&programs, options))
    }

    fn try_start(programs: &Programs, options: &StartOptions) -> Result<RabbitMq, StartError> {
        let ports = Ports::free()?;
        let folder = Folder::create(&options.base, KIND.name(), Origin::Native)?;
        // From here on nothing may be left behind.
        let prepare = || -> Result<Running, StartError> {
            write_config(folder.path(), ports, options)?;
            start_epmd(programs, &folder, ports)
        };
        let epmd = match prepare() {
            Ok(epmd) => epmd,
            Err(error) => {
                folder.remove()?;
                return Err(error);
            }
        };
        let mut broker = RabbitMq {
            folder,
            programs: programs.clone(),
            ports,
            version: String::new(),
            epmd,
            server: None,
            left_running: false,
        };
        broker.start_server()?;
        let version = Some(broker.version.as_str());
        broker.folder.add_endpoint(&broker.exports(), version)?;
        Ok(broker)
    }

    /// `amqp://guest:guest@127.0.0.1:PORT/%2f`: no destination.
    pub fn url(&self) -> String {
        amqp_url(self.ports.amqp)
    }

    /// The same for the TLS listener, which is there if the options asked for it. The host is `localhost`, so that a
    /// certificate for that name fits.
    pub fn tls_url(&self) -> String {
        format!("amqps://guest:guest@localhost:{}/%2f", self.ports.tls)
    }

    /// The management plugin's HTTP API: `http://guest:guest@127.0.0.1:PORT`.
    pub fn management_url(&self) -> String {
        management_url(self.ports.management)
    }

    /// The port of the plain AMQP listener.
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// The broker's version, as it said itself.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The broker's own folder: `rabbitmq.conf`, `log/`, `mnesia/`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether the Erlang VM runs (paused counts).
    pub fn is_running(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.vm.is_alive())
    }

    /// SIGKILL. Returns when the process is gone; the data stays for [`restart`](RabbitMq::restart).
    ///
    /// A quorum or stream queue that was declared in the last seconds is lost with it, confirmed messages included:
    /// that is the broker's own flaw, see [`sync_metadata`](RabbitMq::sync_metadata).
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.vm.signal(Signal::KILL);
            server.script.kill();
            server.vm.wait_gone(Duration::from_secs(10));
        }
    }

    /// Stops it in good order (SIGTERM; SIGKILL after 30 s). The data stays for [`restart`](RabbitMq::restart).
    pub fn stop(&mut self) {
        if let Some(server) = &self.server {
            // A paused one could not hear anything else.
            server.vm.signal(Signal::CONT);
            server.vm.signal(Signal::TERM);
            server.vm.wait_gone(STOP_TIMEOUT);
        }
        self.kill();
    }

    /// Starts it again with the same ports, node name and data, and waits until it answers. Stops it first if it runs.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.start_server().map_err(Into::into)
    }

    /// Freezes it (SIGSTOP): connections stay open and nothing answers.
    pub fn pause(&self) {
        if let Some(server) = &self.server {
            server.vm.signal(Signal::STOP);
        }
    }

    /// Lets it go on after [`pause`](RabbitMq::pause).
    pub fn resume(&self) {
        if let Some(server) = &self.server {
            server.vm.signal(Signal::CONT);
        }
    }

    /// Writes the registration of every queue to disk.
    ///
    /// RabbitMQ does so by itself only some seconds after a declaration. A kill before that loses quorum and stream
    /// queues together with their confirmed messages; a test that declares and then kills calls this between the two.
    pub fn sync_metadata(&self) -> Result<()> {
        self.ctl(&["eval", "[dets:sync(T) || T <- dets:all()]."]).map(drop)
    }

    /// Runs `rabbitmqctl` against this broker and returns its output: `ctl(&["stop_app"])`.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command("rabbitmqctl");
        command.args(["--quiet", "--node", NODE]).args(arguments);
        process::output(&mut command, CTL_TIMEOUT)
            .with_context(|| format!("rabbitmqctl {}", arguments.join(" ")))
    }

    /// A script of the distribution, with the environment that makes it ours.
    fn command(&self, script: &str) -> Command {
        let folder = self.folder.path();
        let mut command = Command::new(self.programs.scripts.join(script));
        // The caller's own RabbitMQ or Erlang settings would make it another broker. With NOTIFY_SOCKET it would take
        // itself for a systemd service.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if ["RABBITMQ_", "ERL_", "ELIXIR_", "NOTIFY_SOCKET"].iter().any(|prefix| text.starts_with(prefix))
            {
                command.env_remove(&name);
            }
        }
        command
            .current_dir(folder)
            .env("HOME", folder.join("home"))
            .env("LC_ALL", "C.UTF-8")
            .env("RABBITMQ_NODENAME", NODE)
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
            // Not the machine's own, in /etc.
            .env("RABBITMQ_CONFIG_FILES", folder.join("conf.d"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
            .env("RABBITMQ_MNESIA_BASE", folder.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_PID_FILE", self.pid_file())
            .env("RABBITMQ_DIST_PORT", self.ports.distribution.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.ports.epmd.to_string())
            // No crash dump: nobody reads it, and it takes a second and megabytes.
            .env("ERL_CRASH_DUMP_SECONDS", "0")
            // Bound schedulers of two brokers would share one core and leave the others idle.
            .env("RABBITMQ_SCHEDULER_BIND_TYPE", "u")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", LOOPBACK_ONLY)
            .env("RABBITMQ_CTL_ERL_ARGS", LOOPBACK_ONLY);
        command
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.path().join("vm.pid")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log").join("server.out")
    }

    fn start_server(&mut self) -> Result<(), StartError> {
        // The one from last time would name a stranger.
        let _ = fs::remove_file(self.pid_file());
        let log = File::create(self.log_file()).context("cannot make the broker's log file")?;
        let mut command = self.command("rabbitmq-server");
        command.stdout(log.try_clone().context("cannot share the broker's log file")?).stderr(log);
        let script = process::spawn(&mut command, |id| self.folder.add_process(id))?;
        self.await_start(script)
    }

    fn await_start(&mut self, mut script: Running) -> Result<(), StartError> {
        let deadline = Instant::now() + START_TIMEOUT;
        let amqp = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.amqp));
        let management = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.management));
        let mut vm = None;
        loop {
            // As soon as it is known: until then only the script's process group leads to it.
            if vm.is_none() {
                vm = self.read_pid_file();
                if let Some(vm) = &vm {
                    self.folder.add_process(vm)?;
                }
            }
            if let Some(status) = script.ended() {
                let logs = self.logs();
                let error = anyhow!("RabbitMQ ended while starting ({status}):\n{}", excerpt(&logs));
                let lost =
                    logs.contains("eaddrinuse") || logs.to_lowercase().contains("address already in use");
                return Err(if lost { StartError::LostPort(error) } else { StartError::Other(error) });
            }
            if let Some(vm) = &vm {
                // Either may answer first.
                let answers = handshake(amqp, Duration::from_secs(2));
                if let Ok(version) = answers
                    && TcpStream::connect_timeout(&management, Duration::from_secs(1)).is_ok()
                {
                    self.version = version;
                    self.server = Some(Server { script, vm: vm.clone() });
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                script.kill();
                let logs = self.logs();
                let error = anyhow!("RabbitMQ did not answer within {START_TIMEOUT:?}:\n{}", excerpt(&logs));
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn read_pid_file(&self) -> Option<ProcessId> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        ProcessId::of(text.trim().parse().ok()?)
    }

    /// All that it wrote, before and after it had set up its own log.
    fn logs(&self) -> String {
        let node_log = self.folder.path().join("log").join(format!("{NODE}.log"));
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        read(&self.log_file()) + &read(&node_log)
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        if self.left_running {
            return;
        }
        self.kill();
        self.epmd.kill();
        if std::thread::panicking() {
            // The test that fails wants to know why; the next `reap` removes it.
            crate::say(&format!("the broker's log is in {}", self.folder.path().join("log").display()));
        } else if let Err(error) = self.folder.remove() {
            crate::say(&format!("warning: {error:#}"));
        }
    }
}

impl Started for RabbitMq {
    fn exports(&self) -> Vec<Export> {
        exports(self.ports.amqp, self.ports.management)
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn leave_running(mut self: Box<Self>) -> Result<()> {
        self.folder.leave_running()?;
        self.left_running = true;
        Ok(())
    }
}

/// [`Kind`] for RabbitMQ.
pub(crate) struct RabbitMqKind;

impl Kind for RabbitMqKind {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    fn endpoint_var(&self) -> &'static str {
        URL_VAR
    }

    fn vars(&self) -> &'static [&'static str] {
        &[URL_VAR, MANAGEMENT_URL_VAR]
    }

    fn installed(&self) -> bool {
        RabbitMq::installed()
    }

    fn install(&self, permission: Permission) -> Result<()> {
        PACKAGE.install(permission)
    }

    fn start(&self, base: &Path) -> Result<Box<dyn Started>> {
        let options = StartOptions { base: base.to_path_buf(), ..StartOptions::default() };
        Ok(Box::new(RabbitMq::start(&options)?))
    }

    fn compose_ports(&self) -> &'static [compose::Port] {
        &[
            compose::Port { variable: "THROUGHLINE_RABBITMQ_PORT" },
            compose::Port { variable: "THROUGHLINE_RABBITMQ_MANAGEMENT_PORT" },
        ]
    }

    fn compose_exports(&self, ports: &[u16]) -> Vec<Export> {
        match ports {
            [amqp, management, ..] => exports(*amqp, *management),
            _ => Vec::new(),
        }
    }

    fn probe(&self, endpoint: &str, timeout: Duration) -> Result<Health> {
        probe::probe(endpoint, timeout)
            .with_context(|| format!("no RabbitMQ answers at {}", redacted(endpoint)))
    }
}

fn amqp_url(port: u16) -> String {
    format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
}

fn management_url(port: u16) -> String {
    format!("http://guest:guest@127.0.0.1:{port}")
}

fn exports(amqp: u16, management: u16) -> Vec<Export> {
    vec![(URL_VAR.to_owned(), amqp_url(amqp)), (MANAGEMENT_URL_VAR.to_owned(), management_url(management))]
}

/// Erlang's own ports, between nodes and to `rabbitmqctl`, are loopback's too.
const LOOPBACK_ONLY: &str = "-kernel inet_dist_use_interface {127,0,0,1}";

/// What a person wants to see of a log that ends in a failure: the first errors, since Erlang repeats them at length;
/// or its end, if it names none.
fn excerpt(logs: &str) -> String {
    let lines = || logs.lines().filter(|line| !line.trim().is_empty());
    let errors: Vec<&str> = lines().filter(|line| line.contains("[error]")).take(15).collect();
    if !errors.is_empty() {
        return errors.join("\n");
    }
    let all: Vec<&str> = lines().collect();
    all.get(all.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_has_the_first_errors_or_the_end() {
        let boot: String = (0..30).map(|line| format!("line {line}\n\n")).collect();
        assert!(excerpt(&boot).starts_with("line 15\n") && excerpt(&boot).ends_with("line 29"));
        let errors: String = (0..30).map(|line| format!("12:00 [error] {line}\n")).collect();
        let text = excerpt(&(boot + &errors));
        assert!(text.starts_with("12:00 [error] 0\n") && text.ends_with("[error] 14"));
        assert_eq!(excerpt(""), "");
    }

    #[test]
    fn the_kind_gives_what_the_containers_publish() {
        let exports = KIND.compose_exports(&[1, 2]);
        assert_eq!(exports.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), KIND.vars());
        assert_eq!(exports[0].1, "amqp://guest:guest@127.0.0.1:1/%2f");
    }
}
