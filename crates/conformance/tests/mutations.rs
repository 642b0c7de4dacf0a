//! Every case is seen to fail: each is run against a transport that is broken in exactly the way that it is there to see.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use throughline_conformance::suite::{self, Suite};
use throughline_conformance::{Case, Fragile, Harness, Outcome, Report, Settings};
use throughline_core::driver::{Completions, OperationId, Outgoing, Sibling, Transport};
use throughline_core::{Address, Result};
use throughline_memory::REGISTRATION;
use throughline_testkit::mutant::Mutation as M;
use throughline_testkit::mutant::{Mutant, PASSWORD, foreign};
use tokio::sync::watch;

/// Case, what is broken, and a part of what the case says then (or another, after a bar).
const BROKEN: &[(&str, M, &str)] = &[
    ("published_is_received", M::DeliversTwice, "came where none was due"),
    ("batch_is_answered_one_by_one", M::FailsBatches, "message 0 of the batch"),
    ("many_at_once_all_arrive", M::LosesSome, "of 200 messages have come"),
    ("many_destinations_at_once", M::MixesDestinations, "messages have come|not due|lost:"),
    ("each_answer_comes_once", M::ForgetsAnAnswer, "answers per message: [0, 1"),
    ("dropped_publish_is_still_sent", M::AnswersBeforeStoring, "0 of 20 messages have come"),
    ("publishing_goes_on_after_an_error", M::WedgesAfterAnError, "a good message after an error: Err"),
    ("close_sends_what_was_queued", M::AnswersBeforeStoring, "of 200 messages have come"),
    ("publish_after_close_is_refused", M::PublishesAfterClose, "the driver: [Ok"),
    ("unroutable_is_told", M::DropsUnroutable, "a topic without subscriptions: Ok"),
    ("unroutable_is_told", M::DeniesThatItTells, "declared not to be told, and the answer is Err"),
    ("competing_consumers_share", M::DeliversTwice, "duplicates of 200 messages"),
    ("each_subscription_gets_everything", M::SubscriptionsCompete, "messages have come"),
    ("receive_gives_no_more_than_asked", M::GivesMoreThanAsked, "where 3 were asked for"),
    ("receive_waits_no_longer_than_asked", M::WaitsTooLong, "receiving from an empty queue did not end"),
    ("receive_wakes_for_a_message", M::SleepsThrough, "waking up for a message did not end"),
    ("stop_ends_a_waiting_receive", M::IgnoresStop, "ending a waiting receive did not end"),
    ("stopping_releases_the_unread", M::IgnoresRelease, "of 49 messages have come"),
    ("cancelled_next_loses_nothing", M::LosesSome, "lost: 98 of 100"),
    ("dropped_delivery_comes_back", M::IgnoresRelease, "waiting for a message did not end"),
    ("unsettled_comes_back_after_close", M::AcksOnReceipt, "waiting for a message did not end"),
    ("full_of_unsettled_resumes", M::GivesMoreThanAsked, "came where none was due"),
    ("undecodable_does_not_wedge", M::WedgesOnForeign, "waiting for a message did not end"),
    ("acked_is_gone", M::IgnoresAck, "came where none was due"),
    ("retry_comes_back_with_its_failure", M::ForgetsHistory, "the failure is lost"),
    ("retry_waits_for_its_delay", M::RetriesAtOnce, "it came back after"),
    ("attempts_are_counted", M::ForgetsAttempts, "attempt 2 is told as 1"),
    ("redeliveries_are_counted", M::CountsEveryDeliveryAsFirst, "[Some(1), Some(1), Some(1)]"),
    ("release_comes_back", M::IgnoresRelease, "waiting for a message did not end"),
    ("release_records_no_attempt", M::ReleaseCountsAsFailure, "it is attempt 2"),
    ("dead_letter_keeps_the_message", M::DeadLetterLosesHeaders, "came out as absent"),
    ("dead_letter_says_why", M::DeadLetterForgetsWhy, "does not say where it was rejected"),
    ("dead_letter_does_not_expire", M::DeadLetterExpires, "waiting for a message did not end"),
    ("reject_without_dead_letter_keeps_the_message", M::RejectsIntoNothing, "nowhere to go: Ok"),
    ("settling_twice_is_stale", M::StaleIsOk, "ack number 2 is answered Ok"),
    ("late_settlement_is_stale", M::StaleIsOk, "an ack after the redelivery is answered Ok"),
    ("settlements_are_answered_one_by_one", M::OneErrorFailsAll, "settlement 0 of the batch"),
    ("parallel_with_retries_loses_nothing", M::RetryDrops, "waiting for a message did not end"),
    ("restart_resumes_where_it_was", M::AcksCumulatively, "of 2 messages have come"),
    ("long_handler_keeps_its_message", M::IgnoresExtensions, "came where none was due|the lease has expired"),
    ("lease_ends_at_the_maximum", M::LeaseNeverEnds, "waiting for"),
    ("lease_ends_at_the_maximum", M::ExtendsWhatIsFixed, "not renewable, and an extension is answered Ok"),
    ("unrenewed_lease_ends", M::LeaseNeverEnds, "waiting for a message did not end"),
    ("extension_counts_from_now", M::IgnoresExtensions, "it was extended by"),
    ("extensions_are_answered_one_by_one", M::OneErrorFailsAll, "extension 0 of the batch"),
    ("settled_lease_cannot_be_extended", M::StaleIsOk, "an extension after the ack is answered Ok"),
    ("order_per_key_is_kept", M::Reorders, "came where 0 was due"),
    ("retried_message_keeps_its_place", M::RetriesAtTheBack, "'2' came where '1' was due"),
    ("busy_key_holds_up_no_other", M::HandsOutOneAtATime, "waiting for a message did not end"),
    ("every_field_survives", M::LosesReplyTo, "the field 'reply_to'"),
    ("generated_envelopes_survive", M::LossyHeaders, "the header"),
    ("more_headers_than_slots_survive", M::KeepsTenHeaders, "came out as absent"),
    (
        "awkward_header_names_survive",
        M::LowercasesNames,
        "came out as absent|came out as \"value\", \"value\"",
    ),
    ("awkward_header_values_survive", M::LossyHeaders, "the header \"awkward\""),
    ("repeated_headers_keep_order", M::LastValueWins, "epeated\" was"),
    ("tombstone_is_not_empty", M::TombstoneBecomesEmpty, "the payload was None"),
    ("absent_key_is_not_empty", M::EmptyKeyBecomesAbsent, "the field 'ordering_key'"),
    ("any_body_survives", M::LossyBody, "the payload was"),
    ("trace_headers_are_byte_exact", M::TrimsTracestate, "the header \"tracestate\""),
    ("odd_trace_headers_are_carried", M::LowercasesNames, "came out as absent"),
    ("trace_headers_are_never_crowded_out", M::KeepsTenHeaders, "came out as absent"),
    ("retry_keeps_the_creation_context", M::RetryStartsANewTrace, "the header \"traceparent\""),
    ("dead_letter_keeps_the_creation_context", M::RetryStartsANewTrace, "the header \"traceparent\""),
    ("queue_delay_is_known", M::ForgetsWhenEnqueued, "is not known"),
    ("delayed_message_waits", M::IgnoresDelay, "the delay is 1s"),
    ("expired_message_is_not_delivered", M::IgnoresExpiry, "'expires' came after its time"),
    ("higher_priority_comes_first", M::IgnoresPriority, "priority 1 came where 9 was due"),
    ("second_send_is_deduplicated", M::NeverDeduplicates, "the second send of an operation"),
    (
        "oversized_payload_is_refused",
        M::RefusesHalfTheLimit,
        "a payload of the declared limit, 1000 bytes: Err",
    ),
    ("oversized_headers_are_refused", M::IgnoresHeaderLimit, "exceeds the limit of 1000 is answered Ok"),
    ("overlong_delay_is_refused", M::RefusesLongDelays, "the longest declared delay, 3600s: Err"),
    ("full_call_is_taken", M::RefusesLongCalls, "a call of 256 messages is declared to be taken"),
    ("missing_queue_is_not_found", M::CreatesWhatIsMissing, "publishing to something missing is answered Ok"),
    ("missing_topic_is_not_found", M::CreatesWhatIsMissing, "something missing is answered"),
    ("deleted_queue_ends_the_stream", M::HidesErrors, "waiting to be told of the deletion did not end"),
    ("errors_show_no_password", M::ShowsThePassword, "shows the password"),
    ("declared_abilities_agree", M::DeclaresMoreThanTheTransport, "deduplication is `No` for the transport"),
    ("lost_connection_is_survived", M::LosesWhatIsInFlight, "accepted messages"),
    ("lost_connection_is_survived", M::NeverReconnects, "waiting for a message did not end"),
    ("delivery_of_a_lost_connection_is_stale", M::KeepsLostDeliveries, "waiting for a message did not end"),
    ("drain_redelivers_nothing", M::LosesLastAcks, "was settled before the drain|came where none was due"),
    ("stopped_stream_ends", M::IgnoresStop, "stopping did not end"),
    ("closed_consumer_takes_nothing", M::ReceivesAfterClose, "a closed consumer received 1"),
    ("closing_twice_is_no_error", M::SecondCloseFails, "the transport's second close"),
    ("reopened_goes_on", M::ForgetsOnClose, "0 of 10 messages have come"),
    ("create_is_idempotent", M::SecondCreateConflicts, "creating what is there"),
    ("delete_is_idempotent", M::SecondDeleteFails, "the second deletion"),
    ("depth_counts_what_is_ready", M::CountsNothing, "counting seven messages: still"),
    ("purge_empties_the_queue", M::PurgesNothing, "outlived the purge"),
    ("diagnosis_disturbs_nothing", M::DiagnosisTakes, "waiting for a message did not end"),
    ("browse_takes_nothing", M::BrowsingTakes, "waiting for a message did not end"),
];

/// The memory transport, broken in one way, on a bus of its own.
struct Broken {
    mutation: M,
    bus: Address,
}

impl Broken {
    fn new(mutation: M) -> Self {
        static BUSES: AtomicUsize = AtomicUsize::new(0);
        let number = BUSES.fetch_add(1, Ordering::Relaxed);
        Self { mutation, bus: format!("memory:mutant-{number}").parse().unwrap() }
    }

    async fn memory(&self) -> Result<Arc<dyn Transport>> {
        (REGISTRATION.connect)(self.bus.clone()).await
    }
}

#[async_trait]
impl Harness for Broken {
    async fn connect(&self) -> Result<Arc<dyn Transport>> {
        Ok(Mutant::wrap(self.memory().await?, self.bus.clone(), self.mutation))
    }

    fn address(&self, sibling: &Sibling<'_>) -> Option<Address> {
        let inner = (REGISTRATION.sibling)(&self.bus, sibling)?;
        let outer: Address = format!("mutant://user:{PASSWORD}@host/").parse().unwrap();
        Some(outer.with_options_of(&inner))
    }

    async fn fragile(&self) -> Result<Option<Fragile>> {
        let cuts = Arc::new(watch::channel(0).0);
        let inner = self.memory().await?;
        let transport = Mutant::fragile(inner, self.bus.clone(), self.mutation, cuts.clone());
        Ok(Some(Fragile::new(transport, move || cuts.send_modify(|cuts| *cuts += 1))))
    }

    async fn put_foreign(&self, to: &Address) -> Result<bool> {
        let to = self.bus.with_options_of(to);
        let publisher = self.memory().await?.publisher(&to).await?;
        let (done, answers) = Completions::collect(1);
        let (operation, delay) = (OperationId(1), Duration::ZERO);
        let message =
            Outgoing { envelope: Arc::new(foreign()), operation, delay, failed_attempts: 0, history: None };
        publisher.publish(vec![message], done).await;
        answers.await.pop().unwrap()?;
        Ok(true)
    }
}

fn case(name: &str) -> &'static Case {
    suite::cases().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

async fn run(mutation: M, settings: Settings, cases: impl Iterator<Item = &'static Case>) -> Report {
    let suite = Suite::open(Broken::new(mutation), settings).await.unwrap();
    let (_never, stop) = watch::channel(false);
    suite.run(cases, stop, |_| {}).await
}

fn small() -> Settings {
    Settings { silence: Duration::from_millis(200), many: 200, per_key: 20, ..Settings::default() }
}

#[test]
fn every_case_is_broken_by_some_mutation() {
    let cases: BTreeSet<_> = suite::cases().map(|case| case.name).collect();
    let broken: BTreeSet<_> = BROKEN.iter().map(|(case, ..)| *case).collect();
    assert_eq!(cases, broken);
}

#[tokio::test(flavor = "multi_thread")]
async fn unbroken_every_case_passes() {
    let report = run(M::None, small(), suite::cases()).await;
    // Without limits there is nothing to exceed.
    let limits =
        ["oversized_payload_is_refused", "oversized_headers_are_refused", "overlong_delay_is_refused"];
    for case in &report.cases {
        assert!(case.outcome == Outcome::Passed || limits.contains(&case.case), "{case:#?}");
    }
    assert_eq!(report.cases.len(), suite::cases().count());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_is_seen_to_fail() {
    // What is lost is waited for: not for long here.
    let hasty = || Settings {
        patience: Duration::from_secs(3),
        lease: Duration::from_millis(500),
        limit: Duration::from_secs(60),
        ..small()
    };
    let runs = BROKEN.iter().map(|(name, mutation, expected)| async move {
        let report = run(*mutation, hasty(), std::iter::once(case(name))).await;
        let outcome = report.cases.into_iter().next().unwrap().outcome;
        match &outcome {
            Outcome::Failed(why) if expected.split('|').any(|part| why.contains(part)) => None,
            outcome => Some(format!("{name} with {mutation:?} must fail with '{expected}': {outcome:?}")),
        }
    });
    let wrong: Vec<_> =
        futures_util::stream::iter(runs).buffer_unordered(24).filter_map(std::future::ready).collect().await;
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), BROKEN.len(), wrong.join("\n"));
}
