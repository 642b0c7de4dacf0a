//! Leases: kept while a message is worked on, let go when it is not.

use throughline_core::capabilities::Lease;
use throughline_core::driver::{self, Settlement, Token};
use throughline_core::{ConsumeOptions, ErrorKind};
use tokio::time::{Instant, sleep};

use super::cases;
use crate::cx::Cx;
use crate::messages::{message, numbers, text};
use crate::suite::Case;
use crate::verdict::{Checked, Fail, Verdict, ensure, refused};

pub(crate) const CASES: &[Case] = cases!["lease";
    long_handler_keeps_its_message: "A handler that takes longer than the lease keeps its message, and can ack it.",
    lease_ends_at_the_maximum: "A lease is not renewed past its maximum: the message goes to another, and the late ack is `Stale`.",
    unrenewed_lease_ends: "A message whose lease nobody renews, as after a crash, is delivered again.",
    extension_counts_from_now: "An extended lease ends that long from the extension, not before and not never.",
    extensions_are_answered_one_by_one: "In a batch of extensions, one that is not ours fails alone.",
    settled_lease_cannot_be_extended: "After its settlement a delivery's lease cannot be extended: the heartbeat has nothing to keep.",
];

/// Whether leases can be renewed here; where they cannot, whether asking is refused.
async fn renewable(cx: &Cx) -> Result<(), Checked> {
    let asked = async {
        let queue = cx.queue().await?;
        let consumer = cx.raw_consumer(&queue, &ConsumeOptions::default()).await?;
        if matches!(consumer.capabilities().lease, Lease::Renewable(_)) {
            return Ok(None);
        }
        cx.publisher(&queue).await?.publish(message("leased")).await?;
        let received = cx.raw_receive_all(&*consumer, 1).await?;
        let tokens: Vec<_> = received.iter().map(|delivery| delivery.token).collect();
        let answers = cx.within("extending", consumer.extend(&tokens, cx.settings().lease)).await?;
        consumer.close().await?;
        Ok(answers.into_iter().next())
    };
    match asked.await {
        Err(fail) => Err(Err(fail)),
        Ok(None) => Ok(()),
        Ok(Some(Err(error))) if error.kind() == ErrorKind::Unsupported => Err(refused(&error)),
        Ok(Some(answer)) => Err(Err(Fail(format!(
            "the lease is declared as not renewable, and an extension is answered {answer:?}"
        )))),
    }
}

/// Ends the case where leases cannot be renewed.
macro_rules! needs_renewable {
    ($cx:expr) => {
        if let Err(ended) = renewable(&$cx).await {
            return ended;
        }
    };
}

async fn long_handler_keeps_its_message(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("long")).await?;
    let mut first = cx.short_lease_consumer(&queue).await?;
    let delivery = cx.next(&mut first).await?;
    let mut second = cx.consumer(&queue).await?;
    cx.nothing_for(&mut second, cx.settings().lease * 3).await?;
    ensure!(!delivery.is_lease_lost(), "the lease is lost, though it was to be kept");
    delivery.ack().await?;
    first.close().await?;
    cx.nothing(&mut second).await?;
    Ok(Verdict::Passed)
}

async fn lease_ends_at_the_maximum(cx: Cx) -> Checked {
    needs_renewable!(cx);
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("too long")).await?;
    let lease = cx.settings().lease;
    let options = ConsumeOptions { max_lease: lease * 2, ..cx.short_lease() };
    let mut first = cx.consumer_with(&queue, options).await?;
    let held = cx.next(&mut first).await?;
    // It would compete for the message that it lost.
    cx.within("stopping", first.stop()).await?;
    cx.within("waiting for the end of the lease", held.lease_lost()).await?;
    let mut second = cx.consumer(&queue).await?;
    let again = cx.next(&mut second).await?;
    ensure!(text(again.envelope()) == "too long", "received '{}'", text(again.envelope()));
    let late = held.ack().await;
    ensure!(
        late.as_ref().is_err_and(|error| error.kind() == ErrorKind::Stale),
        "an ack after the end of the lease is answered {late:?}"
    );
    again.ack().await?;
    first.close().await?;
    cx.nothing(&mut second).await?;
    Ok(Verdict::Passed)
}

async fn unrenewed_lease_ends(cx: Cx) -> Checked {
    needs_renewable!(cx);
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("abandoned")).await?;
    // The driver alone: nothing renews its leases.
    let first = cx.raw_consumer(&queue, &cx.short_lease()).await?;
    let held = cx.raw_receive_all(&*first, 1).await?;
    ensure!(held.iter().all(|d| d.lease_expires.is_some()), "a renewable lease, and no time when it ends");
    let mut second = cx.consumer(&queue).await?;
    let again = cx.next(&mut second).await?;
    ensure!(text(again.envelope()) == "abandoned", "received '{}'", text(again.envelope()));
    again.ack().await?;
    first.close().await?;
    Ok(Verdict::Passed)
}

async fn extension_counts_from_now(cx: Cx) -> Checked {
    needs_renewable!(cx);
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("extended")).await?;
    let first = cx.raw_consumer(&queue, &cx.short_lease()).await?;
    let held = cx.raw_receive_all(&*first, 1).await?;
    let tokens: Vec<_> = held.iter().map(|delivery| delivery.token).collect();
    let lease = cx.settings().lease;
    sleep(lease / 2).await;
    let extended = Instant::now();
    for answer in cx.within("extending", first.extend(&tokens, lease * 2)).await? {
        answer?;
    }
    let mut second = cx.consumer(&queue).await?;
    let again = cx.next(&mut second).await?;
    let after = extended.elapsed();
    ensure!(
        after >= lease.mul_f32(1.8),
        "it was extended by {:?}, and came again after {after:?}",
        lease * 2
    );
    again.ack().await?;
    first.close().await?;
    Ok(Verdict::Passed)
}

/// So many unsettled deliveries of a new queue.
async fn held(cx: &Cx, count: usize) -> Result<(std::sync::Arc<dyn driver::Consumer>, Vec<Token>), Fail> {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    for answer in publisher.publish_batch(numbers(count).map(message)).await {
        answer?;
    }
    let consumer = cx.raw_consumer(&queue, &ConsumeOptions::default()).await?;
    let received = cx.raw_receive_all(&*consumer, count).await?;
    Ok((consumer, received.iter().map(|delivery| delivery.token).collect()))
}

async fn extensions_are_answered_one_by_one(cx: Cx) -> Checked {
    needs_renewable!(cx);
    let (consumer, mut tokens) = held(&cx, 4).await?;
    tokens.insert(2, Token { epoch: consumer.epoch(), tag: u64::MAX >> 1 });
    let answers = cx.within("extending a batch", consumer.extend(&tokens, cx.settings().lease)).await?;
    ensure!(answers.len() == tokens.len(), "{} answers for {} extensions", answers.len(), tokens.len());
    for (index, answer) in answers.iter().enumerate() {
        let right = match answer {
            Ok(()) => index != 2,
            Err(error) => index == 2 && error.kind() == ErrorKind::Stale,
        };
        ensure!(right, "extension {index} of the batch is answered {answer:?}");
    }
    consumer.close().await?;
    Ok(Verdict::Passed)
}

async fn settled_lease_cannot_be_extended(cx: Cx) -> Checked {
    needs_renewable!(cx);
    let (consumer, tokens) = held(&cx, 1).await?;
    let acks: Vec<_> = tokens.iter().map(|token| (*token, Settlement::Ack)).collect();
    for answer in cx.within("acking", consumer.settle(&acks)).await? {
        answer?;
    }
    let answers = cx.within("extending", consumer.extend(&tokens, cx.settings().lease)).await?;
    let Some(answer) = answers.first() else { return Err(Fail("no answer for an extension".into())) };
    ensure!(
        answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Stale),
        "an extension after the ack is answered {answer:?}"
    );
    consumer.close().await?;
    Ok(Verdict::Passed)
}
