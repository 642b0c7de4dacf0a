use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use throughline::{Envelope, ErrorKind, IdOrigin, Timestamp};

use super::*;
use row::differences;
use store::{Found, Store};

/// Few ids, keys and contents, so that all of them meet.
fn message() -> impl Strategy<Value = Arc<Envelope>> {
    (0..4_u8, any::<bool>(), prop::option::of(0..2_u8), 0..2_u8).prop_map(|(id, is_made_up, key, content)| {
        let mut envelope = Envelope::foreign(format!("id-{id}"), Some(Bytes::from(vec![content])));
        envelope.id_origin = if is_made_up { IdOrigin::Synthetic } else { IdOrigin::Envelope };
        envelope.ordering_key = key.map(|key| Bytes::from(vec![key]));
        Arc::new(envelope)
    })
}

/// The same, one message after the other, as [`Comparison`] says it.
fn naive(first: &[Arc<Envelope>], second: &[Arc<Envelope>]) -> Found {
    let sides = [first, second]
        .map(|side| side.iter().map(|envelope| Row::of(envelope, Expiry::There)).collect::<Vec<_>>());
    let [first, second] = &sides;
    let mut paired: [BTreeMap<usize, usize>; 2] = Default::default();
    let mut pairs = BTreeMap::new();
    let mut pair = |may: &dyn Fn(&Row, &Row) -> bool, real_first: bool| {
        for (one, left) in first.iter().enumerate() {
            let mut others: Vec<_> = (0..second.len()).collect();
            others.sort_by_key(|at| real_first && second[*at].is_made_up);
            if paired[0].contains_key(&one) {
                continue;
            }
            let other = others.into_iter().find(|at| !paired[1].contains_key(at) && may(left, &second[*at]));
            if let Some(other) = other {
                paired[0].insert(one, other);
                paired[1].insert(other, one);
                pairs.insert(other, (one, left.content == second[other].content));
            }
        }
    };
    pair(&|one, other| one.id == other.id && one.content == other.content, false);
    pair(&|one, other| one.id == other.id, false);
    pair(&|one, other| one.is_made_up && one.content == other.content, true);
    pair(&|one, other| other.is_made_up && one.content == other.content, false);

    let mut found = Found::default();
    for (at, side) in sides.iter().enumerate() {
        for (place, row) in side.iter().enumerate() {
            if paired[at].contains_key(&place) {
                continue;
            }
            let is_known = sides[1 - at].iter().any(|other| {
                other.id == row.id || (other.content == row.content && (other.is_made_up || row.is_made_up))
            });
            let messages = if is_known { &mut found.more[at] } else { &mut found.only[at] };
            messages.count += 1;
            messages.ids.push(row.id.clone());
        }
    }
    let mut latest: BTreeMap<_, usize> = BTreeMap::new();
    for (other, (one, is_same)) in pairs {
        let (left, came) = (&first[one], &second[other]);
        if is_same {
            found.same += 1;
        } else {
            found.changed.count += 1;
        }
        if left.key.is_some() && left.key == came.key {
            let latest = latest.entry(left.key).or_insert(one);
            if *latest > one {
                found.out_of_order.count += 1;
                found.out_of_order.ids.push(left.id.clone());
            }
            *latest = (*latest).max(one);
        }
    }
    found
}

fn compared(first: &[Arc<Envelope>], second: &[Arc<Envelope>]) -> Found {
    let mut store = Store::open(None, Expiry::There).unwrap();
    store.add(Place::First, first).unwrap();
    store.add(Place::Second, second).unwrap();
    store.compare(1000).unwrap()
}

proptest! {
    #[test]
    fn it_finds_what_a_naive_comparison_finds(
        first in prop::collection::vec(message(), 0..12),
        second in prop::collection::vec(message(), 0..12),
    ) {
        let mut found = compared(&first, &second);
        let changed = std::mem::take(&mut found.changed);
        found.changed.count = changed.count;
        prop_assert_eq!(&found, &naive(&first, &second));
        // Each counts once.
        let of = |side: usize| found.same + changed.count + found.only[side].count + found.more[side].count;
        prop_assert_eq!((of(0), of(1)), (first.len() as u64, second.len() as u64));
        for example in changed.examples {
            prop_assert!(!example.parts.is_empty(), "{example:?}");
        }
    }

    #[test]
    fn a_side_is_like_itself(messages in prop::collection::vec(message(), 0..12)) {
        let found = compared(&messages, &messages);
        prop_assert_eq!(found, Found { same: messages.len() as u64, ..Found::default() });
    }
}

#[test]
fn every_part_is_named_and_no_value_is() {
    let plain = Envelope::foreign("a".into(), Some(Bytes::from_static(b"hunter2")));
    let with = |change: fn(&mut Envelope)| {
        let mut envelope = plain.clone();
        envelope.headers = [("x", "hunter2"), ("y", "hunter2")].into_iter().collect();
        change(&mut envelope);
        Row::of(&envelope, Expiry::There).parts
    };
    let left = with(|_| {});
    for (change, expected) in [
        ((|_| {}) as fn(&mut Envelope), None),
        (|e| e.message_type = Some(String::new()), Some("message type")),
        (|e| e.source = Some(String::new()), Some("source")),
        (|e| e.ordering_key = Some(Bytes::new()), Some("ordering key")),
        (|e| e.time = Some(Timestamp::from_millis(0)), Some("time")),
        (|e| e.content_type = Some(String::new()), Some("content type")),
        (|e| e.content_encoding = Some(String::new()), Some("content encoding")),
        (|e| e.correlation_id = Some(String::new()), Some("correlation id")),
        (|e| e.reply_to = Some(String::new()), Some("reply-to")),
        (|e| e.expires_at = Some(Timestamp::from_millis(0)), Some("expiry")),
        (|e| e.priority = Some(0), Some("priority")),
        (|e| e.idempotency_key = Some(String::new()), Some("idempotency key")),
        (|e| e.payload = None, Some("payload")),
        (|e| e.payload = Some(Bytes::new()), Some("payload")),
        (|e| e.headers = [("y", "hunter2")].into_iter().collect(), Some("header 'x' lost")),
        (|e| e.headers.append("z", "hunter2"), Some("header 'z' added")),
        (|e| e.headers.append("y", "hunter2"), Some("header 'y' changed")),
        (|e| e.headers = [("y", "hunter2"), ("x", "hunter2")].into_iter().collect(), None),
    ] {
        let expected: Vec<_> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(differences(&left, &with(change)), expected);
    }
    let expiring = |at| {
        let mut envelope = plain.clone();
        envelope.expires_at = Some(Timestamp::from_millis(at));
        envelope
    };
    let content = |at, expiry| Row::of(&expiring(at), expiry).content;
    assert_eq!(
        content(1, Expiry::There),
        content(2, Expiry::There),
        "a foreign one is counted from its receipt"
    );
    assert_ne!(content(1, Expiry::Exact), content(2, Expiry::Exact));
}

async fn queue(name: &str) -> Bus {
    Bus::connect(format!("memory:comparison?queue={name}")).await.unwrap()
}

async fn publish(to: &Bus, messages: impl IntoIterator<Item = Envelope>) {
    let publisher = to.publisher().await.unwrap();
    for result in publisher.publish_batch(messages).await {
        result.unwrap();
    }
}

fn report(id: usize) -> Envelope {
    let message = Envelope::builder("old").id(format!("id-{id:04}")).time(Timestamp::from_millis(0));
    message.key("k").header("x", "1").payload("p").build()
}

#[tokio::test]
async fn differences_are_told_for_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let second = Bus::connect(format!("sqlite:{}?queue=q", folder.path().join("q.db").display()));
    let (first, second) = (queue("told").await, second.await.unwrap());
    publish(&first, (0..2000).map(report).chain([Envelope::builder("other").build()])).await;
    let renamed = |id| {
        let mut message = report(id);
        message.message_type = Some("new".to_owned());
        message
    };
    let mut other = renamed(7);
    other.headers = [("y", "1")].into_iter().collect();
    let strange = Envelope::builder("x").id("strange").build();
    let came = (0..2000).filter(|id| ![3, 4, 7].contains(id)).map(renamed);
    publish(&second, came.chain([other, renamed(0), renamed(4), strange])).await;

    let file = folder.path().join("digests.db");
    let comparison = Comparison::between(&first, &second)
        .filter(Filter::default().message_type("old"))
        .map(Map::default().message_type("old", "new"))
        .file(&file);
    let differences = comparison.clone().run().await.unwrap();
    let some = |ids: &[&str]| Messages {
        count: ids.len() as u64,
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
    };
    assert_eq!(differences.same, 1998);
    assert_eq!(differences.only_first, some(&["id-0003"]));
    assert_eq!(differences.only_second, some(&["strange"]));
    assert_eq!(differences.more_in_first, some(&[]));
    assert_eq!(differences.more_in_second, some(&["id-0000"]));
    assert_eq!(differences.out_of_order, Some(some(&["id-0007", "id-0004"])));
    assert_eq!(differences.changed.count, 1);
    let parts = ["header 'x' lost", "header 'y' added"].map(str::to_owned).to_vec();
    assert_eq!(differences.changed.parts.keys().cloned().collect::<Vec<_>>(), parts);
    let id = "id-0007".to_owned();
    assert_eq!(differences.changed.examples, [ChangedMessage { id, parts }]);
    assert!(differences.is_complete() && !differences.is_equal());
    assert_eq!((differences.first.read, differences.second.read), (2000, 2001));
    assert_eq!(comparison.run().await.unwrap_err().kind(), ErrorKind::Conflict, "the file is there");
    let json = serde_json::to_string(&differences).unwrap();
    assert_eq!(serde_json::from_str::<Differences>(&json).unwrap(), differences);
    second.close().await.unwrap();
}

#[tokio::test]
async fn what_was_not_read_to_its_end_is_never_equal() {
    let (first, second) = (queue("cut-1").await, queue("cut-2").await);
    for bus in [&first, &second] {
        publish(bus, (0..10).map(report)).await;
    }
    let at_most = |count| Comparison::between(&first, &second).at_most(NonZeroUsize::new(count).unwrap());
    assert!(at_most(10).run().await.unwrap().is_equal());
    let differences = at_most(9).run().await.unwrap();
    assert_eq!((differences.same, differences.first.read, differences.second.read), (9, 9, 9));
    assert!(!differences.is_complete() && !differences.is_equal());
    let mut nothing = differences.clone();
    nothing.first.evidence = Reading::Nothing { why: String::new() };
    nothing.second.evidence = Reading::ReadBack { disturbed: true, cut: false };
    assert!(!nothing.is_equal());
}

#[tokio::test]
async fn examples_are_few_and_a_missing_place_is_an_error() {
    let (first, second) = (queue("few").await, queue("none").await);
    second.create("").await.unwrap();
    publish(&first, (0..50).map(report)).await;
    let differences = Comparison::between(&first, &second).examples(3).run().await.unwrap();
    assert_eq!((differences.only_first.count, differences.only_first.ids.len()), (50, 3));
    let missing = Bus::connect("memory:comparison?queue=missing&create=never").await.unwrap();
    let error = Comparison::between(&first, &missing).run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
