//! Whatever is done with a queue, one after the other: it answers as a list of messages would, each with its own lease.

mod list;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rusqlite::Connection;
use throughline_core::driver::{OperationId, Outgoing, Settlement, Token};
use throughline_core::{Address, Envelope, History, Order, Timestamp};

use crate::claim::Claim;
use crate::config::Config;
use crate::schema;
use crate::store::Store;
use list::{How, Model, New};

/// What a test does. Numbers that choose are taken modulo what there is; times are in seconds.
#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<New>),
    Claim {
        max: usize,
        any: bool,
    },
    /// The deliveries from one on, so many of them, are settled together.
    Settle {
        from: usize,
        many: usize,
        how: How,
    },
    Extend {
        from: usize,
        many: usize,
        by: u64,
    },
    Wait(u64),
    Purge,
}

fn config() -> Config {
    Config::new(&"sqlite:x.db?queue=q&dead_letter=d".parse::<Address>().unwrap()).unwrap()
}

const LEASE: u64 = 30;

/// Both, side by side.
struct Both<'a> {
    store: Store<'a>,
    queue: i64,
    model: Model,
    /// Of each delivery there was.
    tokens: Vec<Token>,
    operations: u128,
}

impl Both<'_> {
    fn publish(&mut self, new: &[New]) {
        let outgoing = |new: &New| {
            let mut envelope = Envelope::builder("t").build();
            envelope.ordering_key = new.key.map(|key| vec![key].into());
            envelope.priority = new.priority;
            envelope.expires_at =
                new.expires.map(|expires| Timestamp::from_millis(self.model.after(expires)));
            self.operations += 1;
            Outgoing {
                envelope: envelope.into(),
                operation: OperationId(self.operations),
                delay: Duration::from_secs(new.delay),
                failed_attempts: new.failed,
                history: None,
            }
        };
        let batch: Vec<_> = new.iter().map(outgoing).collect();
        let published = self.store.publish(&config(), &batch).unwrap();
        for (new, receipt) in new.iter().zip(published) {
            let id = receipt.unwrap().native_id.unwrap().parse().unwrap();
            self.model.publish(id, *new);
        }
    }

    fn claim(&mut self, max: usize, any: bool) {
        let order = if any { Order::Any } else { Order::PerKey };
        let claim =
            Claim { queue: self.queue, max, max_bytes: 1 << 20, lease: Duration::from_secs(LEASE), order };
        let claimed = self.store.claim(claim).unwrap();
        let expected = self.model.claim(max, any, LEASE);
        let got = claimed.deliveries.iter().map(|delivery| {
            let id = i64::try_from(delivery.token.tag).unwrap();
            (id, delivery.receive_count.unwrap(), delivery.failed_attempts)
        });
        assert_eq!(got.collect::<Vec<_>>(), expected);
        self.tokens.extend(claimed.deliveries.iter().map(|delivery| delivery.token));
    }

    /// Some deliveries, old ones among them, each once.
    fn some(&self, from: usize, many: usize) -> Vec<usize> {
        let all = self.tokens.len();
        let some: BTreeSet<_> = (0..many.min(all)).map(|n| all - 1 - (from + n) % all).collect();
        some.into_iter().collect()
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish(new) => self.publish(new),
            Step::Claim { max, any } => self.claim(*max, *any),
            Step::Settle { from, many, how } => {
                let history = Arc::new(History::default());
                let settlement = match how {
                    How::Ack => Settlement::Ack,
                    How::Release => Settlement::Release,
                    How::Retry(after) => Settlement::Retry { after: Duration::from_secs(*after), history },
                    How::Reject => Settlement::Reject { history },
                };
                let some = self.some(*from, *many);
                let batch: Vec<_> = some.iter().map(|at| (self.tokens[*at], settlement.clone())).collect();
                let settled = self.store.settle(self.queue, &config(), &batch).unwrap();
                for (at, settled) in some.into_iter().zip(settled) {
                    assert_eq!(settled.is_ok(), self.model.settle(self.model.deliveries[at], *how));
                }
            }
            Step::Extend { from, many, by } => {
                let some = self.some(*from, *many);
                let tokens: Vec<_> = some.iter().map(|at| self.tokens[*at]).collect();
                let extended = self.store.extend(self.queue, &tokens, Duration::from_secs(*by)).unwrap();
                for (at, extended) in some.into_iter().zip(extended) {
                    assert_eq!(extended.is_ok(), self.model.extend(self.model.deliveries[at], *by));
                }
            }
            Step::Wait(seconds) => {
                self.store.now = self.store.now.after(Duration::from_secs(*seconds));
                self.model.now = self.store.now.as_millis();
            }
            Step::Purge => {
                while self.store.wake_due(self.queue).unwrap() > 0 {}
                let before = self.store.take_next().unwrap();
                while self.store.purge(self.queue, before).unwrap() > 0 {}
                self.model.purge();
            }
        }
        self.store.flush().unwrap();
        self.check();
    }

    /// The tables agree with each other, and with the list.
    fn check(&self) {
        let one = |sql: &str| -> i64 { self.store.connection.query_row(sql, [], |row| row.get(0)).unwrap() };
        let wrong = [
            (
                "both fresh and in line",
                "SELECT count(*) FROM throughline_fresh JOIN throughline_line USING (id)",
            ),
            (
                "neither, or without a message",
                "SELECT (SELECT count(*) FROM throughline_fresh) + (SELECT count(*) FROM throughline_line) \
                 - (SELECT count(*) FROM throughline_messages)",
            ),
            (
                "in two ranges",
                "SELECT count(*) FROM throughline_ranges a JOIN throughline_ranges b \
                 ON a.queue = b.queue AND a.rank = b.rank AND a.last < b.last AND b.first <= a.last",
            ),
            (
                "empty ranges",
                "SELECT count(*) FROM throughline_ranges r WHERE NOT EXISTS (SELECT 1 FROM throughline_fresh f \
                 WHERE f.queue = r.queue AND f.rank = r.rank AND f.id BETWEEN r.first AND r.last)",
            ),
            (
                "counted wrongly",
                "SELECT (SELECT sum(held) FROM throughline_queues) - (SELECT count(*) FROM throughline_messages)",
            ),
        ];
        for (what, sql) in wrong {
            assert_eq!(one(sql), 0, "{what}");
        }
        let depth = crate::admin::depth_at(self.store.connection, self.queue, self.store.now).unwrap();
        assert_eq!([depth.ready, depth.unsettled.unwrap(), depth.delayed.unwrap()], self.model.depth());
        let rejected = one("SELECT held FROM throughline_queues WHERE name = 'd'");
        assert_eq!(u64::try_from(rejected).unwrap(), self.model.rejected);
    }
}

fn run(steps: &[Step]) {
    let mut connection = Connection::open_in_memory().unwrap();
    schema::migrate(&mut connection).unwrap();
    let mut store = Store::new(&connection, Path::new(""));
    let queue = store.destination(&config()).unwrap().id;
    store.make("", "d", None).unwrap();
    let model = Model::new(store.now.as_millis());
    let mut both = Both { store, queue, model, tokens: Vec::new(), operations: 0 };
    for step in steps {
        both.step(step);
    }
}

fn new() -> impl Strategy<Value = New> {
    let key = prop_oneof![4 => Just(None), 1 => (0..2_u8).prop_map(Some)];
    let priority = prop_oneof![4 => Just(None), 1 => (0..3_u8).prop_map(Some)];
    let delay = prop_oneof![6 => Just(0), 1 => Just(20_u64)];
    let expires = prop_oneof![8 => Just(None), 1 => Just(Some(25_u64))];
    let failed = prop_oneof![8 => Just(0), 1 => Just(3_u32)];
    (key, priority, delay, expires, failed).prop_map(|(key, priority, delay, expires, failed)| New {
        key,
        priority,
        delay,
        expires,
        failed,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        6 => Just(How::Ack),
        2 => Just(How::Release),
        1 => Just(How::Retry(0)),
        1 => Just(How::Retry(10)),
        1 => Just(How::Reject),
    ];
    prop_oneof![
        4 => prop::collection::vec(new(), 1..12).prop_map(Step::Publish),
        6 => (1..9_usize, prop::bool::weighted(0.2)).prop_map(|(max, any)| Step::Claim { max, any }),
        6 => (0..20_usize, 1..12_usize, how).prop_map(|(from, many, how)| Step::Settle { from, many, how }),
        3 => (0..20_usize, 1..12_usize, 1..60_u64).prop_map(|(from, many, by)| Step::Extend { from, many, by }),
        3 => (1..40_u64).prop_map(Step::Wait),
        1 => Just(Step::Purge),
    ]
}

proptest! {
    #[test]
    fn a_queue_is_a_list_whatever_is_done_with_it(steps in prop::collection::vec(step(), 1..40)) {
        run(&steps);
    }
}
