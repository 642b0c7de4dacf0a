//! What the source held when the bridge began, and what became of it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use serde::Serialize;
use throughline::capabilities::Browse;
use throughline::{Bus, Envelope, Result};

use crate::comparison::{EXAMPLES, Expiry, Pairing, Place, Reading};
use crate::filter::Filter;
use crate::ledger::Writer;
use crate::map::Map;

/// How the source's side of a verification is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "level", rename_all = "snake_case")]
pub enum SourceEvidence {
    /// The messages were read before the first was taken, without a trace.
    Read {
        /// There were more than were read ([`Bridge::verify`](crate::Bridge::verify) says how many at most).
        cut: bool,
    },
    /// The broker has said how many there were.
    BrokerCount {
        /// Why they were not read.
        why: String,
    },
    /// Nothing is known but what came.
    Nothing {
        /// Why.
        why: String,
    },
}

/// What the source held when the bridge began, of what the filter takes, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Source {
    /// How it is known.
    #[serde(flatten)]
    pub evidence: SourceEvidence,
    /// How many there were; as the broker counts, with those that the filter does not take.
    pub held: Option<u64>,
    /// How many of these were neither sent, rejected, moved before nor left, and have not expired: lost, or taken by another
    /// consumer of the source. `None` where that cannot be told.
    pub unaccounted: Option<u64>,
    /// Some of these, by id.
    pub unaccounted_ids: Vec<String>,
}

impl Source {
    pub(super) fn nothing(why: String) -> Self {
        let evidence = SourceEvidence::Nothing { why };
        Self { evidence, held: None, unaccounted: None, unaccounted_ids: Vec::new() }
    }

    pub(super) fn summary(&self) -> String {
        let held = self.held.unwrap_or(0);
        match (&self.evidence, self.unaccounted) {
            (SourceEvidence::Nothing { why }, _) => {
                format!("What the source held is not known: {why}.")
            }
            (SourceEvidence::BrokerCount { why }, _) => {
                format!(
                    "The source's broker counted {held} messages at the start; which, is not known: {why}."
                )
            }
            (SourceEvidence::Read { cut }, unaccounted) => {
                let more = if *cut { " (there were more)" } else { "" };
                let mut text = format!("The source held {held} messages at the start{more}: ");
                text.push_str(&match unaccounted {
                    Some(0) => "all are accounted for.".to_owned(),
                    Some(count) => format!(
                        "{count} were neither sent, rejected nor left; they are lost, or another consumer has taken them."
                    ),
                    None => "what is left of them could not be read.".to_owned(),
                });
                text
            }
        }
    }
}

/// What the source held, until it is settled what became of it.
pub(super) struct Held(State);

enum State {
    Read { held: Pairing, count: u64, cut: bool },
    Known(Source),
}

impl Held {
    /// Reads the source, where that disturbs nothing. Where it would (RabbitMQ, SQS), delivery counts would rise: a broker
    /// that has a limit for them drops or dead-letters what was delivered too often, and a first delivery could no longer be
    /// told from another one.
    pub(super) async fn open(from: &Bus, most: NonZeroUsize, filter: &Filter, map: &Map) -> Self {
        if from.capabilities().browse != Browse::Native {
            let why = format!("{} shows none without raising delivery counts", from.capabilities().transport);
            return Self(State::Known(counted(from, why).await));
        }
        let mut held = Pairing::open(None, Expiry::Exact);
        let expected = |envelope: Arc<Envelope>| filter.takes(&envelope).then(|| map.apply(&envelope));
        Self(
            match held.read(Place::First, from, most, expected).await.map(|side| (side.read, side.evidence)) {
                Ok((count, Reading::ReadBack { cut, .. })) => State::Read { held, count, cut },
                Ok((_, Reading::Nothing { why })) => State::Known(Source::nothing(why)),
                Err(error) => State::Known(Source::nothing(format!("reading it has failed: {error}"))),
            },
        )
    }

    /// Compares what was held with what became of it: what the ledger says, and what is in the source now.
    pub(super) async fn settle(
        self,
        from: &Bus,
        most: NonZeroUsize,
        expired: u64,
        ledger: &Writer,
    ) -> Result<Source> {
        let (mut held, count, cut) = match self.0 {
            State::Read { held, count, cut } => (held, count, cut),
            State::Known(source) => return Ok(source),
        };
        let evidence = SourceEvidence::Read { cut };
        let unknown = Source {
            evidence: evidence.clone(),
            held: Some(count),
            unaccounted: None,
            unaccounted_ids: Vec::new(),
        };
        // Before the others: these get the places from 0 on.
        match held.read(Place::Second, from, most, Some).await {
            Ok(left) if matches!(left.evidence, Reading::ReadBack { cut: false, .. }) => {}
            // What came meanwhile may hide some of what was there.
            Ok(_) => return Ok(unknown),
            Err(error) => {
                tracing::warn!(%error, "the source could not be read again after the move");
                return Ok(unknown);
            }
        }
        let mut last = i64::MIN;
        loop {
            let page = ledger.sent(last).await?;
            let Some((number, _)) = page.last() else { break };
            last = *number;
            let rows = page.into_iter().map(|(number, sent)| (AFTER_LEFT.saturating_add(number), sent.row));
            held.add(Place::Second, rows.collect()).await?;
        }
        let paired = held.compare(EXAMPLES).await?;
        let ([lost, _], [less, _]) = (paired.only, paired.more);
        let unaccounted = (lost.count + less.count).saturating_sub(expired);
        let ids = lost.ids.into_iter().chain(less.ids).take(EXAMPLES);
        Ok(Source {
            evidence,
            held: Some(count),
            unaccounted: Some(unaccounted),
            unaccounted_ids: if unaccounted == 0 { Vec::new() } else { ids.collect() },
        })
    }
}

/// A place that no message has which is left.
const AFTER_LEFT: i64 = 1 << 41;

async fn counted(from: &Bus, why: String) -> Source {
    match from.depth("").await {
        Ok(depth) => {
            let others = depth.delayed.unwrap_or(0).saturating_add(depth.unsettled.unwrap_or(0));
            let held = Some(depth.ready.saturating_add(others));
            let evidence = SourceEvidence::BrokerCount { why };
            Source { evidence, held, unaccounted: None, unaccounted_ids: Vec::new() }
        }
        Err(_) => Source::nothing(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Entry, Ledger};
    use crate::report::Totals;
    use crate::verify::{Became, Sent};

    const MOST: NonZeroUsize = NonZeroUsize::new(100).unwrap();

    async fn source(name: &str, options: &str) -> Bus {
        let bus = Bus::connect(format!("memory:account?queue={name}{options}")).await.unwrap();
        let publisher = bus.publisher().await.unwrap();
        for id in ["a", "b", "c"] {
            publisher.publish(Envelope::builder("x").id(id).build()).await.unwrap();
        }
        bus
    }

    async fn take(bus: &Bus, count: usize) -> Vec<Arc<Envelope>> {
        let mut consumer = bus.consumer().await.unwrap();
        let mut taken = Vec::new();
        for _ in 0..count {
            let delivery = consumer.next().await.unwrap().unwrap();
            taken.push(delivery.envelope().clone());
            delivery.ack().await.unwrap();
        }
        consumer.close().await.unwrap();
        taken
    }

    async fn settle(held: Held, from: &Bus, expired: u64, became: &[Arc<Envelope>]) -> Source {
        let ledger = Ledger::open(None, "a".into(), "b".into(), 1).await.unwrap();
        let entries = became.iter().zip(0..).map(|(envelope, place)| {
            let sent = Sent::new(Became::Sent, place, envelope);
            Entry { identity: None, rejected: None, sent: Some(sent) }
        });
        ledger.writer().note(entries.collect(), Totals::default()).await.unwrap();
        let source = held.settle(from, MOST, expired, &ledger.writer()).await.unwrap();
        ledger.end(true).await.unwrap();
        source
    }

    #[tokio::test]
    async fn what_was_there_and_came_to_nothing_is_told() {
        let from = source("lost", "").await;
        let open = || async { Held::open(&from, MOST, &Filter::default(), &Map::default()).await };
        let [first, second, third] = [open().await, open().await, open().await];
        let taken = take(&from, 2).await;
        let of_all = settle(first, &from, 0, &taken).await;
        assert_eq!((of_all.held, of_all.unaccounted), (Some(3), Some(0)), "the third is left");
        assert!(of_all.summary().contains("all are accounted for"));
        let lost = settle(second, &from, 0, &taken[..1]).await;
        assert_eq!((lost.unaccounted, lost.unaccounted_ids.clone()), (Some(1), vec!["b".to_owned()]));
        assert!(lost.summary().contains("1 were neither sent"), "{}", lost.summary());
        let expired = settle(third, &from, 1, &taken[..1]).await;
        assert_eq!((expired.unaccounted, expired.unaccounted_ids.len()), (Some(0), 0));
    }

    #[tokio::test]
    async fn a_source_that_reading_would_disturb_is_only_counted() {
        let from = source("counted", "&like=rabbitmq").await;
        let held = Held::open(&from, MOST, &Filter::default(), &Map::default()).await;
        let source = settle(held, &from, 0, &[]).await;
        assert!(matches!(source.evidence, SourceEvidence::BrokerCount { .. }), "{source:?}");
        assert_eq!((source.held, source.unaccounted), (Some(3), None));
        let mut consumer = from.consumer().await.unwrap();
        let delivery = consumer.next().await.unwrap().unwrap();
        assert_eq!(delivery.receive_count(), Some(1), "nobody has read it");
        delivery.release().await.unwrap();
    }

    #[tokio::test]
    async fn what_could_not_be_read_is_never_all_right() {
        let missing = Bus::connect("memory:account?queue=missing&create=never").await.unwrap();
        let held = Held::open(&missing, MOST, &Filter::default(), &Map::default()).await;
        let source = settle(held, &missing, 0, &[]).await;
        assert!(matches!(source.evidence, SourceEvidence::Nothing { .. }), "{source:?}");
        let from = source_of_one_too_many().await;
        let held = Held::open(&from, MOST, &Filter::default(), &Map::default()).await;
        let source = settle(held, &from, 0, &[]).await;
        assert_eq!(source.evidence, SourceEvidence::Read { cut: true });
        assert_eq!((source.held, source.unaccounted), (Some(100), None));
    }

    async fn source_of_one_too_many() -> Bus {
        let from = source("many", "").await;
        let publisher = from.publisher().await.unwrap();
        let more = (3..=MOST.get()).map(|_| Envelope::builder("x").build());
        for result in publisher.publish_batch(more).await {
            result.unwrap();
        }
        from
    }
}
