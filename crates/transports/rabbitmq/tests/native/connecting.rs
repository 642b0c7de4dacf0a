//! The first connection: what is wrong is told at once, and without secrets.

use std::time::{Duration, Instant};

use throughline_core::{Address, ErrorKind};
use throughline_testkit::proxy::CuttingProxy;

use crate::rig::{Rig, connect};

/// The same broker with another user info or virtual host.
pub(crate) fn broker(rig: &Rig) -> String {
    let address: Address = rig.base.parse().unwrap();
    address.authority().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_or_vhost_is_told_at_once() {
    let Some(rig) = Rig::new("a_wrong_password_or_vhost_is_told_at_once").await else { return };
    let host = broker(&rig);
    for (address, kind, text) in [
        (format!("amqp://guest:hunter2@{host}/%2f"), ErrorKind::Unauthenticated, "user name or password"),
        (format!("amqp://guest:guest@{host}/no-such-vhost"), ErrorKind::NotFound, "no-such-vhost"),
    ] {
        let started = Instant::now();
        let error = connect(&address).await.err().unwrap();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("guest"), "{shown}");
        assert!(error.native::<lapin::Error>().is_some());
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_there_is_told_at_once() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = connect(&format!("amqp://{free}/")).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(error.to_string().contains(&free.port().to_string()), "{error}");
    let error = connect("amqp://no-such-host.invalid/").await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
    let error = connect("amqp://localhost/?qeue=x").await.err().unwrap();
    assert!(error.to_string().contains("did you mean 'queue'"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_nothing_is_a_timeout() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("amqp://{}/?connect_timeout=300ms", silent.local_addr().unwrap());
    let started = Instant::now();
    let error = connect(&address).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_and_consuming_have_a_connection_each() {
    let Some(rig) = Rig::new("publishing_and_consuming_have_a_connection_each").await else { return };
    let queue = rig.queue("").await;
    let proxy = CuttingProxy::start(&broker(&rig)).await;
    let transport = connect(&format!("amqp://guest:guest@{}/%2f", proxy.address())).await.unwrap();
    let through = queue_of(&queue, &proxy);
    let publisher = transport.publisher(&through).await.unwrap();
    assert_eq!(proxy.connections(), 1);
    let options = throughline_core::ConsumeOptions::default();
    let consumer = transport.consumer(&through, &options).await.unwrap();
    let another = transport.consumer(&through, &options).await.unwrap();
    assert_eq!(proxy.connections(), 2);
    publisher.close().await.unwrap();
    another.close().await.unwrap();
    consumer.close().await.unwrap();
    transport.close().await.unwrap();
    rig.finish().await;
}

fn queue_of(address: &Address, proxy: &CuttingProxy) -> Address {
    let queue = address.option("queue").unwrap();
    format!("amqp://guest:guest@{}/%2f?queue={queue}", proxy.address()).parse().unwrap()
}
