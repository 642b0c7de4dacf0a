//! State and messages in one transaction, and a relay that carries the messages elsewhere:
//! `cargo run -p throughline-sqlite --example sqlite-outbox [ADDRESS]`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use throughline::{Bus, Consumer, Envelope, Publisher};
use throughline_sqlite::Outbox;
use throughline_sqlite::rusqlite::Connection;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let onto = std::env::args().nth(1).unwrap_or_else(|| "memory:shop?queue=orders".to_owned());
    let file = std::env::temp_dir().join(format!("throughline-shop-{}.db", std::process::id()));

    // The application: its own database and its own table, and the outbox beside it.
    let mut connection = Connection::open(&file)?;
    connection.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY, article TEXT)")?;
    let outbox = Outbox::install(&mut connection, "outbox")?;

    let shop = Bus::connect(format!("sqlite:{}?queue=outbox", file.display())).await?;
    let elsewhere = Bus::connect(&onto).await?;
    let mut source = shop.consumer().await?;
    let sink = elsewhere.publisher().await?;

    for article in ["book", "bread"] {
        let transaction = connection.transaction()?;
        transaction.execute("INSERT INTO orders (article) VALUES (?1)", [article])?;
        outbox.publish_in(&transaction, Envelope::json("order.placed", article)?)?;
        transaction.commit()?;
    }
    // This order fails, and so nobody hears of it.
    let transaction = connection.transaction()?;
    outbox.publish_in(&transaction, Envelope::json("order.placed", "ghost")?)?;
    transaction.rollback()?;

    for _ in 0..2 {
        relay_one(&mut source, &sink).await?;
    }
    println!("relayed 2 messages to {}; {} are left", elsewhere.address(), shop.depth("").await?.ready);

    source.close().await?;
    elsewhere.close().await?;
    shop.close().await?;
    drop(connection);
    std::fs::remove_file(file)?;
    Ok(())
}

/// Carries one message over. It leaves the outbox only once the other side has it; what fails comes again.
async fn relay_one(source: &mut Consumer, sink: &Publisher) -> Result<()> {
    let Some(delivery) = source.next().await else { return Err("the outbox is closed".into()) };
    let delivery = delivery?;
    // The same envelope: its id, its headers, and the trace of the request that made it.
    match sink.publish(delivery.envelope().clone()).await {
        Ok(_) => delivery.ack().await?,
        Err(error) => {
            println!("{error}; trying again");
            delivery.retry(Duration::from_secs(1), "relay").await?;
        }
    }
    Ok(())
}
