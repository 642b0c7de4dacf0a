//! The public suite. One case by name: `cargo test -p throughline-sqs --test conformance -- NAME`.

use std::process::ExitCode;

use throughline_conformance::{Registered, libtest};
use throughline_sqs::REGISTRATION;

fn main() -> ExitCode {
    let what = "conformance of sqs";
    let Some(endpoint) =
        throughline_testkit::endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", what)
    else {
        return ExitCode::SUCCESS;
    };
    let base = format!("sqs:?endpoint={endpoint}");
    libtest::main(base.parse().and_then(|base| Registered::new(&REGISTRATION, base)))
}
