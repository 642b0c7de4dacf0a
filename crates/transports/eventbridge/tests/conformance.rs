//! The public suite. One case by name: `cargo test -p throughline-eventbridge --test conformance -- NAME`.

use std::process::ExitCode;

use throughline_conformance::{Registered, libtest};
use throughline_eventbridge::REGISTRATION;

fn main() -> ExitCode {
    let what = "conformance of eventbridge";
    let Some(endpoint) =
        throughline_testkit::endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", what)
    else {
        return ExitCode::SUCCESS;
    };
    let base = format!("eventbridge:?endpoint={endpoint}");
    libtest::main(base.parse().and_then(|base| Registered::new(&REGISTRATION, base)))
}
