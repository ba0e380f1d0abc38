//! A namespace of an NVMe controller, through this process's own driver.
//!
//! The driver core is passive; this gives it threads. The controller is polled by the reactor
//! that opened the device. Each reactor that does I/O has a queue pair, which it polls in every
//! turn; commands that are submitted in one turn share a doorbell.
//!
//! * A transfer above the controller's limit is split; the parts run at the same time.
//! * A command that failed in a way that may pass is tried again, as the status asks; so is one
//!   that a reset ended, since nobody was told that it was done.
//! * A reset may take the volatile write cache with it. If a write had completed since the last
//!   flush, the next flush fails: what it should make durable may be gone.

mod channel;
mod device;

pub use channel::NvmeChannel;
pub use device::{NvmeController, NvmeDevice, OpenError, Wanted};
