//! The command on SQS, SNS and EventBridge, as a user types it: against an emulator, `THROUGHLINE_AWS_ENDPOINT`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};
use throughline_integration_tests::aws::{TRACEPARENT, unique};
use throughline_integration_tests::{Ended, cli, end, json_lines};
use throughline_testkit::aws_proxy::{AwsProxy, Fault};
use throughline_testkit::endpoint;

fn emulator(test: &str) -> Option<String> {
    endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", test)
}

/// An address of each, with a dead-letter queue.
fn addresses(endpoint: &str) -> [String; 3] {
    let name = unique("cli");
    let rest = format!("dead_letter={name}-dead&endpoint={endpoint}");
    [
        format!("sqs://{name}?{rest}"),
        format!("sns://{name}-t?queue={name}-tq&{rest}"),
        format!("eventbridge://{name}-b?source=shop&queue={name}-bq&{rest}"),
    ]
}

async fn throughline(arguments: &[&str]) -> Ended {
    let mut command = cli();
    command.args(arguments).env("TRACEPARENT", TRACEPARENT);
    end(command, "").await
}

#[tokio::test]
async fn create_publish_consume_doctor_delete() {
    let Some(endpoint) = emulator("aws_create_publish_consume_doctor_delete") else { return };
    for address in addresses(&endpoint) {
        let address = address.as_str();
        // What is missing is told as such, with the command that makes it.
        for command in ["publish", "consume"] {
            let missing = throughline(&[command, address]).await;
            assert_eq!(missing.code, 3, "{missing:?}");
            assert!(missing.stderr.contains(&format!("throughline create '{address}'")), "{missing:?}");
        }
        assert_eq!(throughline(&["doctor", address]).await.code, 1);

        let created = throughline(&["create", address]).await;
        assert!(created.code == 0 && created.stdout.contains("created queue 'it-cli-"), "{created:?}");
        let again = throughline(&["create", address, "--json"]).await;
        assert_eq!(json_lines(&again.stdout)[0]["created"], json!([]));
        let doctor = throughline(&["doctor", address, "--json"]).await;
        assert_eq!(doctor.code, 0, "{doctor:?}");

        let arguments = ["publish", address, "--type", "campaign.sync_report", "--json"];
        let published =
            throughline(&[&arguments[..], &["--header", "tenant=5000", "--data", "{}"]].concat()).await;
        let receipt = &json_lines(&published.stdout)[0];
        assert!(receipt["native_id"].is_string() && published.code == 0, "{published:?}");
        let consumed = throughline(&["consume", address, "--json", "--max", "1", "--wait", "20s"]).await;
        let message = &json_lines(&consumed.stdout)[0];
        assert_eq!((&message["id"], &message["type"]), (&receipt["id"], &json!("campaign.sync_report")));
        assert_eq!((&message["payload"], &message["attempt"]), (&json!("{}"), &json!(1)));
        assert_eq!(message["headers"], json!({ "traceparent": TRACEPARENT, "tenant": "5000" }));
        assert_eq!(message["native"]["ApproximateReceiveCount"], "1");

        let deleted = throughline(&["delete", address, "--json"]).await;
        let deleted = &json_lines(&deleted.stdout)[0];
        assert!(
            deleted["deleted"]
                .as_array()
                .unwrap()
                .iter()
                .any(|line| line.as_str().unwrap().starts_with("queue"))
        );
        assert!(deleted["kept"][0].as_str().unwrap().starts_with("the dead-letter queue"), "{deleted}");
        let again = throughline(&["delete", address]).await;
        assert!(again.code == 0 && again.stdout.contains("nothing to delete"), "{again:?}");
    }
    let name =
        |address: &str| address.split("dead_letter=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    let dead = name(&addresses(&endpoint)[0]);
    throughline(&["delete", &format!("sqs://{dead}?endpoint={endpoint}")]).await;
}

#[tokio::test]
async fn refused_credentials_and_a_wrong_region_have_exit_codes_of_their_own() {
    let Some(endpoint) = emulator("aws_refused_credentials_have_an_exit_code_of_their_own") else { return };
    let proxy = AwsProxy::start(&endpoint).await;
    for address in addresses(&proxy.endpoint()) {
        for (code, says) in [
            ("ExpiredTokenException", "aws sso login"),
            ("AccessDeniedException", "do not allow this"),
            ("UnrecognizedClientException", "does not accept the credentials"),
        ] {
            proxy.always(Some(Fault::Refuse { status: 403, code }));
            let refused = throughline(&["publish", &address]).await;
            assert!(refused.code == 4 && refused.stderr.contains(says), "{refused:?}");
        }
        proxy.always(None);
        let elsewhere = throughline(&["publish", &format!("{address}&region=eu-west-3")]).await;
        assert!(elsewhere.code == 3 && elsewhere.stderr.contains("eu-west-3"), "{elsewhere:?}");
    }
}

/// The spans of a demo, by name; those of one name in their order.
struct Trace(Vec<Value>);

impl Trace {
    async fn of(arguments: &[&str]) -> Self {
        let mut command = cli();
        command.args(["demo", "--json"]).args(arguments);
        let demo = end(command, "").await;
        assert_eq!((demo.code, demo.stderr.as_str()), (0, ""));
        let spans = json_lines(&demo.stdout);
        let traces: BTreeSet<_> = spans.iter().map(|span| span["trace_id"].to_string()).collect();
        assert_eq!(traces.len(), 1, "one trace");
        Self(spans)
    }

    fn all(&self, name: &str) -> Vec<&Value> {
        self.0.iter().filter(|span| span["name"] == name).collect()
    }

    fn one(&self, name: &str) -> &Value {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "{name}");
        all[0]
    }

    /// The names from a span up to the root.
    fn path(&self, span: &Value) -> Vec<&str> {
        let by_id: HashMap<_, _> =
            self.0.iter().map(|span| (span["span_id"].as_str().unwrap(), span)).collect();
        let mut path = Vec::new();
        let mut at = span["parent_span_id"].as_str();
        while let Some(parent) = at.map(|id| by_id[id]) {
            path.push(parent["name"].as_str().unwrap());
            at = parent["parent_span_id"].as_str();
        }
        path
    }
}

/// Nothing of the demo's is left: another one makes it again.
async fn is_gone(address: &str) {
    let missing = throughline(&["publish", address]).await;
    assert_eq!(missing.code, 3, "{address}: {missing:?}");
}

#[tokio::test]
async fn the_demo_goes_through_a_queue_that_it_makes() {
    let Some(endpoint) = emulator("aws_the_demo_goes_through_a_queue_that_it_makes") else { return };
    let named = format!("sqs://{}?endpoint={endpoint}", unique("demo"));
    for via in [named.as_str(), &format!("sqs:?endpoint={endpoint}")] {
        let trace = Trace::of(&["--via", via]).await;
        let attempts = trace.all("campaign.sync_report");
        assert_eq!(attempts.len(), 2);
        for (index, attempt) in attempts.iter().enumerate() {
            assert_eq!(attempt["attributes"]["messaging.system"], "aws_sqs");
            assert_eq!(attempt["attributes"]["throughline.attempt"], index + 1);
            assert_eq!(trace.path(attempt), ["publish campaign.sync_report", "POST /sync", "POST /sync"]);
        }
        assert_eq!(trace.all("queued campaign.sync_report").len(), 2);
    }
    is_gone(&named).await;
}

/// The whole workflow in one trace: request, event, planner, job, two attempts.
#[tokio::test]
async fn the_demo_has_events_on_a_bus_and_jobs_on_a_queue_in_one_trace() {
    let Some(endpoint) = emulator("aws_the_demo_has_events_on_a_bus_and_jobs_on_a_queue_in_one_trace") else {
        return;
    };
    let events = format!("eventbridge://{}?source=shop&endpoint={endpoint}", unique("events"));
    let jobs = format!("sqs://{}?endpoint={endpoint}", unique("jobs"));
    let trace = Trace::of(&["--events", &events, "--jobs", &jobs]).await;
    let event = trace.one("publish campaign.report_requested");
    assert_eq!(event["attributes"]["messaging.system"], "aws.eventbridge");
    let up = ["campaign.report_requested", "publish campaign.report_requested", "POST /sync", "POST /sync"];
    assert_eq!(trace.path(trace.one("publish campaign.sync_report")), up);
    let attempts = trace.all("campaign.sync_report");
    assert_eq!(attempts.len(), 2);
    for attempt in attempts {
        assert_eq!(attempt["attributes"]["messaging.system"], "aws_sqs");
        assert_eq!(trace.path(attempt)[1..], up);
    }
    // Both waits, each below what it waited for.
    trace.one("queued campaign.report_requested");
    assert_eq!(trace.all("queued campaign.sync_report").len(), 2);
    is_gone(&events).await;
    is_gone(&jobs).await;
}
