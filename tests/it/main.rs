//! The integration tests: one binary.

mod block;
mod cli;
mod config;
mod control;
mod emulated;
mod fuse_operations;
mod lvol_format;
mod lvolstore;
mod nvme;
mod service;
mod tidy;
