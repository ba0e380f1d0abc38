//! The control plane's door: JSON-RPC 2.0 over a Unix socket, with SPDK's method names and shapes,
//! so that clients made for SPDK work, and `lvolfs_status` besides.
//!
//! Four parts, each ignorant of the next: [`codec`] cuts a stream of bytes into requests and forms
//! replies; [`server`] owns the socket, the connections and the threads; [`methods`] decodes
//! parameters for one typed function per method, by groups, the trait [`Service`]; [`Client`] is the other
//! end, used by the command line. Nothing here knows what a volume is: the daemon implements
//! [`Service`].
//!
//! Invariants:
//! * Whatever a client sends, memory and threads stay within the named limits, and one client
//!   cannot take another's connection down.
//! * Only the daemon's user can open the socket, at any moment of its life.
//! * Two daemons never share a socket path: a lock beside it says whose it is.

mod client;
pub mod codec;
mod error;
pub mod events;
pub mod methods;
pub mod server;
mod socket;
pub mod status;
pub mod types;

pub use client::{Client, ClientError};
pub use error::RpcError;
pub use events::EventSource;
pub use methods::{
    BdevMethods, CopyMethods, EventMethods, LvolMethods, LvstoreMethods, NvmeMethods, NvmfMethods,
    ProcessMethods, RelativeMethods, ReservationMethods, ScrubMethods, Service, SpaceMethods,
};
pub use server::Server;
pub use socket::SocketError;
pub use status::Status;
