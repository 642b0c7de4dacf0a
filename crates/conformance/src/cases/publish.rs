//! Publishing: accepted is delivered, and every message has its own answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use throughline_core::capabilities::Level;
use throughline_core::driver::{Answer, Completions, Sibling};
use throughline_core::{ErrorKind, Receipt, Result, SendOptions};

use super::cases;
use crate::cx::Cx;
use crate::messages::{message, numbers, outgoing, text};
use crate::suite::Case;
use crate::verdict::{Checked, Fail, Verdict, ensure, not_applicable};

pub(crate) const CASES: &[Case] = cases!["publish";
    published_is_received: "A published message is received once, as it was, and is gone once it is acked.",
    batch_is_answered_one_by_one: "A batch larger than one call has an answer for each message: a bad one fails alone.",
    many_at_once_all_arrive: "Thousands of concurrent publishes are all accepted and all arrive; duplicates are counted.",
    many_destinations_at_once: "Many destinations at once do not mix their messages up.",
    each_answer_comes_once: "The driver answers each message of a batch exactly once, by its own index.",
    dropped_publish_is_still_sent: "A user who drops the future of a queued publish abandons the answer, not the send.",
    publishing_goes_on_after_an_error: "A refused message does not keep the next one from being sent.",
    close_sends_what_was_queued: "Closing a publisher sends what was queued, and every message has its answer.",
    publish_after_close_is_refused: "A closed publisher answers `Closed`, the portable one and the driver's.",
    unroutable_is_told: "Publishing to a topic that nobody subscribes to is `Unroutable`, not a silent loss.",
];

async fn published_is_received(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let mut consumer = cx.consumer(&queue).await?;
    let sent = message("hello");
    cx.within("publishing", publisher.publish(sent.clone())).await??;
    let delivery = cx.next(&mut consumer).await?;
    ensure!(**delivery.envelope() == sent, "sent {sent:?}, received {:?}", delivery.envelope());
    ensure!(delivery.attempt() == 1, "the first attempt is told as {}", delivery.attempt());
    cx.nothing(&mut consumer).await?;
    delivery.ack().await?;
    consumer.close().await?;
    cx.nothing(&mut cx.consumer(&queue).await?).await?;
    Ok(Verdict::Passed)
}

async fn batch_is_answered_one_by_one(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let count = 300.min(cx.settings().many);
    let bad = count / 2;
    let mut batch: Vec<_> = numbers(count).map(message).collect();
    if let Some(envelope) = batch.get_mut(bad) {
        envelope.id.clear();
    }
    let answers = cx.within("publishing a batch", publisher.publish_batch(batch)).await?;
    ensure!(answers.len() == count, "{} answers for {count} messages", answers.len());
    for (index, answer) in answers.iter().enumerate() {
        match answer {
            Ok(_) if index != bad => {}
            Err(error) if index == bad && error.kind() == ErrorKind::InvalidMessage => {}
            answer => ensure!(false, "message {index} of the batch: {answer:?}"),
        }
    }
    let mut consumer = cx.consumer(&queue).await?;
    let seen = cx.take(&mut consumer, count - 1).await?;
    seen.is_exactly(numbers(count).filter(|number| *number != bad.to_string()))?;
    Ok(Verdict::Passed)
}

async fn many_at_once_all_arrive(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let count = cx.settings().many;
    let mut consumer = cx.consumer(&queue).await?;
    let publishing = tokio::spawn(async move {
        let publishes = numbers(count).map(|number| {
            let publisher = publisher.clone();
            async move { publisher.publish(message(number)).await }
        });
        let answers: Vec<Result<Receipt>> = join_all(publishes).await;
        answers.into_iter().find_map(Result::err)
    });
    let seen = cx.take(&mut consumer, count).await;
    // First what the publisher says: it explains what is missing.
    if let Some(error) = cx.within("publishing", publishing).await?? {
        ensure!(false, "a publish failed: {error}");
    }
    seen?.is_exactly(numbers(count))?;
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn many_destinations_at_once(cx: Cx) -> Checked {
    for result in join_all((0..8).map(|number| one_destination(cx.clone(), number))).await {
        result?;
    }
    Ok(Verdict::Passed)
}

async fn one_destination(cx: Cx, number: usize) -> Result<(), Fail> {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let texts: Vec<_> = numbers(20).map(|text| format!("{number}/{text}")).collect();
    for answer in publisher.publish_batch(texts.iter().map(message)).await {
        answer?;
    }
    let mut consumer = cx.consumer(&queue).await?;
    cx.take(&mut consumer, texts.len()).await?.is_exactly(texts)?;
    cx.nothing(&mut consumer).await
}

/// Counts the answers of each message.
struct Counting {
    answers: Vec<AtomicUsize>,
    errors: AtomicUsize,
}

impl Answer for Counting {
    fn answer(&self, answers: &mut dyn Iterator<Item = (usize, Result<Receipt>)>) {
        for (index, result) in answers {
            if let Some(count) = self.answers.get(index) {
                count.fetch_add(1, Ordering::SeqCst);
            }
            if result.is_err() {
                self.errors.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

async fn each_answer_comes_once(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.raw_publisher(&queue).await?;
    let count = publisher.capabilities().limits.batch_entries.min(50);
    let counting = Arc::new(Counting {
        answers: (0..count).map(|_| AtomicUsize::new(0)).collect(),
        errors: AtomicUsize::new(0),
    });
    let batch = numbers(count).map(|number| outgoing(message(number))).collect();
    let done = Completions::new(count, counting.clone());
    cx.within("publishing through the driver", publisher.publish(batch, done)).await?;
    // It waits for the answers still out.
    cx.within("closing the driver's publisher", publisher.close()).await??;
    let counts: Vec<_> = counting.answers.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    ensure!(counts.iter().all(|count| *count == 1), "answers per message: {counts:?}");
    let errors = counting.errors.load(Ordering::SeqCst);
    ensure!(errors == 0, "{errors} of {count} messages failed, or were dropped without an answer");
    let mut consumer = cx.consumer(&queue).await?;
    cx.take(&mut consumer, count).await?.is_exactly(numbers(count))?;
    Ok(Verdict::Passed)
}

async fn dropped_publish_is_still_sent(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    for number in numbers(20) {
        let pending = cx.within("queueing", publisher.enqueue(message(number), SendOptions::default()));
        drop(pending.await??);
    }
    cx.within("closing the publisher", publisher.close()).await??;
    let mut consumer = cx.consumer(&queue).await?;
    cx.take(&mut consumer, 20).await?.is_exactly(numbers(20))?;
    Ok(Verdict::Passed)
}

async fn publishing_goes_on_after_an_error(cx: Cx) -> Checked {
    let topic = cx.name();
    let Some(nobody) = cx.address(&Sibling::topic(&topic)) else {
        return not_applicable("the transport has no topics, and so no error that passes");
    };
    if cx.capabilities().unroutable == Level::No {
        return not_applicable("publishing where nobody subscribes is declared to be no error");
    }
    cx.create(&nobody).await?;
    let publisher = cx.publisher(&nobody).await?;
    // Unroutable: that it is told is another case's.
    let _ = cx.within("publishing to nobody", publisher.publish(message("lost"))).await?;
    let name = cx.name();
    let subscription = cx.must_address(&Sibling::subscription(&topic, &name))?;
    cx.create(&subscription).await?;
    let answer = cx.within("publishing after an error", publisher.publish(message("good"))).await?;
    ensure!(answer.is_ok(), "a good message after an error: {answer:?}");
    let delivery = cx.next(&mut cx.consumer(&subscription).await?).await?;
    ensure!(text(delivery.envelope()) == "good", "received '{}'", text(delivery.envelope()));
    delivery.ack().await?;
    Ok(Verdict::Passed)
}

async fn close_sends_what_was_queued(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let mut pending = Vec::new();
    for number in numbers(200) {
        let queued = cx.within("queueing", publisher.enqueue(message(number), SendOptions::default()));
        pending.push(queued.await??);
    }
    cx.within("closing the publisher", publisher.close()).await??;
    for (number, pending) in pending.into_iter().enumerate() {
        let answer = cx.within("waiting for a receipt", pending.receipt()).await?;
        ensure!(answer.is_ok(), "message {number}, queued before the close: {answer:?}");
    }
    let mut consumer = cx.consumer(&queue).await?;
    cx.take(&mut consumer, 200).await?.is_exactly(numbers(200))?;
    Ok(Verdict::Passed)
}

async fn publish_after_close_is_refused(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    publisher.close().await?;
    let answer = cx.within("publishing after the close", publisher.publish(message("late"))).await?;
    ensure!(answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Closed), "portable: {answer:?}");
    let driver = cx.raw_publisher(&queue).await?;
    driver.close().await?;
    let answers = cx.raw_publish(&*driver, vec![outgoing(message("late"))]).await?;
    ensure!(
        answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Closed)),
        "the driver: {answers:?}"
    );
    cx.nothing(&mut cx.consumer(&queue).await?).await?;
    Ok(Verdict::Passed)
}

async fn unroutable_is_told(cx: Cx) -> Checked {
    let Some((topic, _)) = cx.topic(0).await? else { return not_applicable("the transport has no topics") };
    let publisher = cx.publisher(&topic).await?;
    let answer = cx.within("publishing to nobody", publisher.publish(message("anyone?"))).await?;
    if cx.capabilities().unroutable == Level::No {
        ensure!(answer.is_ok(), "declared not to be told, and the answer is {answer:?}");
        return not_applicable("a topic keeps what nobody subscribes to yet");
    }
    ensure!(
        answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unroutable),
        "a topic without subscriptions: {answer:?}"
    );
    Ok(Verdict::Passed)
}
