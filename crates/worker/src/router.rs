//! Which handler a message goes to: by its type.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use throughline_core::{Error, ErrorKind, Result};

use crate::batch::{BatchHandler, BatchOptions, BoundBatch, CallBatch, ErasedBatch, TypedBatch};
use crate::handler::{Bound, Call, Erased, Handler, Typed};
use crate::job::FromJob;
use crate::middleware::retry::RetryPolicy;

/// Handlers by message type, with the state that they share.
///
/// ```
/// # use throughline_worker::{BatchOptions, Batch, HandlerError, Job, Json, RetryPolicy, Route, Router};
/// # use std::time::Duration;
/// # #[derive(serde::Deserialize)] struct SyncReport;
/// # struct App;
/// # async fn sync_report(_: Json<SyncReport>, _: Job<App>) -> Result<(), HandlerError> { Ok(()) }
/// # async fn store_points(_: Batch<Json<u32>, App>) -> Result<(), HandlerError> { Ok(()) }
/// # async fn unknown(_: Job<App>) -> Result<(), HandlerError> { Ok(()) }
/// let router = Router::with_state(App)
///     .on("campaign.sync_report", sync_report)
///     .route("campaign.archive", Route::new(sync_report).retry(RetryPolicy::never()).timeout(Duration::from_secs(60)))
///     .route("metrics.point", Route::batch(store_points, BatchOptions::default()))
///     .fallback(unknown);
/// # let _ = router;
/// ```
///
/// A message whose type has no handler, where there is no fallback, fails for good (`no_handler`): it goes to the dead
/// letters, and is never acked unseen.
pub struct Router<S = ()> {
    state: Arc<S>,
    routes: HashMap<String, Route<S>>,
    fallback: Option<Route<S>>,
    /// A type that was routed twice.
    repeated: Option<String>,
}

impl Router {
    /// No handlers, and no state.
    pub fn new() -> Self {
        Self::with_state(())
    }
}

impl Default for Router {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Send + Sync + 'static> Router<S> {
    /// No handlers yet, with a state for all of them.
    pub fn with_state(state: S) -> Self {
        Self { state: Arc::new(state), routes: HashMap::new(), fallback: None, repeated: None }
    }

    /// Handles messages of a type.
    pub fn on<Args: 'static>(self, message_type: impl Into<String>, handler: impl Handler<Args, S>) -> Self {
        self.route(message_type, Route::new(handler))
    }

    /// Handles messages of a type, as the route says. A type that is routed twice is an error when the worker begins.
    pub fn route(mut self, message_type: impl Into<String>, route: Route<S>) -> Self {
        let message_type = message_type.into();
        if self.routes.insert(message_type.clone(), route).is_some() {
            self.repeated = Some(message_type);
        }
        self
    }

    /// Handles messages of all other types, and those without one.
    pub fn fallback<Args: 'static>(self, handler: impl Handler<Args, S>) -> Self {
        self.fallback_route(Route::new(handler))
    }

    /// [`fallback`](Self::fallback), as the route says.
    pub fn fallback_route(mut self, route: Route<S>) -> Self {
        self.fallback = Some(route);
        self
    }

    /// The most messages that a batch handler may ask for; 0 without one.
    pub(crate) fn largest_batch(&self) -> usize {
        let sizes = self.routes.values().chain(&self.fallback).map(|route| match &route.kind {
            Kind::One(_) => 0,
            Kind::Many(_, options) => options.max,
        });
        sizes.max().unwrap_or(0)
    }

    /// What the run loop looks things up in, with what routes leave to the worker filled in.
    pub(crate) fn into_table(self, retry: &RetryPolicy, timeout: Option<Duration>) -> Result<Table> {
        if let Some(repeated) = self.repeated {
            let text = format!("two handlers for messages of type '{repeated}'; keep one");
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        let state = self.state;
        let entry = |route: Route<S>, index| Arc::new(route.bind(&state, index, retry, timeout));
        let routes = self.routes.into_iter().enumerate();
        let routes: HashMap<_, _> =
            routes.map(|(index, (message_type, route))| (message_type, entry(route, index))).collect();
        let fallback = self.fallback.map(|route| entry(route, routes.len()));
        let nobody = Arc::new(Entry {
            index: routes.len() + 1,
            target: Target::Nobody,
            retry: retry.clone(),
            timeout: None,
            span_name: None,
        });
        Ok(Table { routes, other: fallback.unwrap_or(nobody) })
    }
}

impl<S> fmt::Debug for Router<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("types", &self.routes.keys()).finish_non_exhaustive()
    }
}

/// A handler, and what is particular to its messages.
pub struct Route<S = ()> {
    kind: Kind<S>,
    retry: Option<RetryPolicy>,
    timeout: Option<Duration>,
    span_name: Option<Cow<'static, str>>,
}

enum Kind<S> {
    One(Arc<dyn Erased<S>>),
    Many(Arc<dyn ErasedBatch<S>>, BatchOptions),
}

impl<S: Send + Sync + 'static> Route<S> {
    /// A handler of one message at a time.
    pub fn new<Args: 'static>(handler: impl Handler<Args, S>) -> Self {
        Self::erased(Arc::new(Typed::new(handler)))
    }

    /// A handler of several messages at a time.
    pub fn batch<T: FromJob<S> + 'static>(handler: impl BatchHandler<T, S>, options: BatchOptions) -> Self {
        Self::of(Kind::Many(Arc::new(TypedBatch::new(handler)), options))
    }

    pub(crate) fn erased(handler: Arc<dyn Erased<S>>) -> Self {
        Self::of(Kind::One(handler))
    }

    fn of(kind: Kind<S>) -> Self {
        Self { kind, retry: None, timeout: None, span_name: None }
    }

    /// When its messages are tried again, in place of the worker's policy.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// How long an attempt may take, in place of the worker's.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// What the process span is named, in place of the message type.
    pub fn span_name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.span_name = Some(name.into());
        self
    }

    fn bind(self, state: &Arc<S>, index: usize, retry: &RetryPolicy, timeout: Option<Duration>) -> Entry {
        let state = state.clone();
        Entry {
            index,
            target: match self.kind {
                Kind::One(handler) => Target::One(Box::new(Bound { handler, state })),
                Kind::Many(handler, options) => {
                    Target::Many(Box::new(BoundBatch { handler, state }), options)
                }
            },
            retry: self.retry.unwrap_or_else(|| retry.clone()),
            timeout: self.timeout.or(timeout),
            span_name: self.span_name,
        }
    }
}

impl<S> fmt::Debug for Route<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("retry", &self.retry)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Routes with their state: what the run loop looks things up in.
pub(crate) struct Table {
    routes: HashMap<String, Arc<Entry>>,
    other: Arc<Entry>,
}

impl Table {
    pub(crate) fn get(&self, message_type: Option<&str>) -> &Arc<Entry> {
        message_type.and_then(|message_type| self.routes.get(message_type)).unwrap_or(&self.other)
    }
}

pub(crate) struct Entry {
    /// Tells it from others.
    pub(crate) index: usize,
    pub(crate) target: Target,
    pub(crate) retry: RetryPolicy,
    pub(crate) timeout: Option<Duration>,
    pub(crate) span_name: Option<Cow<'static, str>>,
}

pub(crate) enum Target {
    One(Box<dyn Call>),
    Many(Box<dyn CallBatch>, BatchOptions),
    /// No handler, and no fallback.
    Nobody,
}
