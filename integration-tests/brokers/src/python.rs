//! A Python that can import the foreign clients which the interoperability tests speak to.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::install::{NotInstalled, Package, Permission, find_program};
use crate::{PYTHON_VAR, cache_folder, folder, process, say};

/// A Python with packages of its own, in the user's cache.
pub(crate) struct Environment {
    /// What it is for, in its folder's name.
    pub(crate) name: &'static str,
    /// What is installed, pinned.
    pub(crate) requirements: &'static [&'static str],
    /// A program that fails unless every requirement can be imported.
    pub(crate) check: &'static str,
}

/// A foreign client is part of what the tests compare with. A later transport adds its own.
const CLIENTS: Environment = Environment {
    name: "clients",
    requirements: &["pika==1.3.2", "confluent-kafka==2.16.1", "boto3==1.43.127"],
    check: "import pika, confluent_kafka, boto3",
};

const PACKAGE: Package = Package {
    what: "Python 3 with venv",
    why: "by the tests that talk to foreign clients",
    debian: &["python3", "python3-venv"],
    homebrew: &["python"],
};

/// An interpreter's start, with imports, on a loaded machine.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// Making a virtual environment, or installing into it.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(300);

/// The path of a Python executable that imports the foreign clients.
///
/// The one that [`PYTHON_VAR`] names is used as it is. Else one is made in the user's cache, once: a virtual
/// environment, or, where Python has no venv, a folder of packages with a script that puts it on the path. Nothing is
/// installed into the system's Python.
pub fn with_clients(permission: Permission) -> Result<PathBuf> {
    if let Some(given) = env::var_os(PYTHON_VAR).filter(|value| !value.is_empty()) {
        let given = PathBuf::from(given);
        CLIENTS.check(&given).with_context(|| {
            format!("{PYTHON_VAR} names {}, which is of no use; unset it to have one made", given.display())
        })?;
        return Ok(given);
    }
    CLIENTS.python(permission)
}

impl Environment {
    /// Its folder: of these very requirements, so that a change of them makes another.
    fn home(&self) -> PathBuf {
        let requirements = self.requirements.join("-").replace("==", "-");
        cache_folder().join(format!("python-{}-{requirements}", self.name))
    }

    /// Its Python, if it has been made.
    pub(crate) fn made(&self) -> Option<PathBuf> {
        let python = self.home().join("bin").join("python");
        python.exists().then_some(python)
    }

    /// Its Python, which is made first if need be.
    pub(crate) fn python(&self, permission: Permission) -> Result<PathBuf> {
        // Two runs at once would build in the same folder.
        let _lock = folder::lock(&cache_folder(), "python.lock")?;
        if let Some(python) = self.made()
            && self.check(&python).is_ok()
        {
            return Ok(python);
        }
        if find_program("python3").is_none() {
            PACKAGE.install(permission)?;
        }
        let home = self.home();
        let requirements = self.requirements.join(" ");
        say(&format!("Making a Python with {requirements} in {} …", home.display()));
        let made = self.make_environment(&home).or_else(|no_venv| {
            self.make_folder(&home).or_else(|no_pip| {
                // Neither is there, which is how Debian splits Python.
                PACKAGE.install(permission)?;
                self.make_environment(&home)
                    .with_context(|| format!("without venv: {no_pip:#}"))
                    .with_context(|| format!("before the installation: {no_venv:#}"))
            })
        });
        let python = home.join("bin").join("python");
        match made.and_then(|()| self.check(&python)) {
            Ok(()) => Ok(python),
            Err(error) => {
                remove(&home)?;
                if error.is::<NotInstalled>() {
                    return Err(error);
                }
                let home = home.display();
                bail!(NotInstalled {
                    what: format!("the Python package {requirements}"),
                    reason: format!("it could not be: {error:#}"),
                    command: Some(format!(
                        "python3 -m venv {home} && {home}/bin/python -m pip install {requirements}"
                    )),
                })
            }
        }
    }

    fn make_environment(&self, home: &Path) -> Result<()> {
        remove(home)?;
        process::output(Command::new("python3").args(["-m", "venv"]).arg(home), INSTALL_TIMEOUT)?;
        let mut pip = Command::new(home.join("bin").join("python"));
        process::output(pip.args(PIP_INSTALL).args(self.requirements), INSTALL_TIMEOUT)?;
        Ok(())
    }

    fn make_folder(&self, home: &Path) -> Result<()> {
        remove(home)?;
        let packages = home.join("packages");
        let mut pip = Command::new("python3");
        pip.args(PIP_INSTALL).arg("--target").arg(&packages).args(self.requirements);
        process::output(&mut pip, INSTALL_TIMEOUT)?;
        let script = home.join("bin").join("python");
        fs::create_dir_all(home.join("bin"))?;
        // The folder is found from the script's own place, so that no path has to be quoted.
        fs::write(&script, WRAPPER)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn check(&self, python: &Path) -> Result<()> {
        process::output(Command::new(python).args(["-c", self.check]), CHECK_TIMEOUT).map(drop)
    }
}

const PIP_INSTALL: [&str; 5] = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];

const WRAPPER: &str = "#!/bin/sh\n\
    here=$(cd \"$(dirname \"$0\")/..\" && pwd) || exit 1\n\
    PYTHONPATH=$here/packages${PYTHONPATH:+:$PYTHONPATH}\n\
    export PYTHONPATH\n\
    exec python3 \"$@\"\n";

fn remove(home: &Path) -> Result<()> {
    match fs::remove_dir_all(home) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", home.display()))
        }
        _ => Ok(()),
    }
}
