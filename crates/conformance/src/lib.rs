#![doc = include_str!("../README.md")]

mod cases;
mod cutter;
mod cx;
mod harness;
pub mod ledger;
pub mod libtest;
mod messages;
pub mod report;
pub mod suite;
mod verdict;

pub use harness::{Fragile, Harness, Registered};
pub use report::{Outcome, Report};
pub use suite::{Case, Settings};
