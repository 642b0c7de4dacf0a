//! When it ends, and when it must not go on.

use std::sync::atomic::{AtomicU64, Ordering};

use throughline::Depth;

use super::*;

/// A source that says so much, once so many looks have been made.
fn says(depth: Depth, before_end: impl Fn(u64, bool) -> Option<u64> + Send + Sync + 'static) -> DepthOf {
    let looks = AtomicU64::new(0);
    Arc::new(move |thoroughly| {
        let look = looks.fetch_add(1, Ordering::Relaxed);
        let before_end = before_end(look, thoroughly);
        Box::pin(async move { Ok(Look { depth, before_end }) })
    })
}

#[tokio::test]
async fn a_log_ends_where_it_ended_at_the_start_though_more_comes_all_the_time() {
    let mut rig = Rig::new(|_| Reply::Accept);
    rig.settings.depth_every = Duration::from_millis(5);
    // Never idle, and never without more to come.
    let more = Depth { ready: 1_000_000, ..Depth::default() };
    rig.depth = says(more, |look, _| Some(3_u64.saturating_sub(look)));
    let source = rig.source.clone();
    let appending = async {
        for n in 0.. {
            source.feed(message("", &n.to_string()));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let outcome = tokio::select! {
        outcome = rig.run() => outcome,
        () = appending => unreachable!(),
    };
    assert!(matches!(outcome.end, End::Empty { approximate: false }), "{outcome:?}");
    assert!(outcome.totals.moved > 0 && outcome.depth == Some(1_000_000), "{outcome:?}");
    assert_eq!(rig.acked().len() as u64, outcome.totals.moved);
}

#[tokio::test]
async fn what_a_log_counts_and_nobody_can_read_is_not_waited_for() {
    let mut rig = Rig::new(|_| Reply::Accept);
    rig.feed("", "1");
    // A transaction's mark is the last of it.
    let mark = Depth { ready: 1, ..Depth::default() };
    rig.depth = says(mark, |_, thoroughly| Some(u64::from(!thoroughly)));
    let outcome = rig.run().await;
    assert!(matches!(outcome.end, End::Empty { approximate: false }), "{outcome:?}");
    assert_eq!(rig.acked(), [1]);
}

#[tokio::test]
async fn what_the_sink_refuses_of_any_message_does_not_fill_the_reject_address() {
    for kind in [
        ErrorKind::NotFound,
        ErrorKind::PermissionDenied,
        ErrorKind::Unauthenticated,
        ErrorKind::Conflict,
        ErrorKind::Unroutable,
        ErrorKind::Unsupported,
        ErrorKind::Internal,
    ] {
        let rig =
            Rig::new(move |_| Reply::Fail(Error::new(kind, "not for you"))).rejecting(|_| Reply::Accept);
        for n in 0..50 {
            rig.feed("", &n.to_string());
        }
        let outcome = rig.run().await;
        let End::Failed { error } = &outcome.end else { panic!("{outcome:?}") };
        assert_eq!(error.kind(), kind);
        let aside = rig.reject.as_ref().unwrap().texts();
        assert!(aside.is_empty() && rig.acked().is_empty(), "{kind:?}: {aside:?}");
    }
}
