//! Every ordered pair of transports, each on its real broker: what a bridge carries over, and what comes back from a round
//! trip, is what was sent.
//!
//! `UPDATE_README=1 cargo test -p throughline-integration-tests --test bridge_matrix` draws the README's table anew.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use throughline::driver::Sibling;
use throughline::{Address, Bus, Envelope, registered, registrations};
use throughline_bridge::{Bridge, Fate, Plan};
use throughline_integration_tests::samples::{OUT_OF_ORDER, Sample, differences, samples};
use throughline_integration_tests::{log, unique};
use throughline_testkit::endpoint;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const TEST: &str = "bridge_matrix";

/// How many pairs at once.
const AT_ONCE: usize = 6;
/// A pair takes seconds.
const PATIENCE: Duration = Duration::from_secs(180);

const BEGIN: &str = "<!-- bridge:begin -->\n";
const END: &str = "<!-- bridge:end -->";

/// A broker, by an address without a destination.
fn base(transport: &str, folder: &Path) -> Option<Address> {
    let aws =
        || endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", &format!("{TEST} of {transport}"));
    let address = match transport {
        "memory" => format!("memory:{}", unique("matrix")),
        "sqlite" => format!("sqlite:{}", folder.join("matrix.db").display()),
        "sqs" | "sns" | "eventbridge" => format!("{transport}:?endpoint={}", aws()?),
        broker => endpoint::broker(broker, &format!("{TEST} of {broker}"))?,
    };
    Some(address.parse().unwrap())
}

/// A new queue on it.
async fn place(base: &Address) -> Bus {
    let name = unique("bm").replace(['_', '.'], "-");
    let name = &name[name.len().saturating_sub(38)..].trim_start_matches('-').to_owned();
    let address = (registered(base).unwrap().sibling)(base, &Sibling::queue(name)).unwrap();
    let bus = Bus::connect_to(address).await.unwrap();
    bus.create("").await.unwrap();
    bus
}

async fn publish(to: &Bus) -> Vec<Sample> {
    let sent = samples();
    let publisher = to.publisher().await.unwrap();
    for result in publisher.publish_batch(sent.iter().map(|sample| sample.envelope.clone())).await {
        result.unwrap();
    }
    publisher.close().await.unwrap();
    sent
}

async fn take(from: &Bus, count: usize) -> Vec<Envelope> {
    let mut consumer = from.consumer().await.unwrap();
    let mut came = Vec::new();
    while came.len() < count {
        let Ok(delivery) = tokio::time::timeout(Duration::from_secs(30), consumer.next()).await else {
            break;
        };
        let delivery = delivery.unwrap().unwrap();
        came.push(delivery.envelope().as_ref().clone());
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    came
}

async fn bridge(from: &Bus, to: &Bus, count: usize) {
    let report = Bridge::new(from, to).max(count as u64).run(pending()).await.unwrap();
    assert!(report.is_success() && report.totals.moved == count as u64, "{report:?}");
}

async fn leave(buses: impl IntoIterator<Item = Bus>) {
    for bus in buses {
        bus.delete("").await.unwrap();
        bus.close().await.unwrap();
    }
}

/// What a bridge and its way back came to.
struct Pair {
    /// Whether `explain` says that the order of a key is kept.
    is_ordered: bool,
    /// What differs after one way, and after both.
    found: [BTreeMap<&'static str, String>; 2],
}

async fn pair(from: &Address, to: &Address) -> Pair {
    let (start, middle, end) = tokio::join!(place(from), place(to), place(from));
    let plan = Plan::between(&start, &middle).await.unwrap();
    assert!(plan.parts.iter().all(|step| step.fate < Fate::NoEffect), "{plan:?}");
    let order = plan.steps().find(|step| step.what == "order per key").unwrap();
    let is_ordered = order.fate != Fate::NoEffect;
    let expected = |mut found: BTreeMap<_, _>| {
        found.retain(|_, what| is_ordered || what != OUT_OF_ORDER);
        found
    };

    let sent = publish(&start).await;
    bridge(&start, &middle, sent.len()).await;
    let one_way = expected(differences(&sent, &take(&middle, sent.len()).await));

    let sent = publish(&start).await;
    bridge(&start, &middle, sent.len()).await;
    bridge(&middle, &end, sent.len()).await;
    let both_ways = expected(differences(&sent, &take(&end, sent.len()).await));
    leave([start, middle, end]).await;
    Pair { is_ordered, found: [one_way, both_ways] }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pair_carries_everything() {
    log();
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<_> = registrations().map(|transport| transport.capabilities.transport).collect();
    let bases: Vec<_> = names.iter().map(|name| base(name, folder.path())).collect();
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut pairs = JoinSet::new();
    for (row, from) in bases.iter().enumerate() {
        for (column, to) in bases.iter().enumerate() {
            let (Some(from), Some(to)) = (from.clone(), to.clone()) else { continue };
            let at_once = at_once.clone();
            pairs.spawn(async move {
                let _permit = at_once.acquire().await.unwrap();
                let found = tokio::time::timeout(PATIENCE, pair(&from, &to)).await;
                ((row, column), found)
            });
        }
    }
    let mut cells = BTreeMap::new();
    let mut unexpected = String::new();
    while let Some(done) = pairs.join_next().await {
        let ((row, column), found) = done.unwrap();
        let (from, to) = (names[row], names[column]);
        let Ok(found) = found else {
            writeln!(unexpected, "{from} to {to}: not within {PATIENCE:?}").unwrap();
            continue;
        };
        for (way, found) in ["one way", "both ways"].iter().zip(&found.found) {
            for (class, what) in found {
                writeln!(unexpected, "{from} to {to}, {way}: {class}: {what}").unwrap();
            }
        }
        cells.insert((row, column), found);
    }
    let table = table(&names, &cells);
    for line in table.lines() {
        endpoint::measured(TEST, line);
    }
    assert!(unexpected.is_empty(), "{unexpected}");
    if cells.len() == names.len() * names.len() {
        check_readme(&table);
    }
}

fn table(names: &[&str], cells: &BTreeMap<(usize, usize), Pair>) -> String {
    let mut table = format!("| from ↓ to → | {} |\n|---{}|\n", names.join(" | "), "|---".repeat(names.len()));
    for (row, from) in names.iter().enumerate() {
        write!(table, "| {from} |").unwrap();
        for column in 0..names.len() {
            let cell = match cells.get(&(row, column)) {
                None => "did not run".to_owned(),
                Some(Pair { is_ordered, found }) if found.iter().all(BTreeMap::is_empty) => {
                    if *is_ordered { "all" } else { "all, unordered" }.to_owned()
                }
                Some(Pair { found, .. }) => {
                    let classes: BTreeSet<_> = found.iter().flat_map(BTreeMap::keys).copied().collect();
                    format!("not {}", classes.into_iter().collect::<Vec<_>>().join(", "))
                }
            };
            write!(table, " {cell} |").unwrap();
        }
        table.push('\n');
    }
    table
}

fn check_readme(table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (shown, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(
        shown, table,
        "README.md is not up to date: UPDATE_README=1 cargo test -p throughline-integration-tests --test bridge_matrix"
    );
}
