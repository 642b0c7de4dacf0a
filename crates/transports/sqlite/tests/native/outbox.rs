//! State and messages in one transaction.

use std::sync::Barrier;
use std::time::Duration;

use opentelemetry::trace::{TraceContextExt, Tracer};
use opentelemetry::{Context, global};
use throughline::{Bus, Envelope, ErrorKind, Headers};
use throughline_sqlite::Outbox;
use throughline_testkit::spans::{Recorder, named};

use crate::rig::{Rig, address, next, text};

#[tokio::test]
async fn state_and_messages_commit_together_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus.db");
    let mut app = rusqlite::Connection::open(&path).unwrap();
    app.execute_batch("PRAGMA user_version = 42; PRAGMA application_id = 7; CREATE TABLE orders (id)")
        .unwrap();
    let outbox = Outbox::install(&mut app, "outbox").unwrap();
    assert!(Outbox::install(&mut app, "outbox").is_ok(), "again is no error");

    let order = |app: &mut rusqlite::Connection, id: i64, commit: bool| {
        let transaction = app.transaction().unwrap();
        transaction.execute("INSERT INTO orders VALUES (?1)", [id]).unwrap();
        let envelope = Envelope::builder("order.placed").key("k").payload(id.to_string()).build();
        outbox.publish_in(&transaction, envelope).unwrap();
        if commit { transaction.commit().unwrap() } else { transaction.rollback().unwrap() }
    };
    order(&mut app, 1, true);
    order(&mut app, 2, false);
    order(&mut app, 3, true);
    // One that is refused takes nothing else along.
    let transaction = app.transaction().unwrap();
    transaction.execute("INSERT INTO orders VALUES (4)", []).unwrap();
    let mut bad = Envelope::new("x");
    bad.id.clear();
    assert_eq!(outbox.publish_in(&transaction, bad).unwrap_err().kind(), ErrorKind::InvalidMessage);
    transaction.commit().unwrap();

    let bus = Bus::connect(address(&folder, "queue=outbox&create=never")).await.unwrap();
    let mut relay = bus.consumer().await.unwrap();
    for expected in ["1", "3"] {
        let delivery = next(&mut relay).await;
        assert_eq!((text(&delivery), delivery.attempt()), (expected.into(), 1));
        delivery.ack().await.unwrap();
    }
    assert_eq!(bus.depth("").await.unwrap().ready, 0);
    // What is the application's stays the application's.
    let pragma =
        |name: &str| -> i64 { app.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).unwrap() };
    assert_eq!((pragma("user_version"), pragma("application_id")), (42, 7));
    let orders: i64 = app.query_row("SELECT count(*) FROM orders", [], |row| row.get(0)).unwrap();
    assert_eq!(orders, 3);
}

#[test]
fn an_outbox_that_many_install_at_once_is_one() {
    const AT_ONCE: usize = 8;
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let (path, start) = (folder.path().join("bus.db"), Barrier::new(AT_ONCE));
        let mut installed = rusqlite::Connection::open(&path).unwrap();
        Outbox::install(&mut installed, "another").unwrap();
        std::thread::scope(|scope| {
            let install = || {
                let mut app = rusqlite::Connection::open(&path).unwrap();
                app.busy_timeout(Duration::from_secs(20)).unwrap();
                start.wait();
                Outbox::install(&mut app, "outbox").map(drop)
            };
            let all: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(install)).collect();
            for outcome in all {
                outcome.join().unwrap().unwrap();
            }
        });
    }
}

#[tokio::test]
async fn the_outbox_carries_the_trace_of_the_request() {
    let recorder = Recorder::install();
    let rig = Rig::new("queue=outbox").await;
    let mut app = rig.sql();
    let outbox = Outbox::install(&mut app, "outbox").unwrap();
    let request = Context::new().with_span(global::tracer("test").start("POST /orders"));
    let trace = request.span().span_context().trace_id();
    {
        let _current = request.clone().attach();
        let transaction = app.transaction().unwrap();
        outbox.publish_in(&transaction, Envelope::builder("order.placed").build()).unwrap();
        transaction.commit().unwrap();
    }
    let delivery = next(&mut rig.bus.consumer().await.unwrap()).await;
    let carried = |headers: &Headers| throughline::trace::creation_context(headers).unwrap();
    let creation = carried(&delivery.envelope().headers);
    assert_eq!(creation.trace_id(), trace);
    let spans = recorder.trace(trace);
    let send = named(&spans, "publish order.placed");
    assert_eq!(send.span_context.span_id(), creation.span_id());
    assert_eq!(send.parent_span_id, request.span().span_context().span_id());
    // One that carries a context keeps it.
    let old = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let transaction = app.transaction().unwrap();
    outbox.publish_in(&transaction, Envelope::builder("t").header("traceparent", old).build()).unwrap();
    transaction.commit().unwrap();
    delivery.ack().await.unwrap();
    let delivery = next(&mut rig.bus.consumer().await.unwrap()).await;
    assert_eq!(delivery.envelope().headers.get_str("traceparent"), Some(old));
}
