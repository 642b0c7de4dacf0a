//! Where cargo has put what it built, from its own messages: guessing the path would build things twice, or run old
//! ones.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use throughline_brokers::folder::Folder;

use crate::child;

/// What is run besides `cargo test`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Artifacts {
    /// Each transport's quickstart: the transport's name and the executable.
    pub(crate) quickstarts: Vec<(String, PathBuf)>,
    /// The `throughline` binary.
    pub(crate) cli: Option<PathBuf>,
}

/// Builds the examples and binaries of the whole workspace, with the features that `cargo test --workspace` uses: what
/// that has built is found, not built again.
pub(crate) fn build(checkout: &Path, run: &Folder, locked: bool) -> Result<Artifacts> {
    let mut command = child::cargo(checkout);
    command.args([
        "build",
        "--workspace",
        "--bins",
        "--examples",
        "--message-format=json-render-diagnostics",
    ]);
    if locked {
        command.arg("--locked");
    }
    let mut messages = Vec::new();
    let status = child::lines(&mut command, run, |line| messages.push(line.to_owned()))?;
    if !status.success() {
        bail!("`cargo build --workspace --bins --examples` failed ({status})");
    }
    parse(&messages, &checkout.join("crates").join("transports"))
}

fn parse(messages: &[String], transports: &Path) -> Result<Artifacts> {
    let mut artifacts = Artifacts::default();
    let mut owners: HashMap<PathBuf, String> = HashMap::new();
    for message in messages.iter().filter(|line| line.starts_with('{')) {
        let message: Value =
            serde_json::from_str(message).context("cargo wrote a message that is not JSON")?;
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        if text("/reason") != "compiler-artifact" || text("/executable").is_empty() {
            continue;
        }
        let executable = PathBuf::from(text("/executable"));
        match text("/target/kind/0") {
            "bin" if text("/target/name") == "throughline" => artifacts.cli = Some(executable),
            "example" => {
                let Some(transport) = quickstart_of(Path::new(text("/target/src_path")), transports) else {
                    continue;
                };
                // Examples of all packages land in one folder; of two with one name, the later overwrites the earlier.
                if let Some(other) = owners.insert(executable.clone(), transport.clone()) {
                    bail!(
                        "the quickstarts of {other} and {transport} have one name and overwrite each other; in \
                         crates/transports/{transport}/Cargo.toml give it its own: [[example]] name = \
                         \"{transport}-quickstart\", path = \"examples/quickstart.rs\""
                    );
                }
                artifacts.quickstarts.push((transport, executable));
            }
            _ => {}
        }
    }
    artifacts.quickstarts.sort();
    Ok(artifacts)
}

/// The transport whose quickstart this source is.
fn quickstart_of(source: &Path, transports: &Path) -> Option<String> {
    let inner = source.strip_prefix(transports).ok()?;
    let name = inner.iter().next()?.to_str()?;
    (inner == Path::new(name).join("examples").join("quickstart.rs")).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(transport: &str, executable: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","target":{{"kind":["example"],"name":"x","src_path":"/w/crates/transports/{transport}/examples/quickstart.rs"}},"executable":"{executable}"}}"#
        )
    }

    #[test]
    fn quickstarts_and_the_cli_are_found() {
        let messages = [
            example("rabbitmq", "/t/rabbitmq-quickstart"),
            example("memory", "/t/memory-quickstart"),
            example("memory/nested", "/t/other"),
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"throughline"},"executable":"/t/throughline"}"#.to_owned(),
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"throughline"},"executable":null}"#.to_owned(),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
            "some macro prints".to_owned(),
        ];
        let found = parse(&messages, Path::new("/w/crates/transports")).unwrap();
        let names: Vec<_> = found.quickstarts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["memory", "rabbitmq"]);
        assert_eq!(found.cli.unwrap(), Path::new("/t/throughline"));
    }

    #[test]
    fn quickstarts_that_overwrite_each_other_are_an_error() {
        let messages = [example("memory", "/t/quickstart"), example("rabbitmq", "/t/quickstart")];
        let error = parse(&messages, Path::new("/w/crates/transports")).unwrap_err().to_string();
        assert!(error.contains("rabbitmq-quickstart"), "{error}");
    }
}
