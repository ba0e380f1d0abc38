//! An NVMe controller in software, seen from a driver like a real one: registers, an admin queue,
//! I/O queues with phase tags and PRPs, doorbells in memory, an event for each interrupt vector.
//!
//! * It checks what a real controller may only punish: doorbells, identifiers in use, PRPs and
//!   their alignment, SGLs, memory outside the DMA window, ranges, queue order. Each such defect of a
//!   driver has a status, and a counter that tests hold against zero.
//! * Its medium is memory with a model of a volatile write cache ([`Memory`]), of which a power
//!   cut takes what was not flushed, or a file ([`FileMedia`]).
//! * It misbehaves on demand ([`Fault`]).
//! * It is stepped, and then it does the same each time, or run by a [`ControllerThread`].
//!
//! Invariant: nothing that a host writes to registers, doorbells or queues makes it panic, loop
//! without end or touch memory outside the window.

mod admin;
mod answers;
mod cache;
mod controller;
mod core;
mod counters;
mod doorbells;
mod errors;
mod events;
mod fault;
mod features;
mod file;
mod identify;
mod io;
mod media;
mod prp;
mod queue;
mod registers;
mod scatter;
mod sgl;
mod sparse;
mod thread;

pub use cache::{MAX_MEMORY_CAPACITY, Memory, MemoryGeometry};
pub use controller::{EmulatedController, Settings};
pub use counters::Counters;
pub use fault::{Fault, FaultAction};
pub use file::FileMedia;
pub use media::Media;
pub use thread::ControllerThread;
