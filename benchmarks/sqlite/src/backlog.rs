//! What publishing, and consuming, a message costs while so many others wait.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use throughline::Bus;

use crate::{Span, Stopwatch, ours};

const MESSAGES: usize = 10_000;
const BYTES: usize = 256;

/// Turns that count; one more comes first, to warm up.
const TURNS: usize = 5;

/// The cost of one message, in µs: medians of the turns.
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
    // As many go as come: it stays what it is.
    let mut spans = Vec::new();
    for turn in 0..=TURNS {
        let watch = Stopwatch::start();
        ours::publish(&publisher, MESSAGES, &body).await?;
        let published = watch.stop();
        let mut consumer = bus.consumer().await?;
        let watch = Stopwatch::start();
        ours::consume(&mut consumer, MESSAGES).await?;
        if turn > 0 {
            spans.push((published, watch.stop()));
        }
        consumer.close().await?;
    }
    publisher.close().await?;
    bus.close().await?;
    let median = |of: fn(&(Span, Span)) -> Duration| {
        let mut micros: Vec<_> =
            spans.iter().map(|spans| of(spans).as_secs_f64() * 1e6 / MESSAGES as f64).collect();
        micros.sort_by(f64::total_cmp);
        micros.get(micros.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Ok(Backlog {
        size,
        publish_wall: median(|(published, _)| published.wall),
        publish_cpu: median(|(published, _)| published.cpu),
        consume_wall: median(|(_, consumed)| consumed.wall),
        consume_cpu: median(|(_, consumed)| consumed.cpu),
    })
}
