//! Working on a message: the process span, and the span of its wait in the queue.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use opentelemetry::context::FutureExt;
use opentelemetry::trace::{Link, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};

use super::{Delivery, QueueDelay, retry_reason};
use crate::driver::Clock;
use crate::error::Result;
use crate::retry::History;
use crate::trace::{self, Description, TracePolicy, attribute};

/// Work under way: its span and its measurement end with [`end`](Self::end) or [`fail`](Self::fail); where it is dropped,
/// as cancelled, or as a panic.
#[must_use = "the span ends when this is dropped"]
pub struct Process<'a> {
    /// The message, or the first of a batch; `None` once ended.
    first: Option<&'a Delivery>,
    span: Option<Context>,
    context: Context,
    started: Instant,
}

impl Process<'_> {
    /// The context to work in, so that the spans of databases and calls, and the messages published meanwhile, join the
    /// trace.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Adds an attribute to the span; nothing where no tracer provider is installed.
    pub fn set_attribute(&self, attribute: KeyValue) {
        if let Some(span) = &self.span {
            span.span().set_attribute(attribute);
        }
    }

    /// Done.
    pub fn end(mut self) {
        self.finish(None);
    }

    /// Failed: `class` becomes `error.type` of span and measurement, and must be low in cardinality; `text` is for a person.
    pub fn fail(mut self, class: &str, text: &str) {
        self.finish(Some((class, text)));
    }

    fn finish(&mut self, error: Option<(&str, &str)>) {
        let Some(first) = self.first.take() else { return };
        first.shared.instruments.processed(self.started.elapsed(), error.map(|(class, _)| class));
        if let Some(span) = self.span.take() {
            let span = span.span();
            if let Some((class, text)) = error {
                span.set_attribute(KeyValue::new(attribute::ERROR_TYPE, class.to_owned()));
                span.set_status(Status::error(text.to_owned()));
            }
            span.end();
        }
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        let why = if std::thread::panicking() { "panic" } else { "cancelled" };
        self.finish(Some((why, why)));
    }
}

impl fmt::Debug for Process<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("message", &self.first).finish_non_exhaustive()
    }
}

impl Delivery {
    /// Does the work within a process span that is named after the message type, and records how long the message was
    /// queued as a span of its own. The span's context is current in `work`, so that the spans of databases and calls, and
    /// the messages published meanwhile, join the trace.
    ///
    /// An error ends the span as failed, with its text; it settles nothing. Dropping the future ends the span.
    pub async fn process<T, E: fmt::Display>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.process_in(None, work).await
    }

    /// [`process`](Self::process) in a span of this name.
    pub async fn process_as<T, E: fmt::Display>(
        &self,
        name: impl Into<Cow<'static, str>>,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.process_in(Some(name.into()), work).await
    }

    async fn process_in<T, E: fmt::Display>(
        &self,
        name: Option<Cow<'static, str>>,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let process = self.start_process(name);
        let result = work.with_context(process.context().clone()).await;
        match &result {
            Ok(_) => process.end(),
            Err(error) => process.fail(std::any::type_name::<E>(), &error.to_string()),
        }
        result
    }

    /// Starts the process span, for who has to say more at its end than [`process`](Self::process) can. Work within
    /// [`Process::context`].
    pub fn start_process(&self, name: Option<Cow<'static, str>>) -> Process<'_> {
        let (span, context) = self.start_process_span(name);
        Process { first: Some(self), span, context, started: Instant::now() }
    }

    /// Starts one process span for messages that are worked on together: the root of a trace of its own, linked to the
    /// creation context of each. Their waits in the queue are spans below it.
    pub fn start_batch_process<'a>(deliveries: &'a [Self], name: Option<Cow<'static, str>>) -> Process<'a> {
        let Some(first) = deliveries.first() else {
            return Process { first: None, span: None, context: Context::current(), started: Instant::now() };
        };
        let parent = trace::rootless(&Context::current());
        let span = trace::start(&parent, SpanKind::Consumer, None, || {
            let mut attributes = first.operation_attributes("process", "process");
            attributes.push(KeyValue::new(
                attribute::BATCH_COUNT,
                i64::try_from(deliveries.len()).unwrap_or(i64::MAX),
            ));
            let contexts = deliveries.iter().filter_map(Self::creation);
            Description {
                name: name.unwrap_or_else(|| first.span_name("process")),
                attributes,
                links: contexts.filter_map(|context| trace::link(&context)).collect(),
            }
        });
        for delivery in deliveries {
            if let Some(span) = &span {
                delivery.queue_delay_span(span, delivery.creation().as_ref().and_then(trace::link));
                let _ = delivery.processed.set(span.clone());
            }
        }
        let context = span.clone().unwrap_or(parent);
        Process { first: Some(first), span, context, started: Instant::now() }
    }

    /// Starts the process span below what the policy says, and records the wait in the queue; gives the span, and the
    /// context to work in.
    fn start_process_span(&self, name: Option<Cow<'static, str>>) -> (Option<Context>, Context) {
        let current = Context::current();
        let policy = self.shared.options.trace;
        let parent = match policy {
            TracePolicy::Parent => trace::extract_onto(&current, self.headers()),
            TracePolicy::Link => trace::rootless(&trace::extract_onto(&current, self.headers())),
            TracePolicy::Ignore => trace::rootless(&current),
        };
        let link = self.creation().as_ref().and_then(trace::link);
        if policy == TracePolicy::Parent {
            self.queue_delay_span(&parent, link.clone());
        }
        let span = trace::start(&parent, SpanKind::Consumer, None, || {
            let mut attributes = self.message_attributes("process", "process");
            if let Some(last) = self.history().and_then(History::last) {
                attributes.extend(retry_reason(last));
            }
            Description {
                name: name.unwrap_or_else(|| self.span_name("process")),
                attributes,
                links: link.clone().into_iter().collect(),
            }
        });
        let context = match &span {
            Some(span) => span.clone(),
            // Without a tracer the message's own context goes on, unless the policy says otherwise.
            None if policy == TracePolicy::Ignore => current,
            None => trace::forwarding(self.headers(), &parent),
        };
        if let Some(span) = &span {
            if policy != TracePolicy::Parent {
                // In a trace of its own, the wait belongs to the work.
                self.queue_delay_span(span, link);
            }
            let _ = self.processed.set(span.clone());
        }
        (span, context)
    }

    fn queue_delay_span(&self, parent: &Context, link: Option<Link>) {
        let Some(QueueDelay { delay, clock, clamped }) = self.queue_delay() else { return };
        // Once a delivery, however often it is processed.
        if self.processed.get().is_some() {
            return;
        }
        // Stamps are whole milliseconds, cut off: the message came in up to one later, after its publish span began.
        let waited = delay.saturating_sub(Duration::from_millis(1));
        let start = self.received.checked_sub(waited).unwrap_or(self.received);
        let span = trace::start(parent, SpanKind::Internal, Some(start), || {
            let mut attributes = self.shared.span_attributes.clone();
            trace::add_envelope_attributes(&mut attributes, self.envelope());
            attributes.push(KeyValue::new(attribute::QUEUE_DELAY, delay.as_secs_f64()));
            let clock = match clock {
                Clock::Broker => "broker",
                Clock::Publisher => "publisher",
            };
            attributes.push(KeyValue::new(attribute::QUEUE_CLOCK, clock));
            if clamped {
                attributes.push(KeyValue::new(attribute::QUEUE_CLAMPED, true));
            }
            Description {
                name: format!("queued {}", self.subject()).into(),
                attributes,
                links: link.into_iter().collect(),
            }
        });
        if let Some(span) = span {
            span.span().end_with_timestamp(self.received);
        }
    }
}
