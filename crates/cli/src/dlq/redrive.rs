//! `dlq redrive`: dead letters back to where they are worked on.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;
use throughline::{Bus, ConsumeOptions, Consumer, Delivery, Publisher};

use super::filter::Filter;
use super::{browse, line};
use crate::admin::closing;
use crate::args::DlqRedriveArgs;
use crate::bus::connect;
use crate::failure::{Exit, Failure};
use crate::message::json_line;
use crate::output::{self, Console, Paint};
use crate::signals::Stop;

/// So long without a message, and there are no more.
const QUIET: Duration = Duration::from_secs(2);

/// What became of the dead letters that were looked at.
#[derive(Default)]
struct Moved {
    redriven: usize,
    left: usize,
}

pub(super) async fn run(args: &DlqRedriveArgs, console: &Console) -> Result<Exit, Failure> {
    let filter = Filter::new(args);
    let mut stop = Stop::listen()?;
    let from = connect(&args.url, "dlq").await?;
    if args.dry_run {
        let looked = dry_run(&from, args, &filter, console).await;
        closing(&from, Ok(())).await?;
        return looked;
    }
    let to = connect(&args.to, "dlq").await?;
    let moved = work(&from, &to, args, &filter, &mut stop).await;
    closing(&to, Ok(())).await?;
    closing(&from, Ok(())).await?;
    let Moved { redriven, left } = moved?;
    let text = if args.json {
        json_line(&json!({ "redriven": redriven, "left": left }))?
    } else {
        format!("redriven {redriven}, left {left}\n")
    };
    output::print(&text).map(|()| Exit::Ok)
}

async fn dry_run(
    from: &Bus,
    args: &DlqRedriveArgs,
    filter: &Filter,
    console: &Console,
) -> Result<Exit, Failure> {
    let letters = browse(from, args.scan, console).await?;
    let takes = |letter: &&_| -> bool { filter.takes(message_type(letter), super::last(letter)) };
    let taken: Vec<_> =
        letters.iter().filter(takes).take(args.max.map_or(usize::MAX, |max| max.get())).collect();
    let text = if args.json {
        json_line(&json!({ "would_redrive": taken.len(), "would_leave": letters.len() - taken.len() }))?
    } else {
        let mut text: String = taken.iter().map(|letter| line(letter, Paint::OFF)).collect();
        text.push_str(&format!("would redrive {}, leave {}\n", taken.len(), letters.len() - taken.len()));
        text
    };
    output::print(&text).map(|()| Exit::Ok)
}

fn message_type(letter: &throughline::driver::Delivery) -> Option<&str> {
    letter.envelope.message_type.as_deref()
}

async fn work(
    from: &Bus,
    to: &Bus,
    args: &DlqRedriveArgs,
    filter: &Filter,
    stop: &mut Stop,
) -> Result<Moved, Failure> {
    let options = ConsumeOptions { max_unsettled: args.scan.get(), ..ConsumeOptions::default() };
    let publisher = to.publisher().await?;
    let mut consumer = from.consumer_of("", options).await?;
    // What is left stays held until the end, so that it is not seen again.
    let mut left = Vec::new();
    let moved = move_all(&mut consumer, &publisher, args, filter, stop, &mut left).await;
    let left_count = left.len();
    drop(left);
    let closed = consumer.close().await;
    let published = publisher.close().await;
    let redriven = moved?;
    closed?;
    published?;
    Ok(Moved { redriven, left: left_count })
}

async fn move_all(
    consumer: &mut Consumer,
    publisher: &Publisher,
    args: &DlqRedriveArgs,
    filter: &Filter,
    stop: &mut Stop,
    left: &mut Vec<Delivery>,
) -> Result<usize, Failure> {
    let mut pace = args.rate.map(|rate| tokio::time::interval(Duration::from_secs(1) / rate.get()));
    let mut moved = HashSet::new();
    while args.max.is_none_or(|max| moved.len() < max.get()) && left.len() < args.scan.get() {
        let next = tokio::select! {
            next = tokio::time::timeout(QUIET, consumer.next()) => next,
            () = stop.wait() => break,
        };
        let Ok(Some(delivery)) = next else { break };
        let delivery = delivery?;
        let last = delivery.history().and_then(|history| history.last());
        // One that has failed again meanwhile stays: it would go round for ever.
        let is_back = moved.contains(delivery.id());
        if is_back || !filter.takes(delivery.envelope().message_type.as_deref(), last) {
            left.push(delivery);
            continue;
        }
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        // As it was made, its creation context included, which the send span links; its attempts begin anew.
        publisher.publish(delivery.envelope().clone()).await?;
        moved.insert(delivery.id().to_owned());
        // Written before it counts, also where acks may wait for others.
        Delivery::ack_all([delivery]).await.into_iter().collect::<throughline::Result<()>>()?;
    }
    Ok(moved.len())
}
