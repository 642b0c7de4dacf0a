//! Lost connections: nothing is lost, and consuming goes on by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use throughline_core::{ConsumeOptions, ErrorKind, PublishOptions};
use tokio::time::sleep;

use super::cases;
use crate::cx::Cx;
use crate::messages::{Seen, message, numbers, text};
use crate::suite::Case;
use crate::verdict::{Checked, Fail, Verdict, ensure, not_applicable};

pub(crate) const CASES: &[Case] = cases!["connection";
    lost_connection_is_survived: "While connections are cut again and again, what was accepted arrives, and both sides go on by themselves; duplicates are counted.",
    delivery_of_a_lost_connection_is_stale: "A delivery of a lost connection comes again, and can be settled only once, by its new owner.",
];

const COUNT: usize = 300;
const CUTS: usize = 3;

async fn lost_connection_is_survived(cx: Cx) -> Checked {
    let Some(fragile) = cx.fragile().await? else {
        return not_applicable("there is no connection that can be cut");
    };
    let queue = cx.queue().await?;
    let options = PublishOptions { allow_duplicates: true, ..PublishOptions::default() };
    let publisher = cx.publisher_on(&fragile.transport, &queue, options).await?;
    let mut consumer = cx.consumer_on(&fragile.transport, &queue, ConsumeOptions::default()).await?;
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let publishing = tokio::spawn(async move {
        for number in numbers(COUNT) {
            publisher.publish(message(number)).await?;
            count.fetch_add(1, Ordering::SeqCst);
            sleep(Duration::from_millis(2)).await;
        }
        publisher.close().await
    });
    let mut seen = Seen::default();
    let mut cuts = 0;
    while seen.distinct() < COUNT {
        // Spread over the whole run, so that there is traffic both ways at each.
        if cuts < CUTS && sent.load(Ordering::SeqCst) > COUNT * (cuts + 1) / (CUTS + 1) {
            fragile.cut();
            cuts += 1;
        }
        let delivery = match cx.next(&mut consumer).await {
            Ok(delivery) => delivery,
            Err(Fail(why)) => {
                let sent = sent.load(Ordering::SeqCst);
                return Err(Fail(format!(
                    "{why}: of {sent} accepted messages {} have come",
                    seen.distinct()
                )));
            }
        };
        let text = text(delivery.envelope());
        match delivery.ack().await {
            // Acked as the connection went: it comes again.
            Err(error) if error.kind() == ErrorKind::Stale => {}
            answer => answer?,
        }
        seen.add(text);
    }
    cx.within("publishing", publishing).await???;
    seen.is_exactly(numbers(COUNT))?;
    ensure!(cuts == CUTS, "only {cuts} cuts were made");
    // The last acks may have gone with the last connection.
    while let Ok(Some(delivery)) = tokio::time::timeout(cx.settings().silence, consumer.next()).await {
        let delivery = delivery?;
        seen.add(text(delivery.envelope()));
        delivery.ack().await?;
    }
    consumer.close().await?;
    cx.note(format!("{cuts} cuts, {COUNT} messages, 0 lost, {} duplicates", seen.duplicates()));
    Ok(Verdict::Passed)
}

async fn delivery_of_a_lost_connection_is_stale(cx: Cx) -> Checked {
    let Some(fragile) = cx.fragile().await? else {
        return not_applicable("there is no connection that can be cut");
    };
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("held")).await?;
    let mut consumer = cx.consumer_on(&fragile.transport, &queue, ConsumeOptions::default()).await?;
    let held = cx.next(&mut consumer).await?;
    fragile.cut();
    let again = cx.next(&mut consumer).await?;
    ensure!(text(again.envelope()) == "held", "received '{}'", text(again.envelope()));
    ensure!(held.is_lease_lost(), "the delivery of the lost connection is told as still ours");
    let late = held.ack().await;
    ensure!(
        late.as_ref().is_err_and(|error| error.kind() == ErrorKind::Stale),
        "an ack of a delivery of the lost connection is answered {late:?}"
    );
    again.ack().await?;
    cx.within("closing", consumer.close()).await??;
    cx.nothing(&mut cx.consumer(&queue).await?).await?;
    Ok(Verdict::Passed)
}
