//! Which writes may run at the same time.
//!
//! A write of whole blocks may overlap any other such write: the device takes blocks whole. A
//! write of part of a block reads the block, changes it and writes it back, so nothing else may
//! write that block meanwhile, from any reactor. Writes of whole blocks therefore hold the ranges
//! they touch *shared*, those of partial blocks *exclusively*.
//!
//! Ranges are rounded to granules, and granules share [`SLOTS`] locks; the wait of a granule for
//! an unrelated one is rare and short. Locks are taken in the order of their slots, by everybody,
//! so there is no cycle of waiting. A lock is held across the device's I/O of one request.

use std::ops::RangeInclusive;

use async_lock::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A write of the largest FUSE request touches at most five granules.
const GRANULE_SHIFT: u32 = 18;
const SLOTS: u64 = 64;

/// The locks of one volume, shared by all reactors.
pub(super) struct WriteLocks {
    slots: Box<[Slot]>,
}

/// A lock on cache lines of its own: neighbours are taken by other CPUs at the same time.
#[repr(align(64))]
struct Slot(RwLock<()>);

/// Locks that are held until this is dropped.
pub(super) enum Held<T> {
    /// The common case: the range lies in one granule.
    One(T),
    Many(#[expect(dead_code, reason = "held for its drop")] Vec<T>),
}

impl Default for WriteLocks {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| Slot(RwLock::new(()))).collect() }
    }
}

impl WriteLocks {
    /// Waits until no partial-block write touches the range, and keeps such writes out.
    pub(super) async fn shared(&self, offset: u64, length: u64) -> Held<RwLockReadGuard<'_, ()>> {
        match slots(offset, length) {
            Touched::One(slot) => Held::One(match self.slots[slot].0.try_read() {
                Some(held) => held,
                None => self.slots[slot].0.read().await,
            }),
            Touched::Many(touched) => {
                let mut held = Vec::with_capacity(touched.len());
                for slot in touched {
                    held.push(self.slots[slot].0.read().await);
                }
                Held::Many(held)
            }
        }
    }

    /// Waits until no write touches the range, and keeps all writes out.
    pub(super) async fn exclusive(
        &self,
        offset: u64,
        length: u64,
    ) -> Held<RwLockWriteGuard<'_, ()>> {
        match slots(offset, length) {
            Touched::One(slot) => Held::One(self.slots[slot].0.write().await),
            Touched::Many(touched) => {
                let mut held = Vec::with_capacity(touched.len());
                for slot in touched {
                    held.push(self.slots[slot].0.write().await);
                }
                Held::Many(held)
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Touched {
    One(usize),
    /// In rising order, each once.
    Many(Vec<usize>),
}

fn slots(offset: u64, length: u64) -> Touched {
    let last_byte = offset.saturating_add(length.max(1) - 1);
    let granules: RangeInclusive<u64> = offset >> GRANULE_SHIFT..=last_byte >> GRANULE_SHIFT;
    let count = (granules.end() - granules.start()).saturating_add(1);
    let slot = |granule: u64| (granule % SLOTS) as usize;
    if count == 1 {
        return Touched::One(slot(*granules.start()));
    }
    if count >= SLOTS {
        return Touched::Many((0..SLOTS).map(slot).collect());
    }
    let mut touched: Vec<usize> = granules.map(slot).collect();
    touched.sort_unstable();
    Touched::Many(touched)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANULE: u64 = 1 << GRANULE_SHIFT;

    #[test]
    fn slots_are_taken_once_and_in_order() {
        assert_eq!(slots(0, 1), Touched::One(0));
        assert_eq!(slots(GRANULE - 1, 1), Touched::One(0));
        assert_eq!(slots(GRANULE - 1, 2), Touched::Many(vec![0, 1]));
        assert_eq!(slots(63 * GRANULE, 2 * GRANULE), Touched::Many(vec![0, 63]));
        for (offset, length) in [(0, u64::MAX), (u64::MAX, u64::MAX), (5 * GRANULE, 64 * GRANULE)] {
            let expected: Vec<usize> = match slots(offset, length) {
                Touched::One(slot) => vec![slot],
                Touched::Many(touched) => touched,
            };
            assert!(expected.is_sorted() && expected.len() <= SLOTS as usize);
        }
    }

    #[test]
    fn whole_blocks_pass_each_other_and_partial_ones_wait() {
        let locks = WriteLocks::default();
        futures_executor(async {
            let first = locks.shared(0, 4096).await;
            let second = locks.shared(4096, 2 * GRANULE).await;
            let mut partial = Box::pin(locks.exclusive(100, 10));
            assert!(now(partial.as_mut()).is_none());
            drop(first);
            assert!(now(partial.as_mut()).is_none());
            drop(second);
            assert!(now(partial.as_mut()).is_some());
        });
    }

    fn now<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    fn futures_executor(future: impl Future<Output = ()>) {
        let options = crate::reactor::ReactorOptions::deterministic();
        crate::reactor::Reactor::new(options).unwrap().block_on(future);
    }
}
