//! Create, publish, consume, delete on RabbitMQ:
//! `THROUGHLINE_RABBITMQ_URL=amqp://guest:guest@localhost:5672/%2f cargo run -p throughline-rabbitmq --example rabbitmq-quickstart`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use throughline::{Bus, Envelope, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let Ok(broker) = std::env::var("THROUGHLINE_RABBITMQ_URL") else {
        println!("set THROUGHLINE_RABBITMQ_URL to a broker, such as amqp://guest:guest@localhost:5672/%2f");
        return Ok(());
    };
    let queue = format!("quickstart-{}", std::process::id());
    let bus = Bus::connect(format!("{broker}?queue={queue}&dead_letter={queue}-dead")).await?;
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
    for address in ["", &format!("?queue={queue}-dead")] {
        for deleted in bus.delete(address).await? {
            println!("deleted {deleted}");
        }
    }
    bus.close().await
}
