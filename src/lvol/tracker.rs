//! I/O in flight on one reactor, so that the owner of a pool can wait until nobody uses a cluster
//! any more that no map names.
//!
//! Every operation that looked into a map enters the current of two epochs and leaves it when the
//! device has answered. To drain is to begin the other epoch and to wait until the old one is
//! empty. Whoever enters after that sees the map as it was before the drain, or newer: the owner's
//! mail orders it.
//!
//! An operation that is dropped half-way leaves a command at the device that nobody watches. Its
//! reactor then never drains again: clusters that are freed later stay unused until the pool is
//! reopened. Callers run operations to their end; this is the net below.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures_channel::oneshot;

/// The in-flight table of one reactor and one pool: two counts.
#[derive(Default)]
pub struct Tracker {
    epoch: Cell<usize>,
    in_flight: [Cell<u32>; 2],
    abandoned: Cell<bool>,
    waiting: RefCell<Option<oneshot::Sender<()>>>,
}

/// An operation in flight.
pub struct InFlight<'a> {
    tracker: &'a Tracker,
    epoch: usize,
    finished: bool,
}

impl Tracker {
    /// Whether no operation is in flight, and none was abandoned.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.abandoned.get() && self.in_flight.iter().all(|count| count.get() == 0)
    }

    /// Begins an operation. It comes before the first look into a map.
    #[inline]
    #[must_use]
    pub fn enter(&self) -> InFlight<'_> {
        let epoch = self.epoch.get();
        let count = &self.in_flight[epoch];
        count.set(count.get() + 1);
        InFlight { tracker: self, epoch, finished: false }
    }

    /// Waits until every operation that began before has ended. False: that can never be known.
    /// One drain at a time.
    pub async fn drain(self: Rc<Self>) -> bool {
        if self.abandoned.get() {
            return false;
        }
        let old = self.epoch.get();
        assert!(self.in_flight[1 - old].get() == 0, "two drains of one tracker at once");
        self.epoch.set(1 - old);
        if self.in_flight[old].get() > 0 {
            let (done, waiting) = oneshot::channel();
            *self.waiting.borrow_mut() = Some(done);
            // An error cannot be: the sender stays until it is used.
            let _done = waiting.await;
        }
        !self.abandoned.get()
    }

    #[cold]
    fn wake(&self) {
        if let Some(waiting) = self.waiting.borrow_mut().take() {
            let _told = waiting.send(());
        }
    }
}

impl InFlight<'_> {
    /// Ends the operation: the device has answered, or was never asked.
    #[inline]
    pub fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for InFlight<'_> {
    #[inline]
    fn drop(&mut self) {
        let tracker = self.tracker;
        if !self.finished {
            tracker.abandoned.set(true);
            tracker.wake();
            return;
        }
        let count = &tracker.in_flight[self.epoch];
        count.set(count.get() - 1);
        if self.epoch != tracker.epoch.get() && count.get() == 0 {
            tracker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::{Reactor, ReactorOptions};

    #[test]
    fn a_drain_waits_for_those_before_it_and_for_no_others() {
        let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
        let tracker = Rc::new(Tracker::default());
        reactor.block_on(async {
            assert!(Rc::clone(&tracker).drain().await);
            for _ in 0..3 {
                let (before, also_before) = (tracker.enter(), tracker.enter());
                let drained = Rc::new(Cell::new(false));
                let drain = {
                    let (tracker, drained) = (Rc::clone(&tracker), Rc::clone(&drained));
                    reactor.task(async move { drained.set(tracker.drain().await) })
                };
                reactor.sleep(std::time::Duration::from_secs(1)).await;
                let after = tracker.enter();
                before.finish();
                reactor.sleep(std::time::Duration::from_secs(1)).await;
                assert!(!drained.get());
                also_before.finish();
                drain.await;
                assert!(drained.get());
                after.finish();
            }
        });
    }

    #[test]
    fn after_an_abandoned_operation_no_drain_succeeds() {
        let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
        let tracker = Rc::new(Tracker::default());
        reactor.block_on(async {
            drop(tracker.enter());
            for _ in 0..3 {
                tracker.enter().finish();
                assert!(!Rc::clone(&tracker).drain().await);
            }
        });
    }
}
