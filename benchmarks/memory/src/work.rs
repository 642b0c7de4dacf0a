//! Publish, receive, ack.

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use throughline::{Bus, Consumer, Delivery, Envelope, Publisher};

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
}

impl Shape {
    pub(crate) const ALL: [Self; 2] = [Self::Batches, Self::Singles];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Batches => "batches",
            Self::Singles => "singles",
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

    pub(crate) async fn close(self) -> Result<()> {
        self.consumer.close().await?;
        self.publisher.close().await?;
        Ok(self.bus.close().await?)
    }
}
