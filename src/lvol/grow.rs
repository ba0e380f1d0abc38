//! Growing with the device. In order:
//!
//! 1. The super block on the medium says "not clean": by a commit, so that no other commit is about
//!    to write it. FLUSH. From here on only this writes it, until the pool is closed.
//! 2. The super block is written with the new size and the longer bitmap. FLUSH. A crash before
//!    leaves the old size, a crash after it the new one; either is recovered from the metadata
//!    pages, and no volume has a cluster of what was gained. (The super block is atomic where the
//!    device's atomic unit is at least 4096 bytes; elsewhere the journal restores it.)
//! 3. Memory says it, too: the new clusters can be given to volumes.
//!
//! The bitmap grows into the room that lies behind it since the pool was made; where that ends, so
//! does growth. I/O goes on all the time.

use std::cell::OnceCell;
use std::ops::Deref;

use crate::block::BlockDevice;
use crate::units::{ByteCount, ClusterCount};

use super::error::Error;
use super::format::Layout;
use super::metadata_io::medium;
use super::store::Store;
use super::volume_map::STORE_CLUSTERS_LIMIT;

/// The layout of a store as it is now. What was read of an older one stays true, for a store only
/// grows; so older ones are kept, and a reference to one stays good.
pub(super) struct GrowingLayout {
    layout: Layout,
    grown: OnceCell<Box<Self>>,
}

impl From<Layout> for GrowingLayout {
    fn from(layout: Layout) -> Self {
        Self { layout, grown: OnceCell::new() }
    }
}

impl GrowingLayout {
    fn last(&self) -> &Self {
        let mut last = self;
        while let Some(grown) = last.grown.get() {
            last = grown;
        }
        last
    }

    fn extend(&self, layout: Layout) {
        self.last().grown.get_or_init(|| Box::new(layout.into()));
    }
}

impl Deref for GrowingLayout {
    type Target = Layout;

    fn deref(&self) -> &Layout {
        &self.last().layout
    }
}

impl<D: BlockDevice> Store<D> {
    /// Takes in what the device has gained. On return it is durable. How many clusters the pool
    /// has now, and had before; the same if the device has not gained a cluster.
    ///
    /// # Errors
    /// [`Error::Layout`] if the bitmaps have no room for so many clusters, or the device has become
    /// smaller; [`Error::TooManyClusters`], [`Error::Poisoned`], [`Error::Closed`].
    pub async fn grow_with_device(&self) -> Result<(ClusterCount, ClusterCount), Error> {
        let _one_at_a_time = self.operations.lock().await;
        self.check_alive()?;
        let before = self.layout.data_clusters();
        let grown = self.layout.grow(medium(self.io.device().geometry()))?;
        if grown.clusters() == self.layout.clusters() {
            return Ok((before, before));
        }
        let (clusters, limit) = (grown.clusters().0, STORE_CLUSTERS_LIMIT);
        if clusters > limit {
            return Err(Error::TooManyClusters { clusters, limit });
        }
        self.commit_not_clean().await?; // 1
        let mut super_block = self.state.borrow().super_block.clone();
        super_block.set_layout(grown.clone());
        self.write_super_block(&super_block).await?; // 2
        {
            let mut state = self.state.borrow_mut();
            state.super_block = super_block;
            state.allocator.grow(grown.clusters()); // 3
        }
        let now = grown.data_clusters();
        self.layout.extend(grown);
        self.scale_low_water(before, now);
        let size = ByteCount(self.layout.size().0);
        tracing::info!(from = before.0, to = now.0, size = size.0, "the pool has grown");
        Ok((now, before))
    }

    /// Commits the store's own blob, if the medium says clean: nothing of it has changed, but
    /// every commit marks the store first.
    async fn commit_not_clean(&self) -> Result<(), Error> {
        let own = {
            let mut state = self.state.borrow_mut();
            if !state.super_block.is_clean() {
                return Ok(());
            }
            let own = state.own_blob;
            if let Some(volume) = state.volumes.get_mut(&own) {
                volume.root_dirty = true;
            }
            own
        };
        self.commit([own]).await
    }
}
