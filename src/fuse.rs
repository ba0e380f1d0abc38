//! Volumes as files: the FUSE front end.
//!
//! A request comes by a transport ([`device`], [`uring`]), is parsed ([`request`]), done ([`operations`]) and
//! answered ([`reply`]). The tree of the mount is in [`tree`], mounting in [`mount`].
//!
//! Invariants:
//! * What the kernel sends is input: nothing in it makes this module panic.
//! * Every request that wants an answer gets exactly one.

pub mod abi;
mod copy;
pub mod device;
pub mod errno;
pub mod interrupts;
pub mod mount;
pub mod notify;
pub mod openings;
pub mod operations;
pub mod reply;
pub mod request;
mod statfs;
pub mod transfer;
mod tree;
pub mod uring;
mod xattr;
