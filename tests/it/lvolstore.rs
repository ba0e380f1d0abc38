//! The lvolstore: operations, and power cuts in the middle of them.

mod bench;
mod golden_images;
pub(crate) mod model;
mod operations;
mod periodic;
mod power_cut;
mod scrub;
