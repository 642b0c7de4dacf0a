//! For Throughline's own fuzzing: what is private here.

use throughline_core::{Address, Error};

use crate::config::{Config, Durability, written_file};

/// What is wrong with an address. Looks at no file.
pub fn configure(address: &Address) -> Vec<Error> {
    [written_file(address).err(), Config::new(address).err(), Durability::of(address).err()]
        .into_iter()
        .flatten()
        .collect()
}
