//! Deleting a snapshot that has one clone: what the clone shows of it becomes the clone's own. In
//! order, as SPDK does it, so that either implementation ends what the other one began:
//!
//! 1. What the snapshot hides of its own parent, and the clone must not show, is hidden by the
//!    clone.
//! 2. The snapshot's root is written with SNAPRM, which names the clone. FLUSH. A crash from here
//!    on leaves a snapshot that opening keeps, without the mark.
//! 3. The snapshot cannot be found any more, and the clone's writers are held back (`freeze.rs`):
//!    a cluster must not be written in place while it may still be the snapshot's.
//! 4. What the clone had mapped is committed.
//! 5. The clone gets the snapshot's clusters that it shows, and the snapshot's parent: fresh extent
//!    pages, FLUSH, root, FLUSH. From here on opening deletes the snapshot, but nothing of what
//!    the clone has.
//! 6. Writers go on.
//! 7. The snapshot's root is zeroed. FLUSH. The clusters that only it had are free then.

use std::sync::Arc;

use crate::block::BlockDevice;
use crate::units::{BlobId, ClusterIndex, VolumeCluster};

use super::error::Error;
use super::operations::drop_from;
use super::store::{State, Store};
use super::volume_map::{DELETED, Place, PlacedRun, VolumeMap};

impl<D: BlockDevice> Store<D> {
    /// Deletes a snapshot; the caller has the operations' lock, and knows that `clone` is its only
    /// clone.
    pub(super) async fn merge_into_clone(&self, id: BlobId, clone: BlobId) -> Result<(), Error> {
        let map = {
            let state = self.state.borrow();
            let volume = state.served(clone)?;
            if let Some(reason) = volume.shares() {
                return Err(Error::ReadOnly { reason });
            }
            Arc::clone(&volume.map)
        };
        let grandparent = self.state.borrow().served(id)?.blob.parent();
        self.hide_from(&map, grandparent).await?; // 1
        self.mark(id, Some(clone));
        let marked = self.commit([id]).await; // 2
        let merged = match marked {
            Ok(()) => self.move_to_clone(id, &map).await,
            Err(error) => Err(error),
        };
        if let Err(error) = merged {
            // Nothing has changed hands. The mark may stay on the medium: opening removes it.
            self.mark(id, None);
            return Err(error);
        }
        {
            let mut state = self.state.borrow_mut();
            let Some(volume) = state.volumes.get_mut(&id) else { return Err(Error::NotFound) };
            volume.delete();
            let end = volume.clusters.0;
            drop_from(volume, 0, end);
            let name = volume.name.clone();
            state.names.remove(&name);
            tracing::info!(snapshot = %name, blob = id.0, clone = clone.0, "merged into its clone");
        }
        self.commit([id]).await // 7
    }

    fn mark(&self, id: BlobId, clone: Option<BlobId>) {
        if let Some(volume) = self.state.borrow_mut().volumes.get_mut(&id) {
            volume.blob.set_deleting_for(clone);
            volume.root_dirty = true;
        }
    }

    async fn move_to_clone(&self, id: BlobId, map: &Arc<VolumeMap>) -> Result<(), Error> {
        let snapshot = Arc::clone(&self.state.borrow().served(id)?.map);
        snapshot.set_flags(DELETED);
        let moved = self.move_frozen(id, map).await;
        if moved.is_err() {
            snapshot.clear_flags(DELETED);
        }
        moved
    }

    async fn move_frozen(&self, id: BlobId, map: &Arc<VolumeMap>) -> Result<(), Error> {
        let clone = map.blob();
        let frozen = self.freeze(map).await?; // 3
        self.commit_dirty(clone).await?; // 4
        let (before, moved) = {
            let mut state = self.state.borrow_mut();
            let before = state.served(clone)?.blob.clone();
            (before, state.move_places(id, clone)?)
        };
        if let Err(error) = self.commit([clone]).await {
            if self.fate.error().is_none() {
                self.state.borrow_mut().move_back(id, clone, &moved);
                let mut state = self.state.borrow_mut();
                if let Ok(volume) = state.served_mut(clone) {
                    volume.blob = before;
                }
                state.show_externals();
            }
            return Err(error); // 5
        }
        drop(frozen); // 6
        Ok(())
    }

    /// Gives a volume zeros of its own where it shows nothing and `parent`, as its parent, would
    /// show something.
    pub(super) async fn hide_from(
        &self,
        map: &Arc<VolumeMap>,
        parent: Option<BlobId>,
    ) -> Result<(), Error> {
        let exposed = self.state.borrow().exposed(map, parent);
        for cluster in exposed {
            self.place_zeros(map, cluster).await?;
        }
        Ok(())
    }
}

impl State {
    /// The clusters where a volume shows nothing and `parent`, as its parent, would show something.
    pub(super) fn exposed(&self, map: &VolumeMap, parent: Option<BlobId>) -> Vec<VolumeCluster> {
        let Some(parent) = parent.and_then(|parent| self.volumes.get(&parent)) else {
            return Vec::new();
        };
        let end = map.clusters().0.min(parent.clusters.0);
        let shown = parent.map.runs(0..end);
        let holes = shown.flat_map(|run| map.holes(run.first.0..run.end()));
        holes.flatten().map(VolumeCluster).collect()
    }

    /// In memory, what the clone shows of the snapshot becomes its own.
    fn move_places(&mut self, id: BlobId, clone: BlobId) -> Result<Vec<PlacedRun>, Error> {
        let snapshot = self.served(id)?;
        let (from, parent) = (Arc::clone(&snapshot.map), snapshot.blob.parent());
        let external = snapshot.blob.external_parent().map(<[u8]>::to_vec);
        let snapshot_end = snapshot.clusters.0;
        let volume = self.served_mut(clone)?;
        let mut moved = Vec::new();
        volume.map.change();
        let end = volume.clusters.0.min(snapshot_end);
        for run in volume.map.runs(0..end) {
            let Place::Parent(place) = run.place else { continue };
            // What the clone shows as one run can be more than one owner's.
            for own in from.runs(run.first.0..run.end()) {
                let offset = own.first.0 - run.first.0;
                if own.place == Place::Own(ClusterIndex(place.0 + offset)) {
                    moved.push(own);
                }
            }
        }
        for own in &moved {
            volume.map.set_run(own.first, own.count, own.place);
            volume.touch(own.first);
            from.set_run(own.first, own.count, Place::None);
        }
        volume.blob.set_parent(parent);
        volume.blob.set_external_parent(external.as_deref())?;
        volume.root_dirty = true;
        self.show_externals();
        Ok(moved)
    }

    fn move_back(&mut self, id: BlobId, clone: BlobId, moved: &[PlacedRun]) {
        let Some(from) = self.volumes.get(&id).map(|snapshot| Arc::clone(&snapshot.map)) else {
            return;
        };
        let Some(volume) = self.volumes.get_mut(&clone) else { return };
        for own in moved {
            from.set_run(own.first, own.count, own.place);
            if let Place::Own(place) = own.place {
                volume.map.set_run(own.first, own.count, Place::Parent(place));
            }
        }
    }
}
