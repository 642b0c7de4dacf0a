//! SQS, SNS and EventBridge that fail: in part and in whole, throttled, with another clock, refusing, killed under a steady
//! flow. Nothing that was accepted is lost, and each refusal says what it is. On emulators of them, behind a proxy that
//! injects what they do not do by themselves.
//!
//! `THROUGHLINE_SOAK=30m cargo test -p throughline-integration-tests --test aws_faults -- --nocapture` repeats what goes on
//! under a flow for so long.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use throughline::{Bus, Envelope, Error, ErrorKind, PublishOptions, Retry};
use throughline_brokers::Aws as Emulator;
use throughline_brokers::aws::{Emulator as Kind, StartOptions};
use throughline_integration_tests::aws::{ACCOUNT, TRACEPARENT, finish, next, unique};
use throughline_integration_tests::flow::Flow;
use throughline_integration_tests::{log, soak};
use throughline_testkit::aws_proxy::{AwsProxy, Fault};
use throughline_testkit::{aws_raw, endpoint};

/// How long a flow runs between two faults, and in all where they come all the time.
const CALM: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(8);

/// A proxy in front of the emulator.
async fn proxy(test: &str) -> Option<AwsProxy> {
    let endpoint = endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", test)?;
    log();
    Some(AwsProxy::start(&endpoint).await)
}

/// The three transports: what publishes, and an address behind an endpoint.
fn transports(endpoint: &str) -> [(&'static str, String); 3] {
    let name = unique("faults");
    [
        ("SendMessageBatch", format!("sqs://{name}?endpoint={endpoint}")),
        ("PublishBatch", format!("sns://{name}?queue={name}-t&endpoint={endpoint}")),
        ("PutEvents", format!("eventbridge://{name}?queue={name}-r&endpoint={endpoint}")),
    ]
}

async fn made(address: &str) -> Bus {
    let bus = Bus::connect(address).await.unwrap();
    bus.create("").await.unwrap();
    bus
}

fn entries(places: &[usize], code: &'static str, sender: bool) -> Fault {
    Fault::Entries { places: places.to_vec(), code, sender }
}

fn refuse(status: u16, code: &'static str) -> Fault {
    Fault::Refuse { status, code }
}

fn messages(count: usize) -> impl Iterator<Item = Envelope> {
    (0..count).map(|n| Envelope::builder("t").payload(n.to_string()).build())
}

/// Waits until a queue holds so many messages, in flight or not.
async fn settles_at(bus: &Bus, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let depth = bus.depth("").await.unwrap();
        let all = depth.ready + depth.unsettled.unwrap_or(0) + depth.delayed.unwrap_or(0);
        if all == count {
            return;
        }
        assert!(Instant::now() < deadline, "{all} messages are there, expected {count}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_that_fails_in_part_only_the_rest_is_sent_again() {
    let Some(proxy) = proxy("aws_of_a_batch_that_fails_in_part_only_the_rest_is_sent_again").await else {
        return;
    };
    for (action, address) in transports(&proxy.endpoint()) {
        let bus = made(&address).await;
        let publisher = bus.publisher().await.unwrap();
        let before = proxy.calls(action);
        proxy.inject(
            action,
            [
                entries(&[1, 4], "ThrottlingException", false),
                refuse(400, "ThrottlingException"),
                entries(&[0], "InternalFailure", false),
            ],
        );
        for result in publisher.publish_batch(messages(10)).await {
            result.unwrap();
        }
        assert_eq!(proxy.calls(action), before + 4, "{action}");
        // What is the sender's fault is told, for that message alone, and not sent again.
        proxy.inject(action, [entries(&[2], "InvalidParameterValue", true)]);
        for (place, result) in publisher.publish_batch(messages(5)).await.into_iter().enumerate() {
            let failed = result.err().map(|error| (error.kind(), error.retry()));
            assert_eq!(failed, (place == 2).then_some((ErrorKind::InvalidMessage, Retry::Never)), "{action}");
        }
        assert_eq!(proxy.calls(action), before + 5, "{action}");
        settles_at(&bus, 14).await;
        // An answer that is lost: nobody knows, and nothing is sent again behind the user's back.
        proxy.inject(action, [Fault::LoseAnswer]);
        let error = publisher.publish(messages(1).next().unwrap()).await.unwrap_err();
        assert_eq!(error.retry(), Retry::Uncertain, "{action}: {error}");
        settles_at(&bus, 15).await;
        publisher.close().await.unwrap();
        finish(bus).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled_and_refused_for_a_wrong_clock_they_go_on() {
    let Some(proxy) = proxy("aws_throttled_and_refused_for_a_wrong_clock_they_go_on").await else { return };
    let buses = transports(&proxy.endpoint());
    let codes = [
        (400, "ThrottlingException"),
        (403, "RequestThrottled"),
        (429, "TooManyRequestsException"),
        (503, "x"),
    ];
    let mut opened = Vec::new();
    for (action, address) in buses {
        let bus = made(&address).await;
        let options = PublishOptions { timeout: Duration::from_secs(30), ..PublishOptions::default() };
        let publisher = bus.publisher_to("", options).await.unwrap();
        proxy.inject(action, codes.map(|(status, code)| refuse(status, code)));
        for result in publisher.publish_batch(messages(3)).await {
            result.unwrap();
        }
        opened.push((bus, publisher));
    }
    // The server's time is told with its refusal; from then on requests are signed for it.
    proxy.set_clock_ahead(Duration::from_secs(3600));
    for (bus, publisher) in opened {
        publisher.publish(messages(1).next().unwrap()).await.unwrap();
        publisher.close().await.unwrap();
        let mut consumer = bus.consumer().await.unwrap();
        for _ in 0..4 {
            next(&mut consumer).await.ack().await.unwrap();
        }
        consumer.close().await.unwrap();
        finish(bus).await;
    }
}

/// Each refusal is told for what it is, with what to do.
#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_says_what_it_is_and_what_to_do() {
    let Some(proxy) = proxy("aws_each_refusal_says_what_it_is_and_what_to_do").await else { return };
    let mut told = Vec::new();
    for (status, code, kind, says) in [
        (403, "ExpiredTokenException", ErrorKind::Unauthenticated, "have expired; get new ones"),
        (403, "InvalidClientTokenId", ErrorKind::Unauthenticated, "does not accept the credentials"),
        (403, "SignatureDoesNotMatch", ErrorKind::Unauthenticated, "or not in this region"),
        (403, "AccessDeniedException", ErrorKind::PermissionDenied, "do not allow this"),
    ] {
        for (_, address) in transports(&proxy.endpoint()) {
            proxy.always(Some(refuse(status, code)));
            let error = open(&address).await.unwrap_err();
            assert_eq!((error.kind(), error.retry()), (kind, Retry::Never), "{address}: {code}: {error}");
            assert!(error.to_string().contains(says), "{address}: {code}: {error}");
            assert!(error.to_string().contains(code), "{address}: {code}: {error}");
            told.push(error.to_string());
        }
    }
    proxy.always(None);
    for (_, address) in transports(&proxy.endpoint()) {
        // Neither in this region: what is there in another is not seen.
        for address in [address.clone(), format!("{address}&region=eu-west-3")] {
            let error = open(&address).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            let region = if address.contains("eu-west-3") { "eu-west-3" } else { "us-east-1" };
            for says in [&format!("in {region}; is that the region?"), "throughline create '"] {
                assert!(error.to_string().contains(says), "{error}");
            }
            told.push(error.to_string());
        }
        // Nobody answers there: such is the name of a region that is none.
        let (before, _) = address.split_once("endpoint=").unwrap();
        let error = open(&format!("{before}endpoint=http://127.0.0.1:9&timeout=5s")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
        assert!(error.to_string().contains("is the region or the endpoint right?"), "{error}");
        told.push(error.to_string());
    }
    told.sort();
    assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "{told:?}");
}

/// Publishes a message: connects, opens, sends.
async fn open(address: &str) -> Result<(), Error> {
    let bus = Bus::connect(address).await?;
    let published = async { bus.publisher().await?.publish(messages(1).next().unwrap()).await };
    let published = published.await.map(drop);
    bus.close().await.unwrap();
    published
}

/// It reaches the application with what there is, can be rejected, and then lies in the dead-letter queue as it came.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_decode_is_dead_lettered_as_it_came() {
    const TEST: &str = "aws_what_nobody_can_decode_is_dead_lettered_as_it_came";
    let Some(endpoint) = endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", TEST) else { return };
    let (queue, dead) = (unique("odd"), unique("dead"));
    let bus = made(&format!("sqs://{queue}?dead_letter={dead}&endpoint={endpoint}")).await;
    let letters = made(&format!("sqs://{dead}?endpoint={endpoint}")).await;
    let text = |text: &str| json!({ "DataType": "String", "StringValue": text });
    let event = json!({
        "version": "0", "id": "e-1", "detail-type": "t", "source": "shop", "account": ACCOUNT, "region": "us-east-1",
        "time": "2026-11-22T10:00:00Z", "resources": [],
        "detail": { "metadata": { "tl-data": "base64", "tl-headers": "{" }, "data": "not base64" },
    });
    let wrapped = json!({
        "Type": "Notification", "MessageId": "m-1", "TopicArn": "arn:aws:sns:us-east-1:1:t", "Message": "?",
        "MessageAttributes": { "tl-body": { "Type": "String", "Value": "base64" } },
    });
    let odd = [
        ("not base64".to_owned(), json!({ "tl-body": text("base64"), "traceparent": text(TRACEPARENT) })),
        (
            "packed".to_owned(),
            json!({ "tl-headers": text("{\"h\":[["), "n": { "DataType": "Number", "StringValue": "7" } }),
        ),
        (event.to_string(), json!({})),
        (wrapped.to_string(), json!({})),
    ];
    for (body, attributes) in &odd {
        aws_raw::send(&endpoint, &queue, body, attributes.clone()).await.unwrap();
    }
    let publisher = bus.publisher().await.unwrap();
    publisher.publish(Envelope::builder("good").payload("good").build()).await.unwrap();
    publisher.close().await.unwrap();
    let mut consumer = bus.consumer().await.unwrap();
    for _ in 0..=odd.len() {
        let delivery = next(&mut consumer).await;
        if delivery.payload() == b"good" {
            delivery.ack().await.unwrap();
        } else {
            assert!(!delivery.payload().is_empty());
            delivery.reject("undecodable").await.unwrap();
        }
    }
    consumer.close().await.unwrap();
    settles_at(&bus, 0).await;
    settles_at(&letters, odd.len() as u64).await;
    let mut open = odd.to_vec();
    while !open.is_empty() {
        for letter in receive(&endpoint, &dead).await {
            let at = open.iter().position(|(body, _)| letter["Body"] == body.as_str()).unwrap();
            let (_, attributes) = open.remove(at);
            for (name, value) in attributes.as_object().unwrap() {
                assert_eq!(&letter["MessageAttributes"][name], value, "{letter}");
            }
            let why = &letter["MessageAttributes"]["tl-dead-letter-reason"]["StringValue"];
            assert!(why.as_str().unwrap().contains("undecodable"), "{letter}");
        }
    }
    finish(bus).await;
    finish(letters).await;
}

async fn receive(endpoint: &str, queue: &str) -> Vec<Value> {
    let body = json!({
        "QueueUrl": format!("{endpoint}/{ACCOUNT}/{queue}"), "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"],
    });
    let answer = aws_raw::call(endpoint, "AmazonSQS.ReceiveMessage", &body).await.unwrap();
    answer["Messages"].as_array().cloned().unwrap_or_default()
}

/// Ends a flow and checks what must hold after any fault.
async fn check(flow: Flow, bus: Bus, test: &str, ordered: bool) {
    flow.goes_on().await;
    let summary = flow.finish().await;
    endpoint::measured(test, &summary.to_string());
    assert!(summary.lost.is_empty(), "lost {:?}", summary.lost);
    assert!(!ordered || summary.out_of_order.is_empty(), "out of order {:?}", summary.out_of_order);
    // What was settled stays settled: nothing is left to be delivered again.
    settles_at(&bus, 0).await;
    finish(bus).await;
}

/// Something fails of each kind of request, all the time.
async fn failing_in_part(test: &'static str, scheme: &str, options: &str, action: &str) {
    let Some(proxy) = proxy(test).await else { return };
    let name = unique("flow");
    let bus =
        made(&format!("{scheme}://{name}?endpoint={}{}", proxy.endpoint(), options.replace("NAME", &name)))
            .await;
    let flow = Flow::start(&bus).await;
    let end = soak().max(Instant::now() + LONG);
    let mut faults = 0;
    for round in 0_usize.. {
        let place = round % 10;
        let part = entries(&[0, place.max(1)], "InternalFailure", false);
        proxy.inject(action, [part.clone(), refuse(400, "ThrottlingException")]);
        if round % 5 == 0 {
            proxy.inject(action, [Fault::LoseAnswer]);
            // Rarely: after each the consumer waits, longer and longer.
            proxy.inject("ReceiveMessage", [refuse(400, "RequestThrottled")]);
        }
        if round == 3 {
            // What SQS has given to nobody comes when its lease is over.
            proxy.inject("ReceiveMessage", [Fault::LoseAnswer]);
        }
        if round % 3 == 0 {
            // Less often than a settlement is tried again.
            for settling in ["DeleteMessageBatch", "ChangeMessageVisibilityBatch"] {
                proxy.inject(settling, [part.clone(), refuse(503, "ServiceUnavailable")]);
            }
        }
        faults += 4;
        tokio::time::sleep(Duration::from_millis(400)).await;
        if Instant::now() >= end {
            break;
        }
    }
    endpoint::measured(test, &format!("up to {faults} faults injected"));
    check(flow, bus, test, options.contains("fifo")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqs_failing_in_part() {
    failing_in_part("aws_sqs_failing_in_part", "sqs", "", "SendMessageBatch").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqs_fifo_failing_in_part() {
    failing_in_part("aws_sqs_fifo_failing_in_part", "sqs", "&fifo=true", "SendMessageBatch").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sns_failing_in_part() {
    failing_in_part("aws_sns_failing_in_part", "sns", "&queue=NAME-q", "PublishBatch").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eventbridge_failing_in_part() {
    failing_in_part("aws_eventbridge_failing_in_part", "eventbridge", "&queue=NAME-q", "PutEvents").await;
}

/// An emulator of a test's own that keeps what it has on disk.
async fn killed_and_restarted(test: &'static str, scheme: &str, options: &str) {
    if !Emulator::installed(Kind::Roto) {
        return endpoint::skip(
            test,
            "needs a durable AWS emulator of its own to kill, and none is installed",
        );
    }
    log();
    // One at a time: each wants the whole machine.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ALONE.lock().await;
    let durable = StartOptions { emulator: Kind::Roto, ..StartOptions::default() };
    let started = tokio::task::spawn_blocking(move || Emulator::start(&durable));
    let mut emulator = started.await.unwrap().unwrap();
    let name = unique("kill");
    let options = options.replace("NAME", &name);
    let bus = made(&format!("{scheme}://{name}?endpoint={}{options}", emulator.endpoint())).await;
    let flow = Flow::start(&bus).await;
    let end = soak();
    loop {
        for _ in 0..2 {
            tokio::time::sleep(CALM).await;
            emulator = tokio::task::spawn_blocking(move || {
                emulator.kill();
                emulator.restart().unwrap();
                emulator
            })
            .await
            .unwrap();
            let (publishing, consuming) = flow.recovered(Instant::now()).await;
            endpoint::measured(
                test,
                &format!(
                    "killed and started: publishing after {publishing:.1?}, consuming after {consuming:.1?}"
                ),
            );
        }
        tokio::time::sleep(CALM).await;
        if Instant::now() >= end {
            break;
        }
    }
    check(flow, bus, test, options.contains("fifo")).await;
    drop(emulator);
}

#[tokio::test(flavor = "multi_thread")]
async fn sqs_killed_and_restarted() {
    killed_and_restarted("aws_sqs_killed_and_restarted", "sqs", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqs_fifo_killed_and_restarted() {
    killed_and_restarted("aws_sqs_fifo_killed_and_restarted", "sqs", "&fifo=true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sns_killed_and_restarted() {
    killed_and_restarted("aws_sns_killed_and_restarted", "sns", "&queue=NAME-q").await;
}
