//! Parents outside of the pool: devices, or volumes of other pools, that are read where a volume has
//! no cluster of its own, and never written.
//!
//! A volume names its parent in its metadata; what that is, somebody above says, by attaching it on every reactor and then at the owner. Until then the volume is *degraded*: it can
//! be found, what it has of its own can be read, everything else fails with
//! [`Error::ExternalParent`], and it takes no writes. It never shows zeros in the parent's place.
//!
//! Clones of a snapshot that has such a parent show it, too: as far as the snapshots between them
//! reach. Behind the end of the parent they show zeros.
//!
//! A parent that is a volume can have an external parent itself. A read follows them through at most
//! [`EXTERNAL_CHAIN_LIMIT`] pools, so that a circle in metadata from elsewhere ends in an error.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::block::BlockDevice;
use crate::hw::dma::{DmaArena, DmaBuffer};
use crate::units::{BlobId, ByteCount, ByteOffset, ClusterCount, Lba};

use super::error::{Error, IoFailure, ReadOnlyReason, VolumeTransfer};
use super::format::Blob;
use super::io::VolumeParent;
use super::snapshot::NewRelative;
use super::store::{State, Store};
use super::volume::{Volume, VolumeInfo};
use super::volume_map::VolumeMap;

/// Bytes of a read that goes through a buffer of its own.
const BOUNCE_STEP: u64 = 128 << 10;

/// What names a parent outside of the pool: the text of a UUID, as SPDK has it, or any bytes.
pub type ExternalName = Arc<[u8]>;

/// The name in the metadata, without the zero that ends it there.
#[must_use]
pub fn external_name(stored: &[u8]) -> ExternalName {
    let end = stored.iter().position(|byte| *byte == 0).unwrap_or(stored.len());
    stored[..end].into()
}

/// A UUID as the metadata has it: its text and a zero.
#[must_use]
pub fn stored_name(uuid: Uuid) -> Vec<u8> {
    let mut text = uuid.hyphenated().to_string().into_bytes();
    text.push(0);
    text
}

/// What shows through a volume from outside of the pool.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) name: ExternalName,
    /// Nothing of it shows from this byte on.
    pub(super) end: u64,
}

/// The most pools that external parents lead through, one after the other.
pub const EXTERNAL_CHAIN_LIMIT: u8 = 16;

/// How many external parents further a read may go: metadata can name them in a circle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Depth(u8);

impl Default for Depth {
    fn default() -> Self {
        Self(EXTERNAL_CHAIN_LIMIT)
    }
}

impl Depth {
    pub(super) fn below(self) -> Result<Self, Error> {
        self.0.checked_sub(1).map(Self).ok_or(Error::ExternalDepth)
    }
}

/// A parent outside of the pool, as one reactor reaches it.
pub enum External<D: BlockDevice> {
    /// A device that is in no pool.
    Device(D),
    /// A volume of another pool, that nobody can write any more.
    Volume(VolumeParent<D>),
}

impl<D: BlockDevice> Clone for External<D> {
    fn clone(&self) -> Self {
        match self {
            Self::Device(device) => Self::Device(device.clone()),
            Self::Volume(volume) => Self::Volume(volume.clone()),
        }
    }
}

impl<D: BlockDevice> External<D> {
    /// False for a volume that is deleted, or whose pool is closed.
    fn is_there(&self) -> bool {
        match self {
            Self::Device(_) => true,
            Self::Volume(volume) => volume.is_there(),
        }
    }

    fn size(&self) -> ByteCount {
        match self {
            Self::Device(device) => device.geometry().size(),
            Self::Volume(volume) => volume.size(),
        }
    }

    /// Bytes of a block, and the most that one read can ask for.
    fn unit_and_most(&self) -> (u64, u64) {
        match self {
            Self::Device(device) => {
                let geometry = device.geometry();
                (u64::from(geometry.block_size.bytes()), geometry.max_transfer.get())
            }
            Self::Volume(volume) => (u64::from(volume.block_size().bytes()), u64::MAX),
        }
    }

    /// Reads whole blocks. Only the way through a volume, which can lead to further ones, is boxed.
    async fn read(&self, offset: u64, buffer: DmaBuffer, depth: Depth) -> VolumeTransfer {
        match self {
            Self::Device(device) => {
                let start = Lba(offset >> device.geometry().block_size.shift());
                device.read(start, buffer).await.map_err(|failed| IoFailure {
                    error: Error::ExternalDevice(failed.error),
                    buffer: failed.buffer,
                })
            }
            Self::Volume(volume) => volume.read(ByteOffset(offset), buffer, depth).await,
        }
    }
}

/// The parents outside of the pool, as one reactor reaches them.
pub(super) struct Externals<D: BlockDevice>(RefCell<HashMap<ExternalName, External<D>>>);

impl<D: BlockDevice> Default for Externals<D> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<D: BlockDevice> Externals<D> {
    pub(super) fn attach(&self, name: &ExternalName, parent: External<D>) {
        let mut known = self.0.borrow_mut();
        // This is rare enough to look for those that are gone.
        known.retain(|_, parent| parent.is_there());
        known.insert(Arc::clone(name), parent);
    }

    pub(super) fn detach(&self, name: &ExternalName) {
        self.0.borrow_mut().remove(name);
    }

    fn get(&self, name: &ExternalName) -> Option<External<D>> {
        self.0.borrow().get(name).cloned()
    }

    /// Fills `buffer` with what shows at `offset`; zeros behind the end.
    pub(super) async fn read(
        &self,
        shown: &Shown,
        offset: ByteOffset,
        mut buffer: DmaBuffer,
        arena: &DmaArena,
        depth: Depth,
    ) -> VolumeTransfer {
        let Some(parent) = self.get(&shown.name) else {
            return Err(IoFailure::new(Error::ExternalParent, buffer));
        };
        let (block, most) = parent.unit_and_most();
        let end = shown.end.min(parent.size().get());
        let length = buffer.len() as u64;
        let there = end.saturating_sub(offset.0).min(length);
        if there == length && (offset.0 | length).is_multiple_of(block) && length <= most {
            return parent.read(offset.0, buffer, depth).await;
        }
        // `there` is at most the buffer's length.
        buffer[there as usize..].fill(0);
        let step = BOUNCE_STEP.min(most).max(block);
        let mut done = 0;
        while done < there {
            let at = offset.0 + done;
            let first = at / block * block;
            let bytes = (offset.0 + there - first).min(step).next_multiple_of(block);
            let Some(part) = arena.allocate(bytes as usize) else {
                return Err(IoFailure::new(Error::NoMemory { bytes }, buffer));
            };
            let part = match parent.read(first, part, depth).await {
                Ok(part) => part,
                Err(failed) => return Err(IoFailure::new(failed.error, buffer)),
            };
            let skipped = (at - first) as usize;
            let taken = (bytes as usize - skipped).min((there - done) as usize);
            buffer[done as usize..][..taken].copy_from_slice(&part[skipped..][..taken]);
            done += taken as u64;
        }
        Ok(buffer)
    }

    /// Bytes of the parent, if it is attached and there.
    fn size(&self, name: &ExternalName) -> Option<ByteCount> {
        self.get(name).filter(External::is_there).map(|parent| parent.size())
    }
}

impl<D: BlockDevice> Store<D> {
    /// The parents outside of the pool that its volumes name, those in quarantine included.
    #[must_use]
    pub fn external_parents(&self) -> Vec<ExternalName> {
        let state = self.state.borrow();
        let served = state.volumes.values().filter(|volume| !volume.deleted);
        let mut names: Vec<_> =
            served.filter_map(|volume| volume.blob.external_parent()).map(external_name).collect();
        names.extend(state.quarantined.iter().filter_map(|found| found.external_parent.clone()));
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Those of them that are not attached.
    #[must_use]
    pub fn missing_externals(&self) -> Vec<ExternalName> {
        let mut names = self.external_parents();
        names.retain(|name| !self.state.borrow().attached.contains(name));
        names
    }

    /// Says what a parent outside of the pool is. Every reactor that does I/O must know it before
    /// (`StoreIo::attach_external`). Nothing is written.
    pub fn attach_external(&self, name: &ExternalName, parent: External<D>) {
        self.externals.attach(name, parent);
        let mut state = self.state.borrow_mut();
        state.attached.insert(Arc::clone(name));
        state.show_externals();
    }

    /// The parent is gone: volumes that need it are degraded from now on.
    pub fn detach_external(&self, name: &ExternalName) {
        let mut state = self.state.borrow_mut();
        state.attached.remove(name);
        state.show_externals();
        drop(state);
        self.externals.detach(name);
    }

    /// Lets go of a parent outside of the pool, unless volumes need it: the names of those. On
    /// return, what this says is also what the medium says, so that no crash brings back a volume
    /// that needs what was let go.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Poisoned`], [`Error::Closed`]: then nobody can know.
    pub async fn release_external(&self, name: &ExternalName) -> Result<Vec<String>, Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        let changed: Vec<_> = {
            let state = self.state.borrow();
            let changed = |volume: &Volume| volume.root_dirty || volume.deleted;
            let changed = state.volumes.iter().filter(|(_, volume)| changed(volume));
            changed.map(|(id, _)| *id).collect()
        };
        // Also if there is nothing: a commit that is under way ends before this one.
        self.commit(changed).await?;
        let needs = |volume: &&Volume| {
            volume.blob.external_parent().is_some_and(|stored| external_name(stored) == *name)
        };
        let mut needed_by: Vec<_> = {
            let state = self.state.borrow();
            state.volumes.values().filter(needs).map(|volume| volume.name.to_string()).collect()
        };
        let quarantined = self.quarantined().into_iter();
        let damaged = quarantined.filter(|found| found.external_parent.as_ref() == Some(name));
        needed_by.extend(damaged.map(|found| match found.name {
            Some(name) => format!("{name} (in quarantine)"),
            None => format!("blob {:#x} (in quarantine)", found.id.0),
        }));
        if needed_by.is_empty() {
            self.detach_external(name);
        }
        Ok(needed_by)
    }

    /// A volume that can be the parent of volumes of other pools: nobody can write it any more, on
    /// the medium neither, and all that it shows is there.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Closed`], [`Error::Unsuitable`] if it can be written,
    /// [`Error::ExternalParent`] if it is degraded, [`Error::NoSpace`], [`Error::Poisoned`].
    pub async fn as_external_parent(&self, id: BlobId) -> Result<Arc<VolumeMap>, Error> {
        let _one_at_a_time = self.operations.lock().await;
        let map = {
            let state = self.state.borrow();
            if state.closed {
                return Err(Error::Closed);
            }
            let volume = state.served(id)?;
            if !volume.blob.flags.read_only {
                return Err(Error::Unsuitable("the volume can be written: make a snapshot of it"));
            }
            if volume.degraded {
                return Err(Error::ExternalParent);
            }
            Arc::clone(&volume.map)
        };
        self.commit([id]).await?;
        Ok(map)
    }

    /// Makes a thin volume that reads as a parent outside of the pool does, and has its size,
    /// rounded up to clusters. On return it is durable. `stored` is what the metadata says.
    ///
    /// # Errors
    /// [`Error::ExternalParent`] if the parent is not attached; otherwise as for
    /// [`Store::clone_volume`].
    pub async fn clone_external(
        &self,
        stored: &[u8],
        new: NewRelative,
    ) -> Result<VolumeInfo, Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        let name = self.free_name(&new.name)?;
        let external = external_name(stored);
        let size = self.externals.size(&external).ok_or(Error::ExternalParent)?;
        let clusters = self.clusters_for(size)?;
        let root = self.take_root()?;
        let made = new.blob(root, &name, clusters).and_then(|mut blob| {
            blob.set_external_parent(Some(stored))?;
            Ok(blob)
        });
        let blob = made.inspect_err(|_| self.state.borrow_mut().allocator.free_page(root))?;
        let map = Arc::new(VolumeMap::new(blob.id, &self.layout, &self.fate));
        let mut volume = Volume::new(blob, Arc::clone(&map), name.clone(), clusters);
        volume.root_dirty = true;
        let id = volume.blob.id;
        self.add_volume(volume, root).await?;
        map.set_clusters(clusters);
        tracing::info!(clone = %name, blob = id.0, "clone of an external parent made");
        self.volume(id).ok_or(Error::NotFound)
    }

    /// Gives a thin volume a parent outside of the pool: what the volume has of its own stays,
    /// everything else reads as the parent does. On return it is durable.
    ///
    /// # Errors
    /// [`Error::ExternalParent`] if the parent is not attached; [`Error::Unsuitable`] if it is
    /// larger than the volume; otherwise as for [`Store::set_parent`].
    pub async fn set_external_parent(&self, id: BlobId, stored: &[u8]) -> Result<(), Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        let size = self.externals.size(&external_name(stored)).ok_or(Error::ExternalParent)?;
        let wanted = self.clusters_for(size)?;
        let map = {
            let state = self.state.borrow();
            let volume = state.served(id)?;
            volume.check_change()?;
            if !volume.blob.flags.thin {
                return Err(Error::Unsuitable("a thick volume cannot have a parent"));
            }
            if volume.clusters < wanted {
                return Err(Error::Unsuitable("the external parent is larger than the volume"));
            }
            Arc::clone(&volume.map)
        };
        let change = |blob: &mut Blob| {
            blob.set_parent(None);
            blob.set_external_parent(Some(stored))
        };
        self.change_parent(&map, None, change).await?;
        tracing::info!(blob = id.0, "has an external parent");
        Ok(())
    }

    /// What shows of a parent outside of the pool, at `offset` of a volume, into `buffer`.
    pub(super) async fn read_external(
        &self,
        shown: &Shown,
        offset: u64,
        buffer: DmaBuffer,
    ) -> Result<DmaBuffer, Error> {
        let (offset, arena) = (ByteOffset(offset), self.io.arena());
        let read = self.externals.read(shown, offset, buffer, arena, Depth::default()).await;
        read.map_err(|failed| failed.error)
    }

    /// Clusters of `map` at which something of an external parent can show.
    pub(super) fn external_clusters(&self, map: &VolumeMap) -> ClusterCount {
        let Some(shown) = map.external() else { return ClusterCount(0) };
        // Of one that is not attached nobody knows where it ends.
        let size = self.externals.size(&shown.name).map_or(u64::MAX, ByteCount::get);
        let clusters = size.min(shown.end).div_ceil(self.layout.cluster_size().0);
        ClusterCount(u32::try_from(clusters).unwrap_or(u32::MAX))
    }
}

impl State {
    /// Tells every map what shows through it from outside of the pool, and holds writes back where
    /// that is not attached. After each change of parents, before anybody can see it.
    pub(super) fn show_externals(&mut self) {
        let any = self.volumes.values().any(|volume| {
            volume.blob.external_parent().is_some() || volume.map.external().is_some()
        });
        if !any {
            return;
        }
        for id in self.volumes.keys().copied().collect::<Vec<_>>() {
            let shown = self.external_of(id);
            let missing = shown.as_ref().is_some_and(|shown| !self.attached.contains(&shown.name));
            let Some(volume) = self.volumes.get_mut(&id) else { continue };
            volume.map.set_external(shown);
            match volume.limit {
                None if missing => volume.limit = Some(ReadOnlyReason::ExternalParent),
                Some(ReadOnlyReason::ExternalParent) if !missing => volume.limit = None,
                _ => {}
            }
            volume.degraded = missing;
            volume.show_flags();
        }
    }

    /// What shows through a volume that has nothing of its own, nor its parents.
    fn external_of(&self, id: BlobId) -> Option<Shown> {
        let mut volume = self.volumes.get(&id)?;
        let mut end = u64::MAX;
        // A chain has no more volumes than there are.
        for _ in 0..self.volumes.len() {
            if let Some(stored) = volume.blob.external_parent() {
                return Some(Shown { name: external_name(stored), end });
            }
            volume = self.volumes.get(&volume.blob.parent()?)?;
            end = end.min(u64::from(volume.clusters.0) * volume.map.cluster_size().0);
        }
        None
    }
}
