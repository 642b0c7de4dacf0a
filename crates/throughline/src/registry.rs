//! Which transport answers to which scheme: one line a transport.

use throughline_core::driver::Registration;
use throughline_core::{Address, Error, ErrorKind, Result};

/// The transports that this build has.
pub fn registrations() -> impl Iterator<Item = &'static Registration> {
    [
        #[cfg(feature = "eventbridge")]
        &throughline_eventbridge::REGISTRATION,
        #[cfg(feature = "kafka")]
        &throughline_kafka::REGISTRATION,
        #[cfg(feature = "memory")]
        &throughline_memory::REGISTRATION,
        #[cfg(feature = "rabbitmq")]
        &throughline_rabbitmq::REGISTRATION,
        #[cfg(feature = "sns")]
        &throughline_sns::REGISTRATION,
        #[cfg(feature = "sqlite")]
        &throughline_sqlite::REGISTRATION,
        #[cfg(feature = "sqs")]
        &throughline_sqs::REGISTRATION,
    ]
    .into_iter()
}

/// The transport of an address. An unknown scheme is `InvalidAddress`, and the message lists those there are.
pub fn registered(address: &Address) -> Result<&'static Registration> {
    registrations().find(|transport| transport.schemes.contains(&address.scheme())).ok_or_else(|| {
        let known: Vec<_> = registrations().flat_map(|transport| transport.schemes).copied().collect();
        Error::new(
            ErrorKind::InvalidAddress,
            format!(
                "unknown scheme '{}'; this build has {}",
                address.scheme(),
                if known.is_empty() { "no transports: enable a feature".into() } else { known.join(", ") }
            ),
        )
    })
}
