//! The NVMe-oF target over TCP: volumes as namespaces of subsystems that other machines use.
//!
//! From a byte to a block and back:
//! 1. A listener accepts and hands the connection to one of the reactors ([`target`], [`service`]).
//!    There it stays: its bytes, its commands and their I/O are all on that reactor.
//! 2. The connection is one task ([`connection`]). What it receives goes through the sans-io codec
//!    ([`pdu`]); long data is received straight into the DMA buffer that its command has.
//! 3. Commands live in the [`queue`] until they are answered. The first one is Connect
//!    ([`fabrics`]): it makes a [`controller`], or joins one that another connection made.
//! 4. [`dispatch`] runs each: [`admin`] with [`identify`], [`log`] and [`feature`]; [`io`] on
//!    volumes, with [`reservation`].
//! 5. Answers of one turn leave in one system call. What was read goes from its DMA buffer to
//!    the socket.
//!
//! Invariants:
//! * Nothing that a peer sends makes the target panic, allocate without bound, or wait without
//!   bound; the bounds are in [`limits`].
//! * A command that a device may know runs to its end, whatever becomes of its connection; a
//!   reset or a shutdown shows as done only after that.
//! * A reservation command is answered when its state is durable, if it persists, and in force on
//!   every reactor.
//! * A Flush, and a write with FUA, is answered when the data and the mapping to it are durable.

mod admin;
mod connection;
pub mod controller;
mod dispatch;
mod event;
mod fabrics;
mod feature;
pub mod health;
mod identify;
mod io;
pub mod limits;
mod log;
pub mod model;
mod namespace;
pub mod pdu;
mod queue;
mod reservation;
pub mod service;
mod status;
pub mod stream;
pub mod target;
