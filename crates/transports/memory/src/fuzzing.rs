//! For Throughline's own fuzzing: what is private here.

use throughline_core::{Address, Error};

use crate::config::{Config, bus_name};

/// What is wrong with an address.
pub fn configure(address: &Address) -> Vec<Error> {
    [bus_name(address).err(), Config::new(address).err()].into_iter().flatten().collect()
}
