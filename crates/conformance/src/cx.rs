//! What a case works with: destinations of its own, and waits that are bounded.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use throughline_core::driver::{self, Completions, Outgoing, Place, Sibling, Transport};
use throughline_core::{
    Address, Capabilities, ConsumeOptions, Consumer, Delivery, Depth, PublishOptions, Publisher, Receipt,
    Result,
};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::harness::{Fragile, Harness};
use crate::messages::{Seen, text};
use crate::suite::Settings;
use crate::verdict::{Fail, ensure};

/// A case's surroundings.
#[derive(Clone)]
pub(crate) struct Cx(Arc<Inner>);

struct Inner {
    harness: Arc<dyn Harness>,
    transport: Arc<dyn Transport>,
    settings: Settings,
    /// In the names of all that the case makes.
    id: String,
    names: AtomicUsize,
    made: Mutex<Vec<Address>>,
    opened: Mutex<Vec<Arc<dyn Transport>>>,
    notes: Mutex<Vec<String>>,
    doing: Mutex<&'static str>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cx {
    pub(crate) fn new(harness: Arc<dyn Harness>, transport: Arc<dyn Transport>, settings: Settings) -> Self {
        let random = Uuid::now_v7().simple().to_string();
        // The end of it is random, the beginning is the time.
        let id = random.chars().skip(20).collect();
        Self(Arc::new(Inner {
            harness,
            transport,
            settings,
            id,
            names: AtomicUsize::new(0),
            made: Mutex::default(),
            opened: Mutex::default(),
            notes: Mutex::default(),
            doing: Mutex::new("beginning"),
        }))
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(crate) fn transport(&self) -> &Arc<dyn Transport> {
        &self.0.transport
    }

    pub(crate) fn capabilities(&self) -> &Capabilities {
        self.0.transport.capabilities()
    }

    /// Tells what the report is to show besides the outcome.
    pub(crate) fn note(&self, note: String) {
        lock(&self.0.notes).push(note);
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.0.notes))
    }

    pub(crate) fn made(&self) -> Vec<Address> {
        std::mem::take(&mut lock(&self.0.made))
    }

    /// What the case is at, for the one that does not end.
    pub(crate) fn doing(&self) -> &'static str {
        *lock(&self.0.doing)
    }

    pub(crate) fn step(&self, doing: &'static str) {
        *lock(&self.0.doing) = doing;
    }

    /// Another transport, independent of the case's own; closed when the case has ended.
    pub(crate) async fn connect(&self) -> Result<Arc<dyn Transport>> {
        let transport = self.0.harness.connect().await?;
        lock(&self.0.opened).push(transport.clone());
        Ok(transport)
    }

    /// A transport that can be cut; closed when the case has ended.
    pub(crate) async fn fragile(&self) -> Result<Option<Fragile>> {
        let fragile = self.0.harness.fragile().await?;
        lock(&self.0.opened).extend(fragile.as_ref().map(|fragile| fragile.transport.clone()));
        Ok(fragile)
    }

    pub(crate) fn opened(&self) -> Vec<Arc<dyn Transport>> {
        std::mem::take(&mut lock(&self.0.opened))
    }

    pub(crate) async fn put_foreign(&self, to: &Address) -> Result<bool> {
        self.0.harness.put_foreign(to).await
    }

    /// A name that nothing else has.
    pub(crate) fn name(&self) -> String {
        let number = self.0.names.fetch_add(1, Ordering::Relaxed);
        format!("tlc-{}-{number}", self.0.id)
    }

    pub(crate) fn address(&self, sibling: &Sibling<'_>) -> Option<Address> {
        self.0.harness.address(sibling)
    }

    /// The address, which the transport must have.
    pub(crate) fn must_address(&self, sibling: &Sibling<'_>) -> Result<Address, Fail> {
        self.address(sibling).ok_or_else(|| Fail("the harness gives no address for a queue".to_owned()))
    }

    /// Creates what an address names; deleted when the case has ended.
    pub(crate) async fn create(&self, address: &Address) -> Result<Vec<String>> {
        self.step("creating a destination");
        lock(&self.0.made).push(address.clone());
        self.transport().create(address).await.map_err(|error| error.at("create", address))
    }

    /// A new work queue.
    pub(crate) async fn queue(&self) -> Result<Address, Fail> {
        let name = self.name();
        let address = self.must_address(&Sibling::queue(&name))?;
        self.create(&address).await?;
        Ok(address)
    }

    /// A new work queue with a queue for dead letters, and the address of that.
    pub(crate) async fn queue_with_dead_letters(&self) -> Result<(Address, Address), Fail> {
        let (name, dead) = (self.name(), self.name());
        let dead_letters = self.must_address(&Sibling::queue(&dead))?;
        // Deleted too; `create` of the queue makes it.
        lock(&self.0.made).push(dead_letters.clone());
        let sibling = Sibling { dead_letter: Some(&dead), ..Sibling::queue(&name) };
        let queue = self.must_address(&sibling)?;
        self.create(&queue).await?;
        Ok((queue, dead_letters))
    }

    /// A new topic with subscriptions; `None` where the transport has no topics.
    pub(crate) async fn topic(&self, subscriptions: usize) -> Result<Option<(Address, Vec<Address>)>, Fail> {
        let name = self.name();
        let Some(topic) = self.address(&Sibling::topic(&name)) else { return Ok(None) };
        self.create(&topic).await?;
        let mut addresses = Vec::new();
        for _ in 0..subscriptions {
            let subscription = self.name();
            let address = self.must_address(&Sibling::subscription(&name, &subscription))?;
            self.create(&address).await?;
            addresses.push(address);
        }
        Ok(Some((topic, addresses)))
    }

    /// The address of something that does not exist.
    pub(crate) fn missing(&self, place: Place<'_>) -> Option<Address> {
        self.address(&Sibling { place, must_exist: true, ..Sibling::queue("") })
    }

    pub(crate) async fn publisher(&self, to: &Address) -> Result<Publisher> {
        self.publisher_on(self.transport(), to, PublishOptions::default()).await
    }

    pub(crate) async fn publisher_on(
        &self,
        transport: &Arc<dyn Transport>,
        to: &Address,
        options: PublishOptions,
    ) -> Result<Publisher> {
        self.step("opening a publisher");
        let driver = transport.publisher(to).await.map_err(|error| error.at("publish", to))?;
        Ok(Publisher::new(driver, to, options))
    }

    pub(crate) async fn consumer(&self, from: &Address) -> Result<Consumer> {
        self.consumer_with(from, ConsumeOptions::default()).await
    }

    /// A consumer with the shortest lease that the broker does well.
    pub(crate) async fn short_lease_consumer(&self, from: &Address) -> Result<Consumer> {
        self.consumer_with(from, self.short_lease()).await
    }

    pub(crate) fn short_lease(&self) -> ConsumeOptions {
        ConsumeOptions { lease: self.settings().lease, ..ConsumeOptions::default() }
    }

    pub(crate) async fn consumer_with(&self, from: &Address, options: ConsumeOptions) -> Result<Consumer> {
        self.consumer_on(self.transport(), from, options).await
    }

    pub(crate) async fn consumer_on(
        &self,
        transport: &Arc<dyn Transport>,
        from: &Address,
        options: ConsumeOptions,
    ) -> Result<Consumer> {
        self.step("opening a consumer");
        let driver = transport.consumer(from, &options).await.map_err(|error| error.at("consume", from))?;
        Ok(Consumer::new(driver, from, options))
    }

    pub(crate) async fn raw_publisher(&self, to: &Address) -> Result<Arc<dyn driver::Publisher>> {
        self.step("opening a driver's publisher");
        self.transport().publisher(to).await
    }

    pub(crate) async fn raw_consumer(
        &self,
        from: &Address,
        options: &ConsumeOptions,
    ) -> Result<Arc<dyn driver::Consumer>> {
        self.step("opening a driver's consumer");
        self.transport().consumer(from, options).await
    }

    /// The result of what must end in time.
    pub(crate) async fn within<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = T>,
    ) -> Result<T, Fail> {
        self.step(doing);
        let patience = self.settings().patience;
        timeout(patience, work).await.map_err(|_| Fail(format!("{doing} did not end within {patience:?}")))
    }

    /// The next delivery, in time.
    pub(crate) async fn next(&self, consumer: &mut Consumer) -> Result<Delivery, Fail> {
        match self.within("waiting for a message", consumer.next()).await? {
            Some(delivery) => Ok(delivery?),
            None => Err(Fail("the stream ended where a message was due".to_owned())),
        }
    }

    /// Nothing may come.
    pub(crate) async fn nothing(&self, consumer: &mut Consumer) -> Result<(), Fail> {
        self.nothing_for(consumer, self.settings().silence).await
    }

    pub(crate) async fn nothing_for(&self, consumer: &mut Consumer, time: Duration) -> Result<(), Fail> {
        self.step("watching that nothing comes");
        match timeout(time, consumer.next()).await {
            Err(_) | Ok(None) => Ok(()),
            Ok(Some(Err(error))) => Err(error.into()),
            Ok(Some(Ok(delivery))) => Err(Fail(format!(
                "a message came where none was due: '{}', attempt {}, receive count {:?}",
                text(delivery.envelope()),
                delivery.attempt(),
                delivery.receive_count()
            ))),
        }
    }

    /// Takes and acks messages until `count` different ones have come.
    pub(crate) async fn take(&self, consumer: &mut Consumer, count: usize) -> Result<Seen, Fail> {
        let mut seen = Seen::default();
        while seen.distinct() < count {
            let delivery = match self.next(consumer).await {
                Ok(delivery) => delivery,
                Err(Fail(why)) => {
                    return Err(Fail(format!("{why}: {} of {count} messages have come", seen.distinct())));
                }
            };
            seen.add(text(delivery.envelope()));
            delivery.ack().await?;
        }
        self.judge(&seen)?;
        Ok(seen)
    }

    /// Tells the duplicates, and fails where they are more than a broker's rare ones.
    pub(crate) fn judge(&self, seen: &Seen) -> Result<(), Fail> {
        let duplicates = seen.duplicates();
        if duplicates > 0 {
            self.note(format!("{duplicates} duplicates of {} messages", seen.distinct()));
        }
        ensure!(
            duplicates * 100 <= seen.distinct(),
            "{duplicates} duplicates of {} messages, without any fault",
            seen.distinct()
        );
        Ok(())
    }

    /// Sends through a driver, and waits for the answers.
    pub(crate) async fn raw_publish(
        &self,
        publisher: &dyn driver::Publisher,
        batch: Vec<Outgoing>,
    ) -> Result<Vec<Result<Receipt>>, Fail> {
        let (done, answers) = Completions::collect(batch.len());
        self.within("publishing through the driver", async {
            publisher.publish(batch, done).await;
            answers.await
        })
        .await
    }

    /// At least one delivery from a driver, in time.
    pub(crate) async fn raw_receive(
        &self,
        consumer: &dyn driver::Consumer,
        max: usize,
    ) -> Result<Vec<driver::Delivery>, Fail> {
        self.step("receiving from the driver");
        let max = NonZeroUsize::new(max).unwrap_or(NonZeroUsize::MIN);
        let until = Instant::now() + self.settings().patience;
        loop {
            let wait = until.saturating_duration_since(Instant::now());
            let received = self.within("receiving from the driver", consumer.receive(max, wait)).await??;
            ensure!(received.len() <= max.get(), "{} messages, where {max} were asked for", received.len());
            if !received.is_empty() {
                return Ok(received);
            }
            ensure!(Instant::now() < until, "no message within {:?}", self.settings().patience);
        }
    }

    /// Exactly `count` deliveries from a driver, unsettled.
    pub(crate) async fn raw_receive_all(
        &self,
        consumer: &dyn driver::Consumer,
        count: usize,
    ) -> Result<Vec<driver::Delivery>, Fail> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.raw_receive(consumer, count - all.len()).await?);
        }
        Ok(all)
    }

    /// Asks again until the depth is as it must become: brokers count a moment late.
    pub(crate) async fn depth(
        &self,
        of: &Address,
        what: &'static str,
        is_right: impl Fn(&Depth) -> bool + Send,
    ) -> Result<(), Fail> {
        self.step(what);
        let until = Instant::now() + self.settings().patience;
        loop {
            let depth = self.transport().depth(of).await?;
            if is_right(&depth) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{what}: still {depth:?} after {:?}", self.settings().patience);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
