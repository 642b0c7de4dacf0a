//! The words around the waterfall: what plays, and what one sees.

use std::time::Duration;

use throughline::Address;
use throughline_waterfall::{Kind, Row, STAND_IN, millis};

use super::scenario::WORKER_LATE;
use crate::output::{BOLD, CYAN, DIM, Paint};

/// What plays.
pub(super) fn before(address: &Address, trace: &str, width: usize, paint: Paint) -> String {
    let mut text = format!(
        "{}\n\n{}\n",
        paint.apply(BOLD, "Throughline demo: one request, one trace, through a queue"),
        wrapped(
            "A client asks an API over HTTP to sync a report; the API publishes a message; a worker reads a \
             database and calls an ads API, which is down at first; the message is retried, and succeeds.",
            width
        )
    );
    text.push_str(&format!("{}  {address}\n", paint.apply(DIM, "via  ")));
    text.push_str(&format!("{}  {}\n\n", paint.apply(DIM, "trace"), paint.apply(CYAN, trace)));
    text
}

/// What one sees.
pub(super) fn after(
    rows: &[Row<'_>],
    others: usize,
    address: &Address,
    width: usize,
    paint: Paint,
) -> String {
    let spans = || rows.iter().map(|row| row.span);
    let begin = spans().map(|span| span.start).min();
    let end = spans().map(|span| span.end).max();
    let total = begin.zip(end).and_then(|(begin, end)| end.duration_since(begin).ok()).unwrap_or_default();
    let queued: Duration = spans().filter(|span| span.is_queue_delay()).map(|span| span.duration()).sum();
    let put_off: Duration =
        spans().filter_map(|span| span.attributes.seconds("throughline.retry.delay")).sum();
    let attempts: Vec<_> = spans().filter(|span| span.kind == Kind::Consumer).collect();
    let mut text = String::from("\n");
    let sums = format!(
        "One trace of {} spans, from the HTTP request to the ack: {} in all, of which {} in the queue (the worker \
         starts {} ms late, to show it) and {} put off until the retry.",
        rows.len(),
        millis(total),
        millis(queued),
        WORKER_LATE.as_millis(),
        millis(put_off)
    );
    text.push_str(&wrapped(&sums, width));
    for (index, attempt) in attempts.iter().enumerate() {
        let line = match attempt.failed() {
            Some(why) => format!("Attempt {} failed: {why}.", index + 1),
            None => format!("Attempt {} succeeded, and the message was acknowledged.", index + 1),
        };
        text.push_str(&wrapped(&line, width));
    }
    let mut small = Vec::new();
    if spans().any(|span| span.attributes.get(STAND_IN).is_some()) {
        small.push("HTTP and the queue are real; what is marked (stand-in) only plays its part.".to_owned());
    }
    if others > 0 {
        let (what, are) = if others == 1 { ("span", "is a trace") } else { ("spans", "are traces") };
        small.push(format!(
            "Not drawn: {others} receive {what}, which {are} of their own, linked to this one."
        ));
    }
    if address.scheme() == "memory" {
        small.push("Through a broker: throughline demo --via amqp://guest:guest@localhost/%2f".to_owned());
    }
    small.push(
        "As JSON: --json. As a page: --html FILE. To a collector: OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318".to_owned(),
    );
    text.push('\n');
    for line in
        small.iter().flat_map(|line| wrapped(line, width).lines().map(str::to_owned).collect::<Vec<_>>())
    {
        text.push_str(&format!("{}\n", paint.apply(DIM, line)));
    }
    text
}

/// A paragraph in lines of at most `width` columns, and never more than reads well.
fn wrapped(text: &str, width: usize) -> String {
    let width = width.min(100);
    let (mut lines, mut column) = (String::new(), 0);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            lines.push('\n');
            column = 0;
        }
        if column > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn wraps_between_words_only() {
        assert_eq!(wrapped("aa bb  cc", 5), "aa bb\ncc\n");
        assert_eq!(wrapped("a-word-too-long b", 5), "a-word-too-long\nb\n");
        assert_eq!(wrapped("", 5), "\n");
    }
}
