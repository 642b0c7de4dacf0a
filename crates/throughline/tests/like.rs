//! `memory:…?like=`: every limit of the other transport is met exactly, in its own words, and what it lacks is lacked.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use throughline::capabilities::{self, Capabilities, Level, Reach};
use throughline::driver::{Completions, OperationId, Outgoing};
use throughline::memory::LIKE;
use throughline::{Bus, ConsumeOptions, Consumer, Delivery, Envelope, Error, ErrorKind, Result, SendOptions};

type Measure = fn(&Outgoing, &Capabilities) -> Result<usize>;

/// What each is like, and what its own adapter says of a message.
fn all() -> Vec<(&'static str, Capabilities, Measure)> {
    vec![
        ("eventbridge", capabilities::EVENTBRIDGE, throughline::eventbridge::measure),
        #[cfg(feature = "kafka")]
        ("kafka", capabilities::KAFKA, throughline::kafka::measure),
        ("rabbitmq", capabilities::RABBITMQ, throughline::rabbitmq::measure),
        ("sns", capabilities::SNS, throughline::sns::measure),
        ("sns-fifo", capabilities::SNS_FIFO, throughline::sns::measure),
        ("sqs", capabilities::SQS, throughline::sqs::measure),
        ("sqs-fifo", capabilities::SQS_FIFO, throughline::sqs::measure),
    ]
}

async fn bus(name: &str, like: &str) -> Bus {
    Bus::connect(format!("memory:{name}?queue=q&dead_letter=dead&like={like}")).await.unwrap()
}

fn body(bytes: usize) -> Envelope {
    Envelope::builder("like").payload(vec![b'x'; bytes]).build()
}

/// With so large a header.
fn headed(bytes: usize) -> Envelope {
    let mut envelope = body(1);
    envelope.headers.append("large", "v".repeat(bytes));
    envelope
}

fn outgoing(envelope: Envelope) -> Outgoing {
    Outgoing {
        envelope: Arc::new(envelope),
        operation: OperationId(1),
        delay: Duration::ZERO,
        failed_attempts: 0,
        history: None,
    }
}

/// What exceeds a limit is refused in the same words.
fn assert_same<T: std::fmt::Debug>(like: &str, answer: Result<T>, expected: &Error) {
    let error = answer.unwrap_err();
    assert_eq!((error.kind(), error.message()), (expected.kind(), expected.message()), "{like}");
}

#[tokio::test]
async fn each_limit_is_met_exactly_and_told_in_the_same_words() {
    for (like, real, measure) in all() {
        let publisher = bus("limits", like).await.publisher().await.unwrap();
        assert_eq!(publisher.capabilities().limits, real.limits, "{like}");

        let most = real.limits.payload_bytes.unwrap();
        publisher.publish(body(most)).await.unwrap();
        let expected = real.check_payload(most + 1).unwrap_err();
        assert_same(like, publisher.publish(body(most + 1)).await, &expected);

        // The largest header that is taken, between none and two MiB.
        let (mut taken, mut refused) = (0_usize, 2 << 20);
        while refused - taken > 1 {
            let middle = taken.midpoint(refused);
            match publisher.publish(headed(middle)).await {
                Ok(_) => taken = middle,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{like}: {error}");
                    refused = middle;
                }
            }
        }
        let over = headed(refused);
        let expected = measure(&outgoing(over.clone()), &real).unwrap_err();
        assert_same(like, publisher.publish(over).await, &expected);
        let limits = [real.limits.header_bytes, real.limits.batch_bytes, Some(1_048_588)];
        let limit = limits.into_iter().flatten().next().unwrap();
        let told = format!("is {} bytes, the limit is {limit} bytes", limit + 1);
        assert!(expected.message().contains(&told), "{like}: {expected}");
    }
}

#[tokio::test]
async fn each_delay_is_taken_or_refused_in_the_same_words() {
    for (like, real, _) in all() {
        let publisher = bus("delays", like).await.publisher().await.unwrap();
        let second = Duration::from_secs(1);
        let longest = real.limits.delay.unwrap_or_default();
        if real.delay != Level::No {
            publisher.publish_with(body(1), SendOptions::delayed(longest)).await.unwrap();
        }
        let error =
            publisher.publish_with(body(1), SendOptions::delayed(longest + second)).await.unwrap_err();
        let expected = real.check_delay(longest + second).unwrap_err();
        // Who cannot is the memory transport, which says what it is like.
        let told = error.message().replace(&format!("memory-like-{like}"), real.transport);
        assert_eq!((error.kind(), &*told), (expected.kind(), expected.message()), "{like}");
    }
}

#[tokio::test]
async fn a_binary_payload_counts_as_the_text_that_it_is_sent_as() {
    let publisher = bus("binary", "sqs").await.publisher().await.unwrap();
    let error =
        publisher.publish(Envelope::builder("like").payload(vec![0xff; 900_000]).build()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.message().contains("the limit is 1048576 bytes"), "{error}");
}

#[tokio::test]
async fn a_bus_is_like_one_transport() {
    for (like, _, _) in all() {
        assert_eq!(bus("one", like).await.capabilities().transport, format!("memory-like-{like}"));
    }
    #[cfg(not(feature = "kafka"))]
    {
        let error = Bus::connect("memory:one?like=kafka").await.unwrap_err();
        assert!(error.message().contains("enable throughline's feature 'kafka'"), "{error}");
    }
    let unknown = Bus::connect("memory:one?like=nats").await.unwrap_err();
    assert!(unknown.message().contains("sqs-fifo"), "{unknown}");
    let sqs = bus("one", "sqs").await;
    sqs.publisher().await.unwrap().publish(body(1)).await.unwrap();
    // Of the same bus without saying so again; another one is another bus, with other queues.
    assert_eq!(sqs.depth("?queue=q").await.unwrap().ready, 1);
    let other = sqs.depth("memory:one?queue=q&like=sns").await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::InvalidAddress);
    let plain = Bus::connect("memory:one?queue=q").await.unwrap();
    plain.create("").await.unwrap();
    assert_eq!(plain.depth("").await.unwrap().ready, 0);
    let networks = throughline::registrations().filter(|it| it.capabilities.reach == Reach::Network);
    for transport in networks {
        assert!(LIKE.contains(&transport.name), "memory cannot be like {}", transport.name);
    }
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(Duration::from_secs(10), consumer.next());
    next.await.unwrap().unwrap().unwrap()
}

/// Sends the same operation twice, and says how many times it comes.
async fn sent_twice(like: &str) -> u64 {
    let bus = bus("twice", like).await;
    let address = bus.address().clone();
    let publisher = bus.transport().publisher(&address).await.unwrap();
    for _ in 0..2 {
        let (done, answers) = Completions::collect(1);
        publisher.publish(vec![outgoing(body(1))], done).await;
        answers.await.remove(0).unwrap();
    }
    bus.depth("").await.unwrap().ready
}

#[tokio::test]
async fn only_fifo_drops_a_second_send() {
    for like in ["eventbridge", "rabbitmq", "sns", "sqs"] {
        assert_eq!(sent_twice(like).await, 2, "{like}");
    }
    assert_eq!((sent_twice("sqs-fifo").await, sent_twice("sns-fifo").await), (1, 1));
}

#[tokio::test]
async fn a_queue_without_order_keeps_none_and_sqs_has_no_topics() {
    let sqs = bus("order", "sqs").await;
    let publisher = sqs.publisher().await.unwrap();
    for text in ["1", "2"] {
        publisher.publish(Envelope::builder("like").key("k").payload(text).build()).await.unwrap();
    }
    let mut consumer = sqs.consumer().await.unwrap();
    let (first, second) = (next(&mut consumer).await, next(&mut consumer).await);
    assert_eq!((first.payload(), second.payload()), (&b"2"[..], &b"1"[..]));
    let error = sqs.publisher_to("?topic=t", throughline::PublishOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("memory-like-sqs has no topics"), "{error}");
}

/// A message that one consumer retries, or leaves unsettled at its close, as the next one gets it: attempt, receive count, and
/// whether it knows the failure.
async fn redelivered(like: &str, retry: bool) -> (u32, Option<u32>, bool) {
    let bus = bus(&format!("again-{retry}"), like).await;
    bus.publisher().await.unwrap().publish(body(1)).await.unwrap();
    let options = || ConsumeOptions { lease: Duration::from_secs(1), ..ConsumeOptions::default() };
    let mut first = bus.consumer_of("", options()).await.unwrap();
    let held = next(&mut first).await;
    if retry {
        first.stop().await;
        held.retry(Duration::ZERO, "busy").await.unwrap();
        first.close().await.unwrap();
    } else {
        first.close().await.unwrap();
        drop(held);
    }
    let mut second = bus.consumer_of("", options()).await.unwrap();
    let again = next(&mut second).await;
    let seen = (again.attempt(), again.receive_count(), again.history().is_some());
    again.ack().await.unwrap();
    second.close().await.unwrap();
    seen
}

#[tokio::test]
async fn where_a_retry_is_in_place_the_next_consumer_knows_only_what_the_broker_counts() {
    assert_eq!(redelivered("sqs", true).await, (2, Some(2), false));
    // Published again, a message carries what is known of it.
    assert_eq!(redelivered("rabbitmq", true).await, (2, Some(2), true));
    #[cfg(feature = "kafka")]
    assert_eq!(redelivered("kafka", true).await, (1, None, false));
    // A closed channel gives back what it holds, a visibility timeout ends on its own.
    assert_eq!(redelivered("rabbitmq", false).await, (1, Some(2), false));
    assert_eq!(redelivered("sqs", false).await, (2, Some(2), false));
}

#[tokio::test]
async fn a_retry_over_what_the_broker_can_hold_is_refused_in_the_same_words() {
    for (like, real) in [("sqs", capabilities::SQS), ("rabbitmq", capabilities::RABBITMQ)] {
        let bus = bus("retries", like).await;
        bus.publisher().await.unwrap().publish(body(1)).await.unwrap();
        let mut consumer = bus.consumer().await.unwrap();
        let day = Duration::from_secs(86_401);
        let error = next(&mut consumer).await.retry(day, "busy").await.unwrap_err();
        let expected = real.check_retry(day).unwrap_err();
        assert_same::<()>(like, Err(error), &expected);
        // It is back.
        next(&mut consumer).await.ack().await.unwrap();
    }
}

#[cfg(feature = "kafka")]
#[tokio::test]
async fn a_topic_of_a_log_keeps_what_later_groups_read() {
    let bus = Bus::connect("memory:log?topic=t&like=kafka").await.unwrap();
    bus.publisher().await.unwrap().publish(body(3)).await.unwrap();
    for group in ["a", "b"] {
        let from = format!("?topic=t&queue={group}");
        let mut consumer = bus.consumer_of(&from, ConsumeOptions::default()).await.unwrap();
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.payload().len(), 3);
        delivery.ack().await.unwrap();
    }
}
