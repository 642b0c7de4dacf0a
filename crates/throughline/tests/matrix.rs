//! The README's matrix is what the code says. `UPDATE_README=1 cargo test -p throughline --features kafka --test matrix` rewrites it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fmt::Write;
use std::path::Path;

const BEGIN: &str = "<!-- capabilities:begin -->\n";
const END: &str = "<!-- capabilities:end -->";

fn matrix() -> String {
    let transports: Vec<_> = throughline::registrations().map(|transport| transport.capabilities).collect();
    let mut table = String::from("| |");
    for transport in &transports {
        write!(table, " {} |", transport.transport).unwrap();
    }
    table.push_str("\n|---|");
    table.push_str(&"---|".repeat(transports.len()));
    table.push('\n');
    let columns: Vec<_> = transports.iter().map(|transport| transport.rows()).collect();
    for (index, (label, _)) in columns.first().expect("a transport").iter().enumerate() {
        write!(table, "| {label} |").unwrap();
        for column in &columns {
            write!(table, " {} |", column.get(index).expect("every transport has every row").1).unwrap();
        }
        table.push('\n');
    }
    table
}

#[test]
fn the_readme_shows_the_capability_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the begin marker");
    let (shown, after) = rest.split_once(END).expect("the end marker");
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", matrix())).unwrap();
        return;
    }
    assert_eq!(
        shown,
        matrix(),
        "README.md is not up to date: UPDATE_README=1 cargo test -p throughline --features kafka --test matrix"
    );
}
