//! Each rule, on declarations that no broker had to make.

use std::slice::from_ref;

use lapin::types::AMQPValue;
use throughline_core::diagnosis::Server;

use super::*;

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

const ONE: AMQPValue = AMQPValue::LongLongInt(1);

/// The findings about a durable queue with these arguments.
fn found(address: &str, major: u64, arguments: &[(&str, AMQPValue)]) -> Vec<Finding> {
    let destination = Destination::of(&address.parse().unwrap()).unwrap();
    let mut diagnosis = Diagnosis::new(&destination.address, Server::default());
    let mut properties = vec![("durable", AMQPValue::Boolean(true))];
    properties.extend(arguments.iter().cloned());
    let counts = Some(Counts { ready: 0, consumers: 0 });
    let seen = QueueSeen { counts, declared: Some(Declared::of(&properties)) };
    Rules { diagnosis: &mut diagnosis, destination: &destination, major: Some(major) }
        .queue("queue 'q'", &seen);
    diagnosis.findings
}

fn codes(findings: &[Finding]) -> Vec<(Severity, &'static str)> {
    findings.iter().map(|finding| (finding.severity, finding.code)).collect()
}

const QUORUM: (&str, &str) = ("x-queue-type", "quorum");

/// What is found of a quorum queue beyond that it has no dead letter.
fn of_quorum(address: &str, major: u64, arguments: &[(&str, AMQPValue)]) -> Vec<(Severity, &'static str)> {
    let mut all = vec![(QUORUM.0, text(QUORUM.1))];
    all.extend(arguments.iter().cloned());
    let mut codes = codes(&found(address, major, &all));
    codes.retain(|(_, code)| *code != "no-dead-letter");
    codes
}

#[test]
fn a_queue_that_create_makes_is_well() {
    use Severity::{Note, Warning};
    let limit = ("x-delivery-limit", AMQPValue::LongLongInt(NO_DELIVERY_LIMIT));
    for major in [3, 4] {
        let made = [(QUORUM.0, text(QUORUM.1)), limit.clone()];
        assert_eq!(codes(&found("amqp://h/?queue=q", major, &made)), [(Note, "no-dead-letter")]);
        assert_eq!(
            codes(&found("amqp://h/?queue=q&dead_letter=d", major, &made)),
            [(Warning, "no-dead-letter")]
        );
        let all = [
            (QUORUM.0, text(QUORUM.1)),
            limit.clone(),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text("d")),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
            ("x-max-length", ONE),
        ];
        assert_eq!(codes(&found("amqp://h/?queue=q&dead_letter=d", major, &all)), []);
    }
}

#[test]
fn the_delivery_limit_that_rabbitmq_4_has_by_itself_is_found() {
    let lost = (Severity::Error, "delivery-limit-without-dead-letter");
    assert_eq!(of_quorum("amqp://h/?queue=q", 3, &[]), []);
    assert_eq!(of_quorum("amqp://h/?queue=q", 4, &[]), [lost]);
    assert_eq!(of_quorum("amqp://h/?queue=q", 3, &[("x-delivery-limit", ONE)]), [lost]);
    let kept = [("x-delivery-limit", ONE), ("x-dead-letter-exchange", text("x"))];
    assert_eq!(of_quorum("amqp://h/?queue=q", 4, &kept), [(Severity::Warning, "dead-letter-at-most-once")]);
    let findings = found("amqp://h/?queue=q", 4, &[(QUORUM.0, text(QUORUM.1))]);
    assert!(findings[0].what.contains("after 20 returns") && findings[0].what.contains("policy"));
    let commands = &findings[0].remedy.commands;
    assert_eq!(commands[1], "throughline create 'amqp://h/?queue=q&dead_letter=q.dead'");
}

#[test]
fn what_drops_messages_is_worse_without_a_dead_letter() {
    use Severity::{Error, Note, Warning};
    let dead = ("x-dead-letter-exchange", text("x"));
    let at_most_once = (Warning, "dead-letter-at-most-once");
    for name in ["x-max-length", "x-max-length-bytes"] {
        assert_eq!(of_quorum("amqp://h/?queue=q", 3, &[(name, ONE)]), [(Error, "drops-oldest")]);
        assert_eq!(
            of_quorum("amqp://h/?queue=q", 3, &[(name, ONE), dead.clone()]),
            [(Warning, "drops-oldest"), at_most_once]
        );
    }
    let ttl = ("x-message-ttl", AMQPValue::LongLongInt(90_000));
    assert_eq!(of_quorum("amqp://h/?queue=q", 3, from_ref(&ttl)), [(Warning, "message-ttl")]);
    assert_eq!(of_quorum("amqp://h/?queue=q&message_ttl=90s", 3, from_ref(&ttl)), [(Note, "message-ttl")]);
    assert_eq!(
        of_quorum("amqp://h/?queue=q", 3, &[ttl.clone(), dead]),
        [(Note, "message-ttl"), at_most_once]
    );
    assert!(found("amqp://h/?queue=q", 3, &[ttl])[1].what.contains("1m 30s"));
    assert_eq!(of_quorum("amqp://h/?queue=q", 3, &[("x-expires", ONE)]), [(Warning, "queue-expires")]);
}

#[test]
fn a_strategy_without_effect_is_found() {
    let arguments = [
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("d")),
        ("x-dead-letter-strategy", text("at-least-once")),
    ];
    let mut all = vec![(QUORUM.0, text(QUORUM.1))];
    all.extend(arguments);
    let findings = found("amqp://h/?queue=q", 3, &all);
    assert_eq!(codes(&findings), [(Severity::Warning, "dead-letter-at-most-once")]);
    assert!(findings[0].what.contains("has no effect"));
    // The remedy keeps the place that the queue has.
    assert!(findings[0].remedy.commands[1].ends_with("dead_letter=d'"), "{findings:?}");
}

#[test]
fn names_cannot_break_out_of_the_commands() {
    let findings = found("amqp://h/?queue=q'%24(rm)", 3, &[]);
    for command in findings.iter().flat_map(|finding| &finding.remedy.commands) {
        assert!(command.contains(r"q'\''$(rm)"), "{command}");
    }
    assert!(!findings.is_empty());
}
