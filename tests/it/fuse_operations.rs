//! FUSE operations without a kernel.
