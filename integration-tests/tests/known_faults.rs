//! ARCHITECTURE.md lists the faults that message-bus libraries are known for, each with the tests that would see it here. This
//! test keeps the list true: every test that it names is there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

const BEGIN: &str = "<!-- faults:begin -->\n";
const END: &str = "<!-- faults:end -->";
/// As many as there are to avoid.
const FAULTS: usize = 16;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rows of the list: a fault, and its tests, as `file` and name.
fn rows(architecture: &str) -> Vec<(String, Vec<(String, String)>)> {
    let (_, rest) = architecture.split_once(BEGIN).unwrap();
    let (table, _) = rest.split_once(END).unwrap();
    let cells = table.lines().skip(2).map(|line| line.trim_matches('|').split_once(" | ").unwrap());
    cells.map(|(fault, tests)| (fault.trim().to_owned(), tests.split(", ").map(named).collect())).collect()
}

/// `[name](file)`.
fn named(text: &str) -> (String, String) {
    let link = text.trim().strip_prefix('[').and_then(|text| text.strip_suffix(')'));
    let (name, file) = link.and_then(|link| link.split_once("](")).unwrap_or_else(|| unreachable!("{text}"));
    (file.to_owned(), name.trim_matches('`').to_owned())
}

#[test]
fn every_known_fault_has_tests_that_exist() {
    let rows = rows(&std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap());
    assert_eq!(rows.len(), FAULTS);
    for (fault, tests) in rows {
        assert!(!tests.is_empty(), "{fault}");
        for (file, name) in tests {
            let source = std::fs::read_to_string(root().join(&file));
            let source = source.unwrap_or_else(|error| unreachable!("{fault}: {file}: {error}"));
            // A test, or a case of the conformance suite, which every adapter runs and a mutant has failed.
            let is_there = source.contains(&format!("fn {name}("));
            assert!(is_there, "{fault}: there is no {name} in {file}");
        }
    }
}
