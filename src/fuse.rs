//! Volumes as files: the FUSE front end.
//!
//! A request comes by a transport ([`device`]), is parsed ([`request`]) and answered ([`reply`]).
//! Mounting is in [`mount`].
//!
//! Invariants:
//! * What the kernel sends is input: nothing in it makes this module panic.
//! * Every request that wants an answer gets exactly one.

pub mod abi;
pub mod device;
pub mod errno;
pub mod mount;
pub mod reply;
pub mod request;
