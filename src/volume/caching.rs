//! Whether the local mount may keep a volume's data in the kernel's page cache.
//!
//! What is written back later is not yet what other hosts read, and what is kept for readers is
//! not what other hosts have written since. So a volume is cached, or it is exported or reserved,
//! and never both: whichever comes second is refused.

use std::sync::atomic::{AtomicBool, Ordering};

use super::directory::Entry;
use super::error::Error;

/// How the local mount uses a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// Every read and write arrives.
    #[default]
    Direct,
    /// The kernel keeps data, and writes it back on a flush or when it sees fit.
    WriteBack,
}

impl Caching {
    /// As the configuration and the attribute `user.lvolfs.cache` call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::WriteBack => "writeback",
        }
    }
}

/// A mode that several threads look at.
#[derive(Debug, Default)]
pub(super) struct SharedCaching(AtomicBool);

impl SharedCaching {
    pub(super) fn get(&self) -> Caching {
        if self.0.load(Ordering::Acquire) { Caching::WriteBack } else { Caching::Direct }
    }

    pub(super) fn set(&self, caching: Caching) {
        self.0.store(caching == Caching::WriteBack, Ordering::Release);
    }
}

impl Entry {
    /// How the local mount uses it.
    #[must_use]
    pub fn caching(&self) -> Caching {
        self.shared_caching().get()
    }

    /// Says how the local mount is to use it from its next opening on: before the doors open.
    ///
    /// # Errors
    /// [`Error::Held`] and [`Error::Reserved`]: it is exported or reserved, and stays direct.
    pub fn set_caching(&self, caching: Caching) -> Result<(), Error> {
        if caching == Caching::WriteBack {
            if let Some(by) = self.held_by() {
                return Err(Error::Held { by });
            }
            let reservations = self.gate().reservations();
            if reservations.fence().is_some() || !reservations.registrants().is_empty() {
                return Err(Error::Reserved);
            }
        }
        self.shared_caching().set(caching);
        Ok(())
    }

    /// Refuses what other hosts would suffer from.
    pub(super) fn check_not_cached(&self) -> Result<(), Error> {
        match self.caching() {
            Caching::Direct => Ok(()),
            Caching::WriteBack => Err(Error::Cached),
        }
    }
}
