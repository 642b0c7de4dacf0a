//! `cargo xtask layout`: every transport looks like every other, and no list forgets one.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::{Outcome, compose_file};

/// What each transport has, besides its README.
const FILES: &[&str] = &[
    "Cargo.toml",
    "src/lib.rs",
    "src/config.rs",
    "src/publisher.rs",
    "src/consumer.rs",
    "src/admin.rs",
    "tests/native.rs",
    "examples/quickstart.rs",
];

/// What each one has once there is a public suite to run.
const CONFORMANCE: (&str, &str) = ("crates/conformance", "tests/conformance.rs");

/// The headings of a transport's README, in this order. Others may stand between.
const HEADINGS: &[&str] =
    &["## Addresses", "## Delivery semantics", "## Wire mapping", "## Limits", "## Native access"];

const TRANSPORTS: &str = "crates/transports";
const REGISTRY: &str = "crates/throughline/src/registry.rs";
const FACADE: &str = "crates/throughline/Cargo.toml";
const README: &str = "README.md";
const MATRIX: (&str, &str) = ("<!-- capabilities:begin -->", "<!-- capabilities:end -->");
const COMPOSE: &str = "docker-compose.yml";

/// Checks the checkout and prints what is wrong.
pub(crate) fn run(checkout: &Path) -> Result<Outcome> {
    let (transports, problems) = check(checkout)?;
    if problems.is_empty() {
        eprintln!(
            "layout: {} transports ({}) and {COMPOSE} are as they must be",
            transports.len(),
            transports.join(", ")
        );
        return Ok(Outcome::Success);
    }
    for problem in &problems {
        println!("{problem}");
    }
    eprintln!("layout: {} {}", problems.len(), if problems.len() == 1 { "problem" } else { "problems" });
    Ok(Outcome::Failure)
}

/// The transports that there are, and every problem.
fn check(root: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let transports = transports(root)?;
    let mut problems = Vec::new();
    if transports.is_empty() {
        problems.push(format!("{TRANSPORTS}: no transport in it; is this the root of the checkout?"));
    }
    let conformance = root.join(CONFORMANCE.0).is_dir();
    for name in &transports {
        let folder = format!("{TRANSPORTS}/{name}");
        for file in FILES.iter().chain(conformance.then_some(&CONFORMANCE.1)) {
            if !root.join(&folder).join(file).is_file() {
                problems.push(format!("{folder}/{file}: missing; every transport has one"));
            }
        }
        match fs::read_to_string(root.join(&folder).join(README)) {
            Ok(readme) => {
                problems.extend(headings(&readme).map(|problem| format!("{folder}/{README}: {problem}")));
            }
            Err(error) => problems.push(unreadable(&format!("{folder}/{README}"), &error)),
        }
        if let Ok(manifest) = fs::read_to_string(root.join(&folder).join("Cargo.toml"))
            && !has_example(&manifest, name)
        {
            problems.push(format!(
                "{folder}/Cargo.toml: give the quickstart a name of its own ([[example]] name = \"{name}-quickstart\", \
                 path = \"examples/quickstart.rs\"); all examples are built into one folder"
            ));
        }
    }
    for (file, what, is_there) in [
        (
            REGISTRY,
            "`throughline_NAME` is not in it; register the transport",
            in_registry as fn(&str, &str) -> bool,
        ),
        (FACADE, "no feature `NAME` in [features]; add `NAME = [\"dep:throughline-NAME\"]`", has_feature),
        (
            README,
            "no row or column for `NAME` between the capability markers; add it to the matrix",
            in_matrix,
        ),
    ] {
        match fs::read_to_string(root.join(file)) {
            Ok(text) => problems.extend(
                transports
                    .iter()
                    .filter(|name| !is_there(&text, name))
                    .map(|name| format!("{file}: {}", what.replace("NAME", name))),
            ),
            Err(error) => problems.push(unreadable(file, &error)),
        }
    }
    if let (Some(needed), Ok(readme)) = (newest_rust(root), fs::read_to_string(root.join(README)))
        && !readme.contains(&format!("({needed} or newer"))
    {
        problems.push(format!("{README}: a manifest asks for Rust {needed}; say `({needed} or newer`"));
    }
    match fs::read_to_string(root.join(COMPOSE)) {
        Ok(text) => {
            problems
                .extend(compose_file::problems(&text).iter().map(|problem| format!("{COMPOSE}: {problem}")));
        }
        Err(error) => problems.push(unreadable(COMPOSE, &error)),
    }
    Ok((transports, problems))
}

/// The newest Rust that a manifest of the workspace asks for.
fn newest_rust(root: &Path) -> Option<String> {
    let entries = ["", "crates", TRANSPORTS, "examples"].map(|folder| fs::read_dir(root.join(folder)));
    let folders = entries.into_iter().flatten().flatten().flatten().map(|entry| entry.path());
    // The benchmarks are a workspace of their own, with what the peers ask for.
    let members = folders.filter(|folder| !folder.ends_with("benchmarks"));
    let manifests = members.chain([root.to_owned()]).map(|folder| folder.join("Cargo.toml"));
    let versions = manifests.filter_map(|manifest| rust_version(&fs::read_to_string(manifest).ok()?));
    versions
        .max_by_key(|version| version.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>())
}

fn rust_version(manifest: &str) -> Option<String> {
    let line = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "))?;
    Some(line.trim().trim_matches('"').to_owned())
}

fn unreadable(file: &str, error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::NotFound {
        format!("{file}: missing; it must be there")
    } else {
        format!("{file}: cannot be read: {error}")
    }
}

/// The transports' names, sorted.
pub(crate) fn transports(root: &Path) -> Result<Vec<String>> {
    let folder = root.join(TRANSPORTS);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// What is wrong with a transport README's headings: missing, or not in order.
fn headings(readme: &str) -> impl Iterator<Item = String> {
    let places: Vec<Option<usize>> =
        HEADINGS.iter().map(|heading| readme.lines().position(|line| line.trim_end() == *heading)).collect();
    let mut last = None;
    let mut problems = Vec::new();
    for (heading, place) in HEADINGS.iter().zip(places) {
        match place {
            None => problems.push(format!("no heading `{heading}`; add it")),
            Some(_) if place < last => {
                problems.push(format!("`{heading}` is out of order; the order is {}", HEADINGS.join(", ")));
            }
            Some(_) => last = place,
        }
    }
    problems.into_iter()
}

fn has_example(manifest: &str, name: &str) -> bool {
    let wanted = format!("name=\"{name}-quickstart\"");
    section(manifest, "[[example]]").any(|line| line.replace(' ', "") == wanted)
}

fn in_registry(registry: &str, name: &str) -> bool {
    has_word(registry, &format!("throughline_{}", name.replace('-', "_")))
}

fn has_feature(manifest: &str, name: &str) -> bool {
    section(manifest, "[features]")
        .any(|line| line.split('=').next().is_some_and(|key| key.trim().trim_matches('"') == name))
}

fn in_matrix(readme: &str, name: &str) -> bool {
    let matrix =
        readme.split_once(MATRIX.0).and_then(|(_, rest)| rest.split_once(MATRIX.1)).map(|(matrix, _)| matrix);
    matrix.is_some_and(|matrix| {
        matrix.lines().any(|line| line.trim_start().starts_with('|') && has_word(&line.to_lowercase(), name))
    })
}

/// The lines of every section of a manifest with this header, up to the next header.
fn section<'a>(manifest: &'a str, header: &'a str) -> impl Iterator<Item = &'a str> {
    let mut within = false;
    manifest.lines().map(str::trim).filter(move |line| {
        if line.starts_with('[') {
            within = *line == header;
            return false;
        }
        within && !line.starts_with('#')
    })
}

/// Whether `word` stands in `text` and is not merely part of a longer name.
fn has_word(text: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(start, _)| {
        let before = text.get(..start).and_then(|text| text.chars().next_back());
        let after = text.get(start + word.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A small checkout in which all is well.
    struct Tree(PathBuf);

    impl Tree {
        fn new(test: &str) -> Tree {
            let tree =
                Tree(std::env::temp_dir().join(format!("throughline-layout-{}-{test}", std::process::id())));
            let _ = fs::remove_dir_all(&tree.0);
            for name in ["memory", "rabbitmq"] {
                for file in FILES {
                    tree.write(&format!("{TRANSPORTS}/{name}/{file}"), "");
                }
                tree.write(&format!("{TRANSPORTS}/{name}/README.md"), &HEADINGS.join("\n\ntext\n\n"));
                let manifest =
                    format!("[package]\nname = \"x\"\n[[example]]\nname = \"{name}-quickstart\"\n");
                tree.write(&format!("{TRANSPORTS}/{name}/Cargo.toml"), &manifest);
            }
            tree.write(REGISTRY, "throughline_memory::TRANSPORT, throughline_rabbitmq::TRANSPORT");
            tree.write(FACADE, "[features]\nmemory = []\nrabbitmq = [\"dep:throughline-rabbitmq\"]\n");
            tree.write(README, &format!("{}\n| | memory | RabbitMQ |\n{}\n", MATRIX.0, MATRIX.1));
            tree.write(COMPOSE, "services:\n  rabbitmq:\n    image: rabbitmq:4.2\n");
            tree
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn remove(&self, file: &str) {
            fs::remove_file(self.0.join(file)).unwrap();
        }

        fn problems(&self) -> Vec<String> {
            check(&self.0).unwrap().1
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_readme_that_names_an_older_rust_is_told() {
        let tree = Tree::new("rust");
        let readme = fs::read_to_string(tree.0.join(README)).unwrap();
        tree.write("Cargo.toml", "[workspace.package]\nrust-version = \"1.89\"\n");
        tree.write("crates/aws/Cargo.toml", "[package]\nrust-version = \"1.94.1\"\n");
        tree.write("crates/cli/Cargo.toml", "[package]\nrust-version.workspace = true\n");
        tree.write(README, &format!("{readme}\nRust (1.89 or newer)\n"));
        assert!(tree.problems().concat().contains("asks for Rust 1.94.1"), "{:?}", tree.problems());
        tree.write(README, &format!("{readme}\nRust (1.94.1 or newer)\n"));
        assert_eq!(tree.problems(), Vec::<String>::new());
    }

    #[test]
    fn a_complete_tree_has_no_problems() {
        let tree = Tree::new("complete");
        assert_eq!(tree.problems(), Vec::<String>::new());
        assert_eq!(check(&tree.0).unwrap().0, ["memory", "rabbitmq"]);
    }

    #[test]
    fn every_missing_file_is_named() {
        let tree = Tree::new("files");
        for file in FILES {
            tree.remove(&format!("{TRANSPORTS}/rabbitmq/{file}"));
        }
        tree.remove(&format!("{TRANSPORTS}/memory/README.md"));
        let problems = tree.problems();
        assert_eq!(problems.len(), FILES.len() + 1, "{problems:#?}");
        assert!(problems.iter().all(|problem| problem.contains("missing")));
    }

    #[test]
    fn the_conformance_test_is_asked_for_once_there_is_a_suite() {
        let tree = Tree::new("conformance");
        fs::create_dir_all(tree.0.join(CONFORMANCE.0)).unwrap();
        let problems = tree.problems();
        assert_eq!(problems.len(), 2, "{problems:#?}");
        assert!(problems[0].contains("memory/tests/conformance.rs"));
    }

    #[test]
    fn headings_are_all_there_and_in_order() {
        assert_eq!(headings(&HEADINGS.join("\n## Another\n")).count(), 0);
        let missing: Vec<_> = headings("## Addresses\n## Wire mapping\n### Limits\n").collect();
        assert_eq!(missing.len(), 3, "{missing:?}");
        let swapped =
            ["## Addresses", "## Wire mapping", "## Delivery semantics", "## Limits", "## Native access"];
        let problems: Vec<_> = headings(&swapped.join("\n")).collect();
        assert!(problems.len() == 1 && problems[0].contains("out of order"), "{problems:?}");
    }

    #[test]
    fn a_transport_that_a_list_forgets_is_named() {
        let tree = Tree::new("lists");
        tree.write(REGISTRY, "throughline_memory, throughline_rabbitmq_native");
        tree.write(FACADE, "[dependencies]\nrabbitmq = \"1\"\n[features]\nmemory = []\n# rabbitmq = []\n");
        tree.write(README, &format!("| rabbitmq |\n{}\n| memory |\nrabbitmq\n{}\n", MATRIX.0, MATRIX.1));
        let problems = tree.problems();
        let files: Vec<_> = problems.iter().filter_map(|problem| problem.split(':').next()).collect();
        assert_eq!(files, [REGISTRY, FACADE, README], "{problems:#?}");
        assert!(problems.iter().all(|problem| problem.contains("rabbitmq")));
    }

    #[test]
    fn quickstarts_need_names_of_their_own() {
        let tree = Tree::new("names");
        tree.write(&format!("{TRANSPORTS}/memory/Cargo.toml"), "[[example]]\nname = \"quickstart\"\n");
        let problems = tree.problems();
        assert!(problems.len() == 1 && problems[0].contains("memory-quickstart"), "{problems:#?}");
    }

    #[test]
    fn lists_that_are_not_there_are_named() {
        let tree = Tree::new("no-lists");
        for file in [REGISTRY, FACADE, README, COMPOSE] {
            tree.remove(file);
        }
        assert_eq!(tree.problems().len(), 4);
        let empty = Tree(tree.0.join("empty"));
        assert!(empty.problems()[0].contains("no transport"));
    }
}
