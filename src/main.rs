//! The `lvolfs` command: arguments, the verb, the error chain once, the exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use lvolfs::cli::{self, Arguments, Exit};

fn main() -> ExitCode {
    match cli::run(Arguments::parse()) {
        Ok(exit) => exit.into(),
        Err(error) => {
            // If standard error is closed, the exit code still tells.
            writeln!(std::io::stderr(), "lvolfs: {error:#}").ok();
            Exit::of(&error).into()
        }
    }
}
