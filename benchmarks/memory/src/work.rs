//! Publish, receive, ack: by hand, and by a worker.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use throughline::worker::{Job, Report, Router, Worker};
use throughline::{Bus, Consumer, Delivery, Envelope, Publisher};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

/// Messages of a batch.
const BATCH: usize = 100;
/// Bytes of payload.
const BYTES: usize = 256;

/// How messages go.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// `publish_batch`, `next_batch`, `ack_all`, 100 at a time.
    Batches,
    /// `publish`, `next`, `process`, `ack`, one after the other.
    Singles,
    /// `publish_batch` of 100, then `next`, `process`, `ack`, one after the other: the loop that a worker stands for.
    Loop,
    /// `publish_batch` of 100, which a worker with one route handles.
    Worker,
}

impl Shape {
    pub(crate) const ALL: [Self; 4] = [Self::Batches, Self::Singles, Self::Loop, Self::Worker];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Batches => "batches",
            Self::Singles => "singles",
            Self::Loop => "loop",
            Self::Worker => "worker",
        }
    }
}

/// Whether there is a tracer provider.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tracing {
    Off,
    /// The SDK's, every trace sampled, each span handed to an exporter that drops it.
    On,
}

impl Tracing {
    pub(crate) const ALL: [Self; 2] = [Self::Off, Self::On];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
        }
    }

    pub(crate) fn install(self) {
        if self == Self::On {
            let provider = SdkTracerProvider::builder().with_simple_exporter(Discard).build();
            opentelemetry::global::set_tracer_provider(provider);
        }
    }
}

#[derive(Debug)]
struct Discard;

impl SpanExporter for Discard {
    async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
        Ok(())
    }
}

/// Both ends of a queue, and the messages, which are made beforehand.
pub(crate) struct Bench {
    bus: Bus,
    pub(crate) publisher: Publisher,
    pub(crate) consumer: Consumer,
    envelopes: Vec<Arc<Envelope>>,
    working: Option<Working>,
}

/// A worker of a queue of its own, and how much it has handled.
struct Working {
    publisher: Publisher,
    handled: Arc<Handled>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<throughline::Result<Report>>,
}

#[derive(Default)]
struct Handled {
    count: AtomicUsize,
    all: Notify,
}

async fn handle(job: Job<Arc<Handled>>) -> Result<(), throughline::Error> {
    if (job.state().count.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(BATCH) {
        job.state().all.notify_one();
    }
    Ok(())
}

impl Bench {
    pub(crate) async fn open() -> Result<Self> {
        let bus = Bus::connect("memory:bench?queue=bench").await?;
        let envelope = || Arc::new(Envelope::builder("bench").payload(vec![b'x'; BYTES]).build());
        Ok(Self {
            publisher: bus.publisher().await?,
            consumer: bus.consumer().await?,
            bus,
            envelopes: std::iter::repeat_with(envelope).take(BATCH).collect(),
            working: None,
        })
    }

    pub(crate) async fn run(mut self, shape: Shape, messages: usize) -> Result<()> {
        self.go_on(shape, messages).await?;
        self.close().await
    }

    pub(crate) async fn go_on(&mut self, shape: Shape, messages: usize) -> Result<()> {
        for _ in 0..messages / BATCH {
            match shape {
                Shape::Batches => self.batch().await?,
                Shape::Singles => self.singles().await?,
                Shape::Loop => self.one_by_one().await?,
                Shape::Worker => self.worked().await?,
            }
        }
        Ok(())
    }

    async fn batch(&mut self) -> Result<()> {
        for result in self.publisher.publish_batch(self.envelopes.iter().cloned()).await {
            result?;
        }
        let most = NonZeroUsize::new(BATCH).context("no batch")?;
        let mut left = BATCH;
        while left > 0 {
            let deliveries = self.consumer.next_batch(most).await?;
            ensure!(!deliveries.is_empty(), "the stream ended");
            left -= deliveries.len();
            for result in Delivery::ack_all(deliveries).await {
                result?;
            }
        }
        Ok(())
    }

    async fn singles(&mut self) -> Result<()> {
        for envelope in &self.envelopes {
            self.publisher.publish(envelope.clone()).await?;
            let delivery = self.consumer.next().await.context("the stream ended")??;
            delivery.process(async { anyhow::Ok(()) }).await?;
            delivery.ack().await?;
        }
        Ok(())
    }

    async fn one_by_one(&mut self) -> Result<()> {
        for result in self.publisher.publish_batch(self.envelopes.iter().cloned()).await {
            result?;
        }
        for _ in 0..BATCH {
            let delivery = self.consumer.next().await.context("the stream ended")??;
            delivery.process(async { anyhow::Ok(()) }).await?;
            delivery.ack().await?;
        }
        Ok(())
    }

    async fn worked(&mut self) -> Result<()> {
        if self.working.is_none() {
            self.working = Some(self.start().await?);
        }
        let working = self.working.as_ref().context("just started")?;
        for result in working.publisher.publish_batch(self.envelopes.iter().cloned()).await {
            result?;
        }
        working.handled.all.notified().await;
        Ok(())
    }

    async fn start(&self) -> Result<Working> {
        let consumer = self.bus.consumer_of("?queue=worked&dead_letter=dead", Default::default()).await?;
        let handled = Arc::new(Handled::default());
        let worker = Worker::new(consumer, Router::with_state(handled.clone()).on("bench", handle));
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let publisher = self.bus.publisher_to("?queue=worked", Default::default()).await?;
        Ok(Working { publisher, handled, stop, task: tokio::spawn(worker.run(shutdown)) })
    }

    pub(crate) async fn close(self) -> Result<()> {
        if let Some(Working { handled, stop, task, .. }) = self.working {
            let _ = stop.send(());
            let report = task.await??;
            let count = handled.count.load(Ordering::Relaxed) as u64;
            ensure!(
                report.acked == count,
                "of {count} messages that were handled {} were acked",
                report.acked
            );
        }
        self.consumer.close().await?;
        self.publisher.close().await?;
        Ok(self.bus.close().await?)
    }
}
