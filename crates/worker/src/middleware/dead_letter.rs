//! Where messages go that failed: what is decided once is asked for until it is done, while the message is held. A dead
//! letter is durable first, and only then is its original acked.

use std::time::Duration;

use throughline_core::{Delivery, Error, ErrorKind, Failure, Publisher, Result, Timestamp};

use super::timeout::Interruption;
use super::trace::{interruption, is_late};
use crate::router::Entry;
use crate::shared::{Shared, Slot};

/// The waits between tries to settle, whatever the retry policy says: neither a loop that spins, nor a long silence.
const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// What is to become of a failed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Another attempt, after that long.
    Retry(Duration),
    /// A dead letter.
    Bury,
}

/// What has become of it.
pub(crate) enum Done {
    /// What was decided.
    Yes,
    /// Back in its queue with its failure, to become a dead letter after that long.
    Later(Duration),
}

/// Settles a failed message as it was decided, and where that fails, again and again: while the message is ours, up to the
/// longest it may be held, and until the time to drain is over. Then it goes back to its queue, with its failure where the
/// broker takes that.
pub(crate) async fn settle(
    shared: &Shared,
    slot: &Slot<'_>,
    mut delivery: Delivery,
    entry: &Entry,
    decision: Decision,
    failure: Failure,
) -> Result<Done> {
    for tries in 1.. {
        // Where it is sent to another place, it is that one's error, and sending may be given up.
        let elsewhere = decision == Decision::Bury && shared.dead_letter.is_some();
        let tried = tokio::select! {
            biased;
            tried = once(shared, &mut delivery, decision, failure.clone()) => Some(tried),
            _ = interruption(shared, std::future::pending()), if elsewhere => None,
        };
        let Some(tried) = tried else {
            let text = "the time to drain was over before the dead letter was accepted";
            let error = Error::new(ErrorKind::Timeout, text);
            return let_go(delivery, decision, failure, SHORTEST, error).await;
        };
        let Err(error) = tried else {
            if decision == Decision::Bury && shared.dead_letter.is_some() {
                // Were this tried again, it would be sent there twice: told, as any ack that fails.
                delivery.ack().await?;
            }
            return Ok(Done::Yes);
        };
        if delivery.is_lease_lost() || (!elsewhere && is_late(&error)) {
            return Err(error);
        }
        if tries == 1 {
            tracing::error!(%error, "a failed message could not be settled: it is held, and tried again");
            // Other messages take its place meanwhile.
            slot.park();
            if decision == Decision::Bury {
                // Whoever has it next, should this process die, knows that it was given up, and why.
                shared.remember(&delivery, &failure.clone().given_up(), LONGEST).await;
            }
        }
        let pause = entry.retry.delay(tries, delivery.id()).clamp(SHORTEST, LONGEST);
        match wait(shared, &delivery, pause).await {
            Next::Again => {}
            Next::Lost => return Err(error),
            Next::LetGo => return let_go(delivery, decision, failure, pause, error).await,
        }
    }
    Ok(Done::Yes)
}

async fn once(shared: &Shared, delivery: &mut Delivery, decision: Decision, failure: Failure) -> Result<()> {
    match (decision, &shared.dead_letter) {
        (Decision::Retry(after), _) => delivery.try_retry(after, failure).await,
        (Decision::Bury, None) => delivery.try_reject(failure).await,
        (Decision::Bury, Some(to)) => bury(delivery, to, failure).await,
    }
}

async fn bury(delivery: &Delivery, to: &Publisher, failure: Failure) -> Result<()> {
    let sent = delivery.send_dead_letter(to, failure).await;
    if let (Err(_), Some(key)) = (&sent, &delivery.envelope().ordering_key) {
        // What failed is held here, with its key's later ones behind it. The publisher would hold the key back for ever.
        to.resume(key);
    }
    sent.map(drop)
}

enum Next {
    Again,
    /// It is no longer ours.
    Lost,
    /// It was held for as long as may be.
    LetGo,
}

/// Waits for the next try, where there is one.
async fn wait(shared: &Shared, delivery: &Delivery, pause: Duration) -> Next {
    let held = Timestamp::now().millis_since(delivery.received_at());
    let held = Duration::from_millis(u64::try_from(held).unwrap_or(0));
    let left = shared.longest_hold.map_or(Duration::MAX, |longest| longest.saturating_sub(held));
    tokio::select! {
        () = tokio::time::sleep(pause.min(left)) => if left > pause { Next::Again } else { Next::LetGo },
        why = interruption(shared, delivery.lease_lost()) => match why {
            Interruption::LeaseLost => Next::Lost,
            Interruption::Shutdown => Next::LetGo,
        },
    }
}

/// Gives a message back with its failure; one that was given up stays so.
async fn let_go(
    mut delivery: Delivery,
    decision: Decision,
    failure: Failure,
    pause: Duration,
    error: Error,
) -> Result<Done> {
    let put_off = match decision {
        Decision::Retry(_) => Err(error),
        Decision::Bury => delivery.try_retry(pause, failure.given_up()).await,
    };
    put_off.map(|()| Done::Later(pause))
}
