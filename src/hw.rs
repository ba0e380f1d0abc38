//! The machine: DMA memory, device registers, event descriptors and the few system calls that the
//! standard library does not have. Together with the io_uring code in `reactor::ring` this is the
//! only place with `unsafe`.
//!
//! Invariant: nothing here knows what an NVMe command or a volume is. What leaves this module is
//! safe to use in any order; where a rule is the device's (who owns a buffer now), it is a type.

pub mod clock;
pub mod dma;
pub mod event;
pub mod file;
pub mod fuse;
pub mod pci;
pub mod pieces;
pub mod process;
pub mod replacement;
pub mod thread;
pub mod transport;
pub mod vfio;
