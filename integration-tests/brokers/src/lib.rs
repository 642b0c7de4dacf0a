//! How each real broker is found, installed, started and stopped for Throughline's own tests.
//!
//! Two callers share it: `cargo xtask`, which brings one broker of each kind up for a whole run, and the integration
//! tests that must kill, pause or restart a broker, and so each start a private one.
//!
//! Each kind of broker is one file and one line in [`kinds`]. What they share:
//!
//! - [`process`]: processes pinned by pid *and* start time, in groups of their own;
//! - [`folder`]: one folder a broker with its data, its logs and a record of what runs, so that whoever comes next can
//!   stop what a killed run left behind;
//! - [`ports`]: free loopback ports; [`compose`]: the same brokers as containers; [`install`]: packages;
//! - [`python`]: Pythons with packages: the foreign clients that the interoperability tests speak to, the AWS emulators.
//!
//! Everything listens on loopback only. Nothing here touches a broker that it did not start.
//!
//! Unix only: it stands on process groups and signals.

use std::env;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

pub mod aws;
pub mod browser;
pub mod compose;
pub mod folder;
mod http;
pub mod install;
pub mod kafka;
mod native;
pub mod ports;
pub mod process;
pub mod python;
pub mod rabbitmq;

pub use aws::Aws;
pub use folder::{Origin, Record, reap, stop_everything_of_this_process};
pub use install::{NotInstalled, Package, Permission};
pub use kafka::Kafka;
pub use rabbitmq::{RabbitMq, StartOptions};

/// One environment variable for the tests: name and value.
pub type Export = (String, String);

/// The variable that names the Python executable which can import the foreign clients ([`python::with_clients`]).
pub const PYTHON_VAR: &str = "THROUGHLINE_PYTHON";

/// The variable that names the browser which the tests of our pages open them in ([`browser::chromium`]).
pub const BROWSER_VAR: &str = "THROUGHLINE_CHROMIUM";

/// The variable that names the file to which [`skip`] writes.
pub const SKIP_LOG_VAR: &str = "THROUGHLINE_SKIP_LOG";

/// The variable that names the file to which [`measured`] writes.
pub const MEASURED_LOG_VAR: &str = "THROUGHLINE_MEASURED_LOG";

/// What `cargo xtask` must know about a kind of broker, to bring one up for a whole run.
pub trait Kind: Sync {
    /// Its name, which is also its Compose service's.
    fn name(&self) -> &'static str;
    /// Whether a transport talks to it: the one of its own name, unless it says otherwise.
    fn serves(&self, transport: &str) -> bool {
        transport == self.name()
    }
    /// The variable that carries the endpoint; if the caller has set it, it is used as it is.
    fn endpoint_var(&self) -> &'static str;
    /// Every variable that the tests may get, the endpoint's included.
    fn vars(&self) -> &'static [&'static str];
    /// Whether this machine can start a native one.
    fn installed(&self) -> bool;
    /// Makes it [`installed`](Kind::installed), or says with [`NotInstalled`] why not and how to.
    fn install(&self, permission: Permission) -> Result<()>;
    /// Starts a native one below `base` and waits until it answers.
    fn start(&self, base: &Path) -> Result<Box<dyn Started>>;
    /// The ports that the Compose service publishes.
    fn compose_ports(&self) -> &'static [compose::Port];
    /// What the tests get for a container with these host ports, in the order of [`compose_ports`](Kind::compose_ports).
    fn compose_exports(&self, ports: &[u16]) -> Vec<Export>;
    /// Asks whoever answers at `endpoint` for its version.
    fn probe(&self, endpoint: &str, timeout: Duration) -> Result<Health>;
}

/// A broker that was started here. Dropping it stops it, unless it was left to run.
pub trait Started: Send {
    /// What the tests get.
    fn exports(&self) -> Vec<Export>;
    /// The broker's version, as it says itself.
    fn version(&self) -> &str;
    /// Lets it outlive this process: only `cargo xtask brokers down` stops it then.
    fn leave_running(self: Box<Self>) -> Result<()>;
}

/// What a broker answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Its version, where the way it was asked can tell.
    pub version: Option<String>,
}

/// Every kind of broker there is.
pub fn kinds() -> &'static [&'static dyn Kind] {
    &[&rabbitmq::KIND, &kafka::KIND, &aws::KIND]
}

/// The kind with this name.
pub fn kind(name: &str) -> Option<&'static dyn Kind> {
    kinds().iter().copied().find(|kind| kind.name() == name)
}

/// Where this checkout's brokers keep their folders: below the user's cache, so that it survives a cleared target
/// folder and is the same for xtask and for every test.
pub fn base_folder() -> PathBuf {
    let checkout = checkout();
    cache_folder().join("brokers").join(format!("{:016x}", fnv1a(checkout.as_os_str().as_encoded_bytes())))
}

/// Throughline's own folder in the user's cache (`$XDG_CACHE_HOME`, else `~/.cache`, else the temporary folder).
pub fn cache_folder() -> PathBuf {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache"))).map_or_else(
        // Without a home there is only the shared temporary folder: keep users apart.
        || env::temp_dir().join(format!("throughline-{}", rustix::process::getuid().as_raw())),
        |cache| cache.join("throughline"),
    )
}

/// The checkout that this crate was compiled in.
pub fn checkout() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).unwrap_or(here);
    root.canonicalize().unwrap_or_else(|_| root.to_path_buf())
}

/// The same on every toolchain, which std's own hasher does not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// `url` with its password masked: for everything that a person or a log sees.
pub fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_end);
    match authority.rsplit_once('@') {
        Some((user_info, host)) => {
            let user = user_info.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:***@{host}{tail}")
        }
        None => url.to_owned(),
    }
}

/// For a test that finds it cannot run here, just before it returns: `cargo xtask test` counts it as skipped and not as
/// passed, names the reason at the end, and fails for it in CI.
///
/// ```
/// # fn main() {
/// if !throughline_brokers::RabbitMq::installed() {
///     return throughline_brokers::skip("restart::survives_a_kill", "RabbitMQ is not installed");
/// }
/// # }
/// ```
pub fn skip(test: &str, reason: &str) {
    say(&format!("SKIPPED {test}: {reason}"));
    note(SKIP_LOG_VAR, test, reason);
}

/// For a test that has counted or timed something worth reading although it passed: `cargo xtask test` shows it at the
/// end.
pub fn measured(test: &str, text: &str) {
    say(&format!("{test}: {text}"));
    note(MEASURED_LOG_VAR, test, text);
}

/// Appends to the log that the variable names, if it names one.
fn note(variable: &str, test: &str, text: &str) {
    let Some(log) = env::var_os(variable) else { return };
    let line = format!("{test}\t{}\n", text.trim().replace('\n', "; "));
    let written = OpenOptions::new().create(true).append(true).open(&log).and_then(|mut log| {
        use std::io::Write;
        // One write: other tests append at the same time.
        log.write_all(line.as_bytes())
    });
    if let Err(error) = written {
        say(&format!("warning: cannot write to {}: {error}", log.display()));
    }
}

/// One line of progress. On stderr, since stdout may be read by a program.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    // Nobody to tell is no reason to stop.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked() {
        assert_eq!(redacted("amqp://guest:guest@127.0.0.1:5672/%2f"), "amqp://guest:***@127.0.0.1:5672/%2f");
        assert_eq!(redacted("amqp://u:p@ss@h/v?x=a@b"), "amqp://u:***@h/v?x=a@b");
        assert_eq!(redacted("http://127.0.0.1:15672"), "http://127.0.0.1:15672");
        assert_eq!(redacted("not a url"), "not a url");
    }

    #[test]
    fn the_hash_is_fnv1a() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn kinds_are_found_by_name() {
        assert_eq!(kind("rabbitmq").map(|kind| kind.endpoint_var()), Some("THROUGHLINE_RABBITMQ_URL"));
        assert!(kind("carrier-pigeon").is_none());
    }
}
