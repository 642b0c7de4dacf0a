//! Keeps a connection: makes it, and makes it again when it is lost.
//!
//! The client's own recovery is not used: it replays what we declare anew anyway, and hides which confirms and
//! deliveries belong to which connection.

use std::fmt;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::tcp::{AsyncTcpStream, RustlsConnector};
use lapin::types::ShortString;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{Channel, Connection, ConnectionProperties};
use throughline_core::{Error, ErrorKind, Result, Retry};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::config::Settings;
use crate::{error, tls};

/// The first wait after a failed attempt, and the longest. Each is shortened by up to half, at random, so that the
/// clients of a restarted broker do not come all at once.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long an answer to a request on a channel may take. Longer than a queue's leader election.
const ANSWER: Duration = Duration::from_secs(30);
/// How long each step of opening a channel may take. The client can forget a request when the connection is lost while it
/// is being made; it is made again, and nobody is to wait long for that.
const OPENED: Duration = Duration::from_secs(10);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);

/// An established connection.
pub(crate) struct Link {
    connection: Connection,
    socket: Socket,
}

/// A second handle of the connection's socket, to end it when the peer does not.
#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Socket {
    fn set(&self, socket: Option<TcpStream>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }

    fn cut(&self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Link {
    pub(crate) fn is_up(&self) -> bool {
        self.connection.status().connected()
    }

    /// A new channel.
    pub(crate) async fn channel(&self) -> Result<Channel> {
        opened(self.connection.create_channel()).await
    }

    /// What the broker and we agreed on: the largest frame, in bytes.
    pub(crate) fn frame_max(&self) -> usize {
        usize::try_from(self.connection.configuration().frame_max()).unwrap_or(usize::MAX)
    }

    /// How many channels it may have, and the interval of heartbeats, in seconds.
    pub(crate) fn agreed(&self) -> (u16, u16) {
        let agreed = self.connection.configuration();
        (agreed.channel_max(), agreed.heartbeat())
    }

    /// Whether the broker has said that it takes no messages for now.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    async fn close(&self) {
        let goodbye = self.connection.close(200, ShortString::default());
        if !matches!(tokio::time::timeout(GOODBYE, goodbye).await, Ok(Ok(()))) {
            self.socket.cut();
        }
    }
}

/// The broker's answer to a request, or an error after [`ANSWER`]: one that comes neither is a hang.
pub(crate) async fn answer<T>(request: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    answer_within(ANSWER, request).await
}

/// The answer to a request that belongs to the opening of a channel.
pub(crate) async fn opened<T>(request: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    answer_within(OPENED, request).await
}

async fn answer_within<T>(time: Duration, request: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    match tokio::time::timeout(time, request).await {
        Ok(answer) => answer.map_err(error::map),
        Err(_) => Err(error::no_answer()),
    }
}

/// Closes a channel that nothing depends on any more.
pub(crate) async fn close_channel(channel: &Channel) {
    if channel.status().connected() {
        let _ = tokio::time::timeout(GOODBYE, channel.close(200, ShortString::default())).await;
    }
}

/// Counts the connections made to one broker, so that who waits for it need not wait longer than who got there first.
#[derive(Clone, Debug)]
pub(crate) struct Reached(Arc<watch::Sender<u64>>);

impl Reached {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    fn count(&self) -> u64 {
        *self.0.borrow()
    }
}

/// Keeps one connection.
pub(crate) struct Keeper(Arc<Inner>);

struct Inner {
    settings: Settings,
    reached: Reached,
    /// What the connection is for, in its name.
    role: &'static str,
    tls: Option<Arc<RustlsConnector>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    attempt: Option<Attempt>,
    task: Option<JoinHandle<()>>,
    failures: u32,
    pause: Option<Pause>,
    closed: bool,
}

/// No attempt for a while after a failed one; until then its error is the answer.
#[derive(Clone)]
struct Pause {
    until: Instant,
    error: Error,
    /// How many connections had been made to the broker. One more ends the pause.
    reached: u64,
}

/// The outcome of the attempt under way, which all who ask wait for.
type Attempt = watch::Receiver<Option<Result<Arc<Link>>>>;

impl Keeper {
    /// Reads the TLS files; connects nothing yet.
    pub(crate) fn new(
        settings: Settings,
        role: &'static str,
        tls: Option<Arc<RustlsConnector>>,
        reached: Reached,
    ) -> Self {
        Self(Arc::new(Inner { settings, reached, role, tls, state: Mutex::default() }))
    }

    /// The connection; made if there is none. One attempt: its failure is the answer, and that of the pause after it.
    pub(crate) async fn link(&self) -> Result<Arc<Link>> {
        let mut attempt = {
            let mut state = self.0.state();
            if state.closed {
                return Err(Error::new(ErrorKind::Closed, "the transport is closed"));
            }
            match &state.link {
                Some(link) if link.is_up() => return Ok(link.clone()),
                Some(_) => {
                    tracing::warn!(
                        role = self.0.role,
                        "the connection to RabbitMQ is lost, connecting again"
                    );
                    state.link = None;
                }
                None => {}
            }
            match (&state.attempt, self.0.pause(&state)) {
                (Some(attempt), _) => attempt.clone(),
                (None, Some(pause)) => return Err(pause.error.clone()),
                (None, None) => self.0.clone().attempt(&mut state),
            }
        };
        let outcome = attempt.wait_for(Option::is_some).await.map_err(|_| error::disconnected("closed"))?;
        outcome.clone().unwrap_or_else(|| Err(error::disconnected("closed")))
    }

    /// What it connects with.
    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(crate) fn tls(&self) -> Option<&RustlsConnector> {
        self.0.tls.as_deref()
    }

    /// Waits until the next attempt may be made. Gives whether that was a wait: whether the last attempt failed.
    pub(crate) async fn pause(&self) -> bool {
        let pause = self.0.pause(&self.0.state()).cloned();
        let Some(pause) = pause else { return false };
        let mut reached = self.0.reached.0.subscribe();
        let _ =
            tokio::time::timeout_at(pause.until, reached.wait_for(|reached| *reached > pause.reached)).await;
        true
    }

    /// Closes the connection, and waits for an attempt under way.
    pub(crate) async fn close(&self) {
        let (link, task) = {
            let mut state = self.0.state();
            state.closed = true;
            (state.link.take(), state.task.take())
        };
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the task that connects failed");
        }
        let late = self.0.state().link.take();
        for link in link.into_iter().chain(late) {
            link.close().await;
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("settings", &self.0.settings).field("role", &self.0.role).finish()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pause that is still to be kept.
    fn pause<'a>(&self, state: &'a State) -> Option<&'a Pause> {
        let pause = state.pause.as_ref()?;
        (pause.until > Instant::now() && pause.reached == self.reached.count()).then_some(pause)
    }

    /// Starts an attempt in a task of its own, so that it outlives who asked for it.
    fn attempt(self: Arc<Self>, state: &mut State) -> Attempt {
        let (sender, attempt) = watch::channel(None);
        state.attempt = Some(attempt.clone());
        state.task = Some(tokio::spawn(async move {
            let outcome = dial(&self.settings, self.role, self.tls.clone()).await.map(Arc::new);
            self.settle(&outcome);
            sender.send_replace(Some(outcome));
        }));
        attempt
    }

    fn settle(&self, outcome: &Result<Arc<Link>>) {
        let mut state = self.state();
        state.attempt = None;
        match outcome {
            Ok(link) => {
                if state.failures > 0 {
                    tracing::info!(role = self.role, "connected to RabbitMQ again");
                }
                state.failures = 0;
                state.pause = None;
                state.link = Some(link.clone());
                self.reached.0.send_modify(|reached| *reached += 1);
            }
            Err(error) => {
                let pause = backoff(state.failures);
                state.failures = state.failures.saturating_add(1);
                tracing::debug!(%error, ?pause, "connecting to RabbitMQ failed");
                let (until, reached) = (Instant::now() + pause, self.reached.count());
                state.pause = Some(Pause { until, error: error.clone(), reached });
            }
        }
    }
}

/// The wait after so many failures before.
pub(crate) fn backoff(failures: u32) -> Duration {
    let full = BACKOFF.0.saturating_mul(1 << failures.min(10)).min(BACKOFF.1);
    // The low half of a new UUIDv7 is random.
    let random = Uuid::now_v7().as_u64_pair().1 as u32;
    full / 2 + (full / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

async fn dial(settings: &Settings, role: &str, tls: Option<Arc<RustlsConnector>>) -> Result<Link> {
    let socket = Socket::default();
    let connecting = connect(settings, role, tls, socket.clone());
    match tokio::time::timeout(settings.connect_timeout, connecting).await {
        Ok(Ok(connection)) => Ok(Link { connection, socket }),
        Ok(Err(error)) => Err(describe(error::map_connect(error), settings)),
        Err(_) => {
            // The client's thread waits for the peer; this ends its wait.
            socket.cut();
            let text = format!(
                "no connection to {}:{} within {:?}",
                settings.host, settings.port, settings.connect_timeout
            );
            Err(Error::new(ErrorKind::Timeout, text).with_retry(Retry::Safe))
        }
    }
}

/// The same error, naming where it happened where its text does not.
fn describe(error: Error, settings: &Settings) -> Error {
    let native = error.native::<lapin::Error>().cloned();
    let text = match error.kind() {
        ErrorKind::NotFound => format!("there is no virtual host '{}' on the broker", settings.vhost),
        // The broker's own text names the user.
        ErrorKind::PermissionDenied => {
            format!("the broker refuses this user access to the virtual host '{}'", settings.vhost)
        }
        ErrorKind::Disconnected => {
            format!("cannot connect to {}:{}: {}", settings.host, settings.port, error.message())
        }
        _ => return error,
    };
    let described = Error::new(error.kind(), text).with_retry(error.retry());
    match native {
        Some(native) => described.with_source(native),
        None => described,
    }
}

async fn connect(
    settings: &Settings,
    role: &str,
    tls: Option<Arc<RustlsConnector>>,
    socket: Socket,
) -> lapin::Result<Connection> {
    let uri = AMQPUri {
        scheme: if tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: settings.user.clone(), password: settings.password.clone() },
            host: settings.host.clone(),
            port: settings.port,
        },
        vhost: settings.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: u16::try_from(settings.heartbeat.as_secs()).ok(),
            auth_mechanism: settings.external.then_some(SASLMechanism::External),
            ..AMQPQueryString::default()
        },
    };
    let properties = ConnectionProperties::default()
        .with_connection_name(format!("{} ({role})", settings.name).into())
        .with_client_property("product".into(), "throughline".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let server_name = settings.tls.as_ref().map(|tls| tls.server_name.clone()).unwrap_or_default();
    let timeout = settings.connect_timeout;
    Connection::connector(
        uri,
        lapin::runtime::default_runtime()?,
        async move |uri: AMQPUri, runtime| {
            // The client's thread runs this, and goes on when the caller has given up: so it has a time of its own.
            let stream = tokio::time::timeout(timeout, async {
                let mut last = std::io::Error::other("the host name has no address");
                let addresses =
                    tokio::net::lookup_host((uri.authority.host.as_str(), uri.authority.port)).await?;
                for address in addresses {
                    match AsyncTcpStream::connect(&runtime, address).await {
                        Ok(stream) => return Ok(stream),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            });
            let stream = stream.await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
            if let AsyncTcpStream::Plain(plain) = &stream {
                socket.set(duplicate(plain.get_ref()));
            }
            let stream = match &tls {
                Some(connector) => stream.into_rustls(connector, &server_name).await?,
                None => stream,
            };
            Ok(stream)
        },
        properties,
    )
    .await
}

#[cfg(unix)]
fn duplicate(socket: &tokio::net::TcpStream) -> Option<TcpStream> {
    use std::os::fd::AsFd;
    socket.as_fd().try_clone_to_owned().ok().map(TcpStream::from)
}

#[cfg(windows)]
fn duplicate(socket: &tokio::net::TcpStream) -> Option<TcpStream> {
    use std::os::windows::io::AsSocket;
    socket.as_socket().try_clone_to_owned().ok().map(TcpStream::from)
}

/// Reads the TLS files that the settings name.
pub(crate) async fn tls_connector(settings: &Settings) -> Result<Option<Arc<RustlsConnector>>> {
    match settings.tls.clone() {
        Some(config) => {
            let read = tokio::task::spawn_blocking(move || tls::connector(&config)).await;
            let read = read.unwrap_or_else(|error| {
                Err(Error::new(ErrorKind::Internal, "reading the TLS files failed").with_source(error))
            });
            read.map(|connector| Some(Arc::new(connector)))
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_cap_and_is_spread() {
        for failures in [0, 1, 5, 20, u32::MAX] {
            let full = BACKOFF.0.saturating_mul(1 << failures.min(10)).min(BACKOFF.1);
            for _ in 0..100 {
                let wait = backoff(failures);
                assert!(wait >= full / 2 && wait <= full, "{failures}: {wait:?}");
            }
        }
        let spread: std::collections::HashSet<_> = (0..20).map(|_| backoff(20)).collect();
        assert!(spread.len() > 10);
    }
}
