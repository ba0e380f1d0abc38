//! The NVMe-oF target from the side of a host: every command and every refusal, over streams in
//! memory on virtual time, and over sockets.

mod abuse;
mod admin;
mod fabrics;
pub(crate) mod host;
mod io;
pub(crate) mod pipe;
mod reservations;
mod reservations_random;
mod rig;
mod sequences;
