//! Where messages go: what an address names, or places that are made for this run and deleted after it.

use anyhow::{Context, Result, bail};
use throughline::driver::{Place as Kind, Sibling};
use throughline::{Address, Bus, ErrorKind, registered};

/// A connected bus with a destination.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) bus: Bus,
    /// Its dead letters, where it has any.
    pub(crate) dead_letters: Option<Bus>,
    is_ours: bool,
}

impl Place {
    /// Events, for one subscriber.
    pub(crate) async fn for_events(url: &str) -> Result<Self> {
        let name = unique();
        let kind = Kind::Topic { topic: &name, subscription: Some(&name) };
        Self::open(url, Sibling { place: kind, ..Sibling::queue(&name) }).await
    }

    /// Jobs, for competing workers, with dead letters.
    pub(crate) async fn for_jobs(url: &str) -> Result<Self> {
        let (name, dead) = (unique(), unique());
        Self::open(url, Sibling { dead_letter: Some(&dead), ..Sibling::queue(&name) }).await
    }

    async fn open(url: &str, wanted: Sibling<'_>) -> Result<Self> {
        let address: Address = url.parse()?;
        let transport = registered(&address)?;
        let sibling = |wanted: &Sibling<'_>| (transport.sibling)(&address, wanted);
        let bus = Bus::connect_to(address.clone()).await?;
        // Who else should know what an address names?
        let named = bus.publisher().await;
        bus.close().await?;
        match named {
            Err(error) if error.kind() == ErrorKind::InvalidAddress => {
                let own = sibling(&wanted).with_context(|| error.to_string())?;
                let dead = wanted.dead_letter.and_then(|name| sibling(&Sibling::queue(name)));
                Self::connect(own, dead, true).await
            }
            Err(error) => Err(error.into()),
            Ok(_) => {
                let dead = address.option("dead_letter").and_then(|name| sibling(&Sibling::queue(name)));
                if wanted.dead_letter.is_some() && dead.is_none() {
                    bail!("{address} has no dead_letter=: what fails for good would have nowhere to go");
                }
                Self::connect(address, dead, false).await
            }
        }
    }

    async fn connect(address: Address, dead: Option<Address>, is_ours: bool) -> Result<Self> {
        let bus = Bus::connect_to(address).await?;
        if is_ours {
            bus.create("").await?;
        }
        let dead_letters = match dead {
            Some(dead) => Some(Bus::connect_to(dead).await?),
            None => None,
        };
        if let (true, Some(dead)) = (is_ours, &dead_letters) {
            // On most transports it is there already.
            dead.create("").await?;
        }
        Ok(Self { bus, dead_letters, is_ours })
    }

    /// Deletes what was made, and closes: all of it, whatever fails on the way. The first error is told.
    pub(crate) async fn leave(self) -> Result<()> {
        let mut left = Ok(());
        for bus in [Some(self.bus), self.dead_letters].into_iter().flatten() {
            if self.is_ours {
                left = left.and(bus.delete("").await.map(drop));
            }
            left = left.and(bus.close().await);
        }
        Ok(left?)
    }
}

/// A name of this run's own that every broker takes.
fn unique() -> String {
    let id = uuid::Uuid::now_v7().simple().to_string();
    format!("campaign-sync-{}", id.get(20..).unwrap_or_default())
}
