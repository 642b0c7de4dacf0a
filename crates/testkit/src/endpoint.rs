//! The real brokers that a test run has. `cargo xtask test` starts them and names them in the environment.

/// The address of a broker, without a destination, from `THROUGHLINE_{NAME}_URL`. Without one the test is skipped:
/// loudly, counted by `cargo xtask test`, and a failure in CI.
///
/// ```no_run
/// let Some(url) = throughline_testkit::endpoint::broker("rabbitmq", "my_test") else { return };
/// ```
pub fn broker(name: &str, test: &str) -> Option<String> {
    need(&format!("THROUGHLINE_{}_URL", name.to_uppercase()), &format!("a {name} broker"), test)
}

/// The value of an environment variable that a test needs, as [`broker`].
pub fn need(variable: &str, what: &str, test: &str) -> Option<String> {
    match std::env::var(variable) {
        Ok(value) if !value.is_empty() => Some(value),
        _ => {
            skip(test, &format!("needs {what}: {variable} is not set (cargo xtask test sets it)"));
            None
        }
    }
}

/// Says that a test is skipped. In CI (`CI=true`) it fails instead.
pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} {reason}, and in CI nothing is skipped");
    throughline_brokers::skip(test, reason);
}

/// Says what a test has counted or timed: at once, and once more at the end of `cargo xtask test`.
pub fn measured(test: &str, text: &str) {
    throughline_brokers::measured(test, text);
}
