//! What a private Kafka stands on: a Java, the jars of one pinned version, its configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Secure;
use crate::install::{NotInstalled, Package, Permission, find_program};
use crate::process::ProcessId;
use crate::{cache_folder, folder, process, say};

/// What is run. The protocol's versions depend on it, so it is pinned.
pub(super) const VERSION: &str = "4.1.1";

/// The jars, and nothing else: there is no Debian package, and the download page's archive is no package registry's.
const POM: &str = include_str!("pom.xml");

const PACKAGE: Package = Package {
    what: "Java 17 with Maven",
    why: "by the tests that talk to a real Apache Kafka",
    debian: &["default-jre-headless", "maven"],
    homebrew: &["openjdk", "maven"],
};

/// A hundred megabytes from a repository that may be far.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(600);

const KCAT: Package = Package {
    what: "kcat",
    why: "by the tests that exchange messages with it",
    debian: &["kcat"],
    homebrew: &["kcat"],
};

/// The folder of the jars, in the user's cache.
fn jars() -> PathBuf {
    cache_folder().join(format!("kafka-{VERSION}"))
}

/// The class path, if everything is there.
pub(super) fn class_path() -> Option<PathBuf> {
    let lib = jars().join("lib");
    (find_program("java").is_some() && lib.is_dir()).then(|| lib.join("*"))
}

/// Brings Java and the jars.
pub(super) fn install(permission: Permission) -> Result<()> {
    if find_program("java").is_none() || (!jars().exists() && find_program("mvn").is_none()) {
        PACKAGE.install(permission)?;
    }
    // Small, and only for some tests, which are skipped without it.
    if find_program("kcat").is_none()
        && let Err(error) = KCAT.install(permission)
    {
        say(&format!("kcat is not there: {error:#}"));
    }
    let cache = cache_folder();
    // Two runs at once would load into the same folder.
    let _lock = folder::lock(&cache, "kafka.lock")?;
    let home = jars();
    if home.join("lib").is_dir() {
        return Ok(());
    }
    say(&format!("Apache Kafka {VERSION} is not there; loading its jars (45 MB) into {} …", home.display()));
    let partial = home.with_extension("partial");
    let loaded = load(&partial).and_then(|()| {
        fs::rename(&partial, &home).with_context(|| format!("cannot move the jars to {}", home.display()))
    });
    loaded.map_err(|error| {
        let _ = fs::remove_dir_all(&partial);
        NotInstalled {
            what: format!("Apache Kafka {VERSION}"),
            reason: format!("its jars could not be loaded with Maven: {error:#}"),
            command: None,
        }
        .into()
    })
}

/// Loads the jars into `lib` of this folder. What else Maven needs for that is removed again.
fn load(folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(folder.join("pom.xml"), POM.replace("@VERSION@", VERSION))?;
    let repository = folder.join("repository");
    let mut maven = Command::new("mvn");
    maven
        .current_dir(folder)
        .args(["--quiet", "--batch-mode", "dependency:copy-dependencies"])
        .args(["-DoutputDirectory=lib", "-DincludeScope=runtime"])
        .arg(format!("-Dmaven.repo.local={}", repository.display()));
    process::output(&mut maven, DOWNLOAD_TIMEOUT)?;
    fs::remove_dir_all(repository).context("cannot remove Maven's repository")?;
    let broker = folder.join("lib").join(format!("kafka_2.13-{VERSION}.jar"));
    if !broker.is_file() {
        bail!("Maven has not loaded {}", broker.display());
    }
    Ok(())
}

/// Where one broker listens: clients, and the controller, which is the same process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) broker: u16,
    pub(super) controller: u16,
    /// Used where a secure listener is asked for.
    pub(super) secure: u16,
}

impl Ports {
    pub(super) fn free() -> Result<Ports> {
        match crate::ports::free(3)?[..] {
            [broker, controller, secure] => Ok(Ports { broker, controller, secure }),
            _ => bail!("the wrong number of ports"),
        }
    }
}

/// The configuration of one node that is broker and controller at once.
pub(super) fn properties(folder: &Path, ports: Ports, further: &str) -> String {
    let Ports { broker, controller, .. } = ports;
    let data = folder.join("data");
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{broker}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         controller.listener.names=CONTROLLER\n\
         log.dirs={}\n\
         # One node: one replica of everything.\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=5\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         share.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\n\
         # A topic that nobody made is an error, as on any well-kept cluster.\n\
         auto.create.topics.enable=false\n\
         # Tests do not wait for a member that may still come, nor long for one that is gone.\n\
         group.initial.rebalance.delay.ms=0\n\
         group.min.session.timeout.ms=1000\n\
         group.consumer.min.session.timeout.ms=1000\n\
         group.consumer.session.timeout.ms=6000\n\
         group.consumer.min.heartbeat.interval.ms=500\n\
         group.consumer.heartbeat.interval.ms=1000\n\
         {further}\n",
        data.display()
    )
}

/// What a secure listener adds; the last line of a name counts.
pub(super) fn secure_properties(ports: Ports, secure: &Secure) -> String {
    let Ports { broker, controller, secure: port } = ports;
    let Secure { certificates, key, user, password } = secure;
    // Lines of one property.
    let pem = |text: &str| text.trim().replace("\r", "").replace('\n', "\\n");
    format!(
        "listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller},SECURE://127.0.0.1:{port}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{broker},SECURE://127.0.0.1:{port}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL\n\
         inter.broker.listener.name=PLAINTEXT\n\
         listener.name.secure.ssl.keystore.type=PEM\n\
         listener.name.secure.ssl.keystore.certificate.chain={}\n\
         listener.name.secure.ssl.keystore.key={}\n\
         listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512\n\
         listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
         required user_{user}=\"{password}\";\n\
         listener.name.secure.scram-sha-512.sasl.jaas.config=\
         org.apache.kafka.common.security.scram.ScramLoginModule required;\n",
        pem(certificates),
        pem(key),
    )
}

/// A JVM that runs a class of Kafka's. Small, and quick to start.
pub(super) fn java(class_path: &Path, class: &str) -> Command {
    let mut java = Command::new("java");
    // The caller's own settings would make it another broker.
    for name in [
        "KAFKA_OPTS",
        "KAFKA_HEAP_OPTS",
        "JAVA_TOOL_OPTIONS",
        "JDK_JAVA_OPTIONS",
        "_JAVA_OPTIONS",
        "CLASSPATH",
    ] {
        java.env_remove(name);
    }
    java.args([
        "-Xms128m",
        "-Xmx512m",
        "-XX:+UseSerialGC",
        "-XX:-UsePerfData",
        "-Djava.net.preferIPv4Stack=true",
    ])
    .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"])
    // Its log says when it is ready.
    .arg("-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info")
    .arg("-cp")
    .arg(class_path)
    .arg(class);
    java
}

/// Sixteen bytes in URL-safe base64, as Kafka wants it. Every private broker is a cluster of its own, and may share it.
const CLUSTER_ID: &str = "VGhyb3VnaGxpbmVCcm9rZQ";

/// JVMs are slow to start while compilers run.
const FORMAT_TIMEOUT: Duration = Duration::from_secs(120);

/// Makes the data folder that the configuration names.
pub(super) fn format(
    class_path: &Path,
    properties: &Path,
    secure: Option<&Secure>,
    record: impl FnOnce(&ProcessId) -> Result<()>,
) -> Result<()> {
    let mut java = java(class_path, "kafka.tools.StorageTool");
    java.args(["format", "--cluster-id", CLUSTER_ID, "--config"]).arg(properties);
    if let Some(Secure { user, password, .. }) = secure {
        java.args(["--add-scram", &format!("SCRAM-SHA-512=[name={user},password={password}]")]);
    }
    process::recorded_output(&mut java, FORMAT_TIMEOUT, record).map(drop)
}
