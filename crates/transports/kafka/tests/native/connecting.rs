//! The first connection says what is wrong.

use std::time::{Duration, Instant};

use throughline_core::{ErrorKind, Retry};

use crate::rig::{Rig, connect, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_told_at_once() {
    let started = Instant::now();
    let error = connect("kafka://127.0.0.1:1/t?connect_timeout=20s").await.err().unwrap();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Disconnected, Retry::Safe), "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_option_is_named() {
    for (address, expected) in [
        ("kafka://b/t?gruop=g", "did you mean 'group'?"),
        ("kafka://b/t?kafka.linger=5", "no property 'linger'"),
    ] {
        let error = connect(address).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidAddress);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_named_with_the_command_that_makes_it() {
    let Some(rig) = Rig::new("a_missing_topic_is_named_with_the_command_that_makes_it").await else { return };
    let missing = rig.address(&unique("missing"), "group=g");
    let options = crate::rig::options();
    for error in [
        rig.transport.publisher(&missing).await.err().unwrap(),
        rig.transport.consumer(&missing, &options).await.err().unwrap(),
        rig.transport.depth(&missing).await.err().unwrap(),
        rig.transport.purge(&missing).await.err().unwrap(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("throughline create"), "{error}");
    }
    let groupless = rig.address(&unique("missing"), "");
    let error = rig.transport.consumer(&groupless, &options).await.err().unwrap();
    assert!(error.to_string().contains("group"), "{error}");
    rig.finish().await;
}
