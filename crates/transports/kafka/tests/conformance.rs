//! The public suite. One case by name: `cargo test -p throughline-kafka --test conformance -- NAME`.

use std::process::ExitCode;

use throughline_conformance::{Registered, libtest};
use throughline_kafka::REGISTRATION;

fn main() -> ExitCode {
    let Some(url) = throughline_testkit::endpoint::broker("kafka", "conformance of kafka") else {
        return ExitCode::SUCCESS;
    };
    libtest::main(url.parse().and_then(|base| Registered::new(&REGISTRATION, base)))
}
