//! The public suite. One case by name: `cargo test -p throughline-rabbitmq --test conformance -- NAME`.

use std::process::ExitCode;

use throughline_conformance::{Registered, libtest};
use throughline_rabbitmq::REGISTRATION;

fn main() -> ExitCode {
    let Some(url) = throughline_testkit::endpoint::broker("rabbitmq", "rabbitmq conformance") else {
        return ExitCode::SUCCESS;
    };
    libtest::main(url.parse().and_then(|base| Registered::new(&REGISTRATION, base)))
}
