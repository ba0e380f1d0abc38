//! Shallow copies: the clusters that a volume has of its own, and none of its parents', are written
//! to the same places of another device. With the copies of its parents there, the device then
//! reads as the volume does.
//!
//! The volume must be read-only, so that it is one moment that is copied. Nothing of the pool is
//! written. What was copied is durable on return; a crash before leaves any part of it.

use crate::block::{BlockDevice, Durability};
use crate::units::{BlobId, BlockCount, ClusterCount, Lba, VolumeCluster};

use super::error::{Error, IoFailure};
use super::store::Store;
use super::volume_map::Place;

/// Bytes of one read and one write.
const STEP: u64 = 256 << 10;

impl<D: BlockDevice> Store<D> {
    /// Whether a volume can be copied to `target`, and how many clusters that would be.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unsuitable`] if the volume is not read-only or the device is
    /// too small.
    pub fn check_shallow_copy(&self, id: BlobId, target: &D) -> Result<ClusterCount, Error> {
        let state = self.state.borrow();
        let volume = state.served(id)?;
        if !volume.blob.flags.read_only {
            return Err(Error::Unsuitable("only a read-only volume can be copied"));
        }
        if target.geometry().size() < volume.map.size() {
            return Err(Error::Unsuitable("the device is smaller than the volume"));
        }
        let block = u64::from(target.geometry().block_size.bytes());
        if !self.layout.cluster_size().0.is_multiple_of(block) {
            return Err(Error::Unsuitable("the device's blocks do not fit into a cluster"));
        }
        Ok(volume.map.allocated())
    }

    /// Copies the volume's own clusters to `target`; `copied` is told after each. On return they
    /// are durable there.
    ///
    /// # Errors
    /// As for [`Store::check_shallow_copy`]; [`Error::Device`] if the pool cannot be read,
    /// [`Error::CopyTarget`] if the target cannot be written, [`Error::NoMemory`],
    /// [`Error::Closed`].
    pub async fn shallow_copy(
        &self,
        id: BlobId,
        target: &D,
        copied: impl Fn(),
    ) -> Result<(), Error> {
        self.check_shallow_copy(id, target)?;
        let map = self.map(id)?;
        let end = map.clusters().0;
        let mut at = VolumeCluster(0);
        while let Some(cluster) = map.find(at, end, true) {
            at = VolumeCluster(cluster.0 + 1);
            let flight = self.tracker.enter();
            let done = match map.get(cluster) {
                // Looked up within the flight: it is not reused before that ends.
                Place::Own(place) => match map.check_read() {
                    Ok(()) => {
                        let from = self.cluster_stretch(place).start;
                        self.copy_cluster(from, cluster, target).await.map(|()| copied())
                    }
                    Err(error) => Err(error),
                },
                Place::Parent(_) | Place::None => Ok(()),
            };
            flight.finish();
            done?;
        }
        if target.geometry().volatile_cache {
            target.flush().await.map_err(Error::CopyTarget)?;
        }
        Ok(())
    }

    async fn copy_cluster(
        &self,
        from: Lba,
        cluster: VolumeCluster,
        target: &D,
    ) -> Result<(), Error> {
        let size = self.layout.cluster_size().0;
        let (source_shift, target_shift) =
            (self.layout.block_size().shift(), target.geometry().block_size.shift());
        let source = self.io.device();
        let most = source.geometry().max_transfer.get().min(target.geometry().max_transfer.get());
        let unit = 1_u64 << source_shift.max(target_shift);
        let step = STEP.min(most).max(unit) / unit * unit;
        let mut done = 0;
        while done < size {
            let bytes = step.min(size - done);
            let buffer = self.io.allocate(bytes as usize).await;
            let buffer = buffer.map_err(|_| Error::NoMemory { bytes })?;
            let start = Lba(from.0 + BlockCount(done >> source_shift).0);
            let read = source.read(start, buffer).await;
            let buffer = read.map_err(|failed| IoFailure::from(failed).error)?;
            let start = Lba((u64::from(cluster.0) * size + done) >> target_shift);
            let written = target.write(start, buffer, Durability::Cached).await;
            drop(written.map_err(|failed| Error::CopyTarget(failed.error))?);
            done += bytes;
        }
        Ok(())
    }
}
