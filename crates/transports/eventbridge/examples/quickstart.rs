//! Create, publish, consume, delete on EventBridge, or an emulator of it:
//! `THROUGHLINE_AWS_ENDPOINT=http://127.0.0.1:4566 cargo run -p throughline-eventbridge --example eventbridge-quickstart`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use throughline::{Bus, Envelope, Result};

#[tokio::main]
async fn main() -> Result<()> {
    // Without an endpoint it would be AWS, with the credentials that its own tools use.
    let Ok(endpoint) = std::env::var("THROUGHLINE_AWS_ENDPOINT") else {
        println!("set THROUGHLINE_AWS_ENDPOINT to an emulator, such as http://127.0.0.1:4566");
        return Ok(());
    };
    let name = format!("quickstart-{}", std::process::id());
    let bus = Bus::connect(format!(
        "eventbridge://{name}?source=quickstart&queue={name}-reports&endpoint={endpoint}"
    ))
    .await?;
    for made in bus.create("").await? {
        println!("made {made}");
    }
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
    for deleted in bus.delete("").await? {
        println!("deleted {deleted}");
    }
    bus.close().await
}
