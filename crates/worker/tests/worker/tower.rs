//! tower's own layers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::rig::{LONG, Rig, message, start};
use throughline_worker::{HandlerError, Job, RetryPolicy, Route, Router, Worker};
use tower::limit::ConcurrencyLimitLayer;
use tower::service_fn;
use tower::timeout::TimeoutLayer;

#[tokio::test(start_paused = true)]
async fn a_layers_error_is_a_failure_and_a_handlers_own_comes_through_it() {
    async fn works(job: Job) -> Result<(), HandlerError> {
        match job.envelope().message_type.as_deref() {
            Some("slow") => tokio::time::sleep(LONG).await,
            _ => {
                return Err(HandlerError::dependency("ads-api", "no")
                    .with_class("http_503")
                    .into_permanent());
            }
        }
        Ok(())
    }
    let rig = Rig::new().await;
    let limit = TimeoutLayer::new(Duration::from_secs(5));
    let router = Router::new()
        .route("slow", Route::layered(limit.clone(), works).retry(RetryPolicy::never()))
        .route("fails", Route::layered(limit, works));
    let running = start(Worker::new(rig.consumer().await, router));
    rig.publish(message("slow", "")).await;
    rig.publish(message("fails", "")).await;
    rig.until_empty().await;
    running.stop().await;
    let dead = rig.dead().await;
    let mut reasons: Vec<_> =
        dead.iter().map(|dead| dead.history.as_deref().unwrap().last().unwrap().to_string()).collect();
    reasons.sort();
    assert_eq!(reasons, ["error: request timed out", "http_503 (ads-api): no"]);
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_shared_by_a_routes_messages() {
    let (now, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (inside, peak) = (now.clone(), most.clone());
    let service = service_fn(move |_: Job| {
        let (inside, peak) = (inside.clone(), peak.clone());
        async move {
            peak.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            inside.fetch_sub(1, Ordering::SeqCst);
            Ok::<(), HandlerError>(())
        }
    });
    let rig = Rig::new().await;
    let limited = tower::Layer::layer(&ConcurrencyLimitLayer::new(2), service);
    let running = start(Worker::new(rig.consumer().await, Router::new().route("a", Route::service(limited))));
    for _ in 0..20 {
        rig.publish(message("a", "")).await;
    }
    rig.until_empty().await;
    assert_eq!(running.stop().await.acked, 20);
    assert_eq!(most.load(Ordering::SeqCst), 2);
}
