//! The lvolstore: operations, and power cuts in the middle of them.

mod bench;
mod check;
mod damaged;
mod exhaustive;
mod external;
mod external_volume;
mod golden_images;
mod grow;
mod image;
mod lifecycle;
mod many;
pub(crate) mod model;
mod mutated;
mod no_pages;
mod operations;
mod periodic;
mod power_cut;
mod run;
mod scrub;
mod snapshots;
mod space;
mod spdk_rules;
mod supply;
mod torn;
