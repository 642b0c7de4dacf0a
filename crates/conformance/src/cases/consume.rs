//! Consuming: everything comes, once, to whom it is due; waiting ends when it is to end.

use std::num::NonZeroUsize;
use std::time::Duration;

use throughline_core::ConsumeOptions;
use throughline_core::capabilities::Level;
use tokio::time::{Instant, sleep, timeout};

use super::cases;
use crate::cx::Cx;
use crate::messages::{Seen, message, numbers, outgoing, text};
use crate::suite::Case;
use crate::verdict::{Checked, Fail, Verdict, ensure, not_applicable};

pub(crate) const CASES: &[Case] = cases!["consume";
    competing_consumers_share: "Consumers of one queue share its messages: each goes to one of them.",
    each_subscription_gets_everything: "Each subscription of a topic gets every message.",
    receive_gives_no_more_than_asked: "The driver's receive gives at most as many messages as were asked for.",
    receive_waits_no_longer_than_asked: "The driver's receive on an empty queue returns nothing when its time is over.",
    receive_wakes_for_a_message: "A receive that waits returns when a message comes, not when its time is over.",
    stop_ends_a_waiting_receive: "Stopping the driver's consumer makes a waiting receive return.",
    stopping_releases_the_unread: "What a consumer had fetched and nobody read goes to others when it stops.",
    cancelled_next_loses_nothing: "A user who keeps dropping the future of the next message loses none.",
    dropped_delivery_comes_back: "A delivery that is dropped unsettled is delivered again.",
    unsettled_comes_back_after_close: "What a consumer held when it closed is delivered to the next one.",
    full_of_unsettled_resumes: "A consumer whose room is full of unsettled messages takes more once one is settled.",
    undecodable_does_not_wedge: "A foreign message with broken headers is delivered as it is, and others come after it.",
];

async fn competing_consumers_share(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let few = || ConsumeOptions { max_unsettled: 5, ..ConsumeOptions::default() };
    let other = cx.connect().await?;
    let mut one = cx.consumer_with(&queue, few()).await?;
    let mut two = cx.consumer_on(&other, &queue, few()).await?;
    let publisher = cx.publisher(&queue).await?;
    for answer in publisher.publish_batch(numbers(200).map(message)).await {
        answer?;
    }
    let mut seen = Seen::default();
    let mut shares = [0, 0];
    cx.step("sharing messages");
    while seen.distinct() < 200 {
        let (consumer, delivery) = cx
            .within("waiting for a message", async {
                tokio::select! { next = one.next() => (0, next), next = two.next() => (1, next) }
            })
            .await?;
        let Some(delivery) = delivery else { return Err(Fail("the stream ended".into())) };
        let delivery = delivery?;
        seen.add(text(delivery.envelope()));
        delivery.ack().await?;
        if let Some(share) = shares.get_mut(consumer) {
            *share += 1;
        }
    }
    cx.note(format!("shared as {shares:?}"));
    cx.judge(&seen)?;
    seen.is_exactly(numbers(200))?;
    cx.nothing(&mut one).await?;
    cx.nothing(&mut two).await?;
    one.close().await?;
    two.close().await?;
    Ok(Verdict::Passed)
}

async fn each_subscription_gets_everything(cx: Cx) -> Checked {
    let Some((topic, subscriptions)) = cx.topic(2).await? else {
        ensure!(cx.capabilities().fan_out == Level::No, "fan-out is declared, but there is no topic");
        return not_applicable("the transport has no topics");
    };
    ensure!(cx.capabilities().fan_out != Level::No, "there is a topic, but fan-out is declared as `No`");
    let mut consumers = Vec::new();
    for subscription in &subscriptions {
        consumers.push(cx.consumer(subscription).await?);
    }
    let publisher = cx.publisher(&topic).await?;
    for answer in publisher.publish_batch(numbers(50).map(message)).await {
        answer?;
    }
    for consumer in &mut consumers {
        cx.take(consumer, 50).await?.is_exactly(numbers(50))?;
        cx.nothing(consumer).await?;
    }
    Ok(Verdict::Passed)
}

async fn receive_gives_no_more_than_asked(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    for answer in publisher.publish_batch(numbers(20).map(message)).await {
        answer?;
    }
    let consumer = cx.raw_consumer(&queue, &ConsumeOptions::default()).await?;
    let mut seen = Seen::default();
    while seen.distinct() < 20 {
        // Fails where there are more.
        for delivery in cx.raw_receive(&*consumer, 3).await? {
            seen.add(text(&delivery.envelope));
        }
    }
    seen.is_exactly(numbers(20))?;
    consumer.close().await?;
    Ok(Verdict::Passed)
}

async fn receive_waits_no_longer_than_asked(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let consumer = cx.raw_consumer(&queue, &ConsumeOptions::default()).await?;
    let wait = Duration::from_millis(300);
    let started = Instant::now();
    let received =
        cx.within("receiving from an empty queue", consumer.receive(NonZeroUsize::MIN, wait)).await??;
    ensure!(received.is_empty(), "{} messages from an empty queue", received.len());
    // Clocks of timers are coarse.
    let least = wait.mul_f32(0.9);
    ensure!(started.elapsed() >= least, "it returned after {:?}, asked to wait {wait:?}", started.elapsed());
    consumer.close().await?;
    Ok(Verdict::Passed)
}

async fn receive_wakes_for_a_message(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let consumer = cx.raw_consumer(&queue, &ConsumeOptions::default()).await?;
    let (waiting, patience) = (consumer.clone(), cx.settings().patience);
    let received = tokio::spawn(async move { waiting.receive(NonZeroUsize::MIN, patience * 10).await });
    sleep(Duration::from_millis(200)).await;
    publisher.publish(message("wake up")).await?;
    let received = cx.within("waking up for a message", received).await???;
    ensure!(received.len() == 1, "{} messages, one was published", received.len());
    consumer.close().await?;
    Ok(Verdict::Passed)
}

async fn stop_ends_a_waiting_receive(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let consumer = cx.raw_consumer(&queue, &ConsumeOptions::default()).await?;
    let (waiting, patience) = (consumer.clone(), cx.settings().patience);
    let received = tokio::spawn(async move { waiting.receive(NonZeroUsize::MIN, patience * 10).await });
    sleep(Duration::from_millis(200)).await;
    ensure!(!received.is_finished(), "the receive returned before its time, from an empty queue");
    cx.within("stopping", consumer.stop()).await?;
    let received = cx.within("ending a waiting receive", received).await???;
    ensure!(received.is_empty(), "{} messages after the stop", received.len());
    consumer.close().await?;
    Ok(Verdict::Passed)
}

async fn stopping_releases_the_unread(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    for answer in publisher.publish_batch(numbers(50).map(message)).await {
        answer?;
    }
    let mut first = cx.consumer(&queue).await?;
    let delivery = cx.next(&mut first).await?;
    let read = text(delivery.envelope());
    // The others are in its buffer by now.
    sleep(Duration::from_millis(200)).await;
    cx.within("stopping", first.stop()).await?;
    let mut second = cx.consumer(&queue).await?;
    let seen = cx.take(&mut second, 49).await?;
    seen.is_exactly(numbers(50).filter(|number| *number != read))?;
    delivery.ack().await?;
    first.close().await?;
    cx.nothing(&mut second).await?;
    Ok(Verdict::Passed)
}

async fn cancelled_next_loses_nothing(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let mut consumer = cx.consumer(&queue).await?;
    let publishing = tokio::spawn(async move {
        for number in numbers(100) {
            publisher.publish(message(number)).await?;
            // Slow enough that the consumer waits, and is cut off.
            sleep(Duration::from_millis(3)).await;
        }
        Ok::<_, throughline_core::Error>(())
    });
    let mut seen = Seen::default();
    let until = Instant::now() + cx.settings().patience;
    let mut cancelled = 0;
    while seen.distinct() < 100 {
        ensure!(Instant::now() < until, "lost: {} of 100 messages have come", seen.distinct());
        match timeout(Duration::from_micros(300), consumer.next()).await {
            Ok(Some(delivery)) => {
                let delivery = delivery?;
                seen.add(text(delivery.envelope()));
                delivery.ack().await?;
            }
            Ok(None) => ensure!(false, "the stream ended"),
            Err(_) => cancelled += 1,
        }
    }
    cx.within("publishing", publishing).await???;
    ensure!(cancelled > 0, "the consumer never waited: nothing was shown");
    cx.judge(&seen)?;
    seen.is_exactly(numbers(100))?;
    Ok(Verdict::Passed)
}

async fn dropped_delivery_comes_back(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("dropped")).await?;
    let mut consumer = cx.consumer(&queue).await?;
    drop(cx.next(&mut consumer).await?);
    let again = cx.next(&mut consumer).await?;
    ensure!(text(again.envelope()) == "dropped", "received '{}'", text(again.envelope()));
    again.ack().await?;
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn unsettled_comes_back_after_close(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("held")).await?;
    let mut first = cx.short_lease_consumer(&queue).await?;
    let held = cx.next(&mut first).await?;
    cx.within("closing a consumer", first.close()).await??;
    let mut second = cx.consumer(&queue).await?;
    let again = cx.next(&mut second).await?;
    ensure!(text(again.envelope()) == "held", "received '{}'", text(again.envelope()));
    let late = held.ack().await;
    ensure!(late.is_err(), "a delivery of a closed consumer could still be acked");
    again.ack().await?;
    cx.nothing(&mut second).await?;
    Ok(Verdict::Passed)
}

async fn full_of_unsettled_resumes(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    for answer in publisher.publish_batch(numbers(40).map(message)).await {
        answer?;
    }
    let options = ConsumeOptions { max_unsettled: 10, ..ConsumeOptions::default() };
    let mut consumer = cx.consumer_with(&queue, options).await?;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(cx.next(&mut consumer).await?);
    }
    cx.nothing(&mut consumer).await?;
    let mut seen = Seen::default();
    for delivery in held {
        seen.add(text(delivery.envelope()));
        delivery.ack().await?;
    }
    for _ in 10..40 {
        let delivery = cx.next(&mut consumer).await?;
        seen.add(text(delivery.envelope()));
        delivery.ack().await?;
    }
    cx.judge(&seen)?;
    seen.is_exactly(numbers(40))?;
    Ok(Verdict::Passed)
}

async fn undecodable_does_not_wedge(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    if !cx.put_foreign(&queue).await? {
        return not_applicable("the harness cannot make a foreign message here");
    }
    let publisher = cx.raw_publisher(&queue).await?;
    for answer in cx.raw_publish(&*publisher, vec![outgoing(message("ours"))]).await? {
        answer?;
    }
    publisher.close().await?;
    let mut consumer = cx.consumer(&queue).await?;
    let mut seen = Seen::default();
    for _ in 0..2 {
        let delivery = cx.next(&mut consumer).await?;
        seen.add(text(delivery.envelope()));
        delivery.ack().await?;
    }
    ensure!(seen.count("ours") == 1 && seen.distinct() == 2, "received {seen:?}");
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}
