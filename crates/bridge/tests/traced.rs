//! With a tracer installed: what carries a context keeps it, each hop links to it, and what carries none gets none.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::pending;
use std::num::NonZeroUsize;

use throughline::trace::parse_traceparent;
use throughline::{Bus, Envelope, SendOptions};
use throughline_bridge::Bridge;
use throughline_testkit::spans::Recorder;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn headers_are_left_as_they_came() {
    let recorder = Recorder::install();
    let from = Bus::connect("memory:traced?queue=from").await.unwrap();
    let to = Bus::connect("memory:traced?queue=to").await.unwrap();
    let traced =
        Envelope::builder("job").header("traceparent", TRACEPARENT).header("tracestate", "a=1").build();
    let untraced = Envelope::builder("job").header("x", "1").build();
    let broken = Envelope::builder("job").header("traceparent", "7").header("tracestate", "b=2").build();
    let sent = [traced, untraced, broken];
    let publisher = from.publisher().await.unwrap();
    for envelope in &sent {
        let verbatim = SendOptions { verbatim: true, ..SendOptions::default() };
        publisher.publish_with(envelope.clone(), verbatim).await.unwrap();
    }
    let bridge = Bridge::new(&from, &to).max(3).verify(NonZeroUsize::new(10).unwrap());
    let report = bridge.run(pending()).await.unwrap();
    assert!(report.is_success(), "{report:?}");
    let came = to.browse("", NonZeroUsize::new(10).unwrap()).await.unwrap();
    let came: Vec<_> = came.into_iter().map(|delivery| (*delivery.envelope).clone()).collect();
    assert_eq!(came, sent);

    let creation = parse_traceparent(TRACEPARENT).unwrap();
    let hops = recorder.linked_to(creation.trace_id());
    // Of the publish here, the receipt, and the bridge's own send.
    assert!(hops.iter().filter(|span| span.name == "publish job").count() == 2, "{hops:?}");
}
