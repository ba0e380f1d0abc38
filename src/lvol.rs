//! The lvolstore: SPDK's on-disk format with ordered, flushed commits.

pub mod format;
pub mod validate;
