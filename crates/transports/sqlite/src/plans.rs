//! However long a queue is: every statement finds what it is asked for by an index, and sorts nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use throughline_core::driver::{Delivery, OperationId, Outgoing, Settlement};
use throughline_core::{Address, Envelope, History, Order};

use crate::claim::Claim;
use crate::config::Config;
use crate::store::Store;
use crate::{admin, ready, schema};

const LEASE: Duration = Duration::from_secs(30);

fn config(options: &str) -> Config {
    Config::new(&format!("sqlite:x.db?{options}").parse::<Address>().unwrap()).unwrap()
}

/// With and without a key, at once and later, one that soon expires.
fn batch(first: u128) -> Vec<Outgoing> {
    let envelope = |n: u128| match n % 4 {
        0 => Envelope::builder("t").key("k").build(),
        1 => Envelope::builder("t").key("k").expires_in(Duration::from_millis(1)).build(),
        _ => Envelope::builder("t").build(),
    };
    let outgoing = |n: u128| Outgoing {
        envelope: envelope(n).into(),
        operation: OperationId(7 << 64 | n),
        delay: Duration::from_secs(if n % 8 < 6 { 0 } else { 60 }),
        failed_attempts: 0,
        history: None,
    };
    (first..first + 24).map(outgoing).collect()
}

fn settle(store: &mut Store<'_>, queue: i64, deliveries: &[Delivery], settlement: &Settlement) {
    let batch: Vec<_> = deliveries.iter().map(|delivery| (delivery.token, settlement.clone())).collect();
    for settled in store.settle(queue, &config("queue=q&dead_letter=d"), &batch).unwrap() {
        settled.unwrap();
    }
}

/// All that is done with queues, one after the other.
fn do_everything(connection: &Connection) {
    let mut store = Store::new(connection, Path::new(""));
    let store = &mut store;
    let queue = store.destination(&config("queue=q")).unwrap().id;
    let claim = |order| Claim { queue, max: 4, max_bytes: 1 << 20, lease: LEASE, order };
    claim(Order::PerKey).peek(connection).unwrap();
    for first in [0, 20] {
        // Some of the second batch were in the first.
        store.publish(&config("queue=q"), &batch(first)).unwrap();
    }
    store.now = store.now.after(Duration::from_secs(1));
    let history = Arc::new(History::default());
    let (again, later) = (Duration::ZERO, Duration::from_secs(5));
    for settlement in [
        Settlement::Ack,
        Settlement::Release,
        Settlement::Retry { after: again, history: history.clone() },
        Settlement::Retry { after: later, history: history.clone() },
        Settlement::Reject { history },
    ] {
        for order in [Order::PerKey, Order::Any] {
            let claimed = store.claim(claim(order)).unwrap().deliveries;
            let tokens: Vec<_> = claimed.iter().map(|delivery| delivery.token).collect();
            store.extend(queue, &tokens, LEASE).unwrap();
            settle(store, queue, &claimed, &settlement);
        }
    }
    store.claim(claim(Order::Any)).unwrap();
    store.now = store.now.after(3 * LEASE);
    assert!(store.wake_due(queue).unwrap() > 4, "leases, retries and delays");
    store.flush().unwrap();
    admin::depth(connection, queue).unwrap();
    ready::browse(connection, queue, 10, |_| true).unwrap();
    let before = store.take_next().unwrap();
    assert!(store.purge(queue, before).unwrap() > 0);
    store.publish(&config("queue=q"), &batch(100)).unwrap();

    let own = store.source(&config("topic=t&queue=own")).unwrap().id;
    store.keep_alive(own).unwrap();
    for _ in 0..3 {
        store.now = store.now.after(Duration::from_secs(120));
        let _ = store.publish(&config("topic=t"), &batch(0)).unwrap();
    }
    store.mark_deleted(queue).unwrap();
    store.flush().unwrap();
    while store.sweep().unwrap() {}
}

#[test]
fn no_statement_looks_at_the_whole_queue() {
    let mut connection = Connection::open_in_memory().unwrap();
    schema::migrate(&mut connection).unwrap();
    let statements = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = statements.clone();
    let note = move |event: TraceEvent<'_>| {
        if let TraceEvent::Stmt(statement, _) = event {
            seen.lock().unwrap().insert(statement.sql().into_owned());
        }
    };
    connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(note)).unwrap();
    do_everything(&connection);
    let statements = std::mem::take(&mut *statements.lock().unwrap());
    assert!(statements.len() > 40, "{} were seen", statements.len());
    for sql in statements {
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        for parameter in 1..=plan.parameter_count() {
            plan.raw_bind_parameter(parameter, 1).unwrap();
        }
        let mut rows = plan.raw_query();
        while let Some(row) = rows.next().unwrap() {
            let step: String = row.get(3).unwrap();
            assert!(!step.starts_with("SCAN") && !step.contains("TEMP B-TREE"), "{sql}: {step}");
        }
    }
}

#[test]
fn what_is_due_becomes_ready_piece_by_piece_whatever_comes_first() {
    let mut connection = Connection::open_in_memory().unwrap();
    schema::migrate(&mut connection).unwrap();
    let store = &mut Store::new(&connection, Path::new(""));
    let later = |n: u128| Outgoing {
        envelope: Envelope::builder("t").build().into(),
        operation: OperationId(n),
        delay: Duration::from_secs(if n == 0 { 0 } else { 1 }),
        failed_attempts: 0,
        history: None,
    };
    store.publish(&config("queue=q"), &(0..1500).map(later).collect::<Vec<_>>()).unwrap();
    let queue = store.destination(&config("queue=q")).unwrap().id;
    let all = Claim { queue, max: 2000, max_bytes: usize::MAX, lease: LEASE, order: Order::PerKey };
    assert_eq!(store.claim(all).unwrap().deliveries.len(), 1);
    store.now = store.now.after(2 * LEASE);
    let woken: Vec<_> = (0..3).map(|_| store.wake_due(queue).unwrap()).collect();
    assert_eq!(woken, [1000, 500, 0]);
    let claimed = store.claim(all).unwrap().deliveries;
    let failed: Vec<_> = claimed.iter().map(|delivery| delivery.failed_attempts).collect();
    assert_eq!((claimed.len(), failed.iter().sum::<u32>(), failed.first()), (1500, 1, Some(&1)));
}
