//! RabbitMQ: a private, native broker on loopback.
//!
//! It is started from the distribution's files but not by the distribution's service: as any user, with a folder, a
//! node name, ports and an `epmd` of its own, so that it neither sees nor disturbs a RabbitMQ that already runs here.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::compose;
use crate::folder::{self, Folder, Origin};
use crate::install::{Package, find_program};
use crate::process::{self, ProcessId, Running, Signal};
use crate::{Export, Health, Kind, Started, base_folder, ports, redacted};

/// The variable for the broker's AMQP URL, without a destination.
pub const URL_VAR: &str = "THROUGHLINE_RABBITMQ_URL";
/// The variable for the URL of the management plugin's HTTP API, user and password included.
pub const MANAGEMENT_URL_VAR: &str = "THROUGHLINE_RABBITMQ_MANAGEMENT_URL";

/// The kind, for [`crate::kinds`].
pub(crate) const KIND: RabbitMqKind = RabbitMqKind;

const NODE: &str = "r1@localhost";

/// About 6 s on an idle machine; compilers may keep both cores busy.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// A graceful stop writes what is in memory.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// `rabbitmqctl` is an Erlang VM of its own: 1–2 s to start.
const CTL_TIMEOUT: Duration = Duration::from_secs(60);
/// How many times a lost race for a port is run again.
const ATTEMPTS: usize = 4;

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

#[derive(Clone, Debug)]
struct Programs {
    /// The folder of `rabbitmq-server` and `rabbitmqctl`.
    scripts: PathBuf,
    epmd: PathBuf,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    amqp: u16,
    management: u16,
    distribution: u16,
    epmd: u16,
    tls: u16,
}

/// Why a start failed, as far as the next step depends on it.
enum StartError {
    /// Somebody took one of the ports between our look and the broker's bind.
    LostPort(anyhow::Error),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for StartError {
    fn from(error: anyhow::Error) -> Self {
        StartError::Other(error)
    }
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
        let mut attempt = 1;
        loop {
            match RabbitMq::try_start(&programs, options) {
                Ok(broker) => return Ok(broker),
                Err(StartError::LostPort(_)) if attempt < ATTEMPTS => attempt += 1,
                Err(StartError::LostPort(error) | StartError::Other(error)) => return Err(error),
            }
        }
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
        match self.start_server() {
            Ok(()) => Ok(()),
            Err(StartError::LostPort(error) | StartError::Other(error)) => Err(error),
        }
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

    fn package(&self) -> &'static Package {
        &Package {
            what: "RabbitMQ",
            why: "by the tests that talk to a real broker",
            debian: &["rabbitmq-server"],
            homebrew: &["rabbitmq"],
        }
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
        probe(endpoint, timeout).with_context(|| format!("no RabbitMQ answers at {}", redacted(endpoint)))
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

impl Programs {
    fn find() -> Option<Programs> {
        let scripts = script_folders().into_iter().map(PathBuf::from).find(|folder| {
            folder.join("rabbitmq-server").is_file() && folder.join("rabbitmqctl").is_file()
        })?;
        Some(Programs { scripts, epmd: find_program("epmd")? })
    }
}

/// Where the plain scripts are. Not the `PATH`: Debian has wrappers there that insist on its own user and service.
fn script_folders() -> Vec<String> {
    let mut folders: Vec<String> = env::var("THROUGHLINE_RABBITMQ_SCRIPTS").into_iter().collect();
    let known = ["/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin"];
    folders.extend(known.map(str::to_owned));
    folders
}

impl Ports {
    fn free() -> Result<Ports> {
        match ports::free(5)?[..] {
            [amqp, management, distribution, epmd, tls] => {
                Ok(Ports { amqp, management, distribution, epmd, tls })
            }
            _ => bail!("the wrong number of ports"),
        }
    }
}

fn write_config(folder: &Path, ports: Ports, options: &StartOptions) -> Result<()> {
    let mut config = format!(
        "listeners.tcp.1 = 127.0.0.1:{}\n\
         management.tcp.ip = 127.0.0.1\n\
         management.tcp.port = {}\n\
         # A nearly full disk is not what the tests are about.\n\
         disk_free_limit.absolute = 50MB\n\
         # What the management API tells is at most a second old.\n\
         collect_statistics_interval = 1000\n",
        ports.amqp, ports.management
    );
    if let Some(tls) = &options.tls {
        config.push_str(&format!(
            "listeners.ssl.1 = 127.0.0.1:{}\n\
             ssl_options.cacertfile = {}\n\
             ssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\n\
             ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = {}\n",
            ports.tls,
            tls.ca.display(),
            tls.certificate.display(),
            tls.key.display(),
            tls.require_client_certificate,
        ));
    }
    config.push_str(&options.config);
    config.push('\n');
    let write = || -> std::io::Result<()> {
        for name in ["home", "log", "mnesia", "conf.d"] {
            fs::create_dir(folder.join(name))?;
        }
        fs::write(folder.join("rabbitmq.conf"), config)?;
        fs::write(folder.join("plugins"), "[rabbitmq_management].\n")
    };
    write().with_context(|| format!("cannot write the broker's configuration to {}", folder.display()))
}

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

/// Erlang's port mapper. Started by us and not by Erlang, which would make a daemon of it that belongs to nobody.
fn start_epmd(programs: &Programs, folder: &Folder, ports: Ports) -> Result<Running, StartError> {
    let log_path = folder.path().join("log").join("epmd.out");
    let log = File::create(&log_path).context("cannot make epmd's log file")?;
    let mut command = Command::new(&programs.epmd);
    command
        .args(["-address", "127.0.0.1", "-port", &ports.epmd.to_string()])
        .current_dir(folder.path())
        .stdout(log.try_clone().context("cannot share epmd's log file")?)
        .stderr(log);
    let mut epmd = process::spawn(&mut command, |id| folder.add_process(id))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.epmd));
    let mut ended = false;
    let answers = process::wait_until(Duration::from_secs(20), || {
        ended = epmd.ended().is_some();
        ended || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
    });
    if answers && !ended {
        return Ok(epmd);
    }
    epmd.kill();
    let log = fs::read_to_string(log_path).unwrap_or_default();
    let error = anyhow!("epmd does not answer on 127.0.0.1:{}: {}", ports.epmd, log.trim());
    // It has nothing else to fail on.
    Err(if ended { StartError::LostPort(error) } else { StartError::Other(error) })
}

/// Asks the broker behind an AMQP URL for its version.
fn probe(url: &str, timeout: Duration) -> Result<Health> {
    let (tls, rest) = match url.split_once("://") {
        Some(("amqp", rest)) => (false, rest),
        Some(("amqps", rest)) => (true, rest),
        _ => bail!("`{}` is not an amqp:// or amqps:// URL", redacted(url)),
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    // The port is what follows the last colon, unless that colon is within the brackets of an IPv6 address.
    let (host, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => {
            (name, port.parse().context("its port is not a number")?)
        }
        _ => (host, if tls { 5671 } else { 5672 }),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut failure = None;
    for address in (host, port).to_socket_addrs().with_context(|| format!("`{host}` cannot be resolved"))? {
        let answer = if tls {
            // Whoever accepts is all that can be told without speaking TLS.
            TcpStream::connect_timeout(&address, timeout).map(|_| None).map_err(Into::into)
        } else {
            handshake(address, timeout).map(Some)
        };
        match answer {
            Ok(version) => return Ok(Health { version }),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.with_context(|| format!("`{host}` has no address"))?)
}

/// Opens AMQP, far enough for the broker to introduce itself, and returns its version.
fn handshake(address: SocketAddr, timeout: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(b"AMQP\0\0\x09\x01")?;
    let mut header = [0; 7];
    stream.read_exact(&mut header).context("it accepts connections and says nothing")?;
    let [1, 0, 0, size @ ..] = header else { bail!("it does not speak AMQP 0-9-1") };
    let size = usize::try_from(u32::from_be_bytes(size))?;
    // Connection.Start is a few hundred bytes.
    if size > 64 * 1024 {
        bail!("it does not speak AMQP 0-9-1");
    }
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload)?;
    if !payload.starts_with(&[0, 10, 0, 10]) {
        bail!("it does not speak AMQP 0-9-1");
    }
    Ok(server_version(&payload).unwrap_or_else(|| "unknown".to_owned()))
}

/// The `version` among the server properties of a Connection.Start: name, type `S`, length, text.
fn server_version(payload: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\x07versionS";
    let start = payload.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let (length, rest) = payload.get(start..)?.split_at_checked(4)?;
    let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
    String::from_utf8(rest.get(..length)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_version_is_found_among_the_server_properties() {
        let payload =
            b"\0\x0a\0\x0a\0\x09\0\0\0\x20\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.10.8";
        assert_eq!(server_version(payload).as_deref(), Some("3.10.8"));
        assert_eq!(server_version(b"\x07versionS\0\0\0\xff3"), None);
        assert_eq!(server_version(b"\x07versionS\0"), None);
        assert_eq!(server_version(b""), None);
    }

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
    fn a_probe_says_what_is_wrong() {
        let wrong = |url: &str| format!("{:#}", KIND.probe(url, Duration::from_millis(500)).unwrap_err());
        assert!(wrong("kafka://h:1").contains("not an amqp://"));
        assert!(wrong("amqp://u:secret@h:port").contains("not a number"));
        assert!(!wrong("amqp://u:secret@127.0.0.1:1").contains("secret"));

        // Accepts, and speaks something else.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("amqp://u:p@127.0.0.1:{}/%2f", listener.local_addr().unwrap().port());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            // Until the client has read it.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        assert!(wrong(&url).contains("does not speak AMQP"));
        server.join().unwrap();
    }

    #[test]
    fn the_kind_gives_what_the_containers_publish() {
        let exports = KIND.compose_exports(&[1, 2]);
        assert_eq!(exports.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), KIND.vars());
        assert_eq!(exports[0].1, "amqp://guest:guest@127.0.0.1:1/%2f");
    }
}
