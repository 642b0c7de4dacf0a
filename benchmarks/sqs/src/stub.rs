//! A stub of SQS on a loopback port, in a process of its own: what is measured is the client.
//!
//! It speaks SQS's JSON protocol over HTTP/1.1, keeps the messages of any number of standard queues in memory, and answers
//! as SQS does: an id and the digests for what is sent, a receipt handle and the system attributes for what is received,
//! an answer for each entry, a wait for messages where there are none. What was received and is not deleted comes back only
//! where a client asks for it (`ChangeMessageVisibilityBatch` with 0): no lease ends within a round.

mod queues;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::stub::queues::{Asked, Queues};

/// What the stub has seen and holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Requests by action.
    pub(crate) requests: BTreeMap<String, u64>,
    /// Messages that are visible.
    pub(crate) visible: usize,
    /// Messages that were received and not deleted.
    pub(crate) in_flight: usize,
}

struct Stub {
    queues: Queues,
    requests: Mutex<BTreeMap<String, u64>>,
    latency: Duration,
}

impl Stub {
    fn count(&self, action: &str) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        match requests.get_mut(action) {
            Some(count) => *count += 1,
            None => {
                requests.insert(action.to_owned(), 1);
            }
        }
    }

    fn counts(&self) -> Counts {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (visible, in_flight) = self.queues.depth();
        Counts { requests, visible, in_flight }
    }
}

/// Serves until the standard input ends. Writes the endpoint, then the counts for each line that it reads.
pub(crate) fn serve(latency: Duration) -> Result<()> {
    // One thread: it must not take more of the machine than it needs.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        println!("{endpoint}");
        let queues = Queues::new(endpoint);
        let stub = Arc::new(Stub { queues, requests: Mutex::default(), latency });
        let asked = stub.clone();
        let input = tokio::task::spawn_blocking(move || {
            for line in std::io::stdin().lock().lines() {
                line?;
                println!("{}", serde_json::to_string(&asked.counts())?);
            }
            anyhow::Ok(())
        });
        let app = Router::new().fallback(answer).with_state(stub);
        tokio::select! {
            served = axum::serve(listener, app).into_future() => served.context("serving"),
            ended = input => ended?,
        }
    })
}

async fn answer(State(stub): State<Arc<Stub>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let action = target.strip_prefix("AmazonSQS.").unwrap_or_default();
    stub.count(action);
    if !stub.latency.is_zero() {
        tokio::time::sleep(stub.latency).await;
    }
    match stub.queues.answer(action, Asked::new(&body)).await {
        Ok(answer) => ([(header::CONTENT_TYPE, "application/x-amz-json-1.0")], answer).into_response(),
        Err(error) => {
            let text = format!(
                r#"{{"__type":"com.amazonaws.sqs#InvalidRequest","message":{:?}}}"#,
                error.to_string()
            );
            (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/x-amz-json-1.0")], text)
                .into_response()
        }
    }
}
