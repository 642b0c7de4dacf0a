//! For Throughline's own fuzzing: what is private here.

use throughline_aws::settings::Settings;
use throughline_core::{Address, Error};

use crate::config::Destination;

/// What is wrong with an address.
pub fn configure(address: &Address) -> Vec<Error> {
    [Settings::of(address).err(), Destination::of(address).err()].into_iter().flatten().collect()
}
