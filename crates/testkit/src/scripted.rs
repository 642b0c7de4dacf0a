//! Drivers that answer as a test says. They inject faults into the portable layer; they never stand in for a broker.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use throughline_core::capabilities::{Capabilities, MEMORY};
use throughline_core::driver::{
    Completions, Consumer, Delivery, Endpoint, Outgoing, Publisher, Receipt, Settlement, Token,
};
use throughline_core::{Envelope, Error, ErrorKind, Result, Retry};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

fn endpoint() -> Endpoint {
    Endpoint { destination: "scripted".into(), ..Endpoint::default() }
}

/// A passing error that is safe to repeat.
pub fn safe() -> Error {
    Error::new(ErrorKind::Disconnected, "scripted: safe").with_retry(Retry::Safe)
}

/// An error after which nobody knows.
pub fn uncertain() -> Error {
    Error::new(ErrorKind::Disconnected, "scripted: uncertain").with_retry(Retry::Uncertain)
}

/// An error that would come again.
pub fn never() -> Error {
    Error::new(ErrorKind::Refused, "scripted: never")
}

/// What becomes of a message.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Accepted.
    Accept,
    /// The broker has it so much later; the rest of the batch waits for that.
    After(Duration),
    /// Failed.
    Fail(Error),
    /// Never answered, and not dropped either.
    Silence,
    /// Dropped without an answer.
    Drop,
}

type Script = Box<dyn FnMut(&Outgoing) -> Reply + Send>;

/// A publisher that answers by a script and keeps what it was given.
pub struct ScriptedPublisher {
    capabilities: Capabilities,
    endpoint: Endpoint,
    script: Mutex<Script>,
    batches: Mutex<Vec<Vec<Outgoing>>>,
    silent: Mutex<Vec<Completions>>,
    /// Calls wait while this is true.
    held: watch::Sender<bool>,
    closed: AtomicUsize,
}

impl ScriptedPublisher {
    /// A publisher that asks the script what becomes of each message.
    pub fn new(script: impl FnMut(&Outgoing) -> Reply + Send + 'static) -> Arc<Self> {
        Self::with(MEMORY, script)
    }

    /// The same, with other capabilities.
    pub fn with(
        capabilities: Capabilities,
        script: impl FnMut(&Outgoing) -> Reply + Send + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            capabilities,
            endpoint: endpoint(),
            script: Mutex::new(Box::new(script)),
            batches: Mutex::default(),
            silent: Mutex::default(),
            held: watch::channel(false).0,
            closed: AtomicUsize::new(0),
        })
    }

    /// Lets calls wait, or go on.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// What came so far, call by call.
    pub fn batches(&self) -> Vec<Vec<Outgoing>> {
        self.batches.lock().unwrap().clone()
    }

    /// The payloads that came so far, as text, in order.
    pub fn texts(&self) -> Vec<String> {
        self.batches().iter().flatten().map(|message| text(&message.envelope)).collect()
    }

    /// How often it was closed.
    pub fn closed(&self) -> usize {
        self.closed.load(Ordering::SeqCst)
    }
}

/// An envelope's payload, as text.
pub fn text(envelope: &Envelope) -> String {
    String::from_utf8_lossy(envelope.payload.as_deref().unwrap_or_default()).into_owned()
}

#[async_trait]
impl Publisher for ScriptedPublisher {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn measure(&self, message: &Outgoing) -> Result<usize> {
        Ok(message.envelope.payload_len())
    }

    async fn publish(&self, batch: Vec<Outgoing>, done: Completions) {
        self.batches.lock().unwrap().push(batch.clone());
        self.held.subscribe().wait_for(|held| !held).await.unwrap();
        let mut silent = false;
        for (index, message) in batch.iter().enumerate() {
            let reply = (self.script.lock().unwrap())(message);
            match reply {
                Reply::After(pause) => {
                    tokio::time::sleep(pause).await;
                    done.complete(index, Ok(Receipt::default()));
                }
                Reply::Accept => done.complete(index, Ok(Receipt::default())),
                Reply::Fail(error) => done.complete(index, Err(error)),
                Reply::Silence => silent = true,
                Reply::Drop => {}
            }
        }
        if silent {
            self.silent.lock().unwrap().push(done);
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A consumer that hands out what a test feeds it, and keeps what was settled.
pub struct ScriptedConsumer {
    capabilities: Capabilities,
    endpoint: Endpoint,
    feed: Mutex<VecDeque<Result<Delivery>>>,
    fed: Notify,
    calls: Mutex<Vec<Vec<(Token, Settlement)>>>,
    extended: Mutex<Vec<(Vec<Token>, Duration)>>,
    /// Errors for the next settlements of these tags, and extensions, in order.
    faults: Mutex<VecDeque<(u64, Error)>>,
    epoch: AtomicU64,
    tags: AtomicU64,
    stopped: watch::Sender<bool>,
    closed: AtomicUsize,
    has_dead_letter: AtomicBool,
    acks_now: AtomicBool,
}

impl ScriptedConsumer {
    /// A consumer with the memory transport's capabilities.
    pub fn new() -> Arc<Self> {
        Self::with(MEMORY)
    }

    /// A consumer with these capabilities.
    pub fn with(capabilities: Capabilities) -> Arc<Self> {
        Arc::new(Self {
            capabilities,
            endpoint: endpoint(),
            feed: Mutex::default(),
            fed: Notify::new(),
            calls: Mutex::default(),
            extended: Mutex::default(),
            faults: Mutex::default(),
            epoch: AtomicU64::new(1),
            tags: AtomicU64::new(0),
            stopped: watch::channel(false).0,
            closed: AtomicUsize::new(0),
            has_dead_letter: AtomicBool::new(false),
            acks_now: AtomicBool::new(false),
        })
    }

    /// Feeds a message; gives its tag, which counts from 1.
    pub fn feed(&self, envelope: Envelope) -> u64 {
        self.feed_with(envelope, |_| {})
    }

    /// Feeds a message after a change to its delivery.
    pub fn feed_with(&self, envelope: Envelope, change: impl FnOnce(&mut Delivery)) -> u64 {
        let tag = self.tags.fetch_add(1, Ordering::SeqCst) + 1;
        let token = Token { epoch: self.epoch.load(Ordering::SeqCst), tag };
        let mut delivery = Delivery::new(Arc::new(envelope), token);
        change(&mut delivery);
        self.feed.lock().unwrap().push_back(Ok(delivery));
        self.fed.notify_one();
        tag
    }

    /// Feeds an error of `receive`.
    pub fn feed_error(&self, error: Error) {
        self.feed.lock().unwrap().push_back(Err(error));
        self.fed.notify_one();
    }

    /// Lets the next settlement or extension of a tag fail.
    pub fn fail(&self, tag: u64, error: Error) {
        self.faults.lock().unwrap().push_back((tag, error));
    }

    /// Loses the connection: older tokens are stale.
    pub fn lose_connection(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// The settlements so far, call by call: tag and name.
    pub fn settled(&self) -> Vec<Vec<(u64, &'static str)>> {
        let calls = self.calls.lock().unwrap();
        calls.iter().map(|call| call.iter().map(|(token, s)| (token.tag, s.name())).collect()).collect()
    }

    /// The settlements so far, in order.
    pub fn settlements(&self) -> Vec<Settlement> {
        let calls = self.calls.lock().unwrap();
        calls.iter().flatten().map(|(_, settlement)| settlement.clone()).collect()
    }

    /// The tags of the extensions so far, call by call.
    pub fn extended(&self) -> Vec<Vec<u64>> {
        let calls = self.extended.lock().unwrap();
        calls.iter().map(|(call, _)| call.iter().map(|token| token.tag).collect()).collect()
    }

    /// Says whether what is rejected has somewhere to go.
    pub fn set_has_dead_letter(&self, has: bool) {
        self.has_dead_letter.store(has, Ordering::SeqCst);
    }

    /// Acks in the thread of who asks, from now on; to be said before it is opened.
    pub fn set_acks_now(&self) {
        self.acks_now.store(true, Ordering::SeqCst);
    }

    /// By how long each of those calls extended.
    pub fn extended_by(&self) -> Vec<Duration> {
        self.extended.lock().unwrap().iter().map(|(_, by)| *by).collect()
    }

    /// How often it was closed.
    pub fn closed(&self) -> usize {
        self.closed.load(Ordering::SeqCst)
    }

    fn fault(&self, token: Token) -> Result<()> {
        let mut faults = self.faults.lock().unwrap();
        match faults.iter().position(|(tag, _)| *tag == token.tag) {
            Some(at) => Err(faults.remove(at).unwrap().1),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Consumer for ScriptedConsumer {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let deadline = Instant::now() + wait;
        let mut stopped = self.stopped.subscribe();
        loop {
            let mut batch = Vec::new();
            {
                let mut feed = self.feed.lock().unwrap();
                while batch.len() < max.get() {
                    match feed.pop_front() {
                        Some(Ok(delivery)) => batch.push(delivery),
                        Some(Err(error)) if batch.is_empty() => return Err(error),
                        Some(error) => {
                            feed.push_front(error);
                            break;
                        }
                        None => break,
                    }
                }
            }
            if !batch.is_empty() || *stopped.borrow() || Instant::now() >= deadline {
                return Ok(batch);
            }
            tokio::select! {
                () = self.fed.notified() => {}
                () = tokio::time::sleep_until(deadline) => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
        }
    }

    fn has_dead_letter(&self) -> bool {
        self.has_dead_letter.load(Ordering::SeqCst)
    }

    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Result<()>> {
        self.calls.lock().unwrap().push(batch.to_vec());
        batch.iter().map(|(token, _)| self.fault(*token)).collect()
    }

    fn ack_now(&self, tokens: &[Token]) -> Option<Vec<Result<()>>> {
        if !self.acks_now.load(Ordering::SeqCst) {
            return None;
        }
        if !tokens.is_empty() {
            self.calls.lock().unwrap().push(tokens.iter().map(|token| (*token, Settlement::Ack)).collect());
        }
        Some(tokens.iter().map(|token| self.fault(*token)).collect())
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Result<()>> {
        self.extended.lock().unwrap().push((tokens.to_vec(), by));
        tokens.iter().map(|token| self.fault(*token)).collect()
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    async fn stop(&self) {
        self.stopped.send_replace(true);
    }

    async fn close(&self) -> Result<()> {
        self.closed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
