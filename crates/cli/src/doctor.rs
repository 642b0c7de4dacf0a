//! `doctor`: what is there, and what is wrong with it.

use std::fmt::Write;

use anstyle::Style;
use throughline::diagnosis::{Diagnosis, Finding, Remedy, Server, Severity, Unchecked};
use throughline::{Capabilities, DiagnoseOptions};

use crate::admin::closing;
use crate::args::DoctorArgs;
use crate::bus::connect;
use crate::failure::{Exit, Failure};
use crate::output::{self, BOLD, CYAN, DIM, GREEN, Paint, RED, YELLOW, visible};

pub(crate) async fn run(args: &DoctorArgs, paint: Paint) -> Result<Exit, Failure> {
    let bus = connect(&args.url, "doctor").await?;
    let diagnosis = bus.diagnose("", &DiagnoseOptions { handler: args.handler }).await;
    let diagnosis = closing(&bus, diagnosis).await?;
    let text = if args.json { crate::message::json_line(&diagnosis)? } else { for_people(&diagnosis, paint) };
    output::print(&text)?;
    Ok(exit(&diagnosis))
}

/// Warnings and notes are told, and fail nothing.
fn exit(diagnosis: &Diagnosis) -> Exit {
    match diagnosis.worst() {
        Some(Severity::Error) => Exit::Failed,
        Some(Severity::Warning | Severity::Note) | None => Exit::Ok,
    }
}

fn for_people(diagnosis: &Diagnosis, paint: Paint) -> String {
    let mut text = String::new();
    let Server { product, version } = &diagnosis.server;
    let server = match version {
        Some(version) => format!("{product} {version}"),
        None => format!("{product}; it does not tell its version"),
    };
    line(&mut text, "", &paint.apply(BOLD, visible(&diagnosis.address)));
    line(&mut text, "", &visible(&server));
    let mut subject = None;
    for fact in &diagnosis.facts {
        if subject != Some(&fact.subject) {
            subject = Some(&fact.subject);
            line(&mut text, "", &format!("\n{}", paint.apply(CYAN, visible(&fact.subject))));
        }
        row(&mut text, &fact.name, &fact.value.to_string(), paint);
    }
    capabilities(&mut text, diagnosis, paint);
    for finding in &diagnosis.findings {
        told(&mut text, finding, paint);
    }
    for unchecked in &diagnosis.unchecked {
        not_checked(&mut text, unchecked, paint);
    }
    line(&mut text, "", &format!("\n{}", summary(diagnosis, paint)));
    text
}

/// One table for both sides; where they differ, both.
fn capabilities(text: &mut String, diagnosis: &Diagnosis, paint: Paint) {
    let sides = [&diagnosis.publisher, &diagnosis.consumer];
    let mut rows = sides.iter().filter_map(|side| side.as_ref()).map(Capabilities::rows);
    let Some(first) = rows.next() else { return };
    let second = rows.next();
    line(text, "", &format!("\n{}", paint.apply(CYAN, "capabilities")));
    for (index, (label, value)) in first.into_iter().enumerate() {
        let other = second.as_ref().and_then(|rows| rows.get(index)).filter(|(_, other)| *other != value);
        let shown = match other {
            Some((_, consuming)) => format!("publishing {value}, consuming {consuming}"),
            None => value,
        };
        row(text, &label.replace('`', ""), &shown, paint);
    }
}

fn told(text: &mut String, finding: &Finding, paint: Paint) {
    let label = paint.apply(style(finding.severity), finding.severity);
    let head = format!("{}: {}", finding.subject, finding.what);
    line(text, "", &format!("\n{label}: {}", visible(&head)));
    detail(text, "code", finding.code, paint);
    detail(text, "why", &finding.why, paint);
    remedy(text, &finding.remedy, paint);
}

fn not_checked(text: &mut String, unchecked: &Unchecked, paint: Paint) {
    let label = paint.apply(BOLD, "not checked");
    line(text, "", &format!("\n{label}: {}", visible(&unchecked.what)));
    detail(text, "why", &unchecked.why, paint);
    if !unchecked.remedy.is_empty() {
        detail(text, "remedy", &unchecked.remedy, paint);
    }
}

fn remedy(text: &mut String, remedy: &Remedy, paint: Paint) {
    detail(text, "remedy", &remedy.text, paint);
    for command in &remedy.commands {
        line(text, "    ", &visible(command));
    }
}

fn summary(diagnosis: &Diagnosis, paint: Paint) -> String {
    let count = |severity| diagnosis.findings.iter().filter(|finding| finding.severity == severity).count();
    let mut parts: Vec<_> = [Severity::Error, Severity::Warning, Severity::Note]
        .into_iter()
        .map(|severity| (severity, count(severity)))
        .filter(|(_, count)| *count > 0)
        .map(|(severity, count)| {
            let plural = if count == 1 { "" } else { "s" };
            paint.apply(style(severity), format_args!("{count} {severity}{plural}"))
        })
        .collect();
    if parts.is_empty() {
        parts.push(paint.apply(GREEN, "nothing wrong was found"));
    }
    match diagnosis.unchecked.len() {
        0 => {}
        1 => parts.push("1 check could not be made".into()),
        unchecked => parts.push(format!("{unchecked} checks could not be made")),
    }
    parts.join(", ")
}

fn style(severity: Severity) -> Style {
    match severity {
        Severity::Error => RED,
        Severity::Warning => YELLOW.bold(),
        Severity::Note => BOLD,
    }
}

fn row(text: &mut String, name: &str, value: &str, paint: Paint) {
    let name = format!("{:<30}", visible(name));
    line(text, "  ", &format!("{} {}", paint.apply(DIM, name), visible(value)));
}

fn detail(text: &mut String, label: &str, value: &str, paint: Paint) {
    line(text, "  ", &format!("{} {}", paint.apply(DIM, format_args!("{label}:")), visible(value)));
}

fn line(text: &mut String, indent: &str, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{indent}{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use throughline::Address;
    use throughline::capabilities;
    use throughline::diagnosis::Server;

    fn diagnosis(severities: &[Severity]) -> Diagnosis {
        let address: Address = "amqp://guest:hunter2@h/?queue=q".parse().unwrap();
        let server = Server { product: "RabbitMQ".into(), version: Some("4.1.0".into()) };
        let mut diagnosis = Diagnosis::new(&address, server);
        diagnosis.fact("queue 'q'", "ready", 3);
        diagnosis.fact("queue 'q'", "durable", true);
        for severity in severities {
            diagnosis.findings.push(Finding {
                severity: *severity,
                code: "queue-classic",
                subject: "queue 'q'".into(),
                what: "it is a classic queue".into(),
                why: "it lives on one node".into(),
                remedy: Remedy::text("make it anew").command("one").command("two"),
            });
        }
        diagnosis
    }

    #[test]
    fn only_an_error_fails() {
        use Severity::{Error, Note, Warning};
        for (found, expected) in [
            (&[][..], Exit::Ok),
            (&[Note], Exit::Ok),
            (&[Warning, Note], Exit::Ok),
            (&[Note, Error, Warning], Exit::Failed),
        ] {
            assert_eq!(exit(&diagnosis(found)), expected, "{found:?}");
        }
    }

    #[test]
    fn people_see_the_remedy_to_paste() {
        let mut found = diagnosis(&[Severity::Error, Severity::Note, Severity::Note]);
        found.unchecked("policies", "AMQP does not show them", "rabbitmqctl list_policies");
        let text = for_people(&found, Paint::OFF);
        let start =
            "amqp://***@h/?queue=q\nRabbitMQ 4.1.0\n\nqueue 'q'\n  ready                          3\n";
        assert!(text.starts_with(start), "{text}");
        let error = "\nerror: queue 'q': it is a classic queue\n  code: queue-classic\n  why: it lives on one node\n  \
                     remedy: make it anew\n    one\n    two\n";
        assert!(text.contains(error), "{text}");
        assert!(text.contains("\nnot checked: policies\n  why: AMQP does not show them\n"), "{text}");
        assert!(text.ends_with("\n1 error, 2 notes, 1 check could not be made\n"), "{text}");
        assert!(for_people(&diagnosis(&[]), Paint::OFF).ends_with("\nnothing wrong was found\n"));
    }

    #[test]
    fn both_sides_share_a_table_that_shows_where_they_differ() {
        let mut found = diagnosis(&[]);
        assert!(!for_people(&found, Paint::OFF).contains("capabilities"));
        let mut publisher = capabilities::RABBITMQ;
        publisher.limits.header_bytes = Some(4088);
        found.publisher = Some(publisher);
        found.consumer = Some(capabilities::RABBITMQ);
        let text = for_people(&found, Paint::OFF);
        assert!(text.contains("publishing 4088 B, consuming 131064 B\n"), "{text}");
        assert_eq!(text.matches("consuming").count(), 1, "{text}");
    }

    #[test]
    fn nothing_can_steer_the_terminal_and_colour_is_only_where_wanted() {
        let mut found = diagnosis(&[Severity::Error]);
        for text in [&mut found.findings[0].subject, &mut found.server.product] {
            *text = "\u{1b}[2J".into();
        }
        found.fact("\u{1b}]0;x", "\u{7}", "\u{1b}");
        found.unchecked("\u{1b}", "\u{1b}", "\u{1b}");
        let text = for_people(&found, Paint::OFF);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(for_people(&diagnosis(&[Severity::Error]), Paint::ON).contains("\u{1b}[31m"));
    }
}
