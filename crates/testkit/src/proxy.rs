//! A TCP proxy on loopback that can be cut, refused and held.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    /// Closes what comes.
    Refused,
}

/// A proxy in front of one address. Dropping it cuts everything.
#[derive(Debug)]
pub struct CuttingProxy {
    address: SocketAddr,
    /// The mode, and how often everything was cut.
    state: Arc<watch::Sender<(Mode, u64)>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl CuttingProxy {
    /// Starts a proxy in front of `target` (`host:port`).
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = Arc::new(watch::channel((Mode::Open, 0)).0);
        let (target, from) = (target.to_owned(), state.clone());
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
                tokio::spawn(pass(client_read, server_write, from.subscribe()));
                tokio::spawn(pass(server_read, client_write, from.subscribe()));
            }
        });
        Self { address, state, connections, task }
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
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<(Mode, u64)>) {
    let epoch = state.borrow().1;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            cut = state.wait_for(|state| state.1 != epoch) => { let _ = cut; return }
        };
        let Ok(count @ 1..) = read else { return };
        match state.wait_for(|state| state.0 != Mode::Held || state.1 != epoch).await {
            Ok(now) if now.1 == epoch => {}
            _ => return,
        }
        let Some(bytes) = buffer.get(..count) else { return };
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
