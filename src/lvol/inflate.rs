//! Making a volume independent of its parent, or dependent on another one.
//!
//! Inflating and decoupling copy cluster by cluster, as first writes do, while all I/O goes on.
//! A crash meanwhile leaves a clone that has more clusters of its own than before. When nothing is
//! left to copy, one commit of the volume's root ends it: extent pages, FLUSH, root, FLUSH.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};

use crate::block::BlockDevice;
use crate::units::{BlobId, VolumeCluster};

use super::error::{Error, Resource};
use super::format::{Blob, XattrError};
use super::snapshot::check_parent;
use super::store::{State, Store};
use super::volume_map::{Place, VolumeMap};

/// Clusters copied at once.
const COPY_DEPTH: usize = 4;
/// Clusters that are looked up at once.
const COPY_BATCH: usize = 256;
/// Rounds of copying beside other operations; after that they wait, so that it ends.
const SHARED_ROUNDS: usize = 3;

/// How a volume leaves its parent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// Every cluster becomes its own.
    Inflate,
    /// The parent's own clusters are copied; the grandparent is the parent then.
    Decouple,
}

impl<D: BlockDevice> Store<D> {
    /// Gives a volume every cluster of its size, copied from its parents or zeroed. It is thick
    /// then and has no parent. On return it is durable. I/O goes on.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ReadOnly`], [`Error::NoSpace`] (nothing is copied if it would
    /// take more than is free; if others take it meanwhile, the volume reads as before and keeps
    /// what was copied), [`Error::ExternalParent`], [`Error::Device`], [`Error::Poisoned`],
    /// [`Error::Closed`].
    pub async fn inflate_volume(&self, id: BlobId) -> Result<(), Error> {
        self.leave_parent(id, Leaving::Inflate).await
    }

    /// Copies what a volume shows of its parent; its grandparent, if there is one, is its parent
    /// then. On return it is durable. I/O goes on.
    ///
    /// # Errors
    /// As for [`Store::inflate_volume`], and [`Error::Unsuitable`] if it has no parent.
    pub async fn decouple_volume(&self, id: BlobId) -> Result<(), Error> {
        self.leave_parent(id, Leaving::Decouple).await
    }

    async fn leave_parent(&self, id: BlobId, leaving: Leaving) -> Result<(), Error> {
        let map = {
            let state = self.state.borrow();
            let volume = state.served(id)?;
            volume.check_change()?;
            let blob = &volume.blob;
            let has_parent = blob.parent().is_some() || blob.external_parent().is_some();
            if leaving == Leaving::Decouple && !has_parent {
                return Err(Error::Unsuitable("the volume has no parent"));
            }
            Arc::clone(&volume.map)
        };
        self.check_room(&map, leaving)?;
        for _ in 0..SHARED_ROUNDS {
            self.copy_all(&map, leaving).await?;
            let _one_at_a_time = self.operations.lock().await;
            self.check_alive()?;
            if self.cut_tie(&map, leaving).await? {
                return Ok(());
            }
        }
        let _one_at_a_time = self.operations.lock().await;
        loop {
            self.check_alive()?;
            self.copy_all(&map, leaving).await?;
            if self.cut_tie(&map, leaving).await? {
                return Ok(());
            }
        }
    }

    /// Whether there are the clusters that are to be copied to, those that are promised to others
    /// left out: what cannot end takes nothing from others.
    fn check_room(&self, map: &Arc<VolumeMap>, leaving: Leaving) -> Result<(), Error> {
        let mut state = self.state.borrow_mut();
        let wanted = state.missing_places(map, leaving, VolumeCluster(0), usize::MAX)?.len();
        let free = state.free_clusters().0.saturating_add(self.reclaims.clusters());
        let free = free.saturating_sub(state.promised(Some(map.blob())));
        if wanted > free as usize {
            return Err(Error::NoSpace { what: Resource::Cluster });
        }
        Ok(())
    }

    /// Makes it durable that the volume has left its parent, if nothing is left to copy. Writers
    /// wait meanwhile: what one of them gave up while no parent showed would show the parent again
    /// if there was no room for the commit.
    async fn cut_tie(&self, map: &Arc<VolumeMap>, leaving: Leaving) -> Result<bool, Error> {
        let id = map.blob();
        let frozen = self.freeze(map).await?;
        let (internal, flags) = {
            let state = self.state.borrow();
            let blob = &state.served(id)?.blob;
            (blob.internal.clone(), blob.flags)
        };
        if !self.left(map, leaving)? {
            return Ok(false);
        }
        self.commit_or_undo(id, |state| {
            let Some(volume) = state.volumes.get_mut(&id) else { return };
            (volume.blob.internal, volume.blob.flags) = (internal, flags);
        })
        .await?;
        drop(frozen);
        tracing::info!(blob = id.0, "left its parent");
        Ok(true)
    }

    /// Copies what there is to copy.
    async fn copy_all(&self, map: &Arc<VolumeMap>, leaving: Leaving) -> Result<(), Error> {
        let mut at = VolumeCluster(0);
        loop {
            let batch = self.state.borrow_mut().missing_places(map, leaving, at, COPY_BATCH)?;
            let Some(last) = batch.last().copied() else { return Ok(()) };
            let copies = batch.into_iter().map(|cluster| self.place_copy(map, cluster));
            // All run to their end, whatever becomes of one of them.
            let results: Vec<_> = stream::iter(copies).buffer_unordered(COPY_DEPTH).collect().await;
            results.into_iter().collect::<Result<(), _>>()?;
            at = VolumeCluster(last.0 + 1);
        }
    }

    /// Cuts the tie in memory if nothing is left to copy.
    fn left(&self, map: &Arc<VolumeMap>, leaving: Leaving) -> Result<bool, Error> {
        let mut state = self.state.borrow_mut();
        if !state.missing_places(map, leaving, VolumeCluster(0), 1)?.is_empty() {
            return Ok(false);
        }
        let parent = state.of_map(map)?.blob.parent();
        let parent = parent.and_then(|parent| state.volumes.get(&parent));
        let (grandparent, external) = match (leaving, parent) {
            (Leaving::Decouple, Some(parent)) => {
                (parent.blob.parent(), parent.blob.external_parent().map(<[u8]>::to_vec))
            }
            _ => (None, None),
        };
        let volume = state.of_map(map)?;
        volume.check_change()?;
        volume.map.change();
        volume.blob.set_parent(grandparent);
        volume.blob.set_external_parent(external.as_deref())?;
        if leaving == Leaving::Inflate {
            volume.blob.flags.thin = false;
        }
        volume.root_dirty = true;
        volume.show_flags();
        state.show_externals();
        Ok(true)
    }

    /// Makes a thin volume a clone of a snapshot of the same size: what the volume has of its own
    /// stays, everything else reads as the snapshot does. On return it is durable.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ReadOnly`], [`Error::Unsuitable`], [`Error::NoSpace`],
    /// [`Error::Busy`], [`Error::Poisoned`], [`Error::Closed`].
    pub async fn set_parent(&self, id: BlobId, parent: BlobId) -> Result<(), Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        let (map, shown) = {
            let state = self.state.borrow();
            let (volume, parent) = (state.served(id)?, state.served(parent)?);
            volume.check_change()?;
            check_parent(parent)?;
            if !volume.blob.flags.thin {
                return Err(Error::Unsuitable("a thick volume cannot have a parent"));
            }
            if volume.clusters != parent.clusters {
                return Err(Error::Unsuitable("volume and snapshot differ in size"));
            }
            (Arc::clone(&volume.map), Arc::clone(&parent.map))
        };
        let change = |blob: &mut Blob| {
            blob.set_external_parent(None)?;
            blob.set_parent(Some(parent));
            Ok(())
        };
        self.change_parent(&map, Some(&shown), change).await?;
        tracing::info!(blob = id.0, parent = parent.0, "has another parent");
        Ok(())
    }

    /// Gives a volume the parent that `change` puts into its blob; `shown` is the map of a parent
    /// in the pool.
    ///
    /// 1. Writes to the volume wait.
    /// 2. The blob names the new parent, and is committed. A crash before its root is durable
    ///    leaves the old parent, and so does an error.
    /// 3. The map shows the new parent; writes go on.
    pub(super) async fn change_parent(
        &self,
        map: &Arc<VolumeMap>,
        shown: Option<&VolumeMap>,
        change: impl FnOnce(&mut Blob) -> Result<(), XattrError>,
    ) -> Result<(), Error> {
        let id = map.blob();
        let frozen = self.freeze(map).await?;
        let (before, changed) = {
            let mut state = self.state.borrow_mut();
            let volume = state.served_mut(id)?;
            let before = (volume.blob.internal.clone(), volume.blob.flags);
            let changed = change(&mut volume.blob).map_err(Error::from);
            volume.root_dirty |= changed.is_ok();
            (before, changed)
        };
        let committed = match changed {
            Ok(()) => self.commit([id]).await,
            Err(error) => Err(error),
        };
        if let Err(error) = committed {
            if let Ok(volume) = self.state.borrow_mut().served_mut(id) {
                (volume.blob.internal, volume.blob.flags) = before;
            }
            return Err(error);
        }
        map.change();
        self.state.borrow_mut().show_externals();
        map.show_parent(shown, map.clusters().0);
        map.set_durable(map.version());
        drop(frozen);
        Ok(())
    }
}

impl State {
    /// The first clusters from `from` on that must be copied before the volume can leave its parent.
    fn missing_places(
        &mut self,
        map: &Arc<VolumeMap>,
        leaving: Leaving,
        from: VolumeCluster,
        limit: usize,
    ) -> Result<Vec<VolumeCluster>, Error> {
        let volume = self.of_map(map)?;
        let (end, parent) = (volume.clusters.0, volume.blob.parent());
        let external = volume.blob.external_parent().is_some();
        let volume = self.served(map.blob())?;
        let parent = parent.and_then(|parent| self.volumes.get(&parent));
        let grandparent = parent.and_then(|parent| parent.blob.parent());
        let grandparent = grandparent.and_then(|grandparent| self.volumes.get(&grandparent));
        let wanted = |cluster: VolumeCluster| match (leaving, volume.map.get(cluster)) {
            (_, Place::Own(_)) => false,
            (Leaving::Inflate, _) => true,
            (Leaving::Decouple, Place::Parent(place)) => {
                parent.is_some_and(|parent| parent.map.get(cluster) == Place::Own(place))
            }
            // All that shows of a parent outside of the pool is its own.
            (Leaving::Decouple, Place::None) if external => true,
            // What the parent hides of the grandparent stays hidden.
            (Leaving::Decouple, Place::None) => grandparent.is_some_and(|grandparent| {
                cluster.0 < grandparent.clusters.0 && grandparent.map.get(cluster) != Place::None
            }),
        };
        let clusters = (from.0..end).map(VolumeCluster);
        Ok(clusters.filter(|cluster| wanted(*cluster)).take(limit).collect())
    }
}
