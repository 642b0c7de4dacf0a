//! `conform`: the conformance suite on any registered transport.

use std::fmt::Write;

use serde::Serialize;
use throughline::{Address, registered};
use throughline_conformance::suite::{self, Case, Settings, Suite};
use throughline_conformance::{Outcome, Registered, Report};

use crate::args::ConformArgs;
use crate::failure::{Exit, Failure};
use crate::message::json_line;
use crate::output::{self, BOLD, Console, DIM, GREEN, Paint, RED, YELLOW};
use crate::signals::Stop;

pub(crate) async fn run(args: &ConformArgs, console: &Console, paint: Paint) -> Result<Exit, Failure> {
    let Some(url) = args.url.as_ref().filter(|_| !args.list) else {
        output::print(&list(args.json, paint)?)?;
        return Ok(Exit::Ok);
    };
    let cases = selected(&args.cases)?;
    let address: Address = url.parse()?;
    let registration = registered(&address).map_err(|error| error.at("conform", &address))?;
    let harness = Registered::new(registration, address)?;
    let settings = Settings { concurrency: args.concurrency.get(), ..Settings::default() };
    let mut stop = Stop::listen()?;
    let suite = tokio::select! {
        suite = Suite::open(harness, settings) => suite?,
        () = stop.wait() => return Ok(Exit::Interrupted),
    };
    let bar = output::progress(true, "{bar:30} {pos}/{len} cases  {elapsed}  {msg}");
    bar.set_length(cases.len() as u64);
    let (count, stopping) = (cases.len(), stop.receiver());
    let report = suite
        .run(cases, stopping, |case| {
            bar.inc(1);
            if case.outcome.is_failure() {
                bar.suspend(|| console.warn(&format!("{} failed", case.case)));
            }
        })
        .await;
    bar.finish_and_clear();
    let text = if args.json { json_line(&report)? } else { table(&report, paint) };
    output::print(&text)?;
    let failed = report.failures().count();
    if report.cases.len() < count {
        console.error(&format!(
            "interrupted after {} of {count} cases; what the others had made is deleted",
            report.cases.len()
        ));
        return Ok(Exit::Interrupted);
    }
    if failed > 0 {
        return Err(Failure::new(Exit::Failed, format!("{failed} of {count} cases failed")));
    }
    Ok(Exit::Ok)
}

/// The cases that are named; all, where none is.
fn selected(names: &[String]) -> Result<Vec<&'static Case>, Failure> {
    let all: Vec<_> = suite::cases().collect();
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|case| case.name != **name)) {
        let text = format!("there is no case '{unknown}'");
        return Err(Failure::usage(text).hint("`throughline conform --list` names them all"));
    }
    let is_wanted = |case: &&Case| names.is_empty() || names.iter().any(|name| *name == case.name);
    Ok(all.into_iter().filter(is_wanted).collect())
}

fn list(json: bool, paint: Paint) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Listed {
        case: &'static str,
        area: &'static str,
        proves: &'static str,
    }
    let mut text = String::new();
    let mut area = "";
    for case in suite::cases() {
        if json {
            text += &json_line(&Listed { case: case.name, area: case.area, proves: case.proves })?;
            continue;
        }
        if case.area != area {
            area = case.area;
            let _ = writeln!(text, "{}", paint.apply(BOLD, area));
        }
        let _ = writeln!(text, "  {}\n      {}", case.name, case.proves);
    }
    Ok(text)
}

/// A line a case, by area; below those that did not simply pass, why.
fn table(report: &Report, paint: Paint) -> String {
    let mut text = String::new();
    let mut area = "";
    let width = report.cases.iter().map(|case| case.case.len()).max().unwrap_or(0);
    for case in &report.cases {
        if case.area != area {
            area = case.area;
            let _ = writeln!(text, "{}", paint.apply(BOLD, area));
        }
        let style = match case.outcome {
            Outcome::Passed => GREEN,
            Outcome::Failed(_) => RED,
            Outcome::Deviates(_) => YELLOW,
            Outcome::Refused(_) | Outcome::NotApplicable(_) => DIM,
        };
        let label = paint.apply(style, format!("{:<8}", case.outcome.label()));
        let _ = writeln!(text, "  {label}  {:<width$}  {:>6.1} s", case.case, case.took.as_secs_f64());
        for why in case.outcome.why().into_iter().chain(case.notes.iter().map(String::as_str)) {
            let _ = writeln!(text, "            {}", paint.apply(DIM, output::visible(why)));
        }
    }
    let version = report.version.as_deref().map(|version| format!(" {version}")).unwrap_or_default();
    let _ = writeln!(text, "\n{}{version}: {}", report.transport, report.tally());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_selected_by_name_in_the_order_of_the_suite() {
        let names = ["purge_empties_the_queue".to_owned(), "published_is_received".to_owned()];
        let cases: Vec<_> = selected(&names).unwrap().iter().map(|case| case.name).collect();
        assert_eq!(cases, ["published_is_received", "purge_empties_the_queue"]);
        assert_eq!(selected(&[]).unwrap().len(), suite::cases().count());
        assert!(selected(&["nosuch".to_owned()]).unwrap_err().to_string().contains("'nosuch'"));
    }
}
