//! Why a handler failed, and what is to become of the message.

use std::any::{Any, type_name};
use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use throughline_core::{Error, ErrorKind, Failure};

/// An error of any type, as handlers and tower's services have it.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A failed attempt: whether another may succeed, what kind of failure it was, and which dependency failed.
///
/// `?` turns every ordinary error into one that is retried; its class is then the error's type. The text (the error's,
/// and its causes') goes into the message's history, spans and dead letters, cut at 512 bytes: errors that a handler gives
/// must not hold secrets.
///
/// Like `anyhow::Error` it is not a [`std::error::Error`] itself, so that `?` can work. Cloning is one reference count.
#[derive(Clone)]
pub struct HandlerError(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    permanent: bool,
    class: Cow<'static, str>,
    dependency: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
    source: Arc<dyn StdError + Send + Sync>,
}

impl HandlerError {
    /// A failure that another attempt may mend.
    pub fn retryable<E: Into<BoxError> + 'static>(error: E) -> Self {
        let class = class_of(type_name::<E>());
        Self::from_parts(false, class, error.into())
    }

    /// A failure that would come again: to the dead letters at once.
    pub fn permanent<E: Into<BoxError> + 'static>(error: E) -> Self {
        Self::retryable(error).into_permanent()
    }

    /// A failure of something that the handler depends on, such as `ads-api`: retried, and named in the history, on the
    /// spans and in the dead letter. Names are few: not an address, not an id.
    pub fn dependency<E: Into<BoxError> + 'static>(name: impl Into<Cow<'static, str>>, error: E) -> Self {
        Self::retryable(error).with_dependency(name)
    }

    /// A failure whose type was erased, as tower's layers give it. A `HandlerError` in it comes back as it was.
    pub fn from_boxed(error: BoxError) -> Self {
        match error.downcast::<Carried>() {
            Ok(carried) => carried.0,
            Err(error) => Self::from_parts(false, "error".into(), error),
        }
    }

    fn from_parts(permanent: bool, class: Cow<'static, str>, source: BoxError) -> Self {
        Self(Arc::new(Inner { permanent, class, dependency: None, retry_after: None, source: source.into() }))
    }

    fn change(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// The same failure, of this class: low in cardinality, such as `http_503`. It becomes `error.type`.
    pub fn with_class(self, class: impl Into<Cow<'static, str>>) -> Self {
        self.change(|inner| inner.class = class.into())
    }

    /// The same failure, of this dependency.
    pub fn with_dependency(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.change(|inner| inner.dependency = Some(name.into()))
    }

    /// The same failure, to be tried again not before that long, such as a `Retry-After` says; the policy's delay where
    /// that is longer.
    pub fn with_retry_after(self, after: Duration) -> Self {
        self.change(|inner| inner.retry_after = Some(after))
    }

    /// The same failure, not to be tried again.
    pub fn into_permanent(self) -> Self {
        self.change(|inner| inner.permanent = true)
    }

    /// Whether it would come again.
    pub fn is_permanent(&self) -> bool {
        self.0.permanent
    }

    /// Its class.
    pub fn class(&self) -> &str {
        &self.0.class
    }

    /// The dependency that failed.
    pub fn failed_dependency(&self) -> Option<&str> {
        self.0.dependency.as_deref()
    }

    /// How long the next attempt is to wait at least.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The error itself.
    pub fn source(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.0.source
    }

    /// A failure for which a message was given up before.
    pub(crate) fn of_the_past(failure: &Failure) -> Self {
        let past = Self::permanent(failure.message.clone()).with_class(failure.error.clone());
        match &failure.dependency {
            Some(dependency) => past.with_dependency(dependency.clone()),
            None => past,
        }
    }

    /// As the history of a message keeps it.
    pub(crate) fn failure(&self, worker: &str) -> Failure {
        let failure = Failure::new(self.class()).message(self.to_string()).worker(worker);
        match self.failed_dependency() {
            Some(dependency) => failure.dependency(dependency),
            None => failure,
        }
    }
}

/// The error's text, and those of its causes that it does not repeat.
impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = self.0.source.to_string();
        f.write_str(&told)?;
        let mut cause = self.0.source.source();
        while let Some(next) = cause {
            let text = next.to_string();
            if !told.contains(&text) {
                write!(f, ": {text}")?;
                told.push_str(&text);
            }
            cause = next.source();
        }
        Ok(())
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError")
            .field("class", &self.0.class)
            .field("dependency", &self.0.dependency)
            .field("permanent", &self.0.permanent)
            .field("message", &format_args!("{self}"))
            .finish()
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        // One of ours says more of itself than its type does.
        match (&error as &dyn Any).downcast_ref::<Error>().map(Error::kind) {
            Some(ErrorKind::Undecodable) => Self::permanent(error).with_class("undecodable"),
            Some(kind) => Self::retryable(error).with_class(format!("{kind:?}")),
            None => Self::retryable(error),
        }
    }
}

/// A `HandlerError` on its way through code that wants a [`std::error::Error`].
#[derive(Debug)]
struct Carried(HandlerError);

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Carried {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.0.source())
    }
}

impl From<HandlerError> for BoxError {
    fn from(error: HandlerError) -> Self {
        Box::new(Carried(error))
    }
}

/// The type's name, but for texts and erased errors, whose type says nothing.
fn class_of(name: &'static str) -> Cow<'static, str> {
    let erased = name.contains("dyn ") || name.ends_with("str") || name.ends_with("String");
    Cow::Borrowed(if erased { "error" } else { name })
}

/// Says of a `Result`'s error what it means for the message: `client.send().await.dependency("ads-api")?`.
pub trait ResultExt<T> {
    /// The failure is that of a dependency; see [`HandlerError::dependency`].
    fn dependency(self, name: impl Into<Cow<'static, str>>) -> Result<T, HandlerError>;

    /// The failure would come again; see [`HandlerError::permanent`].
    fn permanent(self) -> Result<T, HandlerError>;

    /// The failure is of this class; see [`HandlerError::with_class`].
    fn class(self, class: impl Into<Cow<'static, str>>) -> Result<T, HandlerError>;
}

impl<T, E: Into<HandlerError>> ResultExt<T> for Result<T, E> {
    fn dependency(self, name: impl Into<Cow<'static, str>>) -> Result<T, HandlerError> {
        self.map_err(|error| error.into().with_dependency(name))
    }

    fn permanent(self) -> Result<T, HandlerError> {
        self.map_err(|error| error.into().into_permanent())
    }

    fn class(self, class: impl Into<Cow<'static, str>>) -> Result<T, HandlerError> {
        self.map_err(|error| error.into().with_class(class))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_errors_are_retried_and_named_by_their_type() {
        let read = || -> Result<(), HandlerError> { Ok(Err(std::io::Error::other("disk full"))?) };
        let error = read().unwrap_err();
        assert!(!error.is_permanent());
        assert_eq!((error.class(), error.to_string().as_str()), ("std::io::error::Error", "disk full"));
        assert_eq!(HandlerError::retryable("no luck").class(), "error");
        assert_eq!(HandlerError::retryable("no luck".to_owned()).class(), "error");
        let boxed: BoxError = "no luck".into();
        assert_eq!(HandlerError::retryable(boxed).class(), "error");
    }

    #[test]
    fn what_cannot_be_decoded_is_permanent_and_our_other_errors_are_named_by_their_kind() {
        let undecodable = HandlerError::from(Error::new(ErrorKind::Undecodable, "no JSON"));
        assert!(undecodable.is_permanent());
        assert_eq!(undecodable.class(), "undecodable");
        let lost = HandlerError::from(Error::new(ErrorKind::Disconnected, "lost"));
        assert!(!lost.is_permanent());
        assert_eq!(lost.class(), "Disconnected");
    }

    #[test]
    fn a_failure_names_class_dependency_and_causes_once() {
        let native = std::io::Error::other("connection refused");
        let error = Error::new(ErrorKind::Disconnected, "cannot connect").with_source(native);
        let failed: Result<(), _> = Err(error);
        let error = failed.dependency("ads-api").class("transport").unwrap_err();
        let failure = error.failure("host-1");
        assert_eq!(failure.to_string(), "transport (ads-api): cannot connect: connection refused");
        assert_eq!(failure.worker.as_deref(), Some("host-1"));
    }

    #[test]
    fn comes_back_as_it_was_from_code_that_erases_it() {
        let error = HandlerError::dependency("ads-api", "503").with_class("http_503").into_permanent();
        let back = HandlerError::from_boxed(error.into());
        assert_eq!((back.class(), back.failed_dependency()), ("http_503", Some("ads-api")));
        assert!(back.is_permanent());
        let foreign = HandlerError::from_boxed("elapsed".into());
        assert_eq!((foreign.class(), foreign.is_permanent()), ("error", false));
    }
}
