//! Creating, deleting, counting, purging and looking.

use std::num::NonZeroUsize;

use throughline_core::capabilities::Browse;
use throughline_core::diagnosis::{DiagnoseOptions, Severity};
use throughline_core::driver::Place;
use throughline_core::{ConsumeOptions, ErrorKind, Order};

use super::cases;
use crate::cx::Cx;
use crate::messages::{message, numbers, text};
use crate::suite::Case;
use crate::verdict::{Checked, Fail, Verdict, ensure, refused};

pub(crate) const CASES: &[Case] = cases!["admin";
    create_is_idempotent: "Creating what is there already, the same, is no error and loses no message.",
    delete_is_idempotent: "What is deleted is gone with its messages, and deleting it again is no error.",
    depth_counts_what_is_ready: "The depth tells how many messages are ready.",
    purge_empties_the_queue: "A purge deletes what is ready, says how much that was, and the queue goes on.",
    diagnosis_disturbs_nothing: "A diagnosis takes no message and makes nothing; what is missing is a finding with a remedy.",
    browse_takes_nothing: "Browsing shows the ready messages and takes none; where it is declared to disturb nothing, no count rises.",
];

async fn create_is_idempotent(cx: Cx) -> Checked {
    let (queue, _) = cx.queue_with_dead_letters().await?;
    cx.publisher(&queue).await?.publish(message("kept")).await?;
    let made = cx.within("creating again", cx.transport().create(&queue)).await?;
    ensure!(made.is_ok(), "creating what is there: {made:?}");
    let delivery = cx.next(&mut cx.consumer(&queue).await?).await?;
    ensure!(text(delivery.envelope()) == "kept", "received '{}'", text(delivery.envelope()));
    delivery.ack().await?;
    Ok(Verdict::Passed)
}

async fn delete_is_idempotent(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("old")).await?;
    for time in ["first", "second"] {
        let deleted = cx.within("deleting", cx.transport().delete(&queue)).await?;
        ensure!(deleted.is_ok(), "the {time} deletion: {deleted:?}");
    }
    cx.within("creating again", cx.transport().create(&queue)).await??;
    cx.publisher(&queue).await?.publish(message("new")).await?;
    let mut consumer = cx.consumer(&queue).await?;
    let delivery = cx.next(&mut consumer).await?;
    ensure!(text(delivery.envelope()) == "new", "'{}' outlived its queue", text(delivery.envelope()));
    delivery.ack().await?;
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn depth_counts_what_is_ready(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    for answer in publisher.publish_batch(numbers(7).map(message)).await {
        answer?;
    }
    cx.depth(&queue, "counting seven messages", |depth| depth.ready == 7).await?;
    let mut consumer = cx.consumer(&queue).await?;
    cx.take(&mut consumer, 7).await?;
    consumer.close().await?;
    let empty = |depth: &throughline_core::Depth| depth.ready == 0 && depth.unsettled.unwrap_or(0) == 0;
    cx.depth(&queue, "counting none", empty).await?;
    Ok(Verdict::Passed)
}

async fn purge_empties_the_queue(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    for answer in publisher.publish_batch(numbers(9).map(message)).await {
        answer?;
    }
    cx.depth(&queue, "counting nine messages", |depth| depth.ready == 9).await?;
    let purged = cx.within("purging", cx.transport().purge(&queue)).await??;
    ensure!(purged == 9, "a purge of 9 messages says {purged}");
    publisher.publish(message("after")).await?;
    let mut consumer = cx.consumer(&queue).await?;
    let delivery = cx.next(&mut consumer).await?;
    ensure!(text(delivery.envelope()) == "after", "'{}' outlived the purge", text(delivery.envelope()));
    delivery.ack().await?;
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn diagnosis_disturbs_nothing(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    for answer in publisher.publish_batch(numbers(3).map(message)).await {
        answer?;
    }
    let options = DiagnoseOptions::default();
    let well = cx.within("diagnosing", cx.transport().diagnose(&queue, &options)).await??;
    ensure!(well.worst() != Some(Severity::Error), "a queue that create has made: {:?}", well.findings);
    let mut consumer = cx.consumer(&queue).await?;
    let mut left: Vec<String> = numbers(3).collect();
    while !left.is_empty() {
        let delivery = cx.next(&mut consumer).await?;
        let (came, counted) = (text(delivery.envelope()), delivery.receive_count().unwrap_or(1));
        ensure!(left.contains(&came), "'{came}' came, left were {left:?}");
        ensure!(counted == 1, "a diagnosis was counted as a delivery");
        left.retain(|text| *text != came);
        delivery.ack().await?;
    }
    let name = cx.name();
    let Some(missing) = cx.missing(Place::Queue(&name)) else { return Ok(Verdict::Passed) };
    let ill = cx.within("diagnosing", cx.transport().diagnose(&missing, &options)).await??;
    let told = ill.findings.iter().find(|finding| finding.severity == Severity::Error);
    ensure!(
        told.is_some_and(|finding| !finding.remedy.text.is_empty()),
        "a missing queue: {:?}",
        ill.findings
    );
    let depth = cx.within("counting", cx.transport().depth(&missing)).await?;
    ensure!(
        depth.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound),
        "a missing queue's depth after its diagnosis is answered {depth:?}"
    );
    Ok(Verdict::Passed)
}

async fn browse_takes_nothing(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    for answer in publisher.publish_batch(numbers(5).map(message)).await {
        answer?;
    }
    let three = NonZeroUsize::new(3).unwrap_or(NonZeroUsize::MIN);
    let declared = cx.capabilities().browse;
    if declared == Browse::No {
        return match cx.within("browsing", cx.transport().browse(&queue, three)).await? {
            Err(error) if error.kind() == ErrorKind::Unsupported => refused(&error),
            answer => Err(Fail(format!("browsing is declared as `No`, and is answered {answer:?}"))),
        };
    }
    cx.depth(&queue, "counting five messages", |depth| depth.ready == 5).await?;
    let seen = cx.within("browsing", cx.transport().browse(&queue, three)).await??;
    ensure!(seen.len() == 3, "browsing 3 of 5 messages shows {}", seen.len());
    let texts: Vec<_> = seen.iter().map(|delivery| text(&delivery.envelope)).collect();
    if declared == Browse::Native {
        ensure!(texts == ["0", "1", "2"], "browsing shows {texts:?}, where 0, 1, 2 come first");
    }
    let options = ConsumeOptions { order: Order::Any, ..ConsumeOptions::default() };
    let mut consumer = cx.consumer_with(&queue, options).await?;
    let mut left: Vec<String> = numbers(5).collect();
    while !left.is_empty() {
        let delivery = cx.next(&mut consumer).await?;
        if declared == Browse::Native {
            let counted = delivery.receive_count().unwrap_or(1);
            ensure!(counted == 1, "browsing is declared to disturb nothing, and was counted as a delivery");
        }
        let came = text(delivery.envelope());
        ensure!(left.contains(&came), "'{came}' came twice");
        left.retain(|text| *text != came);
        delivery.ack().await?;
    }
    ensure!(texts.iter().all(|text| numbers(5).any(|number| number == *text)), "browsing shows {texts:?}");
    Ok(Verdict::Passed)
}
