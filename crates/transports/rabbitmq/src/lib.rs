//! Placeholder while it is being written.
use throughline_core::driver::Registration;
/// Placeholder.
pub const REGISTRATION: Registration = Registration {
    name: "rabbitmq",
    schemes: &["rabbitmq"],
    options: &[],
    capabilities: &throughline_core::capabilities::RABBITMQ,
    connect: |_| Box::pin(async { Err(throughline_core::Error::new(throughline_core::ErrorKind::Unsupported, "not yet")) }),
};
