//! lvolfs: logical volumes as files and as NVMe-oF/TCP namespaces, durable by fsync.
//!
//! The modules, from operator to metal. An arrow of imports only goes down this list, or to the
//! leaves at its end; `tests/it/tidy.rs` enforces it. ARCHITECTURE.md has the picture.

pub mod cli;
pub mod daemon;

pub mod config;
pub mod control;
pub mod fuse;
pub mod nvmf;

pub mod volume;

pub mod reservation;

pub mod lvol;

pub mod block;

pub mod nvme;

pub mod hw;

// Leaves that any module may use.
pub mod reactor;
pub mod spec;
pub mod units;

// Implementations of the seams in software: a controller for `hw::transport`, a disk for `block`.
pub mod emulated;
pub mod sim;
