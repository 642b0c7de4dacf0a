//! Publish and consume by a file: `cargo run -p throughline-sqlite --example sqlite-quickstart`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use throughline::{Bus, Envelope, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let file = std::env::temp_dir().join("throughline-quickstart.db");
    let bus = Bus::connect(format!("sqlite:{}?queue=reports", file.display())).await?;
    let publisher = bus.publisher().await?;
    publisher.publish(Envelope::json("campaign.sync_report", &["hello"])?).await?;

    // This, or any other process of the machine, now or after the next boot.
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
