//! Snapshots and clones.
//!
//! A snapshot of a volume takes over the volume's clusters, its extent pages and its parent; the
//! volume becomes a thin clone of it. In order, as SPDK does it, so that either implementation
//! ends what the other one began:
//!
//! 1. The volume's mapping is committed while I/O goes on, so that little is left for step 3.
//! 2. Its writers are held back (`freeze.rs`): the moment of the snapshot.
//! 3. What was mapped since is committed.
//! 4. The snapshot's root is written: the volume's table and parent, and SNAPTMP, which names the
//!    volume. FLUSH. A crash up to here leaves a snapshot that opening removes.
//! 5. The volume's root is written: an empty table, and the snapshot as its parent. FLUSH. From
//!    here on opening keeps the snapshot.
//! 6. Writers go on. Their first write to a cluster copies it.
//! 7. The snapshot's root is written without SNAPTMP and read-only. FLUSH.
//!
//! Writers wait from step 2 to step 6, so that is all that happens there: two roots are committed,
//! and the map changes hands, an extent page's range that is one run as a whole
//! (`volume_map/places.rs`).
//!
//! What was acknowledged before the snapshot is in it. What of that is durable: all of it, since
//! every flush comes after it.

use std::sync::Arc;

use uuid::Uuid;

use crate::block::BlockDevice;
use crate::units::{BlobId, ClusterCount, PageIndex};

use super::error::{Error, Resource};
use super::format::{
    Blob, ExtentTable, Mapping, Runs, VolumeName, Xattr, blob_id, lvolstore, root_page,
};
use super::space::Wishes;
use super::store::Store;
use super::volume::{Volume, VolumeInfo};
use super::volume_map::{DELETED, READ_ONLY, VolumeMap};

/// A snapshot or a clone to be made.
#[derive(Clone, Debug)]
pub struct NewRelative {
    /// Its name: 1 to 63 bytes, not taken.
    pub name: String,
    /// Its UUID; a random one if `None`.
    pub uuid: Option<Uuid>,
    /// Attributes that it gets: those of the other volume are not copied.
    pub xattrs: Vec<Xattr>,
}

impl NewRelative {
    /// Without attributes, and with a random UUID.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), uuid: None, xattrs: Vec::new() }
    }

    pub(super) fn blob(
        &self,
        root: PageIndex,
        name: &VolumeName,
        clusters: ClusterCount,
    ) -> Result<Blob, Error> {
        let uuid = self.uuid.unwrap_or_else(Uuid::new_v4);
        let mut blob = lvolstore::volume_blob(blob_id(root), name, uuid, clusters);
        for Xattr { name, value } in &self.xattrs {
            blob.xattrs.set(name, value)?;
        }
        Ok(blob)
    }
}

impl<D: BlockDevice> Store<D> {
    /// Makes a read-only snapshot of a volume: it holds every write that was acknowledged before
    /// the call, and none that was not begun before the return. The volume becomes its clone. On
    /// return both are durable. I/O goes on; writers of the volume wait for a moment.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Exists`], [`Error::InvalidName`], [`Error::ReadOnly`],
    /// [`Error::NoSpace`] if there are no metadata pages, or if the volume's reserve could not be kept
    /// beside the snapshot (nothing is left behind), [`Error::Busy`], [`Error::Poisoned`],
    /// [`Error::Closed`].
    pub async fn snapshot_volume(&self, id: BlobId, new: NewRelative) -> Result<VolumeInfo, Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        let name = self.free_name(&new.name)?;
        let map = {
            let state = self.state.borrow();
            let volume = state.served(id)?;
            volume.check_change()?;
            // All that it has will be the snapshot's: its reserve is missing as a whole then.
            let reserve = volume.wishes.reserve;
            state.check_promise(reserve - volume.map.missing().min(reserve))?;
            Arc::clone(&volume.map)
        };
        self.commit_dirty(id).await?; // 1
        let begin = self.reactor.now();
        let frozen = self.freeze(&map).await?; // 2
        self.commit_dirty(id).await?; // 3
        let snapshot = self.take_over(id, &name, &new)?;
        if let Err(error) = self.commit([snapshot]).await {
            self.discard_snapshot(snapshot); // 4
            return Err(error);
        }
        self.become_clone(id, snapshot).await?; // 5
        drop(frozen); // 6
        let held = self.reactor.now().since(begin);
        self.finish_snapshot(snapshot).await?; // 7
        let (blob, of) = (snapshot.0, id.0);
        tracing::info!(snapshot = %name, blob, of, writers_held = ?held, "snapshot made");
        self.volume(snapshot).ok_or(Error::NotFound)
    }

    /// The snapshot, in memory: all that the volume has.
    fn take_over(&self, id: BlobId, name: &VolumeName, new: &NewRelative) -> Result<BlobId, Error> {
        let root = self.take_root()?;
        let mut state = self.state.borrow_mut();
        let made = state.served(id).and_then(|original| {
            let clusters = original.clusters;
            let mut blob = new.blob(root, name, clusters)?;
            blob.flags = original.blob.flags;
            blob.internal = original.blob.internal.clone();
            blob.set_snapshot_of(Some(id));
            blob.mapping = original.blob.mapping.clone();
            let map = Arc::new(VolumeMap::new(blob.id, &self.layout, &self.fate));
            map.copy_places(&original.map, clusters.0);
            let mut volume = Volume::new(blob, map, name.clone(), clusters);
            volume.map.set_flags(READ_ONLY);
            volume.map.set_clusters(clusters);
            volume.root_dirty = true;
            Ok(volume)
        });
        match made {
            Ok(volume) => {
                let snapshot = volume.blob.id;
                state.names.insert(name.clone(), snapshot);
                state.volumes.insert(snapshot, volume);
                state.show_externals();
                Ok(snapshot)
            }
            Err(error) => {
                state.allocator.free_page(root);
                Err(error)
            }
        }
    }

    /// The snapshot was not written: there was no space.
    fn discard_snapshot(&self, snapshot: BlobId) {
        let mut state = self.state.borrow_mut();
        let Some(volume) = state.volumes.remove(&snapshot) else { return };
        state.names.remove(&volume.name);
        volume.map.set_flags(DELETED);
        if self.fate.error().is_none() {
            state.allocator.free_page(root_page(snapshot).unwrap_or_default());
        }
    }

    /// Step 5. If there is no space for it, the snapshot goes and the volume is as it was.
    async fn become_clone(&self, id: BlobId, snapshot: BlobId) -> Result<(), Error> {
        let before = {
            let mut state = self.state.borrow_mut();
            let volume = state.served_mut(id)?;
            let before = volume.blob.clone();
            volume.map.change();
            volume.map.disown(volume.clusters.0);
            volume.blob.mapping = match &before.mapping {
                Mapping::Table(_) => Mapping::Table(ExtentTable::new(volume.clusters)),
                Mapping::Rle(_) => Mapping::Rle(Runs::new()),
            };
            volume.blob.set_parent(Some(snapshot));
            volume.blob.set_external_parent(None)?;
            volume.blob.flags.thin = true;
            volume.root_dirty = true;
            volume.show_flags();
            state.show_externals();
            before
        };
        let Err(error) = self.commit([id]).await else { return Ok(()) };
        if self.fate.error().is_some() {
            return Err(error);
        }
        {
            let mut state = self.state.borrow_mut();
            let Some(mut gone) = state.volumes.remove(&snapshot) else { return Err(error) };
            state.names.remove(&gone.name);
            if let Ok(volume) = state.served_mut(id) {
                volume.map.copy_places(&gone.map, volume.clusters.0);
                volume.blob = before;
                volume.show_flags();
            }
            gone.map.set_flags(DELETED);
            gone.blob.mapping = Mapping::Table(ExtentTable::new(ClusterCount(0)));
            gone.delete();
            state.volumes.insert(snapshot, gone);
            state.show_externals();
        }
        self.commit([id, snapshot]).await?;
        Err(error)
    }

    async fn finish_snapshot(&self, snapshot: BlobId) -> Result<(), Error> {
        {
            let mut state = self.state.borrow_mut();
            let volume = state.served_mut(snapshot)?;
            volume.blob.set_snapshot_of(None);
            volume.blob.flags.read_only = true;
            volume.root_dirty = true;
            volume.show_flags();
        }
        self.commit([snapshot]).await
    }

    /// Makes a thin volume that reads as a read-only one does and can be written. On return it is
    /// durable.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Exists`], [`Error::InvalidName`], [`Error::Unsuitable`] if the
    /// volume is not read-only, [`Error::NoSpace`] if there are no metadata pages (nothing is left
    /// behind), [`Error::Poisoned`], [`Error::Closed`].
    pub async fn clone_volume(&self, id: BlobId, new: NewRelative) -> Result<VolumeInfo, Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        let name = self.free_name(&new.name)?;
        check_parent(self.state.borrow().served(id)?)?;
        let root = self.take_root()?;
        let made = self.make_clone(id, root, &name, &new);
        let volume = made.inspect_err(|_| self.state.borrow_mut().allocator.free_page(root))?;
        let (clone, map, clusters) = (volume.blob.id, Arc::clone(&volume.map), volume.clusters);
        self.add_volume(volume, root).await?;
        map.set_clusters(clusters);
        tracing::info!(clone = %name, blob = clone.0, of = id.0, "clone made");
        self.volume(clone).ok_or(Error::NotFound)
    }

    fn make_clone(
        &self,
        id: BlobId,
        root: PageIndex,
        name: &VolumeName,
        new: &NewRelative,
    ) -> Result<Volume, Error> {
        let state = self.state.borrow();
        let parent = state.served(id)?;
        let mut blob = new.blob(root, name, parent.clusters)?;
        blob.flags.thin = true;
        blob.flags.clear_method = parent.blob.flags.clear_method;
        blob.set_parent(Some(id));
        if !parent.has_table() {
            blob.mapping = Mapping::Rle(Runs::new());
        }
        state.check_promise(Wishes::read(&blob.xattrs).reserve)?;
        let map = Arc::new(VolumeMap::new(blob.id, &self.layout, &self.fate));
        map.show_parent(Some(&parent.map), parent.clusters.0);
        let mut volume = Volume::new(blob, map, name.clone(), parent.clusters);
        volume.root_dirty = true;
        Ok(volume)
    }

    /// A page for the root of a new volume, while there is one for its commit, too.
    pub(super) fn take_root(&self) -> Result<PageIndex, Error> {
        let mut state = self.state.borrow_mut();
        if state.allocator.spare_pages() < 2 {
            return Err(Error::NoSpace { what: Resource::MetadataPage });
        }
        state.allocator.take_root_page()
    }
}

/// Whether a volume can have clones.
pub(super) fn check_parent(volume: &Volume) -> Result<(), Error> {
    if let Some(reason) = volume.shares() {
        return Err(Error::ReadOnly { reason });
    }
    if volume.blob.flags.read_only {
        Ok(())
    } else {
        Err(Error::Unsuitable("only a snapshot or a read-only volume can have clones"))
    }
}
