//! The NVMe driver core: a controller from power-on to shutdown, and its queue pairs.
//!
//! Passive: it has no thread and no clock, and after set-up it allocates nothing. The owner calls
//! `poll(now)` and the core does what can be done now. So one and the same code runs at full
//! speed on a reactor and under virtual time in a test.
//!
//! * [`Controller`] is cold: bring-up, identify, queue pairs, events, abort, reset, shutdown. One
//!   thread polls it.
//! * [`QueuePair`] is hot: `submit`, `ring`, `poll`. Each belongs to one thread.
//! * The two share one word per queue pair ([`link`]), by which a reset takes a queue away from
//!   its owner and gives it back.
//!
//! Invariants:
//! * The device is input: whatever it answers, nothing here panics, waits or allocates without
//!   bound. What it must not answer is counted ([`Misbehaviour`]).
//! * Memory that the device may still write is never handed out: a buffer comes back with its
//!   command's completion, or once the controller was seen to be disabled, and else never.
//! * Deliberately unknown here: splitting by transfer size, retries, ordering between commands.
//!   They belong to the block layer; [`retry::triage`] tells it what a status means.

mod admin;
mod controller;
mod error;
mod fault;
mod identity;
mod life;
mod link;
mod namespace;
mod prp;
mod queue_pair;
mod quirks;
mod reset;
pub mod retry;
mod rings;
mod shadow;
mod slots;

pub use controller::{Controller, Event, Handle, Request, Settings};
pub use error::{CommandFailure, NvmeError, RejectReason, Rejected, ResetCause};
pub use fault::Misbehaviour;
pub use identity::ControllerIdentity;
pub use namespace::{Namespace, NamespaceRefused};
pub use queue_pair::{Completion, QueueCounters, QueuePair, QueueSettings};
