//! Where messages go that failed for good, and how they get there: durably first, and only then acked.

use std::time::Duration;

use throughline_core::{Delivery, Error, Failure, Publisher, Result};

/// The wait before dead-lettering is tried again.
const PAUSE: Duration = Duration::from_secs(30);

/// What became of a message that was to be a dead letter.
pub(crate) enum Buried {
    /// It is one.
    Yes,
    /// Its destination did not take it: it is tried again after the wait, and nothing was lost.
    Later(Duration),
}

/// Makes a dead letter of a message: at another destination, or where the transport has its own.
pub(crate) async fn bury(delivery: Delivery, to: Option<&Publisher>, failure: Failure) -> Result<Buried> {
    let Some(to) = to else {
        return delivery.reject(failure).await.map(|()| Buried::Yes);
    };
    match delivery.send_dead_letter(to, failure.clone()).await {
        // Refused now, it would come again, and be sent there twice: told, as any ack that fails.
        Ok(_) => delivery.ack().await.map(|()| Buried::Yes),
        Err(error) => {
            not_taken(&error);
            delivery.retry(PAUSE, failure).await.map(|()| Buried::Later(PAUSE))
        }
    }
}

fn not_taken(error: &Error) {
    tracing::error!(%error, "the dead-letter destination took no message; it is tried again later");
}
