//! Children of a run, and what happens to them on Ctrl-C.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result};
use throughline_brokers as tb;
use throughline_brokers::folder::Folder;
use throughline_brokers::process::{ProcessId, Signal};

/// How long a child may take to go after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// The child that runs now, the leader of a process group of its own.
static CURRENT: Mutex<Option<ProcessId>> = Mutex::new(None);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn current() -> MutexGuard<'static, Option<ProcessId>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// On Ctrl-C, SIGTERM and SIGHUP: stops the child and its whole group, then every broker that this process, or a test
/// that is gone by then, has started; exits with 130.
pub(crate) fn stop_everything_on_interrupt(base: PathBuf) {
    let handler = move || {
        INTERRUPTED.store(true, Ordering::SeqCst);
        eprintln!("\ninterrupted: stopping what was started …");
        // Both are held to the end: the main thread can start nothing more.
        let _installation = tb::install::wait_for_installation();
        let child = current();
        if let Some(leader) = &*child {
            leader.end_group(GRACE);
        }
        tb::stop_everything_of_this_process(&base);
        std::process::exit(130);
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        eprintln!("warning: Ctrl-C will not stop what is started: {error}");
    }
}

/// Leaves the last word to the handler, once an interrupt has come.
pub(crate) fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// A `cargo` command in the checkout.
pub(crate) fn cargo(checkout: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo run` told us about the package xtask; a build script elsewhere must not take that for its own.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
            .iter()
            .any(|own| text.starts_with(own))
        {
            command.env_remove(&name);
        }
    }
    command.current_dir(checkout);
    command
}

/// Runs `command` to its end, handing each line of its stdout to `line`. Its stderr is ours. `run` notes it, so that
/// the next run can end it if we are killed.
pub(crate) fn lines(command: &mut Command, run: &Folder, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let program = command.get_program().to_string_lossy().into_owned();
    let (mut child, leader) = start(command.stdout(Stdio::piped()), &program, run)?;
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            for bytes in BufReader::new(stdout).split(b'\n') {
                let Ok(bytes) = bytes else { break };
                if sender.send(String::from_utf8_lossy(&bytes).into_owned()).is_err() {
                    break;
                }
            }
        });
    }
    let mut ended = None;
    loop {
        match receiver.recv_timeout(Duration::from_millis(200)) {
            Ok(text) => line(&text),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => match ended {
                // A grandchild that outlives the child keeps the pipe open: that is not to be waited for.
                Some(_) => break,
                None => ended = child.try_wait()?,
            },
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{program}`"))?;
    end(&leader);
    Ok(status)
}

/// What [`quietly`] saw.
pub(crate) struct Quiet {
    /// How it ended; none if it took too long and was killed.
    pub(crate) status: Option<ExitStatus>,
    /// What it wrote, to stdout and stderr.
    pub(crate) output: String,
}

/// Runs `command` to its end, or to its deadline. What it writes is kept in the folder of the run, which also notes it
/// as [`lines`] does.
pub(crate) fn quietly(command: &mut Command, run: &Folder, timeout: Duration) -> Result<Quiet> {
    let program = command.get_program().to_string_lossy().into_owned();
    let log = &run.path().join("output");
    let file = fs::File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    let (mut child, leader) = start(command.stdout(file.try_clone()?).stderr(file), &program, run)?;
    let deadline = Instant::now() + timeout;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() >= deadline {
            leader.signal_group(Signal::KILL);
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    end(&leader);
    Ok(Quiet { status, output: String::from_utf8_lossy(&fs::read(log)?).into_owned() })
}

fn start(command: &mut Command, program: &str, run: &Folder) -> Result<(Child, ProcessId)> {
    // Blocks for good once an interrupt is being handled.
    let mut current = current();
    let mut child = command
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run `{program}`"))?;
    let leader = ProcessId::of_child(&child);
    let noted = leader.and_then(|leader| run.add_process(&leader).map(|()| leader));
    let leader = noted.inspect_err(|_| drop(child.kill()))?;
    *current = Some(leader.clone());
    Ok((child, leader))
}

fn end(leader: &ProcessId) {
    let mut current = current();
    if current.as_ref() == Some(leader) {
        *current = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    /// A run of the test's own. `CURRENT` is one for the whole process, so one test at a time.
    struct Run(Folder, PathBuf, #[allow(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

    impl Run {
        fn new(test: &str) -> Run {
            static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
            let one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
            let base = env::temp_dir().join(format!("throughline-child-{}-{test}", std::process::id()));
            Run(Folder::create(&base, "test", tb::Origin::Native).unwrap(), base, one)
        }
    }

    impl Drop for Run {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.1);
        }
    }

    #[test]
    fn every_line_is_handed_on() {
        let run = Run::new("lines");
        let mut seen = Vec::new();
        let mut command = sh("echo one; printf 'two\\nthree'; exit 4");
        let status = lines(&mut command, &run.0, |line| seen.push(line.to_owned())).unwrap();
        assert_eq!(seen, ["one", "two", "three"]);
        assert_eq!(status.code(), Some(4));
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipe_open_is_not_waited_for() {
        let run = Run::new("grandchild");
        let started = Instant::now();
        let mut pid = String::new();
        lines(&mut sh("sleep 30 & echo $!"), &run.0, |line| line.clone_into(&mut pid)).unwrap();
        assert!(started.elapsed() < Duration::from_secs(10));
        ProcessId::of(pid.parse().unwrap()).unwrap().signal(Signal::KILL);
    }

    #[test]
    fn what_takes_too_long_is_killed() {
        let run = Run::new("deadline");
        let quick = quietly(&mut sh("echo out; echo err >&2"), &run.0, Duration::from_secs(10)).unwrap();
        assert!(quick.status.unwrap().success());
        assert_eq!(quick.output, "out\nerr\n");
        let slow = quietly(&mut sh("echo started; sleep 30"), &run.0, Duration::from_millis(200)).unwrap();
        assert!(slow.status.is_none());
        assert_eq!(slow.output, "started\n");
    }

    #[test]
    fn the_next_run_can_end_what_this_one_started() {
        let run = Run::new("record");
        lines(&mut sh("echo $$"), &run.0, |_| ()).unwrap();
        let (_, record) = tb::folder::list(&run.1).remove(0);
        assert_eq!(record.unwrap().processes.len(), 1);
    }
}
