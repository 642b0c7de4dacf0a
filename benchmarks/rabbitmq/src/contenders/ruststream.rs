//! ruststream-lapin at the level of its broker: confirms awaited by each publish, so 1,000 at once; one ack a message.

use std::num::NonZeroU16;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use ruststream::{Broker, ConnectedBroker, IncomingMessage, OutgoingMessage, Publisher, Subscriber};
use ruststream_lapin::{ConnectedLapinBroker, LapinBroker, LapinPublish, RabbitQueue};

use super::Contender;
use crate::load::{IN_FLIGHT, Load, Span, Stopwatch};

pub(crate) struct RustStream;

async fn connect(load: &Load) -> Result<ConnectedLapinBroker> {
    let prefetch = NonZeroU16::new(u16::try_from(IN_FLIGHT)?).context("no prefetch")?;
    Ok(LapinBroker::new(&load.url).prefetch(prefetch).connect().await?)
}

#[async_trait]
impl Contender for RustStream {
    fn name(&self) -> &'static str {
        "ruststream-lapin"
    }

    async fn publish(&self, load: &Load) -> Result<Span> {
        let broker = connect(load).await?;
        let publisher = broker.publisher(LapinPublish::default().persistent(true).confirms());
        let watch = Stopwatch::start();
        stream::iter(0..load.messages)
            .map(|_| publisher.publish(OutgoingMessage::with_payload(&load.queue, &load.body[..]), None))
            .buffered(IN_FLIGHT)
            .try_for_each(|()| async { Ok(()) })
            .await?;
        let span = watch.stop();
        broker.shutdown().await?;
        Ok(span)
    }

    async fn consume(&self, load: &Load) -> Result<Span> {
        let broker = connect(load).await?;
        let watch = Stopwatch::start();
        let mut subscriber = broker.subscribe(RabbitQueue::new(&load.queue)).await?;
        {
            let mut messages = std::pin::pin!(subscriber.stream());
            for _ in 0..load.messages {
                let message = messages.next().await.context("the stream ended")??;
                ensure!(message.payload().len() == load.body.len(), "a message is not as it was sent");
                message.ack().await?;
            }
        }
        let span = watch.stop();
        drop(subscriber);
        broker.shutdown().await?;
        Ok(span)
    }
}
