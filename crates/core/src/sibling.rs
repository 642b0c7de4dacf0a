//! Other places on the broker of an address: what tools (conformance, verification) make for their own use.

/// A place that is to have an address of its own, on the broker and with the connection options of another address.
/// [`Registration::sibling`](crate::driver::Registration::sibling) gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sibling<'a> {
    /// What it is.
    pub place: Place<'a>,
    /// The queue for what is rejected; created with it.
    pub dead_letter: Option<&'a str>,
    /// Whether it is made so that higher priorities go first, where that has to be asked for.
    pub priorities: bool,
    /// Whether it must be there: embedded transports are not to create it on first use.
    pub must_exist: bool,
}

/// What a [`Sibling`] is. Names are at most 40 characters of `a`–`z`, `0`–`9` and `-`, which every broker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A work queue: its consumers compete. Where a broker has only topics, a topic with one subscription or group.
    Queue(&'a str),
    /// A topic: each of its subscriptions gets every message.
    Topic {
        /// Its name.
        topic: &'a str,
        /// The subscription, which is to be created and consumed from; `None` for publishing only.
        subscription: Option<&'a str>,
    },
}

impl<'a> Sibling<'a> {
    /// A work queue.
    pub const fn queue(name: &'a str) -> Self {
        Self::of(Place::Queue(name))
    }

    /// A topic, for publishing.
    pub const fn topic(topic: &'a str) -> Self {
        Self::of(Place::Topic { topic, subscription: None })
    }

    /// A subscription of a topic.
    pub const fn subscription(topic: &'a str, subscription: &'a str) -> Self {
        Self::of(Place::Topic { topic, subscription: Some(subscription) })
    }

    const fn of(place: Place<'a>) -> Self {
        Self { place, dead_letter: None, priorities: false, must_exist: false }
    }
}
