//! Creating, deleting, purging, looking and diagnosing.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use throughline::{
    Bus, ConsumeOptions, DiagnoseOptions, Diagnosis, Envelope, ErrorKind, PublishOptions, SendOptions,
};

use crate::rig::{Rig, keyed, next, refused, text};

#[tokio::test]
async fn missing_and_deleted_queues_are_said_to_be_so() {
    let rig = Rig::new("queue=q").await;
    let error = refused(rig.address("queue=q&create=never")).await;
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("throughline create"), "{error}");
    assert!(!rig.path().exists(), "whoever only looks makes no file");
    let made = rig.bus.create("?topic=t&queue=s&dead_letter=d").await.unwrap();
    assert!(made.len() == 4 && made[0].starts_with("file '"), "{made:?}");
    assert!(rig.bus.create("?topic=t&queue=s&dead_letter=d").await.unwrap().is_empty());
    let error = rig.bus.create("?topic=t&queue=s&max_length=9").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let own = rig.bus.consumer_of("?topic=t&create=never", ConsumeOptions::default()).await.unwrap();
    own.close().await.unwrap();
    let error = rig.bus.consumer_of("?topic=new&create=never", ConsumeOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let publisher = rig.bus.publisher().await.unwrap();
    let mut consumer = rig.bus.consumer().await.unwrap();
    assert_eq!(rig.bus.delete("").await.unwrap(), ["queue 'q'"]);
    let error = consumer.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(consumer.next().await.is_none());
    // Made again on the next use, unless the address says otherwise.
    publisher.publish(Envelope::new("x")).await.unwrap();
    let never = rig.bus.publisher_to("?queue=q&create=never", PublishOptions::default()).await.unwrap();
    rig.bus.delete("").await.unwrap();
    assert_eq!(never.publish(Envelope::new("x")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(rig.bus.delete("?topic=t").await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_deleted_queue_leaves_nothing_however_much_it_held() {
    let (rig, publisher) = Rig::with_publisher("queue=q&synchronous=normal").await;
    for _ in 0..10 {
        for answer in publisher.publish_batch((0..1000).map(|n| keyed(&(n % 7).to_string(), "x"))).await {
            answer.unwrap();
        }
    }
    rig.bus.delete("").await.unwrap();
    assert_eq!(rig.bus.depth("").await.unwrap_err().kind(), ErrorKind::NotFound);
    // While it goes, others work; a process that ends early leaves the rest to the next one.
    rig.bus.close().await.unwrap();
    let bus = Bus::connect(rig.address("queue=other")).await.unwrap();
    bus.publisher().await.unwrap().publish(Envelope::new("x")).await.unwrap();
    let sql = rig.sql();
    let until = Instant::now() + Duration::from_secs(30);
    let left = || -> i64 {
        sql.query_row("SELECT count(*) FROM throughline_messages", [], |row| row.get(0)).unwrap()
    };
    while left() > 1 {
        assert!(Instant::now() < until, "{} are left", left());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_purge_takes_what_is_ready_and_a_look_takes_nothing() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    for n in ["1", "2", "3"] {
        publisher.publish(keyed("k", n)).await.unwrap();
    }
    publisher.publish(Envelope::new("4")).await.unwrap();
    publisher
        .publish_with(Envelope::new("later"), SendOptions::delayed(Duration::from_secs(60)))
        .await
        .unwrap();
    let mut consumer =
        rig.bus.consumer_of("", ConsumeOptions { max_unsettled: 1, ..Default::default() }).await.unwrap();
    let held = next(&mut consumer).await;
    consumer.stop().await;
    let browsed = rig.bus.browse("", NonZeroUsize::MAX).await.unwrap();
    assert_eq!(browsed.len(), 3);
    let depth = rig.bus.depth("").await.unwrap();
    assert_eq!((depth.ready, depth.unsettled, depth.delayed), (3, Some(1), Some(1)));
    assert_eq!(rig.bus.purge("").await.unwrap(), 3);
    publisher.publish(keyed("k", "5")).await.unwrap();
    held.ack().await.unwrap();
    let mut consumer = rig.bus.consumer().await.unwrap();
    assert_eq!(text(&next(&mut consumer).await), "5");
}

#[tokio::test]
async fn a_second_send_is_known_after_the_process_that_took_the_first() {
    let outgoing = |n: u128| throughline::driver::Outgoing {
        envelope: Envelope::new("x").into(),
        operation: throughline::driver::OperationId(7 << 64 | n),
        delay: Duration::ZERO,
        failed_attempts: 0,
        history: None,
    };
    let rig = Rig::new("queue=q").await;
    for (batch, expected) in [
        (vec![0, 1, 2, 5], vec![false; 4]),
        (vec![1, 2, 3, 4, 5, 6], vec![true, true, false, false, true, false]),
        (vec![0, 6, 7], vec![true, true, false]),
    ] {
        let bus = Bus::connect(rig.address("queue=q")).await.unwrap();
        let publisher = bus.publisher().await.unwrap();
        let (done, answers) = throughline::driver::Completions::collect(batch.len());
        publisher.driver().publish(batch.into_iter().map(outgoing).collect(), done).await;
        let seen: Vec<_> = answers.await.into_iter().map(|answer| answer.unwrap().deduplicated).collect();
        assert_eq!(seen, expected);
        bus.close().await.unwrap();
    }
    assert_eq!(rig.bus.depth("").await.unwrap().ready, 8);
    // After its time it is forgotten.
    rig.sql().execute("UPDATE throughline_operations SET until = 1", []).unwrap();
    let (done, answers) = throughline::driver::Completions::collect(1);
    let publisher = rig.bus.publisher().await.unwrap();
    publisher.driver().publish(vec![outgoing(0)], done).await;
    assert!(!answers.await[0].as_ref().unwrap().deduplicated);
}

#[tokio::test]
async fn a_diagnosis_creates_nothing_and_names_the_remedy() {
    let codes = |diagnosis: &Diagnosis| -> Vec<&str> {
        diagnosis.findings.iter().map(|finding| finding.code).collect()
    };
    let rig = Rig::new("queue=q").await;
    let options = DiagnoseOptions { handler: Some(Duration::from_secs(7200)) };
    let plain = DiagnoseOptions::default();
    for _ in 0..2 {
        // Missing both times: the first look made nothing.
        let missing = rig.bus.diagnose("?queue=q&create=never&dead_letter=dead", &options).await.unwrap();
        assert_eq!(codes(&missing), ["file-missing", "lease-not-renewed-long-enough"]);
        assert_eq!(codes(&rig.bus.diagnose("", &plain).await.unwrap()), ["no-dead-letter"]);
    }
    rig.bus.create("?queue=q&max_length=1").await.unwrap();
    rig.bus.create("?topic=t").await.unwrap();
    let missing = rig.bus.diagnose("?queue=new&create=never&dead_letter=q", &plain).await.unwrap();
    assert_eq!(codes(&missing), ["queue-missing"]);
    rig.bus.publisher().await.unwrap().publish(Envelope::new("x")).await.unwrap();
    let full = rig.bus.diagnose("?queue=q", &plain).await.unwrap();
    assert_eq!(codes(&full), ["queue-full", "no-dead-letter"]);
    let topic = rig.bus.diagnose("?topic=t", &plain).await.unwrap();
    assert_eq!(codes(&topic), ["no-subscription", "no-dead-letter"]);
    let fact =
        |name: &str| full.facts.iter().find(|fact| fact.name == name).map(|fact| fact.value.to_string());
    assert_eq!(fact("schema version").as_deref(), Some("1"));
    assert_eq!(fact("synchronous").as_deref(), Some("full"));
    // A consumer dies with a message.
    let lease = Duration::from_millis(100);
    let short = ConsumeOptions { lease, max_lease: lease, ..ConsumeOptions::default() };
    let mut consumer = rig.bus.consumer_of("", short).await.unwrap();
    let held = next(&mut consumer).await;
    consumer.stop().await;
    tokio::time::sleep(lease * 2).await;
    let expired = rig.bus.diagnose("?queue=q&dead_letter=q", &plain).await.unwrap();
    assert!(codes(&expired).contains(&"leases-expired"), "{expired:?}");
    drop(held);
}
