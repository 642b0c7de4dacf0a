//! Cut connections: publishers and consumers go on by themselves, and nothing confirmed is lost.

use std::collections::HashSet;
use std::time::Duration;

use throughline_core::{Consumer, ErrorKind, PublishOptions, Publisher, Retry};
use throughline_testkit::proxy::CuttingProxy;

use crate::connecting::broker;
use crate::rig::{Rig, body, connect, message, name, next};

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_go_on_after_cuts_and_nothing_confirmed_is_lost() {
    let Some(rig) = Rig::new("both_sides_go_on_after_cuts_and_nothing_confirmed_is_lost").await else {
        return;
    };
    let queue = rig.queue("").await;
    let proxy = CuttingProxy::start(&broker(&rig)).await;
    let url = format!("amqp://guest:guest@{}/%2f?queue={}", proxy.address(), name(&queue));
    let transport = connect(&url).await.unwrap();
    let address = url.parse().unwrap();
    let publisher =
        Publisher::new(transport.publisher(&address).await.unwrap(), &address, PublishOptions::default());
    let options = throughline_core::ConsumeOptions::default();
    let driver = transport.consumer(&address, &options).await.unwrap();
    let mut consumer = Consumer::new(driver, &address, options);

    let publishing = tokio::spawn(async move {
        let (mut confirmed, mut uncertain) = (Vec::new(), 0);
        for round in 0..60 {
            let bodies: Vec<_> = (0..50).map(|n| format!("{round}-{n}")).collect();
            let results = publisher.publish_batch(bodies.iter().map(|body| message(body.clone()))).await;
            for (body, result) in bodies.into_iter().zip(results) {
                match result {
                    Ok(_) => confirmed.push(body),
                    Err(error) => {
                        // What was safe to send again has been; what is left was on the wire when it was cut.
                        assert_eq!(error.retry(), Retry::Uncertain, "{error}");
                        assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
                        uncertain += 1;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        publisher.close().await.unwrap();
        (confirmed, uncertain)
    });
    let cutting = tokio::spawn(async move {
        for cut in 0..4 {
            tokio::time::sleep(Duration::from_millis(350)).await;
            if cut == 2 {
                proxy.refuse();
                tokio::time::sleep(Duration::from_millis(500)).await;
                proxy.restore();
            } else {
                proxy.cut();
            }
        }
        proxy
    });
    let mut seen = HashSet::new();
    let mut duplicates = 0;
    let mut stale = 0;
    let mut publishing = Some(publishing);
    let mut confirmed = Vec::new();
    let mut uncertain = 0;
    loop {
        match tokio::time::timeout(Duration::from_secs(2), consumer.next()).await {
            Ok(delivery) => {
                let delivery = delivery.unwrap().unwrap();
                if !seen.insert(body(&delivery)) {
                    duplicates += 1;
                }
                if let Err(error) = delivery.ack().await {
                    assert_eq!(error.kind(), ErrorKind::Stale);
                    stale += 1;
                }
            }
            Err(_) => match publishing.take() {
                Some(task) => (confirmed, uncertain) = task.await.unwrap(),
                None if confirmed.iter().all(|body| seen.contains(body)) => break,
                None => {}
            },
        }
    }
    let proxy = cutting.await.unwrap();
    assert!(confirmed.len() + uncertain == 3_000);
    println!("{} confirmed, {uncertain} uncertain, {duplicates} duplicates, {stale} stale", confirmed.len());
    consumer.close().await.unwrap();
    transport.close().await.unwrap();
    drop(proxy);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_away_messages_fail_safely_and_consumers_wait() {
    let Some(rig) = Rig::new("while_it_is_away_messages_fail_safely_and_consumers_wait").await else {
        return;
    };
    let queue = rig.queue("").await;
    let proxy = CuttingProxy::start(&broker(&rig)).await;
    let url = format!("amqp://guest:guest@{}/%2f?queue={}", proxy.address(), name(&queue));
    let transport = connect(&url).await.unwrap();
    let address = url.parse().unwrap();
    let options = PublishOptions { timeout: Duration::from_millis(1500), ..PublishOptions::default() };
    let publisher = Publisher::new(transport.publisher(&address).await.unwrap(), &address, options);
    let options = throughline_core::ConsumeOptions::default();
    let driver = transport.consumer(&address, &options).await.unwrap();
    let epoch = driver.epoch();
    let mut consumer = Consumer::new(driver.clone(), &address, options);
    publisher.publish(message("before")).await.unwrap();
    let held = next(&mut consumer).await;

    proxy.refuse();
    // The loss is known without a receive.
    for _ in 0..100 {
        if driver.epoch() != epoch {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(driver.epoch(), epoch + 1);
    assert!(held.is_lease_lost());
    assert_eq!(held.ack().await.unwrap_err().kind(), ErrorKind::Stale);
    let error = publisher.publish(message("lost")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Disconnected, Retry::Safe), "{error}");

    proxy.restore();
    let again = next(&mut consumer).await;
    assert_eq!(body(&again), "before");
    again.ack().await.unwrap();
    // The pause between attempts is longer than this publisher's time; a little later it is back.
    let mut published = publisher.publish(message("after")).await;
    for _ in 0..20 {
        if published.is_ok() {
            break;
        }
        published = publisher.publish(message("after")).await;
    }
    published.unwrap();
    let after = next(&mut consumer).await;
    assert_eq!(body(&after), "after");
    after.ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    transport.close().await.unwrap();
    rig.settles_at(&queue, 0).await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_hangs_is_noticed_by_its_heartbeat() {
    let Some(rig) = Rig::new("a_peer_that_hangs_is_noticed_by_its_heartbeat").await else { return };
    let queue = rig.queue("").await;
    let proxy = CuttingProxy::start(&broker(&rig)).await;
    let url = format!("amqp://guest:guest@{}/%2f?queue={}&heartbeat=1s", proxy.address(), name(&queue));
    let transport = connect(&url).await.unwrap();
    let address = url.parse().unwrap();
    let publisher =
        Publisher::new(transport.publisher(&address).await.unwrap(), &address, PublishOptions::default());
    // Its channel is open, so that the next message is written.
    publisher.publish(message("w")).await.unwrap();
    proxy.hold();
    let error = publisher.publish(message("x")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Disconnected, Retry::Uncertain), "{error}");
    proxy.cut();
    publisher.publish(message("y")).await.unwrap();
    publisher.close().await.unwrap();
    transport.close().await.unwrap();
    rig.finish().await;
}
