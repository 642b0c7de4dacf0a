//! Throughline against real brokers and foreign clients; the tests are in `tests/`, and what they share is here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

pub mod aws;
pub mod faults;
pub mod flow;
pub mod ledger;
pub mod samples;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use throughline_testkit::endpoint;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

/// No program of a test may take longer than this.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(60);

/// The `throughline` binary of this build: `cargo test --workspace` builds it beside the tests.
pub fn cli() -> Command {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let binary = folder.join(format!("throughline{}", std::env::consts::EXE_SUFFIX));
    assert!(binary.exists(), "{} is missing; build it: cargo build -p throughline-cli", binary.display());
    let mut command = Command::new(binary);
    for name in ["TRACEPARENT", "TRACESTATE", "BAGGAGE", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
        command.env_remove(name);
    }
    command
}

/// A foreign client: a Python script in `foreign/`. Skips loudly where there is no Python with the client.
pub fn foreign(script: &str, test: &str) -> Option<Command> {
    let python = endpoint::need("THROUGHLINE_PYTHON", "a Python with the foreign clients", test)?;
    let script: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign").join(script);
    let mut command = Command::new(python);
    command.arg(script);
    Some(command)
}

/// Runs a program to its end with this on its standard input, and gives its standard output. A failure panics with all
/// that the program said.
pub async fn run(command: Command, input: &str) -> String {
    let shown = format!("{command:?}");
    let Ended { code, stdout, stderr } = end(command, input).await;
    assert!(code == 0, "{shown}: {code}\n{stderr}");
    stdout
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it said besides.
    pub stderr: String,
}

/// Runs a program to its end with this on its standard input.
pub async fn end(mut command: Command, input: &str) -> Ended {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("the program reads its input");
    drop(stdin);
    let output = tokio::time::timeout(PROGRAM_TIMEOUT, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("{command:?} did not end within {PROGRAM_TIMEOUT:?}"))
        .expect("the program can be waited for");
    let text = |bytes| String::from_utf8(bytes).expect("the program writes UTF-8");
    Ended {
        code: output.status.code().expect("it ends by itself"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// The lines of a program's output, as JSON.
pub fn json_lines(output: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    output.lines().map(parse).collect()
}

/// An OTLP collector that keeps what it is sent: enough of HTTP/1.1 for an exporter, and no understanding of the payload.
pub struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    /// Starts one on a free loopback port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let received = Arc::new(Mutex::default());
        let keep: Arc<Mutex<Vec<u8>>> = received.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, keep.clone()));
            }
        });
        Self { address, received }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All request bodies so far, one after the other.
    pub fn exported(&self) -> Vec<u8> {
        self.received.lock().expect("no test panics with it").clone()
    }
}

/// Answers the requests of one connection until it ends.
async fn serve(stream: TcpStream, keep: Arc<Mutex<Vec<u8>>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        keep.lock().expect("no test panics with it").extend(body);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

/// A name that no other test uses.
pub fn unique(what: &str) -> String {
    format!("it.{what}.{}", uuid::Uuid::now_v7().simple())
}

/// When a fault test that repeats itself may end: at once, or after `THROUGHLINE_SOAK` (`30m`).
pub fn soak() -> Instant {
    let time = std::env::var("THROUGHLINE_SOAK").ok().filter(|time| !time.is_empty());
    let time =
        time.map(|time| humantime::parse_duration(&time).expect("THROUGHLINE_SOAK is a duration: 30m"));
    Instant::now() + time.unwrap_or_default()
}

/// Shows the log of this test's programs and libraries where a failed test shows its output: what a reconnecting client
/// did is otherwise past finding out.
pub fn log() {
    let log = tracing_subscriber::fmt()
        .with_test_writer()
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO);
    // Another test of this process may have been first.
    let _ = log.try_init();
}
