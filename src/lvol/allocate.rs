//! The owner's part of volume I/O: the first write to a cluster, and taking clusters away.
//!
//! A first write, in order:
//!
//! 1. A free cluster is taken, in memory only. Others who want to write the same cluster of the
//!    volume wait.
//! 2. The data is written to it, and around the data zeros or, for a clone, what the parent has.
//! 3. When all of it has completed, the map names the cluster and its extent page is dirty: from
//!    here on everybody reads and writes it in place. The next commit makes that durable.
//!
//! So no volume ever shows what a cluster held before. If anything fails, the map stays as it was
//! and the cluster is free again, unless the device may still write to it.

use std::sync::Arc;

use futures_channel::oneshot;
use futures_util::future::join3;

use crate::block::{BlockDevice, BlockError, Durability};
use crate::hw::dma::DmaBuffer;
use crate::units::{BlockCount, ClusterIndex, Lba, VolumeCluster};

use super::error::{Error, IoFailure, Resource, VolumeTransfer};
use super::external::Shown;
use super::interruption::Interruption;
use super::metadata_io::Stretch;
use super::space::Patience;
use super::store::Store;
use super::volume_map::{Place, VolumeMap};

/// Bytes copied from a parent by one read and one write.
const COPY_STEP: usize = 256 << 10;

/// What a cluster holds beside the data of its first write.
#[derive(Clone)]
enum Background {
    Zeros,
    /// Zeros that are there already.
    Done,
    Parent(ClusterIndex),
    /// What a device outside of the pool has at this byte of the volume.
    External(Arc<Shown>, u64),
}

/// The right to give a cluster of a volume its place. Dropping it wakes those who wait for it.
struct Allocation<'a, D: BlockDevice> {
    store: &'a Store<D>,
    map: Arc<VolumeMap>,
    cluster: VolumeCluster,
}

impl<D: BlockDevice> Drop for Allocation<'_, D> {
    fn drop(&mut self) {
        // Dropping the senders wakes those who wait. An error: the volume is gone, and with it they.
        let mut state = self.store.state.borrow_mut();
        let volume = state.of_map(&self.map);
        drop(volume.map(|volume| volume.allocating.remove(&self.cluster)));
    }
}

/// What a write to a cluster has to do.
enum Begun<'a, D: BlockDevice> {
    /// Write in place.
    Placed(ClusterIndex),
    /// Give it a place first.
    Place(Allocation<'a, D>, Background),
}

/// As [`Begun`], with the cluster that a first write goes to.
enum Ready<'a, D: BlockDevice> {
    Placed(ClusterIndex),
    Place(Allocation<'a, D>, Background, ClusterIndex),
}

impl<D: BlockDevice> Store<D> {
    /// Writes `buffer` into one cluster, `block` blocks from its start, giving it a place first if
    /// it has none of its own.
    pub(super) async fn write_cluster(
        &self,
        map: Arc<VolumeMap>,
        cluster: VolumeCluster,
        block: BlockCount,
        buffer: DmaBuffer,
        patience: Patience,
    ) -> VolumeTransfer {
        match self.begin_with_space(&map, cluster, patience).await {
            Err(error) => Err(IoFailure::new(error, buffer)),
            Ok(Ready::Placed(place)) => {
                let flight = self.tracker.enter();
                let written = self.write_data(place, block, buffer).await;
                flight.finish();
                written
            }
            Ok(Ready::Place(allocation, background, place)) => {
                let flight = self.tracker.enter();
                let written = match background {
                    Background::Done => self.write_data(place, block, buffer).await.map(Some),
                    // Boxed, as what waits for space: the future of the usual way stays small.
                    _ => Box::pin(self.fill(place, background, Some((block, buffer)))).await,
                };
                let installed = self.install(&map, cluster, place, written);
                flight.finish();
                drop(allocation);
                match installed? {
                    Some(buffer) => Ok(buffer),
                    None => unreachable!("a fill gives back the buffer it was given"),
                }
            }
        }
    }

    async fn write_data(
        &self,
        place: ClusterIndex,
        block: BlockCount,
        buffer: DmaBuffer,
    ) -> VolumeTransfer {
        let start = Lba(self.cluster_stretch(place).start.0 + block.0);
        Ok(self.io.device().write(start, buffer, Durability::Cached).await?)
    }

    /// Gives clusters without a place one that reads as zeros; stops at the first failure.
    pub(super) async fn allocate_clusters(
        &self,
        map: Arc<VolumeMap>,
        clusters: std::ops::Range<u32>,
        interruption: Option<Interruption>,
    ) -> Result<(), Error> {
        let mut at = VolumeCluster(clusters.start);
        while let Some(cluster) = map.find(at, clusters.end, false) {
            let patience = Patience::from(interruption.clone());
            self.place_whole(&map, cluster, patience, |shown| shown).await?;
            at = VolumeCluster(cluster.0 + 1);
        }
        Ok(())
    }

    /// Makes whole clusters read as zeros, giving their places up where that is possible: in a
    /// thin volume, where no parent shows through. The next commit makes it durable.
    pub(super) async fn unmap_clusters(
        &self,
        map: Arc<VolumeMap>,
        clusters: std::ops::Range<u32>,
    ) -> Result<(), Error> {
        let mut at = VolumeCluster(clusters.start);
        while let Some(cluster) = map.find(at, clusters.end, true) {
            at = VolumeCluster(cluster.0 + 1);
            self.thawed(&map).await;
            if self.unmap_now(&map, cluster)? {
                continue;
            }
            match map.get(cluster) {
                Place::None => {}
                Place::Parent(_) => self.place_zeros(&map, cluster).await?,
                Place::Own(place) => {
                    let flight = self.tracker.enter();
                    let zeroed = self.io.zero(&[self.cluster_stretch(place)]).await;
                    flight.finish();
                    zeroed?;
                }
            }
        }
        Ok(())
    }

    /// Takes the place away if nothing but zeros would show; true if so.
    fn unmap_now(&self, map: &Arc<VolumeMap>, cluster: VolumeCluster) -> Result<bool, Error> {
        let mut state = self.state.borrow_mut();
        let volume = state.of_map(map)?;
        volume.map.check_write()?;
        let (thin, parent) = (volume.blob.flags.thin, volume.blob.parent());
        let shows_parent = match parent.and_then(|parent| state.volumes.get(&parent)) {
            Some(parent) => cluster.0 < parent.clusters.0 && parent.map.get(cluster) != Place::None,
            None => parent.is_some(),
        };
        let volume = state.of_map(map)?;
        let own = matches!(volume.map.get(cluster), Place::Own(_));
        if !thin || shows_parent || volume.map.external().is_some() || !own {
            return Ok(false);
        }
        volume.map.change();
        volume.unmap(cluster.0..cluster.0 + 1);
        Ok(true)
    }

    /// Gives a cluster a place of its own that reads as zeros, if it has none.
    pub(super) async fn place_zeros(
        &self,
        map: &Arc<VolumeMap>,
        cluster: VolumeCluster,
    ) -> Result<(), Error> {
        let zeros = |shown| match shown {
            Background::Done => Background::Done,
            _ => Background::Zeros,
        };
        self.place_whole(map, cluster, Patience::default(), zeros).await
    }

    /// Gives a cluster a place of its own that reads as before, if it has none.
    pub(super) async fn place_copy(
        &self,
        map: &Arc<VolumeMap>,
        cluster: VolumeCluster,
    ) -> Result<(), Error> {
        self.place_whole(map, cluster, Patience::default(), |shown| shown).await
    }

    async fn place_whole(
        &self,
        map: &Arc<VolumeMap>,
        cluster: VolumeCluster,
        patience: Patience,
        content: impl FnOnce(Background) -> Background,
    ) -> Result<(), Error> {
        let ready = self.begin_with_space(map, cluster, patience).await?;
        let Ready::Place(allocation, shown, place) = ready else { return Ok(()) };
        let flight = self.tracker.enter();
        let written = self.fill(place, content(shown), None).await;
        let installed = self.install(map, cluster, place, written);
        flight.finish();
        drop(allocation);
        installed.map(drop).map_err(|failed| failed.error)
    }

    /// As [`Store::begin`], with a free cluster for a first write. In a volume whose writes wait for
    /// space, that may take a while; nothing is held meanwhile that others could wait for.
    async fn begin_with_space(
        &self,
        map: &Arc<VolumeMap>,
        cluster: VolumeCluster,
        mut patience: Patience,
    ) -> Result<Ready<'_, D>, Error> {
        loop {
            let (allocation, background) = match self.begin(map, cluster).await? {
                Begun::Placed(place) => return Ok(Ready::Placed(place)),
                Begun::Place(allocation, background) => (allocation, background),
            };
            if let Background::Zeros = background
                && let Some(place) = self.take_zeroed_for(map)
            {
                return Ok(Ready::Place(allocation, Background::Done, place));
            }
            let full = match self.take_cluster_for(Some(map)).await {
                Ok(place) => return Ok(Ready::Place(allocation, background, place)),
                Err(full) => full,
            };
            drop(allocation);
            if !Box::pin(self.wait_for_space(map, &mut patience)).await? {
                return Err(full);
            }
        }
    }

    /// Finds out what a write to a cluster has to do. Waits for another first write of it.
    async fn begin(
        &self,
        map: &Arc<VolumeMap>,
        cluster: VolumeCluster,
    ) -> Result<Begun<'_, D>, Error> {
        loop {
            self.thawed(map).await;
            let waiting = {
                let mut state = self.state.borrow_mut();
                let volume = state.of_map(map)?;
                volume.map.check_write()?;
                if cluster.0 >= volume.clusters.0 {
                    return Err(Error::NotFound);
                }
                let background = match volume.map.get(cluster) {
                    Place::Own(place) => return Ok(Begun::Placed(place)),
                    Place::Parent(parent) => Background::Parent(parent),
                    Place::None => match volume.map.external() {
                        None => Background::Zeros,
                        Some(shown) => {
                            let size = self.layout.cluster_size().0;
                            Background::External(shown, u64::from(cluster.0) * size)
                        }
                    },
                };
                let Some(others) = volume.allocating.get_mut(&cluster) else {
                    volume.allocating.insert(cluster, Vec::new());
                    let map = Arc::clone(map);
                    return Ok(Begun::Place(Allocation { store: self, map, cluster }, background));
                };
                let (done, waiting) = oneshot::channel();
                others.push(done);
                waiting
            };
            // An error: the volume is gone, which the next round sees.
            let _woken = waiting.await;
        }
    }

    /// Makes a volume's mapping durable, and all data that completed before this call.
    pub(super) async fn commit_map(&self, map: Arc<VolumeMap>) -> Result<(), Error> {
        self.state.borrow_mut().of_map(&map)?;
        self.commit([map.blob()]).await
    }

    /// Brings clusters back that volumes gave up; false if there are none.
    pub(super) async fn find_space(&self) -> Result<bool, Error> {
        if self.reclaims.settle_once().await {
            return Ok(true);
        }
        let droppers: Vec<_> = {
            let state = self.state.borrow();
            let droppers = state.volumes.iter().filter(|(_, volume)| !volume.dropped.is_empty());
            droppers.map(|(id, _)| *id).collect()
        };
        if droppers.is_empty() {
            return Ok(false);
        }
        self.commit(droppers).await?;
        Ok(true)
    }

    /// Step 2: writes the whole of a cluster.
    async fn fill(
        &self,
        place: ClusterIndex,
        background: Background,
        data: Option<(BlockCount, DmaBuffer)>,
    ) -> Result<Option<DmaBuffer>, IoFailure> {
        let whole = self.cluster_stretch(place);
        let Some((block, buffer)) = data else {
            let filled = self.fill_around(background, whole, 0, whole.blocks.0).await;
            return filled.map(|()| None).map_err(|error| IoFailure { error, buffer: None });
        };
        let shift = self.layout.block_size().shift();
        let end = block.0 + (buffer.len() as u64 >> shift);
        let data_start = Lba(whole.start.0 + block.0);
        let (written, before, after) = join3(
            self.io.device().write(data_start, buffer, Durability::Cached),
            self.fill_around(background.clone(), whole, 0, block.0),
            self.fill_around(background, whole, end, whole.blocks.0),
        )
        .await;
        match (written, before.and(after)) {
            (Ok(buffer), Ok(())) => Ok(Some(buffer)),
            (Ok(buffer), Err(error)) => Err(IoFailure::new(error, buffer)),
            (Err(failed), _) => Err(failed.into()),
        }
    }

    /// Fills blocks `from..to` of a cluster.
    async fn fill_around(
        &self,
        background: Background,
        whole: Stretch,
        from: u64,
        to: u64,
    ) -> Result<(), Error> {
        if from >= to {
            return Ok(());
        }
        let bytes = (to - from) << self.layout.block_size().shift();
        match background {
            Background::Done => Ok(()),
            Background::Zeros => {
                self.count(|counters| counters.bytes_zeroed += bytes);
                let start = Lba(whole.start.0 + from);
                Ok(self.io.zero(&[Stretch { start, blocks: BlockCount(to - from) }]).await?)
            }
            Background::Parent(parent) => {
                self.count(|counters| counters.bytes_copied += bytes);
                Ok(self.copy(self.cluster_stretch(parent), whole, from, to).await?)
            }
            Background::External(shown, offset) => {
                self.count(|counters| counters.bytes_copied += bytes);
                self.copy_external(&shown, offset, whole, from..to).await
            }
        }
    }

    async fn copy(
        &self,
        source: Stretch,
        target: Stretch,
        from: u64,
        to: u64,
    ) -> Result<(), BlockError> {
        let shift = self.layout.block_size().shift();
        let step = (COPY_STEP as u64 >> shift).max(1);
        let mut at = from;
        while at < to {
            let blocks = step.min(to - at);
            let length = (blocks << shift) as usize;
            let buffer = self.io.allocate(length).await?;
            let device = self.io.device();
            let read = device.read(Lba(source.start.0 + at), buffer).await;
            let buffer = read.map_err(|failed| failed.error)?;
            let written = device.write(Lba(target.start.0 + at), buffer, Durability::Cached).await;
            drop(written.map_err(|failed| failed.error)?);
            at += blocks;
        }
        Ok(())
    }

    async fn copy_external(
        &self,
        shown: &Shown,
        offset: u64,
        target: Stretch,
        blocks: std::ops::Range<u64>,
    ) -> Result<(), Error> {
        let shift = self.layout.block_size().shift();
        let step = (COPY_STEP as u64 >> shift).max(1);
        let mut at = blocks.start;
        while at < blocks.end {
            let count = step.min(blocks.end - at);
            let bytes = count << shift;
            let buffer = self.io.allocate(bytes as usize).await;
            let buffer = buffer.map_err(|_| Error::NoMemory { bytes })?;
            let buffer = self.read_external(shown, offset + (at << shift), buffer).await?;
            let start = Lba(target.start.0 + at);
            let written = self.io.device().write(start, buffer, Durability::Cached).await;
            drop(written.map_err(|failed| failed.error)?);
            at += count;
        }
        Ok(())
    }

    /// Step 3, or giving the cluster back.
    fn install(
        &self,
        map: &Arc<VolumeMap>,
        cluster: VolumeCluster,
        place: ClusterIndex,
        written: Result<Option<DmaBuffer>, IoFailure>,
    ) -> Result<Option<DmaBuffer>, IoFailure> {
        let mut state = self.state.borrow_mut();
        let result = match written {
            Ok(buffer) => match state.has_room_for_page(map, cluster) {
                Ok(()) => Ok(buffer),
                Err(error) => Err(IoFailure { error, buffer }),
            },
            Err(failed) => Err(failed),
        };
        match &result {
            Ok(_) => {
                let Ok(volume) = state.of_map(map) else {
                    unreachable!("it was there just now");
                };
                volume.map.change();
                volume.map.set(cluster, Place::Own(place));
                volume.touch(cluster);
                self.count(|counters| counters.clusters_allocated += 1);
            }
            // The outcome of the write is unknown: it may still happen.
            Err(IoFailure { error: Error::Device(BlockError::NoAnswer { .. }), .. })
            | Err(IoFailure { error: Error::Device(_), buffer: None }) => state.lost.push(place),
            Err(_) => {
                state.allocator.free_cluster(place);
                drop(state);
                self.note_space(true);
            }
        }
        result
    }
}

impl super::store::State {
    /// Whether a cluster may be installed now, and its extent page be written by a commit.
    fn has_room_for_page(
        &mut self,
        map: &Arc<VolumeMap>,
        cluster: VolumeCluster,
    ) -> Result<(), Error> {
        let slot = super::format::TableSlot::of(cluster);
        let volume = self.of_map(map)?;
        volume.map.check_write()?;
        if cluster.0 >= volume.clusters.0 {
            return Err(Error::NotFound);
        }
        if volume.dirty.contains(&slot) {
            return Ok(());
        }
        // All dirty volumes must fit into a commit, and this page beside them.
        let wanted: usize = self
            .volumes
            .values()
            .filter(|volume| volume.is_dirty() && !volume.deleted)
            .map(|volume| volume.dirty.len() + volume.blob.chain.len() + 2)
            .sum();
        if wanted + 3 > self.allocator.spare_pages() as usize {
            return Err(Error::NoSpace { what: Resource::MetadataPage });
        }
        Ok(())
    }
}
