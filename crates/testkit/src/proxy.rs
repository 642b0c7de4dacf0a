//! A TCP proxy on loopback that can be cut, at a byte if need be, refused and held.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the proxy does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Passes bytes on.
    Open,
    /// Keeps connections open and passes nothing on.
    Held,
    /// The same, but what clients say is passed on.
    RepliesHeld,
    /// Closes what comes.
    Refused,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Requests,
    Replies,
}

/// How many bytes of replies may still pass before everything is cut; `None`: all.
type Allowance = Arc<Mutex<Option<usize>>>;

/// The mode, and how often everything was cut.
type State = Arc<watch::Sender<(Mode, u64)>>;

/// A proxy in front of one address. Dropping it cuts everything.
#[derive(Debug)]
pub struct CuttingProxy {
    address: SocketAddr,
    state: State,
    allowance: Allowance,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl CuttingProxy {
    /// Starts a proxy in front of `target` (`host:port`).
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = Arc::new(watch::channel((Mode::Open, 0)).0);
        let allowance = Allowance::default();
        let (target, from, allowed) = (target.to_owned(), state.clone(), allowance.clone());
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if from.borrow().0 == Mode::Refused {
                    continue;
                }
                let Ok(server) = TcpStream::connect(&target).await else { continue };
                counted.fetch_add(1, Ordering::SeqCst);
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                let (from, allowed) = (from.clone(), allowed.clone());
                tokio::spawn(pass(Way::Requests, client_read, server_write, from.clone(), allowed.clone()));
                tokio::spawn(pass(Way::Replies, server_read, client_write, from, allowed));
            }
        });
        Self { address, state, allowance, connections, task }
    }

    /// How many connections it has passed on so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Where it listens, as `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Cuts every connection; new ones are accepted.
    pub fn cut(&self) {
        self.state.send_modify(|state| *state = (Mode::Open, state.1 + 1));
    }

    /// Cuts every connection, and new ones too, until [`restore`](Self::restore).
    pub fn refuse(&self) {
        self.state.send_modify(|state| *state = (Mode::Refused, state.1 + 1));
    }

    /// Passes nothing on, in both directions, until [`restore`](Self::restore).
    pub fn hold(&self) {
        self.state.send_modify(|state| state.0 = Mode::Held);
    }

    /// Passes on what clients say, and none of the replies, until [`restore`](Self::restore) or a cut.
    pub fn hold_replies(&self) {
        self.state.send_modify(|state| state.0 = Mode::RepliesHeld);
    }

    /// Cuts every connection once so many more bytes of replies have passed, in the middle of a frame if it comes so; new
    /// ones are accepted.
    pub fn cut_after_replies(&self, bytes: usize) {
        *self.allowance.lock().expect("nobody panics with it") = Some(bytes);
    }

    /// Passes everything on again.
    pub fn restore(&self) {
        self.state.send_modify(|state| state.0 = Mode::Open);
    }
}

impl Drop for CuttingProxy {
    fn drop(&mut self) {
        self.refuse();
        self.task.abort();
    }
}

/// Passes bytes on one way until either side ends, or it is cut.
async fn pass(way: Way, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: State, allowance: Allowance) {
    let mut now = state.subscribe();
    let epoch = now.borrow().1;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            cut = now.wait_for(|state| state.1 != epoch) => { let _ = cut; return }
        };
        let Ok(count @ 1..) = read else { return };
        let is_held = |mode| mode == Mode::Held || mode == Mode::RepliesHeld && way == Way::Replies;
        match now.wait_for(|state| !is_held(state.0) || state.1 != epoch).await {
            Ok(now) if now.1 == epoch => {}
            _ => return,
        }
        let (count, is_last) = if way == Way::Replies { allow(&allowance, count) } else { (count, false) };
        let Some(bytes) = buffer.get(..count) else { return };
        if to.write_all(bytes).await.is_err() {
            return;
        }
        if is_last {
            state.send_modify(|state| *state = (Mode::Open, state.1 + 1));
            return;
        }
    }
}

/// How many of these bytes may pass, and whether everything is cut behind them.
fn allow(allowance: &Allowance, count: usize) -> (usize, bool) {
    let mut allowance = allowance.lock().expect("nobody panics with it");
    match &mut *allowance {
        Some(left) if *left > count => {
            *left -= count;
            (count, false)
        }
        Some(left) => {
            let last = *left;
            *allowance = None;
            (last, true)
        }
        None => (count, false),
    }
}
