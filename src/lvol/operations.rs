//! Operations on volumes: create, delete, resize, rename, attributes.
//!
//! One at a time: each is durable before the next begins, so that no crash can leave a state that
//! would need two operations to be half done. I/O and its commits go on meanwhile.

use std::collections::HashSet;
use std::sync::Arc;

use uuid::Uuid;

use crate::block::{BlockDevice, BlockError};
use crate::units::{BlobId, ByteCount, ClusterCount, ClusterIndex, VolumeCluster};

use super::commit::last_slot;
use super::error::Error;
use super::format::{Blob, ClearMethod, Mapping, VolumeName, Xattr, Xattrs, blob_id, lvolstore};
use super::store::{State, Store};
use super::volume::{Volume, VolumeInfo};
use super::volume_map::{DELETED, Place, VOLUME_CLUSTERS_LIMIT, VolumeMap};

/// Attributes that belong to the lvolstore.
const RESERVED: [&[u8]; 2] = [b"name", b"uuid"];

/// A volume to be made.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// Its name: 1 to 63 bytes, not taken.
    pub name: String,
    /// Its size, which is rounded up to whole clusters.
    pub size: ByteCount,
    /// Whether clusters are allocated when they are first written; else all are at once.
    pub thin: bool,
    /// Its UUID; a random one if `None`.
    pub uuid: Option<Uuid>,
    /// What happens to clusters that it gives up.
    pub clear_method: ClearMethod,
}

impl NewVolume {
    /// A thin volume.
    #[must_use]
    pub fn thin(name: &str, size: ByteCount) -> Self {
        let clear_method = ClearMethod::Default;
        Self { name: name.to_owned(), size, thin: true, uuid: None, clear_method }
    }

    /// A thick volume.
    #[must_use]
    pub fn thick(name: &str, size: ByteCount) -> Self {
        Self { thin: false, ..Self::thin(name, size) }
    }
}

impl<D: BlockDevice> Store<D> {
    /// Makes a volume that reads as zeros. On return it is durable.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::InvalidName`], [`Error::TooLarge`], [`Error::NoSpace`] (nothing
    /// is left behind), [`Error::Device`], [`Error::Poisoned`], [`Error::Closed`].
    pub async fn create_volume(&self, new: NewVolume) -> Result<VolumeInfo, Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        let name = self.free_name(&new.name)?;
        let clusters = self.clusters_for(new.size)?;
        let places = if new.thin { Vec::new() } else { self.take_zeroed(clusters.0).await? };
        let root = self.take_root().inspect_err(|_| {
            let mut state = self.state.borrow_mut();
            places.iter().for_each(|place| state.allocator.free_cluster(*place));
        })?;
        let id = blob_id(root);
        let uuid = new.uuid.unwrap_or_else(Uuid::new_v4);
        let mut blob = lvolstore::volume_blob(id, &name, uuid, clusters);
        blob.flags.thin = new.thin;
        blob.flags.clear_method = new.clear_method;
        let map = Arc::new(VolumeMap::new(id, &self.layout, &self.fate));
        let mut volume = Volume::new(blob, Arc::clone(&map), name.clone(), clusters);
        volume.root_dirty = true;
        map_all(&mut volume, 0..clusters.0, &places);
        self.add_volume(volume, root).await?;
        map.set_clusters(clusters);
        tracing::info!(volume = %new.name, blob = id.0, size = new.size.0, thin = new.thin, "created");
        self.volume(id).ok_or(Error::NotFound)
    }

    /// Makes a new volume durable, or forgets it.
    pub(super) async fn add_volume(
        &self,
        volume: Volume,
        root: crate::units::PageIndex,
    ) -> Result<(), Error> {
        let id = volume.blob.id;
        {
            let mut state = self.state.borrow_mut();
            state.names.insert(volume.name.clone(), id);
            state.volumes.insert(id, volume);
            state.show_externals();
        }
        self.commit([id]).await.inspect_err(|_| self.forget(id, root))
    }

    /// A volume whose first commit failed does not exist. What the medium says of it is unknown if
    /// the pool is poisoned, and nothing otherwise: there was no space.
    fn forget(&self, id: BlobId, root: crate::units::PageIndex) {
        let mut state = self.state.borrow_mut();
        let Some(volume) = state.volumes.remove(&id) else { return };
        state.names.remove(&volume.name);
        volume.map.set_flags(DELETED);
        if self.fate.error().is_none() {
            state.allocator.free_page(root);
            for run in volume.map.runs(0..volume.clusters.0) {
                let Place::Own(place) = run.place else { continue };
                let places = (place.0..place.0 + run.count.0).map(ClusterIndex);
                places.for_each(|place| state.allocator.free_cluster(place));
            }
        }
    }

    /// Deletes a volume. On return that is durable; its clusters come back soon after. A snapshot
    /// with one clone is merged into it (`merge.rs`).
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::HasClones`] if there is more than one, [`Error::ReadOnly`] if
    /// it shares a cluster or page with a volume that is no relative, [`Error::NoSpace`] if it is
    /// to be merged and there are no metadata pages, [`Error::Poisoned`], [`Error::Closed`].
    pub async fn delete_volume(&self, id: BlobId) -> Result<(), Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        self.check_delete(id)?;
        let clones = self.state.borrow().clones(id);
        if let [clone] = clones.as_slice() {
            return self.merge_into_clone(id, *clone).await;
        }
        {
            let mut state = self.state.borrow_mut();
            let volume = state.served_mut(id)?;
            volume.delete();
            volume.map.set_flags(DELETED);
            let end = volume.clusters.0;
            drop_from(volume, 0, end);
            let name = volume.name.clone();
            state.names.remove(&name);
            tracing::info!(volume = %name, blob = id.0, "deleted");
        }
        self.commit([id]).await
    }

    /// Whether a volume can be deleted.
    ///
    /// # Errors
    /// Those of [`Store::delete_volume`] that can be told before.
    pub fn check_delete(&self, id: BlobId) -> Result<(), Error> {
        self.check_alive()?;
        let state = self.state.borrow();
        if let Some(reason) = state.served(id)?.shares() {
            return Err(Error::ReadOnly { reason });
        }
        let clones = state.clones(id);
        if clones.len() > 1 {
            let name = |id| state.volumes.get(id).map(|clone| clone.name.to_string());
            return Err(Error::HasClones { names: clones.iter().filter_map(name).collect() });
        }
        Ok(())
    }

    /// Changes the size of a volume, rounded up to whole clusters. What is cut off is gone; what is
    /// added reads as zeros. On return it is durable.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ReadOnly`], [`Error::TooLarge`], [`Error::NoSpace`] (the size
    /// stays), [`Error::Device`], [`Error::Poisoned`], [`Error::Closed`].
    pub async fn resize_volume(&self, id: BlobId, size: ByteCount) -> Result<(), Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        let wanted = self.clusters_for(size)?;
        let (now, thin) = {
            let state = self.state.borrow();
            let volume = state.served(id)?;
            volume.check_change()?;
            (volume.clusters, volume.blob.flags.thin)
        };
        match wanted.cmp(&now) {
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Less => return self.shrink(id, wanted).await,
            std::cmp::Ordering::Greater => {
                let added: Vec<_> = match thin {
                    true => self.shown_behind(id, now, wanted)?,
                    false => (now.0..wanted.0).collect(),
                };
                let places = self.take_zeroed(added.len() as u32).await?;
                self.grow(id, wanted, &added, &places)?;
            }
        }
        self.commit_or_undo(id, |state| {
            let Some(volume) = state.volumes.get_mut(&id) else { return };
            volume.map.change();
            // What was taken for the new end goes back with the next commit.
            drop_from(volume, now.0, wanted.0);
            volume.clusters = now;
        })
        .await?;
        self.state.borrow().served(id)?.map.set_clusters(wanted);
        tracing::info!(blob = id.0, clusters = wanted.0, "resized");
        Ok(())
    }

    async fn shrink(&self, id: BlobId, wanted: ClusterCount) -> Result<(), Error> {
        let (map, before, cut) = {
            let mut state = self.state.borrow_mut();
            let volume = state.served_mut(id)?;
            let (map, before) = (Arc::clone(&volume.map), volume.clusters);
            let cut: Vec<_> = map.runs(wanted.0..before.0).collect();
            map.change();
            map.set_clusters(wanted);
            volume.clusters = wanted;
            drop_from(volume, wanted.0, before.0);
            volume.root_dirty = true;
            let last = last_slot(volume);
            volume.dirty.extend(last);
            (map, before, cut)
        };
        self.commit_or_undo(id, |state| {
            let Some(volume) = state.volumes.get_mut(&id) else { return };
            let mut kept = HashSet::new();
            for run in &cut {
                map.set_run(run.first, run.count, run.place);
                if let Place::Own(place) = run.place {
                    kept.extend(place.0..place.0 + run.count.0);
                }
            }
            volume.dropped.retain(|cluster| !kept.contains(&cluster.0));
            map.change();
            volume.clusters = before;
            map.set_clusters(before);
        })
        .await?;
        tracing::info!(blob = id.0, clusters = wanted.0, "resized");
        Ok(())
    }

    /// Commits what was changed in memory of a volume whose root is dirty, and calls `undo` if there
    /// is no room for that: an operation that fails has changed nothing. The caller has the
    /// operations' lock.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Poisoned`].
    pub(super) async fn commit_or_undo(
        &self,
        id: BlobId,
        undo: impl FnOnce(&mut State),
    ) -> Result<(), Error> {
        let committed = self.commit([id]).await;
        if !matches!(committed, Err(Error::NoSpace { .. })) {
            return committed;
        }
        let mut state = self.state.borrow_mut();
        // A commit that another one asked for can have found room meanwhile.
        if state.volumes.get(&id).is_none_or(|volume| !volume.root_dirty) {
            return Ok(());
        }
        undo(&mut state);
        if let Some(volume) = state.volumes.get_mut(&id) {
            volume.root_dirty = true;
            volume.read_wishes();
            volume.show_flags();
        }
        state.show_externals();
        committed
    }

    /// Changes what only the root says of a blob, and makes it durable; or undoes it if there is no
    /// room. The caller has the operations' lock.
    async fn change_root(
        &self,
        id: BlobId,
        change: impl FnOnce(&mut Blob) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (flags, xattrs) = {
            let mut state = self.state.borrow_mut();
            let volume = state.volumes.get_mut(&id).ok_or(Error::NotFound)?;
            let before = (volume.blob.flags, volume.blob.xattrs.clone());
            change(&mut volume.blob)?;
            volume.root_dirty = true;
            volume.show_flags();
            before
        };
        self.commit_or_undo(id, |state| {
            let Some(volume) = state.volumes.get_mut(&id) else { return };
            (volume.blob.flags, volume.blob.xattrs) = (flags, xattrs);
        })
        .await
    }

    /// Clusters behind the end of a clone where its parent would show: they get zeros.
    fn shown_behind(
        &self,
        id: BlobId,
        now: ClusterCount,
        wanted: ClusterCount,
    ) -> Result<Vec<u32>, Error> {
        let state = self.state.borrow();
        let volume = state.served(id)?;
        let external = self.external_clusters(&volume.map).0;
        let parent = volume.blob.parent().and_then(|parent| state.volumes.get(&parent));
        let parent_end = parent.map_or(0, |parent| parent.clusters.0);
        let shows = |at: &u32| {
            let shown = |parent: &Volume| parent.map.get(VolumeCluster(*at)) != Place::None;
            *at < external || (*at < parent_end && parent.is_some_and(shown))
        };
        Ok((now.0..wanted.0.min(parent_end.max(external))).filter(shows).collect())
    }

    fn grow(
        &self,
        id: BlobId,
        wanted: ClusterCount,
        added: &[u32],
        places: &[ClusterIndex],
    ) -> Result<(), Error> {
        let mut state = self.state.borrow_mut();
        let volume = match state.served_mut(id) {
            Ok(volume) => volume,
            Err(error) => {
                places.iter().for_each(|place| state.allocator.free_cluster(*place));
                return Err(error);
            }
        };
        // The old last extent page gets more entries.
        let last = last_slot(volume);
        volume.dirty.extend(last);
        volume.map.change();
        volume.clusters = wanted;
        volume.root_dirty = true;
        map_all(volume, added.iter().copied(), places);
        Ok(())
    }

    /// Gives a volume another name; a snapshot, too. On return it is durable.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Exists`], [`Error::InvalidName`], [`Error::ReadOnly`] if it
    /// cannot be changed for another reason than being marked so, [`Error::NoSpace`] (it keeps its
    /// name), [`Error::Poisoned`], [`Error::Closed`].
    pub async fn rename_volume(&self, id: BlobId, name: &str) -> Result<(), Error> {
        let _one_at_a_time = self.operations.lock().await;
        let name = VolumeName::new(name)?;
        self.check_rename(id)?;
        if self.state.borrow().served(id)?.name == name {
            return Ok(());
        }
        let name = self.free_name(name.as_str())?;
        let old = self.change_name(id, &name).await?;
        tracing::info!(from = %old, to = %name, blob = id.0, "renamed");
        Ok(())
    }

    /// Whether a volume can get another name.
    ///
    /// # Errors
    /// Those of [`Store::rename_volume`] that can be told before.
    pub fn check_rename(&self, id: BlobId) -> Result<(), Error> {
        self.check_alive()?;
        self.state.borrow().served(id)?.check_rename()
    }

    /// Gives the pool another name. On return it is durable.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::NoSpace`] (it keeps its name), [`Error::Poisoned`],
    /// [`Error::Closed`].
    pub async fn rename(&self, name: &str) -> Result<(), Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        let name = VolumeName::new(name)?;
        let id = self.state.borrow().own_blob;
        self.change_name(id, &name).await.map(drop)
    }

    /// Renames a volume or the pool itself; its name before.
    async fn change_name(&self, id: BlobId, name: &VolumeName) -> Result<VolumeName, Error> {
        let (old, xattrs) = self.state.borrow_mut().give_name(id, name)?;
        self.commit_or_undo(id, |state| {
            // An error: it is gone, and its name with it.
            let _named = state.give_name(id, &old);
            if let Some(volume) = state.volumes.get_mut(&id) {
                // To the byte: others pad names.
                volume.blob.xattrs = xattrs;
            }
        })
        .await?;
        Ok(old)
    }

    /// Makes a volume read-only, for good. On return it is durable.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NoSpace`] (it can still be written), [`Error::Poisoned`],
    /// [`Error::Closed`].
    pub async fn set_read_only(&self, id: BlobId) -> Result<(), Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        {
            let state = self.state.borrow();
            if state.served(id)?.blob.flags.read_only {
                return Ok(());
            }
        }
        self.change_root(id, |blob| {
            blob.flags.read_only = true;
            Ok(())
        })
        .await
    }

    /// Says what happens to clusters that a volume gives up from now on. On return it is durable.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ReadOnly`], [`Error::NoSpace`], [`Error::Poisoned`],
    /// [`Error::Closed`].
    pub async fn set_clear_method(&self, id: BlobId, method: ClearMethod) -> Result<(), Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        {
            let state = self.state.borrow();
            let volume = state.served(id)?;
            volume.check_change()?;
            if volume.blob.flags.clear_method == method {
                return Ok(());
            }
        }
        self.change_root(id, |blob| {
            blob.flags.clear_method = method;
            Ok(())
        })
        .await
    }

    /// The attributes of a volume, but not those of the lvolstore itself.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn xattrs(&self, id: BlobId) -> Result<Vec<Xattr>, Error> {
        let state = self.state.borrow();
        let xattrs = state.served(id)?.blob.xattrs.iter();
        let others = xattrs.filter(|xattr| !RESERVED.contains(&xattr.name.as_slice()));
        Ok(others.cloned().collect())
    }

    /// Sets an attribute of a volume. On return it is durable.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ReservedAttribute`], [`Error::InvalidAttribute`],
    /// [`Error::ReadOnly`], [`Error::NoSpace`], [`Error::Poisoned`], [`Error::Closed`].
    pub async fn set_xattr(&self, id: BlobId, name: &[u8], value: &[u8]) -> Result<(), Error> {
        self.change_xattrs(id, name, |xattrs| Ok(xattrs.set(name, value)?)).await
    }

    /// Removes an attribute of a volume. On return that is durable.
    ///
    /// # Errors
    /// As for [`Store::set_xattr`], and [`Error::NoAttribute`].
    pub async fn remove_xattr(&self, id: BlobId, name: &[u8]) -> Result<(), Error> {
        let remove = |xattrs: &mut Xattrs| {
            if xattrs.remove(name) { Ok(()) } else { Err(Error::NoAttribute) }
        };
        self.change_xattrs(id, name, remove).await
    }

    async fn change_xattrs(
        &self,
        id: BlobId,
        name: &[u8],
        change: impl FnOnce(&mut Xattrs) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        if RESERVED.contains(&name) {
            return Err(Error::ReservedAttribute);
        }
        self.state.borrow().served(id)?.check_change()?;
        self.change_root(id, |blob| change(&mut blob.xattrs)).await
    }

    pub(super) fn free_name(&self, name: &str) -> Result<VolumeName, Error> {
        let valid = VolumeName::new(name)?;
        let state = self.state.borrow();
        // One in quarantine may come back.
        let mut quarantined = state.quarantined.iter();
        let is_kept = quarantined.any(|found| found.name.as_deref() == Some(name));
        if is_kept || state.names.contains_key(&valid) {
            return Err(Error::Exists { name: name.to_owned() });
        }
        Ok(valid)
    }

    pub(super) fn clusters_for(&self, size: ByteCount) -> Result<ClusterCount, Error> {
        let limit = self.layout.bytes_of(ClusterCount(VOLUME_CLUSTERS_LIMIT));
        let clusters = self.layout.clusters_for(size);
        let fits = clusters.filter(|clusters| clusters.0 <= VOLUME_CLUSTERS_LIMIT);
        fits.ok_or(Error::TooLarge { size, limit })
    }

    /// Takes clusters and zeroes them: all or none.
    async fn take_zeroed(&self, count: u32) -> Result<Vec<ClusterIndex>, Error> {
        let mut places = Vec::new();
        let result = self.take_and_zero(count, &mut places).await;
        if let Err(error) = result {
            let mut state = self.state.borrow_mut();
            match error {
                // The outcome of the zeroing is unknown: it may still happen.
                Error::Device(BlockError::NoAnswer { .. }) => state.lost.append(&mut places),
                _ => places.into_iter().for_each(|place| state.allocator.free_cluster(place)),
            }
            return Err(error);
        }
        Ok(places)
    }

    async fn take_and_zero(&self, count: u32, places: &mut Vec<ClusterIndex>) -> Result<(), Error> {
        for _ in 0..count {
            places.push(self.take_cluster_for(None).await?);
        }
        let bytes = u64::from(count) * self.layout.cluster_size().0;
        self.count(|counters| {
            counters.bytes_zeroed += bytes;
            counters.clusters_allocated += u64::from(count);
        });
        Ok(self.io.zero(&self.joined_clusters(places.clone())).await?)
    }
}

impl State {
    /// Renames a volume or the pool itself in memory; its name and attributes before.
    fn give_name(&mut self, id: BlobId, name: &VolumeName) -> Result<(VolumeName, Xattrs), Error> {
        let served = self.is_served(id);
        let volume = self.volumes.get_mut(&id).ok_or(Error::NotFound)?;
        let xattrs = volume.blob.xattrs.clone();
        lvolstore::rename(&mut volume.blob.xattrs, name);
        volume.root_dirty = true;
        let old = std::mem::replace(&mut volume.name, name.clone());
        if served {
            self.names.remove(&old);
            self.names.insert(name.clone(), id);
        }
        Ok((old, xattrs))
    }
}

/// Gives clusters of a volume their places.
pub(super) fn map_all(
    volume: &mut Volume,
    clusters: impl Iterator<Item = u32>,
    places: &[ClusterIndex],
) {
    for (cluster, place) in clusters.map(VolumeCluster).zip(places) {
        volume.map.set(cluster, Place::Own(*place));
        volume.touch(cluster);
    }
}

/// Takes the places of clusters away; an extent table forgets those beyond its end by itself.
pub(super) fn drop_from(volume: &mut Volume, first: u32, end: u32) {
    volume.unmap(first..end);
    if matches!(volume.blob.mapping, Mapping::Rle(_)) {
        volume.root_dirty = true;
    }
}
