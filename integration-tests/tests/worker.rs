//! One worker, the same on every transport: a retry and then success, a dead letter that says all, a duplicate, the order of
//! a key across a retry, and a shutdown that finishes what was begun.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use throughline::capabilities::Level;
use throughline::driver::Sibling;
use throughline::worker::{
    HandlerError, Health, Idempotency, Job, Json, MemoryStore, Report, ResultExt, RetryPolicy, Router,
};
use throughline::{Address, Bus, Envelope, registered};
use throughline_integration_tests::aws::unique;
use throughline_integration_tests::{cli, end, json_lines, log};
use throughline_testkit::endpoint;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Longer than a busy machine needs: a consumer group that gathers, a visibility timeout.
const LONG: Duration = Duration::from_secs(120);

/// What the handler saw: text, attempt, receive count.
#[derive(Default)]
struct Seen(Mutex<Vec<(String, u32, Option<u32>)>>);

impl Seen {
    fn of(&self, wanted: &str) -> Vec<(u32, Option<u32>)> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|(text, ..)| text == wanted).map(|(_, attempt, count)| (*attempt, *count)).collect()
    }

    fn starting(&self, with: &str) -> Vec<String> {
        let all = self.0.lock().unwrap();
        all.iter()
            .filter(|(text, ..)| text.starts_with(with))
            .map(|(text, attempt, _)| format!("{text} {attempt}"))
            .collect()
    }
}

async fn handler(Json(text): Json<String>, job: Job<Arc<Seen>>) -> Result<(), HandlerError> {
    job.state().0.lock().unwrap().push((text.clone(), job.attempt(), job.receive_count()));
    match (text.as_str(), job.attempt()) {
        ("flaky" | "key 1", 1) => Err(HandlerError::retryable("not yet").with_class("too_early")),
        ("fails", _) => Err(std::io::Error::other("503")).dependency("ads-api").class("http_503"),
        ("slow", _) => {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn message(text: &str) -> Envelope {
    Envelope::json("job", text).unwrap()
}

fn keyed(text: &str) -> Envelope {
    Envelope::builder("job").key("k").json(text).unwrap().build()
}

fn once() -> Envelope {
    Envelope::builder("job").idempotency_key("once").json("once").unwrap().build()
}

/// Queues of a test's own, beside a transport's address.
struct Rig {
    bus: Bus,
    dead: Bus,
    /// As it is typed: what is shown of an address is without its password.
    dead_address: String,
    seen: Arc<Seen>,
    done: Arc<MemoryStore>,
}

impl Rig {
    async fn new(url: &str) -> Self {
        let base: Address = url.parse().unwrap();
        let (name, graveyard) = (unique("worker"), unique("dead"));
        let sibling = |wanted: &Sibling<'_>| (registered(&base).unwrap().sibling)(&base, wanted).unwrap();
        let jobs = sibling(&Sibling { dead_letter: Some(&graveyard), ..Sibling::queue(&name) });
        let bus = Bus::connect_to(jobs).await.unwrap();
        bus.create("").await.unwrap();
        let dead = Bus::connect_to(sibling(&Sibling::queue(&graveyard))).await.unwrap();
        dead.create("").await.unwrap();
        let dead_address = match base.password() {
            Some(_) => format!("{url}?queue={graveyard}"),
            None => dead.address().to_string(),
        };
        Self { bus, dead, dead_address, seen: Arc::default(), done: Arc::new(MemoryStore::new()) }
    }

    fn start(&self) -> Running {
        let router = Router::with_state(self.seen.clone()).on("job", handler);
        let worker = self
            .bus
            .worker(router)
            .name("worker-1")
            .retry(RetryPolicy::fixed(Duration::from_millis(500)).max_attempts(3))
            .idempotency(Idempotency::shared(self.done.clone()))
            .attempts(self.done.clone());
        let (health, stop) = (worker.health(), Arc::new(Notify::new()));
        let shutdown = stop.clone();
        let task = tokio::spawn(worker.run(async move { shutdown.notified().await }));
        Running { health, stop, task }
    }

    async fn publish(&self, messages: impl IntoIterator<Item = Envelope>) {
        let publisher = self.bus.publisher().await.unwrap();
        for result in publisher.publish_batch(messages).await {
            result.unwrap();
        }
        publisher.close().await.unwrap();
    }

    async fn finish(self) {
        for bus in [self.bus, self.dead] {
            bus.delete("").await.unwrap();
            bus.close().await.unwrap();
        }
    }
}

struct Running {
    health: Health,
    stop: Arc<Notify>,
    task: JoinHandle<throughline::Result<Report>>,
}

impl Running {
    async fn stop(self) -> Report {
        self.stop.notify_one();
        tokio::time::timeout(LONG, self.task).await.expect("it ends in time").unwrap().unwrap()
    }
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, waiting).await.is_ok(), "{what}");
}

/// The one dead letter, as `throughline dlq` shows it; memory's are in this process alone.
async fn dead_letter(rig: &Rig) -> Value {
    if rig.dead.address().scheme() == "memory" {
        let letters = rig.dead.browse("", NonZeroUsize::MAX).await.unwrap();
        let history = letters[0].history.as_deref().unwrap();
        let failures = history.failures().iter().map(|failure| {
            let (dependency, worker) = (&failure.dependency, &failure.worker);
            json!({ "attempt": failure.attempt, "error": failure.error, "message": failure.message,
                    "dependency": dependency, "worker": worker })
        });
        let failures: Vec<_> = failures.collect();
        assert_eq!(letters.len(), 1);
        return json!({ "type": "job", "history": failures, "history_partial": history.is_partial() });
    }
    let mut command = cli();
    command.args(["dlq", "list", "--json", &rig.dead_address]);
    let listed = end(command, "").await;
    assert_eq!(listed.code, 0, "{listed:?}");
    let letters = json_lines(&listed.stdout);
    assert_eq!(letters.len(), 1, "{listed:?}");
    letters[0].clone()
}

async fn holds(base: &str) {
    log();
    let rig = Rig::new(base).await;
    // Not a consumer's: SQS may still give messages to the last request of one that is closed, and they come back counted.
    let publisher = rig.bus.publisher().await.unwrap();
    let capabilities = publisher.capabilities();
    let (transport, order) = (capabilities.transport, capabilities.order != Level::No);
    publisher.close().await.unwrap();
    let running = rig.start();
    rig.publish([message("flaky"), message("fails"), once()]).await;
    rig.publish(["key 1", "key 2", "key 3"].map(keyed)).await;
    until("all but the duplicate have ended", async || {
        let report = running.health.report();
        (report.acked, report.dead_lettered) == (5, 1)
    })
    .await;
    rig.publish([once()]).await;
    until("it is known for a duplicate", async || running.health.report().duplicates == 1).await;
    assert_eq!(rig.seen.of("once").len(), 1);

    let second = match transport {
        // Sent on, and so a new message.
        "rabbitmq" => Some(1),
        // Held in its place, by who counts nothing.
        "kafka" => None,
        _ => Some(2),
    };
    let first = second.and(Some(1));
    assert_eq!(rig.seen.of("flaky"), [(1, first), (2, second)]);
    let keys = rig.seen.starting("key");
    if order {
        assert_eq!(keys, ["key 1 1", "key 1 2", "key 2 1", "key 3 1"]);
    } else {
        assert_eq!(keys.len(), 4, "{keys:?}");
    }

    let letter = dead_letter(&rig).await;
    let failure = |attempt| json!([attempt, "http_503", "503", "ads-api", "worker-1"]);
    let told: Vec<_> = letter["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failure| {
            json!([
                failure["attempt"],
                failure["error"],
                failure["message"],
                failure["dependency"],
                failure["worker"]
            ])
        })
        .collect();
    assert_eq!(told, [1, 2, 3].map(failure), "{letter}");
    assert_eq!((&letter["type"], &letter["history_partial"]), (&json!("job"), &json!(false)));

    // Told to end, it finishes what it began, and that does not come again.
    rig.publish([message("slow")]).await;
    until("it has begun", async || !rig.seen.of("slow").is_empty()).await;
    let report = running.stop().await;
    assert_eq!(
        (report.acked, report.released, report.unsettled, report.unfinished),
        (6, 0, 0, 0),
        "{report:?}"
    );
    assert_eq!((report.duplicates, report.dead_lettered, report.retried), (1, 1, 4), "{report:?}");
    until("the queue is empty", async || {
        let depth = rig.bus.depth("").await.unwrap();
        depth.ready + depth.unsettled.unwrap_or(0) + depth.delayed.unwrap_or(0) == 0
    })
    .await;
    let again = rig.start();
    rig.publish([message("last")]).await;
    until("the last is done", async || again.health.report().acked == 1).await;
    assert_eq!((again.stop().await.duplicates, rig.seen.of("slow").len()), (0, 1));
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_on_memory() {
    holds(&format!("memory:{}", unique("worker"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    holds(&format!("sqlite:{}", folder.path().join("bus.db").display())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_on_rabbitmq() {
    let Some(url) = endpoint::broker("rabbitmq", "the_worker_on_rabbitmq") else { return };
    holds(&url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_on_kafka() {
    let Some(url) = endpoint::broker("kafka", "the_worker_on_kafka") else { return };
    holds(&url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_on_sqs() {
    let Some(endpoint) = endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", "the_worker_on_sqs")
    else {
        return;
    };
    holds(&format!("sqs:?endpoint={endpoint}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_on_sqs_fifo() {
    let Some(endpoint) =
        endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", "the_worker_on_sqs_fifo")
    else {
        return;
    };
    holds(&format!("sqs:?endpoint={endpoint}&fifo=true")).await;
}
