//! What goes wrong before anything is sent: arguments, addresses, exit codes, and that no secret is shown.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows them in tests, but does not know the helpers of a test"
)]

mod common;

use std::net::TcpListener;
use std::process::Stdio;

use common::{Run, run, run_with_stdin, throughline};

/// One clear line first, and the right exit code.
fn fails(run: &Run, code: i32, expected: &[&str]) {
    assert_eq!((run.code, run.stdout.as_str()), (code, ""), "{run:?}");
    assert!(run.stderr.starts_with("error: "), "{run:?}");
    for part in expected {
        assert!(run.stderr.contains(part), "{part}: {run:?}");
    }
}

#[test]
fn help_and_version_succeed_and_no_command_does_not() {
    for args in
        [&["--help"][..], &["-V"], &["publish", "--help"], &["consume", "--help"], &["demo", "--help"]]
    {
        let run = run(args);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args:?}");
    }
    assert!(run(&["--help"]).stdout.contains("Exit codes:"));
    for args in [
        &[][..],
        &["nosuch"],
        &["publish"],
        &["consume", "x:y", "--max", "0"],
        &["consume", "x:y", "--wait", "3"],
    ] {
        let run = run(args);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{args:?}");
        assert!(!run.stderr.is_empty());
    }
}

#[test]
fn memory_is_refused_where_it_would_die_with_the_command() {
    for command in ["publish", "consume", "create", "delete", "doctor"] {
        let run = run_with_stdin(&[command, "memory:x?queue=q"], b"{}");
        fails(
            &run,
            2,
            &[
                &format!("{command} memory:x?queue=q: "),
                "only within one process",
                "amqp:",
                "throughline demo",
            ],
        );
    }
}

#[test]
fn a_bad_address_is_told_without_its_password() {
    for (url, expected) in [
        ("jobs", "no scheme"),
        ("amqp://user:hunter2@host/%2f?queue=a b", "byte"),
        ("nosuch://user:hunter2@host/x", "unknown scheme 'nosuch'; this build has "),
        ("amqp://user:hunter2@host/%2f?qeue=jobs", "did you mean 'queue'?"),
        ("amqp://user:hunter2@host/%2f?queue=a&queue=b", "given twice"),
    ] {
        for command in ["publish", "consume", "create", "delete", "doctor"] {
            let run = run_with_stdin(&[command, url], b"{}");
            fails(&run, 2, &[expected]);
            assert!(!run.stderr.contains("hunter2"), "{run:?}");
        }
    }
}

#[test]
fn bad_arguments_of_publish_are_told_before_anything_is_connected() {
    const URL: &str = "amqp://user:hunter2@127.0.0.1:1/%2f?queue=q";
    for (args, expected) in [
        (&["--header", "authorization: hunter2"][..], "--header number 1: there is no '='"),
        (&["--header", "a=1", "--header", "=hunter2"], "--header number 2: the name"),
        (&["--header", "traceparent=hunter2"], "traceparent is not of the form"),
        (&["--file", "/no/such/file"], "cannot read '/no/such/file'"),
    ] {
        let all: Vec<_> = ["publish", URL].into_iter().chain(args.iter().copied()).collect();
        let run = run(&all);
        fails(&run, 2, &[expected]);
        assert!(!run.stderr.contains("hunter2"), "{run:?}");
    }
    for args in [
        &["--data", "x", "--file", "y"][..],
        &["--data", "x", "--lines"],
        &["--lines", "--id", "x"],
        &["--json", "--quiet"],
        &["--priority", "256"],
        &["--expires-in", "soon"],
        &["--time", "yesterday"],
    ] {
        let all: Vec<_> = ["publish", URL].into_iter().chain(args.iter().copied()).collect();
        assert_eq!(run(&all).code, 2, "{args:?}");
    }
    let too_many = run(&["consume", URL, "--peek", "--max", "70000"]);
    fails(&too_many, 2, &["--peek holds at most 65535"]);
}

#[test]
fn a_bad_trace_context_of_the_environment_is_only_a_warning() {
    let run: Run =
        throughline(&["publish", "amqp://user:hunter2@127.0.0.1:1/%2f?queue=q", "--header", "nothing"])
            .env("TRACEPARENT", "00-nonsense")
            .output()
            .unwrap()
            .into();
    // The header is wrong, and told first; the environment is read only after.
    fails(&run, 2, &["there is no '='"]);
    assert!(!run.stderr.contains("TRACEPARENT"));
    let run: Run =
        throughline(&["publish", "amqp://user:hunter2@127.0.0.1:1/%2f?queue=q", "--file", "/no/such/file"])
            .env("TRACEPARENT", "00-nonsense")
            .output()
            .unwrap()
            .into();
    assert_eq!(run.code, 2);
    assert!(run.stderr.starts_with("warning: TRACEPARENT is not of the form"), "{run:?}");
}

#[test]
fn an_exporter_that_cannot_be_is_told() {
    let run: Run = throughline(&["demo"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:hunter2@localhost:4318")
        .output()
        .unwrap()
        .into();
    fails(&run, 2, &["OTEL_EXPORTER_OTLP_ENDPOINT", "http:// endpoints only"]);
    assert!(!run.stderr.contains("hunter2"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for args in [&["demo"][..], &["demo", "--json"], &["--help"]] {
        let mut child = throughline(args).spawn().unwrap();
        drop(child.stdout.take());
        let run: Run = child.wait_with_output().unwrap().into();
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args:?}");
    }
}

#[test]
fn a_closed_stderr_hides_no_exit_code() {
    let mut child = throughline(&["publish", "jobs"]).stdout(Stdio::null()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

#[test]
fn no_broker_is_a_failure_that_names_the_address_and_no_secret() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("amqp://user:hunter2@{free}/%2f?queue=q");
    for args in [
        &["publish", &url, "--data", "x"][..],
        &["consume", &url, "--wait", "1s"],
        &["create", &url],
        &["delete", &url],
        &["doctor", &url],
        &["demo", "--via", &url],
    ] {
        let run = run(args);
        fails(&run, 1, &[&format!("{free}")]);
        assert!(!run.stderr.contains("hunter2"), "{run:?}");
    }
}

#[test]
fn conform_runs_the_cases_that_are_named_and_refuses_others() {
    let one = run(&["conform", "memory:x", "--case", "browse_takes_nothing", "--json"]);
    assert_eq!((one.code, one.stderr.as_str()), (0, ""), "{one:?}");
    assert!(one.stdout.contains(r#""case":"browse_takes_nothing""#), "{one:?}");
    assert!(one.stdout.contains(r#""outcome":"passed""#), "{one:?}");
    for (args, expected) in [
        (&["conform", "memory:x", "--case", "nosuch"][..], "there is no case 'nosuch'"),
        (&["conform", "memory:x?quue=q"], "did you mean 'queue'?"),
        (&["conform", "amqp://user:hunter2@host/%2f?qeue=jobs"], "did you mean 'queue'?"),
    ] {
        fails(&run(args), 2, &[expected]);
    }
    let list = run(&["conform", "--list"]);
    assert_eq!(list.code, 0);
    assert!(list.stdout.contains("\n  order_per_key_is_kept\n"), "{list:?}");
}
