//! tower's services and layers, as they are.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use crate::error::{BoxError, HandlerError};
use crate::handler::{Erased, Handler, Outcome, OutcomeFuture, Typed};
use crate::job::Job;
use crate::router::Route;

/// A route's handler as a tower service of [`Job`]s: what [`Route::layered`] gives to a layer.
pub struct JobService<S>(Arc<dyn Erased<S>>);

impl<S> Clone for JobService<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> fmt::Debug for JobService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobService")
    }
}

impl<S: Send + Sync + 'static> Service<Job<S>> for JobService<S> {
    type Response = ();
    type Error = HandlerError;
    type Future = Pin<Box<dyn Future<Output = Outcome> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), HandlerError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, job: Job<S>) -> Self::Future {
        self.0.call(job)
    }
}

/// A service as a handler: each message has a clone of it, and waits until that is ready. Layers that limit share what
/// they limit by among their clones.
struct Serves<V>(V);

impl<V, S> Erased<S> for Serves<V>
where
    V: Service<Job<S>, Response = ()> + Clone + Send + Sync + 'static,
    V::Error: Into<BoxError>,
    V::Future: Send,
    S: Send + Sync + 'static,
{
    fn call(&self, job: Job<S>) -> OutcomeFuture {
        let mut service = self.0.clone();
        Box::pin(async move {
            let failed = |error: V::Error| HandlerError::from_boxed(error.into());
            poll_fn(|cx| service.poll_ready(cx)).await.map_err(failed)?;
            service.call(job).await.map_err(failed)
        })
    }
}

impl<S: Send + Sync + 'static> Route<S> {
    /// A tower service as a handler. Its error becomes a [`HandlerError`]: one of those stays what it was, and every other
    /// is retried.
    pub fn service<V>(service: V) -> Self
    where
        V: Service<Job<S>, Response = ()> + Clone + Send + Sync + 'static,
        V::Error: Into<BoxError>,
        V::Future: Send,
    {
        Self::erased(Arc::new(Serves(service)))
    }

    /// A handler within a tower layer: `Route::layered(TimeoutLayer::new(limit), handler)`. It stands inside of all that the
    /// worker does, where the route's timeout is.
    pub fn layered<Args: 'static, L>(layer: L, handler: impl Handler<Args, S>) -> Self
    where
        L: Layer<JobService<S>>,
        L::Service: Service<Job<S>, Response = ()> + Clone + Send + Sync + 'static,
        <L::Service as Service<Job<S>>>::Error: Into<BoxError>,
        <L::Service as Service<Job<S>>>::Future: Send,
    {
        Self::service(layer.layer(JobService(Arc::new(Typed::new(handler)))))
    }
}
