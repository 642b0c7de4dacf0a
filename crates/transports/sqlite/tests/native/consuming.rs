//! Order, leases, wake-up, fan-out, and what is left in the file.

use std::time::{Duration, Instant};

use throughline::{Bus, ConsumeOptions, Envelope, ErrorKind, Order, PublishOptions, SendOptions, Timestamp};

use crate::rig::{Rig, is_silent, keyed, next, text};

#[tokio::test]
async fn what_was_published_outlives_the_bus_and_its_transport() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    let envelope = Envelope::builder("t").header("h", "v").payload("x").build();
    let receipt = publisher.publish(envelope.clone()).await.unwrap();
    rig.bus.close().await.unwrap();
    // The last one to leave copies the log and takes it away.
    assert!(!rig.folder.path().join("bus.db-wal").exists());
    let bus = Bus::connect(rig.address("queue=q")).await.unwrap();
    let delivery = next(&mut bus.consumer().await.unwrap()).await;
    assert_eq!(**delivery.envelope(), envelope);
    assert_eq!(receipt.native_id.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_key_is_delivered_one_by_one_whoever_consumes() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    for envelope in [keyed("a", "a1"), keyed("a", "a2"), keyed("b", "b1"), keyed("a", "a3")] {
        publisher.publish(envelope).await.unwrap();
    }
    let mut one = rig.bus.consumer().await.unwrap();
    let (a1, b1) = (next(&mut one).await, next(&mut one).await);
    assert_eq!((text(&a1), text(&b1)), ("a1".into(), "b1".into()));
    // On a transport of its own, as another process has it.
    let other = Bus::connect(rig.address("queue=q")).await.unwrap();
    let mut two = other.consumer().await.unwrap();
    assert!(is_silent(&mut two).await && is_silent(&mut one).await);
    one.stop().await;
    // A retry keeps its place, its delay included.
    a1.retry(Duration::from_millis(600), "busy").await.unwrap();
    assert!(is_silent(&mut two).await);
    for (expected, attempt) in [("a1", 2), ("a2", 1), ("a3", 1)] {
        let delivery = next(&mut two).await;
        assert_eq!((text(&delivery), delivery.attempt()), (expected.into(), attempt));
        delivery.ack().await.unwrap();
    }
    // Whoever does not care for order gets several of a key at once; behind them the key goes on.
    two.close().await.unwrap();
    for n in ["1", "2", "3"] {
        publisher.publish(keyed("a", n)).await.unwrap();
    }
    let any = ConsumeOptions { order: Order::Any, max_unsettled: 2, ..ConsumeOptions::default() };
    let mut any = rig.bus.consumer_of("", any).await.unwrap();
    let (one, two) = (next(&mut any).await, next(&mut any).await);
    assert_eq!((text(&one), text(&two)), ("1".into(), "2".into()));
    any.stop().await;
    let mut ordered = rig.bus.consumer().await.unwrap();
    two.ack().await.unwrap();
    assert!(is_silent(&mut ordered).await);
    one.ack().await.unwrap();
    assert_eq!(text(&next(&mut ordered).await), "3");
}

#[tokio::test]
async fn an_expired_message_lets_its_key_go_on_and_a_dead_letter_does_not_expire() {
    let (rig, publisher) = Rig::with_publisher("queue=q&dead_letter=dead").await;
    let soon = |text: &str| {
        Envelope::builder("t").key("k").payload(text.to_owned()).expires_in(Duration::from_secs(1))
    };
    publisher.publish(soon("rejected")).await.unwrap();
    next(&mut rig.bus.consumer().await.unwrap()).await.reject("bad").await.unwrap();
    publisher.publish(soon("expires")).await.unwrap();
    publisher.publish(keyed("k", "stays")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut consumer = rig.bus.consumer().await.unwrap();
    let stays = next(&mut consumer).await;
    assert_eq!(text(&stays), "stays");
    stays.ack().await.unwrap();
    let mut dead = rig.bus.consumer_of("?queue=dead", ConsumeOptions::default()).await.unwrap();
    let rejected = next(&mut dead).await;
    assert_eq!((text(&rejected), rejected.attempt()), ("rejected".into(), 2));
    rejected.ack().await.unwrap();
    let left: i64 = rig
        .sql()
        .query_row("SELECT count(*) + sum(held) FROM throughline_queues", [], |row| row.get(0))
        .unwrap();
    assert_eq!(left, 2, "two queues, which hold nothing");
}

#[tokio::test]
async fn what_takes_the_place_of_an_expired_message_is_delivered_once_beside_others() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    let soon = Envelope::builder("t").key("k").payload("expires").expires_in(Duration::from_millis(50));
    publisher.publish(soon).await.unwrap();
    publisher.publish(keyed("k", "next of the key")).await.unwrap();
    publisher.publish(Envelope::builder("t").payload("beside")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut consumer = rig.bus.consumer().await.unwrap();
    let mut came = Vec::new();
    for _ in 0..2 {
        let delivery = next(&mut consumer).await;
        came.push((text(&delivery), delivery.receive_count()));
        delivery.ack().await.unwrap();
    }
    came.sort();
    assert_eq!(came, [("beside".to_owned(), Some(1)), ("next of the key".to_owned(), Some(1))]);
}

#[tokio::test]
async fn a_reject_without_a_place_to_go_fails_alone() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    for n in 0..3 {
        publisher.publish(Envelope::new(n.to_string())).await.unwrap();
    }
    let there_is_none = "?queue=q&dead_letter=missing&create=never";
    let mut consumer = rig.bus.consumer_of(there_is_none, ConsumeOptions::default()).await.unwrap();
    let (one, two, three) = (next(&mut consumer).await, next(&mut consumer).await, next(&mut consumer).await);
    let (one, two, three) = tokio::join!(one.ack(), two.reject("bad"), three.ack());
    assert_eq!((one.is_ok(), two.unwrap_err().kind(), three.is_ok()), (true, ErrorKind::NotFound, true));
}

#[tokio::test]
async fn a_lease_for_ever_is_one() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    publisher.publish(Envelope::new("x")).await.unwrap();
    let options = ConsumeOptions { lease: Duration::MAX, ..ConsumeOptions::default() };
    let mut consumer = rig.bus.consumer_of("?queue=q", options).await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
}

#[tokio::test]
async fn a_waiting_consumer_is_woken_by_its_own_process_and_by_others() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    let mut consumer = rig.bus.consumer().await.unwrap();
    let mut here = Vec::new();
    for _ in 0..20 {
        assert!(tokio::time::timeout(Duration::from_millis(30), consumer.next()).await.is_err());
        let published = Instant::now();
        publisher.publish(Envelope::new("x")).await.unwrap();
        next(&mut consumer).await.ack().await.unwrap();
        here.push(published.elapsed());
    }
    // As another process: by a connection that the transport knows nothing of.
    let mut outbox = rig.sql();
    let box_q = throughline_sqlite::Outbox::install(&mut outbox, "q").unwrap();
    let mut others = Vec::new();
    for _ in 0..20 {
        assert!(tokio::time::timeout(Duration::from_millis(300), consumer.next()).await.is_err());
        let transaction = outbox.transaction().unwrap();
        box_q.publish_in(&transaction, Envelope::new("x")).unwrap();
        transaction.commit().unwrap();
        let committed = Instant::now();
        next(&mut consumer).await.ack().await.unwrap();
        others.push(committed.elapsed());
    }
    here.sort_unstable();
    others.sort_unstable();
    eprintln!("median here {:?}, from others {:?}, at most {:?}", here[10], others[10], others[19]);
    // Far above what it takes, and far below what a poll would: the machine may be busy.
    assert!(here[10] < Duration::from_secs(1) && others[10] < Duration::from_secs(1), "{here:?} {others:?}");
}

#[tokio::test]
async fn waiting_costs_next_to_nothing() {
    let rig = Rig::new("queue=q").await;
    let mut consumer = rig.bus.consumer().await.unwrap();
    assert!(is_silent(&mut consumer).await);
    let cpu = || {
        let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(u64::try_from(usage.tv_sec).unwrap(), u32::try_from(usage.tv_nsec).unwrap())
    };
    // Other tests of this process run at the same time: the least of several looks.
    let mut least = Duration::MAX;
    for _ in 0..20 {
        let before = cpu();
        assert!(tokio::time::timeout(Duration::from_millis(500), consumer.next()).await.is_err());
        least = least.min(cpu() - before);
    }
    eprintln!("processor time of 500 ms of waiting: {least:?}");
    assert!(least < Duration::from_millis(100), "{least:?}");
}

#[tokio::test]
async fn subscriptions_each_get_everything_and_an_own_one_ends_with_its_process() {
    let (rig, publisher) = Rig::with_publisher("topic=t").await;
    let error = publisher.publish(Envelope::new("lost?")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unroutable);
    let dropping = rig.bus.publisher_to("?topic=t&unroutable=drop", PublishOptions::default()).await.unwrap();
    dropping.publish(Envelope::new("dropped")).await.unwrap();
    let own = rig.bus.consumer().await.unwrap();
    let mut named = rig.bus.consumer_of("?topic=t&queue=a", ConsumeOptions::default()).await.unwrap();
    publisher.publish(Envelope::new("1")).await.unwrap();
    next(&mut named).await.ack().await.unwrap();
    // Its process dies; after a minute it is suspected, and after another nobody waits for what it would have got.
    let sql = rig.sql();
    let left = |sql: &rusqlite::Connection| -> i64 {
        sql.query_row("SELECT count(*) FROM throughline_messages", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(left(&sql), 1);
    std::mem::forget(own);
    sql.execute("UPDATE throughline_queues SET alive_until = 1 WHERE alive_until IS NOT NULL", []).unwrap();
    publisher.publish(Envelope::new("2")).await.unwrap();
    next(&mut named).await.ack().await.unwrap();
    assert_eq!(left(&sql), 2, "it may only have been late");
    sql.execute("UPDATE throughline_queues SET suspected_until = 1 WHERE suspected_until IS NOT NULL", [])
        .unwrap();
    publisher.publish(Envelope::new("3")).await.unwrap();
    next(&mut named).await.ack().await.unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while left(&sql) > 0 {
        assert!(Instant::now() < until, "its messages are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_message_without_a_key_goes_to_the_end_for_its_retry_and_to_its_place_when_it_is_released() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    for n in ["1", "2", "3"] {
        publisher.publish(Envelope::new(n)).await.unwrap();
    }
    let one_by_one = ConsumeOptions { max_unsettled: 1, ..ConsumeOptions::default() };
    let mut consumer = rig.bus.consumer_of("", one_by_one).await.unwrap();
    next(&mut consumer).await.release().await.unwrap();
    let first = next(&mut consumer).await;
    assert_eq!((text(&first), first.receive_count(), first.attempt()), ("1".into(), Some(2), 1));
    first.retry(Duration::ZERO, "busy").await.unwrap();
    for expected in ["2", "3", "1"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(text(&delivery), expected);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_again() {
    let (rig, publisher) = Rig::with_publisher("queue=q&max_length=2").await;
    publisher.publish(Envelope::new("1")).await.unwrap();
    publisher.publish_with(Envelope::new("2"), SendOptions::delayed(Duration::from_secs(60))).await.unwrap();
    let impatient = PublishOptions { timeout: Duration::from_millis(200), ..PublishOptions::default() };
    let impatient = rig.bus.publisher_to("", impatient).await.unwrap();
    let error = impatient.publish(Envelope::new("3")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Refused | ErrorKind::Timeout), "{error}");
    let mut consumer = rig.bus.consumer().await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
    publisher.publish(Envelope::new("3")).await.unwrap();
    assert_eq!(text(&next(&mut consumer).await), "3");
}

#[tokio::test]
async fn the_log_and_the_file_stay_small_while_messages_pass_through() {
    let (rig, publisher) = Rig::with_publisher("queue=q&synchronous=normal").await;
    let mut consumer = rig.bus.consumer().await.unwrap();
    let body = vec![b'x'; 10_000];
    // Some hundred megabytes.
    for _ in 0..40 {
        for answer in publisher.publish_batch((0..500).map(|_| Envelope::new(body.clone()))).await {
            answer.unwrap();
        }
        for _ in 0..500 {
            next(&mut consumer).await.ack().await.unwrap();
        }
    }
    let size = |name: &str| rig.folder.path().join(name).metadata().map_or(0, |file| file.len());
    let (file, log) = (size("bus.db"), size("bus.db-wal"));
    eprintln!("file {file}, log {log}");
    assert!(file < 64 << 20 && log < 80 << 20, "file {file}, log {log}");
}

#[tokio::test]
async fn every_column_is_where_sql_finds_it() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let envelope = Envelope::builder("order.placed").header("traceparent", traceparent).header("tenant", "7");
    publisher.publish(envelope.payload("{}").time(Timestamp::from_millis(5)).build()).await.unwrap();
    let sql = "SELECT type, traceparent, headers, payload, time FROM throughline_messages";
    let row: (String, String, String, Vec<u8>, i64) = rig
        .sql()
        .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
        .unwrap();
    let headers = r#"{"h":[["tenant","7"]]}"#;
    assert_eq!(row, ("order.placed".into(), traceparent.into(), headers.into(), b"{}".to_vec(), 5));
}
