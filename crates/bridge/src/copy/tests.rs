use std::collections::HashMap as Map;
use std::sync::{Arc, Mutex};

use throughline::capabilities::{Capabilities, MEMORY};
use throughline::driver::Outgoing;
use throughline::{Address, ConsumeOptions, Envelope, HeaderValue, PublishOptions};
use throughline_testkit::scripted::{
    Reply, ScriptedConsumer, ScriptedPublisher, never, safe, text, uncertain,
};

use super::*;
use crate::filter::Filter;
use crate::ledger::Ledger;

mod ends;

/// A bridge between scripted drivers, whose ledger is kept from run to run.
struct Rig {
    source: Arc<ScriptedConsumer>,
    sink: Arc<ScriptedPublisher>,
    reject: Option<Arc<ScriptedPublisher>>,
    settings: Settings,
    depth: DepthOf,
    /// How long a send may take.
    timeout: Duration,
    folder: tempfile::TempDir,
}

impl Rig {
    fn new(script: impl FnMut(&Outgoing) -> Reply + Send + 'static) -> Self {
        let settings = Settings {
            until_empty: true,
            tick: Duration::from_millis(2),
            quiet: Duration::from_millis(20),
            silence: Duration::from_millis(200),
            ..Settings::default()
        };
        // Answers each message of a batch for itself, as RabbitMQ does.
        let capabilities = Capabilities { key_pipeline: KeyPipeline::Unsafe, ..MEMORY };
        let (source, sink) = (ScriptedConsumer::new(), ScriptedPublisher::with(capabilities, script));
        let depth: DepthOf = Arc::new(|_| Box::pin(async { Ok(Look::default()) }));
        let (timeout, folder) = (Duration::from_millis(300), tempfile::tempdir().unwrap());
        Self { source, sink, reject: None, settings, depth, timeout, folder }
    }

    fn rejecting(mut self, script: impl FnMut(&Outgoing) -> Reply + Send + 'static) -> Self {
        self.reject = Some(ScriptedPublisher::new(script));
        self
    }

    fn feed(&self, key: &'static str, body: &str) -> u64 {
        self.source.feed(message(key, body))
    }

    /// A new consumer, as after the process or the connection was lost.
    fn reconnect(&mut self) {
        self.source = ScriptedConsumer::new();
    }

    async fn run(&self) -> Outcome {
        self.run_until(std::future::pending()).await
    }

    async fn run_until(&self, shutdown: impl Future<Output = ()>) -> Outcome {
        let address: Address = "memory:x?queue=q".parse().unwrap();
        let open = |driver: &Arc<ScriptedPublisher>| {
            let options = PublishOptions {
                timeout: self.timeout,
                key_order: KeyOrder::Strict,
                ..PublishOptions::default()
            };
            Publisher::new(driver.clone(), &address, options)
        };
        let path = self.folder.path().join("ledger");
        let ledger = Ledger::open(Some(&path), "a".into(), "b".into(), 100).await.unwrap();
        let sinks = Sinks { sink: open(&self.sink), reject: self.reject.as_ref().map(open) };
        let mut consumer = Consumer::new(self.source.clone(), &address, ConsumeOptions::default());
        let copy = Copy::new(&self.settings, sinks, self.depth.clone(), ledger.writer(), Progress::default());
        let outcome = copy.run(&mut consumer, shutdown).await;
        consumer.close().await.unwrap();
        ledger.end(false).await.unwrap();
        outcome
    }

    fn acked(&self) -> Vec<u64> {
        let calls = self.source.settled();
        let acked = calls.iter().flatten().filter(|(_, what)| *what == "ack").map(|(tag, _)| *tag);
        let mut acked: Vec<_> = acked.collect();
        acked.sort_unstable();
        acked
    }
}

fn message(key: &'static str, body: &str) -> Envelope {
    let made = throughline::Timestamp::from_millis(7);
    let envelope = Envelope::builder("t").id(format!("id-{key}-{body}")).time(made).payload(body.to_owned());
    if key.is_empty() { envelope.build() } else { envelope.key(key).build() }
}

fn too_large() -> Error {
    Error::limit("the payload", "9 bytes", "8 bytes")
}

#[tokio::test]
async fn moved_in_order_acked_after_it_and_untouched() {
    let rig = Rig::new(|_| Reply::Accept);
    for n in 0..300 {
        rig.feed(["", "a", "b"][n % 3], &n.to_string());
    }
    let mut odd = message("", "odd");
    odd.headers = [
        ("traceparent", HeaderValue::from("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03")),
        ("x", HeaderValue::Null),
        ("x", HeaderValue::from(vec![0xff])),
    ]
    .into_iter()
    .collect();
    rig.source.feed(odd.clone());
    let outcome = rig.run().await;
    assert!(matches!(outcome.end, End::Empty { approximate: false }), "{outcome:?}");
    assert_eq!((outcome.totals.moved, outcome.unacked), (301, 0));
    let came: Vec<_> = rig.sink.batches().concat().into_iter().map(|message| message.envelope).collect();
    for key in [None, Some("a"), Some("b")] {
        let of_key =
            came.iter().filter(|envelope| envelope.ordering_key.as_deref() == key.map(str::as_bytes));
        let numbers: Vec<u32> = of_key.filter_map(|envelope| text(envelope).parse().ok()).collect();
        assert!(numbers.is_sorted() && numbers.len() == 100, "{key:?}: {numbers:?}");
    }
    assert!(came.iter().any(|envelope| **envelope == odd));
    assert_eq!(rig.acked(), (1..=301).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_refused_goes_to_the_reject_address_with_the_reason() {
    let refuse = |message: &Outgoing| match text(&message.envelope).as_str() {
        "bad" => Reply::Fail(too_large()),
        _ => Reply::Accept,
    };
    let rig = Rig::new(refuse).rejecting(|_| Reply::Accept);
    for body in ["1", "bad", "2", "3"] {
        rig.feed("k", body);
    }
    let outcome = rig.run().await;
    assert!(outcome.end.is_success(), "{outcome:?}");
    assert_eq!((outcome.totals.moved, outcome.totals.rejected), (3, 1));
    assert_eq!(rig.acked(), [1, 2, 3, 4]);
    let rejected = rig.reject.as_ref().unwrap().batches().concat();
    let failure = rejected[0].history.as_ref().unwrap().last().unwrap().clone();
    assert_eq!((text(&rejected[0].envelope).as_str(), failure.error.as_str()), ("bad", "limit_exceeded"));
    assert!(failure.message.contains("the limit is 8 bytes"), "{failure}");
    let moved: Vec<_> = rig.sink.texts().into_iter().filter(|text| text != "bad").collect();
    assert!(moved.is_sorted(), "{moved:?}");
}

#[tokio::test]
async fn without_a_reject_address_a_refused_message_stops_the_bridge_and_stays() {
    let rig = Rig::new(|message| match text(&message.envelope).as_str() {
        "bad" => Reply::Fail(too_large()),
        _ => Reply::Accept,
    });
    for body in ["1", "bad", "2"] {
        rig.feed("k", body);
    }
    let outcome = rig.run().await;
    let End::Refused { id, error, .. } = &outcome.end else { panic!("{outcome:?}") };
    assert_eq!((id.as_str(), error.kind()), ("id-k-bad", ErrorKind::LimitExceeded));
    assert!(!rig.acked().contains(&2));
}

#[tokio::test]
async fn a_reject_address_that_takes_nothing_stops_the_bridge_and_the_message_stays() {
    let rig = Rig::new(|_| Reply::Fail(too_large())).rejecting(|_| Reply::Fail(never()));
    rig.feed("", "bad");
    let outcome = rig.run().await;
    assert!(matches!(outcome.end, End::Failed { .. }), "{outcome:?}");
    assert_eq!(rig.acked(), Vec::<u64>::new());
}

/// Each message fails a few times, in every passing way; all come through, in order per key.
#[tokio::test]
async fn passing_failures_are_made_up_for_in_order() {
    let tries: Arc<Mutex<Map<String, u32>>> = Arc::default();
    let seen = tries.clone();
    let accepted: Arc<Mutex<Vec<String>>> = Arc::default();
    let through = accepted.clone();
    let rig = Rig::new(move |message| {
        let body = text(&message.envelope);
        let number: u32 = body[1..].parse().unwrap();
        let mut tries = tries.lock().unwrap();
        let tried = tries.entry(body.clone()).or_default();
        *tried += 1;
        match (number % 5, *tried) {
            (1, 1..=2) => Reply::Fail(safe()),
            (2, 1) => Reply::Fail(uncertain()),
            (3, 1) => Reply::Drop,
            (4, 1..=3) => Reply::Fail(uncertain()),
            _ => {
                accepted.lock().unwrap().push(body);
                Reply::Accept
            }
        }
    });
    for n in 0..60 {
        let key = ["a", "b", "c"][n % 3];
        rig.feed(key, &format!("{key}{n}"));
    }
    let outcome = rig.run().await;
    assert!(outcome.end.is_success(), "{outcome:?}");
    assert_eq!((outcome.totals.moved, rig.acked().len()), (60, 60));
    assert!(outcome.totals.sent_again >= 36, "{outcome:?}");
    assert_eq!(seen.lock().unwrap().len(), 60);
    for key in ["a", "b", "c"] {
        let through = through.lock().unwrap();
        let of_key = through.iter().filter(|body| body.starts_with(key));
        let numbers: Vec<u32> = of_key.map(|body| body[1..].parse().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers.len() == 20, "{key}: {numbers:?}");
    }
}

/// All of one key, one after the other, in longer than a send may take: none of them may wait so long in the
/// publisher that nobody knows any more whether it was sent.
#[tokio::test]
async fn a_long_line_of_one_key_before_a_slow_sink_is_sent_once() {
    let mut rig = Rig::new(|_| Reply::After(Duration::from_millis(10)));
    // Less than all of them take together, and far more than those that are handed over at once.
    rig.timeout = Duration::from_secs(3);
    for n in 0..400 {
        rig.feed("k", &n.to_string());
    }
    let outcome = rig.run().await;
    assert_eq!((outcome.totals.moved, outcome.totals.sent_again), (400, 0), "{outcome:?}");
    let numbers: Vec<u32> = rig.sink.texts().iter().map(|body| body.parse().unwrap()).collect();
    assert_eq!(numbers, (0..400).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_a_killed_run_had_moved_is_acked_and_not_sent_again() {
    let mut rig = Rig::new(|_| Reply::Accept);
    for n in 0..5 {
        let tag = rig.feed("", &n.to_string());
        // The ack is lost with the process.
        rig.source.fail(tag, Error::new(ErrorKind::Stale, "scripted"));
    }
    let outcome = rig.run().await;
    assert_eq!((outcome.totals.moved, outcome.unacked), (5, 5));
    rig.reconnect();
    for n in 0..6 {
        rig.source.feed_with(message("", &n.to_string()), |delivery| delivery.receive_count = Some(2));
    }
    let outcome = rig.run().await;
    assert_eq!((outcome.totals.moved, outcome.totals.already_moved), (1, 5));
    assert_eq!(rig.acked().len(), 6);
    assert_eq!(rig.sink.texts(), ["0", "1", "2", "3", "4", "5"]);
}

#[tokio::test]
async fn another_message_of_the_same_id_is_another_message() {
    let rig = Rig::new(|_| Reply::Accept);
    let same_id = |body: &str| {
        let mut envelope = message("", body);
        envelope.id = "1".into();
        envelope
    };
    rig.source.feed(same_id("a"));
    rig.source.feed(same_id("b"));
    // Twice in the source, each for the first time.
    for _ in 0..2 {
        rig.source.feed_with(same_id("c"), |delivery| delivery.receive_count = Some(1));
    }
    let mut synthetic = same_id("d");
    synthetic.id_origin = throughline::IdOrigin::Synthetic;
    rig.source.feed(synthetic.clone());
    rig.source.feed(synthetic);
    let outcome = rig.run().await;
    assert_eq!((outcome.totals.moved, outcome.totals.already_moved), (6, 0), "{outcome:?}");
    assert_eq!(outcome.totals.copies, 1, "the second 'c'; a made-up id says nothing");
    assert_eq!(rig.acked().len(), 6);
}

#[tokio::test]
async fn a_message_that_comes_again_while_it_is_on_its_way_is_sent_once() {
    let rig = Rig::new(|_| Reply::Accept);
    rig.sink.hold(true);
    rig.feed("", "1");
    let (sink, source) = (rig.sink.clone(), rig.source.clone());
    let meanwhile = async {
        while sink.batches().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        source.lose_connection();
        source.feed_with(message("", "1"), |delivery| delivery.receive_count = Some(2));
        tokio::time::sleep(Duration::from_millis(50)).await;
        sink.hold(false);
    };
    let (outcome, ()) = futures_util::future::join(rig.run(), meanwhile).await;
    assert_eq!((outcome.totals.moved, outcome.totals.already_moved), (1, 1), "{outcome:?}");
    assert_eq!(outcome.unacked, 0, "its second delivery was acked");
    assert_eq!(rig.sink.texts(), ["1"]);
    assert_eq!(rig.acked(), [2], "the first delivery is lost with its connection");
}

/// A broker that blocks its publishers answers nothing for as long as it likes.
#[tokio::test]
async fn a_sink_that_answers_nothing_does_not_hold_up_the_end() {
    let rig = Rig::new(|_| Reply::Silence);
    for n in 0..500 {
        rig.feed("", &n.to_string());
    }
    let began = Instant::now();
    let outcome = rig.run_until(tokio::time::sleep(Duration::from_secs(1))).await;
    assert!(matches!(outcome.end, End::Stopped), "{outcome:?}");
    // Each send would wait for room as long as a send may take, 300 ms here: there is none from the third time on.
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    assert_eq!((outcome.totals.moved, outcome.totals.sent_again), (0, 500), "{outcome:?}");
    assert_eq!(rig.acked(), Vec::<u64>::new());
}

#[tokio::test]
async fn what_the_filter_does_not_take_is_given_back() {
    let mut rig = Rig::new(|_| Reply::Accept);
    rig.settings.filter = Filter::default().message_type("meant");
    rig.source.feed(Envelope::builder("other").build());
    rig.source.feed(Envelope::builder("meant").build());
    let outcome = rig.run().await;
    assert_eq!((outcome.totals.moved, outcome.left), (1, 1), "{outcome:?}");
    assert_eq!(rig.acked(), [2]);

    rig.reconnect();
    rig.settings.hold = 3;
    for _ in 0..9 {
        rig.source.feed(Envelope::builder("other").build());
    }
    let outcome = rig.run().await;
    assert!(matches!(outcome.end, End::Full), "{outcome:?}");
    assert_eq!(rig.acked(), Vec::<u64>::new());

    rig.reconnect();
    rig.settings.rest = Rest::Skip;
    rig.source.feed(Envelope::builder("other").build());
    let outcome = rig.run().await;
    assert_eq!((outcome.totals.skipped, outcome.totals.moved), (1, 0));
    assert_eq!(rig.acked(), [1]);
}

#[tokio::test]
async fn stops_when_told_with_what_is_on_its_way_finished() {
    let mut rig = Rig::new(|_| Reply::Accept);
    rig.settings.until_empty = false;
    rig.sink.hold(true);
    for n in 0..10 {
        rig.feed("", &n.to_string());
    }
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let sink = rig.sink.clone();
    let meanwhile = async {
        while sink.batches().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stop.send(()).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        sink.hold(false);
    };
    let (outcome, ()) =
        futures_util::future::join(rig.run_until(async { drop(stopped.await) }), meanwhile).await;
    assert!(matches!(outcome.end, End::Stopped), "{outcome:?}");
    assert_eq!(outcome.totals.moved as usize, rig.acked().len());
    assert_eq!(rig.acked().len(), rig.sink.texts().len());
}

#[tokio::test]
async fn max_is_not_exceeded_and_what_waits_is_still_sent() {
    let mut failures = 3;
    let mut rig = Rig::new(move |_| {
        failures -= i32::from(failures > 0);
        if failures > 0 { Reply::Fail(uncertain()) } else { Reply::Accept }
    });
    rig.settings.max = Some(5);
    for n in 0..10 {
        rig.feed("k", &n.to_string());
    }
    let outcome = rig.run().await;
    assert!(matches!(outcome.end, End::Max), "{outcome:?}");
    assert_eq!((outcome.totals.moved, rig.acked()), (5, vec![1, 2, 3, 4, 5]));
    rig.settings.max = Some(0);
    assert!(matches!(rig.run().await.end, End::Max));
}

#[tokio::test]
async fn a_sink_that_is_missing_stops_it_and_patience_ends() {
    let rig = Rig::new(|_| Reply::Fail(Error::new(ErrorKind::NotFound, "no queue")));
    rig.feed("", "1");
    let outcome = rig.run().await;
    let End::Failed { error } = &outcome.end else { panic!("{outcome:?}") };
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let mut rig = Rig::new(|_| Reply::Fail(uncertain()));
    rig.settings.patience = Some(Duration::from_millis(100));
    rig.feed("", "1");
    let outcome = rig.run().await;
    let End::Failed { error } = &outcome.end else { panic!("{outcome:?}") };
    assert!(error.to_string().contains("scripted: uncertain"), "{error}");
    assert_eq!((outcome.totals.moved, rig.acked().len()), (0, 0));
}

#[tokio::test]
async fn a_source_that_fails_for_good_ends_it_after_what_came() {
    let rig = Rig::new(|_| Reply::Accept);
    rig.feed("", "1");
    rig.source.feed_error(never());
    let outcome = rig.run().await;
    assert!(matches!(outcome.end, End::Failed { .. }), "{outcome:?}");
    assert_eq!(rig.acked(), [1]);
}
