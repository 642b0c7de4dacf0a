//! The public suite. One case by name: `cargo test -p throughline-memory --test conformance -- NAME`.

use std::process::ExitCode;

use throughline_conformance::{Registered, libtest};
use throughline_memory::REGISTRATION;

fn main() -> ExitCode {
    libtest::main("memory:conformance".parse().and_then(|base| Registered::new(&REGISTRATION, base)))
}
