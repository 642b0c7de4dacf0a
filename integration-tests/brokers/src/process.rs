//! Processes that are ours to stop, told apart from a stranger who was given the same pid later.

use std::fmt;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group, test_kill_process_group};

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(10);

/// A process, pinned by its pid and the moment it started. Written and parsed as `PID START`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessId {
    pid: i32,
    /// Opaque: only compared. Without blanks.
    started: String,
}

impl ProcessId {
    /// The process that has this pid now, unless there is none or only a zombie.
    pub fn of(pid: u32) -> Option<ProcessId> {
        let pid = i32::try_from(pid).ok()?;
        Some(ProcessId { pid, started: started(pid, Zombie::IsGone)? })
    }

    /// A child that was not waited for yet: until then its pid is its own, even if it has ended.
    pub fn of_child(child: &Child) -> Result<ProcessId> {
        let pid = i32::try_from(child.id())?;
        let started = started(pid, Zombie::IsThere)
            .with_context(|| format!("cannot read when process {pid} started"))?;
        Ok(ProcessId { pid, started })
    }

    /// This process.
    pub fn own() -> Result<ProcessId> {
        ProcessId::of(std::process::id()).context("cannot read when this process itself started")
    }

    /// The plain pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        started(self.pid, Zombie::IsGone).is_some_and(|started| started == self.started)
    }

    /// Sends `signal` to it, if it still runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.alive_pid() {
            // It may have ended since: that is what the caller wanted, or will notice.
            let _ = kill_process(pid, signal);
        }
    }

    /// Sends `signal` to it and to the whole process group that it leads, if it still runs.
    pub fn signal_group(&self, signal: Signal) {
        if let Some(pid) = self.alive_pid() {
            let _ = kill_process_group(pid, signal);
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends the process group that it leads: SIGTERM, and SIGKILL for whoever is left after `grace`.
    pub fn end_group(&self, grace: Duration) {
        let Some(group) = self.alive_pid() else { return };
        let _ = kill_process_group(group, Signal::TERM);
        wait_until(grace, || test_kill_process_group(group).is_err());
        // The leader may be gone by now; its number is not given to anybody while the group has a member.
        let _ = kill_process_group(group, Signal::KILL);
        self.wait_gone(grace);
    }

    /// Waits until it is gone; `false` if it still runs after `timeout`.
    pub fn wait_gone(&self, timeout: Duration) -> bool {
        wait_until(timeout, || !self.is_alive())
    }

    fn alive_pid(&self) -> Option<Pid> {
        // 0 and 1 would be everyone in our group, and init.
        Pid::from_raw(self.pid).filter(|_| self.pid > 1 && self.is_alive())
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

impl FromStr for ProcessId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<ProcessId> {
        let (pid, started) = text.split_once(' ').with_context(|| format!("`{text}` is not `PID START`"))?;
        let pid = pid.parse().with_context(|| format!("`{pid}` is not a pid"))?;
        if pid < 1 || started.is_empty() || started.contains(char::is_whitespace) {
            bail!("`{text}` is not `PID START`");
        }
        Ok(ProcessId { pid, started: started.to_owned() })
    }
}

/// Why a start failed, as far as the next step depends on it.
pub(crate) enum StartError {
    /// Somebody took one of the ports between our look and the broker's bind.
    LostPort(anyhow::Error),
    Other(anyhow::Error),
}

impl From<StartError> for anyhow::Error {
    fn from(error: StartError) -> Self {
        match error {
            StartError::LostPort(error) | StartError::Other(error) => error,
        }
    }
}

impl From<anyhow::Error> for StartError {
    fn from(error: anyhow::Error) -> Self {
        StartError::Other(error)
    }
}

/// What a process that has ended, and that nobody has waited for, counts as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zombie {
    IsThere,
    IsGone,
}

/// When the process started, in a form that is only compared; `None` if there is no such process.
fn started(pid: i32, zombie: Zombie) -> Option<String> {
    let (state, started) = if cfg!(target_os = "linux") {
        parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?
    } else {
        let output =
            Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid.to_string()]).output().ok()?;
        let line = String::from_utf8(output.stdout).ok()?;
        let (state, started) = line.trim().split_once(' ')?;
        (state.to_owned(), started.split_whitespace().collect::<Vec<_>>().join("_"))
    };
    (zombie == Zombie::IsThere || !state.starts_with(['Z', 'X'])).then_some(started)
}

/// The state and the start time out of Linux's `/proc/PID/stat`.
fn parse_stat(stat: &str) -> Option<(String, String)> {
    // The second field is the command's name in parentheses, and may hold blanks and parentheses itself.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    // starttime is field 22; the state was field 3.
    Some((state.to_owned(), fields.nth(18)?.to_owned()))
}

/// Whether new processes may still be started.
static GATE: Mutex<Gate> = Mutex::new(Gate::Open);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// This process is being interrupted: nothing may start behind the back of the one who stops everything.
    Shut,
}

fn gate() -> MutexGuard<'static, Gate> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on this process starts no broker any more.
pub(crate) fn shut_gate() {
    *gate() = Gate::Shut;
}

/// Starts `command` as the leader of a process group of its own, without standard input, and hands it to `record`
/// before anybody can ask to stop everything: there is no moment at which it runs and is not on record.
pub(crate) fn spawn(command: &mut Command, record: impl FnOnce(&ProcessId) -> Result<()>) -> Result<Running> {
    let gate = gate();
    if *gate == Gate::Shut {
        bail!("interrupted");
    }
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run `{program}`"))?;
    let id = ProcessId::of_child(&child)?;
    let mut running = Running { child, id };
    if let Err(error) = record(&running.id) {
        running.kill();
        return Err(error);
    }
    drop(gate);
    Ok(running)
}

/// A child of this process, and the group it leads.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    id: ProcessId,
}

impl Running {
    /// Which process it is.
    pub(crate) fn id(&self) -> &ProcessId {
        &self.id
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL for the whole group; returns when its leader is gone.
    pub(crate) fn kill(&mut self) {
        self.id.signal_group(Signal::KILL);
        // Also takes the zombie away.
        let _ = self.child.wait();
    }

    /// Waits for its end; `false` if it still runs after `timeout`.
    pub(crate) fn wait(&mut self, timeout: Duration) -> bool {
        wait_until(timeout, || self.ended().is_some())
    }
}

/// Runs `command` to its end and returns what it wrote to stdout. An error if it fails or takes longer than `timeout`
/// (then its process group is killed).
pub(crate) fn output(command: &mut Command, timeout: Duration) -> Result<String> {
    recorded_output(command, timeout, |_| Ok(()))
}

/// The same, for a command that must not outlive us: `record` is called as in [`spawn`].
pub(crate) fn recorded_output(
    command: &mut Command,
    timeout: Duration,
    record: impl FnOnce(&ProcessId) -> Result<()>,
) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut running = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()), record)?;
    // Read while it runs: a full pipe would stop it.
    let stdout = running.child.stdout.take().map(drain);
    let stderr = running.child.stderr.take().map(drain);
    let in_time = running.wait(timeout);
    if !in_time {
        running.kill();
    }
    let status = running.child.wait()?;
    let text =
        |reader: Option<thread::JoinHandle<String>>| reader.and_then(|it| it.join().ok()).unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    if !in_time {
        bail!("`{program}` did not end within {timeout:?}");
    }
    if !status.success() {
        bail!("`{program}` failed ({status}): {}{}", stdout.trim(), stderr.trim());
    }
    Ok(stdout)
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read is all that can be told.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Polls `done` until it holds; `false` after `timeout`.
pub(crate) fn wait_until(timeout: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        assert_eq!(own.to_string().parse::<ProcessId>().unwrap(), own);
        let stranger = ProcessId { started: "1".to_owned(), ..own };
        assert!(!stranger.is_alive());
    }

    #[test]
    fn garbage_is_no_process() {
        for text in ["", "12", "x 1", "-1 5", "0 5", "12 ", "12 a b"] {
            assert!(text.parse::<ProcessId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(parse_stat(stat).unwrap(), ("S".to_owned(), "4242".to_owned()));
        assert_eq!(parse_stat("nothing"), None);
    }

    #[test]
    fn a_zombie_is_gone_but_still_a_child() {
        let mut child = Command::new("true").spawn().unwrap();
        let id = ProcessId::of_child(&child).unwrap();
        assert!(id.wait_gone(Duration::from_secs(10)));
        assert_eq!(ProcessId::of_child(&child).unwrap(), id);
        child.wait().unwrap();
    }

    #[test]
    fn a_group_is_ended_without_its_leader() {
        // The leader goes at once, its child will not hear SIGTERM.
        let mut shell = Command::new("sh");
        shell.args(["-c", "(trap '' TERM; sleep 60) & echo $! ; wait"]).stdout(Stdio::piped());
        let mut running = spawn(&mut shell, |_| Ok(())).unwrap();
        let child = first_line(&mut running);
        let leader = running.id.clone();
        let waiter = thread::spawn(move || running.child.wait());
        thread::sleep(Duration::from_millis(200));
        leader.end_group(Duration::from_millis(500));
        assert!(child.wait_gone(Duration::from_secs(5)));
        waiter.join().unwrap().unwrap();
    }

    /// The process whose pid is the first line that `running` writes.
    fn first_line(running: &mut Running) -> ProcessId {
        let mut line = String::new();
        let stdout = running.child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        ProcessId::of(line.trim().parse().unwrap()).unwrap()
    }

    #[test]
    fn the_group_dies_with_its_leader() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 60 & echo $! ; wait"]).stdout(Stdio::piped());
        let mut running = spawn(&mut shell, |_| Ok(())).unwrap();
        let grandchild = first_line(&mut running);
        running.kill();
        assert!(grandchild.wait_gone(Duration::from_secs(5)));
    }

    #[test]
    fn output_has_a_deadline_and_reports_failure() {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        assert_eq!(output(&mut sh("echo hello"), Duration::from_secs(10)).unwrap(), "hello\n");
        let failed =
            output(&mut sh("echo why >&2; exit 3"), Duration::from_secs(10)).unwrap_err().to_string();
        assert!(failed.contains("why") && failed.contains('3'), "{failed}");
        let slow = output(&mut sh("sleep 60"), Duration::from_millis(50)).unwrap_err().to_string();
        assert!(slow.contains("did not end"), "{slow}");
    }
}
