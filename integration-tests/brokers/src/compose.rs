//! Brokers as containers, from the checkout's `docker-compose.yml`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::folder::{Folder, Origin};
use crate::{Export, Kind, Started, ports, process};

/// How long the engine may take to say that it is there. One that hangs is not there.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pulling an image and starting it.
const UP_TIMEOUT: Duration = Duration::from_secs(600);

/// How many times a lost race for a port is run again.
const ATTEMPTS: usize = 3;

/// A port that a service publishes on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// The variable by which the Compose file takes the host's port.
    pub variable: &'static str,
}

/// Whether an *engine* answers and Compose is there. The client alone says nothing: many machines have only that.
pub fn available() -> bool {
    let succeeds = |args: &[&str]| process::output(Command::new("docker").args(args), ENGINE_TIMEOUT).is_ok();
    succeeds(&["info"]) && succeeds(&["compose", "version"])
}

/// A service that was started as a container.
struct Service {
    folder: Folder,
    exports: Vec<Export>,
    version: String,
    left_running: bool,
}

/// Starts the service of `kind` on free ports and waits until it is healthy.
pub fn up(kind: &dyn Kind, file: &Path, base: &Path) -> Result<Box<dyn Started>> {
    let mut attempt = 1;
    loop {
        // Dropped on an error, which takes down what was started.
        let mut service = Service {
            folder: Folder::create(base, kind.name(), Origin::Compose)?,
            exports: Vec::new(),
            version: String::new(),
            left_running: false,
        };
        let Err(error) = service.start(kind, file) else { return Ok(Box::new(service)) };
        let text = format!("{error:#}").to_lowercase();
        let lost_race = text.contains("already allocated") || text.contains("already in use");
        if !lost_race || attempt == ATTEMPTS {
            return Err(error);
        }
        attempt += 1;
    }
}

impl Service {
    fn start(&mut self, kind: &dyn Kind, file: &Path) -> Result<()> {
        let ports = ports::free(kind.compose_ports().len())?;
        let project = project_name(self.folder.path());
        // On record first: an interrupted `up` may have started something already.
        self.folder.add_compose(&project, file)?;
        let mut command = compose(&project, file);
        for (port, number) in kind.compose_ports().iter().zip(&ports) {
            command.env(port.variable, number.to_string());
        }
        command.args(["up", "--detach", "--wait", kind.name()]);
        process::recorded_output(&mut command, UP_TIMEOUT, |client| self.folder.add_process(client))
            .with_context(|| format!("Docker Compose cannot start {}", kind.name()))?;
        self.exports = kind.compose_exports(&ports);
        let endpoint = self.exports.iter().find(|(name, _)| name == kind.endpoint_var());
        let endpoint = endpoint.map(|(_, url)| url.as_str()).unwrap_or_default();
        let health = kind.probe(endpoint, ENGINE_TIMEOUT)?;
        self.version = health.version.unwrap_or_else(|| "unknown".to_owned());
        self.folder.add_endpoint(&self.exports, Some(&self.version))
    }
}

impl Started for Service {
    fn exports(&self) -> Vec<Export> {
        self.exports.clone()
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

impl Drop for Service {
    fn drop(&mut self) {
        if !self.left_running
            && let Err(error) = self.folder.remove()
        {
            crate::say(&format!("warning: {error:#}"));
        }
    }
}

/// Stops a project and removes its containers, volumes and networks.
pub(crate) fn down(project: &str, file: &Path) -> Result<()> {
    // Not through `process::output`: that refuses to start anything once an interrupt is being handled.
    let output = compose(project, file)
        .args(["down", "--volumes", "--timeout", "5"])
        .stdin(Stdio::null())
        .output()
        .context("cannot run `docker`")?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("Docker Compose cannot stop the project {project}: {}", stderr.trim());
    }
    Ok(())
}

fn compose(project: &str, file: &Path) -> Command {
    let mut command = Command::new("docker");
    command.args(["compose", "--project-name", project]);
    // A project can be taken down by its name alone, should the checkout have gone.
    if file.exists() {
        command.arg("--file").arg(file);
    }
    command
}

/// Unique on this engine: the checkout's hash and the folder's name. Compose allows lower case, digits, `-` and `_`.
fn project_name(folder: &Path) -> String {
    let last = |path: Option<&Path>| {
        path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().to_lowercase()
    };
    let name = format!("throughline-{}-{}", last(folder.parent()), last(Some(folder)));
    name.replace(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_'), "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_names_are_what_compose_allows() {
        assert_eq!(project_name(Path::new("/c/00ff/rabbitmq-12-0")), "throughline-00ff-rabbitmq-12-0");
        assert_eq!(project_name(Path::new("/My Base/rabbitmq-1-0")), "throughline-my_base-rabbitmq-1-0");
    }
}
