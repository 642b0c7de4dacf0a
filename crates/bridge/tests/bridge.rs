//! The bridge between real transports that need no broker.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows them in tests, but does not know the helpers of a test"
)]

use std::future::pending;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use throughline::{Address, Bus, Envelope, ErrorKind, Failure, HeaderValue, Timestamp};
use throughline_bridge::{Bridge, End, Filter, Map, Rest, SourceEvidence};

async fn sqlite(folder: &Path, name: &str) -> Bus {
    Bus::connect(format!("sqlite:{}?queue=q", folder.join(name).display())).await.unwrap()
}

async fn memory(name: &str, options: &str) -> Bus {
    Bus::connect(format!("memory:bridge-{name}?queue=q{options}")).await.unwrap()
}

async fn publish(bus: &Bus, envelopes: Vec<Envelope>) {
    let publisher = bus.publisher().await.unwrap();
    for result in publisher.publish_batch(envelopes).await {
        result.unwrap();
    }
    publisher.close().await.unwrap();
}

async fn held(bus: &Bus) -> Vec<Arc<Envelope>> {
    let all = bus.browse("", NonZeroUsize::new(100_000).unwrap()).await.unwrap();
    all.into_iter().map(|delivery| delivery.envelope).collect()
}

/// Every field, and headers of every awkward kind.
fn awkward() -> Vec<Envelope> {
    let full = Envelope::builder("campaign.sync_report")
        .id("order 7/ü")
        .source("shop")
        .key(vec![0, 0xff])
        .time(Timestamp::from_millis(1_700_000_000_123))
        .content_type("application/json")
        .content_encoding("identity")
        .correlation_id("c-1")
        .reply_to("memory:x?queue=replies")
        .expires_at(Timestamp::from_millis(4_000_000_000_000))
        .priority(3)
        .idempotency_key("k-1")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03")
        .header("tracestate", "a=1,b=2")
        .header("baggage", "user=ü;p=1")
        .header("X-Twice", "1")
        .header("X-Twice", "2")
        .header("empty", "")
        .header("null", HeaderValue::Null)
        .header("bytes", vec![0, 159, 146, 150])
        .header("näme with space", "wert\nzeile")
        .header("int", HeaderValue::Typed { kind: "amqp:i32".into(), text: "7".into() })
        .payload(r#"{"a": 1}"#)
        .build();
    let many = (0..60).fold(Envelope::builder("many"), |many, n| many.header(format!("h{n}"), "v".repeat(n)));
    let tombstone = Envelope::builder("gone").tombstone().build();
    let mut foreign = Envelope::foreign("t-0-7".into(), Some(vec![0xff; 200 * 1024].into()));
    foreign.id_origin = throughline::IdOrigin::Broker;
    vec![full, many.build(), tombstone, foreign, Envelope::builder("empty").build()]
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_as_it_left_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let (from, over) = (memory("there", "").await, sqlite(folder.path(), "over.db").await);
    let back = memory("back", "").await;
    publish(&from, awkward()).await;
    for (from, to) in [(&from, &over), (&over, &back)] {
        let bridge = Bridge::new(from, to).ledger_in(folder.path()).until_empty();
        let progress = bridge.progress();
        let report = bridge.run(pending()).await.unwrap();
        assert!(matches!(report.end, End::Empty { approximate: false }), "{report:?}");
        assert_eq!((report.totals.moved, report.depth, report.unacked), (5, Some(0), 0), "{report:?}");
        assert_eq!(progress.now().totals, report.totals);
        assert!(report.warnings.is_empty() && report.totals.bytes > 200 * 1024, "{report:?}");
        let (came, left) = (held(to).await, awkward());
        assert_eq!(came.len(), left.len());
        for (came, left) in came.iter().zip(&left) {
            // The others have ids and times of their own.
            assert_eq!(
                (&came.headers, &came.payload, came.id_origin),
                (&left.headers, &left.payload, left.id_origin)
            );
        }
        assert_eq!(*came[0], left[0]);
        assert_eq!(held(from).await.len(), 0);
    }
    over.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_broker_refuses_is_put_aside_as_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (memory("large", "").await, sqlite(folder.path(), "small.db").await);
    let graveyard = memory("graveyard", "").await;
    let large = Envelope::builder("large").key("k").header("a", "1").payload(vec![b'x'; 17 << 20]).build();
    publish(&from, vec![large.clone(), Envelope::builder("small").key("k").build()]).await;

    let report = Bridge::new(&from, &to).until_empty().run(pending()).await.unwrap();
    let End::Refused { id, message_type, error } = &report.end else { panic!("{report:?}") };
    assert_eq!((id, message_type.as_deref()), (&large.id, Some("large")));
    assert_eq!((error.kind(), report.totals.moved), (ErrorKind::LimitExceeded, 0), "{report:?}");
    assert_eq!((held(&from).await.len(), held(&to).await.len()), (2, 0), "nothing overtook it");

    let report = Bridge::new(&from, &to).reject(&graveyard).until_empty().run(pending()).await.unwrap();
    assert!(report.is_success(), "{report:?}");
    assert_eq!((report.totals.moved, report.totals.rejected), (1, 1));
    assert_eq!(report.rejected[0].class, "limit_exceeded");
    let letters = graveyard.browse("", NonZeroUsize::MIN).await.unwrap();
    assert_eq!(*letters[0].envelope, large);
    let reason = letters[0].history.as_ref().unwrap().last().unwrap().to_string();
    assert!(reason.contains("the limit is"), "{reason}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["end"]["reason"], "empty");
    assert_eq!(json["rejected"][0]["id"], large.id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_meant_is_moved_and_renamed() {
    let (from, to) = (memory("some", "").await, memory("renamed", "").await);
    let of = |name: &str, tenant: &str| Envelope::builder(name).header("x-tenant", tenant).build();
    publish(&from, vec![of("a", "1"), of("a", "2"), of("b", "1")]).await;
    let filter: Filter = "type=a".parse::<Filter>().unwrap().and("header:x-tenant=1".parse().unwrap());
    let map: Map =
        "header:x-tenant=tenant".parse::<Map>().unwrap().and("key=header:x-tenant".parse().unwrap());
    let bridge = Bridge::new(&from, &to).filter(filter.clone()).map(map).until_empty();
    let report = bridge.run(pending()).await.unwrap();
    assert!(matches!(report.end, End::Empty { .. }), "{report:?}");
    assert_eq!((report.totals.moved, report.left, held(&from).await.len()), (1, 2, 2));
    let came = held(&to).await;
    assert_eq!(came[0].headers.get_str("tenant"), Some("1"));
    assert_eq!(came[0].ordering_key.as_deref(), Some(&b"1"[..]));

    let bridge = Bridge::new(&from, &to).filter(filter).rest(Rest::Skip).until_empty();
    let report = bridge.run(pending()).await.unwrap();
    assert_eq!((report.totals.moved, report.totals.skipped, held(&from).await.len()), (0, 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_keeps_its_failures() {
    let (jobs, to) = (memory("jobs", "&dead_letter=dead").await, memory("kept", "").await);
    publish(&jobs, vec![Envelope::builder("x").build()]).await;
    let mut consumer = jobs.consumer().await.unwrap();
    let delivery = consumer.next().await.unwrap().unwrap();
    delivery.reject(Failure::new("http_503").dependency("ads-api")).await.unwrap();
    consumer.close().await.unwrap();
    let dead = Bus::connect("memory:bridge-jobs?queue=dead").await.unwrap();
    let report = Bridge::new(&dead, &to).until_empty().run(pending()).await.unwrap();
    assert_eq!(report.totals.moved, 1, "{report:?}");
    let letters = to.browse("", NonZeroUsize::MIN).await.unwrap();
    let history = letters[0].history.as_ref().unwrap();
    assert_eq!(history.last().unwrap().dependency.as_deref(), Some("ads-api"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_told_before_anything_is_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (memory("from", "").await, memory("to", "").await);
    publish(&from, vec![Envelope::builder("x").build()]).await;
    let round = Bridge::new(&from, &from).run(pending()).await.unwrap_err();
    assert_eq!(round.kind(), ErrorKind::InvalidAddress, "{round}");
    let round = Bridge::new(&from, &to).reject(&from).run(pending()).await.unwrap_err();
    assert_eq!(round.kind(), ErrorKind::InvalidAddress, "{round}");
    let missing: Address = "memory:bridge-to?queue=none&create=never".parse().unwrap();
    let missing = Bus::connect_to(missing).await.unwrap();
    let error = Bridge::new(&from, &missing).run(pending()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let ledger = folder.path().join("ledger");
    Bridge::new(&to, &from).ledger(&ledger).until_empty().run(pending()).await.unwrap();
    let error = Bridge::new(&from, &to).ledger(&ledger).run(pending()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("of its own"), "{error}");
    assert_eq!(held(&from).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_and_moves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (memory("dry", "").await, sqlite(folder.path(), "dry.db").await);
    let of = |name: &str, size| Envelope::builder(name).payload(vec![b'x'; size]).build();
    publish(&from, vec![of("a", 1), of("a", 17 << 20), of("b", 1)]).await;
    let bridge = Bridge::new(&from, &to).filter(Filter::default().message_type("a"));
    let found = bridge.dry_run(NonZeroUsize::new(10).unwrap()).await.unwrap();
    assert_eq!((found.looked_at, found.would_move, found.would_leave), (3, 1, 1), "{found:?}");
    assert_eq!(found.would_reject[0].class, "limit_exceeded");
    assert!(!found.may_be_more && !found.disturbed);
    assert!(bridge.dry_run(NonZeroUsize::MIN).await.unwrap().may_be_more);
    assert_eq!((held(&from).await.len(), held(&to).await.len()), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_shows_what_comes_out_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (memory("probed", "").await, sqlite(folder.path(), "probed.db").await);
    let probe = throughline_bridge::Probe::run(&from, &to).await.unwrap();
    assert!(probe.is_clean() && probe.left_behind.is_empty(), "{probe:?}");
    let changed: Vec<_> = probe
        .messages
        .iter()
        .filter(|probed| probed.outcome != throughline_bridge::ProbeOutcome::Same)
        .collect();
    assert!(changed.is_empty() && probe.messages.len() > 20, "{changed:?}");
    let plan = throughline_bridge::Plan::between(&from, &to).await.unwrap();
    assert!(plan.may_refuse(), "SQLite has a limit, memory has none");
    assert!(!throughline_bridge::Plan::between(&to, &from).await.unwrap().may_refuse());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_moved_is_read_back_and_the_report_is_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (memory("verified", "").await, sqlite(folder.path(), "verified.db").await);
    let many = NonZeroUsize::new(1000).unwrap();
    publish(&to, vec![Envelope::builder("<b>there before</b>").build()]).await;
    publish(&from, awkward()).await;
    let bridge = Bridge::new(&from, &to).ledger_in(folder.path()).verify(many).until_empty();
    let report = bridge.clone().run(pending()).await.unwrap();
    let verification = report.verification.as_ref().unwrap();
    assert!(report.is_success() && verification.is_complete(), "{report:?}");
    let found = verification.found.as_ref().unwrap();
    assert_eq!((verification.expected, found.same, found.others, found.read), (5, 5, 1, 6), "{found:?}");
    assert_eq!((found.missing, found.duplicates, found.reordered), (Some(0), 0, Some(0)));
    assert_eq!(verification.source.evidence, SourceEvidence::Read { cut: false });
    assert_eq!((verification.source.held, verification.source.unaccounted), (Some(5), Some(0)));

    // The next run is about its own messages only; one is taken away, so to speak.
    let cut = bridge.clone().verify(NonZeroUsize::MIN);
    publish(&from, vec![Envelope::builder("x").id("<i>lost</i>").build()]).await;
    let report = cut.run(pending()).await.unwrap();
    let verification = report.verification.as_ref().unwrap();
    assert_eq!((verification.expected, verification.is_complete()), (1, false));
    assert_eq!(verification.found.as_ref().unwrap().missing, None, "only a part was read");
    assert!(verification.summary().contains("cannot be told"), "{}", verification.summary());

    let large = Envelope::builder("large").id("<script>x</script>").payload(vec![b'x'; 17 << 20]).build();
    publish(&from, vec![large]).await;
    let report = bridge.reject(&memory("aside", "").await).run(pending()).await.unwrap();
    let page = report.html();
    assert!(page.contains("&lt;script&gt;x&lt;/script&gt;") && !page.contains("<script>"), "{page}");
    assert!(page.contains("Read back") && !page.contains("http"), "{page}");
    assert!(page.contains("held by the source"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_the_source_held_is_accounted_for_whatever_became_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (memory("account", "").await, sqlite(folder.path(), "account.db").await);
    let of = |name: &str, bytes: usize| Envelope::builder(name).payload(vec![b'x'; bytes]).build();
    let mut messages: Vec<_> = (0..30).map(|_| of("taken", 1)).collect();
    messages.extend([of("taken", 17 << 20), of("left", 1), of("left", 1)]);
    publish(&from, messages).await;
    let bridge = Bridge::new(&from, &to)
        .filter(Filter::default().message_type("taken"))
        .map(Map::default().message_type("taken", "renamed"))
        .reject(&memory("account-aside", "").await)
        .verify(NonZeroUsize::new(1000).unwrap());
    // Some of it is not even taken, and then the rest of it is.
    for (max, held) in [(20, 31), (100, 11)] {
        let bridge = bridge.clone().ledger_in(folder.path()).until_empty().max(max);
        let report = bridge.run(pending()).await.unwrap();
        let source = &report.verification.as_ref().unwrap().source;
        assert_eq!((source.held, source.unaccounted), (Some(held), Some(0)), "{report:?}");
        assert!(report.is_success(), "{report:?}");
    }
    assert_eq!(held(&from).await.len(), 2);
    to.close().await.unwrap();
}
