//! What a commit left over becomes usable again.
//!
//! 1. Old extent pages and chain pages are zeroed, which keeps the metadata region readable for
//!    people and other implementations. The roots that referred to them are gone for good.
//! 2. Every reactor ends the I/O that it began before the commit: it may have looked up a cluster
//!    that is dropped by now.
//! 3. Dropped clusters are cleared as their volume's clear method says. A device that refuses is
//!    only counted: no volume relies on what a free cluster holds.
//! 4. The allocator gets both back.

use std::cell::{Cell, RefCell};

use futures_channel::oneshot;
use futures_util::future::join_all;

use crate::block::BlockDevice;
use crate::units::{ByteCount, ClusterIndex};

use super::commit::Surplus;
use super::error::Error;
use super::format::ClearMethod;
use super::metadata_io::Stretch;
use super::store::Store;
use super::tracker::Tracker;

/// Surplus that waits, and those who wait for it.
#[derive(Default)]
pub(super) struct Reclaims {
    served: Cell<bool>,
    next: RefCell<Surplus>,
    /// Clusters that wait or are being cleared.
    clusters: Cell<u32>,
    waiting: RefCell<Vec<oneshot::Sender<()>>>,
    /// Held while reactors are drained: a tracker has two epochs.
    quiescing: async_lock::Mutex<()>,
}

impl Reclaims {
    pub(super) fn clusters(&self) -> u32 {
        self.clusters.get()
    }

    fn wake(&self) {
        for waiting in self.waiting.take() {
            let _told = waiting.send(());
        }
    }

    /// Waits until some of what is under way is done; false if nothing is under way.
    pub(super) async fn settle_once(&self) -> bool {
        if !self.served.get() {
            return false;
        }
        let (done, waiting) = oneshot::channel();
        self.waiting.borrow_mut().push(done);
        // The server's task runs to its end; if its reactor ended, nobody polls this either.
        let _done = waiting.await;
        true
    }
}

/// Nobody waits for a server that has ended, however it did.
struct Ending<'r>(&'r Reclaims);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.served.set(false);
        self.0.wake();
    }
}

impl<D: BlockDevice> Store<D> {
    /// Starts to reclaim; see the module.
    pub(super) fn reclaim(&self, mut surplus: Surplus) {
        if surplus.pages.is_empty() && surplus.roots.is_empty() && surplus.clusters.is_empty() {
            return;
        }
        let reclaims = &self.reclaims;
        reclaims.clusters.set(reclaims.clusters.get() + surplus.clusters.len() as u32);
        let mut next = reclaims.next.borrow_mut();
        next.pages.append(&mut surplus.pages);
        next.roots.append(&mut surplus.roots);
        next.clusters.append(&mut surplus.clusters);
        if !reclaims.served.replace(true) {
            let store = self.strong();
            self.reactor.spawn(async move { store.serve_reclaims().await });
        }
    }

    /// Waits until nothing is left to reclaim.
    pub(super) async fn settle(&self) {
        while self.reclaims.settle_once().await {}
    }

    async fn serve_reclaims(&self) {
        let _whatever_ends_it = Ending(&self.reclaims);
        loop {
            let surplus = self.reclaims.next.take();
            let Surplus { pages, roots, clusters } = &surplus;
            if pages.is_empty() && roots.is_empty() && clusters.is_empty() {
                return;
            }
            // An error has poisoned the pool: what is left over stays so until it is reopened.
            if self.reclaim_round(surplus).await.is_err() {
                self.reclaims.clusters.set(0);
                return;
            }
            self.reclaims.wake();
        }
    }

    async fn reclaim_round(&self, surplus: Surplus) -> Result<(), Error> {
        let Surplus { pages, roots, clusters } = surplus;
        self.fate.error().map_or(Ok(()), Err)?;
        let size = self.layout.metadata_page_size();
        let places = pages.iter().map(|page| self.io.stretch(self.page_offset(*page), size));
        let zeroed = self.io.zero(&joined(places)).await; // 1
        zeroed.map_err(|cause| self.poison("metadata write", cause))?;
        {
            let mut state = self.state.borrow_mut();
            for page in pages.into_iter().chain(roots) {
                state.allocator.free_page(page);
            }
        }
        if !clusters.is_empty() {
            self.reclaim_clusters(&clusters).await?;
        }
        Ok(())
    }

    async fn reclaim_clusters(
        &self,
        clusters: &[(ClusterIndex, ClearMethod)],
    ) -> Result<(), Error> {
        let drained = self.quiesce().await; // 2
        self.fate.error().map_or(Ok(()), Err)?;
        let cleared = drained && self.clear(clusters).await; // 3
        let count = clusters.len() as u32;
        let mut state = self.state.borrow_mut();
        self.reclaims.clusters.set(self.reclaims.clusters.get().saturating_sub(count));
        let indices = clusters.iter().map(|(cluster, _)| *cluster);
        if drained {
            for (cluster, method) in clusters {
                if !cleared || !self.supply_cleared(*cluster, *method) {
                    state.allocator.free_cluster(*cluster); // 4
                }
            }
            self.count(|counters| counters.clusters_freed += u64::from(count));
            drop(state);
            self.note_space(true);
        } else {
            tracing::warn!(
                clusters = count,
                "freed clusters stay unused until the pool is reopened"
            );
            state.lost.extend(indices);
        }
        Ok(())
    }

    /// Waits until every reactor has ended the I/O it began before; false if one never will.
    pub(super) async fn quiesce(&self) -> bool {
        let _one_at_a_time = self.reclaims.quiescing.lock().await;
        let trackers = self.state.borrow().trackers.clone();
        let drains = trackers.iter().map(|tracker| tracker.call(&self.reactor, Tracker::drain));
        join_all(drains).await.into_iter().all(|drained| drained == Ok(true))
    }

    /// True if the device took all of it.
    async fn clear(&self, clusters: &[(ClusterIndex, ClearMethod)]) -> bool {
        let with = |methods: &'static [ClearMethod]| {
            let chosen = clusters.iter().filter(move |(_, method)| methods.contains(method));
            self.joined_clusters(chosen.map(|(cluster, _)| *cluster).collect())
        };
        let discarded = self.io.discard(&with(&[ClearMethod::Default, ClearMethod::Unmap])).await;
        let zeroed = self.io.zero(&with(&[ClearMethod::WriteZeroes])).await;
        if let Err(error) = discarded.and(zeroed) {
            tracing::debug!(%error, "the device did not clear freed clusters");
            self.count(|counters| counters.failed_discards += 1);
            return false;
        }
        true
    }

    /// Clusters as stretches, neighbours joined.
    pub(super) fn joined_clusters(&self, mut clusters: Vec<ClusterIndex>) -> Vec<Stretch> {
        clusters.sort_unstable();
        joined(clusters.into_iter().map(|cluster| self.cluster_stretch(cluster)))
    }

    pub(super) fn cluster_stretch(&self, cluster: ClusterIndex) -> Stretch {
        let size = ByteCount(self.layout.cluster_size().0);
        match self.layout.cluster_offset(cluster) {
            Some(offset) => self.io.stretch(offset, size),
            None => unreachable!("clusters come from the allocator or were checked when read"),
        }
    }
}

/// Joins stretches where one follows the other.
fn joined(stretches: impl Iterator<Item = Stretch>) -> Vec<Stretch> {
    let mut joined: Vec<Stretch> = Vec::new();
    for stretch in stretches {
        match joined.last_mut() {
            Some(last) if last.start.0 + last.blocks.0 == stretch.start.0 => {
                last.blocks.0 += stretch.blocks.0;
            }
            _ => joined.push(stretch),
        }
    }
    joined
}
