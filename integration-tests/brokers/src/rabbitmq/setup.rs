//! What a private RabbitMQ stands on: its programs, its ports, its configuration, its port mapper.

use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::StartOptions;
use crate::folder::Folder;
use crate::install::find_program;
use crate::ports;
use crate::process::{self, Running, StartError};

#[derive(Clone, Debug)]
pub(super) struct Programs {
    /// The folder of `rabbitmq-server` and `rabbitmqctl`.
    pub(super) scripts: PathBuf,
    pub(super) epmd: PathBuf,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) amqp: u16,
    pub(super) management: u16,
    pub(super) distribution: u16,
    pub(super) epmd: u16,
    pub(super) tls: u16,
}

impl Programs {
    pub(super) fn find() -> Option<Programs> {
        let scripts = script_folders().into_iter().map(PathBuf::from).find(|folder| {
            folder.join("rabbitmq-server").is_file() && folder.join("rabbitmqctl").is_file()
        })?;
        Some(Programs { scripts, epmd: find_program("epmd")? })
    }
}

/// Where the plain scripts are. Not the `PATH`: Debian has wrappers there that insist on its own user and service.
pub(super) fn script_folders() -> Vec<String> {
    let mut folders: Vec<String> = env::var("THROUGHLINE_RABBITMQ_SCRIPTS").into_iter().collect();
    let known = ["/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin"];
    folders.extend(known.map(str::to_owned));
    folders
}

impl Ports {
    pub(super) fn free() -> Result<Ports> {
        match ports::free(5)?[..] {
            [amqp, management, distribution, epmd, tls] => {
                Ok(Ports { amqp, management, distribution, epmd, tls })
            }
            _ => bail!("the wrong number of ports"),
        }
    }
}

pub(super) fn write_config(folder: &Path, ports: Ports, options: &StartOptions) -> Result<()> {
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

/// Erlang's port mapper. Started by us and not by Erlang, which would make a daemon of it that belongs to nobody.
pub(super) fn start_epmd(programs: &Programs, folder: &Folder, ports: Ports) -> Result<Running, StartError> {
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
