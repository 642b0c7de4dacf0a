//! `throughline demo`: one trace, in order, as JSON and as a waterfall.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows them in tests, but does not know the helpers of a test"
)]

mod common;

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use common::{run, throughline};

struct Trace(Vec<Value>);

impl Trace {
    fn read(stdout: &str) -> Self {
        Self(stdout.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect())
    }

    fn all<'a>(&'a self, kind: &'a str, name: &'a str) -> Vec<&'a Value> {
        self.0.iter().filter(|span| span["kind"] == kind && span["name"] == name).collect()
    }

    fn one<'a>(&'a self, kind: &'a str, name: &'a str) -> &'a Value {
        let all = self.all(kind, name);
        assert_eq!(all.len(), 1, "{kind} {name}");
        all[0]
    }

    /// The spans directly below one, by name, in the order they began.
    fn below(&self, parent: &Value) -> Vec<&str> {
        let below = self.0.iter().filter(|span| span["parent_span_id"] == parent["span_id"]);
        below.map(|span| span["name"].as_str().unwrap()).collect()
    }
}

#[test]
fn json_is_one_trace_from_the_request_to_the_ack() {
    let run = run(&["demo", "--json"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let trace = Trace::read(&run.stdout);

    let members: BTreeSet<&str> = [
        "trace_id",
        "span_id",
        "parent_span_id",
        "name",
        "kind",
        "start",
        "end",
        "status",
        "attributes",
        "links",
    ]
    .into();
    for span in &trace.0 {
        let names: BTreeSet<&str> = span.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, members);
        assert!(span["start"].as_str() <= span["end"].as_str(), "{span}");
    }
    let traces: BTreeSet<&str> = trace.0.iter().map(|span| span["trace_id"].as_str().unwrap()).collect();
    assert_eq!(traces.len(), 1);
    assert_eq!(trace.0.len(), 15);

    // Each below its parent, in the order in which they began.
    let root = trace.one("client", "POST /sync");
    assert!(root["parent_span_id"].is_null());
    assert_eq!(trace.0.iter().filter(|span| span["parent_span_id"].is_null()).count(), 1);
    assert_eq!(trace.below(root), ["POST /sync"]);
    let server = trace.one("server", "POST /sync");
    assert_eq!(trace.below(server), ["publish campaign.sync_report"]);
    let publish = trace.one("producer", "publish campaign.sync_report");
    assert_eq!(
        trace.below(publish),
        [
            "queued campaign.sync_report",
            "campaign.sync_report",
            "queued campaign.sync_report",
            "campaign.sync_report"
        ]
    );
    let attempts = trace.all("consumer", "campaign.sync_report");
    assert_eq!(
        trace.below(attempts[0]),
        ["SELECT ads_profiles", "POST /v1/reports", "retry campaign.sync_report"]
    );
    assert_eq!(
        trace.below(attempts[1]),
        ["SELECT ads_profiles", "POST /v1/reports", "ack campaign.sync_report"]
    );
    let calls = trace.all("client", "POST /v1/reports");
    let served = trace.all("server", "POST /v1/reports");
    for (call, served) in calls.iter().zip(&served) {
        assert_eq!(served["parent_span_id"], call["span_id"]);
    }

    // What they say.
    let codes = |spans: &[&Value]| -> Vec<u64> {
        spans.iter().map(|span| span["attributes"]["http.response.status_code"].as_u64().unwrap()).collect()
    };
    assert_eq!(
        (codes(&[root, server]), codes(&calls), codes(&served)),
        (vec![202; 2], vec![503, 200], vec![503, 200])
    );
    for (index, attempt) in attempts.iter().enumerate() {
        let attributes = &attempt["attributes"];
        assert_eq!(attributes["throughline.attempt"], index + 1);
        assert_eq!(attributes["tenant.company_id"], 5000);
        assert_eq!(attributes["ads.profile_id"], 50_000_100);
        assert_eq!(attributes["job.type"], "campaign-report-sync");
        assert_eq!(attributes["messaging.system"], "memory");
        assert_eq!(attributes["messaging.destination.name"], "report-sync");
        assert_eq!(attempt["links"][0]["span_id"], publish["span_id"]);
        assert_eq!(attempt["links"][0]["trace_id"], publish["trace_id"]);
    }
    assert_eq!(attempts[0]["status"]["code"], "error");
    assert_eq!(attempts[0]["status"]["message"], "ads-api answered 503");
    assert_eq!(attempts[1]["status"]["code"], "unset");
    assert_eq!(attempts[1]["attributes"]["throughline.retry.reason"], "http_503");
    let retry = trace.one("client", "retry campaign.sync_report");
    assert_eq!(retry["attributes"]["throughline.retry.delay"], 0.05);

    // The queue's delay is its own: from the publish to the first attempt, and without the wait that was asked for.
    let queued = trace.all("internal", "queued campaign.sync_report");
    let delays: Vec<f64> =
        queued.iter().map(|span| span["attributes"]["throughline.queue.delay"].as_f64().unwrap()).collect();
    assert!(delays[0] >= 0.02, "the worker starts 25 ms late: {delays:?}");
    assert!(queued[1]["start"].as_str() > retry["end"].as_str());
    for (queued, attempt) in queued.iter().zip(&attempts) {
        assert!(queued["end"].as_str() <= attempt["start"].as_str());
    }
}

#[test]
fn the_waterfall_shows_the_same_in_order_and_fits_100_columns() {
    let run = run(&["demo"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert!(!run.stdout.contains('\u{1b}'), "no colour in a pipe");
    let mut rest = run.stdout.as_str();
    for expected in [
        "trace",
        "POST /sync ",
        "└─ POST /sync ",
        "tenant.company_id=5000  ads.profile_id=50000100  job.type=campaign-report-sync",
        "└─ publish campaign.sync_report ",
        "messaging.system=memory  messaging.destination.name=report-sync",
        "├─ queued campaign.sync_report ",
        "├─ ✗ campaign.sync_report ",
        "ads-api answered 503",
        "throughline.attempt=1",
        "├─ SELECT ads_profiles (stand-in) ",
        "├─ ✗ POST /v1/reports ",
        "└─ ✗ POST /v1/reports (stand-in) ",
        "└─ retry campaign.sync_report ",
        "throughline.retry.delay=0.05 s  throughline.retry.reason=http_503",
        "├─ queued campaign.sync_report ",
        "└─ campaign.sync_report ",
        "throughline.attempt=2",
        "├─ SELECT ads_profiles (stand-in) ",
        "├─ POST /v1/reports ",
        "└─ POST /v1/reports (stand-in) ",
        "└─ ack campaign.sync_report ",
        "Attempt 1 failed: ads-api answered 503.",
        "Attempt 2 succeeded",
    ] {
        let at = rest
            .find(expected)
            .unwrap_or_else(|| panic!("{expected} is not where it should be:\n{}", run.stdout));
        rest = &rest[at + expected.len()..];
    }
    for line in run.stdout.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn colour_can_be_asked_for() {
    let run = run(&["demo", "--color", "always"]);
    assert!(run.stdout.contains("\u{1b}[31m✗ campaign.sync_report"), "{}", run.stdout);
}

#[test]
fn the_page_shows_the_same_and_one_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.html");
    let run = run(&["demo", "--json", "--html", file.to_str().unwrap()]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let page = std::fs::read_to_string(&file).unwrap();
    for span in &Trace::read(&run.stdout).0 {
        let id = format!("{}-{}", span["trace_id"].as_str().unwrap(), span["span_id"].as_str().unwrap());
        assert!(page.contains(&format!("<details id=\"{id}\"")), "{span}");
    }
    let missing = folder.path().join("missing/trace.html");
    let run = common::run(&["demo", "--html", missing.to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("cannot write the page to ") && run.stderr.contains("trace.html"), "{run:?}");
}

#[test]
fn an_address_without_a_queue_gets_one_of_its_own() {
    let run = run(&["demo", "--json", "--via", "memory:elsewhere"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let trace = Trace::read(&run.stdout);
    let destination =
        trace.all("consumer", "campaign.sync_report")[0]["attributes"]["messaging.destination.name"].clone();
    assert!(destination.as_str().unwrap().starts_with("throughline-demo-"), "{destination}");
}

#[test]
fn a_wrong_address_is_a_usage_error() {
    for via in ["memory", "nosuch:x?queue=q", "memory:x?qeue=q"] {
        let run = run(&["demo", "--via", via]);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{run:?}");
        assert!(run.stderr.starts_with("error: "), "{run:?}");
    }
}

#[test]
fn spans_go_to_a_collector_too_and_a_missing_one_is_only_a_warning() {
    let (endpoint, paths) = collector();
    let run: common::Run = throughline(&["demo", "--json"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .output()
        .unwrap()
        .into();
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let bodies = paths.lock().unwrap().remove("POST /v1/traces HTTP/1.1").expect("spans were exported");
    // Protobuf carries names as they are.
    assert!(bodies.windows(20).any(|part| part == b"campaign.sync_report"));
    assert!(bodies.windows(16).any(|part| part == b"throughline-demo"));

    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let run: common::Run = throughline(&["demo", "--json"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://user:hunter2@{free}"))
        .output()
        .unwrap()
        .into();
    assert_eq!(run.code, 0);
    assert!(run.stderr.contains(&format!("could not be exported to http://{free}")), "{}", run.stderr);
    assert!(!run.stderr.contains("hunter2"), "{}", run.stderr);
    assert_eq!(Trace::read(&run.stdout).0.len(), 15);
}

type Bodies = std::sync::Arc<std::sync::Mutex<HashMap<String, Vec<u8>>>>;

/// A collector that answers 200 and keeps the bodies by request line.
fn collector() -> (String, Bodies) {
    use std::io::{BufRead, BufReader, Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let bodies = Bodies::default();
    let kept = bodies.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut request, mut length) = (String::new(), 0);
            stream.read_line(&mut request).unwrap();
            loop {
                let mut header = String::new();
                stream.read_line(&mut header).unwrap();
                if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if header.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            kept.lock().unwrap().entry(request.trim().to_owned()).or_default().extend(body);
            stream
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .unwrap();
        }
    });
    (endpoint, bodies)
}
