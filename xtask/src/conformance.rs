//! The conformance table: adapter × case, from the reports that the adapters' tests have written; and the two READMEs
//! that show it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Names the folder for the reports; see `throughline_conformance::libtest::REPORTS_VAR`.
pub(crate) const REPORTS_VAR: &str = "THROUGHLINE_CONFORMANCE_REPORTS";

const MARKERS: (&str, &str) = ("<!-- conformance:begin -->\n", "<!-- conformance:end -->");
/// Where the areas are shown, and where every case is.
const AREAS: &str = "README.md";
const CASES: &str = "crates/conformance/README.md";

/// One adapter's report.
#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    transport: String,
    /// What sets it apart from another of the same transport (`fifo`).
    variant: Option<String>,
    version: Option<String>,
    cases: Vec<Case>,
    ledger: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Case {
    case: String,
    area: String,
    outcome: String,
}

/// A known deviation.
#[derive(Debug, Deserialize)]
struct Entry {
    case: String,
    from: String,
    before: String,
    reason: String,
}

impl Entry {
    fn versions(&self) -> String {
        let from = (!self.from.is_empty()).then(|| format!(" from {}", self.from));
        let before = (!self.before.is_empty()).then(|| format!(" before {}", self.before));
        from.into_iter().chain(before).collect()
    }
}

impl Report {
    pub(crate) fn is_of(&self, transport: &str) -> bool {
        self.transport == transport
    }

    /// Its column's.
    fn name(&self) -> String {
        let parts = [Some(self.transport.as_str()), self.variant.as_deref()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// The lines below the table: one for the cases of the same reason.
    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<(String, &str, Vec<String>)> = Vec::new();
        for entry in &self.ledger {
            let (versions, case) = (entry.versions(), format!("`{}`", entry.case));
            let same =
                |(known, reason, _): &&mut (String, &str, _)| *known == versions && *reason == entry.reason;
            match notes.iter_mut().find(same) {
                Some((_, _, cases)) => cases.push(case),
                None => notes.push((versions, &entry.reason, vec![case])),
            }
        }
        let line = |(versions, reason, cases): (String, &str, Vec<String>)| {
            format!("- {}{versions}: {}: {reason}.", self.name(), cases.join(", "))
        };
        notes.into_iter().map(line).collect()
    }

    /// What a table shows of a case. Not what this one version of the broker happened to do where the ledger has an entry:
    /// tables are to be the same on every machine.
    fn cell(&self, case: &Case) -> String {
        match self.ledger.iter().find(|entry| entry.case == case.case) {
            Some(entry) => format!("deviates{}", entry.versions()),
            None => case.outcome.replace("not_applicable", "n/a"),
        }
    }

    fn failed(&self) -> usize {
        self.cases.iter().filter(|case| case.outcome == "failed").count()
    }
}

/// Reads what is in the folder, in the order of the transports' names.
pub(crate) fn read(folder: &Path) -> Result<Vec<Report>> {
    let mut reports = BTreeMap::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let text = fs::read_to_string(&path)?;
            let report: Report = serde_json::from_str(&text)
                .with_context(|| format!("{} is not a conformance report", path.display()))?;
            reports.insert(report.name(), report);
        }
    }
    Ok(reports.into_values().collect())
}

/// For a terminal: a line a case, a column an adapter.
pub(crate) fn render(reports: &[Report]) -> String {
    let Some(first) = reports.iter().max_by_key(|report| report.cases.len()) else { return String::new() };
    let mut text = String::from("\n== conformance\n");
    let names: Vec<_> = first.cases.iter().map(|case| case.case.as_str()).collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or_default();
    let heads: Vec<_> = reports
        .iter()
        .map(|report| format!("{} {}", report.name(), report.version.as_deref().unwrap_or_default()))
        .map(|head| head.trim_end().to_owned())
        .collect();
    let column = heads.iter().map(String::len).max().unwrap_or_default().max(9);
    let mut line = |first: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!("  {cell:<column$}")).collect();
        let line = format!("  {first:<width$}{cells}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line("", heads);
    for name in names {
        let outcome = |report: &Report| {
            let case = report.cases.iter().find(|case| case.case == name);
            case.map_or("-".to_owned(), |case| match case.outcome.as_str() {
                "failed" => "FAILED".to_owned(),
                "not_applicable" => "n/a".to_owned(),
                outcome => outcome.to_owned(),
            })
        };
        line(name, reports.iter().map(outcome).collect());
    }
    text
}

/// The READMEs whose tables are not what the reports say; rewritten where `update` is set. A column whose adapter did not
/// run is left as it is.
pub(crate) fn stale(checkout: &Path, reports: &[Report], update: bool) -> Result<Vec<String>> {
    if reports.iter().any(|report| report.failed() > 0) {
        // That is told already, and no table is drawn from it.
        return Ok(Vec::new());
    }
    let mut stale = Vec::new();
    for (file, rows) in [(AREAS, areas as fn(&Report) -> Vec<Row>), (CASES, cases)] {
        let path = checkout.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
        let marked = text.split_once(MARKERS.0).and_then(|(before, rest)| {
            rest.split_once(MARKERS.1).map(|(shown, after)| (before, shown, after))
        });
        let (before, shown, after) =
            marked.with_context(|| format!("{file} has no conformance table: the markers are missing"))?;
        let mut table = Table::parse(shown);
        for report in reports {
            let name = report.name();
            table.set(&name, rows(report));
            table.notes.retain(|note| !is_note_of(note, &name));
            table.notes.extend(report.notes());
        }
        table.notes.sort();
        let drawn = table.draw();
        if drawn != shown {
            if update {
                fs::write(&path, format!("{before}{}{drawn}{}{after}", MARKERS.0, MARKERS.1))?;
            }
            stale.push(file.to_owned());
        }
    }
    Ok(stale)
}

/// Whether a line below a table is about this column, and not one whose name only begins the same.
fn is_note_of(note: &str, column: &str) -> bool {
    let rest = note.strip_prefix("- ").and_then(|note| note.strip_prefix(column));
    rest.is_some_and(|rest| [":", " from ", " before "].iter().any(|start| rest.starts_with(start)))
}

/// A row's name, and its cell.
type Row = (String, String);

fn cases(report: &Report) -> Vec<Row> {
    report.cases.iter().map(|case| (format!("`{}`", case.case), report.cell(case))).collect()
}

/// How many cases of each area ended how.
fn areas(report: &Report) -> Vec<Row> {
    let mut areas: Vec<(&str, Vec<(String, usize)>)> = Vec::new();
    for case in &report.cases {
        if areas.last().is_none_or(|(area, _)| *area != case.area) {
            areas.push((&case.area, Vec::new()));
        }
        let Some((_, counts)) = areas.last_mut() else { continue };
        let cell = report.cell(case);
        let label = cell.split(' ').next().unwrap_or_default().to_owned();
        match counts.iter_mut().find(|(known, _)| *known == label) {
            Some((_, count)) => *count += 1,
            None => counts.push((label, 1)),
        }
    }
    let row = |(area, counts): (&str, Vec<(String, usize)>)| {
        let mut counts: Vec<_> =
            counts.into_iter().map(|(label, count)| format!("{count} {label}")).collect();
        // What passed comes first.
        counts.sort_by_key(|count| !count.ends_with("passed"));
        (area.to_owned(), counts.join(", "))
    };
    areas.into_iter().map(row).collect()
}

/// A table in a README.
#[derive(Debug, Default, PartialEq)]
struct Table {
    columns: Vec<String>,
    /// Name, and a cell a column.
    rows: Vec<(String, Vec<String>)>,
    /// The lines below.
    notes: Vec<String>,
}

impl Table {
    fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            if line.starts_with("- ") {
                table.notes.push(line.to_owned());
                continue;
            }
            let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
            match (line.starts_with("| |"), line.starts_with("| ")) {
                (true, _) => table.columns = cells.skip(1).collect(),
                (_, true) => {
                    let name = cells.next().unwrap_or_default();
                    table.rows.push((name, cells.collect()));
                }
                _ => {}
            }
        }
        table
    }

    /// Sets a column; its rows are the table's.
    fn set(&mut self, column: &str, rows: Vec<Row>) {
        let at = match self.columns.iter().position(|known| known == column) {
            Some(at) => at,
            None => {
                self.columns.push(column.to_owned());
                self.columns.len() - 1
            }
        };
        let mut before = std::mem::take(&mut self.rows);
        for (name, cell) in rows {
            let known = before.iter().position(|(known, _)| *known == name);
            let mut cells = known.map_or_else(Vec::new, |known| before.swap_remove(known).1);
            cells.resize(self.columns.len(), "-".to_owned());
            if let Some(place) = cells.get_mut(at) {
                *place = cell;
            }
            self.rows.push((name, cells));
        }
    }

    fn draw(&self) -> String {
        let mut text =
            format!("| | {} |\n|---|{}\n", self.columns.join(" | "), "---|".repeat(self.columns.len()));
        for (name, cells) in &self.rows {
            let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
        }
        if !self.notes.is_empty() {
            let _ = writeln!(text, "\n{}", self.notes.join("\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(transport: &str, outcomes: &[(&str, &str, &str)]) -> Report {
        let cases = outcomes
            .iter()
            .map(|(area, case, outcome)| {
                format!(r#"{{"area":"{area}","case":"{case}","outcome":"{outcome}"}}"#)
            })
            .collect::<Vec<_>>()
            .join(",");
        let text = format!(
            r#"{{"transport":"{transport}","version":"1.2","cases":[{cases}],
                "ledger":[{{"case":"odd","from":"","before":"2","reason":"so it is"}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_table_keeps_the_columns_that_did_not_run() {
        let shown = "| | a | b |\n|---|---|---|\n| `one` | passed | refused |\n\n- b: `one`: for a reason.\n";
        let mut table = Table::parse(shown);
        assert_eq!(table.draw(), shown);
        table.set("a", vec![("`one`".into(), "n/a".into()), ("`two`".into(), "passed".into())]);
        assert_eq!(
            table.draw(),
            "| | a | b |\n|---|---|---|\n| `one` | n/a | refused |\n| `two` | passed | - |\n\n- b: `one`: for a reason.\n"
        );
    }

    #[test]
    fn areas_are_counted_and_the_ledger_counts_whatever_the_version_did() {
        let report =
            report("a", &[("x", "odd", "passed"), ("x", "even", "passed"), ("y", "none", "not_applicable")]);
        assert_eq!(
            areas(&report),
            [("x".to_owned(), "1 passed, 1 deviates".to_owned()), ("y".into(), "1 n/a".into())]
        );
        assert_eq!(cases(&report)[0], ("`odd`".to_owned(), "deviates before 2".to_owned()));
    }

    #[test]
    fn a_variant_has_a_column_and_notes_of_its_own() {
        let mut fifo = report("a", &[("x", "odd", "failed")]);
        fifo.variant = Some("fifo".to_owned());
        let again = |case: &str| Entry {
            case: case.into(),
            from: "".into(),
            before: "2".into(),
            reason: "so it is".into(),
        };
        fifo.ledger.push(again("even"));
        assert_eq!(fifo.notes(), ["- a fifo before 2: `odd`, `even`: so it is."]);
        assert!(
            is_note_of("- a fifo before 2: `odd`: x.", "a fifo") && !is_note_of("- a fifo: `odd`: x.", "a")
        );
    }

    #[test]
    fn the_terminal_shows_every_case_and_what_did_not_run() {
        let reports = [
            report("a", &[("x", "one", "failed"), ("x", "two", "passed")]),
            report("b", &[("x", "two", "refused")]),
        ];
        let text = render(&reports);
        assert!(text.contains("  one  FAILED     -"), "{text}");
        assert!(text.contains("  two  passed     refused"), "{text}");
    }
}
