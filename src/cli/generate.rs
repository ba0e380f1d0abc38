//! Completions and manual pages, from the same definitions as the arguments.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use super::arguments::Arguments;

/// The completion script for `shell`.
pub(super) fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "lvolfs", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a manual page for each verb into `directory`.
pub(super) fn man(directory: &Path) -> anyhow::Result<String> {
    clap_mangen::generate_to(Arguments::command(), directory)
        .with_context(|| format!("cannot write the manual pages to {}", directory.display()))?;
    Ok(String::new())
}
