//! Creating, deleting, counting; and what is told where something is missing.

use std::num::NonZeroUsize;

use throughline_core::{ConsumeOptions, ErrorKind};

use crate::rig::{Rig, connect, message, unique};

#[tokio::test(flavor = "multi_thread")]
async fn creating_again_makes_nothing_and_with_other_properties_is_a_conflict() {
    let Some(rig) = Rig::new("creating_again_makes_nothing").await else { return };
    let (queue, dead) = rig.queue_with_dead_letters("").await;
    assert_eq!(rig.transport.create(&queue).await.unwrap(), Vec::<String>::new());
    let other = queue.clone().with_option("max_receives", "7");
    assert_eq!(rig.transport.create(&other).await.unwrap_err().kind(), ErrorKind::Conflict);
    let other = queue.clone().with_option("visibility", "77s");
    let error = rig.transport.create(&other).await.unwrap_err();
    assert!(error.to_string().contains("VisibilityTimeout=30, not 77"), "{error}");
    let deleted = rig.transport.delete(&queue).await.unwrap();
    assert!(deleted.len() == 2 && deleted[1].contains("not the dead-letter queue"), "{deleted:?}");
    assert_eq!(rig.transport.delete(&queue).await.unwrap(), Vec::<String>::new());
    assert_eq!(rig.transport.delete(&dead).await.unwrap().len(), 1);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_queue_is_told_with_the_command_that_makes_it() {
    let Some(rig) = Rig::new("a_missing_queue_is_told_with_the_command_that_makes_it").await else { return };
    let missing = rig.address(&unique("missing"), "");
    let errors = [
        rig.transport.publisher(&missing).await.err().unwrap(),
        rig.transport.consumer(&missing, &ConsumeOptions::default()).await.err().unwrap(),
        rig.transport.depth(&missing).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let text = error.to_string();
        assert!(text.contains("throughline create 'sqs://missing-") && text.contains("us-east-1"), "{text}");
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_browses_and_purges() {
    let Some(rig) = Rig::new("counts_browses_and_purges").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    for result in publisher.publish_batch((0..15).map(|n| message(n.to_string()))).await {
        result.unwrap();
    }
    let some = rig.transport.browse(&queue, NonZeroUsize::new(12).unwrap()).await.unwrap();
    assert_eq!(some.len(), 12);
    let depth = rig.transport.depth(&queue).await.unwrap();
    assert_eq!((depth.ready, depth.unsettled, depth.delayed), (15, Some(0), Some(0)));
    assert_eq!(rig.transport.purge(&queue).await.unwrap(), 15);
    rig.settles_at(&queue, 0).await;
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_wrong_endpoint_is_told_at_once() {
    let error = connect("sqs://q?endpoint=http://127.0.0.1:1").await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(error.to_string().contains("endpoint"), "{error}");
}
