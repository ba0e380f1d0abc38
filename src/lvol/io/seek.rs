//! Where a volume has data, and where it has holes.

use crate::block::BlockDevice;
use crate::units::{ByteOffset, VolumeCluster};

use super::VolumeIo;

impl<D: BlockDevice> VolumeIo<D> {
    /// The first byte at or after `offset` that is allocated, here or in a parent.
    #[must_use]
    pub fn next_data(&self, offset: ByteOffset) -> Option<ByteOffset> {
        self.next(offset, true)
    }

    /// The first byte at or after `offset` that is not allocated; the end of the volume counts.
    #[must_use]
    pub fn next_hole(&self, offset: ByteOffset) -> Option<ByteOffset> {
        let size = self.size().0;
        let found = self.next(offset, false);
        found.or_else(|| (offset.0 < size).then_some(ByteOffset(size)))
    }

    fn next(&self, offset: ByteOffset, placed: bool) -> Option<ByteOffset> {
        let (size, end) = (self.map.cluster_size().0, self.map.clusters().0);
        if self.map.external().is_some() {
            // What is outside of the pool counts as data, whatever it is.
            return (placed && offset.0 < u64::from(end) * size).then_some(offset);
        }
        let first = u32::try_from(offset.0 / size).ok()?;
        let found = self.map.find(VolumeCluster(first), end, placed)?;
        Some(ByteOffset(offset.0.max(u64::from(found.0) * size)))
    }
}
