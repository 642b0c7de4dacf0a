//! An application that installed no tracer provider and no propagator: contexts are still forwarded, verbatim.
//! A binary of its own, because providers are installed for a whole process.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use throughline_core::trace::TracePolicy;
use throughline_core::{
    Address, ConsumeOptions, Consumer, Envelope, Headers, PublishOptions, Publisher, driver::Outgoing,
};
use throughline_testkit::scripted::{Reply, ScriptedConsumer, ScriptedPublisher};

/// With the random flag, which `TraceContextPropagator` would clear.
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03";

fn carried() -> Headers {
    [("traceparent", PARENT), ("tracestate", "vendor=x:1,other=2"), ("baggage", "user=a%20b;p=1")]
        .into_iter()
        .collect()
}

/// What is published while a message with these headers is processed.
async fn published_while_processing(headers: Headers, policy: TracePolicy, next: Envelope) -> Outgoing {
    let address: Address = "memory:scripted?queue=q".parse().unwrap();
    let source = ScriptedConsumer::new();
    let mut envelope = Envelope::new("x");
    envelope.headers = headers;
    source.feed(envelope);
    let options = ConsumeOptions { trace: policy, ..ConsumeOptions::default() };
    let mut consumer = Consumer::new(source, &address, options);
    let sink = ScriptedPublisher::new(|_| Reply::Accept);
    let publisher = Publisher::new(sink.clone(), &address, PublishOptions::default());
    let delivery = consumer.next().await.unwrap().unwrap();
    delivery.process(publisher.publish(next)).await.unwrap();
    delivery.ack().await.unwrap();
    sink.batches()[0][0].clone()
}

#[tokio::test]
async fn the_messages_own_context_goes_on_verbatim() {
    let sent = published_while_processing(carried(), TracePolicy::Parent, Envelope::new("y")).await;
    assert_eq!(sent.envelope.headers, carried());
}

#[tokio::test]
async fn an_envelope_that_carries_a_context_keeps_it() {
    let other = "00-11111111111111111111111111111111-2222222222222222-00";
    let next = Envelope::builder("t").header("traceparent", other).build();
    let sent = published_while_processing(carried(), TracePolicy::Parent, next.clone()).await;
    assert_eq!(sent.envelope.headers, next.headers);
}

#[tokio::test]
async fn an_ignored_context_is_not_forwarded_and_without_one_nothing_is_added() {
    let sent = published_while_processing(carried(), TracePolicy::Ignore, Envelope::new("y")).await;
    assert!(sent.envelope.headers.is_empty());
    let sent = published_while_processing(Headers::new(), TracePolicy::Parent, Envelope::new("y")).await;
    assert!(sent.envelope.headers.is_empty());
}
