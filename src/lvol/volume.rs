//! A volume as its owner sees it: what the medium says of it and what it will say after the next
//! commit.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use futures_channel::oneshot;
use uuid::Uuid;

use crate::units::{BlobId, ByteCount, ClusterCount, ClusterIndex, VolumeCluster};

use super::error::{Error, ReadOnlyReason};
use super::external::ExternalName;
use super::format::{
    Blob, ClearMethod, Flags, Mapping, Run, Runs, TableSlot, VolumeName, lvolstore,
};
use super::space::{OnFull, Wishes};
use super::volume_map::{Place, READ_ONLY, THIN, VolumeMap, WAITS};

/// Everything about one blob that is served; the store's own blob is one, too.
pub(super) struct Volume {
    /// Flags and attributes as they are now; extent table and chain as last committed.
    pub(super) blob: Blob,
    /// The mapping as it is now.
    pub(super) map: Arc<VolumeMap>,
    pub(super) name: VolumeName,
    pub(super) uuid: Option<Uuid>,
    /// The size after the next commit; `map` shows it to readers when it is time.
    pub(super) clusters: ClusterCount,
    /// Extent pages that differ from the map.
    pub(super) dirty: BTreeSet<TableSlot>,
    /// Whether root and chain differ from `blob`.
    pub(super) root_dirty: bool,
    /// Whether the next commit erases the root.
    pub(super) deleted: bool,
    /// Clusters that the map names no more and the medium still does.
    pub(super) dropped: Vec<ClusterIndex>,
    /// First writes under way, and who waits for them.
    pub(super) allocating: HashMap<VolumeCluster, Vec<oneshot::Sender<()>>>,
    /// Whether it shows a parent outside of the pool that is not attached.
    pub(super) degraded: bool,
    /// Why it is read-only beyond what its flags say.
    pub(super) limit: Option<ReadOnlyReason>,
    /// What it wants of the pool's space.
    pub(super) wishes: Wishes,
}

impl Volume {
    pub(super) fn new(
        blob: Blob,
        map: Arc<VolumeMap>,
        name: VolumeName,
        clusters: ClusterCount,
    ) -> Self {
        let uuid = lvolstore::uuid(&blob.xattrs).ok();
        let mut volume = Self {
            blob,
            map,
            name,
            uuid,
            clusters,
            dirty: BTreeSet::new(),
            root_dirty: false,
            deleted: false,
            dropped: Vec::new(),
            allocating: HashMap::new(),
            degraded: false,
            limit: None,
            wishes: Wishes::default(),
        };
        volume.read_wishes();
        volume.show_flags();
        volume
    }

    /// Takes what the attributes say of the pool's space.
    pub(super) fn read_wishes(&mut self) {
        self.wishes = Wishes::read(&self.blob.xattrs);
        self.map.set_reserve(self.wishes.reserve);
    }

    /// The next commit erases it; nothing is kept for it any more.
    pub(super) fn delete(&mut self) {
        self.deleted = true;
        self.map.set_reserve(0);
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.root_dirty || self.deleted || !self.dirty.is_empty()
    }

    /// Copies what I/O must know from the blob to the map.
    pub(super) fn show_flags(&self) {
        let read_only = self.read_only().is_some();
        let flags = self.blob.flags;
        for (flag, set) in [
            (READ_ONLY, read_only),
            (THIN, flags.thin),
            (WAITS, self.wishes.on_full == OnFull::Wait),
        ] {
            if set {
                self.map.set_flags(flag);
            } else {
                self.map.clear_flags(flag);
            }
        }
    }

    pub(super) fn read_only(&self) -> Option<ReadOnlyReason> {
        if self.blob.flags.read_only {
            Some(ReadOnlyReason::Marked)
        } else if self.blob.flags.forbids_metadata() {
            Some(ReadOnlyReason::UnknownFeature)
        } else {
            self.limit
        }
    }

    /// Another owner of what is the volume's, if that was found: it cannot be given back then.
    pub(super) fn shares(&self) -> Option<ReadOnlyReason> {
        let shared = |limit: &ReadOnlyReason| {
            matches!(
                limit,
                ReadOnlyReason::SharedCluster { .. } | ReadOnlyReason::SharedPage { .. }
            )
        };
        self.limit.filter(shared)
    }

    /// Whether metadata can be changed.
    pub(super) fn check_change(&self) -> Result<(), Error> {
        match self.read_only() {
            Some(reason) => Err(Error::ReadOnly { reason }),
            None => Ok(()),
        }
    }

    /// Whether it can get another name: being marked read-only does not keep it from that, which
    /// changes its root alone.
    pub(super) fn check_rename(&self) -> Result<(), Error> {
        let flags = Flags { read_only: false, ..self.blob.flags };
        let unknown = flags.forbids_metadata().then_some(ReadOnlyReason::UnknownFeature);
        match unknown.or(self.limit) {
            Some(reason) => Err(Error::ReadOnly { reason }),
            None => Ok(()),
        }
    }

    /// Marks the extent page of a cluster dirty.
    pub(super) fn touch(&mut self, cluster: VolumeCluster) {
        self.dirty.insert(TableSlot::of(cluster));
    }

    /// Takes the places of clusters away; what was the volume's own is dropped at the next commit.
    pub(super) fn unmap(&mut self, clusters: Range<u32>) {
        let map = Arc::clone(&self.map);
        for run in map.runs(clusters.clone()) {
            if let Place::Own(place) = run.place {
                self.dropped.extend((place.0..place.0 + run.count.0).map(ClusterIndex));
                self.touch(run.first);
            }
        }
        map.set_run(
            VolumeCluster(clusters.start),
            ClusterCount(clusters.len() as u32),
            Place::None,
        );
    }

    /// The mapping as runs, for a blob that keeps it so.
    pub(super) fn runs(&self) -> Runs {
        let mut runs = Runs::new();
        let mut push = |first, count| {
            let pushed =
                count == 0 || runs.push(Run { first, count: ClusterCount(count) }).is_some();
            assert!(pushed, "a volume's clusters are counted in 32 bits");
        };
        let mut end = 0;
        for run in self.map.runs(0..self.clusters.0) {
            let Place::Own(place) = run.place else { continue };
            push(None, run.first.0 - end);
            push(Some(place), run.count.0);
            end = run.end();
        }
        push(None, self.clusters.0 - end);
        runs
    }

    pub(super) fn has_table(&self) -> bool {
        matches!(self.blob.mapping, Mapping::Table(_))
    }

    pub(super) fn info(&self, clones: Vec<BlobId>) -> VolumeInfo {
        VolumeInfo {
            id: self.blob.id,
            name: self.name.as_str().to_owned(),
            uuid: self.uuid,
            size: self.map.size(),
            allocated: self.map.allocated(),
            thin: self.blob.flags.thin,
            snapshot: self.blob.flags.read_only && !clones.is_empty(),
            read_only: self.read_only(),
            parent: self.blob.parent(),
            external_parent: self.blob.external_parent().map(<[u8]>::to_vec),
            shows: self.map.external().map(|shown| Arc::clone(&shown.name)),
            degraded: self.degraded,
            clones,
            clear_method: self.blob.flags.clear_method,
            reserve: ClusterCount(self.wishes.reserve),
            on_full: self.wishes.on_full,
        }
    }
}

impl Drop for Volume {
    /// Others may have the map for longer; nothing is kept for it any more.
    fn drop(&mut self) {
        self.map.set_reserve(0);
    }
}

/// What can be told about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its identity in the pool; the identity of a deleted volume may be given to a new one.
    pub id: BlobId,
    /// Its name.
    pub name: String,
    /// Its UUID, if it has a usable one.
    pub uuid: Option<Uuid>,
    /// Its size.
    pub size: ByteCount,
    /// Clusters of its own.
    pub allocated: ClusterCount,
    /// Whether clusters are allocated when they are first written.
    pub thin: bool,
    /// Whether it is a read-only parent of others.
    pub snapshot: bool,
    /// Why it takes no writes, if so.
    pub read_only: Option<ReadOnlyReason>,
    /// The snapshot that it is a clone of.
    pub parent: Option<BlobId>,
    /// What names the parent outside of the pool, if it has one.
    pub external_parent: Option<Vec<u8>>,
    /// What shows through it from outside of the pool, because it or one of its parents has it as
    /// its external parent.
    pub shows: Option<ExternalName>,
    /// Whether that is not attached: only what it has of its own can be read.
    pub degraded: bool,
    /// The volumes that are clones of it.
    pub clones: Vec<BlobId>,
    /// What happens to clusters that it gives up.
    pub clear_method: ClearMethod,
    /// Clusters that it can always have.
    pub reserve: ClusterCount,
    /// What its writes do when the pool is full.
    pub on_full: OnFull,
}
