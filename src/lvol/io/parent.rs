//! A volume as the parent of volumes of other pools, on one reactor.
//!
//! It holds nothing of its pool: once that is closed and its [`StoreIo`](super::StoreIo) dropped,
//! reads fail. So two pools of which each has a parent in the other can both be let go.

use std::pin::Pin;
use std::rc::Weak;
use std::sync::Arc;

use crate::block::BlockDevice;
use crate::hw::dma::DmaBuffer;
use crate::units::{BlockSize, ByteCount, ByteOffset};

use super::super::error::{Error, IoFailure, VolumeTransfer};
use super::super::external::{Depth, External};
use super::super::volume_map::VolumeMap;
use super::{Shared, VolumeIo};

/// A way to read a volume of another pool. See [`VolumeIo::as_parent`].
pub struct VolumeParent<D: BlockDevice> {
    shared: Weak<Shared<D>>,
    map: Arc<VolumeMap>,
}

impl<D: BlockDevice> Clone for VolumeParent<D> {
    fn clone(&self) -> Self {
        Self { shared: Weak::clone(&self.shared), map: Arc::clone(&self.map) }
    }
}

impl<D: BlockDevice> VolumeIo<D> {
    /// The volume as the parent of volumes of other pools, on this reactor. That nobody can write
    /// it any more, [`Store::as_external_parent`](super::Store::as_external_parent) has said.
    #[must_use]
    pub fn as_parent(&self) -> External<D> {
        let (shared, map) = (std::rc::Rc::downgrade(&self.shared), Arc::clone(&self.map));
        External::Volume(VolumeParent { shared, map })
    }
}

impl<D: BlockDevice> VolumeParent<D> {
    pub(in super::super) fn is_there(&self) -> bool {
        self.shared.strong_count() > 0 && self.map.check_read().is_ok()
    }

    pub(in super::super) fn size(&self) -> ByteCount {
        self.map.size()
    }

    pub(in super::super) fn block_size(&self) -> BlockSize {
        self.map.block_size()
    }

    /// Fills `buffer` from `offset` on, through external parents of the volume as far as `depth`
    /// reaches.
    pub(in super::super) fn read(
        &self,
        offset: ByteOffset,
        buffer: DmaBuffer,
        depth: Depth,
    ) -> Pin<Box<dyn Future<Output = VolumeTransfer>>> {
        let (shared, map) = (self.shared.upgrade(), Arc::clone(&self.map));
        Box::pin(async move {
            let Some(shared) = shared else {
                return Err(IoFailure::new(Error::ExternalParent, buffer));
            };
            let depth = match depth.below() {
                Ok(depth) => depth,
                Err(error) => return Err(IoFailure::new(error, buffer)),
            };
            let volume = VolumeIo { shared, map, interruption: None };
            let read = volume.read_through(offset, buffer, depth).await;
            read.map_err(|IoFailure { error, buffer }| IoFailure { error: outside(error), buffer })
        })
    }
}

/// An error of the other pool, which must not be taken for one of the pool that is read.
fn outside(error: Error) -> Error {
    match error {
        Error::ExternalParent
        | Error::ExternalDepth
        | Error::ExternalDevice(_)
        | Error::ExternalVolume(_)
        | Error::NoMemory { .. } => error,
        error => Error::ExternalVolume(Box::new(error)),
    }
}
