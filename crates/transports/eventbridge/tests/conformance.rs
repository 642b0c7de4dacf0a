//! The public suite. One case by name: `cargo test -p throughline-eventbridge --test conformance -- NAME`.

use std::process::ExitCode;

use throughline_conformance::{Registered, libtest};
use throughline_core::Result;
use throughline_eventbridge::REGISTRATION;
use throughline_testkit::{aws_raw, endpoint};

fn main() -> ExitCode {
    let what = "conformance of eventbridge";
    let Some(endpoint) = endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", what) else {
        return ExitCode::SUCCESS;
    };
    libtest::main(harness(endpoint))
}

fn harness(endpoint: String) -> Result<Registered> {
    let base = format!("eventbridge:?endpoint={endpoint}").parse()?;
    let harness = Registered::new(&REGISTRATION, base)?;
    Ok(harness.with_foreign(move |to| Box::pin(aws_raw::put_undecodable(endpoint.clone(), to))))
}
