//! Throughline's worker: messages go to handlers by their type, and are settled by what the handlers return. Retries, dead
//! letters and duplicates explain themselves, and all of it is in one trace.
//!
//! ```no_run
//! use throughline_worker::{HandlerError, Job, Json, ResultExt, Router, Worker, shutdown_signal};
//! # #[derive(serde::Deserialize)] struct SyncReport { company: i64 }
//! # struct Ads;
//! # impl Ads { async fn sync(&self, _: &SyncReport) -> std::io::Result<()> { Ok(()) } }
//! # use opentelemetry::KeyValue;
//! struct App {
//!     ads: Ads,
//! }
//!
//! async fn sync_report(Json(report): Json<SyncReport>, job: Job<App>) -> Result<(), HandlerError> {
//!     job.set_attribute(KeyValue::new("tenant.company_id", report.company));
//!     // The call's own span is a child of the process span; a failure is retried, and names the dependency.
//!     job.state().ads.sync(&report).await.dependency("ads-api")?;
//!     Ok(())
//! }
//!
//! # async fn example(consumer: throughline_core::Consumer) -> throughline_core::Result<()> {
//! let router = Router::with_state(App { ads: Ads }).on("campaign.sync_report", sync_report);
//! Worker::new(consumer, router).concurrency(16).run(shutdown_signal()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The life of a message
//!
//! What stands around a handler has a fixed order: **concurrency → trace → dead letter → retry → idempotency → timeout →
//! handler**.
//!
//! 1. It *begins* when one of [`concurrency`](Worker::concurrency) places is free and no other message of its ordering key
//!    is under way. What waits for its key is held, with its lease; no more than the consumer's `max_unsettled`.
//! 2. A *process span*, named for the message type, is a child of the creation context. It shows attempt, receive count,
//!    idempotency key, and why the attempt before failed. The handler's own spans are below it, and so is the settlement.
//! 3. A message that was *done before* is acked without its handler; its span says `throughline.duplicate`. One that
//!    another worker is at (`throughline.in_progress`) is held until that one's claim ends, and then looked at again: no
//!    attempt is counted.
//! 4. The handler returns, fails, takes longer than its [`timeout`](Worker::timeout), or panics; all but the first are
//!    failures of a class. [`HandlerError`] says whether another attempt makes sense, and which dependency failed.
//! 5. *Done*: it is acked. *Failed*: it is retried by the transport's best means after the delay of the [`RetryPolicy`], and
//!    later messages of its key wait for it. Where the broker retries in place and cannot carry the history, an
//!    [`AttemptStore`] keeps it; without one it is partial. The attempts only go up.
//! 6. *Failed for good* (a permanent failure, the last attempt, an age): it becomes a dead letter with its body, headers,
//!    creation context and history, at [`dead_letter`](Worker::dead_letter) or where the source's own is. It is acked after
//!    that is durable; while the destination is out of reach it is held, and tried again. What cannot be decoded or has no handler goes
//!    there at once.
//!
//! A worker that is killed leaves its messages to the broker, which delivers them again: one whose attempts were all begun
//! and never ended becomes a dead letter (`attempts_exhausted`), without its handler.
//!
//! Beside its spans a worker counts: `throughline.worker.messages` by `throughline.worker.outcome` (`done`, `duplicate`,
//! `postponed`, `released`, and with `error.type` and `throughline.failure.dependency`, `retried` and `dead_lettered`), and
//! `throughline.worker.in_flight` by `throughline.worker.state` (`running`, `held`). How long processing takes is
//! `messaging.process.duration`.
//!
//! A *lost lease* drops the handler, or only tells it ([`LeaseLost`]). At the *shutdown* nothing more is taken, what was not
//! begun is released, and handlers have the [`drain`](Worker::drain) time to end; then they are dropped and their messages
//! released. What was done is settled before the consumer is closed, and does not come again.

mod batch;
mod error;
mod handler;
mod health;
mod job;
mod metrics;
mod middleware;
mod router;
mod run;
#[cfg(feature = "tower")]
mod service;
mod shared;
#[cfg(feature = "signal")]
mod signal;
mod store;
mod worker;

pub use batch::{Batch, BatchHandler, BatchOptions, IntoOutcomes};
pub use error::{BoxError, HandlerError, ResultExt};
pub use handler::{Handler, IntoOutcome, Outcome};
pub use health::{Health, Report};
pub use job::{FromJob, Job, Json};
pub use middleware::idempotency::Idempotency;
pub use middleware::retry::{Jitter, RetryPolicy};
pub use router::{Route, Router};
#[cfg(feature = "tower")]
pub use service::JobService;
pub use shared::LeaseLost;
#[cfg(feature = "signal")]
pub use signal::shutdown_signal;
#[cfg(feature = "sqlite")]
pub use store::SqliteStore;
pub use store::{AttemptStore, Attempts, Begun, Claim, IdempotencyStore, MemoryStore};
pub use worker::Worker;
