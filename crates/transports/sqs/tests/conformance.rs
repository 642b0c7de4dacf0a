//! The public suite. One case by name: `cargo test -p throughline-sqs --test conformance -- NAME`.

use std::process::ExitCode;

use throughline_conformance::{Registered, Settings, libtest};
use throughline_core::Result;
use throughline_sqs::REGISTRATION;
use throughline_testkit::{aws_raw, endpoint};

fn main() -> ExitCode {
    let what = "conformance of sqs";
    let Some(endpoint) = endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", what) else {
        return ExitCode::SUCCESS;
    };
    let standard = harness(&endpoint, "");
    let fifo = harness(&endpoint, "&fifo=true").map(|harness| harness.variant("fifo"));
    // An emulator looks through the whole of a FIFO queue with each request.
    let short = Settings { many: 1000, per_key: 100, ..Settings::default() };
    libtest::all([(standard, Settings::default()), (fifo, short)])
}

fn harness(endpoint: &str, options: &str) -> Result<Registered> {
    let base = format!("sqs:?endpoint={endpoint}{options}").parse()?;
    let endpoint = endpoint.to_owned();
    let harness = Registered::new(&REGISTRATION, base)?;
    Ok(harness.with_foreign(move |to| Box::pin(aws_raw::put_undecodable(endpoint.clone(), to))))
}
