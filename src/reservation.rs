//! Persistent reservations of one namespace: who has registered, who holds what, who may do what,
//! and how that outlives a power loss.
//!
//! * [`Reservations`] is the whole state, a value. [`Reservations::apply`] takes a command of a
//!   host and gives the state after it, and what others must be told.
//! * [`Reservations::rights`] is the table of who may read and write; [`Gate`] publishes the state
//!   to every reactor, and a [`Pass`] asks it for one host without a lock.
//! * [`report()`] writes what a host reads back, [`NotificationLog`] keeps what it is told.
//! * [`persistence`] is SPDK's file format; [`StateFile`] replaces such a file in one step.
//!
//! Invariants: identity is the host identifier, never a controller or a connection. Nothing in a
//! state changes in place: until the state after a command is stored and published, the state
//! before it is true. A stored state that cannot be believed gives a *fenced* namespace, which no
//! host may read or write; it never gives one without reservations.
//!
//! Not known here: sockets, queues, time, other namespaces. docs/reservations.md tells what was
//! decided where the specification leaves room.

mod access;
mod command;
mod gate;
mod notification;
pub mod persistence;
mod report;
mod state;
mod state_file;
mod transition;

pub use crate::hw::replacement::{Injected, Step};
pub use access::{Access, Rights};
pub use command::{Acquire, Command, ExistingKey, Key, Persistence, Register, Release};
pub use gate::{Gate, Pass};
pub use notification::{Event, Notification, NotificationLog, NotificationMask};
pub use report::{IdentifierSize, ReportFormat, report};
pub use state::{Holder, MAX_REGISTRANTS, Registrant, Reservation, ReservationType, Reservations};
pub use state_file::{StateFile, StoreError};
pub use transition::Outcome;
