//! Packages that a native broker needs: installed where that is allowed, and said aloud before.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use crate::say;

const DEBIAN_SCRIPT: &str = include_str!("install-debian.sh");

/// Something that a package manager can bring.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// What it is, for a person.
    pub what: &'static str,
    /// What it is needed for.
    pub why: &'static str,
    /// Its Debian packages.
    pub debian: &'static [&'static str],
    /// Its Homebrew formulae; none if Homebrew has nothing fitting.
    pub homebrew: &'static [&'static str],
}

/// What the person who runs us allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Install where we are root on a Debian-like machine: a container, a CI machine.
    WhereRoot,
    /// Install here, by `sudo` if need be: `--install`.
    Always,
}

/// Something is missing that may not, or cannot, be installed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotInstalled {
    /// What is missing.
    pub what: String,
    /// Why it was not installed.
    pub reason: String,
    /// The command that a person can run to install it, if there is one.
    pub command: Option<String>,
}

impl fmt::Display for NotInstalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not installed, and {}", self.what, self.reason)?;
        match &self.command {
            Some(command) => write!(f, "; to install it, run:\n    {command}"),
            None => write!(f, "; install it by hand"),
        }
    }
}

impl std::error::Error for NotInstalled {}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manager {
    Apt,
    Homebrew,
}

impl Package {
    /// Installs it, or says with [`NotInstalled`] why not and how to.
    pub fn install(&self, permission: Permission) -> Result<()> {
        let manager = manager();
        let root = rustix::process::geteuid().is_root();
        let not_installed = |reason: &str| NotInstalled {
            what: self.what.to_owned(),
            reason: reason.to_owned(),
            command: manager.and_then(|manager| self.command(manager, root)),
        };
        let Some(manager) = manager else {
            bail!(not_installed("this machine has neither apt-get nor brew"));
        };
        let allowed = permission == Permission::Always || (manager == Manager::Apt && root);
        if !allowed {
            bail!(not_installed(
                "only root on a Debian-like machine installs it unasked (or give --install)"
            ));
        }
        let Some(command) = self.command(manager, root) else {
            bail!(not_installed("Homebrew has no formula for it"));
        };
        // Held by whoever installs, so that an interrupt can wait for its end.
        let _installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        say(&format!("{} is not installed; it is needed {}.", self.what, self.why));
        say(&format!("Installing it now: {command}"));
        match manager {
            Manager::Apt => {
                say("(a service that the package brings is not started)");
                self.apt(root)
            }
            Manager::Homebrew => run(Command::new("brew").arg("install").args(self.homebrew)),
        }
        .with_context(|| format!("{} could not be installed; try by hand:\n    {command}", self.what))
    }

    /// The command that a person would run.
    fn command(&self, manager: Manager, root: bool) -> Option<String> {
        let sudo = if root { "" } else { "sudo " };
        match manager {
            Manager::Apt => {
                let packages = self.debian.join(" ");
                Some(format!(
                    "{sudo}apt-get update && {sudo}apt-get install -y --no-install-recommends {packages}"
                ))
            }
            Manager::Homebrew if self.homebrew.is_empty() => None,
            Manager::Homebrew => Some(format!("brew install {}", self.homebrew.join(" "))),
        }
    }

    fn apt(&self, root: bool) -> Result<()> {
        let mut command = if root { Command::new("sh") } else { Command::new("sudo") };
        if !root {
            command.arg("sh");
        }
        run(command.args(["-c", DEBIAN_SCRIPT, "install-debian.sh"]).args(self.debian))
    }
}

/// Runs a package manager, its output on our stderr.
fn run(command: &mut Command) -> Result<()> {
    // In our own process group, unlike a broker: sudo may have to ask the terminal for a password.
    let stderr =
        || -> Result<Stdio> { Ok(File::from(std::io::stderr().as_fd().try_clone_to_owned()?).into()) };
    let status = command.stdin(Stdio::null()).stdout(stderr()?).stderr(stderr()?).status();
    let program = command.get_program().to_string_lossy();
    let status = status.with_context(|| format!("cannot run `{program}`"))?;
    if !status.success() {
        bail!("`{program}` failed ({status})");
    }
    Ok(())
}

static INSTALLING: Mutex<()> = Mutex::new(());

/// Waits for a running installation, and lets no further one start until the guard is dropped. For the one who handles
/// an interrupt: half an installation is worse than a late exit.
pub fn wait_for_installation() -> MutexGuard<'static, ()> {
    INSTALLING.try_lock().unwrap_or_else(|_| {
        let _ = writeln!(
            std::io::stderr(),
            "waiting for the installation to finish, so that it is not left half done…"
        );
        INSTALLING.lock().unwrap_or_else(PoisonError::into_inner)
    })
}

fn manager() -> Option<Manager> {
    // `apt-get` alone could be anything; Debian and what descends from it has this file too.
    if find_program("apt-get").is_some() && Path::new("/etc/debian_version").exists() {
        Some(Manager::Apt)
    } else {
        find_program("brew").map(|_| Manager::Homebrew)
    }
}

/// The program of this name on the `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    const PACKAGE: Package = Package {
        what: "Example",
        why: "for this test",
        debian: &["example-server", "example-client"],
        homebrew: &["example"],
    };

    #[test]
    fn the_command_is_one_a_person_can_run() {
        assert_eq!(
            PACKAGE.command(Manager::Apt, false).unwrap(),
            "sudo apt-get update && sudo apt-get install -y --no-install-recommends example-server example-client"
        );
        assert!(PACKAGE.command(Manager::Apt, true).unwrap().starts_with("apt-get update &&"));
        assert_eq!(PACKAGE.command(Manager::Homebrew, false).unwrap(), "brew install example");
        let nothing = Package { homebrew: &[], ..PACKAGE };
        assert_eq!(nothing.command(Manager::Homebrew, false), None);
    }

    #[test]
    fn a_missing_package_says_what_to_do() {
        let error = NotInstalled {
            what: "Example".to_owned(),
            reason: "nobody may".to_owned(),
            command: Some("get example".to_owned()),
        };
        assert_eq!(
            error.to_string(),
            "Example is not installed, and nobody may; to install it, run:\n    get example"
        );
    }

    /// Runs the script against a policy file of the test's own and an `apt-get` that does what `install` says.
    fn run_script(folder: &Path, install: &str) -> bool {
        let apt = folder.join("apt-get");
        fs::write(&apt, format!("#!/bin/sh\ncase \"$*\" in *update*) exit 0;; esac\n{install}\n")).unwrap();
        fs::set_permissions(&apt, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", folder.display(), env::var("PATH").unwrap());
        Command::new("sh")
            .args(["-c", DEBIAN_SCRIPT, "install-debian.sh", "example"])
            .env("PATH", path)
            .env("THROUGHLINE_POLICY_FILE", folder.join("policy"))
            .status()
            .unwrap()
            .success()
    }

    #[test]
    fn the_service_policy_is_put_back_as_it_was() {
        let folder = env::temp_dir().join(format!("throughline-install-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let policy = folder.join("policy");
        let denies = "sh \"$THROUGHLINE_POLICY_FILE\"; test $? = 101";

        assert!(run_script(&folder, denies), "no service starts during an installation");
        assert!(!policy.exists());

        fs::write(&policy, "theirs").unwrap();
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o700)).unwrap();
        for (install, succeeds) in [(denies, true), ("exit 1", false), ("kill -TERM $PPID; exit 0", true)] {
            assert_eq!(run_script(&folder, install), succeeds, "{install}");
            assert_eq!(fs::read_to_string(&policy).unwrap(), "theirs", "{install}");
            assert_eq!(policy.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        }

        // Killed outright, the next one puts it back.
        assert!(!run_script(&folder, "kill -KILL $PPID"));
        assert_ne!(fs::read_to_string(&policy).unwrap(), "theirs");
        assert!(run_script(&folder, denies));
        assert_eq!(fs::read_to_string(&policy).unwrap(), "theirs");
        fs::remove_dir_all(&folder).unwrap();
    }
}
