//! What all reactors share of a volume: size, flags and the place of each cluster, read without
//! locks. Only the owner reactor changes it.
//!
//! How the places are kept, and why readers need no locks: `volume_map/places.rs`.
//!
//! Orders that others rely on:
//! * An entry is set after its cluster's content is complete (release; readers acquire).
//! * [`VolumeMap::version`] rises before an entry changes. So whoever saw the entry and then sees
//!   [`VolumeMap::is_durable`] is right that the mapping he used is on the medium.

mod places;

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::units::{BlobId, BlockSize, ByteCount, ClusterCount, ClusterIndex, VolumeCluster};

use super::error::{Error, ReadOnlyReason};
use super::external::Shown;
use super::format::{Layout, TableSlot};
use places::{OwnChange, PARENT_BIT, Places};

pub use places::Place;
pub(super) use places::PlacedRun;

/// Most clusters a volume can have here: 1 PiB of 1 MiB clusters.
pub const VOLUME_CLUSTERS_LIMIT: u32 = 1 << 30;
/// Most clusters a store can have here: the top bit of an entry is taken.
pub(super) const STORE_CLUSTERS_LIMIT: u32 = PARENT_BIT;

/// The volume does not take writes, since it is marked so or its owner found a reason.
pub(super) const READ_ONLY: u32 = 1 << 0;
/// The volume is deleted.
pub(super) const DELETED: u32 = 1 << 1;
/// The pool is poisoned.
pub(super) const POISONED: u32 = 1 << 2;
/// The pool is closed.
pub(super) const CLOSED: u32 = 1 << 3;
/// What has no place may lie on a device outside of the pool.
const EXTERNAL: u32 = 1 << 4;
/// Clusters may be without a place.
pub(super) const THIN: u32 = 1 << 5;
/// Writers wait: the owner is changing whose the clusters are.
pub(super) const FROZEN: u32 = 1 << 6;
/// First writes may wait for space.
pub(super) const WAITS: u32 = 1 << 7;

/// What the maps of all volumes of a pool share: what befell the pool, and what it has promised.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// The error of the first failed flush or metadata write.
    error: OnceLock<Error>,
    /// Clusters that are missing to the reserves of all volumes.
    promised: AtomicU64,
}

impl Fate {
    /// Seals the pool's fate; false if it was sealed before.
    pub(super) fn seal(&self, error: Error) -> bool {
        self.error.set(error).is_ok()
    }

    pub(super) fn error(&self) -> Option<Error> {
        self.error.get().cloned()
    }

    /// Clusters that are missing to the reserves of all volumes.
    pub(super) fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed)
    }
}

/// The shared part of a volume; see the module.
pub struct VolumeMap {
    blob: BlobId,
    fate: Arc<Fate>,
    cluster_size: u64,
    block_size: BlockSize,
    clusters: AtomicU32,
    own: AtomicU32,
    /// Clusters that the volume can always have.
    reserve: AtomicU32,
    flags: AtomicU32,
    version: AtomicU64,
    durable: AtomicU64,
    /// What shows from outside of the pool; to be looked at if the flag is set.
    external: RwLock<Option<Arc<Shown>>>,
    places: Places,
}

impl VolumeMap {
    pub(super) fn new(blob: BlobId, layout: &Layout, fate: &Arc<Fate>) -> Self {
        let (cluster_size, block_size) = (layout.cluster_size(), layout.block_size());
        Self {
            blob,
            fate: Arc::clone(fate),
            cluster_size: cluster_size.get(),
            block_size,
            clusters: AtomicU32::new(0),
            own: AtomicU32::new(0),
            reserve: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            version: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            external: RwLock::default(),
            places: Places::new(),
        }
    }

    /// The volume's identity.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// The size in clusters.
    #[must_use]
    pub fn clusters(&self) -> ClusterCount {
        ClusterCount(self.clusters.load(Ordering::Acquire))
    }

    /// The size in bytes.
    #[must_use]
    #[inline]
    pub fn size(&self) -> ByteCount {
        ByteCount(u64::from(self.clusters().0) * self.cluster_size)
    }

    /// Bytes of a cluster.
    #[must_use]
    #[inline]
    pub fn cluster_size(&self) -> ByteCount {
        ByteCount(self.cluster_size)
    }

    /// The unit of every offset and length.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Memory that the places of clusters take.
    #[must_use]
    pub fn memory(&self) -> ByteCount {
        ByteCount((size_of::<Self>() + self.places.memory()) as u64)
    }

    /// How many clusters the volume has of its own.
    #[must_use]
    pub fn allocated(&self) -> ClusterCount {
        ClusterCount(self.own.load(Ordering::Relaxed))
    }

    /// Whether writes are refused at the moment, for whatever reason.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flags() & (READ_ONLY | DELETED | POISONED | CLOSED) != 0
    }

    /// Whether clusters may be without storage.
    #[must_use]
    pub fn is_thin(&self) -> bool {
        self.flags() & THIN != 0
    }

    /// Whether writes to clusters without storage may wait for space.
    #[must_use]
    pub fn waits_for_space(&self) -> bool {
        self.flags() & WAITS != 0
    }

    #[inline]
    pub(super) fn flags(&self) -> u32 {
        self.flags.load(Ordering::Acquire)
    }

    pub(super) fn set_flags(&self, flags: u32) {
        self.flags.fetch_or(flags, Ordering::AcqRel);
    }

    pub(super) fn clear_flags(&self, flags: u32) {
        self.flags.fetch_and(!flags, Ordering::AcqRel);
    }

    /// What shows from outside of the pool where nothing has a place.
    #[inline]
    pub(super) fn external(&self) -> Option<Arc<Shown>> {
        if self.flags() & EXTERNAL == 0 {
            return None;
        }
        self.external.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_external(&self, shown: Option<Shown>) {
        let mut external = self.external.write().unwrap_or_else(PoisonError::into_inner);
        if external.as_deref() == shown.as_ref() {
            return;
        }
        *external = shown.map(Arc::new);
        // The one who sees the flag finds what it promises.
        match &*external {
            Some(_) => self.set_flags(EXTERNAL),
            None => self.clear_flags(EXTERNAL),
        }
    }

    /// Whether reads are served.
    #[inline]
    pub(super) fn check_read(&self) -> Result<(), Error> {
        let flags = self.flags();
        if flags & (DELETED | CLOSED) == 0 { Ok(()) } else { Err(self.refusal(flags)) }
    }

    /// Whether writes are served.
    #[inline]
    pub(super) fn check_write(&self) -> Result<(), Error> {
        let flags = self.flags();
        if flags & (READ_ONLY | DELETED | POISONED | CLOSED) == 0 {
            Ok(())
        } else {
            Err(self.refusal(flags))
        }
    }

    /// Whether a write can begin right now: nothing refuses it and nothing makes it wait.
    #[inline]
    pub(super) fn takes_writes_now(&self) -> bool {
        self.flags() & (READ_ONLY | DELETED | POISONED | CLOSED | FROZEN) == 0
    }

    /// Whether writers have to wait.
    pub(super) fn is_frozen(&self) -> bool {
        self.flags() & FROZEN != 0
    }

    /// Whether a flush can be answered with good conscience: what was written and is not yet
    /// durable may never be, once the pool is poisoned.
    #[inline]
    pub(super) fn check_flush(&self) -> Result<(), Error> {
        let flags = self.flags();
        if flags & (DELETED | POISONED | CLOSED) == 0 { Ok(()) } else { Err(self.refusal(flags)) }
    }

    #[cold]
    fn refusal(&self, flags: u32) -> Error {
        if flags & DELETED != 0 {
            Error::NotFound
        } else if flags & CLOSED != 0 {
            Error::Closed
        } else {
            let marked = Error::ReadOnly { reason: ReadOnlyReason::Marked };
            self.fate.error().unwrap_or(marked)
        }
    }

    /// Rises with every change of the mapping, before the change is visible.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether every change of the mapping that the caller saw is on the medium.
    #[must_use]
    #[inline]
    pub fn is_durable(&self) -> bool {
        let version = self.version();
        self.durable.load(Ordering::Acquire) >= version
    }

    pub(super) fn change(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn set_durable(&self, version: u64) {
        self.durable.fetch_max(version, Ordering::AcqRel);
    }

    pub(super) fn set_clusters(&self, clusters: ClusterCount) {
        self.clusters.store(clusters.0, Ordering::Release);
    }

    /// Where a cluster is.
    #[must_use]
    #[inline]
    pub fn get(&self, cluster: VolumeCluster) -> Place {
        self.places.get(cluster)
    }

    /// Gives a cluster a place; returns the one it had. [`VolumeMap::change`] comes first.
    ///
    /// # Panics
    /// For a cluster above [`VOLUME_CLUSTERS_LIMIT`]: the owner checks sizes.
    pub(super) fn set(&self, cluster: VolumeCluster, place: Place) -> Place {
        let before = self.get(cluster);
        self.set_run(cluster, ClusterCount(1), place);
        before
    }

    /// Gives `count` clusters from `first` on consecutive places from `place` on, or takes their
    /// places away. A reader may see some of them changed and others not yet.
    /// [`VolumeMap::change`] comes first.
    ///
    /// # Panics
    /// For clusters above [`VOLUME_CLUSTERS_LIMIT`]: the owner checks sizes.
    pub(super) fn set_run(&self, first: VolumeCluster, count: ClusterCount, place: Place) {
        self.count_own(self.places.set(first, count, place));
    }

    /// As [`VolumeMap::set_run`], for many.
    pub(super) fn set_runs(&self, runs: impl Iterator<Item = PlacedRun>) {
        let changes = runs.map(|run| self.places.set(run.first, run.count, run.place));
        self.count_own(changes.fold(OwnChange::default(), |all, change| all + change));
    }

    fn count_own(&self, OwnChange { before, now }: OwnChange) {
        let missing = self.missing();
        match now.cmp(&before) {
            std::cmp::Ordering::Greater => self.own.fetch_add(now - before, Ordering::Relaxed),
            std::cmp::Ordering::Less => self.own.fetch_sub(before - now, Ordering::Relaxed),
            std::cmp::Ordering::Equal => return,
        };
        self.promise(missing);
    }

    /// Clusters that are missing to the reserve.
    pub(super) fn missing(&self) -> u32 {
        self.reserve.load(Ordering::Relaxed).saturating_sub(self.allocated().0)
    }

    /// Promises that the volume can always have so many clusters.
    pub(super) fn set_reserve(&self, clusters: u32) {
        let missing = self.missing();
        self.reserve.store(clusters, Ordering::Relaxed);
        self.promise(missing);
    }

    /// Tells the pool what is missing now instead of `before`. Only the owner changes either.
    fn promise(&self, before: u32) {
        let now = self.missing();
        if now >= before {
            self.fate.promised.fetch_add(u64::from(now - before), Ordering::Relaxed);
        } else {
            self.fate.promised.fetch_sub(u64::from(before - now), Ordering::Relaxed);
        }
    }

    /// Shows the places of a parent, its own parents' included, below `end` where this volume has
    /// none of its own; what showed there before is gone. [`VolumeMap::change`] comes first.
    pub(super) fn show_parent(&self, parent: Option<&Self>, end: u32) {
        for run in self.runs(0..end) {
            if let Place::Parent(_) = run.place {
                self.set_run(run.first, run.count, Place::None);
            }
        }
        let Some(parent) = parent else { return };
        let shown = parent.runs(0..end.min(parent.clusters().0)).flat_map(|run| {
            let holes = self.holes(run.first.0..run.end());
            holes.map(move |hole| PlacedRun {
                first: VolumeCluster(hole.start),
                count: ClusterCount(hole.end - hole.start),
                place: run.place.after(hole.start - run.first.0).of_parent(),
            })
        });
        self.set_runs(shown);
    }

    /// The volume's own clusters are its parent's from now on. [`VolumeMap::change`] comes first.
    pub(super) fn disown(&self, end: u32) {
        self.count_own(self.places.disown(end));
    }

    /// Gives it every place that `from` has below `end`. [`VolumeMap::change`] comes first.
    pub(super) fn copy_places(&self, from: &Self, end: u32) {
        self.count_own(self.places.copy(&from.places, end));
    }

    /// The volume's own clusters in one extent page's range, the first `entries` of it.
    pub(super) fn own_entries(&self, slot: TableSlot, entries: u32) -> Vec<Option<ClusterIndex>> {
        let first = slot.first_cluster().0;
        let mut own = vec![None; entries as usize];
        for run in self.runs(first..first + entries) {
            let Place::Own(place) = run.place else { continue };
            let start = (run.first.0 - first) as usize;
            let places = own[start..start + run.count.0 as usize].iter_mut();
            places.zip(place.0..).for_each(|(entry, place)| *entry = Some(ClusterIndex(place)));
        }
        own
    }

    /// What has a place in a range, in order, as runs, each within one extent page.
    pub(super) fn runs(&self, clusters: Range<u32>) -> impl Iterator<Item = PlacedRun> + '_ {
        self.places.runs(clusters)
    }

    /// The parts of a range in which nothing has a place, in order.
    pub(super) fn holes(&self, clusters: Range<u32>) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut at = clusters.start;
        std::iter::from_fn(move || {
            let start = self.find(VolumeCluster(at), clusters.end, false)?.0;
            let end = self.find(VolumeCluster(start), clusters.end, true);
            at = end.map_or(clusters.end, |end| end.0);
            Some(start..at)
        })
    }

    /// The first cluster from `from` on, below `end`, that has a place (or has none, if `placed`
    /// is false). Holes are skipped by leaves.
    #[must_use]
    pub fn find(&self, from: VolumeCluster, end: u32, placed: bool) -> Option<VolumeCluster> {
        self.places.find(from, end, placed)
    }
}

impl std::fmt::Debug for VolumeMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VolumeMap({:#x}: {} of {})", self.blob.0, self.allocated(), self.clusters())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvol::format::{LayoutOptions, Medium};
    use crate::units::BlockCount;

    fn map(clusters: u32) -> VolumeMap {
        let medium = Medium::new(BlockSize::B4096, BlockCount(16384));
        let layout = Layout::create(medium, LayoutOptions::default()).unwrap();
        let map = VolumeMap::new(BlobId(1 << 32), &layout, &Arc::default());
        map.set_clusters(ClusterCount(clusters));
        map
    }

    #[test]
    fn places_are_kept_and_counted() {
        let map = map(VOLUME_CLUSTERS_LIMIT);
        for cluster in [0, 1, 511, 512, 262_143, 262_144, VOLUME_CLUSTERS_LIMIT - 1] {
            let (at, own) = (VolumeCluster(cluster), Place::Own(ClusterIndex(cluster / 2 + 1)));
            assert_eq!(map.get(at), Place::None);
            assert_eq!(map.set(at, own), Place::None);
            assert_eq!(map.get(at), own);
        }
        assert_eq!(map.allocated(), ClusterCount(7));
        let parent = Place::Parent(ClusterIndex(9));
        map.set(VolumeCluster(1), parent);
        assert_eq!(map.get(VolumeCluster(1)), parent);
        assert_eq!(map.set(VolumeCluster(1), Place::None), parent);
        assert_eq!(map.allocated(), ClusterCount(6));
        assert_eq!(map.get(VolumeCluster(u32::MAX)), Place::None);
    }

    #[test]
    fn data_and_holes_are_found_across_missing_leaves() {
        let end = VOLUME_CLUSTERS_LIMIT;
        let map = map(end);
        let from = VolumeCluster;
        assert_eq!(map.find(from(0), end, true), None);
        assert_eq!(map.find(from(5), end, false), Some(from(5)));
        for cluster in [700, 701, 300_000, end - 1] {
            map.set(from(cluster), Place::Own(ClusterIndex(7)));
        }
        assert_eq!(map.find(from(0), end, true), Some(from(700)));
        assert_eq!(map.find(from(700), end, false), Some(from(702)));
        assert_eq!(map.find(from(702), end, true), Some(from(300_000)));
        assert_eq!(map.find(from(300_001), end, true), Some(from(end - 1)));
        assert_eq!(map.find(from(300_001), end - 1, true), None);
        assert_eq!(map.find(from(end - 1), end, false), None);
    }

    #[test]
    fn durability_follows_the_version() {
        let map = map(1);
        assert!(map.is_durable());
        map.change();
        let version = map.version();
        assert!(!map.is_durable());
        map.change();
        map.set_durable(version);
        assert!(!map.is_durable(), "a change after the commit began is not covered by it");
        map.set_durable(map.version());
        assert!(map.is_durable());
    }
}
