//! Order within a key, as far as it is declared.

use std::collections::HashMap;
use std::time::Duration;

use throughline_core::capabilities::Level;
use throughline_core::{ConsumeOptions, Order};

use super::cases;
use crate::cx::Cx;
use crate::messages::{keyed, text};
use crate::suite::Case;
use crate::verdict::{Checked, Verdict, ensure, not_applicable};

pub(crate) const CASES: &[Case] = cases!["ordering";
    order_per_key_is_kept: "Messages of each of 16 keys come in the order in which they were sent, none missing.",
    retried_message_keeps_its_place: "A retried message of a key comes again before the later ones of its key.",
    busy_key_holds_up_no_other: "A key whose message is being worked on does not hold up other keys.",
];

const KEYS: usize = 16;

async fn order_per_key_is_kept(cx: Cx) -> Checked {
    if cx.capabilities().order == Level::No {
        return not_applicable("order within a key is declared as `No`; nothing asks for it");
    }
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let per_key = cx.settings().per_key;
    let publishing = tokio::spawn(async move {
        for first in (0..per_key).step_by(50) {
            let numbers = first..(first + 50).min(per_key);
            let batch = numbers.flat_map(|n| (0..KEYS).map(move |key| keyed(&format!("key-{key}"), n)));
            for answer in publisher.publish_batch(batch).await {
                answer?;
            }
        }
        Ok::<_, throughline_core::Error>(())
    });
    let mut consumer = cx.consumer(&queue).await?;
    let mut next: HashMap<Vec<u8>, usize> = HashMap::new();
    for received in 0..per_key * KEYS {
        let delivery = cx.next(&mut consumer).await?;
        let key = delivery.envelope().ordering_key.clone().unwrap_or_default().to_vec();
        let due = next.entry(key.clone()).or_default();
        let came = text(delivery.envelope());
        ensure!(
            came == due.to_string(),
            "of key '{}' message {came} came where {due} was due, after {received} messages",
            String::from_utf8_lossy(&key)
        );
        *due += 1;
        delivery.ack().await?;
    }
    cx.within("publishing", publishing).await???;
    ensure!(next.len() == KEYS, "{} keys came of {KEYS}", next.len());
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn retried_message_keeps_its_place(cx: Cx) -> Checked {
    if cx.capabilities().order == Level::No {
        return not_applicable("order within a key is declared as `No`; nothing asks for it");
    }
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    for answer in publisher.publish_batch((1..=3).map(|n| keyed("key", n))).await {
        answer?;
    }
    let mut options = ConsumeOptions::default();
    if cx.capabilities().order == Level::Emulated {
        // What was handed out before the retry is not called back there; so nothing is.
        options.max_unsettled = 1;
    }
    let mut consumer = cx.consumer_with(&queue, options).await?;
    let first = cx.next(&mut consumer).await?;
    ensure!(text(first.envelope()) == "1", "'{}' came first", text(first.envelope()));
    first.retry(Duration::from_millis(200), "busy").await?;
    for expected in ["1", "2", "3"] {
        let delivery = cx.next(&mut consumer).await?;
        let came = text(delivery.envelope());
        ensure!(came == expected, "after the retry '{came}' came where '{expected}' was due");
        delivery.ack().await?;
    }
    Ok(Verdict::Passed)
}

async fn busy_key_holds_up_no_other(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let keys = ["a", "a", "b", "c"];
    for answer in publisher.publish_batch(keys.iter().map(|key| keyed(key, key))).await {
        answer?;
    }
    let options = ConsumeOptions { order: Order::PerKey, ..ConsumeOptions::default() };
    let mut consumer = cx.consumer_with(&queue, options).await?;
    let mut held = Vec::new();
    let mut waiting = vec!["a", "b", "c"];
    while !waiting.is_empty() {
        let delivery = cx.next(&mut consumer).await?;
        let came = text(delivery.envelope());
        waiting.retain(|key| *key != came);
        held.push(delivery);
    }
    for delivery in held {
        delivery.ack().await?;
    }
    Ok(Verdict::Passed)
}
