//! What all reactors share of a volume: size, flags and the place of each cluster, read without
//! locks. Only the owner reactor changes it.
//!
//! A cluster's entry is one 32-bit word: 0 for none, else the cluster's number on the device, with
//! the top bit set if it belongs to a parent and must not be written in place. The words lie in
//! leaves of 512 (one extent page each), leaves in chunks of 512, chunks in segments that double in
//! size; all are made when the first cluster in them gets a place, so that holes take no memory and
//! nothing that a reader may hold ever moves.
//!
//! Orders that others rely on:
//! * An entry is set after its cluster's content is complete (release; readers acquire).
//! * [`VolumeMap::version`] rises before an entry changes. So whoever saw the entry and then sees
//!   [`VolumeMap::is_durable`] is right that the mapping he used is on the medium.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::units::{BlobId, BlockSize, ByteCount, ClusterCount, ClusterIndex, VolumeCluster};

use super::error::{Error, ReadOnlyReason};
use super::external::Shown;
use super::format::{EXTENT_PAGE_CLUSTERS, Layout, TableSlot};

/// Most clusters a volume can have here: 1 PiB of 1 MiB clusters.
pub const VOLUME_CLUSTERS_LIMIT: u32 = 1 << 30;
/// Most clusters a store can have here: the top bit of an entry is taken.
pub(super) const STORE_CLUSTERS_LIMIT: u32 = PARENT_BIT;

const PARENT_BIT: u32 = 1 << 31;
const LEAF: usize = EXTENT_PAGE_CLUSTERS as usize;
const CHUNK: usize = 512;
const CHUNK_CLUSTERS: usize = LEAF * CHUNK;
/// Segment k holds 2^k chunks, so these hold `VOLUME_CLUSTERS_LIMIT` and more.
const SEGMENTS: usize =
    (VOLUME_CLUSTERS_LIMIT as usize / CHUNK_CLUSTERS).trailing_zeros() as usize + 1;

type Leaf = Box<[AtomicU32]>;
type Chunk = Box<[OnceLock<Leaf>]>;
type Segment = Box<[OnceLock<Chunk>]>;

/// Where a cluster of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: reads as zeros, or as the device outside of the pool that shows there.
    None,
    /// In a cluster of the volume's own.
    Own(ClusterIndex),
    /// In a cluster of a parent: never written in place.
    Parent(ClusterIndex),
}

impl Place {
    const fn decode(word: u32) -> Self {
        match word {
            0 => Self::None,
            word if word & PARENT_BIT != 0 => Self::Parent(ClusterIndex(word & !PARENT_BIT)),
            word => Self::Own(ClusterIndex(word)),
        }
    }

    const fn encode(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Own(cluster) => cluster.0,
            Self::Parent(cluster) => cluster.0 | PARENT_BIT,
        }
    }
}

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
    segments: [OnceLock<Segment>; SEGMENTS],
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
            segments: [const { OnceLock::new() }; SEGMENTS],
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
        let mut bytes = size_of::<Self>();
        for segment in self.segments.iter().filter_map(OnceLock::get) {
            bytes += size_of_val::<[OnceLock<Chunk>]>(segment);
            for chunk in segment.iter().filter_map(OnceLock::get) {
                bytes += size_of_val::<[OnceLock<Leaf>]>(chunk);
                let leaves = chunk.iter().filter_map(OnceLock::get);
                bytes += leaves.map(|leaf| size_of_val::<[AtomicU32]>(leaf)).sum::<usize>();
            }
        }
        ByteCount(bytes as u64)
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
        match self.leaf(cluster.0 as usize / LEAF) {
            Some(leaf) => Place::decode(leaf[cluster.0 as usize % LEAF].load(Ordering::Acquire)),
            None => Place::None,
        }
    }

    /// Gives a cluster a place; returns the one it had. [`VolumeMap::change`] comes first.
    ///
    /// # Panics
    /// For a cluster above [`VOLUME_CLUSTERS_LIMIT`]: the owner checks sizes.
    pub(super) fn set(&self, cluster: VolumeCluster, place: Place) -> Place {
        assert!(cluster.0 < VOLUME_CLUSTERS_LIMIT, "cluster {cluster} is above the limit");
        let index = cluster.0 as usize / LEAF;
        if place == Place::None && self.leaf(index).is_none() {
            return Place::None;
        }
        let (segment, position) = segment_of(index / CHUNK);
        let segment = self.segments[segment].get_or_init(|| vec_of(1 << segment, OnceLock::new));
        let chunk = segment[position].get_or_init(|| vec_of(CHUNK, OnceLock::new));
        let leaf = chunk[index % CHUNK].get_or_init(|| vec_of(LEAF, || AtomicU32::new(0)));
        let before = leaf[cluster.0 as usize % LEAF].swap(place.encode(), Ordering::AcqRel);
        let before = Place::decode(before);
        let own = |place| u32::from(matches!(place, Place::Own(_)));
        let missing = self.missing();
        match own(place).cmp(&own(before)) {
            std::cmp::Ordering::Greater => self.own.fetch_add(1, Ordering::Relaxed),
            std::cmp::Ordering::Less => self.own.fetch_sub(1, Ordering::Relaxed),
            std::cmp::Ordering::Equal => return before,
        };
        self.promise(missing);
        before
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
        let mut at = VolumeCluster(0);
        while let Some(cluster) = self.find(at, end, true) {
            if let Place::Parent(_) = self.get(cluster) {
                self.set(cluster, Place::None);
            }
            at = VolumeCluster(cluster.0 + 1);
        }
        let Some(parent) = parent else { return };
        let end = end.min(parent.clusters().0);
        let mut at = VolumeCluster(0);
        while let Some(cluster) = parent.find(at, end, true) {
            if let (Place::None, Place::Own(place) | Place::Parent(place)) =
                (self.get(cluster), parent.get(cluster))
            {
                self.set(cluster, Place::Parent(place));
            }
            at = VolumeCluster(cluster.0 + 1);
        }
    }

    #[inline]
    fn leaf(&self, index: usize) -> Option<&Leaf> {
        let (segment, position) = segment_of(index / CHUNK);
        let chunk = self.segments.get(segment)?.get()?[position].get()?;
        chunk[index % CHUNK].get()
    }

    /// The volume's own clusters in one extent page's range, the first `entries` of it.
    pub(super) fn own_entries(&self, slot: TableSlot, entries: u32) -> Vec<Option<ClusterIndex>> {
        let own = |word: &AtomicU32| match Place::decode(word.load(Ordering::Acquire)) {
            Place::Own(cluster) => Some(cluster),
            Place::None | Place::Parent(_) => None,
        };
        let entries = entries as usize;
        match self.leaf(slot.0 as usize) {
            Some(leaf) => leaf.iter().take(entries).map(own).collect(),
            None => vec![None; entries],
        }
    }

    /// The first cluster from `from` on, below `end`, that has a place (or has none, if `placed`
    /// is false). Holes are skipped by leaves.
    #[must_use]
    pub fn find(&self, from: VolumeCluster, end: u32, placed: bool) -> Option<VolumeCluster> {
        let mut at = from.0;
        while at < end {
            let index = at as usize / LEAF;
            let leaf_end = ((index + 1) * LEAF).min(end as usize) as u32;
            match self.leaf(index) {
                None if !placed => return Some(VolumeCluster(at)),
                None => at = self.end_of_hole(index, end),
                Some(leaf) => {
                    let hit = |at: &u32| {
                        let word = leaf[*at as usize % LEAF].load(Ordering::Acquire);
                        (word != 0) == placed
                    };
                    if let Some(found) = (at..leaf_end).find(hit) {
                        return Some(VolumeCluster(found));
                    }
                    at = leaf_end;
                }
            }
        }
        None
    }

    /// Where the hole ends that leaf `index` is missing in, as far as a chunk or a segment tells.
    fn end_of_hole(&self, index: usize, end: u32) -> u32 {
        let chunk = index / CHUNK;
        let (segment, position) = segment_of(chunk);
        let next_leaf = match self.segments.get(segment).map(OnceLock::get) {
            Some(Some(chunks)) if chunks[position].get().is_some() => index + 1,
            Some(Some(_)) => (chunk + 1) * CHUNK,
            // Segment k ends with chunk 2^(k+1) - 2.
            Some(None) => ((1 << (segment + 1)) - 1) * CHUNK,
            None => return end,
        };
        u32::try_from(next_leaf * LEAF).map_or(end, |next| next.min(end))
    }
}

impl std::fmt::Debug for VolumeMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VolumeMap({:#x}: {} of {})", self.blob.0, self.allocated(), self.clusters())
    }
}

/// The segment of a chunk, and the chunk's place in it.
#[inline]
const fn segment_of(chunk: usize) -> (usize, usize) {
    let segment = (chunk + 1).ilog2() as usize;
    (segment, chunk + 1 - (1 << segment))
}

fn vec_of<T>(count: usize, make: impl Fn() -> T) -> Box<[T]> {
    (0..count).map(|_| make()).collect()
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
    fn segments_hold_every_chunk_once() {
        let mut expected = (0, 0);
        for chunk in 0..5000 {
            assert_eq!(segment_of(chunk), expected, "chunk {chunk}");
            expected.1 += 1;
            if expected.1 == 1 << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
        let last = VOLUME_CLUSTERS_LIMIT as usize / CHUNK_CLUSTERS - 1;
        assert!(segment_of(last).0 < SEGMENTS);
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
