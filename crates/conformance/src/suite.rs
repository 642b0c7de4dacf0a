//! The list of cases, and how they are run.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use throughline_core::diagnosis::DiagnoseOptions;
use throughline_core::driver::{Sibling, Transport};
use throughline_core::{Address, Error, ErrorKind, Result};
use tokio::sync::watch;

use crate::cases;
use crate::cx::Cx;
use crate::harness::Harness;
use crate::ledger::{self, Known};
use crate::report::{CaseReport, Outcome, Report};
use crate::verdict::Checked;

/// How long the deletion of what a case made, and its goodbye, may take.
const CLEAN_UP: Duration = Duration::from_secs(60);

/// One thing that every adapter is held to.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name, which stays.
    pub name: &'static str,
    /// What it is about: the file it is in.
    pub area: &'static str,
    /// What it proves, in one sentence.
    pub proves: &'static str,
    pub(crate) run: fn(Cx) -> Running,
}

pub(crate) type Running = Pin<Box<dyn Future<Output = Checked> + Send>>;

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All cases, in a fixed order. An adapter cannot leave any out.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    cases::ALL.iter().copied().flatten()
}

/// How the cases are run. The defaults are for real brokers: times are upper bounds, which only a failure uses up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many cases run at once; each has destinations of its own.
    pub concurrency: usize,
    /// How long a case may take in all.
    pub limit: Duration,
    /// How long what must come may take: one message, one answer, a count that the broker is slow to tell.
    pub patience: Duration,
    /// How long nothing must come, where nothing may.
    pub silence: Duration,
    /// The shortest lease that the broker does well.
    pub lease: Duration,
    /// How many messages "many" are.
    pub many: usize,
    /// How many messages each of 16 keys has, where order is at stake.
    pub per_key: usize,
    /// Whether a test program writes its report for the tables, which show transports.
    pub reported: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrency: 8,
            limit: Duration::from_secs(180),
            patience: Duration::from_secs(30),
            silence: Duration::from_millis(500),
            lease: Duration::from_secs(2),
            reported: true,
            many: 5000,
            per_key: 1000,
        }
    }
}

/// A transport that answers, and its cases about to be run.
pub struct Suite {
    harness: Arc<dyn Harness>,
    settings: Settings,
    transport: String,
    version: Option<String>,
}

impl Suite {
    /// Connects, so that a broker that does not answer is told once, and learns what is under test.
    pub async fn open(harness: impl Harness, settings: Settings) -> Result<Self> {
        let harness: Arc<dyn Harness> = Arc::new(harness);
        let transport = harness.connect().await?;
        let version = match harness.address(&Sibling::queue("version")) {
            Some(address) => transport.diagnose(&address, &DiagnoseOptions::default()).await,
            None => Err(Error::new(ErrorKind::Unsupported, "the harness has no address for a queue")),
        };
        let name = transport.capabilities().transport.to_owned();
        transport.close().await?;
        Ok(Self { harness, settings, transport: name, version: version?.server.version })
    }

    /// Runs these cases, several at once, and tells of each as it ends. When `stop` becomes true no further one begins,
    /// those under way are broken off, and what they made is deleted.
    pub async fn run(
        &self,
        cases: impl IntoIterator<Item = &'static Case>,
        stop: watch::Receiver<bool>,
        mut ended: impl FnMut(&CaseReport),
    ) -> Report {
        let cases: Vec<&'static Case> = cases.into_iter().collect();
        let running = cases.iter().enumerate().map(|(at, case)| {
            let stop = stop.clone();
            async move { (at, self.run_case(case, stop).await) }
        });
        let mut running = futures_util::stream::iter(running).buffer_unordered(self.settings.concurrency);
        let mut reports = Vec::with_capacity(cases.len());
        while let Some((at, report)) = running.next().await {
            if let Some(report) = report {
                ended(&report);
                reports.push((at, report));
            }
        }
        reports.sort_by_key(|(at, _)| *at);
        self.report(reports.into_iter().map(|(_, report)| report).collect())
    }

    /// A report of these results.
    pub fn report(&self, cases: Vec<CaseReport>) -> Report {
        let variant = self.harness.variant();
        Report::new(&self.transport, variant, self.version.as_deref(), self.like().as_ref(), cases)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What sets its addresses apart; see [`Harness::variant`].
    pub fn variant(&self) -> Option<&str> {
        self.harness.variant()
    }

    /// An address like those of the cases.
    fn like(&self) -> Option<Address> {
        self.harness.address(&Sibling::queue("any"))
    }

    /// Runs one case, and deletes what it made, however it ended. `None` where it was broken off.
    pub async fn run_case(&self, case: &'static Case, mut stop: watch::Receiver<bool>) -> Option<CaseReport> {
        if *stop.borrow() {
            return None;
        }
        let started = Instant::now();
        let (outcome, notes) = match self.harness.connect().await {
            Err(error) => (Outcome::Failed(format!("cannot connect: {error}")), Vec::new()),
            Ok(transport) => {
                let cx = Cx::new(self.harness.clone(), transport.clone(), self.settings.clone());
                // A task of its own: a panic is a failure of this case only.
                let mut task = tokio::spawn((case.run)(cx.clone()));
                let ended = tokio::select! {
                    ended = tokio::time::timeout(self.settings.limit, &mut task) => Some(ended),
                    _ = stop.wait_for(|stop| *stop) => None,
                };
                if !task.is_finished() {
                    task.abort();
                    let _ = (&mut task).await;
                }
                let outcome = ended.map(|ended| match ended {
                    Ok(Ok(checked)) => Outcome::from(checked),
                    Ok(Err(failed)) => Outcome::Failed(format!("it panicked: {failed}")),
                    Err(_) => Outcome::Failed(format!(
                        "it did not end within {:?}; it was {}",
                        self.settings.limit,
                        cx.doing()
                    )),
                });
                let cleaned = tokio::time::timeout(CLEAN_UP, clean_up(&cx, &*transport)).await;
                match cleaned {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => cx.note(format!("clean-up failed: {error}")),
                    Err(_) => cx.note(format!("clean-up did not end within {CLEAN_UP:?}")),
                }
                (outcome?, cx.notes())
            }
        };
        let (of, version) = ((&*self.transport, self.variant()), self.version.as_deref());
        let known = ledger::known(of, case.name, self.like().as_ref(), version);
        let outcome = judge(known, outcome);
        let Case { name, area, proves, .. } = *case;
        Some(CaseReport { case: name, area, proves, outcome, notes, took: started.elapsed() })
    }
}

/// What the ledger makes of an outcome.
fn judge(known: Option<Known>, outcome: Outcome) -> Outcome {
    match (known, outcome) {
        (Some(Known { entry, .. }), Outcome::Failed(why)) if why.contains(entry.says) => {
            Outcome::Deviates(entry.reason.to_owned())
        }
        (Some(Known { entry, certain: true }), Outcome::Passed) => Outcome::Failed(format!(
            "unexpected pass: its entry in the ledger must go, or end before this version ({})",
            entry.reason
        )),
        (_, outcome) => outcome,
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite").field("transport", &self.transport).finish_non_exhaustive()
    }
}

/// Deletes what a case made, and closes its transports. The first error is told, after all has been tried.
async fn clean_up(cx: &Cx, transport: &dyn Transport) -> Result<(), Error> {
    let mut result = Ok(());
    for address in cx.made().into_iter().rev() {
        let deleted = transport.delete(&address).await;
        result = result.and(deleted.map(drop).map_err(|error| error.at("delete", &address)));
    }
    for opened in cx.opened() {
        result = result.and(opened.close().await);
    }
    result.and(transport.close().await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_case_says_what_it_proves() {
        let mut names: Vec<_> = cases().map(|case| case.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        assert!(cases().all(|case| case.proves.ends_with('.') && !case.area.is_empty()));
    }

    #[test]
    fn the_ledger_excuses_one_failure_and_no_pass() {
        let address: Address = "amqp://host/%2f".parse().unwrap();
        let at = |address, version| {
            ledger::known(("rabbitmq", None), "release_records_no_attempt", Some(address), version)
        };
        let known = |version| at(&address, version);
        let failed = |why: &str| Outcome::Failed(why.to_owned());
        let as_told = failed("after a release, without a failure, it is attempt 2");
        assert!(matches!(judge(known(Some("3.10.8")), as_told.clone()), Outcome::Deviates(_)));
        assert!(matches!(judge(known(None), as_told.clone()), Outcome::Deviates(_)));
        // Another failure, another version.
        assert!(judge(known(Some("3.10.8")), failed("it hangs")).is_failure());
        assert!(judge(known(Some("4.3.0")), as_told).is_failure());
        let classic = address.clone().with_option("queue_type", "classic");
        assert!(at(&classic, Some("3.10.8")).is_none());
        // An unexpected pass; where the version is not known, nothing is unexpected.
        assert!(judge(known(Some("4.2")), Outcome::Passed).is_failure());
        assert_eq!(judge(known(Some("4.3")), Outcome::Passed), Outcome::Passed);
        assert_eq!(judge(known(None), Outcome::Passed), Outcome::Passed);
    }
}
