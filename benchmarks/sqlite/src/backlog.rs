//! What publishing, and consuming, a message costs while so many others wait.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use throughline::Bus;

use crate::{Stopwatch, ours};

const MESSAGES: usize = 10_000;
const BYTES: usize = 256;

/// The cost of one message, in µs.
#[derive(Serialize)]
pub(crate) struct Backlog {
    pub(crate) size: usize,
    pub(crate) publish_wall: f64,
    pub(crate) publish_cpu: f64,
    pub(crate) consume_wall: f64,
    pub(crate) consume_cpu: f64,
}

pub(crate) async fn run(folder: &Path, size: usize) -> Result<Backlog> {
    let bus = Bus::connect(format!("sqlite:{}?queue=q", folder.join("backlog.db").display())).await?;
    let publisher = bus.publisher().await?;
    let body = [b'x'; BYTES];
    ours::publish(&publisher, size, &body).await?;
    // As many go as come: it stays what it is. The first time is to warm up.
    let mut spans = Vec::new();
    for _ in 0..2 {
        let watch = Stopwatch::start();
        ours::publish(&publisher, MESSAGES, &body).await?;
        let published = watch.stop();
        let mut consumer = bus.consumer().await?;
        let watch = Stopwatch::start();
        ours::consume(&mut consumer, MESSAGES).await?;
        spans.push((published, watch.stop()));
        consumer.close().await?;
    }
    publisher.close().await?;
    bus.close().await?;
    let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6 / MESSAGES as f64;
    let (published, consumed) = spans.pop().ok_or_else(|| anyhow::anyhow!("nothing was measured"))?;
    Ok(Backlog {
        size,
        publish_wall: micros(published.wall),
        publish_cpu: micros(published.cpu),
        consume_wall: micros(consumed.wall),
        consume_cpu: micros(consumed.cpu),
    })
}
