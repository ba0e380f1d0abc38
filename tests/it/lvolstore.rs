//! The lvolstore: operations, and power cuts in the middle of them.

mod bench;
mod golden_images;
mod model;
mod operations;
mod power_cut;
mod scrub;
