//! The one place that every I/O of every front end passes: whether the volume is still there, and
//! whether its reservations let the host in.
//!
//! What a host may do is asked through its [`Pass`], which costs an atomic load. A change of
//! reservations is made by the pool's owner alone: see `reservations`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::Error;
pub use crate::reservation::Access;
use crate::reservation::{Gate as Published, Pass, Reservations};
use crate::spec::reservation::HostId;

/// A volume's gate: says whether an operation may start. Shared by all reactors.
#[derive(Debug)]
pub struct Gate {
    closed: AtomicBool,
    published: Arc<Published>,
}

impl Gate {
    pub(super) fn new(reservations: Reservations) -> Self {
        Self { closed: AtomicBool::new(false), published: Published::new(reservations) }
    }

    /// Whether an operation of the pass's host may start now.
    ///
    /// # Errors
    /// [`Error::Deleted`], once the volume's deletion began; [`Error::ReservationConflict`].
    #[inline]
    pub fn check(&self, pass: &Pass, access: Access) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Deleted);
        }
        pass.check(access).map_err(|_| Error::ReservationConflict)
    }

    /// As [`Gate::check`], for what happens too rarely to keep a pass.
    ///
    /// # Errors
    /// As there.
    pub fn check_host(&self, host: HostId, access: Access) -> Result<(), Error> {
        self.check(&self.pass(host), access)
    }

    /// The pass of `host`, for one thread.
    #[must_use]
    pub fn pass(&self, host: HostId) -> Pass {
        self.published.pass(host)
    }

    /// The reservations as they are now.
    #[must_use]
    pub fn reservations(&self) -> Arc<Reservations> {
        self.published.state()
    }

    pub(super) fn publish(&self, reservations: Reservations) {
        self.published.publish(reservations);
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
