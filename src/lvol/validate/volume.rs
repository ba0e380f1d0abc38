//! Volumes as a validation finds them, and their content.

use uuid::Uuid;

use crate::units::{BlobId, ByteCount, ClusterCount, ClusterIndex, VolumeCluster};

use super::super::format::{Blob, ClusterMap, Layout, VolumeName, lvolstore};
use super::{ImageRead, Report, ValidateError, image};

/// Where a clone gets what it has not itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parent {
    /// A snapshot of the same store.
    Snapshot(BlobId),
    /// Something outside; the bytes are its name.
    External(Vec<u8>),
}

/// A volume or snapshot.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its blob.
    pub blob: BlobId,
    /// Its name, if that is usable.
    pub name: Option<VolumeName>,
    /// Its UUID, if that is usable.
    pub uuid: Option<Uuid>,
    /// Its size.
    pub size: ByteCount,
    /// Whether clusters may be without storage.
    pub thin: bool,
    /// Whether its data must not change.
    pub read_only: bool,
    /// What it is a clone of.
    pub parent: Option<Parent>,
    /// Its clones, ascending: it is a snapshot, then.
    pub clones: Vec<BlobId>,
    /// Clusters of its own.
    pub allocated: ClusterCount,
    map: ClusterMap,
}

/// Why a volume's content cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Beyond the end of the volume.
    #[error("{length} bytes at {offset} reach beyond the {size} bytes of the volume")]
    Range {
        /// Where.
        offset: u64,
        /// How much.
        length: usize,
        /// The size of the volume.
        size: ByteCount,
    },
    /// The content is that of a parent outside of the store.
    #[error("the content from {offset} on is outside of the store")]
    External {
        /// Where, in the volume.
        offset: u64,
    },
    /// A parent is missing, or is its own ancestor.
    #[error("the parent {:#x} cannot be read", .parent.0)]
    Parent {
        /// Which.
        parent: BlobId,
    },
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] ValidateError),
}

/// Where a cluster's content is.
enum Source {
    Cluster(ClusterIndex),
    Zeroes,
    External,
}

impl Volume {
    pub(super) fn new(layout: &Layout, blob: &Blob, map: ClusterMap) -> Self {
        let external = || blob.external_parent().map(|name| Parent::External(name.to_vec()));
        Self {
            blob: blob.id,
            name: lvolstore::name(&blob.xattrs).ok(),
            uuid: lvolstore::uuid(&blob.xattrs).ok(),
            size: layout.bytes_of(map.clusters()),
            thin: blob.flags.thin,
            read_only: blob.flags.forbids_data(),
            parent: blob.parent().map(Parent::Snapshot).or_else(external),
            clones: Vec::new(),
            // More than 32 bits count only if clusters overlap, which is reported.
            allocated: ClusterCount(u32::try_from(map.allocated()).unwrap_or(u32::MAX)),
            map,
        }
    }

    /// Its mapping, without that of its parents.
    #[must_use]
    pub const fn map(&self) -> &ClusterMap {
        &self.map
    }

    pub(super) const fn parent_blob(&self) -> Option<BlobId> {
        match self.parent {
            Some(Parent::Snapshot(id)) => Some(id),
            _ => None,
        }
    }
}

impl Report {
    /// Fills `into` with the content of `volume` from byte `offset` on, as a reader of the volume
    /// sees it: what it has not itself comes from its parents, and what nobody has is zero.
    ///
    /// # Errors
    /// [`ReadError`]; `into` may be filled in part then.
    pub fn read_volume(
        &self,
        image: &dyn ImageRead,
        volume: &Volume,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), ReadError> {
        let (size, length) = (volume.size, into.len());
        if offset.checked_add(length as u64).is_none_or(|end| end > size.0) {
            return Err(ReadError::Range { offset, length, size });
        }
        let cluster_size = self.layout.cluster_size().0;
        let (mut at, mut rest) = (offset, into);
        while !rest.is_empty() {
            let within = at % cluster_size;
            // Inside the volume, whose clusters are counted in 32 bits.
            let cluster = VolumeCluster((at / cluster_size) as u32);
            let now = (cluster_size - within).min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(now);
            match self.source(volume, cluster)? {
                Source::Zeroes => part.fill(0),
                Source::External => return Err(ReadError::External { offset: at }),
                Source::Cluster(index) => {
                    let Some(start) = self.layout.cluster_offset(index) else {
                        unreachable!("a cluster map names only clusters of the store")
                    };
                    image::read(image, start.0 + within, part)?;
                }
            }
            at += now as u64;
            rest = after;
        }
        Ok(())
    }

    /// Looks for a cluster in the volume and its ancestors, of which there are fewer than volumes.
    fn source(&self, volume: &Volume, cluster: VolumeCluster) -> Result<Source, ReadError> {
        let mut volume = volume;
        for _ in 0..=self.volumes.len() {
            if let Some(index) = volume.map.get(cluster) {
                return Ok(Source::Cluster(index));
            }
            // A parent that is smaller than its clone hides what its own parents have there.
            if cluster.0 >= volume.map.clusters().0 {
                return Ok(Source::Zeroes);
            }
            match &volume.parent {
                None => return Ok(Source::Zeroes),
                Some(Parent::External(_)) => return Ok(Source::External),
                Some(Parent::Snapshot(parent)) => {
                    let parent = *parent;
                    volume = self.volumes.get(&parent).ok_or(ReadError::Parent { parent })?;
                }
            }
        }
        Err(ReadError::Parent { parent: volume.blob })
    }
}
