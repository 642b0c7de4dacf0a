//! `cargo xtask brokers up|down|status`, and where a broker comes from.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use throughline_brokers as tb;
use throughline_brokers::{Export, Kind, Origin, Permission};

use crate::{Outcome, child, in_ci, shell};

const COMPOSE_FILE: &str = "docker-compose.yml";

/// How long a broker that should be up may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A broker that the tests can use.
pub(crate) struct Provided {
    pub(crate) kind: &'static dyn Kind,
    pub(crate) origin: Origin,
    pub(crate) exports: Vec<Export>,
    pub(crate) version: String,
    /// Ours to stop, by dropping it.
    started: Option<Box<dyn tb::Started>>,
}

impl Provided {
    fn found(
        kind: &'static dyn Kind,
        origin: Origin,
        exports: Vec<Export>,
        version: Option<String>,
    ) -> Provided {
        let version = version.unwrap_or_else(|| "of unknown version".to_owned());
        Provided { kind, origin, exports, version, started: None }
    }

    fn started(kind: &'static dyn Kind, origin: Origin, started: Box<dyn tb::Started>) -> Provided {
        let (exports, version) = (started.exports(), started.version().to_owned());
        Provided { kind, origin, exports, version, started: Some(started) }
    }
}

impl fmt::Display for Provided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.kind.name(), self.version, self.origin.as_str())
    }
}

/// A broker was named and does not answer.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    variable: &'static str,
    problem: String,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NoAnswer { variable, problem } = self;
        write!(f, "{variable} is set, but {problem}; start it, or run `unset {variable}` to have one started")
    }
}

impl std::error::Error for NoAnswer {}

/// Brings one broker up, or finds the one that is up: the environment's, `brokers up`'s, Compose's, a native one.
pub(crate) fn provide(
    kind: &'static dyn Kind,
    permission: Permission,
    base: &Path,
    checkout: &Path,
) -> Result<Provided> {
    if let Some(endpoint) = given(kind.endpoint_var()) {
        let health = kind
            .probe(&endpoint, PROBE_TIMEOUT)
            .map_err(|error| NoAnswer { variable: kind.endpoint_var(), problem: format!("{error:#}") })?;
        let exports =
            kind.vars().iter().filter_map(|name| Some(((*name).to_owned(), given(name)?))).collect();
        let origin = left_running(kind, base)
            .filter(|(_, record)| record.exports.iter().any(|(_, value)| *value == endpoint))
            .and_then(|(_, record)| record.origin);
        return Ok(Provided::found(kind, origin.unwrap_or(Origin::Environment), exports, health.version));
    }
    if let Some((folder, record)) = left_running(kind, base) {
        let endpoint = endpoint(kind, &record.exports);
        if let Ok(health) = kind.probe(&endpoint, PROBE_TIMEOUT) {
            return Ok(Provided::found(
                kind,
                record.origin.unwrap_or(Origin::Native),
                record.exports,
                health.version,
            ));
        }
        eprintln!("{} was left running and no longer answers: starting another", kind.name());
        tb::folder::stop(&folder)?;
    }
    if tb::compose::available() {
        eprintln!("starting {} with Docker Compose …", kind.name());
        match tb::compose::up(kind, &checkout.join(COMPOSE_FILE), base) {
            Ok(started) => return Ok(Provided::started(kind, Origin::Compose, started)),
            Err(error) => {
                // An interrupt may be why.
                child::wait_if_interrupted();
                eprintln!("warning: {error:#}; trying a native one");
            }
        }
    }
    if !kind.installed() {
        kind.install(permission)?;
    }
    eprintln!("starting {} …", kind.name());
    Ok(Provided::started(kind, Origin::Native, kind.start(base)?))
}

/// The Python with the foreign clients, for the tests.
pub(crate) fn python(permission: Permission) -> Result<Export> {
    let path = tb::python::with_clients(permission)?;
    Ok((tb::PYTHON_VAR.to_owned(), path.display().to_string()))
}

/// The browser that tests open our pages in.
pub(crate) fn browser(permission: Permission) -> Result<Export> {
    let path = tb::browser::chromium(permission)?;
    Ok((tb::BROWSER_VAR.to_owned(), path.display().to_string()))
}

pub(crate) fn up(names: &[String], permission: Permission, base: &Path, checkout: &Path) -> Result<Outcome> {
    // Two at once would each start their own.
    let _lock = tb::folder::lock(base, "up.lock")?;
    tb::reap(base);
    let wanted = |kind: &&'static dyn Kind| names.is_empty() || names.iter().any(|name| name == kind.name());
    let mut provided = Vec::new();
    for kind in tb::kinds().iter().copied().filter(wanted) {
        // An error drops, and so stops, those that are up by then.
        let broker = provide(kind, permission, base, checkout)?;
        eprintln!("{broker} is up");
        provided.push(broker);
    }
    let mut exports: BTreeMap<String, String> = BTreeMap::new();
    match python(permission) {
        Ok((name, value)) => drop(exports.insert(name, value)),
        Err(error) if in_ci() => return Err(error),
        // The brokers are what was asked for.
        Err(error) => eprintln!("warning: tests with foreign clients will be skipped: {error:#}"),
    }
    for broker in provided {
        exports.extend(broker.exports);
        if let Some(started) = broker.started {
            started.leave_running()?;
        }
    }
    for export in exports {
        println!("{}", shell::export(&export));
    }
    Ok(Outcome::Success)
}

pub(crate) fn down(base: &Path) -> Result<Outcome> {
    let _lock = tb::folder::lock(base, "up.lock")?;
    for kind in tb::reap(base) {
        eprintln!("stopped what a killed run had left behind: {kind}");
    }
    let running = tb::folder::left_running(base);
    if running.is_empty() {
        eprintln!("nothing is up");
    }
    for (folder, record) in running {
        tb::folder::stop(&folder).with_context(|| format!("cannot stop {}", record.kind))?;
        eprintln!("stopped {} ({})", record.kind, record.origin.unwrap_or(Origin::Native).as_str());
        for (name, _) in record.exports {
            println!("unset {name}");
        }
    }
    Ok(Outcome::Success)
}

pub(crate) fn status(json: bool, base: &Path) -> Result<Outcome> {
    let rows: Vec<Status> = tb::kinds().iter().map(|kind| Status::of(*kind, base)).collect();
    if json {
        let rows: Vec<_> = rows.iter().map(Status::json).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        println!("{:<10} {:<12} {:<16} {:<12} ADDRESS", "BROKER", "FROM", "VERSION", "STATE");
        for row in &rows {
            println!("{row}");
        }
    }
    let healthy = rows.iter().all(|row| row.state == "healthy");
    Ok(if healthy { Outcome::Success } else { Outcome::BrokerMissing })
}

/// One broker as `status` shows it.
struct Status {
    broker: &'static str,
    origin: Option<Origin>,
    /// Without the password.
    url: Option<String>,
    version: Option<String>,
    state: &'static str,
    problem: Option<String>,
}

impl Status {
    fn of(kind: &'static dyn Kind, base: &Path) -> Status {
        let up = left_running(kind, base).map(|(_, record)| record);
        let (endpoint, origin) = match (given(kind.endpoint_var()), up) {
            // Its own export, back from the shell.
            (Some(given), Some(record)) if given == endpoint(kind, &record.exports) => (given, record.origin),
            (Some(given), _) => (given, Some(Origin::Environment)),
            (None, Some(record)) => (endpoint(kind, &record.exports), record.origin),
            (None, None) => {
                let state = "not up";
                return Status {
                    broker: kind.name(),
                    origin: None,
                    url: None,
                    version: None,
                    state,
                    problem: None,
                };
            }
        };
        let (version, state, problem) = match kind.probe(&endpoint, PROBE_TIMEOUT) {
            Ok(health) => (health.version, "healthy", None),
            Err(error) => (None, "unhealthy", Some(format!("{error:#}"))),
        };
        Status { broker: kind.name(), origin, url: Some(tb::redacted(&endpoint)), version, state, problem }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "broker": self.broker,
            "from": self.origin.map(Origin::as_str),
            "url": self.url,
            "version": self.version,
            "state": self.state,
            "problem": self.problem,
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status { broker, origin, url, version, state, problem } = self;
        let origin = origin.map_or("-", Origin::as_str);
        let version = version.as_deref().unwrap_or("-");
        let url = url.as_deref().unwrap_or("-");
        write!(f, "{broker:<10} {origin:<12} {version:<16} {state:<12} {url}")?;
        match problem {
            Some(problem) => write!(f, "\n{:<10} {problem}", ""),
            None => Ok(()),
        }
    }
}

/// The broker of this kind that `up` left running.
fn left_running(kind: &dyn Kind, base: &Path) -> Option<(std::path::PathBuf, tb::Record)> {
    tb::folder::left_running(base).into_iter().find(|(_, record)| record.kind == kind.name())
}

fn endpoint(kind: &dyn Kind, exports: &[Export]) -> String {
    let export = exports.iter().find(|(name, _)| name == kind.endpoint_var());
    export.map(|(_, value)| value.clone()).unwrap_or_default()
}

/// The variable's value; an empty one counts as not set.
pub(crate) fn given(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
