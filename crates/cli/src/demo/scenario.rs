//! The scenario: what is set up, in which order it plays, and what is taken down.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::trace::TraceContextExt;
use throughline::{Address, Bus, registered};
use tokio::task::JoinSet;

use super::{http, services, worker};
use crate::failure::{Exit, Failure};

/// The worker starts that late, so that there is something to see of the queue.
pub(super) const WORKER_LATE: Duration = Duration::from_millis(25);
/// How long taking down may take.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// What is being done, for the error of a demo that does not end.
#[derive(Debug)]
pub(super) struct Stage(Mutex<&'static str>);

impl Default for Stage {
    fn default() -> Self {
        Self(Mutex::new("starting"))
    }
}

impl Stage {
    pub(super) fn set(&self, stage: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    pub(super) fn get(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connected bus with a queue to go through.
#[derive(Debug)]
pub(super) struct Scenario {
    bus: Bus,
    /// The queue was made for this run.
    created: bool,
}

impl Scenario {
    /// Connects; where the address names no destination, makes a queue for this run.
    pub(super) async fn prepare(via: &str) -> Result<Self, Failure> {
        let address: Address = via.parse()?;
        let transport = registered(&address)?;
        let knows = |name: &str| transport.options.iter().any(|option| option.name == name);
        // Where there are groups, the topic is the path.
        let (queues, groups) = (knows("queue"), knows("group"));
        let named = ["queue", "topic", "exchange"].iter().any(|option| address.option(option).is_some())
            || (groups && !address.path().trim_matches('/').is_empty());
        if named || !(queues || groups) {
            return Ok(Self { bus: Bus::connect_to(address).await?, created: false });
        }
        // A random state is seeded by the system.
        let unique = RandomState::new().hash_one(std::process::id());
        let name = format!("throughline-demo-{unique:016x}");
        let address = if groups {
            address.with_path(format!("/{name}")).with_option("group", &name)
        } else {
            address.with_option("queue", &name)
        };
        let bus = Bus::connect_to(address).await?;
        match bus.create("").await {
            Ok(_) => Ok(Self { bus, created: true }),
            Err(error) => {
                let _ = bus.close().await;
                Err(error.into())
            }
        }
    }

    /// Plays it; gives the id of the trace.
    pub(super) async fn play(&self, stage: &Stage) -> Result<String, Failure> {
        stage.set("opening the queue");
        let publisher = self.bus.publisher().await?;
        // Dropped, it ends them.
        let mut servers = JoinSet::new();
        let ads_api = services::ads_api(&mut servers).await?;
        let api = services::api(&mut servers, publisher).await?;
        let client = http::Client::new()?;

        stage.set("sending the HTTP request");
        let body = serde_json::json!({ "company_id": services::COMPANY, "profile_id": services::PROFILE });
        let (answer, context) = client.post("api", &api, "/sync", &body).await?;
        let message = match (answer.status, answer.body.get("message_id").and_then(|id| id.as_str())) {
            (202, Some(id)) => id.to_owned(),
            (status, _) => {
                let why =
                    answer.body.get("error").and_then(|error| error.as_str()).unwrap_or("no reason given");
                let exit = answer.body.get("exit").and_then(serde_json::Value::as_u64);
                let exit = if exit == Some(Exit::NotFound as u64) { Exit::NotFound } else { Exit::Failed };
                return Err(Failure::new(exit, format!("the demo's API answered {status}: {why}")));
            }
        };

        stage.set("waiting for the worker to process the message");
        tokio::time::sleep(WORKER_LATE).await;
        let consumer = self.bus.consumer().await?;
        worker::work(consumer, &message, &client, &ads_api).await?;
        Ok(context.span().span_context().trace_id().to_string())
    }

    /// Deletes what was created, and closes.
    pub(super) async fn clean_up(self) -> Result<(), Failure> {
        let clean = async {
            let deleted = if self.created { self.bus.delete("").await.map(drop) } else { Ok(()) };
            let closed = self.bus.close().await;
            deleted.and(closed)
        };
        match tokio::time::timeout(CLEAN_UP, clean).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Failure::new(Exit::Failed, "the broker did not answer in time")),
        }
    }
}
