//! Clusters that are zeroed before somebody needs one, so that a first write does not wait for it.
//!
//! * A supplied cluster is taken in memory and free on the medium: no map names it, and the bitmaps
//!   of a clean close leave it out. A crash gives it back, zeroed or not.
//! * It gets to a volume as any other cluster: its zeros have completed before the map names it, so
//!   the flush of the commit that makes the map durable covers them, too.
//! * The supply is small, and is only filled while nobody makes first writes. It counts as free,
//!   and when nothing else is, whoever needs a cluster gets it.
//!
//! Where the device promises that what it has discarded reads as zeros, clusters that come back
//! are in the supply without being written again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use crate::block::{BlockDevice, BlockError, Discard};
use crate::reactor::Instant;
use crate::units::{ClusterCount, ClusterIndex};

use super::format::ClearMethod;
use super::store::Store;

/// Bytes of supplied clusters, at most; with large clusters it is still one.
const LIMIT_BYTES: u64 = 64 << 20;
/// Supplied clusters, at most.
const LIMIT_CLUSTERS: u64 = 256;
/// So long nobody must have needed a cluster before some are zeroed.
const IDLE: Duration = Duration::from_millis(5);

/// The supply of a pool, at its owner.
#[derive(Default)]
pub(super) struct Supply {
    /// How many there should be; 0: the supply is not used.
    wanted: Cell<u32>,
    clusters: RefCell<BTreeSet<ClusterIndex>>,
    last_taken: Cell<Instant>,
    filling: Cell<bool>,
    /// Held while a cluster is being zeroed.
    zeroing: async_lock::Mutex<()>,
}

impl Supply {
    pub(super) fn len(&self) -> u32 {
        self.clusters.borrow().len() as u32
    }

    /// One of them, for whatever it is needed.
    pub(super) fn pop(&self) -> Option<ClusterIndex> {
        self.clusters.borrow_mut().pop_first()
    }

    /// All of them: taken in memory, free on the medium.
    pub(super) fn clusters(&self) -> Vec<ClusterIndex> {
        self.clusters.borrow().iter().copied().collect()
    }

    /// A cluster that reads as zeros has come back; false if there are enough.
    fn add(&self, cluster: ClusterIndex) -> bool {
        let few = self.len() < self.wanted.get();
        few && self.clusters.borrow_mut().insert(cluster)
    }
}

impl<D: BlockDevice> Store<D> {
    /// Keeps zeroed clusters ready from the next first write on, until the pool is closed: a pool
    /// that nobody writes to is left alone.
    pub fn keep_zeroed_clusters(&self) {
        let most = (LIMIT_BYTES / self.layout.cluster_size().0).clamp(1, LIMIT_CLUSTERS);
        // A small pool keeps most of its space for other uses.
        let share = u64::from(self.layout.data_clusters().0) / 16;
        self.supply.wanted.set(most.min(share) as u32);
    }

    /// Clusters that are zeroed and wait for a first write.
    #[must_use]
    pub fn zeroed_clusters(&self) -> ClusterCount {
        ClusterCount(self.supply.len())
    }

    /// Somebody takes a cluster: with the supply.
    pub(super) fn note_first_write(&self) {
        if self.supply.wanted.get() > 0 {
            self.supply.last_taken.set(self.reactor.now());
            self.refill();
        }
    }

    fn refill(&self) {
        let supply = &self.supply;
        if supply.len() >= supply.wanted.get() || supply.filling.replace(true) {
            return;
        }
        let this = self.this.clone();
        self.reactor.spawn(async move {
            while let Some(store) = this.upgrade() {
                if !store.fill_one().await {
                    store.supply.filling.set(false);
                    return;
                }
            }
        });
    }

    /// Zeroes one cluster when it is time; false if there is no need for more.
    async fn fill_one(&self) -> bool {
        let supply = &self.supply;
        let quiet = supply.last_taken.get().after(IDLE);
        if self.reactor.now() < quiet {
            self.reactor.sleep_until(quiet).await;
            return true;
        }
        let _zeroing = supply.zeroing.lock().await;
        let cluster = {
            let mut state = self.state.borrow_mut();
            let over = state.closed || self.fate.error().is_some();
            if over || supply.len() >= supply.wanted.get() || !state.has_spare_cluster() {
                return false;
            }
            match state.allocator.take_cluster() {
                Ok(cluster) => cluster,
                Err(_) => return false,
            }
        };
        let stretch = [self.cluster_stretch(cluster)];
        // A hole in an image stays one.
        let zeroed = match self.io.device().geometry().discard {
            Discard::Zeroes => self.io.discard(&stretch).await,
            Discard::Unspecified | Discard::Ignored => self.io.zero(&stretch).await,
        };
        match zeroed {
            Ok(()) => {
                self.count(|counters| counters.clusters_prepared += 1);
                supply.clusters.borrow_mut().insert(cluster);
                true
            }
            // It may still happen.
            Err(BlockError::NoAnswer { .. }) => {
                self.state.borrow_mut().lost.push(cluster);
                false
            }
            Err(error) => {
                tracing::debug!(%error, "no clusters are zeroed in advance");
                self.state.borrow_mut().allocator.free_cluster(cluster);
                false
            }
        }
    }

    /// Nothing is zeroed any more after this: the pool is about to be closed.
    pub(super) async fn end_supply(&self) {
        self.supply.wanted.set(0);
        drop(self.supply.zeroing.lock().await);
    }

    /// Whether a cluster that came back and was cleared so reads as zeros, and is in the supply.
    pub(super) fn supply_cleared(&self, cluster: ClusterIndex, method: ClearMethod) -> bool {
        let zeros = match method {
            ClearMethod::None => false,
            ClearMethod::WriteZeroes => true,
            ClearMethod::Default | ClearMethod::Unmap => {
                self.io.device().geometry().discard == Discard::Zeroes
            }
        };
        zeros && self.supply.add(cluster)
    }
}
