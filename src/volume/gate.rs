//! The one place that every I/O of every front end passes.

use std::sync::atomic::{AtomicBool, Ordering};

use super::error::Error;

/// What an operation does to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads data or the map.
    Read,
    /// It changes data or the map, or makes it durable.
    Write,
}

/// A volume's gate: says whether an operation may start. Shared by all reactors.
#[derive(Debug, Default)]
pub struct Gate {
    closed: AtomicBool,
}

impl Gate {
    /// Whether an operation may start now.
    ///
    /// # Errors
    /// [`Error::Deleted`], once the volume's deletion began.
    #[inline]
    pub fn check(&self, access: Access) -> Result<(), Error> {
        match access {
            Access::Read | Access::Write if self.closed.load(Ordering::Acquire) => {
                Err(Error::Deleted)
            }
            Access::Read | Access::Write => Ok(()),
        }
    }

    /// Lets nothing start any more. What started before is waited for by the lvolstore, before
    /// it gives the volume's clusters to anybody else.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Lets operations start again: the deletion failed.
    pub(super) fn reopen(&self) {
        self.closed.store(false, Ordering::Release);
    }

    /// Whether it is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}
