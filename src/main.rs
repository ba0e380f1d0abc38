//! The `lvolfs` command.
fn main() {}
