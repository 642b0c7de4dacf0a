//! The scenario: what is set up, in which order it plays, and what is taken down.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::trace::TraceContextExt;
use throughline::driver::Sibling;
use throughline::{Address, Bus, ErrorKind, registered};
use tokio::task::JoinSet;

use super::{http, planner, services, worker};
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

/// The buses that it plays on.
#[derive(Debug)]
pub(super) struct Scenario {
    jobs: Leg,
    /// Where the API tells what happened, in place of asking for the work.
    events: Option<Leg>,
}

/// A connected bus with a queue to go through.
#[derive(Debug)]
struct Leg {
    bus: Bus,
    /// What the address names was made for this run.
    created: bool,
}

impl Leg {
    /// Connects; where the address names nothing, or what is not there at all, makes it for this run.
    async fn prepare(url: &str, place: impl for<'a> Fn(&'a str) -> Sibling<'a>) -> Result<Self, Failure> {
        let address: Address = url.parse()?;
        let transport = registered(&address)?;
        let bus = Bus::connect_to(address.clone()).await?;
        let published = bus.publisher().await.err().map(|error| error.kind());
        let read = bus.depth("").await.err().map(|error| error.kind());
        // A random state is seeded by the system.
        let unique = RandomState::new().hash_one(std::process::id());
        let name = format!("throughline-demo-{unique:016x}");
        let own = match (published, read) {
            (Some(ErrorKind::InvalidAddress), Some(ErrorKind::InvalidAddress)) => {
                (transport.sibling)(&address, &place(&name))
            }
            // A topic that is not there, and no queue of it.
            (Some(ErrorKind::NotFound), Some(ErrorKind::InvalidAddress)) => {
                Some(address.with_option("queue", &name))
            }
            (Some(ErrorKind::NotFound), Some(ErrorKind::NotFound)) => Some(address),
            // What is there, if only in part, is somebody's, and is used as it is.
            _ => None,
        };
        let Some(own) = own else { return Ok(Self { bus, created: false }) };
        bus.close().await?;
        let bus = Bus::connect_to(own).await?;
        match bus.create("").await {
            Ok(_) => Ok(Self { bus, created: true }),
            Err(error) => {
                let _ = bus.close().await;
                Err(error.into())
            }
        }
    }

    async fn clean_up(self) -> throughline::Result<()> {
        let deleted = if self.created { self.bus.delete("").await.map(drop) } else { Ok(()) };
        let closed = self.bus.close().await;
        deleted.and(closed)
    }
}

impl Scenario {
    /// Connects, and makes what is missing.
    pub(super) async fn prepare(jobs: &str, events: Option<&str>) -> Result<Self, Failure> {
        let jobs = Leg::prepare(jobs, |name| Sibling::queue(name)).await?;
        let events = match events {
            None => None,
            Some(events) => match Leg::prepare(events, |name| Sibling::subscription(name, name)).await {
                Ok(events) => Some(events),
                Err(failure) => {
                    let _ = jobs.clean_up().await;
                    return Err(failure);
                }
            },
        };
        Ok(Self { jobs, events })
    }

    /// Plays it; gives the id of the trace.
    pub(super) async fn play(&self, stage: &Stage) -> Result<String, Failure> {
        stage.set("opening the queue");
        let jobs = self.jobs.bus.publisher().await?;
        let (publisher, kind) = match &self.events {
            Some(events) => (events.bus.publisher().await?, services::EVENT),
            None => (jobs.clone(), services::OPERATION),
        };
        // Dropped, it ends them.
        let mut servers = JoinSet::new();
        let ads_api = services::ads_api(&mut servers).await?;
        let api = services::api(&mut servers, publisher, kind).await?;
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

        let message = match &self.events {
            Some(events) => {
                stage.set("waiting for the planner to process the event");
                planner::plan(events.bus.consumer().await?, &message, &jobs).await?
            }
            None => message,
        };
        stage.set("waiting for the worker to process the message");
        tokio::time::sleep(WORKER_LATE).await;
        let consumer = self.jobs.bus.consumer().await?;
        worker::work(consumer, &message, &client, &ads_api).await?;
        Ok(context.span().span_context().trace_id().to_string())
    }

    /// Deletes what was created, and closes.
    pub(super) async fn clean_up(self) -> Result<(), Failure> {
        let clean = async {
            let events = match self.events {
                Some(events) => events.clean_up().await,
                None => Ok(()),
            };
            events.and(self.jobs.clean_up().await)
        };
        match tokio::time::timeout(CLEAN_UP, clean).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Failure::new(Exit::Failed, "the broker did not answer in time")),
        }
    }
}
