//! The mutant's consumer: what goes wrong on the way from the broker, and back with a settlement.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use throughline_core::capabilities::{Capabilities, Lease};
use throughline_core::driver::{
    Completions, Consumer, Delivery, Endpoint, OperationId, Outgoing, Publisher, Settlement, Token,
};
use throughline_core::headers::TRACEPARENT;
use throughline_core::{Envelope, Error, ErrorKind, History, Result};
use tokio::sync::watch;

use super::{FOREIGN, Mutation};

pub(super) struct MutantConsumer {
    inner: Arc<dyn Consumer>,
    back: Option<Arc<dyn Publisher>>,
    mutation: Mutation,
    capabilities: Capabilities,
    cuts: Option<Arc<watch::Sender<u64>>>,
    wedged: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Handed out and not settled, in order, with the inner token.
    held: Vec<(Token, Arc<Envelope>)>,
    /// The cut after which they were handed out.
    epoch: u64,
    deferred: Vec<(Token, Settlement)>,
}

impl MutantConsumer {
    pub(super) fn new(
        inner: Arc<dyn Consumer>,
        back: Option<Arc<dyn Publisher>>,
        mutation: Mutation,
        capabilities: Capabilities,
        cuts: Option<Arc<watch::Sender<u64>>>,
    ) -> Self {
        let epoch = cuts.as_ref().map_or(0, |cuts| *cuts.borrow());
        let state = Mutex::new(State { epoch, ..State::default() });
        Self { inner, back, mutation, capabilities, cuts, wedged: AtomicBool::new(false), state }
    }

    /// What a connection that was cut held goes back.
    async fn reconnect(&self) {
        let epoch = self.epoch();
        let lost: Vec<_> = {
            let mut state = self.state.lock().unwrap();
            if state.epoch == epoch || self.mutation == Mutation::KeepsLostDeliveries {
                return;
            }
            state.epoch = epoch;
            state.held.drain(..).map(|(token, _)| (token, Settlement::Release)).collect()
        };
        if self.mutation == Mutation::NeverReconnects {
            self.wedged.store(true, Ordering::SeqCst);
        }
        self.inner.settle(&lost).await;
    }

    /// Waits until the connection is cut.
    async fn cut(&self) {
        match &self.cuts {
            Some(cuts) => {
                let seen = self.state.lock().unwrap().epoch;
                let _ = cuts.subscribe().wait_for(|cuts| *cuts != seen).await;
            }
            None => std::future::pending().await,
        }
    }

    async fn take(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        match self.mutation {
            Mutation::GivesMoreThanAsked => {
                self.inner.receive(max.saturating_mul(NonZeroUsize::new(2).unwrap()), wait).await
            }
            Mutation::WaitsTooLong => self.inner.receive(max, wait * 1000).await,
            Mutation::SleepsThrough => {
                tokio::time::sleep(wait).await;
                self.inner.receive(max, Duration::ZERO).await
            }
            Mutation::HandsOutOneAtATime => {
                if !self.state.lock().unwrap().held.is_empty() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    return Ok(Vec::new());
                }
                self.inner.receive(NonZeroUsize::MIN, wait).await
            }
            Mutation::HidesErrors => match self.inner.receive(max, wait).await {
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok(Vec::new())
                }
                received => received,
            },
            _ => self.inner.receive(max, wait).await,
        }
    }

    fn mutate(&self, delivery: &mut Delivery) {
        let retried = delivery.failed_attempts > 0;
        match self.mutation {
            Mutation::ForgetsHistory => delivery.history = None,
            Mutation::ForgetsAttempts => delivery.failed_attempts = 0,
            Mutation::CountsEveryDeliveryAsFirst => delivery.receive_count = Some(1),
            Mutation::ForgetsWhenEnqueued => delivery.enqueued = None,
            Mutation::DeadLetterExpires => delivery.is_dead_letter = false,
            Mutation::DeadLetterForgetsWhy => delivery.native = None,
            Mutation::DeadLetterLosesHeaders if delivery.native.is_some() => {
                Arc::make_mut(&mut delivery.envelope).headers = throughline_core::Headers::new();
            }
            Mutation::RetryStartsANewTrace if retried => {
                let new = "00-ffffffffffffffffffffffffffffffff-00f067aa0ba902b7-01";
                Arc::make_mut(&mut delivery.envelope).headers.set_trace(TRACEPARENT, new.to_owned());
            }
            _ => {}
        }
        if self.capabilities.lease == Lease::None {
            delivery.lease_expires = None;
        }
    }

    /// What the inner consumer is told instead; `None`: nothing.
    fn instead(&self, token: Token, settlement: &Settlement) -> Option<(Token, Settlement)> {
        let ack = Settlement::Ack;
        let settlement = match (self.mutation, settlement) {
            (Mutation::AcksOnReceipt, _)
            | (Mutation::IgnoresAck, Settlement::Ack)
            | (Mutation::IgnoresRelease, Settlement::Release) => return None,
            (Mutation::RetriesAtOnce, Settlement::Retry { history, .. }) => {
                Settlement::Retry { after: Duration::ZERO, history: history.clone() }
            }
            (Mutation::RetryDrops | Mutation::RetriesAtTheBack, Settlement::Retry { .. }) => ack,
            (Mutation::ReleaseCountsAsFailure, Settlement::Release) => {
                Settlement::Retry { after: Duration::ZERO, history: Arc::new(History::default()) }
            }
            (_, settlement) => settlement.clone(),
        };
        Some((token, settlement))
    }

    async fn settle_one(&self, token: Token, settlement: &Settlement) -> Result<()> {
        let epoch = self.epoch();
        if self.cuts.is_some() && token.epoch != epoch {
            return Err(Error::new(ErrorKind::Stale, "the connection was cut"));
        }
        let token = Token { epoch: 0, ..token };
        let (envelope, before) = {
            let mut state = self.state.lock().unwrap();
            let at = state.held.iter().position(|(held, _)| *held == token);
            let before: Vec<_> = state.held.iter().take(at.unwrap_or(0)).map(|(held, _)| *held).collect();
            (at.map(|at| state.held.remove(at).1), before)
        };
        let Some(instead) = self.instead(token, settlement) else { return Ok(()) };
        if self.mutation == Mutation::LosesLastAcks && matches!(settlement, Settlement::Ack) {
            let due = {
                let mut state = self.state.lock().unwrap();
                state.deferred.push(instead);
                if state.deferred.len() < 100 { Vec::new() } else { std::mem::take(&mut state.deferred) }
            };
            self.inner.settle(&due).await;
            return Ok(());
        }
        if self.mutation == Mutation::AcksCumulatively && matches!(settlement, Settlement::Ack) {
            let before: Vec<_> = before.into_iter().map(|token| (token, Settlement::Ack)).collect();
            self.inner.settle(&before).await;
        }
        if let (Some(back), Some(envelope), Settlement::Retry { history, .. }) =
            (&self.back, envelope, settlement)
        {
            let (done, answers) = Completions::collect(1);
            let operation = OperationId(u128::from(token.tag) << 64 | 1);
            let (delay, history) = (Duration::ZERO, Some(history.clone()));
            let again = Outgoing { envelope, operation, delay, failed_attempts: 1, history };
            back.publish(vec![again], done).await;
            answers.await;
        }
        let answer = self.inner.settle(&[instead]).await.pop().unwrap();
        match (self.mutation, answer) {
            (Mutation::StaleIsOk, Err(error)) if error.kind() == ErrorKind::Stale => Ok(()),
            (Mutation::RejectsIntoNothing, Err(error)) if error.kind() == ErrorKind::NoDeadLetter => {
                self.inner.settle(&[(token, Settlement::Ack)]).await.pop().unwrap()
            }
            (_, answer) => answer,
        }
    }
}

/// One bad answer for all, where that is what is broken.
fn together(mutation: Mutation, answers: Vec<Result<()>>) -> Vec<Result<()>> {
    match answers.iter().find_map(|answer| answer.clone().err()) {
        Some(error) if mutation == Mutation::OneErrorFailsAll => {
            answers.iter().map(|_| Err(error.clone())).collect()
        }
        _ => answers,
    }
}

#[async_trait]
impl Consumer for MutantConsumer {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn endpoint(&self) -> &Endpoint {
        self.inner.endpoint()
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        self.reconnect().await;
        if self.wedged.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            return Ok(Vec::new());
        }
        // The memory transport's receive may be dropped: it takes nothing before it returns.
        let mut received = tokio::select! {
            received = self.take(max, wait) => received?,
            () = self.cut(), if self.mutation != Mutation::KeepsLostDeliveries => return Ok(Vec::new()),
        };
        if self.mutation == Mutation::WedgesOnForeign
            && received.iter().any(|delivery| delivery.envelope.headers.get(FOREIGN).is_some())
        {
            self.wedged.store(true, Ordering::SeqCst);
            return Ok(Vec::new());
        }
        let epoch = self.state.lock().unwrap().epoch;
        for delivery in &mut received {
            self.mutate(delivery);
            let held = (delivery.token, delivery.envelope.clone());
            self.state.lock().unwrap().held.push(held);
            delivery.token.epoch = epoch;
        }
        if self.mutation == Mutation::AcksOnReceipt {
            let acks: Vec<_> = self.state.lock().unwrap().held.drain(..).collect();
            let acks: Vec<_> = acks.into_iter().map(|(token, _)| (token, Settlement::Ack)).collect();
            self.inner.settle(&acks).await;
        }
        Ok(received)
    }

    fn has_dead_letter(&self) -> bool {
        self.inner.has_dead_letter()
    }

    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for (token, settlement) in batch {
            answers.push(self.settle_one(*token, settlement).await);
        }
        together(self.mutation, answers)
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Result<()>> {
        match self.mutation {
            Mutation::IgnoresExtensions => tokens.iter().map(|_| Ok(())).collect(),
            Mutation::StaleIsOk => {
                self.inner.extend(tokens, by).await;
                tokens.iter().map(|_| Ok(())).collect()
            }
            _ => together(self.mutation, self.inner.extend(tokens, by).await),
        }
    }

    fn epoch(&self) -> u64 {
        match &self.cuts {
            Some(cuts) if self.mutation != Mutation::KeepsLostDeliveries => *cuts.borrow(),
            _ => self.state.lock().unwrap().epoch,
        }
    }

    async fn stop(&self) {
        if !matches!(self.mutation, Mutation::IgnoresStop | Mutation::ReceivesAfterClose) {
            self.inner.stop().await;
        }
    }

    async fn close(&self) -> Result<()> {
        if self.mutation == Mutation::ReceivesAfterClose {
            return Ok(());
        }
        // A connection that ends gives back what it held.
        if self.cuts.is_some() {
            let held: Vec<_> = self.state.lock().unwrap().held.drain(..).collect();
            let held: Vec<_> = held.into_iter().map(|(token, _)| (token, Settlement::Release)).collect();
            self.inner.settle(&held).await;
        }
        self.inner.close().await
    }
}
