//! The NVMe-oF target from the side of a host: every command and every refusal, over streams in
//! memory on virtual time, and over sockets.

mod abuse;
mod admin;
#[path = "../fuzz/commands.rs"]
pub(crate) mod commands;
pub(crate) mod exported;
mod fabrics;
pub(crate) mod host;
mod io;
pub(crate) mod pipe;
mod power_cut;
mod reservations;
mod reservations_random;
mod rig;
mod sequences;
mod sockets;
mod state_file;
