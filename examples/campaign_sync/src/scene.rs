//! The scene: what is set up, in which order it plays, and what is taken down.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use opentelemetry::trace::TraceContextExt;
use throughline::worker::{Health, Idempotency, MemoryStore, RetryPolicy, Router, Worker};
use throughline::{Consumer, Failure};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::ads;
use crate::api::{self, SyncRequested};
use crate::database::{self, Database};
use crate::http::Client;
use crate::place::Place;
use crate::planner::{self, Planner};
use crate::reports::{self, Reports};

/// The first delay of a retry: shorter than anybody would choose in earnest, so that the picture shows more than waiting.
const RETRY: Duration = Duration::from_millis(100);
/// How often a job is tried.
const ATTEMPTS: u32 = 3;
/// How often the workers are asked whether they are done.
const POLL: Duration = Duration::from_millis(5);

pub(crate) struct Scene {
    events: Place,
    jobs: Place,
    database: Database,
    /// Where the database is, where it is this run's own.
    _folder: Option<Folder>,
}

/// What one sees.
pub(crate) struct Played {
    pub(crate) trace: String,
    pub(crate) events: String,
    pub(crate) jobs: String,
    pub(crate) done: u64,
    pub(crate) retried: u64,
    pub(crate) dead: DeadLetter,
}

/// What a dead letter says of itself.
pub(crate) struct DeadLetter {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) trace: Option<String>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) is_partial: bool,
}

impl Scene {
    pub(crate) async fn set(events: &str, jobs: &str, database: Option<&str>) -> Result<Self> {
        let folder = if database.is_none() { Some(Folder::new()?) } else { None };
        let own = folder.as_ref().map(Folder::file);
        let database = Database::open(database.or(own.as_deref()).unwrap_or_default()).await?;
        let jobs = Place::for_jobs(jobs).await?;
        match Place::for_events(events).await {
            Ok(events) => Ok(Self { events, jobs, database, _folder: folder }),
            Err(error) => {
                // The first error is the one to tell.
                let _ = jobs.leave().await;
                Err(error)
            }
        }
    }

    pub(crate) async fn play(&self) -> Result<Played> {
        let jobs = self.jobs.bus.publisher().await?;
        let client = Client::new()?;
        // Dropped, it ends them.
        let mut servers = JoinSet::new();
        let ads_api = ads::serve(&mut servers).await?;
        let api = api::serve(&mut servers, self.events.bus.publisher().await?).await?;

        let mut crew = Crew::default();
        let planner = planner::router(Planner { jobs, database: self.database.clone() });
        let plans =
            crew.hire(self.events.bus.consumer().await?, planner, self.jobs.dead_letters.as_ref()).await?;
        let reports = Reports { database: self.database.clone(), client: client.clone(), ads_api };
        let work = crew.hire(self.jobs.bus.consumer().await?, reports::router(reports), None).await?;

        let (answer, context) =
            client.post("campaign-api", api, "/sync", &SyncRequested { company: database::COMPANY }).await;
        match answer.context("the API did not answer")? {
            (status, _) if status.is_success() => {}
            (status, body) => bail!("the API answered {status}: {body}"),
        }
        crew.watch(|| plans.report().acked > 0 && work.report().acked + work.report().dead_lettered >= 3)
            .await?;
        crew.dismiss().await?;
        let dead = self.dead_letter().await?;
        Ok(Played {
            trace: context.span().span_context().trace_id().to_string(),
            events: self.events.bus.address().to_string(),
            jobs: self.jobs.bus.address().to_string(),
            done: work.report().acked,
            retried: work.report().retried,
            dead,
        })
    }

    /// Takes the dead letter, and reads what it says.
    async fn dead_letter(&self) -> Result<DeadLetter> {
        let letters = self.jobs.dead_letters.as_ref().context("there is no place for dead letters")?;
        let mut consumer = letters.consumer().await?;
        let letter = consumer.next().await.context("the dead letters ended")??;
        let context = letter.context();
        let span = context.span().span_context().clone();
        let read = DeadLetter {
            id: letter.id().to_owned(),
            key: letter
                .envelope()
                .ordering_key
                .as_deref()
                .map(String::from_utf8_lossy)
                .unwrap_or_default()
                .into_owned(),
            trace: span.is_valid().then(|| span.trace_id().to_string()),
            failures: letter.history().map(|history| history.failures().to_vec()).unwrap_or_default(),
            is_partial: letter.history().is_none_or(|history| history.is_partial()),
        };
        letter.ack().await?;
        consumer.close().await?;
        Ok(read)
    }

    /// Takes down what was set up.
    pub(crate) async fn strike(self) -> Result<()> {
        let events = self.events.leave().await;
        self.jobs.leave().await.and(events)
    }
}

/// The workers, each a task.
#[derive(Default)]
struct Crew {
    workers: JoinSet<throughline::Result<()>>,
    end: watch::Sender<bool>,
}

impl Crew {
    async fn hire<S: Send + Sync + 'static>(
        &mut self,
        consumer: Consumer,
        router: Router<S>,
        dead_letters: Option<&throughline::Bus>,
    ) -> Result<Health> {
        let retry = RetryPolicy::default().initial(RETRY).max_attempts(ATTEMPTS);
        let store = std::sync::Arc::new(MemoryStore::default());
        let mut worker = Worker::new(consumer, router)
            .retry(retry)
            .timeout(Duration::from_secs(10))
            .attempts(store.clone())
            .idempotency(Idempotency::shared(store));
        if let Some(letters) = dead_letters {
            worker = worker.dead_letter(letters.publisher().await?);
        }
        let health = worker.health();
        let mut end = self.end.subscribe();
        self.workers.spawn(async move {
            let dismissed = async move {
                let _ = end.wait_for(|end| *end).await;
            };
            worker.run(dismissed).await.map(drop)
        });
        Ok(health)
    }

    /// Waits until something is so, or a worker has ended.
    async fn watch(&mut self, is_so: impl Fn() -> bool) -> Result<()> {
        while !is_so() {
            tokio::select! {
                ended = self.workers.join_next() => {
                    ended.context("no worker")???;
                    bail!("a worker has ended");
                }
                () = tokio::time::sleep(POLL) => {}
            }
        }
        Ok(())
    }

    async fn dismiss(mut self) -> Result<()> {
        self.end.send_replace(true);
        while let Some(ended) = self.workers.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// A folder of this run's own; deleted at its end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("campaign-sync-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    fn file(&self) -> String {
        self.0.join("campaigns.db").display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
