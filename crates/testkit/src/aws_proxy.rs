//! An HTTP proxy in front of an AWS emulator, that lets chosen entries of batches fail, refuses, delays, and has a clock
//! of its own. For services that speak AWS's JSON protocol: SQS and EventBridge.
#![allow(clippy::indexing_slicing, reason = "JSON's own indexing: what is missing is null")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

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
    let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let action = target.and_then(|target| target.rsplit('.').next()).unwrap_or_default().to_owned();
    let (to, fault, ahead) = {
        let mut inner = inner.lock().expect("nobody panics with it");
        *inner.calls.entry(action.clone()).or_default() += 1;
        let faults = inner.faults.get_mut(&action).filter(|faults| !faults.is_empty());
        let fault = faults.map(|faults| faults.remove(0));
        (format!("{}{}", inner.target, parts.uri), fault, inner.ahead)
    };
    if let Some(ahead) = ahead
        && is_late(&parts.headers, ahead)
    {
        let mut refused = refuse(403, "RequestTimeTooSkewed");
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
        Some(Fault::Refuse { status, code }) => return refuse(status, code),
        Some(Fault::Delay(by)) => tokio::time::sleep(by).await,
        Some(Fault::LoseAnswer) => {
            let _ = send(body.to_vec()).await;
            // A body that fails before its first byte: the connection is closed without an answer.
            let lost = futures_util::stream::once(async { Err::<Vec<u8>, _>(std::io::Error::other("lost")) });
            return Response::new(Body::from_stream(lost));
        }
        Some(Fault::Entries { places, code, sender }) => {
            let mut batch: Value = serde_json::from_slice(&body).expect("JSON");
            let failed = take_places(&mut batch, &places);
            let answer = if batch["Entries"].as_array().is_some_and(|entries| !entries.is_empty()) {
                let (_, _, answer) = send(batch.to_string().into_bytes()).await.expect("an answer");
                serde_json::from_slice(&answer).expect("JSON")
            } else {
                json!({})
            };
            return respond(match action.as_str() {
                "PutEvents" => with_failed_places(answer, &places, code),
                _ => with_failed(answer, &failed, code, sender),
            });
        }
        None => {}
    }
    match send(body.to_vec()).await {
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
        None => refuse(502, "BadGateway"),
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

fn take_places(batch: &mut Value, places: &[usize]) -> Vec<String> {
    let entries = batch["Entries"].as_array_mut().expect("a batch");
    let mut failed = Vec::new();
    let mut place = 0;
    entries.retain(|entry| {
        let fails = places.contains(&place);
        place += 1;
        if fails {
            failed.push(entry["Id"].as_str().unwrap_or_default().to_owned());
        }
        !fails
    });
    failed
}

fn with_failed(mut answer: Value, ids: &[String], code: &str, sender: bool) -> Value {
    let failed =
        ids.iter().map(|id| json!({ "Id": id, "Code": code, "SenderFault": sender, "Message": "injected" }));
    let mut all: Vec<Value> = answer["Failed"].as_array().cloned().unwrap_or_default();
    all.extend(failed);
    answer["Failed"] = Value::Array(all);
    answer
}

/// EventBridge's answers have no ids: they stand at the places of the entries.
fn with_failed_places(mut answer: Value, places: &[usize], code: &str) -> Value {
    let mut all: Vec<Value> = answer["Entries"].as_array().cloned().unwrap_or_default();
    for place in places {
        all.insert(*place, json!({ "ErrorCode": code, "ErrorMessage": "injected" }));
    }
    answer["FailedEntryCount"] = places.len().into();
    answer["Entries"] = Value::Array(all);
    answer
}

fn respond(answer: Value) -> Response<Body> {
    let mut response = Response::new(Body::from(answer.to_string()));
    response.headers_mut().insert("content-type", "application/x-amz-json-1.0".parse().expect("a type"));
    response
}

fn refuse(status: u16, code: &str) -> Response<Body> {
    let mut response =
        respond(json!({ "__type": format!("com.amazonaws.injected#{code}"), "message": "injected" }));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}
