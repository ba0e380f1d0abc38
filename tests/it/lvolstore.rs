//! The lvolstore: operations, and power cuts in the middle of them.

mod bench;
mod check;
mod golden_images;
mod image;
mod many;
pub(crate) mod model;
mod mutated;
mod operations;
mod periodic;
mod power_cut;
mod scrub;
mod snapshots;
mod space;
