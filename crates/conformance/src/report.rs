//! What a run came to.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use serde::Serialize;
use throughline_core::Address;

use crate::ledger;

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "why", rename_all = "snake_case")]
pub enum Outcome {
    /// What it asks holds.
    Passed,
    /// It does not: what was seen.
    Failed(String),
    /// The transport declares that it cannot, and was seen to refuse.
    Refused(String),
    /// There is nothing to ask for: no connection to cut, no limit to exceed.
    NotApplicable(String),
    /// It fails as the [ledger] says: the reason.
    Deviates(String),
}

impl Outcome {
    /// Whether the transport is not as it must be.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_))
    }

    /// One or two words for a table.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "FAILED",
            Self::Refused(_) => "refused",
            Self::NotApplicable(_) => "n/a",
            Self::Deviates(_) => "deviates",
        }
    }

    /// What there is to say besides.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Passed => None,
            Self::Failed(why) | Self::Refused(why) | Self::NotApplicable(why) | Self::Deviates(why) => {
                Some(why)
            }
        }
    }
}

/// One case's result.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// The case's name.
    pub case: &'static str,
    /// Its area.
    pub area: &'static str,
    /// What it proves.
    pub proves: &'static str,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What it counted: duplicates, say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// How long it took, in milliseconds.
    #[serde(rename = "ms", serialize_with = "millis")]
    pub took: Duration,
}

fn millis<S: serde::Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
}

/// A run's results, in the order of the suite.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The transport's name.
    pub transport: String,
    /// What sets the addresses apart from the transport's usual ones (`fifo`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The broker's version, where it tells.
    pub version: Option<String>,
    /// One for each case that was run.
    pub cases: Vec<CaseReport>,
    /// What the ledger has on this transport with such addresses, whatever its version.
    pub ledger: Vec<ledger::Entry>,
}

impl Report {
    pub(crate) fn new(
        transport: &str,
        variant: Option<&str>,
        version: Option<&str>,
        like: Option<&Address>,
        cases: Vec<CaseReport>,
    ) -> Self {
        let entries =
            ledger::LEDGER.iter().filter(|entry| entry.is_of(transport, variant) && entry.applies(like));
        Self {
            transport: transport.to_owned(),
            variant: variant.map(str::to_owned),
            version: version.map(str::to_owned),
            cases,
            ledger: entries.copied().collect(),
        }
    }

    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases.iter().filter(|case| case.outcome.is_failure())
    }

    /// The transport's name, and the variant where there is one: `sqs fifo`.
    pub fn name(&self) -> String {
        [Some(self.transport.as_str()), self.variant.as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The whole report as one JSON object.
    pub fn to_json(&self) -> String {
        // It holds nothing that JSON cannot.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Writes it as `{name}.json` into a folder, which is created if it is not there.
    pub fn write_to(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join(format!("{}.json", self.name())), self.to_json())
    }

    /// `54 passed, 2 refused, …`: one number for each way to end, where it is not zero.
    pub fn tally(&self) -> String {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for label in ["passed", "refused", "n/a", "deviates", "FAILED"] {
            let count = self.cases.iter().filter(|case| case.outcome.label() == label).count();
            if count > 0 || label == "passed" {
                counts.push((label, count));
            }
        }
        counts.iter().map(|(label, count)| format!("{count} {label}")).collect::<Vec<_>>().join(", ")
    }
}

/// For a person: a line a case that did not simply pass, or that counted something, and the tally.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "conformance of {}", self.name())?;
        if let Some(version) = &self.version {
            write!(f, " {version}")?;
        }
        writeln!(f, ": {}", self.tally())?;
        let telling = |case: &&CaseReport| case.outcome != Outcome::Passed || !case.notes.is_empty();
        let width = self.cases.iter().filter(telling).map(|case| case.case.len()).max().unwrap_or(0);
        for case in self.cases.iter().filter(telling) {
            let mut line = format!("  {:<8}  {:<width$}  ", case.outcome.label(), case.case);
            let all = case.outcome.why().into_iter().chain(case.notes.iter().map(String::as_str));
            write!(line, "{}", all.collect::<Vec<_>>().join("; "))?;
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
