//! `publish --lines`: one message a line, many in flight, in bounded memory, and no line lost silently.

use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::pin::Pin;
use std::thread;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use indicatif::ProgressBar;
use throughline::{Error, ErrorKind, Publisher, Receipt};
use tokio::sync::mpsc;

use crate::args::PublishArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, Console};
use crate::publish::{Template, cannot_read};
use crate::receipt::Sent;
use crate::signals::Stop;

/// The longest line that is read, where the destination has no limit of its own.
const LONGEST: usize = 64 * 1024 * 1024;
/// How many messages, and how many bytes of them, may be unanswered.
const IN_FLIGHT: usize = 1000;
const IN_FLIGHT_BYTES: usize = 64 * 1024 * 1024;
/// So many failed lines are named again at the end.
const NAMED: usize = 20;

/// What the reading thread finds.
pub(crate) enum Line {
    Text(Vec<u8>),
    /// So many bytes; too many to be kept.
    TooLong(usize),
    Failed(io::Error),
}

/// The outcome of a line, once there is one.
struct Done {
    sent: Sent,
    bytes: usize,
    result: Result<Receipt, Error>,
}

pub(crate) async fn publish(
    source: Box<dyn Read + Send>,
    publisher: &Publisher,
    template: &Template,
    args: &PublishArgs,
    stop: &mut Stop,
    console: &Console,
) -> Result<Exit, Failure> {
    let longest = publisher.capabilities().limits.payload_bytes.unwrap_or(LONGEST);
    let mut lines = read_lines(source, longest)?;
    let mut tally = Tally::new(args, console);
    let mut pending = FuturesOrdered::<Pin<Box<dyn Future<Output = Done> + Send>>>::new();
    let mut bytes = 0;
    let mut number = 0;
    let mut ended = Ended::AtEnd;
    loop {
        let full = pending.len() >= IN_FLIGHT || (bytes > IN_FLIGHT_BYTES && !pending.is_empty());
        tokio::select! {
            biased;
            Some(done) = pending.next(), if !pending.is_empty() => {
                bytes -= done.bytes;
                let kind = done.result.as_ref().err().map(Error::kind).filter(|kind| concerns_all(*kind));
                tally.add(done)?;
                if let Some(kind) = kind {
                    ended = Ended::Destination(kind);
                    break;
                }
            }
            () = stop.wait() => {
                ended = Ended::Interrupted;
                break;
            }
            line = lines.recv(), if !full => {
                let body = match line {
                    None => break,
                    Some(Line::Failed(error)) => {
                        ended = Ended::Source(error);
                        break;
                    }
                    Some(Line::TooLong(length)) => {
                        number += 1;
                        let sent = template.sent(&template.envelope(Bytes::new()), Some(number));
                        let error = Error::limit("the line", format!("{length} bytes"), format!("{longest} bytes"));
                        pending.push_back(finished(Done { sent, bytes: 0, result: Err(error) }));
                        continue;
                    }
                    Some(Line::Text(body)) => {
                        number += 1;
                        body
                    }
                };
                if body.is_empty() {
                    tally.empty += 1;
                    continue;
                }
                template.check(&body, console);
                let size = body.len();
                let envelope = template.envelope(body.into());
                let sent = template.sent(&envelope, Some(number));
                bytes += size;
                match publisher.enqueue(envelope, template.options.clone()).await {
                    Ok(receipt) => pending.push_back(Box::pin(async move {
                        Done { sent, bytes: size, result: receipt.receipt().await }
                    })),
                    Err(error) => pending.push_back(finished(Done { sent, bytes: size, result: Err(error) })),
                }
            }
        }
    }
    while let Some(done) = pending.next().await {
        tally.add(done)?;
    }
    tally.close(number, ended)
}

fn finished(done: Done) -> Pin<Box<dyn Future<Output = Done> + Send>> {
    Box::pin(std::future::ready(done))
}

/// Whether an error is the destination's, so that the lines after it would only fail too, or overtake the one that did.
fn concerns_all(kind: ErrorKind) -> bool {
    !matches!(
        kind,
        ErrorKind::InvalidMessage | ErrorKind::LimitExceeded | ErrorKind::Refused | ErrorKind::Undecodable
    )
}

/// Why no more lines were read.
enum Ended {
    AtEnd,
    Interrupted,
    Destination(ErrorKind),
    Source(io::Error),
}

/// Counts and tells the outcomes.
struct Tally<'a> {
    args: &'a PublishArgs,
    console: &'a Console,
    bar: ProgressBar,
    /// Somebody reads the receipts.
    receipts: bool,
    published: u64,
    failed: u64,
    named: Vec<u64>,
    empty: u64,
}

impl<'a> Tally<'a> {
    fn new(args: &'a PublishArgs, console: &'a Console) -> Self {
        // Receipts that scroll by on the same terminal are progress enough.
        let shown = args.quiet || !io::stdout().is_terminal();
        let bar = output::progress(shown, "{spinner} {human_pos} messages published  {per_sec}  {elapsed}");
        Self {
            args,
            console,
            bar,
            receipts: !args.quiet,
            published: 0,
            failed: 0,
            named: Vec::new(),
            empty: 0,
        }
    }

    fn add(&mut self, done: Done) -> Result<(), Failure> {
        let text = match &done.result {
            Ok(receipt) => {
                self.published += 1;
                self.bar.inc(1);
                if self.args.json { done.sent.json(receipt)? } else { done.sent.for_people(receipt) }
            }
            Err(error) => {
                self.failed += 1;
                let line = done.sent.line.unwrap_or_default();
                if self.named.len() < NAMED {
                    self.named.push(line);
                }
                self.bar.suspend(|| self.console.error(&format!("line {line}: {error}")));
                if self.args.json { done.sent.json_failed(error)? } else { String::new() }
            }
        };
        if self.receipts
            && let Err(error) = output::write_stdout(text.as_bytes())
        {
            // That nobody reads the receipts is no reason to leave lines unsent.
            self.receipts = false;
            if error.kind() != io::ErrorKind::BrokenPipe {
                self.console.warn(&format!("no more receipts: cannot write to stdout: {error}"));
            }
        }
        Ok(())
    }

    fn close(self, read: u64, ended: Ended) -> Result<Exit, Failure> {
        self.bar.finish_and_clear();
        let mut summary = format!("{} published", count(self.published, "message"));
        if self.empty > 0 {
            summary.push_str(&format!(", {} skipped", count(self.empty, "empty line")));
        }
        if self.failed > 0 {
            let mut named: Vec<_> = self.named.iter().map(u64::to_string).collect();
            if self.failed > self.named.len() as u64 {
                named.push("… (all are told above)".into());
            }
            let lines = if self.failed == 1 { "line" } else { "lines" };
            summary.push_str(&format!(", {} failed: {lines} {}", self.failed, named.join(", ")));
        }
        let rest = format!("stopped after line {read}: what comes after it was not sent");
        match ended {
            Ended::AtEnd => {
                self.console.note(&summary);
                Ok(if self.failed > 0 { Exit::Failed } else { Exit::Ok })
            }
            Ended::Destination(kind) => {
                self.console.note(&summary);
                Err(Failure::new(Exit::of(kind), rest))
            }
            Ended::Interrupted => {
                self.console.note(&summary);
                self.console.note(&format!("interrupted; {rest}"));
                Ok(Exit::Interrupted)
            }
            Ended::Source(error) => {
                self.console.note(&summary);
                Err(cannot_read(self.args.file.as_deref(), &error).hint(rest))
            }
        }
    }
}

fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Reads lines in a thread of its own, because a read of stdin cannot be cancelled.
fn read_lines(source: Box<dyn Read + Send>, longest: usize) -> Result<mpsc::Receiver<Line>, Failure> {
    let (sender, receiver) = mpsc::channel(16);
    let read = move || {
        let mut source = BufReader::with_capacity(64 * 1024, source);
        loop {
            let line = match read_line(&mut source, longest) {
                Ok(Some(line)) => line,
                Ok(None) => return,
                Err(error) => Line::Failed(error),
            };
            let last = matches!(line, Line::Failed(_));
            if sender.blocking_send(line).is_err() || last {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("read-lines".into())
        .spawn(read)
        .map_err(|error| Failure::new(Exit::Failed, "cannot start the reading thread").caused_by(&error))?;
    Ok(receiver)
}

/// One line without its end; `None` at the end. What is longer than `longest` is read over and only counted.
pub(crate) fn read_line(source: &mut impl BufRead, longest: usize) -> io::Result<Option<Line>> {
    // One byte more, for the \r of a \r\n.
    let room = longest.saturating_add(1);
    let mut line = Vec::new();
    let mut length = 0;
    let mut ended = false;
    while !ended {
        let chunk = match source.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            if length == 0 {
                return Ok(None);
            }
            break;
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let (part, _) = chunk.split_at(end.unwrap_or(chunk.len()));
        ended = end.is_some();
        length += part.len();
        if length <= room {
            line.extend_from_slice(part);
        } else {
            line = Vec::new();
        }
        let used = part.len() + usize::from(ended);
        source.consume(used);
    }
    if line.last() == Some(&b'\r') {
        line.pop();
        length -= 1;
    }
    Ok(Some(if length > longest { Line::TooLong(length) } else { Line::Text(line) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};

    /// A source that gives its text in pieces of `step` bytes.
    fn lines(text: &str, step: usize, longest: usize) -> Vec<Result<String, usize>> {
        let mut source = BufReader::with_capacity(step, text.as_bytes());
        let mut all = Vec::new();
        while let Some(line) = read_line(&mut source, longest).unwrap() {
            all.push(match line {
                Line::Text(text) => Ok(String::from_utf8(text).unwrap()),
                Line::TooLong(length) => Err(length),
                Line::Failed(error) => panic!("{error}"),
            });
        }
        all
    }

    async fn publish_lines(
        name: &str,
        text: String,
        more: &[&str],
        stop: &mut Stop,
    ) -> (Result<Exit, Failure>, u64) {
        let args = ["throughline", "publish", "memory:x", "--lines", "--quiet"];
        let parsed = <Args as clap::Parser>::parse_from(args.into_iter().chain(more.iter().copied()));
        let Command::Publish(args) = parsed.command else { panic!("not publish") };
        let bus = throughline::Bus::connect(format!("memory:{name}?queue=q")).await.unwrap();
        let publisher = bus.publisher().await.unwrap();
        let template = Template::new(&args, throughline::Headers::new());
        let console = Console::new(output::Color::Never);
        let source = Box::new(io::Cursor::new(text.into_bytes()));
        let result = publish(source, &publisher, &template, &args, stop, &console).await;
        let ready = bus.depth("").await.unwrap().ready;
        (result, ready)
    }

    #[tokio::test]
    async fn each_line_is_a_message_and_empty_ones_are_none() {
        let text: String = (0..5000).map(|number| format!("{number}\n\r\n")).collect();
        let (result, ready) = publish_lines("lines-many", text, &["--key", "k"], &mut Stop::never()).await;
        assert_eq!((result.unwrap(), ready), (Exit::Ok, 5000));
        let bus = throughline::Bus::connect("memory:lines-many?queue=q").await.unwrap();
        let mut consumer = bus.consumer().await.unwrap();
        for number in 0..5000 {
            let delivery = consumer.next().await.unwrap().unwrap();
            assert_eq!(delivery.payload(), number.to_string().as_bytes());
            delivery.ack().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_line_too_long_fails_alone() {
        let text = format!("a\n{}\nb\n", "x".repeat(LONGEST + 1));
        let (result, ready) = publish_lines("lines-long", text, &[], &mut Stop::never()).await;
        assert_eq!((result.unwrap(), ready), (Exit::Failed, 2));
    }

    #[tokio::test]
    async fn an_interruption_is_told_by_the_exit_code() {
        let (result, ready) = publish_lines("lines-stop", "a\nb\n".into(), &[], &mut Stop::now()).await;
        assert_eq!((result.unwrap(), ready), (Exit::Interrupted, 0));
    }

    #[test]
    fn only_a_fault_of_the_line_lets_the_others_go_on() {
        assert!(!concerns_all(ErrorKind::LimitExceeded) && !concerns_all(ErrorKind::InvalidMessage));
        assert!(concerns_all(ErrorKind::Disconnected) && concerns_all(ErrorKind::HeldBack));
    }

    #[test]
    fn lines_end_as_on_any_system_and_the_last_needs_no_end() {
        for step in 1..8 {
            let read = lines("a\r\n\nbc\rd\n\r\nlast", step, 10);
            assert_eq!(read, ["a", "", "bc\rd", "", "last"].map(|line| Ok(line.to_owned())), "{step}");
            assert!(lines("", step, 10).is_empty());
            assert_eq!(lines("\n", step, 10), [Ok(String::new())]);
        }
    }

    #[test]
    fn a_line_too_long_is_counted_and_does_not_take_the_next_with_it() {
        for step in 1..8 {
            let read = lines("1234567\n12345\r\n123456\r\n\nab", step, 5);
            let expected = [Err(7), Ok("12345".to_owned()), Err(7), Ok(String::new()), Ok("ab".to_owned())];
            // The \r of a line that is not kept counts with it.
            assert_eq!(read[0..2], expected[0..2], "{step}");
            assert!(matches!(read[2], Err(6 | 7)), "{step}: {read:?}");
            assert_eq!(read[3..], expected[3..], "{step}");
        }
    }
}
