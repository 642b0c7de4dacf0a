//! How a case ends.

use std::error::Error as StdError;
use std::fmt;

use throughline_core::Error;

use crate::report::Outcome;

/// How a case ends; `Err` is what was seen that may not be.
pub(crate) type Checked = Result<Verdict, Fail>;

/// A case that did not fail.
#[derive(Debug)]
pub(crate) enum Verdict {
    Passed,
    /// Declared as impossible, and seen to be refused.
    Refused(String),
    /// Nothing there to ask for.
    NotApplicable(String),
}

/// What was seen that may not be.
#[derive(Debug)]
pub(crate) struct Fail(pub(crate) String);

impl<E: StdError> From<E> for Fail {
    fn from(error: E) -> Self {
        Self(format!("an error that should not be: {error}"))
    }
}

impl From<Checked> for Outcome {
    fn from(checked: Checked) -> Self {
        match checked {
            Ok(Verdict::Passed) => Self::Passed,
            Ok(Verdict::Refused(why)) => Self::Refused(why),
            Ok(Verdict::NotApplicable(why)) => Self::NotApplicable(why),
            Err(Fail(why)) => Self::Failed(why),
        }
    }
}

/// Ends the case as failed, unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        // Negated like this, what cannot be compared does not hold.
        if !($holds) {
            return Err($crate::verdict::Fail(format!($($text)+)));
        }
    };
}
pub(crate) use ensure;

/// Ends the case: there is nothing to ask for.
pub(crate) fn not_applicable(why: impl fmt::Display) -> Checked {
    Ok(Verdict::NotApplicable(why.to_string()))
}

/// Ends the case: what is declared impossible was refused, with this error.
pub(crate) fn refused(error: &Error) -> Checked {
    Ok(Verdict::Refused(error.message().to_owned()))
}
