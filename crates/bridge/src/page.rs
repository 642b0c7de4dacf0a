//! The report as one HTML file that needs nothing else: no network, no fonts, no script.

use std::fmt::{self, Write as _};
use std::time::Duration;

use throughline_waterfall::html::Escaped;

use crate::report::{End, Report};
use crate::verify::{Evidence, Found, Verification};

const STYLE: &str = include_str!("page.css");

/// The report as a page. Readable on light and dark screens, and on paper. Nothing in a report can become markup: ids,
/// reasons and addresses are escaped, whoever wrote them.
pub(crate) fn page(report: &Report) -> String {
    let mut page = Page(String::new());
    page.document(report);
    page.0
}

/// How a number is to be taken.
#[derive(Clone, Copy)]
enum Mood {
    Plain,
    /// Good when it is zero, and to be looked at when not.
    Warn,
    /// Good when it is zero, and bad when not.
    Bad,
}

impl Mood {
    fn class(self, count: u64) -> &'static str {
        match (self, count) {
            (Self::Plain, _) | (_, 0) => "",
            (Self::Warn, _) => "warn",
            (Self::Bad, _) => "bad",
        }
    }
}

struct Page(String);

impl Page {
    // Writing to a string cannot fail.
    fn put(&mut self, text: fmt::Arguments<'_>) {
        let _ = self.0.write_fmt(text);
    }

    fn document(&mut self, report: &Report) {
        let (from, to) = (Escaped(&report.from), Escaped(&report.to));
        self.put(format_args!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>Bridge: {from} → {to}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>Bridge</h1>\n\
             <p><code>{from}</code> → <code>{to}</code></p>\n"
        ));
        let took = humantime::format_duration(Duration::from_millis(
            u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX),
        ));
        self.put(format_args!("<p class=\"muted\">{}, {took}</p>\n", report.began));
        let class = if report.is_success() { "good" } else { "bad" };
        self.put(format_args!("<p class=\"end {class}\">{}</p>\n", Escaped(&ending(report))));
        let totals = &report.totals;
        self.tiles(&[
            ("moved", totals.moved, Mood::Plain),
            ("rejected", totals.rejected, Mood::Warn),
            ("moved before", totals.already_moved, Mood::Plain),
            ("messages a second", report.rate().round() as u64, Mood::Plain),
            ("bytes", totals.bytes, Mood::Plain),
        ]);
        self.numbers(
            "What to know",
            &[
                (
                    "possible duplicates: sent again after a send of unknown outcome",
                    totals.sent_again,
                    Mood::Warn,
                ),
                (
                    "copies: like another in id and content, as the source held them or gave them again",
                    totals.copies,
                    Mood::Warn,
                ),
                ("recognised by the sink as sent before", totals.deduplicated, Mood::Plain),
                ("not taken by the filter, and acked", totals.skipped, Mood::Plain),
                ("not taken by the filter, and given back", report.left, Mood::Plain),
                ("expired before they could be moved", report.expired, Mood::Warn),
                ("moved, and the source did not take the ack", report.unacked, Mood::Warn),
                ("earlier runs with this ledger", report.earlier_runs, Mood::Plain),
                ("moved by these", report.earlier.moved, Mood::Plain),
                ("earlier runs that were killed", report.killed_runs, Mood::Warn),
                (
                    "in flight then at most: so many may be in the sink twice",
                    report.killed_in_flight,
                    Mood::Warn,
                ),
                ("left in the source, when it was last asked", report.depth.unwrap_or(0), Mood::Plain),
            ],
        );
        self.verification(report.verification.as_ref());
        self.rejected(report);
        for warning in &report.warnings {
            self.put(format_args!("<p class=\"end warn\">{}</p>\n", Escaped(warning)));
        }
        self.put(format_args!("</body>\n</html>\n"));
    }

    fn tiles(&mut self, tiles: &[(&str, u64, Mood)]) {
        self.put(format_args!("<dl>\n"));
        for (label, count, mood) in tiles {
            let class = mood.class(*count);
            self.put(format_args!(
                "<div><dt>{label}</dt><dd class=\"{class}\">{}</dd></div>\n",
                Grouped(*count)
            ));
        }
        self.put(format_args!("</dl>\n"));
    }

    /// What is zero is left out, unless all is.
    fn numbers(&mut self, title: &str, rows: &[(&str, u64, Mood)]) {
        let shown: Vec<_> = rows.iter().filter(|(_, count, _)| *count > 0).collect();
        if shown.is_empty() {
            return;
        }
        self.put(format_args!("<h2>{title}</h2>\n<div class=\"wide\"><table>\n"));
        for (label, count, mood) in shown {
            let class = mood.class(*count);
            self.put(format_args!(
                "<tr><td>{label}</td><td class=\"number {class}\">{}</td></tr>\n",
                Grouped(*count)
            ));
        }
        self.put(format_args!("</table></div>\n"));
    }

    fn verification(&mut self, verification: Option<&Verification>) {
        self.put(format_args!("<h2>Verification</h2>\n"));
        let Some(verification) = verification else {
            self.put(format_args!(
                "<p class=\"muted\">Not asked for: the sink has confirmed each message, and none was read back.</p>\n"
            ));
            return;
        };
        let class = match (&verification.evidence, verification.is_clean()) {
            (_, false) => "bad",
            (Evidence::ReadBack { cut: false, .. }, true) => "good",
            _ => "warn",
        };
        self.put(format_args!("<p class=\"end {class}\">{}</p>\n", Escaped(&verification.summary())));
        let source = &verification.source;
        if let (Some(held), Some(unaccounted)) = (source.held, source.unaccounted) {
            self.tiles(&[
                ("held by the source", held, Mood::Plain),
                ("not accounted for", unaccounted, Mood::Bad),
            ]);
        }
        let Some(found) = &verification.found else { return };
        self.tiles(&[
            ("should be there", verification.expected, Mood::Plain),
            ("there as sent", found.same, Mood::Plain),
            ("missing", found.missing.unwrap_or(0), Mood::Bad),
            ("changed", found.changed.count, Mood::Bad),
            ("duplicates", found.duplicates, Mood::Warn),
            ("reordered", found.reordered.unwrap_or(0), Mood::Bad),
            ("of somebody else", found.others, Mood::Plain),
        ]);
        let changed: Vec<_> = found.changed.examples.iter().map(|message| message.id.clone()).collect();
        for (label, ids) in [
            ("Not accounted for", &verification.source.unaccounted_ids),
            ("Missing", &found.missing_ids),
            ("Changed", &changed),
            ("Out of order", &found.reordered_ids),
            ("Duplicates", &found.duplicate_ids),
        ] {
            if !ids.is_empty() {
                self.put(format_args!("<p>{label}, such as"));
                for id in ids {
                    self.put(format_args!(" <code>{}</code>", Escaped(id)));
                }
                self.put(format_args!("</p>\n"));
            }
        }
        self.changed(found);
    }

    fn changed(&mut self, found: &Found) {
        if found.changed.parts.is_empty() {
            return;
        }
        self.put(format_args!("<h2>Changed</h2>\n<div class=\"wide\"><table>\n"));
        for (part, count) in &found.changed.parts {
            self.put(format_args!(
                "<tr><td>{}</td><td class=\"number bad\">{}</td></tr>\n",
                Escaped(part),
                Grouped(*count)
            ));
        }
        self.put(format_args!("</table></div>\n"));
    }

    fn rejected(&mut self, report: &Report) {
        if report.rejected.is_empty() {
            return;
        }
        let to = report.reject.as_deref().unwrap_or_default();
        self.put(format_args!(
            "<h2>Rejected</h2>\n<p class=\"muted\">As they came, with the reason, at <code>{}</code></p>\n\
             <div class=\"wide\"><table>\n<tr><th>id</th><th>type</th><th>class</th><th>reason</th></tr>\n",
            Escaped(to)
        ));
        for rejected in &report.rejected {
            let message_type = rejected.message_type.as_deref().unwrap_or_default();
            self.put(format_args!(
                "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                Escaped(&rejected.id),
                Escaped(message_type),
                Escaped(&rejected.class),
                Escaped(&rejected.reason)
            ));
        }
        self.put(format_args!("</table></div>\n"));
    }
}

/// How a run ended, as a sentence.
fn ending(report: &Report) -> String {
    match &report.end {
        End::Empty { approximate: false } if report.depth.unwrap_or(0) > report.left => {
            "All is moved that was there when it began; more has come since.".to_owned()
        }
        End::Empty { approximate: false } => "The source is empty.".to_owned(),
        End::Empty { approximate: true } => "The source is empty, as far as its broker can tell.".to_owned(),
        End::Max => "As many were moved as was asked for.".to_owned(),
        End::Stopped => "Stopped when asked to; what was on its way is done.".to_owned(),
        End::Refused { id, error, .. } => {
            format!("Stopped: the sink does not take message '{id}', which is still in the source: {error}")
        }
        End::Full => "Stopped: as many messages are held as may be that the filter does not take.".to_owned(),
        End::Starved { ready } => {
            format!("Stopped: the source says that it holds {ready} messages, and gives none.")
        }
        End::Failed { error } => format!("Failed: {error}"),
    }
}

/// A number with a separator every three digits.
struct Grouped(u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.char_indices() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}
