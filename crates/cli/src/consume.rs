//! `consume`: messages to stdout, acknowledged once they are written.

use std::future::pending;
use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::time::Duration;

use throughline::{Bus, ConsumeOptions, Consumer, Delivery, Order};
use tokio::time::{Instant, sleep_until};

use crate::args::ConsumeArgs;
use crate::bus::connect;
use crate::failure::{Exit, Failure};
use crate::message::{Message, for_people, json_line};
use crate::output::{self, Console, Paint};
use crate::signals::Stop;

/// What `--peek` does where nothing else is said.
const PEEK_MAX: usize = 100;
const PEEK_WAIT: Duration = Duration::from_secs(2);
/// What a peek may hold: the largest prefetch of AMQP.
const PEEK_LIMIT: usize = 65_535;
/// Below this `--max`, one message is asked for at a time.
const ONE_BY_ONE: usize = 64;

pub(crate) async fn run(args: &ConsumeArgs, console: &Console, paint: Paint) -> Result<Exit, Failure> {
    crate::bus::outside_this_process(&args.url, "consume")?;
    let plan = Plan::new(args.max.map(NonZeroUsize::get), args.wait, args.peek)?;
    let mut stop = Stop::listen()?;
    let bus = tokio::select! {
        bus = connect(&args.url, "consume") => bus?,
        () = stop.wait() => return Ok(Exit::Ok),
    };
    let render = |delivery: &Delivery| {
        if args.json { json_line(&Message(delivery)) } else { Ok(for_people(delivery, paint)) }
    };
    if !args.json && plan.wait.is_none() && io::stderr().is_terminal() {
        console.note("waiting for messages; Ctrl-C ends");
    }
    // Messages that scroll by on the same terminal are progress enough.
    let shown = !io::stdout().is_terminal();
    let bar = output::progress(shown, "{spinner} {human_pos} messages  {per_sec}  {elapsed}");
    let write = |line: &[u8]| {
        bar.inc(1);
        output::write_stdout(line)
    };
    let result = consume(&bus, &plan, render, write, &mut stop, console).await;
    bar.finish_and_clear();
    let closed = bus.close().await;
    let exit = result?;
    closed?;
    Ok(exit)
}

/// How much is taken, and how.
#[derive(Debug, PartialEq)]
struct Plan {
    /// So many messages in all; `None`: no end.
    max: Option<usize>,
    /// So long without a message, then it is over.
    wait: Option<Duration>,
    peek: bool,
    /// How many may be unsettled at the broker's eyes.
    window: usize,
}

impl Plan {
    fn new(max: Option<usize>, wait: Option<Duration>, peek: bool) -> Result<Self, Failure> {
        let default = ConsumeOptions::default().max_unsettled;
        if peek {
            let max = max.unwrap_or(PEEK_MAX);
            if max > PEEK_LIMIT {
                return Err(Failure::usage(format!(
                    "--peek holds at most {PEEK_LIMIT} messages; --max is {max}"
                )));
            }
            return Ok(Self { max: Some(max), wait: Some(wait.unwrap_or(PEEK_WAIT)), peek, window: max });
        }
        // An ack makes room, which the broker fills at once. So the last window is not acknowledged before all are here:
        // a small one, that little is held while waiting for the rest. One at a time is quick enough for a few.
        let window = match max {
            None => default,
            Some(max) if max < ONE_BY_ONE => 1,
            Some(max) => max.div_ceil(8).min(default),
        };
        Ok(Self { max, wait, peek, window })
    }

    /// How many may be acknowledged while messages still come, without the broker sending more than `max`.
    fn free_acks(&self) -> usize {
        if self.peek { 0 } else { self.max.map_or(usize::MAX, |max| max - self.window) }
    }
}

/// Why the taking ended.
enum Ended {
    Done,
    /// The stream's own error.
    Source(throughline::Error),
    /// Nobody reads the output any more.
    Unread,
    Output(Failure),
}

async fn consume(
    bus: &Bus,
    plan: &Plan,
    render: impl Fn(&Delivery) -> Result<String, Failure>,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
    stop: &mut Stop,
    console: &Console,
) -> Result<Exit, Failure> {
    let mut options = ConsumeOptions::default();
    if plan.free_acks() < usize::MAX && plan.window > 1 {
        // What is held must not keep the next message of its key away.
        options.order = Order::Any;
    }
    options.max_unsettled = plan.window;
    let mut consumer = bus.consumer_of("", options).await?;
    let mut taken = Taken::default();
    let ended = loop {
        let room = plan.max.map_or(usize::MAX, |max| max - taken.written);
        let Some(room) = NonZeroUsize::new(room) else { break Ended::Done };
        let batch = tokio::select! {
            biased;
            () = stop.wait() => break Ended::Done,
            batch = consumer.next_batch(room.min(BATCH)) => batch,
            () = idle(plan.wait) => break Ended::Done,
        };
        let batch = match batch {
            Ok(batch) if batch.is_empty() => break Ended::Done,
            Ok(batch) => batch,
            Err(error) => break Ended::Source(error),
        };
        let mut unread = None;
        for delivery in batch {
            if unread.is_some() {
                // Not written, so not ours: dropped, and released.
                continue;
            }
            let written = delivery.process(async { line(&delivery, &render, &mut write) }).await;
            match written {
                Ok(()) => {
                    taken.written += 1;
                    taken.held.push(delivery);
                }
                Err(ended) => unread = Some(ended),
            }
        }
        if let Some(unread) = unread {
            break match unread {
                Unwritten::Closed => Ended::Unread,
                Unwritten::Failed(failure) => Ended::Output(failure),
            };
        }
        let free = plan.free_acks().saturating_sub(taken.acked).min(taken.held.len());
        taken.ack(free, console).await;
    };
    finish(consumer, taken, plan, ended, console).await
}

/// At most so many are taken at once: what is written waits for its ack that long.
const BATCH: NonZeroUsize = NonZeroUsize::new(100).unwrap();

async fn idle(wait: Option<Duration>) {
    match wait {
        Some(wait) => sleep_until(Instant::now() + wait).await,
        None => pending().await,
    }
}

fn line(
    delivery: &Delivery,
    render: impl Fn(&Delivery) -> Result<String, Failure>,
    write: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), Unwritten> {
    let line = render(delivery).map_err(Unwritten::Failed)?;
    write(line.as_bytes()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Unwritten::Closed,
        _ => Unwritten::Failed(output::stdout_failed(&error)),
    })
}

/// Why a message is not on stdout.
enum Unwritten {
    Closed,
    Failed(Failure),
}

impl std::fmt::Display for Unwritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("nobody reads stdout any more"),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

/// What has been written so far.
#[derive(Default)]
struct Taken {
    written: usize,
    acked: usize,
    /// Written, and not yet settled.
    held: Vec<Delivery>,
    failed: usize,
}

impl Taken {
    /// Acknowledges the oldest `count` of those held.
    async fn ack(&mut self, count: usize, console: &Console) {
        let oldest: Vec<_> = self.held.drain(..count).collect();
        self.acked += oldest.len();
        for error in Delivery::ack_all(oldest).await.into_iter().filter_map(Result::err) {
            self.failed += 1;
            console.warn(&format!("a message was written but not acknowledged: {error}"));
        }
    }
}

async fn finish(
    mut consumer: Consumer,
    mut taken: Taken,
    plan: &Plan,
    ended: Ended,
    console: &Console,
) -> Result<Exit, Failure> {
    // First of all, no more: what an ack makes room for must not come.
    consumer.stop().await;
    if plan.peek {
        for delivery in taken.held.drain(..) {
            if let Err(error) = delivery.release().await {
                console.warn(&format!("a message goes back only when the connection ends: {error}"));
            }
        }
        let what = if taken.written == 1 { "message was" } else { "messages were" };
        console.note(&format!(
            "{} {what} peeked at and left in the queue; delivery counts may have risen by it",
            taken.written
        ));
    } else {
        taken.ack(taken.held.len(), console).await;
    }
    let closed = consumer.close().await;
    if taken.failed > 0 {
        return Err(Failure::new(
            Exit::Failed,
            format!("{} of {} messages will be delivered again", taken.failed, taken.written),
        ));
    }
    match ended {
        Ended::Source(error) => Err(error.into()),
        Ended::Output(failure) => Err(failure),
        Ended::Done | Ended::Unread => {
            closed?;
            Ok(Exit::Ok)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use throughline::Envelope;

    fn console() -> Console {
        Console::new(output::Color::Never)
    }

    async fn queue_of(name: &str, messages: usize, key: Option<&str>) -> Bus {
        let bus = Bus::connect(format!("memory:{name}?queue=q")).await.unwrap();
        let publisher = bus.publisher().await.unwrap();
        for number in 0..messages {
            let mut envelope = Envelope::new(number.to_string());
            envelope.ordering_key = key.map(|key| bytes::Bytes::copy_from_slice(key.as_bytes()));
            publisher.publish(envelope).await.unwrap();
        }
        bus
    }

    fn body(delivery: &Delivery) -> Result<String, Failure> {
        Ok(String::from_utf8(delivery.payload().to_vec()).unwrap())
    }

    fn plan(max: Option<usize>, peek: bool) -> Plan {
        Plan::new(max, Some(Duration::from_millis(100)), peek).unwrap()
    }

    async fn take(bus: &Bus, plan: &Plan) -> Vec<String> {
        let mut lines = Vec::new();
        let write = |line: &[u8]| {
            lines.push(String::from_utf8(line.to_vec()).unwrap());
            Ok(())
        };
        let exit = consume(bus, plan, body, write, &mut Stop::never(), &console()).await.unwrap();
        assert_eq!(exit, Exit::Ok);
        lines
    }

    /// The rest, which nobody must have touched: each is delivered for the first time.
    async fn untouched(bus: &Bus) -> usize {
        let depth = bus.depth("").await.unwrap();
        assert_eq!(depth.unsettled.unwrap_or(0), 0);
        let mut consumer = bus.consumer().await.unwrap();
        let mut held = Vec::new();
        while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await
        {
            let delivery = delivery.unwrap();
            assert_eq!((delivery.receive_count(), delivery.attempt()), (Some(1), 1));
            held.push(delivery);
        }
        let count = held.len();
        assert_eq!(count as u64, depth.ready);
        Delivery::ack_all(held).await;
        consumer.close().await.unwrap();
        count
    }

    fn numbers(count: usize) -> Vec<String> {
        (0..count).map(|number| number.to_string()).collect()
    }

    #[tokio::test]
    async fn takes_what_it_may_and_disturbs_nothing_beyond() {
        for (name, messages, max) in [("one", 3, 1), ("few", 5, 3), ("many", 200, 150)] {
            let bus = queue_of(&format!("consume-{name}"), messages, None).await;
            assert_eq!(take(&bus, &plan(Some(max), false)).await, numbers(max));
            assert_eq!(untouched(&bus).await, messages - max);
        }
    }

    #[tokio::test]
    async fn one_key_does_not_keep_its_own_next_message_away() {
        for (name, max) in [("few", 5), ("many", 100)] {
            let bus = queue_of(&format!("consume-key-{name}"), max, Some("k")).await;
            assert_eq!(take(&bus, &plan(Some(max), false)).await, numbers(max));
        }
    }

    #[tokio::test]
    async fn fewer_than_max_is_no_failure_and_all_are_acknowledged() {
        let bus = queue_of("consume-fewer", 3, None).await;
        assert_eq!(take(&bus, &plan(Some(100), false)).await, numbers(3));
        let depth = bus.depth("").await.unwrap();
        assert_eq!((depth.ready, depth.unsettled), (0, Some(0)));
    }

    #[tokio::test]
    async fn a_peek_shows_each_once_and_leaves_all() {
        let bus = queue_of("consume-peek", 5, Some("k")).await;
        assert_eq!(take(&bus, &plan(None, true)).await, numbers(5));
        let depth = bus.depth("").await.unwrap();
        assert_eq!((depth.ready, depth.unsettled), (5, Some(0)));
        assert_eq!(take(&bus, &plan(Some(2), true)).await.len(), 2);
        let mut rest = take(&bus, &plan(None, false)).await;
        rest.sort();
        assert_eq!(rest, numbers(5));
    }

    #[tokio::test]
    async fn what_is_not_written_is_not_acknowledged() {
        for (name, kind, fails) in
            [("pipe", io::ErrorKind::BrokenPipe, false), ("disk", io::ErrorKind::StorageFull, true)]
        {
            let bus = queue_of(&format!("consume-{name}"), 5, None).await;
            let mut written = 0;
            let write = |_: &[u8]| {
                written += 1;
                if written > 2 { Err(kind.into()) } else { Ok(()) }
            };
            let result = consume(&bus, &plan(None, false), body, write, &mut Stop::never(), &console()).await;
            assert_eq!(result.is_err(), fails);
            assert_eq!(take(&bus, &plan(None, false)).await, ["2", "3", "4"]);
        }
    }

    #[tokio::test]
    async fn a_stop_ends_it_well_and_releases_the_unread() {
        let bus = queue_of("consume-stop", 3, None).await;
        let plan = Plan::new(None, None, false).unwrap();
        let write = |_: &[u8]| panic!("nothing is read after the stop");
        let exit = consume(&bus, &plan, body, write, &mut Stop::now(), &console()).await.unwrap();
        assert_eq!(exit, Exit::Ok);
        assert_eq!(take(&bus, &self::plan(None, false)).await, numbers(3));
    }

    #[test]
    fn a_window_never_lets_more_come_than_asked_for() {
        for max in (1..300).chain([999, 4000, 1_000_000]) {
            let plan = Plan::new(Some(max), None, false).unwrap();
            assert!(plan.window >= 1 && plan.free_acks() + plan.window <= max, "{plan:?}");
        }
        assert!(Plan::new(Some(70_000), None, true).is_err());
    }
}
