//! One folder a broker: its data, its logs, and a record of who started it and what runs.
//!
//! A run that is killed outright stops nothing. The record is what lets the next one do it: [`reap`] stops whatever
//! belongs to an owner that no longer lives. A broker whose owner let it go (`brokers up`) stays until [`stop`].

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{self, ProcessId, Signal};
use crate::{Export, compose};

const RECORD: &str = "record";

/// How long SIGKILL may take to do its work.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a broker comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Somebody else's, named by an environment variable.
    Environment,
    /// A container of ours.
    Compose,
    /// A process of ours.
    Native,
}

impl Origin {
    /// As people and the record read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Environment => "environment",
            Origin::Compose => "compose",
            Origin::Native => "native",
        }
    }
}

/// What a folder's record says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The broker's kind, by name.
    pub kind: String,
    /// Where it comes from.
    pub origin: Option<Origin>,
    /// The process whose end is the broker's end; none if it was left to run.
    pub owner: Option<ProcessId>,
    /// Our processes, in the order in which they were started.
    pub processes: Vec<ProcessId>,
    /// Our Compose project, and the file it was started from.
    pub compose: Option<(String, PathBuf)>,
    /// What the tests get. Filled once the broker answers.
    pub exports: Vec<Export>,
    /// The broker's version, once it answers.
    pub version: Option<String>,
}

impl Record {
    /// Reads a record's text. Lines that nobody knows are an error: a process could be behind them.
    pub fn parse(text: &str) -> Result<Record> {
        let mut record = Record::default();
        for line in text.lines() {
            let (key, value) =
                line.split_once(' ').with_context(|| format!("`{line}` is not `KEY VALUE`"))?;
            match key {
                "kind" => record.kind = value.to_owned(),
                "origin" => {
                    let known = [Origin::Environment, Origin::Compose, Origin::Native];
                    record.origin = known.into_iter().find(|origin| origin.as_str() == value);
                }
                // The last line counts: an owner may let go.
                "owner" if value == "none" => record.owner = None,
                "owner" => record.owner = Some(value.parse()?),
                "process" => record.processes.push(value.parse()?),
                "compose" => {
                    let (project, file) = value.split_once(' ').context("`compose` names no file")?;
                    record.compose = Some((project.to_owned(), PathBuf::from(file)));
                }
                "export" => {
                    let (name, value) = value.split_once(' ').context("`export` has no value")?;
                    record.exports.push((name.to_owned(), value.to_owned()));
                }
                "version" => record.version = Some(value.to_owned()),
                _ => bail!("`{line}` is not a line of a broker's record"),
            }
        }
        Ok(record)
    }

    fn read(folder: &Path) -> Result<Record> {
        let path = folder.join(RECORD);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Record::parse(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Stops all that runs. Its data goes with it, so there is nothing to be gentle for.
    fn kill(&self) -> Result<()> {
        // What was started last stands on what was started first.
        for process in self.processes.iter().rev() {
            process.signal_group(Signal::KILL);
        }
        for process in &self.processes {
            if !process.wait_gone(KILL_TIMEOUT) {
                bail!("process {} does not end; kill it by hand", process.pid());
            }
        }
        match &self.compose {
            Some((project, file)) => compose::down(project, file),
            None => Ok(()),
        }
    }
}

/// A broker's folder, owned by this process.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes a new one below `base`, readable by this user only.
    pub fn create(base: &Path, kind: &str, origin: Origin) -> Result<Folder> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{kind}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        private_folder(base)?;
        // Made under another name first: a folder without a record would look like one whose owner is dead.
        let unfinished = base.join(format!(".new-{name}"));
        let path = base.join(&name);
        for left_behind in [&unfinished, &path] {
            // By a process that had our pid before us. What ran for it was stopped by `reap`.
            if left_behind.exists() {
                fs::remove_dir_all(left_behind)?;
            }
        }
        let new = || -> Result<()> {
            DirBuilder::new().mode(0o700).create(&unfinished)?;
            let owner = ProcessId::own()?;
            let text = format!("kind {kind}\norigin {}\nowner {owner}\n", origin.as_str());
            fs::write(unfinished.join(RECORD), text)?;
            fs::rename(&unfinished, &path)?;
            Ok(())
        };
        new().with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Folder { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes a process of ours.
    pub fn add_process(&self, process: &ProcessId) -> Result<()> {
        self.append(&format!("process {process}\n"))
    }

    /// Notes the Compose project that is about to be started.
    pub fn add_compose(&self, project: &str, file: &Path) -> Result<()> {
        self.append(&format!("compose {project} {}\n", file.display()))
    }

    /// Notes what a broker that now answers offers.
    pub fn add_endpoint(&self, exports: &[Export], version: Option<&str>) -> Result<()> {
        let mut lines = String::new();
        for (name, value) in exports {
            let _ = writeln!(lines, "export {name} {value}");
        }
        if let Some(version) = version {
            let _ = writeln!(lines, "version {version}");
        }
        self.append(&lines)
    }

    /// Lets the broker outlive this process.
    pub fn leave_running(&self) -> Result<()> {
        self.append("owner none\n")
    }

    /// Stops what runs and removes the folder.
    pub fn remove(&self) -> Result<()> {
        stop(&self.path)
    }

    fn append(&self, lines: &str) -> Result<()> {
        let path = self.path.join(RECORD);
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().append(true).open(&path)?;
            file.write_all(lines.as_bytes())
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Every broker below `base`, with its folder, in the order of their names.
pub fn list(base: &Path) -> Vec<(PathBuf, Result<Record>)> {
    let mut folders: Vec<PathBuf> = fs::read_dir(base)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join(RECORD).is_file())
        .collect();
    folders.sort();
    folders.into_iter().map(|path| (path.clone(), Record::read(&path))).collect()
}

/// The brokers below `base` that were left to run and are ready.
pub fn left_running(base: &Path) -> Vec<(PathBuf, Record)> {
    list(base)
        .into_iter()
        .filter_map(|(path, record)| record.ok().map(|record| (path, record)))
        .filter(|(_, record)| record.owner.is_none() && !record.exports.is_empty())
        .collect()
}

/// Stops the broker of this folder and removes the folder.
pub fn stop(folder: &Path) -> Result<()> {
    Record::read(folder)?.kill()?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            // A process that is just going may still have written.
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Stops the brokers below `base` whose owner is gone; returns their kinds. What cannot be stopped is said on stderr:
/// it is a stranger's remains, and no reason not to go on.
pub fn reap(base: &Path) -> Vec<String> {
    let mut stopped = Vec::new();
    loop {
        let now = stop_where(base, |record| record.owner.as_ref().is_some_and(|owner| !owner.is_alive()));
        // What was stopped may have been an owner itself: a test run, of its tests' brokers.
        if now.is_empty() {
            return stopped;
        }
        stopped.extend(now);
    }
}

/// For the one who handles an interrupt: stops what this process has started below `base` and what processes have
/// left behind that are gone, and lets this process start nothing more.
pub fn stop_everything_of_this_process(base: &Path) {
    process::shut_gate();
    let own = ProcessId::own().ok();
    stop_where(base, |record| record.owner.is_some() && record.owner == own);
    reap(base);
}

fn stop_where(base: &Path, condition: impl Fn(&Record) -> bool) -> Vec<String> {
    let mut stopped = Vec::new();
    for (path, record) in list(base) {
        let outcome = match record {
            Ok(record) if condition(&record) => stop(&path).map(|()| stopped.push(record.kind)),
            Ok(_) => Ok(()),
            // Gone since the list was made.
            Err(_) if !path.exists() => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            crate::say(&format!("warning: a broker was left behind in {}: {error:#}", path.display()));
        }
    }
    stopped
}

/// Makes a folder that only this user can enter, with its parents.
pub(crate) fn private_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Takes a lock that other processes respect until the file is dropped.
pub fn lock(base: &Path, name: &str) -> Result<File> {
    private_folder(base)?;
    let path = base.join(name);
    let take = || -> std::io::Result<File> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    take().with_context(|| format!("cannot lock {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// An empty folder that goes away with the test.
    struct Base(PathBuf);

    impl Base {
        fn new(name: &str) -> Base {
            let path = std::env::temp_dir().join(format!("throughline-folder-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Base(path)
        }
    }

    impl Drop for Base {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_record_is_read_back() {
        let base = Base::new("read-back");
        let folder = Folder::create(&base.0, "rabbitmq", Origin::Native).unwrap();
        let own = ProcessId::own().unwrap();
        let exports = vec![("A_URL".to_owned(), "amqp://g:g@127.0.0.1:1/%2f with blank".to_owned())];
        folder.add_endpoint(&exports, Some("3.10.8")).unwrap();
        let record = Record::read(folder.path()).unwrap();
        assert_eq!(record.owner.as_ref(), Some(&own));
        assert_eq!((record.kind.as_str(), record.origin), ("rabbitmq", Some(Origin::Native)));
        assert_eq!((&record.exports, record.version.as_deref()), (&exports, Some("3.10.8")));
        assert!(left_running(&base.0).is_empty());
        folder.leave_running().unwrap();
        assert_eq!(left_running(&base.0).len(), 1);
        assert!(reap(&base.0).is_empty(), "what was left to run is not reaped");
        folder.remove().unwrap();
        assert!(list(&base.0).is_empty());
    }

    #[test]
    fn damaged_records_are_errors() {
        for text in ["kind", "process x 1\n", "compose p\n", "export A\n", "surprise 1\n", "owner 12\n"] {
            assert!(Record::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(Record::parse("").unwrap(), Record::default());
    }

    #[test]
    fn what_a_dead_owner_left_is_stopped() {
        let base = Base::new("dead-owner");
        let folder = Folder::create(&base.0, "rabbitmq", Origin::Native).unwrap();
        let mut sleep = Command::new("sleep");
        sleep.arg("60").stdout(Stdio::null());
        let mut running = process::spawn(&mut sleep, |id| folder.add_process(id)).unwrap();
        assert!(reap(&base.0).is_empty(), "its owner lives");
        assert!(running.ended().is_none());
        // As if it had been started by a process that is gone.
        folder.append(&format!("owner {} 1\n", std::process::id())).unwrap();
        assert_eq!(reap(&base.0), ["rabbitmq"]);
        assert!(running.wait(Duration::from_secs(5)));
        assert!(!folder.path().exists());
    }
}
