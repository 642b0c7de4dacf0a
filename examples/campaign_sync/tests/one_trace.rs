//! The story on each transport: one trace, each span below the one that caused it, with a retry and a dead letter in it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;
use throughline_testkit::endpoint;

/// The spans of one run, as it has printed them.
struct Trace(Vec<Value>);

impl Trace {
    fn of(events: &str, jobs: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_campaign_sync"));
        command
            .args(["--json", "--events", events, "--jobs", jobs])
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT");
        let output = command.output().expect("it starts");
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{events}, {jobs}: {errors}");
        Self(text.lines().map(|line| serde_json::from_str(line).expect("a span a line")).collect())
    }

    fn all<'a>(&'a self, kind: &'a str, name: &'a str) -> Vec<&'a Value> {
        self.0.iter().filter(|span| span["kind"] == kind && span["name"] == name).collect()
    }

    fn one<'a>(&'a self, kind: &'a str, name: &'a str) -> &'a Value {
        let all = self.all(kind, name);
        assert_eq!(all.len(), 1, "{kind} {name}");
        all[0]
    }

    /// What is directly below a span, by kind and name, in the order in which it began.
    fn below(&self, parent: &Value) -> Vec<&Value> {
        self.0.iter().filter(|span| span["parent_span_id"] == parent["span_id"]).collect()
    }

    fn names(&self, parent: &Value) -> Vec<&str> {
        self.below(parent).iter().map(|span| span["name"].as_str().unwrap()).collect()
    }
}

fn links_to(span: &Value, target: &Value) -> bool {
    let links = span["links"].as_array().unwrap();
    links.iter().any(|link| link["span_id"] == target["span_id"] && link["trace_id"] == target["trace_id"])
}

/// The whole story hangs together.
fn holds(trace: &Trace) {
    let first = &trace.0[0]["trace_id"];
    assert!(trace.0.iter().all(|span| span["trace_id"] == *first));
    let root = trace.0[0].clone();
    assert!(root["parent_span_id"].is_null());
    assert_eq!(trace.0.iter().filter(|span| span["parent_span_id"].is_null()).count(), 1);

    // The request, the event, the planner.
    assert_eq!((root["name"].as_str(), root["kind"].as_str()), (Some("POST /sync"), Some("client")));
    let server = trace.one("server", "POST /sync");
    assert_eq!(server["parent_span_id"], root["span_id"]);
    let published = trace.one("producer", "publish campaign.sync_requested");
    assert_eq!(published["parent_span_id"], server["span_id"]);
    let planned = trace.one("consumer", "campaign.sync_requested");
    assert_eq!(planned["parent_span_id"], published["span_id"]);
    assert!(links_to(planned, published));
    assert_eq!(
        trace.one("internal", "queued campaign.sync_requested")["parent_span_id"],
        published["span_id"]
    );

    // A job for each profile, each with its attempts below the span that made it.
    let jobs = trace.all("producer", "create campaign.sync_report");
    assert_eq!(jobs.len(), 3);
    let mut ends = BTreeMap::new();
    for job in jobs {
        assert_eq!(job["parent_span_id"], planned["span_id"]);
        let of_kind =
            |kind| trace.below(job).into_iter().filter(|span| span["kind"] == kind).collect::<Vec<_>>();
        let (attempts, waits) = (of_kind("consumer"), of_kind("internal"));
        assert_eq!(waits.len(), attempts.len(), "a wait before each attempt");
        let profile = attempts[0]["attributes"]["ads.profile_id"].as_i64().unwrap();
        let mut told = Vec::new();
        for (index, attempt) in attempts.iter().enumerate() {
            let attributes = &attempt["attributes"];
            assert_eq!(attributes["throughline.attempt"], index + 1);
            assert_eq!(attributes["job.type"], "campaign-report-sync");
            assert_eq!(attributes["tenant.company_id"], 5000);
            assert_eq!(attributes["ads.profile_id"], profile);
            assert!(
                attributes["throughline.idempotency_key"].as_str().unwrap().ends_with(&profile.to_string())
            );
            assert!(links_to(attempt, job));
            assert!(waits[index]["end"].as_str() <= attempt["start"].as_str());
            if index > 0 {
                assert_eq!(attributes["throughline.retry.reason"], "http_503");
            }
            let failed = attempt["status"]["code"] == "error";
            let names = trace.names(attempt);
            assert_eq!(&names[..2], ["SELECT profiles", "POST /v1/reports"]);
            let call = trace.below(attempt)[1];
            assert_eq!(trace.below(call)[0]["kind"], "server", "the downstream service's own span");
            let last = trace.below(attempt).pop().unwrap();
            if last["name"] == "reject campaign.sync_report" {
                assert_eq!(last["attributes"]["throughline.dead_letter.dependency"], "ads-api");
                assert_eq!(last["attributes"]["throughline.dead_letter.attempts"], 3);
            }
            let word = last["name"].as_str().unwrap().split(' ').next().unwrap();
            told.push(format!("{}{word}", if failed { "failed, " } else { "" }));
        }
        ends.insert(profile, told);
    }
    let expected = [
        (50_000_100, vec!["ack"]),
        (50_000_200, vec!["failed, retry", "ack"]),
        (50_000_300, vec!["failed, retry", "failed, retry", "failed, reject"]),
    ];
    assert_eq!(
        ends,
        expected.map(|(profile, told)| (profile, told.into_iter().map(str::to_owned).collect())).into()
    );
}

#[test]
fn one_trace_on_memory() {
    holds(&Trace::of("memory:campaign", "memory:campaign"));
}

#[test]
fn one_trace_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", folder.path().join("bus.db").display());
    holds(&Trace::of(&file, &file));
}

#[test]
fn one_trace_on_rabbitmq() {
    let Some(url) = endpoint::broker("rabbitmq", "one_trace_on_rabbitmq") else { return };
    holds(&Trace::of(&url, &url));
}

#[test]
fn one_trace_on_kafka() {
    let Some(url) = endpoint::broker("kafka", "one_trace_on_kafka") else { return };
    holds(&Trace::of(&url, &url));
}

#[test]
fn one_trace_with_events_on_eventbridge_and_jobs_on_sqs() {
    let test = "one_trace_with_events_on_eventbridge_and_jobs_on_sqs";
    let Some((events, jobs)) = aws(test) else { return };
    holds(&Trace::of(&events, &jobs));
}

#[test]
fn one_trace_with_events_on_sns_and_jobs_on_rabbitmq() {
    let test = "one_trace_with_events_on_sns_and_jobs_on_rabbitmq";
    let Some((events, _)) = aws(test) else { return };
    let Some(jobs) = endpoint::broker("rabbitmq", test) else { return };
    holds(&Trace::of(&events.replace("eventbridge:", "sns:"), &jobs));
}

fn aws(test: &str) -> Option<(String, String)> {
    let endpoint = endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", test)?;
    let address = |scheme| format!("{scheme}:?endpoint={endpoint}");
    Some((address("eventbridge"), address("sqs")))
}
