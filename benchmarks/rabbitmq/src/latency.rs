//! How long one message takes when nothing else is under way: until the broker has it, and until a handler does.

use std::time::Instant;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use hdrhistogram::Histogram;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use throughline::{Bus, ConsumeOptions, PublishOptions};
use throughline_rabbitmq::lapin;

use crate::contenders::{ours, raw};
use crate::load::{Broker, IN_FLIGHT, Load, QueueType};
use crate::report::Latency;

/// Times in µs.
struct Times {
    publish: Histogram<u64>,
    to_handler: Histogram<u64>,
}

impl Times {
    fn new() -> Result<Self> {
        Ok(Self { publish: Histogram::new(3)?, to_handler: Histogram::new(3)? })
    }

    fn record(&mut self, started: Instant, accepted: Instant, handled: Instant) -> Result<()> {
        self.publish.record(micros(started, accepted))?;
        self.to_handler.record(micros(started, handled))?;
        Ok(())
    }

    fn latency(&self, name: &'static str) -> Latency {
        Latency {
            name,
            publish_p50: self.publish.value_at_quantile(0.5),
            publish_p99: self.publish.value_at_quantile(0.99),
            to_handler_p50: self.to_handler.value_at_quantile(0.5),
            to_handler_p99: self.to_handler.value_at_quantile(0.99),
        }
    }
}

fn micros(from: Instant, to: Instant) -> u64 {
    u64::try_from((to - from).as_micros()).unwrap_or(u64::MAX)
}

/// Both sides in every round, in turns.
pub(crate) async fn run(
    broker: &Broker,
    rounds: usize,
    singles: usize,
    bytes: usize,
) -> Result<Vec<Latency>> {
    let (mut of_raw, mut of_ours) = (Times::new()?, Times::new()?);
    let queue = format!("throughline-bench-{}-latency", std::process::id());
    let load = broker.load(&queue, singles, bytes);
    for round in 0..=rounds {
        eprintln!("latency, round {round} of {rounds}");
        // The first warms up.
        let (mut warm_raw, mut warm_ours) = (Times::new()?, Times::new()?);
        let (to_raw, to_ours) =
            if round == 0 { (&mut warm_raw, &mut warm_ours) } else { (&mut of_raw, &mut of_ours) };
        broker.fresh(&queue, QueueType::Quorum).await?;
        if round % 2 == 0 {
            raw_singles(&load, to_raw).await?;
            our_singles(&load, to_ours).await?;
        } else {
            our_singles(&load, to_ours).await?;
            raw_singles(&load, to_raw).await?;
        }
    }
    broker.delete(&queue).await?;
    Ok(vec![of_raw.latency("raw"), of_ours.latency("throughline")])
}

async fn raw_singles(load: &Load, times: &mut Times) -> Result<()> {
    let connection = Connection::connect(&load.url, ConnectionProperties::default()).await?;
    let (sending, receiving) = (connection.create_channel().await?, connection.create_channel().await?);
    sending.confirm_select(ConfirmSelectOptions::default()).await?;
    receiving.basic_qos(u16::try_from(IN_FLIGHT)?, BasicQosOptions::default()).await?;
    let (queue, options) = (load.queue.as_str().into(), BasicConsumeOptions::default());
    let mut consumer = receiving.basic_consume(queue, "".into(), options, FieldTable::default()).await?;
    for _ in 0..load.messages {
        let started = Instant::now();
        let publish = async {
            let queue = load.queue.as_str().into();
            let sent = sending.basic_publish("".into(), queue, raw::MANDATORY, &load.body, raw::properties());
            sent.await?.await?;
            anyhow::Ok(Instant::now())
        };
        let handle = async {
            let delivery = consumer.next().await.context("the stream ended")??;
            let handled = Instant::now();
            delivery.ack(BasicAckOptions::default()).await?;
            anyhow::Ok(handled)
        };
        let (accepted, handled) = tokio::try_join!(publish, handle)?;
        times.record(started, accepted, handled)?;
    }
    Ok(connection.close(200, "".into()).await?)
}

async fn our_singles(load: &Load, times: &mut Times) -> Result<()> {
    let bus = Bus::connect(&load.url).await?;
    let address = ours::address(load);
    let publisher = bus.publisher_to(&address, PublishOptions::default()).await?;
    let options = ConsumeOptions { max_unsettled: IN_FLIGHT, ..ConsumeOptions::default() };
    let mut consumer = bus.consumer_of(&address, options).await?;
    for _ in 0..load.messages {
        let envelope = ours::envelope(load);
        let started = Instant::now();
        let publish = async {
            publisher.publish(envelope).await?;
            anyhow::Ok(Instant::now())
        };
        let handle = async {
            let delivery = consumer.next().await.context("the stream ended")??;
            let handled = Instant::now();
            delivery.ack().await?;
            anyhow::Ok(handled)
        };
        let (accepted, handled) = tokio::try_join!(publish, handle)?;
        times.record(started, accepted, handled)?;
    }
    consumer.close().await?;
    publisher.close().await?;
    Ok(bus.close().await?)
}
