//! The waterfall as one HTML file that needs nothing else: no network, no fonts, and its script only opens and closes.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use serde_json::Value as Json;

use crate::span::{Kind, Span, millis, one_line, since};
use crate::tree::Row;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// How many parts the axis of time has, about.
const PARTS: f64 = 6.0;

/// A page with the waterfall of one trace: a row a span, whose times, attributes and links a click opens. `facts` are shown
/// above it, a name and a text each; what the trace itself tells (its id, how long it took) need not be among them. Readable
/// on light and dark screens, and on paper.
///
/// Nothing in a span can become markup: names, attributes and messages are escaped, whoever wrote them.
pub fn page(title: &str, facts: &[(&str, String)], rows: &[Row<'_>]) -> String {
    let mut page = Page(String::new());
    page.document(title, facts, rows);
    page.0
}

/// Text as it may stand in markup and in a quoted attribute, whoever wrote it.
///
/// ```
/// use throughline_waterfall::html::Escaped;
/// assert_eq!(Escaped("<b> & \u{7}").to_string(), "&lt;b&gt; &amp; \\u{7}");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // HTML has no way to write the others.
                c if c.is_control() && c != '\n' && c != '\t' => write!(f, "{}", c.escape_default())?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// From when until when the picture goes.
struct Scale {
    begin: SystemTime,
    total: Duration,
}

impl Scale {
    fn of(rows: &[Row<'_>]) -> Self {
        let begin = rows.iter().map(|row| row.span.start).min().unwrap_or(SystemTime::UNIX_EPOCH);
        let end = rows.iter().map(|row| row.span.end).max().unwrap_or(begin);
        Self { begin, total: since(end, begin) }
    }

    /// Where a time after the beginning is, in per cent.
    fn percent(&self, after: Duration) -> f64 {
        let share = after.as_secs_f64() / self.total.as_secs_f64().max(f64::MIN_POSITIVE);
        share.clamp(0.0, 1.0) * 100.0
    }

    /// Where the axis has its marks: a round step of 1, 2 or 5 times a power of ten.
    fn marks(&self) -> Vec<Duration> {
        let total = self.total.as_secs_f64();
        if total <= 0.0 {
            return vec![Duration::ZERO];
        }
        let rough = total / PARTS;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        (0..100_u32)
            .map(|n| f64::from(n) * step)
            // The end has its own mark, and needs room for it.
            .take_while(|at| *at <= total - step * 0.6)
            .filter_map(|at| Duration::try_from_secs_f64(at).ok())
            .chain([self.total])
            .collect()
    }
}

struct Page(String);

impl Page {
    /// Writing to a string cannot fail.
    fn put(&mut self, text: fmt::Arguments<'_>) {
        let _ = self.0.write_fmt(text);
    }

    fn document(&mut self, title: &str, facts: &[(&str, String)], rows: &[Row<'_>]) {
        let scale = Scale::of(rows);
        let title = Escaped(title);
        self.put(format_args!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n<dl class=\"facts\">\n"
        ));
        for (name, text) in facts {
            self.fact(name, text);
        }
        if let Some(row) = rows.first() {
            self.fact("Trace", &row.span.trace_id);
            self.fact("Began", &humantime::format_rfc3339_millis(scale.begin).to_string());
            self.fact("Took", &millis(scale.total));
            let failed = rows.iter().filter(|row| row.span.failed().is_some()).count();
            self.fact("Spans", &format!("{}, of which {failed} failed", rows.len()));
        }
        self.put(format_args!(
            "</dl>\n<p class=\"legend\"><span class=\"server\">server</span><span class=\"client\">client</span>\
             <span class=\"producer\">producer</span><span class=\"consumer\">consumer</span>\
             <span class=\"internal\">internal</span><span class=\"queued\">in the queue</span>\
             <span class=\"off\">put off until the retry</span><span class=\"failed\">failed</span>\
             <button type=\"button\" id=\"all\" hidden>Open all</button></p>\n</header>\n<main>\n"
        ));
        self.axis(&scale);
        for row in rows {
            self.row(row, rows, &scale);
        }
        self.put(format_args!("</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"));
    }

    fn fact(&mut self, name: &str, text: &str) {
        self.put(format_args!("<div><dt>{}</dt><dd>{}</dd></div>\n", Escaped(name), Escaped(text)));
    }

    fn axis(&mut self, scale: &Scale) {
        self.put(format_args!(
            "<div class=\"axis\"><span class=\"name\">Span</span><span class=\"time\">Start</span>\
             <span class=\"time\">Took</span><span class=\"lane\">"
        ));
        let marks = scale.marks();
        for (index, mark) in marks.iter().enumerate() {
            let class = if index + 1 == marks.len() && index > 0 { " class=\"last\"" } else { "" };
            self.put(format_args!(
                "<i{class} style=\"left:{:.3}%\">{}</i>",
                scale.percent(*mark),
                millis(*mark).replace(".0 ", " ")
            ));
        }
        self.put(format_args!("</span></div>\n"));
    }

    fn row(&mut self, row: &Row<'_>, rows: &[Row<'_>], scale: &Scale) {
        let span = row.span;
        let class = match span.kind {
            _ if span.is_queue_delay() => "queued",
            kind => kind.name(),
        };
        let failed = if span.failed().is_some() { " failed" } else { "" };
        let (start, end) = (since(span.start, scale.begin), since(span.end, scale.begin));
        let (from, to) = (scale.percent(start), scale.percent(end));
        let label = span.label();
        self.put(format_args!(
            "<details id=\"{}\" class=\"{class}{failed}\">\n<summary><span class=\"name\" style=\"--depth:{}\"><b>{}</b>",
            Escaped(&anchor(&span.trace_id, &span.span_id)),
            row.depth(rows),
            Escaped(&label)
        ));
        for note in notes(span) {
            self.put(format_args!("<small>{}</small>", Escaped(&note)));
        }
        self.put(format_args!(
            "</span><span class=\"time\">{}</span><span class=\"time\">{}</span><span class=\"lane\">\
             <i class=\"bar\" style=\"left:{from:.3}%;width:{:.3}%\"></i>",
            millis(start),
            millis(span.duration()),
            to - from
        ));
        // What is put off beyond the last span is not drawn.
        if let Some(until) =
            span.put_off().map(|delay| scale.percent(end + delay)).filter(|until| *until > to)
        {
            self.put(format_args!("<i class=\"off\" style=\"left:{to:.3}%;width:{:.3}%\"></i>", until - to));
        }
        self.put(format_args!("</span></summary>\n<dl>\n"));
        if let Some(message) = span.failed() {
            self.fact("failed", message);
        }
        self.fact("kind", span.kind.name());
        self.fact("from, until", &format!("{}, {}", millis(start), millis(end)));
        for (name, value) in span.attributes.iter() {
            self.fact(name, &shown(value));
        }
        for link in &span.links {
            let anchor = anchor(&link.trace_id, &link.span_id);
            let target = rows.iter().find(|row| row.span.span_id == link.span_id);
            self.put(format_args!("<div><dt>link</dt><dd>"));
            if let Some(target) = target {
                let label = target.span.label();
                self.put(format_args!("<a href=\"#{}\">{}</a>", Escaped(&anchor), Escaped(&label)));
            } else {
                let (span, trace) = (Escaped(&link.span_id), Escaped(&link.trace_id));
                self.put(format_args!("{span} of trace {trace}"));
            }
            self.put(format_args!("</dd></div>\n"));
        }
        self.fact("span", &span.span_id);
        self.put(format_args!("</dl>\n</details>\n"));
    }
}

fn anchor(trace: &str, span: &str) -> String {
    format!("{trace}-{span}")
}

/// What is worth a word without a click.
fn notes(span: &Span) -> Vec<String> {
    let get = |name| span.attributes.get(name).map(shown);
    let mut notes = Vec::new();
    if span.kind == Kind::Consumer {
        notes.extend(get("throughline.attempt").map(|attempt| format!("attempt {attempt}")));
    }
    if let Some(delay) = span.put_off() {
        let reason = get("throughline.retry.reason").map(|reason| format!(": {reason}")).unwrap_or_default();
        notes.push(format!("again in {}{reason}", millis(delay)));
    }
    let dependency =
        get("throughline.dead_letter.dependency").or_else(|| get("throughline.dead_letter.reason"));
    notes.extend(dependency.map(|what| {
        let attempts = get("throughline.dead_letter.attempts");
        let times = attempts.map(|attempts| format!(", attempt {attempts}")).unwrap_or_default();
        format!("dead letter: {what}{times}")
    }));
    notes.extend(span.failed().filter(|message| !message.is_empty()).map(one_line));
    notes
}

fn shown(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use opentelemetry::KeyValue;

    use super::*;
    use crate::span::{Attributes, Link, Outcome};
    use crate::tree::rows;

    fn span(id: &str, parent: Option<&str>, name: &str, from: u64, to: u64) -> Span {
        let at = |millis| UNIX_EPOCH + Duration::from_millis(1_000_000 + millis);
        Span {
            trace_id: "t".into(),
            span_id: id.into(),
            parent_span_id: parent.map(Into::into),
            name: name.into(),
            kind: Kind::Client,
            start: at(from),
            end: at(to),
            status: Outcome::Unset,
            attributes: Attributes::default(),
            links: Vec::new(),
        }
    }

    fn attributes(of: &[KeyValue]) -> Attributes {
        of.iter().collect()
    }

    #[test]
    fn each_span_is_a_row_at_its_time_with_what_it_says() {
        let root = span("1", None, "POST /sync", 0, 200);
        let mut failed = span("2", Some("1"), "campaign.sync_report", 50, 100);
        failed.kind = Kind::Consumer;
        failed.status = Outcome::Error { message: "down".into() };
        failed.attributes = attributes(&[KeyValue::new("throughline.attempt", 1)]);
        failed.links = vec![
            Link { trace_id: "t".into(), span_id: "1".into(), attributes: Attributes::default() },
            Link { trace_id: "u".into(), span_id: "9".into(), attributes: Attributes::default() },
        ];
        let mut retry = span("3", Some("2"), "retry", 90, 100);
        retry.attributes = attributes(&[
            KeyValue::new("throughline.retry.delay", 0.05),
            KeyValue::new("throughline.retry.reason", "http_503"),
        ]);
        let spans = [root, failed, retry];
        let page = page("A trace", &[("Via", "memory:x".into())], &rows(&spans));
        for expected in [
            "<title>A trace</title>",
            "<dt>Via</dt><dd>memory:x</dd>",
            "<dt>Trace</dt><dd>t</dd>",
            "<dt>Took</dt><dd>200.0 ms</dd>",
            "<dt>Spans</dt><dd>3, of which 1 failed</dd>",
            "<details id=\"t-2\" class=\"consumer failed\">",
            "--depth:1\"><b>✗ campaign.sync_report</b><small>attempt 1</small><small>down</small>",
            "style=\"left:25.000%;width:25.000%\"",
            "<small>again in 50.0 ms: http_503</small>",
            "<i class=\"off\" style=\"left:50.000%;width:25.000%\">",
            "<dt>throughline.attempt</dt><dd>1</dd>",
            "<a href=\"#t-1\">POST /sync</a>",
            "9 of trace u",
        ] {
            assert!(page.contains(expected), "{expected} is not in\n{page}");
        }
        assert!(!page.contains("http://") && !page.contains("https://"), "it needs nothing else");
    }

    #[test]
    fn nothing_in_a_span_becomes_markup() {
        let evil = "\"'><script>alert(1)</script>&\u{1b}\u{0}";
        let mut span = span("1", None, evil, 0, 1);
        span.status = Outcome::Error { message: evil.into() };
        span.attributes = attributes(&[KeyValue::new(evil, evil)]);
        span.links =
            vec![Link { trace_id: evil.into(), span_id: evil.into(), attributes: Attributes::default() }];
        span.trace_id = evil.into();
        span.span_id = evil.into();
        let page = page(evil, &[(evil, evil.into())], &rows(&[span]));
        let body = page.split_once("</head>").unwrap().1.rsplit_once("<script>").unwrap().0;
        assert!(!body.contains("<script") && !page.contains("\"'>"), "{body}");
        assert!(page.chars().all(|c| c == '\n' || !c.is_control()));
    }

    #[test]
    fn the_axis_has_round_marks_and_its_end() {
        let marks = |millis| {
            let scale = Scale { begin: UNIX_EPOCH, total: Duration::from_millis(millis) };
            scale.marks().iter().map(Duration::as_millis).collect::<Vec<_>>()
        };
        assert_eq!(marks(137), [0, 50, 100, 137]);
        assert_eq!(marks(100), [0, 20, 40, 60, 80, 100]);
        assert_eq!(marks(12_000), [0, 2000, 4000, 6000, 8000, 10_000, 12_000]);
        assert_eq!(marks(0), [0]);
        assert!(page("Nothing", &[], &[]).contains("<main>"));
    }
}
