//! A disk that loses power: the `block` seam for tests of durability.
//!
//! Always built, so that a plain `cargo test` uses it; the daemon does not.

mod contents;
mod disk;

pub use disk::{SimChannel, SimDisk, SimOptions};
