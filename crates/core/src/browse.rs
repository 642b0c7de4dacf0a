//! Messages that are looked at and not consumed, handed over a piece at a time.

use std::fmt;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::driver::Delivery;
use crate::error::Result;

/// A piece is handed over when it has so many messages,
const MESSAGES: usize = 500;
/// or so many bytes of payload.
const BYTES: usize = 1024 * 1024;
/// So many pieces wait for who reads them.
const WAITING: usize = 2;

/// Takes the messages that a driver reads for [`Transport::browse_into`](crate::driver::Transport::browse_into), and hands
/// them over in pieces. What is left in it goes with [`finish`](Self::finish).
pub struct Pieces {
    to: mpsc::Sender<Vec<Delivery>>,
    piece: Vec<Delivery>,
    bytes: usize,
}

impl Pieces {
    /// Adds a message, and waits while those before it are not taken. `false`: nobody takes any more.
    pub async fn add(&mut self, delivery: Delivery) -> bool {
        match self.put(delivery) {
            Some(piece) => self.to.send(piece).await.is_ok(),
            None => true,
        }
    }

    /// [`add`](Self::add), on a thread that may block.
    pub fn blocking_add(&mut self, delivery: Delivery) -> bool {
        match self.put(delivery) {
            Some(piece) => self.to.blocking_send(piece).is_ok(),
            None => true,
        }
    }

    /// Hands over what is left.
    pub async fn finish(self) {
        if !self.piece.is_empty() {
            // That nobody takes it is their affair.
            let _ = self.to.send(self.piece).await;
        }
    }

    fn put(&mut self, delivery: Delivery) -> Option<Vec<Delivery>> {
        self.bytes = self.bytes.saturating_add(delivery.envelope.payload_len());
        self.piece.push(delivery);
        let is_full = self.piece.len() >= MESSAGES || self.bytes >= BYTES;
        is_full.then(|| {
            self.bytes = 0;
            std::mem::take(&mut self.piece)
        })
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces").field("waiting", &self.piece.len()).finish_non_exhaustive()
    }
}

/// Messages that are being looked at: what `Bus::browse_pieces` gives.
pub struct Browsing<'a> {
    reading: Option<BoxFuture<'a, Result<()>>>,
    pieces: mpsc::Receiver<Vec<Delivery>>,
}

impl<'a> Browsing<'a> {
    /// The future that this makes reads messages into the pieces, as [`next`](Self::next) is awaited.
    pub fn new(read: impl FnOnce(Pieces) -> BoxFuture<'a, Result<()>>) -> Self {
        let (to, pieces) = mpsc::channel(WAITING);
        Self { reading: Some(read(Pieces { to, piece: Vec::new(), bytes: 0 })), pieces }
    }

    /// All that there are.
    ///
    /// Errors: what reading fails with.
    pub async fn all(mut self) -> Result<Vec<Delivery>> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            all.extend(piece);
        }
        Ok(all)
    }

    /// The next messages, at least one; `None` when there are no more. Nothing is lost when the future is dropped.
    ///
    /// Errors: what reading fails with, once, after what was read before.
    pub async fn next(&mut self) -> Result<Option<Vec<Delivery>>> {
        loop {
            let Some(reading) = &mut self.reading else { return Ok(self.pieces.recv().await) };
            tokio::select! {
                biased;
                Some(piece) = self.pieces.recv() => return Ok(Some(piece)),
                read = reading => {
                    self.reading = None;
                    if let Err(error) = read {
                        let piece = self.pieces.recv().await;
                        if piece.is_some() {
                            self.reading = Some(Box::pin(std::future::ready(Err(error))));
                            return Ok(piece);
                        }
                        return Err(error);
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Browsing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Browsing").field("is_reading", &self.reading.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::driver::Token;
    use crate::envelope::Envelope;
    use crate::error::{Error, ErrorKind};

    fn delivery(number: u64, bytes: usize) -> Delivery {
        let envelope = Envelope::builder("x").payload(vec![0; bytes]).build();
        Delivery::new(Arc::new(envelope), Token { epoch: 0, tag: number })
    }

    #[tokio::test]
    async fn all_come_in_order_and_in_pieces() {
        let mut browsing = Browsing::new(|mut pieces| {
            Box::pin(async move {
                for number in 0..1200 {
                    assert!(pieces.add(delivery(number, if number == 3 { BYTES } else { 1 })).await);
                }
                pieces.finish().await;
                Ok(())
            })
        });
        let (mut sizes, mut tags) = (Vec::new(), Vec::new());
        while let Some(piece) = browsing.next().await.unwrap() {
            sizes.push(piece.len());
            tags.extend(piece.iter().map(|delivery| delivery.token.tag));
        }
        assert_eq!(sizes, [4, 500, 500, 196]);
        assert!(tags.into_iter().eq(0..1200));
        assert!(browsing.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_error_comes_after_what_was_read_before_and_once() {
        let mut browsing = Browsing::new(|mut pieces| {
            Box::pin(async move {
                pieces.add(delivery(0, BYTES)).await;
                pieces.add(delivery(1, BYTES)).await;
                Err(Error::new(ErrorKind::Disconnected, "gone"))
            })
        });
        assert_eq!(browsing.next().await.unwrap().unwrap().len(), 1);
        assert_eq!(browsing.next().await.unwrap().unwrap().len(), 1);
        assert_eq!(browsing.next().await.unwrap_err().kind(), ErrorKind::Disconnected);
        assert!(browsing.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn reading_ends_when_nobody_takes_the_pieces() {
        let browsing = Browsing::new(|mut pieces| {
            Box::pin(async move {
                while pieces.add(delivery(0, BYTES)).await {}
                Ok(())
            })
        });
        let Browsing { reading, pieces } = browsing;
        drop(pieces);
        reading.unwrap().await.unwrap();
    }
}
