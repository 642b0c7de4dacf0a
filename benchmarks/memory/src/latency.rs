//! How long one message takes on the memory transport when nothing else is under way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::report::Latency;
use crate::work::{Bench, Shape};

/// Times of single messages, after as many that are not counted.
pub(crate) async fn run(singles: usize) -> Result<Latency> {
    let mut bench = Bench::open().await?;
    bench.go_on(Shape::Singles, singles).await?;
    let (mut publish, mut to_handler) = (Vec::with_capacity(singles), Vec::with_capacity(singles));
    for _ in 0..singles {
        let envelope = throughline::Envelope::builder("bench").payload(vec![b'x'; 256]).build();
        let started = Instant::now();
        let accepted = async {
            bench.publisher.publish(envelope).await?;
            anyhow::Ok(started.elapsed())
        };
        let handled = async {
            let delivery = bench.consumer.next().await.context("the stream ended")??;
            let took = started.elapsed();
            delivery.ack().await?;
            anyhow::Ok(took)
        };
        let (accepted, handled) = tokio::try_join!(accepted, handled)?;
        publish.push(accepted);
        to_handler.push(handled);
    }
    bench.close().await?;
    Ok(Latency {
        publish_p50: quantile(&mut publish, 0.5),
        publish_p99: quantile(&mut publish, 0.99),
        to_handler_p50: quantile(&mut to_handler, 0.5),
        to_handler_p99: quantile(&mut to_handler, 0.99),
    })
}

/// In µs.
fn quantile(times: &mut [Duration], at: f64) -> f64 {
    times.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let index = (times.len().saturating_sub(1) as f64 * at).round() as usize;
    times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}
