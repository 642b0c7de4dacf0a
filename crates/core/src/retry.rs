//! What went wrong with a message so far: the history that makes a retry visible and a dead letter explain itself.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;

/// One failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failure {
    /// When it failed, in milliseconds since the Unix epoch.
    #[serde(rename = "at", with = "millis")]
    pub at: Timestamp,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// The class of the error, low in cardinality: `timeout`, `http_503`.
    pub error: String,
    /// The error's text, for a person. Cut at 512 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The dependency that failed, such as `ads-api`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dependency: Option<String>,
    /// Which worker it failed on, such as its host's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Whether no other attempt is to follow, and only the dead letter could not be made yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given_up: bool,
}

impl Failure {
    /// The longest message that is kept, in bytes.
    pub const MAX_MESSAGE: usize = 512;
    /// The longest error class, dependency and worker that are kept, in bytes.
    pub const MAX_NAME: usize = 128;

    /// A failure of class `error`, now. The attempt is filled in by the delivery that is settled with it.
    pub fn new(error: impl Into<String>) -> Self {
        Self {
            at: Timestamp::now(),
            attempt: 0,
            error: error.into(),
            message: String::new(),
            dependency: None,
            worker: None,
            given_up: false,
        }
        .clipped()
    }

    /// The same, with no text longer than may travel.
    fn clipped(mut self) -> Self {
        self.error = clip(self.error, Self::MAX_NAME);
        self.message = clip(self.message, Self::MAX_MESSAGE);
        self.dependency = self.dependency.map(|dependency| clip(dependency, Self::MAX_NAME));
        self.worker = self.worker.map(|worker| clip(worker, Self::MAX_NAME));
        self
    }

    /// The same failure with a text for a person.
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self.clipped()
    }

    /// The same failure, naming the dependency that failed.
    pub fn dependency(mut self, dependency: impl Into<String>) -> Self {
        self.dependency = Some(dependency.into());
        self.clipped()
    }

    /// The same failure, after which the message is given up: what waits only for its dead-letter destination is
    /// [retried](crate::Delivery::retry) with it, and whoever receives it again makes the dead letter without another attempt.
    pub fn given_up(mut self) -> Self {
        self.given_up = true;
        self
    }

    /// The same failure, naming the worker it happened on.
    pub fn worker(mut self, worker: impl Into<String>) -> Self {
        self.worker = Some(worker.into());
        self.clipped()
    }
}

/// One line for a person: `http_503 (ads-api): service unavailable`.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        if let Some(dependency) = &self.dependency {
            write!(f, " ({dependency})")?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

/// `"timeout"` is a failure of class `timeout`.
impl From<&str> for Failure {
    fn from(error: &str) -> Self {
        Self::new(error)
    }
}

/// Cuts at a character boundary. Control characters become spaces: each would be six bytes in the header.
fn clip(mut text: String, max: usize) -> String {
    if text.contains(char::is_control) {
        text = text.replace(char::is_control, " ");
    }
    if text.len() > max {
        let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// The failed attempts of a message, oldest first, bounded in size: the first and the latest are kept, and how many
/// between were left out is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The failures that are kept.
    #[serde(rename = "a", default)]
    failures: Vec<Failure>,
    /// How many were left out, after the first.
    #[serde(rename = "o", default, skip_serializing_if = "is_zero")]
    omitted: u32,
    /// Whether earlier attempts are known to be missing, because the broker retried in place and could not carry them.
    #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl History {
    /// How many failures are kept.
    pub const MAX_FAILURES: usize = 16;

    /// Adds the latest failure.
    pub fn push(&mut self, failure: Failure) {
        self.failures.push(failure.clipped());
        self.cut();
    }

    fn cut(&mut self) {
        let over = self.failures.len().saturating_sub(Self::MAX_FAILURES);
        if over > 0 {
            self.failures.drain(1..=over);
            self.omitted = self.omitted.saturating_add(u32::try_from(over).unwrap_or(u32::MAX));
        }
    }

    /// The failures that are kept, oldest first.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// The latest failure.
    pub fn last(&self) -> Option<&Failure> {
        self.failures.last()
    }

    /// Whether the message was given up, and is to become a dead letter.
    pub fn is_given_up(&self) -> bool {
        self.last().is_some_and(|failure| failure.given_up)
    }

    pub(crate) fn set_given_up(&mut self, given_up: bool) {
        if let Some(last) = self.failures.last_mut() {
            last.given_up = given_up;
        }
    }

    /// How many attempts had failed with the latest failure, for a driver that knows of so many before: one more, unless
    /// the message was given up on an earlier delivery.
    pub fn failed_attempts(&self, before: u32) -> u32 {
        let last = self.last().map(|failure| failure.attempt).filter(|attempt| *attempt > 0);
        last.unwrap_or_else(|| before.saturating_add(1))
    }

    /// How many failures it knows of, those left out for size included.
    pub fn count(&self) -> u32 {
        u32::try_from(self.failures.len()).unwrap_or(u32::MAX).saturating_add(self.omitted)
    }

    /// How many failures were left out for size.
    pub fn omitted(&self) -> u32 {
        self.omitted
    }

    /// Whether earlier attempts are known to be missing.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// Says that earlier attempts are known to be missing.
    pub fn set_partial(&mut self) {
        self.partial = true;
    }

    /// Whether there are no failures.
    pub fn is_empty(&self) -> bool {
        self.failures.is_empty() && !self.partial
    }

    /// The form that travels in a header: ASCII JSON.
    pub fn to_header(&self) -> String {
        crate::pack::ascii_json(self)
    }

    /// Reads [`to_header`](Self::to_header), and cuts what is larger than we write; `None` where it is not that.
    pub fn from_header(text: &str) -> Option<Self> {
        let mut history: Self = serde_json::from_str(text).ok()?;
        history.failures = history.failures.into_iter().map(Failure::clipped).collect();
        history.cut();
        Some(history)
    }
}

mod millis {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::Timestamp;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.as_millis())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        i64::deserialize(deserializer).map(Timestamp::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_bounded_keeps_the_first_and_the_latest_and_counts_the_rest() {
        let mut history = History::default();
        for attempt in 1..=40 {
            let mut failure = Failure::new("timeout").message("ä\u{1}".repeat(10_000)).dependency("ads-api");
            failure.attempt = attempt;
            history.push(failure);
        }
        let attempts: Vec<_> = history.failures().iter().map(|f| f.attempt).collect();
        assert_eq!((attempts[0], attempts[1], attempts[15]), (1, 26, 40));
        assert_eq!((attempts.len(), history.omitted()), (16, 24));
        let header = history.to_header();
        // 16 failures of at most 512 bytes of message, each character escaped as six: far from any frame limit.
        assert!(header.is_ascii() && header.len() < 32_000, "{}", header.len());
        assert_eq!(History::from_header(&header), Some(history.clone()));
        // A foreign one is cut to the same bounds.
        history.failures = vec![history.failures[0].clone(); 5000];
        history.failures[7].message = "x".repeat(9999);
        let cut = History::from_header(&history.to_header()).unwrap();
        assert_eq!((cut.failures().len(), cut.omitted()), (16, 24 + 4984));
        assert!(cut.failures().iter().all(|failure| failure.message.len() <= 512));
        assert_eq!(History::from_header("not json"), None);
    }
}
