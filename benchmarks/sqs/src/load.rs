//! What is sent where, and how it is timed.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use cpu_time::ProcessTime;
use throughline_aws::settings::{Connection, Service, Settings};
use throughline_sqs::aws_sdk_sqs::{Client, config};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::stub::Counts;

/// Requests under way at once, of each kind.
pub(crate) const CALLS: usize = 8;
/// Messages of a request: the most that SQS takes.
pub(crate) const BATCH: usize = 10;
/// Messages that the application has given and not yet has an answer for, and that it has received and not yet acked.
pub(crate) const IN_FLIGHT: usize = 1_000;
/// How long a request waits for messages.
pub(crate) const POLL: Duration = Duration::from_secs(1);

/// The service: the stub in a process of its own, or an endpoint that somebody else runs.
pub(crate) struct Broker {
    endpoint: String,
    stub: Option<Stub>,
    client: Client,
}

struct Stub {
    /// Killed when it is dropped; it ends by itself when its input does.
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Broker {
    /// Starts the stub, whose answers each take so long.
    pub(crate) async fn stub(latency: Duration) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["stub", &latency.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().context("no pipe")?;
        let mut output = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let endpoint = output.next_line().await?.context("the stub did not start")?;
        let client = client(&endpoint).await?;
        Ok(Self { endpoint, stub: Some(Stub { _child: child, input, output }), client })
    }

    /// Uses an endpoint as it is; its requests are not counted.
    pub(crate) async fn at(endpoint: &str) -> Result<Self> {
        Ok(Self { endpoint: endpoint.to_owned(), stub: None, client: client(endpoint).await? })
    }

    /// An empty queue of that name.
    pub(crate) async fn fresh(&self, queue: &str) -> Result<()> {
        self.client.create_queue().queue_name(queue).send().await?;
        Ok(())
    }

    pub(crate) async fn delete(&self, load: &Load) -> Result<()> {
        self.client.delete_queue().queue_url(load.url().await?).send().await?;
        Ok(())
    }

    /// What the stub has seen until now, and holds.
    pub(crate) async fn counts(&mut self) -> Result<Option<Counts>> {
        let Some(stub) = &mut self.stub else { return Ok(None) };
        stub.input.write_all(b"\n").await?;
        let line = stub.output.next_line().await?.context("the stub has ended")?;
        Ok(Some(serde_json::from_str(&line)?))
    }

    /// What one contender is to do.
    pub(crate) fn load(&self, queue: &str, messages: usize, bytes: usize) -> Load {
        let body = Bytes::from(vec![b'x'; bytes]);
        Load { endpoint: self.endpoint.clone(), queue: queue.to_owned(), messages, body }
    }
}

/// So many messages, into or out of that queue.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) endpoint: String,
    pub(crate) queue: String,
    pub(crate) messages: usize,
    pub(crate) body: Bytes,
}

impl Load {
    /// The raw client, of the same making as ours: HTTP client, time-outs, no retries.
    pub(crate) async fn client(&self) -> Result<Client> {
        client(&self.endpoint).await
    }

    pub(crate) async fn url(&self) -> Result<String> {
        let found = self.client().await?.get_queue_url().queue_name(&self.queue).send().await?;
        found.queue_url.context("no URL")
    }
}

async fn client(endpoint: &str) -> Result<Client> {
    let address = format!("sqs://none?region=us-east-1&endpoint={endpoint}").parse()?;
    let connection: Connection = Settings::of(&address)?.load(Service::Sqs).await?;
    let timeouts = connection.timeouts(POLL);
    Ok(Client::from_conf(config::Builder::from(&connection.config).timeout_config(timeouts).build()))
}

/// The time that something took, on the wall and on this process's processors: the stub's are not counted.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

pub(crate) struct Stopwatch(Instant, ProcessTime);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now(), ProcessTime::now())
    }

    pub(crate) fn stop(&self) -> Span {
        Span { wall: self.0.elapsed(), cpu: self.1.elapsed() }
    }
}
