//! What the targets share. The laws themselves are in `crates/fuzz`, where the tests run them too.

pub use libfuzzer_sys;

/// Runs the law of this name on whatever libFuzzer makes.
pub fn run(name: &str, input: &[u8]) {
    let target = throughline_fuzz::target(name).unwrap_or_else(|| panic!("there is no target {name}"));
    (target.run)(input);
}

/// The fuzz target of a law.
#[macro_export]
macro_rules! runs {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|input: &[u8]| $crate::run($name, input));
    };
}
