//! Create, publish, consume, delete on Kafka:
//! `THROUGHLINE_KAFKA_URL=kafka://localhost:9092 cargo run -p throughline-kafka --example kafka-quickstart`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use throughline::{Bus, Envelope, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let Ok(broker) = std::env::var("THROUGHLINE_KAFKA_URL") else {
        println!("set THROUGHLINE_KAFKA_URL to a broker, such as kafka://localhost:9092");
        return Ok(());
    };
    let topic = format!("quickstart-{}", std::process::id());
    let bus = Bus::connect(format!("{broker}/{topic}?group=reports&dead_letter")).await?;
    for made in bus.create("").await? {
        println!("made {made}");
    }
    let publisher = bus.publisher().await?;
    let envelope = Envelope::builder("campaign.sync_report").key("profile-7").json(&["hello"])?;
    let receipt = publisher.publish(envelope).await?;
    println!("published at {}", receipt.native_id.unwrap_or_default());

    let mut consumer = bus.consumer().await?;
    if let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        let words: Vec<String> = delivery.process(async { delivery.json() }).await?;
        println!("{} {words:?}", delivery.id());
        delivery.ack().await?;
    }
    consumer.close().await?;
    for address in [String::new(), format!("{broker}/{topic}.dlq")] {
        for deleted in bus.delete(&address).await? {
            println!("deleted {deleted}");
        }
    }
    bus.close().await
}
