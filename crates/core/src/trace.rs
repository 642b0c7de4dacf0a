//! Trace continuity: injection, extraction, and the spans of publishing, queueing, processing and settling.
//!
//! Spans go to whatever OpenTelemetry tracer provider the application installed, and contexts through its propagator.
//! Where the application installed no propagator, W3C trace headers are used. Where it installed no provider, no span
//! is made, and a context is still forwarded verbatim: from an envelope that carries one, and from the message being
//! [processed](crate::Delivery::process) to the messages published meanwhile.
//!
//! **The creation context is never rewritten.** An envelope that carries a valid `traceparent` keeps it; the send span
//! then links to it. One whose `traceparent` is not valid counts as carrying none.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use opentelemetry::baggage::{BaggageExt, KeyValueMetadata};
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{
    Link, Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer,
};
use opentelemetry::{Context, KeyValue, global};

use crate::capabilities::Capabilities;
use crate::driver::Endpoint;
use crate::envelope::Envelope;
use crate::error::Error;
use crate::headers::{BAGGAGE, HeaderValue, Headers, TRACE_HEADERS, TRACEPARENT, TRACESTATE};

/// The instrumentation scope of all spans and metrics.
pub(crate) const SCOPE: &str = "throughline";

/// How a process span relates to the creation context of its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TracePolicy {
    /// Its child, and linked to it: one trace from the publisher's request on.
    #[default]
    Parent,
    /// The root of a trace of its own, linked to it.
    Link,
    /// Neither: for producers that are not trusted.
    Ignore,
}

/// What spans are named after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpanNames {
    /// The business operation: the process span of a `campaign.sync_report` message is named `campaign.sync_report`.
    #[default]
    Business,
    /// The messaging convention: `{operation} {destination}`, as in `process report-sync`.
    Convention,
}

/// Attribute names of the messaging conventions (semantic-conventions 1.44, status Development) and our own. Constants of
/// our own, because the conventions' crate has them behind an experimental feature.
pub(crate) mod attribute {
    use opentelemetry::KeyValue;

    use crate::capabilities::Capabilities;
    use crate::driver::Endpoint;

    pub(crate) const SYSTEM: &str = "messaging.system";
    pub(crate) const OPERATION_NAME: &str = "messaging.operation.name";
    pub(crate) const OPERATION_TYPE: &str = "messaging.operation.type";
    pub(crate) const DESTINATION: &str = "messaging.destination.name";
    pub(crate) const MESSAGE_ID: &str = "messaging.message.id";
    pub(crate) const CONVERSATION_ID: &str = "messaging.message.conversation_id";
    pub(crate) const BATCH_COUNT: &str = "messaging.batch.message_count";
    pub(crate) const SERVER_ADDRESS: &str = "server.address";
    pub(crate) const SERVER_PORT: &str = "server.port";
    pub(crate) const ERROR_TYPE: &str = "error.type";
    pub(crate) const ATTEMPT: &str = "throughline.attempt";
    pub(crate) const RECEIVE_COUNT: &str = "throughline.receive_count";
    pub(crate) const IDEMPOTENCY_KEY: &str = "throughline.idempotency_key";
    pub(crate) const MESSAGE_TYPE: &str = "throughline.message.type";
    pub(crate) const RETRY_DELAY: &str = "throughline.retry.delay";
    pub(crate) const RETRY_REASON: &str = "throughline.retry.reason";
    pub(crate) const RETRY_DEPENDENCY: &str = "throughline.retry.dependency";
    pub(crate) const DEAD_LETTER_DEPENDENCY: &str = "throughline.dead_letter.dependency";
    pub(crate) const DEAD_LETTER_ATTEMPTS: &str = "throughline.dead_letter.attempts";
    pub(crate) const DEAD_LETTER_REASON: &str = "throughline.dead_letter.reason";
    pub(crate) const QUEUE_DELAY: &str = "throughline.queue.delay";
    pub(crate) const QUEUE_CLOCK: &str = "throughline.queue.clock";
    pub(crate) const QUEUE_CLAMPED: &str = "throughline.queue.clamped";

    /// What all spans and points of an endpoint share.
    pub(crate) fn of_endpoint(capabilities: &Capabilities, endpoint: &Endpoint) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new(SYSTEM, capabilities.system),
            KeyValue::new(DESTINATION, endpoint.destination.clone()),
        ];
        if let Some((host, port)) = &endpoint.server {
            attributes.push(KeyValue::new(SERVER_ADDRESS, host.clone()));
            attributes.extend(port.map(|port| KeyValue::new(SERVER_PORT, i64::from(port))));
        }
        attributes
    }
}

/// The `error.type` attribute of an error.
pub(crate) fn error_type(error: &Error) -> KeyValue {
    KeyValue::new(attribute::ERROR_TYPE, format!("{:?}", error.kind()))
}

/// What a span is made of, beyond its place in the trace.
pub(crate) struct Description {
    pub(crate) name: Cow<'static, str>,
    pub(crate) attributes: Vec<KeyValue>,
    pub(crate) links: Vec<Link>,
}

/// Whether a real span has been started in this process. Only a hint: it decides whether a description is made before
/// the span (so that samplers see it) or, when the first span turns out to be real, after.
static PROVIDER_SEEN: AtomicBool = AtomicBool::new(false);

/// Starts a span below `parent`, and gives the context in which it is the current one; `None` where the application
/// installed no tracer provider, which then costs next to nothing: the description is not made.
pub(crate) fn start(
    parent: &Context,
    kind: SpanKind,
    start: Option<SystemTime>,
    describe: impl FnOnce() -> Description,
) -> Option<Context> {
    let tracer = global::tracer(SCOPE);
    let hint = PROVIDER_SEEN.load(Ordering::Relaxed);
    let mut builder = tracer.span_builder("").with_kind(kind);
    builder.start_time = start;
    let (builder, describe) = if hint {
        let Description { name, attributes, links } = describe();
        builder.name = name;
        (builder.with_attributes(attributes).with_links(links), None)
    } else {
        (builder, Some(describe))
    };
    let mut span = tracer.build_with_context(builder, parent);
    // The no-op tracer gives its parent's context, or none; a provider gives even a span it does not sample an id.
    let real = span.span_context().is_valid()
        && span.span_context().span_id() != parent.span().span_context().span_id();
    if !real {
        return None;
    }
    PROVIDER_SEEN.store(true, Ordering::Relaxed);
    if let Some(describe) = describe {
        let Description { name, attributes, links } = describe();
        span.update_name(name);
        span.set_attributes(attributes);
        for link in links {
            span.add_link(link.span_context, link.attributes);
        }
    }
    Some(parent.with_span(span))
}

/// Whether spans have been recorded so far.
pub(crate) fn provider_seen() -> bool {
    PROVIDER_SEEN.load(Ordering::Relaxed)
}

/// The attributes of a message that all its spans have.
pub(crate) fn add_envelope_attributes(attributes: &mut Vec<KeyValue>, envelope: &Envelope) {
    attributes.push(KeyValue::new(attribute::MESSAGE_ID, envelope.id.clone()));
    let optional = [
        (attribute::MESSAGE_TYPE, &envelope.message_type),
        (attribute::CONVERSATION_ID, &envelope.correlation_id),
        (attribute::IDEMPOTENCY_KEY, &envelope.idempotency_key),
    ];
    for (name, value) in optional {
        attributes.extend(value.as_ref().map(|value| KeyValue::new(name, value.clone())));
    }
}

/// Ends a span, with the error where there is one.
pub(crate) fn end(span: &Context, error: Option<&Error>) {
    let span = span.span();
    if let Some(error) = error {
        span.set_attribute(error_type(error));
        span.set_status(Status::error(error.message().to_owned()));
    }
    span.end();
}

/// A link to a span context, if it is one.
pub(crate) fn link(context: &SpanContext) -> Option<Link> {
    context.is_valid().then(|| Link::with_context(context.clone()))
}

/// The trace headers of the message being processed, kept in the context for the messages that are published meanwhile
/// by an application without a tracer.
#[derive(Clone)]
struct Forwarded([Option<String>; 3]);

/// The context in which a message is processed without a span: its own context, to be forwarded verbatim.
pub(crate) fn forwarding(headers: &Headers, parent: &Context) -> Context {
    let values = TRACE_HEADERS.map(|name| headers.trace(name).map(str::to_owned));
    parent.with_value(Forwarded(values))
}

/// Puts the current context's trace headers into a message that carries none, for an application without a tracer.
/// Says whether there were any.
pub(crate) fn forward(context: &Context, headers: &mut Headers) -> bool {
    match context.get::<Forwarded>() {
        Some(Forwarded(values)) => {
            for (name, value) in TRACE_HEADERS.into_iter().zip(values) {
                if let Some(value) = value
                    && !value.is_empty()
                {
                    headers.set_trace(name, value.clone());
                }
            }
            true
        }
        None => inject(context, headers),
    }
}

/// Whether [`forward`] would find anything, so that an envelope that is shared is not copied for nothing.
pub(crate) fn can_forward(context: &Context) -> bool {
    context.get::<Forwarded>().is_some() || context.span().span_context().is_valid()
}

/// Puts a message's span, or without a tracer the context to forward, into its headers.
pub(crate) fn carry(span: Option<&Context>, current: &Context, envelope: &mut Arc<Envelope>) {
    match span {
        Some(span) => inject_new(span, &mut Arc::make_mut(envelope).headers),
        None if can_forward(current) => {
            forward(current, &mut Arc::make_mut(envelope).headers);
        }
        None => {}
    }
}

/// The send span of a message that an adapter takes without a [`Publisher`](crate::Publisher), as an outbox does: the same
/// span, and the same context in the message's headers.
#[must_use = "end it with the outcome"]
#[derive(Debug)]
pub struct SendSpan(Option<Context>);

impl SendSpan {
    /// Starts it below the current context, and lets the envelope carry it, unless that carries a context already: then
    /// it links to that.
    pub fn start(envelope: &mut Arc<Envelope>, capabilities: &Capabilities, endpoint: &Endpoint) -> Self {
        let current = Context::current();
        let creation = creation_context(&envelope.headers);
        let kind = if creation.is_some() { SpanKind::Client } else { SpanKind::Producer };
        let span = start(&current, kind, None, || {
            let subject = envelope.message_type.as_ref().unwrap_or(&endpoint.destination);
            let mut attributes = attribute::of_endpoint(capabilities, endpoint);
            attributes.extend_from_slice(&endpoint.attributes);
            attributes.push(KeyValue::new(attribute::OPERATION_TYPE, "send"));
            attributes.push(KeyValue::new(attribute::OPERATION_NAME, "publish"));
            add_envelope_attributes(&mut attributes, envelope);
            let links = creation.as_ref().and_then(link).into_iter().collect();
            Description { name: format!("publish {subject}").into(), attributes, links }
        });
        if creation.is_none() {
            carry(span.as_ref(), &current, envelope);
        }
        Self(span)
    }

    /// Ends it, with the error where there is one.
    pub fn end(self, error: Option<&Error>) {
        if let Some(span) = &self.0 {
            end(span, error);
        }
    }
}

/// [`inject`], into a message that carries no (valid) context: what is left of a foreign one goes, and the message's own
/// baggage stays, before the context's.
pub(crate) fn inject_new(context: &Context, headers: &mut Headers) {
    let own = headers.trace(BAGGAGE).map(str::to_owned);
    for name in [TRACEPARENT, TRACESTATE] {
        headers.remove_trace(name);
    }
    inject(context, headers);
    if let Some(own) = own {
        let merged = merge_baggage(&own, headers.trace(BAGGAGE).unwrap_or_default());
        headers.set_trace(BAGGAGE, merged);
    }
}

/// Members of `more` whose names `own` does not have, after those of `own`, while they are at most 64 and 8,192 bytes (W3C
/// Baggage 3.3.2); never a part of one.
fn merge_baggage(own: &str, more: &str) -> String {
    let name = |member: &str| member.split(['=', ';']).next().unwrap_or_default().trim().to_owned();
    let names: Vec<_> = own.split(',').map(name).collect();
    let mut merged = own.to_owned();
    let mut count = names.len();
    for member in more.split(',').filter(|member| !member.is_empty() && !names.contains(&name(member))) {
        if count < 64 && merged.len() + 1 + member.len() <= 8192 {
            merged.push(',');
            merged.push_str(member);
            count += 1;
        }
    }
    merged
}

/// Writes a context into headers, by the application's propagator, or as W3C trace headers where it has none. Says
/// whether anything was written.
pub fn inject(context: &Context, headers: &mut Headers) -> bool {
    let mut writer = Writer { headers, wrote: false };
    let has_propagator = global::get_text_map_propagator(|propagator| {
        propagator.inject_context(context, &mut writer);
        propagator.fields().next().is_some()
    });
    if !has_propagator {
        let span = context.span();
        let span = span.span_context();
        if span.is_valid() {
            writer.set(TRACEPARENT, format_traceparent(span));
            writer.set(TRACESTATE, span.trace_state().header());
        }
        // Nobody here can read baggage; that of the message being processed goes on as it came.
        if let Some(Forwarded([_, _, Some(baggage)])) = context.get::<Forwarded>() {
            writer.set(BAGGAGE, baggage.clone());
        }
    }
    writer.wrote
}

struct Writer<'a> {
    headers: &'a mut Headers,
    wrote: bool,
}

impl Injector for Writer<'_> {
    fn set(&mut self, key: &str, value: String) {
        // `TraceContextPropagator` always sets `tracestate`; an empty attribute is illegal on SQS and says nothing.
        if value.is_empty() {
            return;
        }
        self.wrote = true;
        match TRACE_HEADERS.into_iter().find(|name| name.eq_ignore_ascii_case(key)) {
            Some(name) => self.headers.set_trace(name, value),
            None => self.headers.set(key, value),
        }
    }
}

/// The context that headers carry, by the application's propagator, or as W3C trace headers where it has none. Without a
/// (valid) one it is an empty context.
pub fn extract(headers: &Headers) -> Context {
    extract_onto(&Context::new(), headers)
}

/// [`extract`], onto a context whose other values stay.
pub(crate) fn extract_onto(base: &Context, headers: &Headers) -> Context {
    let (context, has_propagator) = global::get_text_map_propagator(|propagator| {
        (propagator.extract_with_context(base, &Reader(headers)), propagator.fields().next().is_some())
    });
    if has_propagator {
        return context;
    }
    let context = forwarding(headers, &context);
    match creation_context(headers) {
        Some(span) => context.with_remote_span_context(span),
        None => context,
    }
}

/// A context without an active span, for the root of a new trace: an active span, even an invalid one, would decide its
/// sampling. The baggage stays.
pub(crate) fn rootless(context: &Context) -> Context {
    if !context.has_active_span() {
        return context.clone();
    }
    let baggage = context.baggage().iter();
    let members = baggage
        .map(|(key, (value, metadata))| KeyValueMetadata::new(key.clone(), value.clone(), metadata.clone()));
    let root = Context::new().with_baggage(members);
    match context.get::<Forwarded>() {
        Some(Forwarded([_, _, baggage])) => root.with_value(Forwarded([None, None, baggage.clone()])),
        None => root,
    }
}

struct Reader<'a>(&'a Headers);

impl Extractor for Reader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.trace(key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .iter()
            .filter(|(_, value)| matches!(value, HeaderValue::Text(_)))
            .map(|(name, _)| name)
            .collect()
    }
}

/// The span context in the W3C trace headers. A bad `traceparent` is none, and `tracestate` is ignored with it.
pub fn creation_context(headers: &Headers) -> Option<SpanContext> {
    let parent = parse_traceparent(headers.trace(TRACEPARENT)?)?;
    // A bad tracestate does not take the traceparent with it (Trace Context 3.3).
    let state = headers.trace(TRACESTATE).and_then(|text| text.parse().ok()).unwrap_or_default();
    Some(SpanContext::new(parent.trace_id(), parent.span_id(), parent.trace_flags(), true, state))
}

/// Reads a `traceparent` (Trace Context 3.2): `00-{32 hex}-{16 hex}-{2 hex}`, lower case, ids not zero. A version above
/// 00 may be longer; version `ff` is invalid.
pub fn parse_traceparent(text: &str) -> Option<SpanContext> {
    // Trimmed, as propagators do.
    let (version, rest) = text.trim().as_bytes().split_first_chunk::<2>()?;
    let (trace, rest) = rest.strip_prefix(b"-")?.split_first_chunk::<32>()?;
    let (span, rest) = rest.strip_prefix(b"-")?.split_first_chunk::<16>()?;
    let (flags, more) = rest.strip_prefix(b"-")?.split_first_chunk::<2>()?;
    let tail = more.is_empty() || (version != b"00" && more.starts_with(b"-"));
    if !tail || number(version)? == 0xff {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_bytes(number(trace)?.to_be_bytes()),
        SpanId::from_bytes(u64::try_from(number(span)?).ok()?.to_be_bytes()),
        TraceFlags::new(u8::try_from(number(flags)?).ok()?),
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

/// Of at most 32 hex digits, in lower case.
fn number(hex: &[u8]) -> Option<u128> {
    hex.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

fn format_traceparent(span: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8())
}

/// Checks the trace headers that a user gives by hand, and says what is wrong with them: `baggage` over 8,192 bytes or
/// 64 members (W3C Baggage 3.3.2), `tracestate` over 32 members (Trace Context 3.3.1.5), a `traceparent` that is none.
pub fn check_trace_headers(headers: &Headers) -> Option<String> {
    if let Some(text) = headers.trace(TRACEPARENT)
        && parse_traceparent(text).is_none()
    {
        return Some("traceparent is not of the form 00-{32 hex}-{16 hex}-{2 hex}".into());
    }
    let members = |name| headers.trace(name).map_or(0, |text: &str| text.split(',').count());
    if members(TRACESTATE) > 32 {
        return Some("tracestate has more than 32 members".into());
    }
    if members(BAGGAGE) > 64 || headers.trace(BAGGAGE).is_some_and(|text| text.len() > 8192) {
        return Some("baggage has more than 64 members or 8192 bytes".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03";

    #[test]
    fn reads_traceparents_as_the_recommendation_says() {
        let context = parse_traceparent(GOOD).unwrap();
        assert_eq!(format_traceparent(&context), GOOD);
        assert!(parse_traceparent(&GOOD.replacen("00", "cc", 1)).is_some());
        assert!(parse_traceparent(&format!("{}-more", GOOD.replacen("00", "cc", 1))).is_some());
        for bad in [
            "",
            "00",
            &GOOD.to_uppercase(),
            &GOOD.replacen("00", "ff", 1),
            &format!("{GOOD}-more"),
            &format!("{}.more", GOOD.replacen("00", "cc", 1)),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            &GOOD.replace('-', "_"),
            &GOOD.replace("b7ad6b", "b7äd6"),
        ] {
            assert!(parse_traceparent(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_bad_traceparent_takes_tracestate_with_it_but_not_the_other_way_round() {
        let headers: Headers = [("Traceparent", GOOD), ("tracestate", "a=1")].into_iter().collect();
        assert_eq!(creation_context(&headers).unwrap().trace_state().header(), "a=1");
        let headers: Headers = [("traceparent", GOOD), ("tracestate", "no member")].into_iter().collect();
        assert_eq!(creation_context(&headers).unwrap().trace_state().header(), "");
        let headers: Headers = [("traceparent", "bad"), ("tracestate", "a=1")].into_iter().collect();
        assert!(creation_context(&headers).is_none());
    }

    #[test]
    fn baggage_is_merged_by_whole_members_and_the_messages_own_wins() {
        assert_eq!(merge_baggage("a=1;p=x,b=2", "b=3,c=4;q"), "a=1;p=x,b=2,c=4;q");
        assert_eq!(merge_baggage("a=1", ""), "a=1");
        let long = format!("b={}", "x".repeat(8192));
        assert_eq!(merge_baggage("a=1", &format!("{long},c=2")), "a=1,c=2");
        let many: Vec<_> = (0..64).map(|n| format!("m{n}=1")).collect();
        assert_eq!(merge_baggage(&many.join(","), "z=1"), many.join(","));
    }

    #[test]
    fn hand_given_headers_are_checked() {
        let check = |name: &str, value: String| check_trace_headers(&[(name, value)].into_iter().collect());
        assert!(check("traceparent", GOOD.into()).is_none());
        assert!(check("traceparent", "x".into()).is_some());
        assert!(check("tracestate", vec!["a=1"; 33].join(",")).is_some());
        assert!(check("baggage", format!("a={}", "x".repeat(8192))).is_some());
    }

    proptest! {
        #[test]
        fn no_traceparent_panics(text in ".*") {
            let _ = parse_traceparent(&text);
        }
    }
}
