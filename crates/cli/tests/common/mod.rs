//! Runs the real binary.
#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// The command, in an environment without trace context, exporters or colour.
pub(crate) fn throughline(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughline"));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("OTEL_")
            || ["TRACEPARENT", "TRACESTATE", "BAGGAGE", "RUST_LOG"].contains(&&*name_text)
        {
            command.env_remove(&name);
        }
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("ended by itself"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> Run {
    throughline(args).output().expect("the binary runs").into()
}

/// Runs it with this on stdin.
pub(crate) fn run_with_stdin(args: &[&str], stdin: &[u8]) -> Run {
    let mut child = throughline(args).stdin(Stdio::piped()).spawn().expect("the binary runs");
    // It may end without reading.
    let _ = child.stdin.take().expect("piped").write_all(stdin);
    child.wait_with_output().expect("it ends").into()
}
