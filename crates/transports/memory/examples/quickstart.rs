//! Publish and consume on the memory transport: `cargo run -p throughline-memory --example memory-quickstart`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use throughline::{Bus, Envelope, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let bus = Bus::connect("memory:quickstart?queue=reports").await?;
    let publisher = bus.publisher().await?;
    publisher.publish(Envelope::json("campaign.sync_report", &["hello"])?).await?;

    let mut consumer = bus.consumer().await?;
    if let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        let words: Vec<String> = delivery.process(async { delivery.json() }).await?;
        println!("{} {words:?}", delivery.id());
        delivery.ack().await?;
    }
    consumer.close().await?;
    bus.close().await
}
