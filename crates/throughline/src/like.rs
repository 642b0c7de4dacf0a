//! `memory:…?like=sqs`: what messages are on the other transport's wire is measured by its own code.

use std::sync::Arc;

use throughline_core::driver::Transport;
use throughline_core::{Address, Error, ErrorKind, Result};
use throughline_memory::{Measure, Memory};

/// Opens the memory transport, where the address asks it to be like another one.
pub(crate) fn open(address: &Address) -> Result<Option<Arc<dyn Transport>>> {
    let is_memory = throughline_memory::REGISTRATION.schemes.contains(&address.scheme());
    match address.option("like").filter(|like| is_memory && throughline_memory::LIKE.contains(like)) {
        Some(like) => Memory::open_with(address, Some(measure(like)?)).map(Some),
        None => Ok(None),
    }
}

/// How the transport of this name measures.
fn measure(like: &str) -> Result<Measure> {
    let transport = like.strip_suffix("-fifo").unwrap_or(like);
    match transport {
        #[cfg(feature = "eventbridge")]
        "eventbridge" => Ok(throughline_eventbridge::measure),
        #[cfg(feature = "kafka")]
        "kafka" => Ok(throughline_kafka::measure),
        #[cfg(feature = "rabbitmq")]
        "rabbitmq" => Ok(throughline_rabbitmq::measure),
        #[cfg(feature = "sns")]
        "sns" => Ok(throughline_sns::measure),
        #[cfg(feature = "sqs")]
        "sqs" => Ok(throughline_sqs::measure),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "this build cannot measure as {transport} does: enable throughline's feature '{transport}'"
            ),
        )),
    }
}
