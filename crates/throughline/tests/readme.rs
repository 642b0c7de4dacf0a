//! What the README shows is compiled: here, word for word.
#![cfg(feature = "worker")]
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, reason = "what it shows is shown, not run")]

mod by_hand {
    use std::time::Duration;

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Report;

    async fn sync(_: Report) -> std::io::Result<()> {
        Ok(())
    }

    // The README's "In code":
    use throughline::{Bus, Envelope, Failure};

    async fn example(report: &Report) -> throughline::Result<()> {
        let bus = Bus::connect("amqp://guest:guest@localhost/%2f?queue=reports&dead_letter=dead").await?;

        let publisher = bus.publisher().await?;
        publisher.publish(Envelope::json("campaign.sync_report", report)?).await?; // Ok: durably accepted

        let mut consumer = bus.consumer().await?;
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery?;
            let Ok(report) = delivery.json::<Report>() else {
                delivery.reject("undecodable").await?; // to the dead letters, with the reason
                continue;
            };
            // In a span named `campaign.sync_report`, a child of the request that published it, after a queue-delay span.
            match delivery.process(sync(report)).await {
                Ok(()) => delivery.ack().await?,
                Err(_) => {
                    delivery
                        .retry(Duration::from_secs(5), Failure::new("http_503").dependency("ads-api"))
                        .await?;
                }
            }
        }
        Ok(())
    }
    // Its end.
}

mod with_a_worker {
    use opentelemetry::KeyValue;
    use throughline::worker::MemoryStore;
    use throughline::{Bus, Publisher};

    #[derive(serde::Deserialize)]
    struct SyncReport {
        company: i64,
    }

    struct App {
        ads: Ads,
        database: Database,
    }

    struct Ads;

    impl Ads {
        async fn fetch(&self, _: &SyncReport) -> std::io::Result<u64> {
            Ok(0)
        }
    }

    struct Database;

    impl Database {
        async fn store(&self, _: u64) -> std::io::Result<()> {
            Ok(())
        }
    }

    async fn unknown() {}

    // The README's "With a worker":
    use throughline::worker::{
        HandlerError, Idempotency, Job, Json, ResultExt, RetryPolicy, Router, shutdown_signal,
    };

    async fn sync_report(Json(report): Json<SyncReport>, job: Job<App>) -> Result<(), HandlerError> {
        job.set_attribute(KeyValue::new("tenant.company_id", report.company));
        // Its span is a child of this attempt's. What fails is tried again, and the dead letter names the dependency.
        let clicks = job.state().ads.fetch(&report).await.dependency("ads-api")?;
        job.state().database.store(clicks).await?;
        Ok(())
    }

    async fn work(bus: Bus, app: App, graveyard: Publisher, store: MemoryStore) -> throughline::Result<()> {
        let router = Router::with_state(app).on("campaign.sync_report", sync_report).fallback(unknown);
        bus.worker(router)
            .concurrency(16)
            .retry(RetryPolicy::default().max_attempts(8)) // exponential, with jitter; a route may have its own
            .dead_letter(graveyard) // any address of any transport; the source's own by default
            .idempotency(Idempotency::new(store)) // in memory, in SQLite, or yours
            .run(shutdown_signal()) // SIGTERM drains: what is done does not come again
            .await?;
        Ok(())
    }
    // Its end.
}

/// The code after such a line, as the README has it.
fn snippet(source: &str, title: &str) -> String {
    let (_, rest) = source.split_once(&format!("    // The README's \"{title}\":\n")).unwrap();
    let (code, _) = rest.split_once("    // Its end.\n").unwrap();
    code.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect()
}

#[test]
fn the_readme_shows_what_is_compiled_here() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    for title in ["In code", "With a worker"] {
        let code = snippet(include_str!("readme.rs"), title);
        let (_, section) = readme.split_once(&format!("# {title}\n")).expect("the section is there");
        assert!(
            section.trim_start().starts_with(&format!("```rust\n{code}```\n")),
            "{title} is not:\n{code}"
        );
    }
}
