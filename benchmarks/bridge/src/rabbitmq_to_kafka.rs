//! From a quorum queue to a topic. By hand: lapin and rdkafka used well, as many on their way, one `multiple` ack for 100 whose
//! delivery reports have come, properties and headers carried over.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use throughline::Bus;
use throughline_kafka::rdkafka::ClientConfig;
use throughline_kafka::rdkafka::message::{Header, OwnedHeaders};
use throughline_kafka::rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use throughline_rabbitmq::lapin::message::Delivery;
use throughline_rabbitmq::lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use throughline_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use throughline_rabbitmq::lapin::{Connection, ConnectionProperties};
use uuid::Uuid;

use crate::{ACKED_TOGETHER, Load, Span, Stopwatch, bridge};

pub(crate) async fn run(
    rabbitmq: &str,
    kafka: &str,
    folder: &Path,
    load: Load,
    by_hand: bool,
) -> Result<Span> {
    let name = format!("bench-{}", Uuid::now_v7().simple());
    let addresses = [format!("{rabbitmq}?queue={name}"), format!("{kafka}/{name}?group={name}&partitions=1")];
    let [from, to] = &addresses;
    let (source, sink) = (Bus::connect(from).await?, Bus::connect(to).await?);
    source.create("").await?;
    sink.create("").await?;
    load.fill(&source).await?;
    let span = if by_hand {
        raw(rabbitmq, kafka, &name, load).await?
    } else {
        bridge(from, to, folder, load).await?
    };
    for bus in [source, sink] {
        bus.delete("").await?;
        bus.close().await?;
    }
    Ok(span)
}

async fn raw(rabbitmq: &str, kafka: &str, name: &str, load: Load) -> Result<Span> {
    let watch = Stopwatch::start();
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.trim_start_matches("kafka://"))
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "0")
        .set("partitioner", "murmur2_random")
        .create()?;
    let connection = Connection::connect(rabbitmq, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(load.in_flight, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume(name.into(), "".into(), options, FieldTable::default()).await?;
    let in_flight = usize::from(load.in_flight);
    let mut sent = VecDeque::with_capacity(in_flight);
    let mut done = 0_usize;
    for taken in 1..=load.messages {
        let delivery = consumer.next().await.context("the stream ended")??;
        let record = FutureRecord::<(), [u8]>::to(name).payload(&delivery.data).headers(headers(&delivery));
        let report = producer.send_result(record).map_err(|(error, _)| error)?;
        sent.push_back((delivery.acker, report));
        // Half of what may be on its way: the broker needs the acks before it sends more.
        while sent.len() > in_flight / 2 || (taken == load.messages && !sent.is_empty()) {
            let Some((acker, report)) = sent.pop_front() else { break };
            report.await?.map_err(|(error, _)| error)?;
            done += 1;
            if done.is_multiple_of(ACKED_TOGETHER) || done == load.messages {
                acker.ack(BasicAckOptions { multiple: true }).await?;
            }
        }
    }
    drop(consumer);
    connection.close(200, "".into()).await?;
    producer.flush(std::time::Duration::from_secs(5))?;
    drop(producer);
    Ok(watch.stop())
}

/// What the message says of itself.
fn headers(delivery: &Delivery) -> OwnedHeaders {
    let properties = &delivery.properties;
    let own = [("id", properties.message_id()), ("type", properties.kind())];
    let mut headers = OwnedHeaders::new();
    for (key, value) in own {
        let value = value.as_ref().map(|value| value.as_str());
        headers = headers.insert(Header { key, value });
    }
    for (key, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        if let AMQPValue::LongString(text) = value {
            headers = headers.insert(Header { key: key.as_str(), value: Some(text.as_bytes()) });
        }
    }
    headers
}
