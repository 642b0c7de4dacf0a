//! The SDK with one message a request, as many requests at once as the others have.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use async_trait::async_trait;
use tokio::task::JoinSet;

use super::Contender;
use super::raw::{attributes, finish, receive, take};
use crate::load::{CALLS, Load, Span, Stopwatch};

pub(crate) struct Single;

#[async_trait]
impl Contender for Single {
    fn name(&self) -> &'static str {
        "one-a-request"
    }

    async fn publish(&self, load: &Load) -> Result<Span> {
        let (client, url) = (load.client().await?, load.url().await?);
        let body = String::from_utf8(load.body.to_vec())?;
        let left = Arc::new(AtomicUsize::new(load.messages));
        let watch = Stopwatch::start();
        let mut tasks = JoinSet::new();
        for _ in 0..CALLS {
            let (client, url, body, left) = (client.clone(), url.clone(), body.clone(), left.clone());
            tasks.spawn(async move {
                while take(&left, 1) > 0 {
                    let mut request = client.send_message().queue_url(&url).message_body(&body);
                    for (name, value) in attributes()? {
                        request = request.message_attributes(name, value);
                    }
                    request.send().await?;
                }
                Ok(())
            });
        }
        finish(tasks).await?;
        Ok(watch.stop())
    }

    async fn consume(&self, load: &Load) -> Result<Span> {
        let (client, url) = (load.client().await?, load.url().await?);
        let left = Arc::new(AtomicUsize::new(load.messages));
        let watch = Stopwatch::start();
        let mut tasks = JoinSet::new();
        for _ in 0..CALLS {
            let (client, url, left) = (client.clone(), url.clone(), left.clone());
            tasks.spawn(async move {
                while take(&left, 1) > 0 {
                    let messages = receive(&client, &url, 1).await?;
                    if messages.is_empty() {
                        left.fetch_add(1, Ordering::Relaxed);
                    }
                    for message in messages {
                        let request = client.delete_message().queue_url(&url);
                        request.set_receipt_handle(message.receipt_handle).send().await?;
                    }
                }
                Ok(())
            });
        }
        finish(tasks).await?;
        Ok(watch.stop())
    }
}
