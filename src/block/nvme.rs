//! A namespace of an NVMe controller, through this process's own driver.
//!
//! The driver core is passive; this gives it threads. The controller is polled by the reactor
//! that opened the device. Each reactor that does I/O has two queue pairs, one to poll and one to
//! sleep on (`lane`); commands that are submitted in one turn share a doorbell.
//!
//! * A transfer above the controller's limit is split; the parts run at the same time.
//! * A command that failed in a way that may pass is tried again, as the status asks; so is one
//!   that a reset ended, since nobody was told that it was done.
//! * A reset may take the volatile write cache with it. If a write had completed since the last
//!   flush, the next flush fails: what it should make durable may be gone. A reset that was asked
//!   for has the controller write its cache out first, and loses nothing.
//! * A controller that is gone is let go of: every command ends, every later one is refused, and
//!   nothing refers to its registers any more, so that the system can take it away.

mod channel;
mod device;
mod lane;

pub use channel::NvmeChannel;
pub use device::{NvmeController, NvmeDevice, OpenError, Wanted};
