//! `dlq`: what is in a dead-letter queue, why, and back to work with it.

mod explain;
mod filter;
mod redrive;

use std::fmt::Write;
use std::num::NonZeroUsize;

use serde_json::{Value, json};
use throughline::capabilities::Browse;
use throughline::driver::{Delivery, wire};
use throughline::{Bus, Failure as Attempt, HeaderValue};

use crate::admin::closing;
use crate::args::{DlqArgs, DlqCommand, DlqPurgeArgs, DlqReadArgs, DlqShowArgs};
use crate::bus::connect;
use crate::failure::{Exit, Failure};
use crate::message::{json_line, trace_id, visible_line};
use crate::output::{self, BOLD, Console, DIM, Paint, RED};

pub(crate) async fn run(args: &DlqArgs, console: &Console, paint: Paint) -> Result<Exit, Failure> {
    match &args.command {
        DlqCommand::List(args) => list(args, console, paint).await,
        DlqCommand::Show(args) => show(args, console, paint).await,
        DlqCommand::Explain(args) => {
            let letters = read(&args.url, args.max, console).await?;
            let text = explain::render(&letters, args.json, paint)?;
            output::print(&text).map(|()| Exit::Ok)
        }
        DlqCommand::Redrive(args) => redrive::run(args, console).await,
        DlqCommand::Purge(args) => purge(args).await,
    }
}

/// Reads dead letters without consuming them, and says where that disturbs.
async fn read(url: &str, max: NonZeroUsize, console: &Console) -> Result<Vec<Delivery>, Failure> {
    let bus = connect(url, "dlq").await?;
    let letters = browse(&bus, max, console).await;
    closing(&bus, Ok(())).await?;
    letters
}

async fn browse(bus: &Bus, max: NonZeroUsize, console: &Console) -> Result<Vec<Delivery>, Failure> {
    let capabilities = bus.capabilities();
    match capabilities.browse {
        Browse::Native => {}
        Browse::Disturbing => console.note(&format!(
            "{} has no way to look without taking: the messages were given back, and their delivery counts have risen",
            capabilities.transport
        )),
        Browse::No => {
            let text = format!("{} cannot show messages without consuming them", capabilities.transport);
            return Err(Failure::usage(text).hint("use `throughline consume --peek`"));
        }
    }
    let letters = bus.browse("", max).await?;
    if letters.len() == max.get() {
        console.note(&format!("only the first {max} were read; --max reads more"));
    }
    Ok(letters)
}

async fn list(args: &DlqReadArgs, console: &Console, paint: Paint) -> Result<Exit, Failure> {
    let letters = read(&args.url, args.max, console).await?;
    let mut text = String::new();
    for letter in &letters {
        if args.json {
            text.push_str(&json_line(&summary(letter))?);
        } else {
            text.push_str(&line(letter, paint));
        }
    }
    output::print(&text).map(|()| Exit::Ok)
}

async fn show(args: &DlqShowArgs, console: &Console, paint: Paint) -> Result<Exit, Failure> {
    let letters = read(&args.url, args.max, console).await?;
    let Some(letter) = letters.iter().find(|letter| letter.envelope.id == args.id) else {
        let text = format!("no message '{}' among the {} that were read", args.id, letters.len());
        return Err(
            Failure::new(Exit::NotFound, text).hint("`throughline dlq list` shows the ids; --max reads more")
        );
    };
    let text = if args.json {
        let mut object = summary(letter);
        let headers: Vec<_> =
            letter.envelope.headers.iter().map(|(name, value)| json!([name, shown(value)])).collect();
        if let Some(object) = object.as_object_mut() {
            object.insert("headers".to_owned(), Value::Array(headers));
            object.insert("payload".to_owned(), payload(letter).into());
        }
        json_line(&object)?
    } else {
        let mut text = line(letter, paint);
        text.push_str(&history(letter, paint));
        for (name, value) in letter.envelope.headers.iter() {
            let _ = writeln!(text, "  {}: {}", visible_line(name), visible_line(&shown(value)));
        }
        for line in output::visible(&payload(letter)).lines() {
            let _ = writeln!(text, "  {line}");
        }
        text
    };
    output::print(&text).map(|()| Exit::Ok)
}

async fn purge(args: &DlqPurgeArgs) -> Result<Exit, Failure> {
    if !args.yes {
        let text = "purge deletes every dead letter for good";
        return Err(Failure::usage(text).hint("look with `throughline dlq explain` first, then add --yes"));
    }
    let bus = connect(&args.url, "dlq").await?;
    let purged = bus.purge("").await;
    let purged = closing(&bus, purged).await?;
    let text =
        if args.json { json_line(&json!({ "purged": purged }))? } else { format!("purged {purged}\n") };
    output::print(&text).map(|()| Exit::Ok)
}

/// The last failure, where there is a history.
fn last(letter: &Delivery) -> Option<&Attempt> {
    letter.history.as_deref().and_then(|history| history.last())
}

/// What a broker's own header says of a dead letter: where it came from, and why.
fn detail(letter: &Delivery, wanted: &str) -> Option<String> {
    let details = letter.native.as_ref()?.details();
    let found = details.into_iter().find(|(name, _)| name == wanted)?;
    found.1.as_str().map(str::to_owned)
}

/// The class of error: of the history, else what the reason begins with.
fn error(letter: &Delivery) -> String {
    let reason = || detail(letter, wire::DEAD_LETTER_REASON);
    let class = last(letter).map(|last| last.error.clone()).or_else(reason);
    class.unwrap_or_else(|| "unknown".to_owned())
}

fn summary(letter: &Delivery) -> Value {
    let failures = letter.history.iter().flat_map(|history| history.failures()).map(attempt);
    json!({
        "id": letter.envelope.id,
        "type": letter.envelope.message_type,
        "source": detail(letter, wire::DEAD_LETTER_SOURCE),
        "attempts": letter.failed_attempts,
        "error": error(letter),
        "dependency": last(letter).and_then(|last| last.dependency.clone()),
        "failed_at": last(letter).map(|last| last.at.to_string()),
        "trace_id": trace_id(&letter.envelope.headers),
        "history": failures.collect::<Vec<_>>(),
        "history_partial": letter.history.as_deref().is_some_and(|history| history.is_partial()),
    })
}

fn attempt(failure: &Attempt) -> Value {
    json!({
        "attempt": failure.attempt,
        "at": failure.at.to_string(),
        "error": failure.error,
        "message": failure.message,
        "dependency": failure.dependency,
        "worker": failure.worker,
    })
}

fn line(letter: &Delivery, paint: Paint) -> String {
    let name = letter.envelope.message_type.as_deref().unwrap_or("(no type)");
    let why = last(letter).map_or_else(|| error(letter), ToString::to_string);
    format!(
        "{}  {}  {} attempts  {}\n",
        paint.apply(BOLD, visible_line(name)),
        paint.apply(DIM, visible_line(&letter.envelope.id)),
        letter.failed_attempts,
        paint.apply(RED, visible_line(&why))
    )
}

/// One line an attempt.
fn history(letter: &Delivery, paint: Paint) -> String {
    let mut text = String::new();
    if let Some(trace) = trace_id(&letter.envelope.headers) {
        let _ = writeln!(text, "  trace {trace}");
    }
    let Some(history) = letter.history.as_deref() else { return text };
    for failure in history.failures() {
        let on = failure.worker.as_ref().map(|worker| format!(" on {worker}")).unwrap_or_default();
        let line = format!("attempt {}{on}: {failure}", failure.attempt);
        let _ = writeln!(text, "  {}  {}", paint.apply(DIM, failure.at), visible_line(&line));
    }
    if history.omitted() > 0 {
        let _ = writeln!(text, "  ({} more, left out for size after the first)", history.omitted());
    }
    if history.is_partial() {
        text.push_str("  (earlier attempts are not known: the broker retried in place)\n");
    }
    text
}

fn shown(value: &HeaderValue) -> String {
    crate::message::value_for_people(value).into_owned()
}

fn payload(letter: &Delivery) -> String {
    match letter.envelope.payload.as_deref().map(std::str::from_utf8) {
        None => "(tombstone: no payload)".to_owned(),
        Some(Ok(text)) => text.to_owned(),
        Some(Err(_)) => format!("({} bytes, not text)", letter.envelope.payload_len()),
    }
}
