//! The integration tests: one binary.

#![allow(
    clippy::unwrap_used,
    clippy::allow_attributes,
    reason = "a test that meets an error has failed; not every area has one to unwrap"
)]

mod block;
mod cli;
mod config;
mod control;
mod drive;
mod emulated;
mod fuse_mount;
mod fuse_operations;
mod fuse_power_cut;
mod fuse_wire;
mod fuzz;
mod golden;
mod lvol_format;
mod lvolstore;
mod nvme;
mod nvmf;
mod parents;
mod pools;
mod power;
mod reservations;
mod service;
mod tidy;
