//! The browser that the tests of our pages open them in.

use std::env;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::BROWSER_VAR;
use crate::install::{Package, Permission, find_program};

/// What Chromium and what is built of it are called.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

const PACKAGE: Package = Package {
    what: "Chromium",
    why: "by the tests that look at HTML pages",
    debian: &["chromium"],
    // What Homebrew has is an application of the desktop.
    homebrew: &[],
};

/// The path of a Chromium: the one that [`BROWSER_VAR`] names, else one on the path, which is installed where it may be.
pub fn chromium(permission: Permission) -> Result<PathBuf> {
    if let Some(given) = env::var_os(BROWSER_VAR).filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(given));
    }
    let find = || NAMES.iter().find_map(|name| find_program(name));
    if let Some(found) = find() {
        return Ok(found);
    }
    PACKAGE.install(permission)?;
    match find() {
        Some(found) => Ok(found),
        None => bail!("Chromium was installed, and is not on the path"),
    }
}
