//! Parents outside of the pool: devices that are read where a volume has no cluster of its own, and
//! never written.
//!
//! A volume names its parent in its metadata; which device that is, somebody above says, by
//! attaching it on every reactor and then at the owner. Until then the volume is *degraded*: it can
//! be found, what it has of its own can be read, everything else fails with
//! [`Error::ExternalParent`], and it takes no writes. It never shows zeros in the parent's place.
//!
//! Clones of a snapshot that has such a parent show it, too: as far as the snapshots between them
//! reach. Behind the end of the device they show zeros.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::block::BlockDevice;
use crate::hw::dma::{DmaArena, DmaBuffer};
use crate::units::{BlobId, ByteCount, ByteOffset, ClusterCount, Lba};

use super::error::{Error, IoFailure, ReadOnlyReason, VolumeTransfer};
use super::format::Blob;
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

/// The devices outside of the pool, as one reactor reaches them.
pub(super) struct Externals<D>(RefCell<HashMap<ExternalName, D>>);

impl<D> Default for Externals<D> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<D: BlockDevice> Externals<D> {
    pub(super) fn attach(&self, name: &ExternalName, device: D) {
        self.0.borrow_mut().insert(Arc::clone(name), device);
    }

    pub(super) fn detach(&self, name: &ExternalName) {
        self.0.borrow_mut().remove(name);
    }

    fn get(&self, name: &ExternalName) -> Option<D> {
        self.0.borrow().get(name).cloned()
    }

    /// Fills `buffer` with what shows at `offset`; zeros behind the end.
    pub(super) async fn read(
        &self,
        shown: &Shown,
        offset: ByteOffset,
        mut buffer: DmaBuffer,
        arena: &DmaArena,
    ) -> VolumeTransfer {
        let Some(device) = self.get(&shown.name) else {
            return Err(IoFailure::new(Error::ExternalParent, buffer));
        };
        let geometry = device.geometry();
        let (block, most) = (u64::from(geometry.block_size.bytes()), geometry.max_transfer.get());
        let end = shown.end.min(geometry.size().get());
        let length = buffer.len() as u64;
        let there = end.saturating_sub(offset.0).min(length);
        if there == length && (offset.0 | length).is_multiple_of(block) && length <= most {
            let start = Lba(offset.0 >> geometry.block_size.shift());
            return device.read(start, buffer).await.map_err(|failed| IoFailure {
                error: Error::ExternalDevice(failed.error),
                buffer: failed.buffer,
            });
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
            let part = match device.read(Lba(first >> geometry.block_size.shift()), part).await {
                Ok(part) => part,
                Err(failed) => {
                    return Err(IoFailure::new(Error::ExternalDevice(failed.error), buffer));
                }
            };
            let skipped = (at - first) as usize;
            let taken = (bytes as usize - skipped).min((there - done) as usize);
            buffer[done as usize..][..taken].copy_from_slice(&part[skipped..][..taken]);
            done += taken as u64;
        }
        Ok(buffer)
    }

    /// Bytes of the device, if it is attached.
    fn size(&self, name: &ExternalName) -> Option<ByteCount> {
        Some(self.get(name)?.geometry().size())
    }
}

impl<D: BlockDevice> Store<D> {
    /// The parents outside of the pool that its volumes name.
    #[must_use]
    pub fn external_parents(&self) -> Vec<ExternalName> {
        let state = self.state.borrow();
        let served = state.volumes.values().filter(|volume| !volume.deleted);
        let mut names: Vec<_> =
            served.filter_map(|volume| volume.blob.external_parent()).map(external_name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Says which device a parent outside of the pool is. Every reactor that does I/O must know it
    /// before (`StoreIo::attach_external`). Nothing is written.
    pub fn attach_external(&self, name: &ExternalName, device: D) {
        self.externals.attach(name, device);
        let mut state = self.state.borrow_mut();
        state.attached.insert(Arc::clone(name));
        state.show_externals();
    }

    /// The device is gone: volumes that need it are degraded from now on.
    pub fn detach_external(&self, name: &ExternalName) {
        let mut state = self.state.borrow_mut();
        state.attached.remove(name);
        state.show_externals();
        drop(state);
        self.externals.detach(name);
    }

    /// Makes a thin volume that reads as a device outside of the pool does, and has its size,
    /// rounded up to clusters. On return it is durable. `stored` is what the metadata says.
    ///
    /// # Errors
    /// [`Error::ExternalParent`] if the device is not attached; otherwise as for
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

    /// Makes a device outside of the pool the parent of a thin volume: what the volume has of its
    /// own stays, everything else reads as the device does. On return it is durable.
    ///
    /// # Errors
    /// [`Error::ExternalParent`] if the device is not attached; [`Error::Unsuitable`] if it is
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
                return Err(Error::Unsuitable("the device is larger than the volume"));
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

    /// What shows of a device outside of the pool, at `offset` of a volume, into `buffer`.
    pub(super) async fn read_external(
        &self,
        shown: &Shown,
        offset: u64,
        buffer: DmaBuffer,
    ) -> Result<DmaBuffer, Error> {
        let read = self.externals.read(shown, ByteOffset(offset), buffer, self.io.arena()).await;
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
