//! How many channels are opened: one for many publishes, not one each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use throughline_core::{PublishOptions, Publisher};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

use crate::connecting::broker;
use crate::rig::{Rig, connect, message, name};

/// Before the first frame: "AMQP" and the version.
const GREETING: usize = 8;
/// Of a frame: type, channel and size before its payload, and one octet after it.
const BEFORE: usize = 7;
const METHOD: u8 = 1;
/// The class and method of Channel.Open.
const CHANNEL_OPEN: [u8; 4] = [0, 20, 0, 10];

/// Passes on what a client sends, and counts the channels that it opens.
struct Counter {
    port: u16,
    opened: Arc<AtomicUsize>,
}

impl Counter {
    async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, opened) = (listener.local_addr().unwrap().port(), Arc::<AtomicUsize>::default());
        let count = opened.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&target).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, to_server) = server.into_split();
                tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
                let count = count.clone();
                tokio::spawn(async move {
                    // It ends with the connection.
                    let mut to_server = to_server;
                    let _ = pass_on(&mut from_client, &mut to_server, &count).await;
                });
            }
        });
        Self { port, opened }
    }
}

async fn pass_on(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    opened: &AtomicUsize,
) -> std::io::Result<()> {
    let mut greeting = [0; GREETING];
    from.read_exact(&mut greeting).await?;
    to.write_all(&greeting).await?;
    loop {
        let mut frame = vec![0; BEFORE];
        from.read_exact(&mut frame).await?;
        let size = u32::from_be_bytes(frame[3..].try_into().unwrap());
        frame.resize(BEFORE + usize::try_from(size).unwrap() + 1, 0);
        from.read_exact(&mut frame[BEFORE..]).await?;
        if frame[0] == METHOD && frame[BEFORE..].starts_with(&CHANNEL_OPEN) {
            opened.fetch_add(1, Ordering::Relaxed);
        }
        to.write_all(&frame).await?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_publishes_open_no_channel_of_their_own() {
    let Some(rig) = Rig::new("a_thousand_publishes_open_no_channel_of_their_own").await else { return };
    let queue = rig.queue("").await;
    let counter = Counter::start(broker(&rig)).await;
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f?queue={}", counter.port, name(&queue));
    let transport = connect(&url).await.unwrap();
    let address = url.parse().unwrap();
    let publisher =
        Publisher::new(transport.publisher(&address).await.unwrap(), &address, PublishOptions::default());
    let before = counter.opened.load(Ordering::Relaxed);
    assert!(before > 0, "the counter sees none");
    // One after the other, many at once, and in batches.
    for n in 0..100 {
        publisher.publish(message(n.to_string())).await.unwrap();
    }
    for result in join_all((0..500).map(|n| publisher.publish(message(n.to_string())))).await {
        result.unwrap();
    }
    for result in publisher.publish_batch((0..400).map(|n| message(n.to_string()))).await {
        result.unwrap();
    }
    // One to publish on, and one for what came in the meantime.
    let opened = counter.opened.load(Ordering::Relaxed) - before;
    assert!(opened <= 2, "{opened} channels for 1,000 publishes");
    rig.settles_at(&queue, 1000).await;
    publisher.close().await.unwrap();
    transport.close().await.unwrap();
    rig.finish().await;
}
