//! The public suite on memory, once for each transport that it can be like: what is then declared is done, or refused. One
//! case by name: `cargo test -p throughline --test like_conformance -- NAME`.

use std::process::ExitCode;

use throughline::driver::{Connecting, Registration};
use throughline::memory::{LIKE, REGISTRATION};
use throughline::{Address, Bus, registrations};
use throughline_conformance::{Registered, Settings, libtest};

/// As a bus opens it: with the other transport's own measure of messages.
static MEMORY: Registration = Registration { connect, ..REGISTRATION };

fn connect(address: Address) -> Connecting {
    Box::pin(async move { Ok(Bus::connect_to(address).await?.transport().clone()) })
}

fn main() -> ExitCode {
    // What this build has: without a transport nobody knows its measure.
    let names: Vec<_> = registrations().map(|transport| transport.name).collect();
    let variants = LIKE.iter().filter(|like| names.contains(&like.trim_end_matches("-fifo")));
    libtest::all(variants.map(|like| {
        let base = format!("memory:conformance?like={like}").parse();
        let harness =
            base.and_then(|base| Registered::new(&MEMORY, base)).map(|harness| harness.variant(like));
        // Tables show transports.
        (harness, Settings { reported: false, ..Settings::default() })
    }))
}
