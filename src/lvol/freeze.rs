//! Holding back the writers of one volume while it changes whose its clusters are.
//!
//! 1. The volume is marked frozen. From here on no first write of it begins, and on every reactor
//!    that has seen the mark no write in place.
//! 2. First writes under way end.
//! 3. Every reactor ends the I/O that it began before it saw the mark (`tracker.rs`).
//!
//! Now everything that was acknowledged is in clusters that the map names, and nothing else can
//! get there. Reads go on all the time: what is done to a frozen volume does not change what it
//! reads as. Thawing wakes the writers that wait, who look into the map anew.

use std::sync::Arc;

use futures_channel::oneshot;

use crate::block::BlockDevice;

use super::error::Error;
use super::store::Store;
use super::volume_map::{FROZEN, VolumeMap};

/// A volume whose writers wait until this is dropped.
pub(super) struct Frozen<'a, D: BlockDevice> {
    store: &'a Store<D>,
    map: Arc<VolumeMap>,
}

impl<D: BlockDevice> Drop for Frozen<'_, D> {
    fn drop(&mut self) {
        self.map.clear_flags(FROZEN);
        for waiting in self.store.thaws.take() {
            // An error: who waited is gone.
            let _told = waiting.send(());
        }
    }
}

impl<D: BlockDevice> Store<D> {
    /// Holds back the writers of a volume; see the module. The caller has the operations' lock, so
    /// that no volume is frozen twice.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Busy`] if some operation on the pool will never end.
    pub(super) async fn freeze(&self, map: &Arc<VolumeMap>) -> Result<Frozen<'_, D>, Error> {
        map.set_flags(FROZEN); // 1
        let frozen = Frozen { store: self, map: Arc::clone(map) };
        while let Some(waiting) = self.first_write_under_way(map)? {
            // An error: the volume is gone, which the next round sees.
            let _woken = waiting.await; // 2
        }
        if self.quiesce().await {
            Ok(frozen) // 3
        } else {
            Err(Error::Busy { with: "an operation that never ends until the pool is reopened" })
        }
    }

    fn first_write_under_way(
        &self,
        map: &Arc<VolumeMap>,
    ) -> Result<Option<oneshot::Receiver<()>>, Error> {
        let mut state = self.state.borrow_mut();
        let others = state.of_map(map)?.allocating.values_mut().next();
        Ok(others.map(|others| {
            let (done, waiting) = oneshot::channel();
            others.push(done);
            waiting
        }))
    }

    /// Waits until a volume is not frozen. What the caller does before its next await cannot be
    /// overtaken by a freeze.
    pub(super) async fn thawed(&self, map: &Arc<VolumeMap>) {
        while map.is_frozen() {
            let (done, waiting) = oneshot::channel();
            self.thaws.borrow_mut().push(done);
            // An error cannot be: senders stay until they are used.
            let _woken = waiting.await;
        }
    }
}
