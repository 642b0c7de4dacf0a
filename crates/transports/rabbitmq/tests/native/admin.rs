//! Create, delete, purge, depth, browse.

use std::num::NonZeroUsize;

use throughline_core::ErrorKind;

use crate::rig::{Rig, message, name, next, unique};

#[tokio::test(flavor = "multi_thread")]
async fn create_is_idempotent_and_a_difference_is_a_conflict() {
    let Some(rig) = Rig::new("create_is_idempotent_and_a_difference_is_a_conflict").await else { return };
    let queue = rig.queue("&max_length=10&single_active=true&message_ttl=1h").await;
    let made = rig.transport.create(&queue).await.unwrap();
    assert_eq!(made, [format!("quorum queue '{}'", name(&queue))]);
    let error = rig.transport.create(&queue.clone().with_option("max_length", "11")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("x-max-length"), "{error}");
    assert!(!error.to_string().contains("guest:"), "{error}");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_destination_names_the_command_that_makes_it() {
    let Some(rig) = Rig::new("a_missing_destination_names_the_command_that_makes_it").await else { return };
    let missing = unique("missing");
    let queue = rig.address(&format!("queue={missing}"));
    let exchange = rig.address(&format!("exchange={missing}"));
    let options = throughline_core::ConsumeOptions::default();
    let errors = [
        rig.transport.publisher(&queue).await.err().unwrap(),
        rig.transport.publisher(&exchange).await.err().unwrap(),
        rig.transport.consumer(&queue, &options).await.err().unwrap(),
        rig.transport.depth(&queue).await.err().unwrap(),
        rig.transport.purge(&queue).await.err().unwrap(),
        rig.transport.browse(&queue, NonZeroUsize::MIN).await.err().unwrap(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("throughline create 'amqp://***@"), "{error}");
        assert!(error.to_string().contains(&missing), "{error}");
    }
    // Nothing was made by asking.
    assert_eq!(rig.transport.depth(&queue).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(rig.transport.delete(&queue).await.unwrap().is_empty());
    let error = rig.transport.publisher(&rig.address("")).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidAddress);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_browse_and_purge() {
    let Some(rig) = Rig::new("depth_browse_and_purge").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    publisher.publish_batch((0..5).map(|n| message(n.to_string()))).await;
    rig.settles_at(&queue, 5).await;
    let seen = rig.transport.browse(&queue, NonZeroUsize::new(3).unwrap()).await.unwrap();
    let bodies: Vec<_> = seen.iter().map(|seen| seen.envelope.payload.clone().unwrap()).collect();
    assert_eq!(bodies, ["0", "1", "2"]);
    rig.settles_at(&queue, 5).await;
    let mut consumer = rig.consumer(&queue).await;
    let first = next(&mut consumer).await;
    assert_eq!(first.receive_count(), Some(2), "browsing disturbs: the count rises");
    drop(first);
    consumer.close().await.unwrap();
    rig.settles_at(&queue, 5).await;
    assert_eq!(rig.transport.purge(&queue).await.unwrap(), 5);
    rig.settles_at(&queue, 0).await;
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_browsed_is_given_back_in_its_order() {
    let Some(rig) = Rig::new("what_was_browsed_is_given_back_in_its_order").await else { return };
    for kind in ["quorum", "classic"] {
        let queue = rig.queue(&format!("&queue_type={kind}")).await;
        let publisher = rig.publisher(&queue).await;
        for n in 0..120 {
            publisher.publish(message(n.to_string())).await.unwrap();
        }
        rig.settles_at(&queue, 120).await;
        for looked_at in [100, 120] {
            let seen = rig.transport.browse(&queue, NonZeroUsize::new(looked_at).unwrap()).await.unwrap();
            let bodies: Vec<_> = seen.iter().map(|seen| seen.envelope.payload.clone().unwrap()).collect();
            assert_eq!(bodies, (0..looked_at).map(|n| n.to_string()).collect::<Vec<_>>(), "{kind}");
            rig.settles_at(&queue, 120).await;
        }
        publisher.close().await.unwrap();
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_spares_what_others_use() {
    let Some(rig) = Rig::new("delete_spares_what_others_use").await else { return };
    let exchange = unique("native");
    let dead = unique("native-dead");
    let one = rig.create(&format!("exchange={exchange}&queue={exchange}-1&dead_letter={dead}")).await;
    let two = rig.create(&format!("exchange={exchange}&queue={exchange}-2")).await;
    let letters = rig.create(&format!("queue={dead}")).await;
    let deleted = rig.transport.delete(&one).await.unwrap();
    assert_eq!(deleted.len(), 3, "{deleted:?}");
    assert!(deleted[1].starts_with("not exchange") && deleted[2].starts_with("not the dead-letter queue"));
    let publisher = rig.publisher(&rig.address(&format!("exchange={exchange}"))).await;
    publisher.publish(message("x")).await.unwrap();
    rig.settles_at(&two, 1).await;
    assert_eq!(rig.depth(&letters).await, 0);
    let deleted = rig.transport.delete(&two).await.unwrap();
    assert_eq!(deleted, [format!("queue '{exchange}-2' with 1 messages"), format!("exchange '{exchange}'")]);
    publisher.close().await.unwrap();
    rig.finish().await;
}
