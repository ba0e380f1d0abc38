//! The reactor: one thread that owns, alone and without locks, one io_uring, a local task
//! executor, timers, the pollers of its queue pairs, and an inbox for mail from other threads.
//!
//! A turn of the loop runs ready tasks, polls the devices, reaps the ring, opens the mail and
//! fires timers. A turn that did nothing asks the waiting policy ([`policy`]) whether to spin or
//! to block in the ring, where completions, device interrupts, mail and timers all wake it.
//!
//! Invariants:
//! * Nothing blocks inside a turn.
//! * A sleeping reactor is woken by everything that can give it work: the intention to sleep is
//!   made visible, then every source is looked at once more, then the ring is entered.
//! * Time comes from [`Clock`]; with a virtual clock, an idle reactor moves it to the next timer,
//!   so that tests never wait.

pub mod clock;
mod inbox;
mod memory;
pub mod placement;
pub mod policy;
mod remote;
mod ring;
mod timers;
mod turn;
mod waiters;

pub use clock::{Clock, Instant, VirtualClock};
pub use inbox::{InboxFull, Mail, ReactorHandle};
pub use memory::Share;
pub use policy::Wait;
pub use remote::{Gone, Remote};
pub use ring::{AtKernel, ENTRIES_LIMIT, Gather, HEADER, QueueEntry, Readiness, Ring};
pub use timers::Sleep;
pub use turn::{Poller, Reactor, ReactorOptions, ReactorStatistics, Registration};
pub use waiters::{Ticket, Turn, Waiters};
