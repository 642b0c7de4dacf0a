//! An HTTP proxy in front of an AWS emulator, that lets chosen entries of batches fail, refuses, delays, and has a clock
//! of its own. For SQS, SNS and EventBridge.
#![allow(clippy::indexing_slicing, reason = "JSON's own indexing: what is missing is null")]

mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use wire::Call;

/// The largest request: AWS's own limit and what stands around it.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// By how much a request's time may differ from the server's, as with AWS.
const MAX_SKEW: Duration = Duration::from_secs(5 * 60);

/// What happens to the next requests of an action.
#[derive(Clone, Debug)]
pub enum Fault {
    /// These entries of a batch fail, by their places; the others are passed on.
    Entries {
        /// The places, from 0, in order.
        places: Vec<usize>,
        /// The error's code.
        code: &'static str,
        /// Whether it is the sender's fault.
        sender: bool,
    },
    /// The request is refused and not passed on.
    Refuse {
        /// The HTTP status.
        status: u16,
        /// The error's code.
        code: &'static str,
    },
    /// The request is passed on, and its answer is lost with the connection.
    LoseAnswer,
    /// The request is passed on later.
    Delay(Duration),
}

#[derive(Default)]
struct Inner {
    target: String,
    calls: BTreeMap<String, usize>,
    faults: BTreeMap<String, Vec<Fault>>,
    /// For requests that have none of their own.
    standing: Option<Fault>,
    /// How far the server's clock is ahead.
    ahead: Option<Duration>,
}

type Shared = Arc<Mutex<Inner>>;

/// A proxy in front of one endpoint. Dropping it ends it.
#[derive(Debug)]
pub struct AwsProxy {
    address: SocketAddr,
    inner: SharedInner,
    task: JoinHandle<()>,
}

struct SharedInner(Shared);

impl std::fmt::Debug for SharedInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AwsProxy")
    }
}

impl AwsProxy {
    /// Starts a proxy in front of `target` (`http://host:port`).
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let inner = Arc::new(Mutex::new(Inner { target: target.to_owned(), ..Inner::default() }));
        let client = reqwest::Client::new();
        let app = Router::new().fallback(pass).with_state((inner.clone(), client));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { address, inner: SharedInner(inner), task }
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Faults for the next requests of an action (`SendMessageBatch`), one each.
    pub fn inject(&self, action: &str, faults: impl IntoIterator<Item = Fault>) {
        self.inner().faults.entry(action.to_owned()).or_default().extend(faults);
    }

    /// A fault for all requests that have none of their own, until it is another or `None`.
    pub fn always(&self, fault: Option<Fault>) {
        self.inner().standing = fault;
    }

    /// From now on the server's clock is ahead of this machine's, and it refuses requests that are not within five
    /// minutes of its own time.
    pub fn set_clock_ahead(&self, by: Duration) {
        self.inner().ahead = Some(by);
    }

    /// How many requests of an action have come so far.
    pub fn calls(&self, action: &str) -> usize {
        self.inner().calls.get(action).copied().unwrap_or(0)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.0.lock().expect("nobody panics with it")
    }
}

impl Drop for AwsProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    State((inner, client)): State<(Shared, reqwest::Client)>,
    request: Request<Body>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, MAX_BODY).await.expect("a request of AWS's size");
    let call = Call::new(&parts.headers, body.to_vec());
    let (to, fault, ahead) = {
        let mut inner = inner.lock().expect("nobody panics with it");
        *inner.calls.entry(call.action.clone()).or_default() += 1;
        let faults = inner.faults.get_mut(&call.action).filter(|faults| !faults.is_empty());
        let fault = faults.map(|faults| faults.remove(0)).or_else(|| inner.standing.clone());
        (format!("{}{}", inner.target, parts.uri), fault, inner.ahead)
    };
    if let Some(ahead) = ahead
        && is_late(&parts.headers, ahead)
    {
        let mut refused = call.refuse(403, "RequestTimeTooSkewed");
        let now = httpdate::fmt_http_date(SystemTime::now() + ahead);
        refused.headers_mut().insert("date", now.parse().expect("a date is a header's value"));
        return refused;
    }
    let send = |body: Vec<u8>| {
        let mut headers = parts.headers.clone();
        for name in ["host", "content-length", "transfer-encoding"] {
            headers.remove(name);
        }
        let request = client.request(parts.method.clone(), &to).headers(headers).body(body);
        async move {
            let answer = request.send().await.ok()?;
            Some((answer.status(), answer.headers().clone(), answer.bytes().await.ok()?.to_vec()))
        }
    };
    match fault {
        Some(Fault::Refuse { status, code }) => return call.refuse(status, code),
        Some(Fault::Delay(by)) => tokio::time::sleep(by).await,
        Some(Fault::LoseAnswer) => {
            let _ = send(call.body).await;
            // A body that fails before its first byte: the connection is closed without an answer.
            let lost = futures_util::stream::once(async { Err::<Vec<u8>, _>(std::io::Error::other("lost")) });
            return Response::new(Body::from_stream(lost));
        }
        Some(Fault::Entries { places, code, sender }) => {
            let mut taken = call.take(&places);
            let answer = match taken.rest.take() {
                Some(rest) => Some(send(rest).await.expect("an answer").2),
                None => None,
            };
            return call.with_failed(&taken, answer.as_deref(), (code, sender));
        }
        None => {}
    }
    match send(call.body.clone()).await {
        Some((status, headers, body)) => {
            let mut answer = Response::new(Body::from(body));
            *answer.status_mut() = status;
            for name in ["content-type", "x-amzn-requestid", "x-amzn-query-error", "date"] {
                if let Some(value) = headers.get(name) {
                    answer.headers_mut().insert(name, value.clone());
                }
            }
            answer
        }
        None => call.refuse(502, "BadGateway"),
    }
}

/// Whether a request's own time is not that of the server.
fn is_late(headers: &HeaderMap, ahead: Duration) -> bool {
    let signed = headers.get("x-amz-date").and_then(|date| date.to_str().ok()).expect("a signed request");
    // 20261122T101112Z
    let part = |range: std::ops::Range<usize>| signed.get(range).expect("a date");
    let rfc = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0..4),
        part(4..6),
        part(6..8),
        part(9..11),
        part(11..13),
        part(13..15)
    );
    let signed = humantime::parse_rfc3339(&rfc).expect("a date");
    let now = SystemTime::now() + ahead;
    now.duration_since(signed).unwrap_or_else(|earlier| earlier.duration()) > MAX_SKEW
}
