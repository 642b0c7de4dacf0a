//! `publish`: from arguments and a body to envelopes, and their receipts.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use opentelemetry::context::FutureExt;
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, global};
use throughline::headers::{TRACEPARENT, is_trace_header};
use throughline::trace::{check_trace_headers, extract};
use throughline::{Bus, Envelope, Headers, Publisher, SendOptions};

use crate::args::PublishArgs;
use crate::bus::connect;
use crate::failure::{Exit, Failure};
use crate::lines;
use crate::message::trace_id;
use crate::output::{self, Console};
use crate::receipt::Sent;
use crate::signals::Stop;
use crate::telemetry::Telemetry;
use crate::trace_env::TraceEnv;

pub(crate) async fn run(
    args: &PublishArgs,
    telemetry: &Telemetry,
    console: &Console,
) -> Result<Exit, Failure> {
    // Whatever is wrong with the arguments is told before anything is read or connected.
    crate::bus::outside_this_process(&args.url, "publish")?;
    let given = headers(&args.headers)?;
    let env = TraceEnv::read();
    for ignored in &env.ignored {
        console.warn(ignored);
    }
    let (headers, context) = contexts(&env, given, telemetry.exports());
    let template = Template::new(args, headers);
    let mut stop = Stop::listen()?;
    let result = async {
        if args.lines {
            let source = open(args.file.as_deref(), console)?;
            let (bus, publisher) = tokio::select! {
                open = open_bus(&args.url) => open?,
                () = stop.wait() => return Ok(Exit::Interrupted),
            };
            let result = lines::publish(source, &publisher, &template, args, &mut stop, console).await;
            let closed = bus.close().await;
            let exit = result?;
            closed?;
            return Ok(exit);
        }
        let body = tokio::select! {
            body = body(args, console) => body?,
            () = stop.wait() => return Ok(Exit::Interrupted),
        };
        template.check(&body, console);
        let (bus, publisher) = tokio::select! {
            open = open_bus(&args.url) => open?,
            () = stop.wait() => return Ok(Exit::Interrupted),
        };
        let result = tokio::select! {
            result = one(&publisher, &template, body, args) => result,
            () = stop.wait() => {
                console.warn("interrupted: the broker may have the message or not");
                return Ok(Exit::Interrupted);
            }
        };
        let closed = bus.close().await;
        result?;
        closed?;
        Ok(Exit::Ok)
    }
    .with_context(context.clone())
    .await;
    let span = context.span();
    if let Err(failure) = &result {
        let failure: &Failure = failure;
        span.set_status(Status::error(failure.to_string()));
    }
    span.end();
    result
}

/// The headers that messages start with, and the context that they are published in. Without an exporter, the
/// environment's headers go with the messages verbatim; with one, a span of the command's own stands between. What was
/// given by hand wins.
fn contexts(env: &TraceEnv, given: Headers, exports: bool) -> (Headers, Context) {
    let mut beside = env.beside(&given);
    if exports && given.trace(TRACEPARENT).is_none() {
        return (given, span_context(&beside));
    }
    beside.extend(given);
    (beside, if exports { span_context(&env.headers) } else { Context::new() })
}

/// A span of the command's own, below the environment's context.
fn span_context(env: &Headers) -> Context {
    let parent = extract(env);
    let tracer = global::tracer("throughline-cli");
    let span = tracer
        .span_builder("throughline publish")
        .with_kind(SpanKind::Internal)
        .start_with_context(&tracer, &parent);
    parent.with_span(span)
}

async fn open_bus(url: &str) -> Result<(Bus, Publisher), Failure> {
    let bus = connect(url, "publish").await?;
    let publisher = bus.publisher().await?;
    Ok((bus, publisher))
}

async fn one(
    publisher: &Publisher,
    template: &Template,
    body: Bytes,
    args: &PublishArgs,
) -> Result<(), Failure> {
    let envelope = template.envelope(body);
    let sent = template.sent(&envelope, None);
    let receipt = publisher.publish_with(envelope, template.options.clone()).await?;
    if args.quiet {
        return Ok(());
    }
    output::print(&if args.json { sent.json(&receipt)? } else { sent.for_people(&receipt) })
}

/// What all messages of one command share.
pub(crate) struct Template {
    envelope: Envelope,
    id: Option<String>,
    expires_in: Option<std::time::Duration>,
    /// The time was given by hand.
    time: Option<throughline::Timestamp>,
    json: bool,
    warned: AtomicBool,
    pub(crate) options: SendOptions,
}

impl Template {
    pub(crate) fn new(args: &PublishArgs, headers: Headers) -> Self {
        let mut envelope = Envelope::new(Bytes::new());
        envelope.message_type.clone_from(&args.message_type);
        envelope.ordering_key = args.key.clone().map(Bytes::from);
        envelope.content_type.clone_from(&args.content_type);
        envelope.content_encoding.clone_from(&args.content_encoding);
        envelope.source.clone_from(&args.source);
        envelope.correlation_id.clone_from(&args.correlation_id);
        envelope.reply_to.clone_from(&args.reply_to);
        envelope.idempotency_key.clone_from(&args.idempotency_key);
        envelope.priority = args.priority;
        envelope.headers = headers;
        // An encoded body is not JSON as it stands.
        let json = args.content_encoding.is_none() && args.content_type.as_deref().is_some_and(is_json);
        Self {
            envelope,
            id: args.id.clone(),
            expires_in: args.expires_in,
            time: args.time,
            json,
            warned: AtomicBool::new(false),
            options: args.delay.map(SendOptions::delayed).unwrap_or_default(),
        }
    }

    pub(crate) fn envelope(&self, body: Bytes) -> Envelope {
        let fresh = Envelope::new(body);
        let mut envelope = self.envelope.clone();
        envelope.id = self.id.clone().unwrap_or(fresh.id);
        envelope.time = self.time.or(fresh.time);
        envelope.expires_at = self.expires_in.map(|after| throughline::Timestamp::now().after(after));
        envelope.payload = fresh.payload;
        envelope
    }

    pub(crate) fn sent(&self, envelope: &Envelope, line: Option<u64>) -> Sent {
        let current = Context::current();
        let current = current.span().span_context().clone();
        Sent {
            line,
            id: envelope.id.clone(),
            message_type: envelope.message_type.clone(),
            trace_id: trace_id(&envelope.headers)
                .or_else(|| current.is_valid().then(|| current.trace_id().to_string())),
        }
    }

    /// A body that is not what the content type says is sent as it is, with a warning.
    pub(crate) fn check(&self, body: &[u8], console: &Console) {
        if self.json
            && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_err()
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            console.warn("the content type says JSON, but the body is not JSON: sent as it is");
        }
    }
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

/// The headers given by hand. Errors name a header by its place: without a `=`, all of it may be a secret.
pub(crate) fn headers(given: &[String]) -> Result<Headers, Failure> {
    let mut headers = Headers::with_capacity(given.len());
    for (index, text) in given.iter().enumerate() {
        let wrong = |what: &str| Failure::usage(format!("--header number {}: {what}", index + 1));
        let Some((name, value)) = text.split_once('=') else {
            return Err(wrong("there is no '='; write it as NAME=VALUE"));
        };
        if name.is_empty() {
            return Err(wrong("the name before the '=' is empty; write it as NAME=VALUE"));
        }
        if is_trace_header(name) && headers.trace(name).is_some() {
            return Err(wrong(&format!("{name} is given twice; a message has one trace context")));
        }
        headers.append(name, value);
    }
    match check_trace_headers(&headers) {
        Some(wrong) => Err(Failure::usage(format!("--header: {wrong}"))),
        None => Ok(headers),
    }
}

/// The body: from the argument, the file or stdin.
async fn body(args: &PublishArgs, console: &Console) -> Result<Bytes, Failure> {
    if let Some(data) = &args.data {
        return Ok(Bytes::from(data.clone()));
    }
    let mut source = open(args.file.as_deref(), console)?;
    let read = tokio::task::spawn_blocking(move || {
        let mut body = Vec::new();
        source.read_to_end(&mut body).map(|_| body)
    });
    match read.await {
        Ok(Ok(body)) => Ok(body.into()),
        Ok(Err(error)) => Err(cannot_read(args.file.as_deref(), &error)),
        Err(error) => Err(Failure::new(Exit::Failed, "reading the body failed").caused_by(&error)),
    }
}

fn open(file: Option<&Path>, console: &Console) -> Result<Box<dyn Read + Send>, Failure> {
    match file {
        Some(path) if path != Path::new("-") => match File::open(path) {
            Ok(file) => Ok(Box::new(file)),
            Err(error) => Err(cannot_read(Some(path), &error)),
        },
        _ => {
            if io::stdin().is_terminal() {
                console.note("reading from the terminal; end with Ctrl-D");
            }
            Ok(Box::new(io::stdin()))
        }
    }
}

pub(crate) fn cannot_read(file: Option<&Path>, error: &io::Error) -> Failure {
    let name = file.map_or("stdin".to_owned(), |path| format!("'{}'", path.display()));
    Failure::new(Exit::Usage, format!("cannot read {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(headers: &[&str]) -> Vec<String> {
        headers.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn headers_keep_every_value_and_what_follows_the_first_equals_sign() {
        let read = headers(&given(&["a=1", "b=x=y", "a=", "c= "])).unwrap();
        assert_eq!(read, [("a", "1"), ("b", "x=y"), ("a", ""), ("c", " ")].into_iter().collect());
    }

    #[test]
    fn a_wrong_header_is_told_without_its_value() {
        for bad in ["Authorization: hunter2", "=hunter2", "traceparent=hunter2"] {
            let failure = headers(&given(&["a=1", bad])).unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage);
            assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
        }
        assert!(headers(&given(&["baggage=a=1", "Baggage=b=1"])).is_err());
    }

    #[test]
    fn trace_headers_go_verbatim_without_an_exporter_and_by_the_span_with_one() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let other = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let all: Headers =
            [("traceparent", parent), ("tracestate", "a=1"), ("baggage", "b=1")].into_iter().collect();
        let env = TraceEnv { headers: all.clone(), ignored: Vec::new() };
        let by_hand: Headers = [("traceparent", other)].into_iter().collect();
        let both: Headers = [("baggage", "b=1"), ("traceparent", other)].into_iter().collect();

        let (headers, context) = contexts(&env, Headers::new(), false);
        assert_eq!((headers, context.span().span_context().is_valid()), (all, false));
        assert_eq!(contexts(&env, by_hand.clone(), false).0, both);

        let (headers, context) = contexts(&env, Headers::new(), true);
        assert!(headers.is_empty());
        assert_eq!(context.span().span_context().trace_id().to_string(), &parent[3..35]);
        assert_eq!(contexts(&env, by_hand, true).0, both);
    }

    #[test]
    fn knows_json_types() {
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/cloudevents+json"] {
            assert!(is_json(json), "{json}");
        }
        assert!(!is_json("text/plain") && !is_json("application/jsonlines"));
    }
}
