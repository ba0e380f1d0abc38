//! Volume I/O on one reactor.
//!
//! Mapped reads and writes do not leave the reactor: one look into the shared map, one device
//! operation; no lock, no allocation, no mail. What changes the map (first writes, discards) and
//! what makes it durable is done by the pool's owner.
//!
//! Every operation runs to its end: a future that is dropped half-way would leave a command at the
//! device that nobody watches (`tracker.rs` says what that costs).
//!
//! What is durable: a write is when a later [`VolumeIo::flush`] has returned, or on its own return
//! with [`Durability::ForceUnitAccess`]. After a crash each other block holds old or new data.

mod parent;
mod pieces;
mod seek;

use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::{Either, join_all};

use crate::block::{BlockDevice, Durability, FlushGroup};
use crate::hw::dma::{DmaArena, DmaBuffer};
use crate::reactor::{Gone, Reactor, Remote, Share};
use crate::units::{
    BlobId, BlockCount, BlockSize, ByteCount, ByteOffset, ClusterCount, ClusterIndex, Lba,
    VolumeCluster,
};

use super::error::{Error, IoFailure, VolumeTransfer};
use super::external::{Depth, External, ExternalName, Externals};
use super::interruption::Interruption;
use super::store::Store;
use super::tracker::Tracker;
use super::volume_map::{Place, VolumeMap};
pub use parent::VolumeParent;
use pieces::{Piece, Way, cut, join};

/// Bytes of zeros written at once where a parent shows through.
const ZERO_STEP: u64 = 256 << 10;

/// One reactor's way to a pool. Made once for each reactor; clones share it.
pub struct StoreIo<D: BlockDevice>(Rc<Shared<D>>);

struct Shared<D: BlockDevice> {
    reactor: Rc<Reactor>,
    device: D,
    arena: DmaArena,
    owner: Remote<Store<D>>,
    tracker: Rc<Tracker>,
    /// The same, as the owner reaches it.
    kept: Remote<Tracker>,
    flushes: Rc<FlushGroup>,
    externals: Externals<D>,
    block_size: BlockSize,
    max_transfer: u64,
    volatile_cache: bool,
}

impl<D: BlockDevice> Clone for StoreIo<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl From<Gone> for Error {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl<D: BlockDevice> StoreIo<D> {
    /// Connects `reactor`, whose channel to the pool's device is `device`, to the pool.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Gone`].
    pub async fn attach(
        owner: Remote<Store<D>>,
        reactor: &Rc<Reactor>,
        device: D,
        arena: &DmaArena,
    ) -> Result<Self, Error> {
        let tracker = Rc::new(Tracker::default());
        let kept = reactor.keep(Rc::clone(&tracker));
        let registered = kept.clone();
        let attached = owner.call(reactor, |store| async move { store.register(registered) }).await;
        if let Err(error) = attached.unwrap_or(Err(Error::Gone)) {
            drop(kept.release(reactor));
            return Err(error);
        }
        let geometry = device.geometry();
        let (block_size, volatile_cache) = (geometry.block_size, geometry.volatile_cache);
        let max_transfer = geometry.max_transfer.get();
        Ok(Self(Rc::new(Shared {
            reactor: Rc::clone(reactor),
            device,
            arena: arena.clone(),
            owner,
            tracker,
            kept,
            flushes: Rc::default(),
            externals: Externals::default(),
            block_size,
            max_transfer,
            volatile_cache,
        })))
    }

    /// Lets go of a pool that is closed. One that is not can never again be sure that this reactor
    /// uses nothing of it.
    pub fn detach(&self) {
        drop(self.0.kept.release(&self.0.reactor));
    }

    /// Says how this reactor reaches a parent outside of the pool. `Store::attach_external` follows.
    pub fn attach_external(&self, name: &ExternalName, parent: External<D>) {
        self.0.externals.attach(name, parent);
    }

    /// That way is gone. `Store::detach_external` came before.
    pub fn detach_external(&self, name: &ExternalName) {
        self.0.externals.detach(name);
    }

    /// The pool's owner.
    #[must_use]
    pub fn owner(&self) -> &Remote<Store<D>> {
        &self.0.owner
    }

    /// A volume of the pool.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Gone`].
    pub async fn volume(&self, id: BlobId) -> Result<VolumeIo<D>, Error> {
        let map = self.0.owner.call(&self.0.reactor, move |store| async move { store.map(id) });
        Ok(self.volume_of(map.await??))
    }

    /// As [`StoreIo::volume`], by the map that [`Store::map`] gave.
    #[must_use]
    pub fn volume_of(&self, map: Arc<VolumeMap>) -> VolumeIo<D> {
        VolumeIo { shared: Rc::clone(&self.0), map, interruption: None }
    }
}

/// A volume on one reactor. Offsets and lengths are multiples of the device's block size.
pub struct VolumeIo<D: BlockDevice> {
    shared: Rc<Shared<D>>,
    map: Arc<VolumeMap>,
    /// Ends waits for space.
    interruption: Option<Interruption>,
}

impl<D: BlockDevice> Clone for VolumeIo<D> {
    fn clone(&self) -> Self {
        let (shared, map) = (Rc::clone(&self.shared), Arc::clone(&self.map));
        Self { shared, map, interruption: self.interruption.clone() }
    }
}

impl<D: BlockDevice> VolumeIo<D> {
    /// What all reactors share of the volume.
    #[must_use]
    pub fn map(&self) -> &Arc<VolumeMap> {
        &self.map
    }

    /// The same, whose waits for space end with [`Error::WaitInterrupted`] when `interruption`
    /// happens.
    #[must_use]
    pub fn interruptible(&self, interruption: &Interruption) -> Self {
        Self { interruption: Some(interruption.clone()), ..self.clone() }
    }

    /// The size now.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        self.map.size()
    }

    /// The unit of offsets and lengths.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.shared.block_size
    }

    /// The unit of allocation.
    #[must_use]
    pub fn cluster_size(&self) -> ByteCount {
        self.map.cluster_size()
    }

    /// Clusters that the volume has of its own.
    #[must_use]
    pub fn allocated_clusters(&self) -> ClusterCount {
        self.map.allocated()
    }

    /// Fills `buffer` from `offset` on. What was never written reads as zeros.
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::OutOfRange`], [`Error::NotFound`] once it is deleted,
    /// [`Error::Closed`], [`Error::Device`]; of what lies on an external parent
    /// [`Error::ExternalParent`], [`Error::ExternalDevice`], [`Error::ExternalVolume`],
    /// [`Error::ExternalDepth`].
    pub fn read(
        &self,
        offset: ByteOffset,
        buffer: DmaBuffer,
    ) -> impl Future<Output = VolumeTransfer> {
        self.read_through(offset, buffer, Depth::default())
    }

    /// As [`VolumeIo::read`], through external parents as far as `depth` reaches.
    async fn read_through(
        &self,
        offset: ByteOffset,
        mut buffer: DmaBuffer,
        depth: Depth,
    ) -> VolumeTransfer {
        let shared = &*self.shared;
        let checked = self.map.check_read().and_then(|()| self.check(offset, buffer.len() as u64));
        if let Err(error) = checked {
            return Err(IoFailure::new(error, buffer));
        }
        let (cluster, block) = match self.single(offset, buffer.len()) {
            Some(found) => found,
            // Boxed, as what is rare below: the futures of the usual way stay small.
            None => return Box::pin(self.read_pieces(offset, buffer, depth)).await,
        };
        let flight = shared.tracker.enter();
        let result = match self.map.get(cluster) {
            Place::Own(place) | Place::Parent(place) => {
                let read = shared.device.read(self.lba(place, block), buffer).await;
                read.map_err(IoFailure::from)
            }
            Place::None => match self.map.external() {
                Some(shown) => {
                    shared.externals.read(&shown, offset, buffer, &shared.arena, depth).await
                }
                None => {
                    buffer.fill(0);
                    Ok(buffer)
                }
            },
        };
        flight.finish();
        result
    }

    /// Writes `buffer` from `offset` on.
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::OutOfRange`], [`Error::ReadOnly`], [`Error::Poisoned`],
    /// [`Error::NoSpace`] if the pool is full, [`Error::NotFound`] once it is deleted,
    /// [`Error::Closed`], [`Error::Device`]. After an error each block holds old or new data.
    pub async fn write(
        &self,
        offset: ByteOffset,
        buffer: DmaBuffer,
        durability: Durability,
    ) -> VolumeTransfer {
        let shared = &*self.shared;
        let checked = self.writable().await.and_then(|()| self.check(offset, buffer.len() as u64));
        if let Err(error) = checked {
            return Err(IoFailure::new(error, buffer));
        }
        if let Some((cluster, block)) = self.single(offset, buffer.len()) {
            let flight = shared.tracker.enter();
            let place = self.map.get(cluster);
            let direct = durability == Durability::Cached || self.map.is_durable();
            if let (Place::Own(place), true) = (place, direct) {
                let start = self.lba(place, block);
                let written = shared.device.write(start, buffer, durability).await;
                flight.finish();
                return written.map_err(IoFailure::from);
            }
            flight.finish();
        }
        let buffer = Box::pin(self.write_pieces(offset, buffer)).await?;
        if durability == Durability::ForceUnitAccess
            && let Err(error) = Box::pin(self.flush()).await
        {
            return Err(IoFailure::new(error, buffer));
        }
        Ok(buffer)
    }

    /// Makes every write durable that completed before this call, on any reactor, and the mapping
    /// that leads to it. One device flush, shared with others who ask at the same time, if the
    /// mapping is durable already; a commit if not; nothing at all if the device has no cache.
    ///
    /// # Errors
    /// [`Error::Poisoned`]; [`Error::NoSpace`] if there is no room for metadata;
    /// [`Error::NotFound`] once it is deleted; [`Error::Closed`].
    pub async fn flush(&self) -> Result<(), Error> {
        self.map.check_flush()?;
        let shared = &self.shared;
        if !self.map.is_durable() {
            let map = Arc::clone(&self.map);
            return self.call(|store| async move { store.commit_map(map).await }).await;
        }
        if !shared.volatile_cache {
            return Ok(());
        }
        let device = shared.device.clone();
        let once = move || {
            let device = device.clone();
            async move { device.flush().await }
        };
        match shared.flushes.join(&shared.reactor, once).await {
            Ok(()) => Ok(()),
            Err(cause) => Err(self
                .call(|store| async move { Err::<(), _>(store.poison_by_flush(cause)) })
                .await
                .err()
                .unwrap_or(Error::Gone)),
        }
    }

    /// Makes a range read as zeros and gives whole clusters of a thin volume back to the pool.
    /// Durable after a flush.
    ///
    /// # Errors
    /// As for [`VolumeIo::write`].
    pub async fn discard(&self, offset: ByteOffset, length: ByteCount) -> Result<(), Error> {
        self.writable().await?;
        self.check(offset, length.0)?;
        let (end, size) = (offset.0 + length.0, self.map.cluster_size().0);
        let (first, last) = (offset.0.div_ceil(size), end / size);
        if !self.map.is_thin() || first >= last || self.map.external().is_some() {
            return self.zero(offset, length).await;
        }
        self.zero(offset, ByteCount(first * size - offset.0)).await?;
        self.zero(ByteOffset(last * size), ByteCount(end - last * size)).await?;
        let clusters = first as u32..last as u32;
        if self.map.find(VolumeCluster(clusters.start), clusters.end, true).is_none() {
            return Ok(());
        }
        let map = Arc::clone(&self.map);
        self.call(|store| async move { store.unmap_clusters(map, clusters).await }).await
    }

    /// Makes a range read as zeros, keeping what is allocated. Durable after a flush.
    ///
    /// # Errors
    /// As for [`VolumeIo::write`].
    pub async fn write_zeroes(&self, offset: ByteOffset, length: ByteCount) -> Result<(), Error> {
        self.writable().await?;
        self.check(offset, length.0)?;
        self.zero(offset, length).await
    }

    /// Gives every cluster of a range a place, so that writes to it cannot fail for want of space.
    /// What it reads as stays. Durable after a flush.
    ///
    /// # Errors
    /// As for [`VolumeIo::write`]; the clusters before the failure keep their places.
    pub async fn allocate(&self, offset: ByteOffset, length: ByteCount) -> Result<(), Error> {
        self.writable().await?;
        self.check(offset, length.0)?;
        let size = self.map.cluster_size().0;
        let clusters = (offset.0 / size) as u32..(offset.0 + length.0).div_ceil(size) as u32;
        if self.map.find(VolumeCluster(clusters.start), clusters.end, false).is_none() {
            return Ok(());
        }
        let map = Arc::clone(&self.map);
        let interruption = self.interruption.clone();
        let allocate = |store: Rc<Store<D>>| async move {
            store.allocate_clusters(map, clusters, interruption).await
        };
        self.call(allocate).await
    }

    /// Runs something at the owner.
    async fn call<F, Fut, R>(&self, call: F) -> Result<R, Error>
    where
        F: FnOnce(Rc<Store<D>>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, Error>> + 'static,
        R: Send + 'static,
    {
        self.shared.owner.call(&self.shared.reactor, call).await?
    }

    /// Waits while the owner has writers wait. Who looks into the map and enters the tracker
    /// before the next await is seen by a freeze that comes after this.
    #[inline]
    async fn writable(&self) -> Result<(), Error> {
        while !self.map.takes_writes_now() {
            self.map.check_write()?;
            let map = Arc::clone(&self.map);
            let thawed = |store: Rc<Store<D>>| async move {
                store.thawed(&map).await;
                Ok(())
            };
            self.call(thawed).await?;
        }
        Ok(())
    }

    #[inline]
    fn check(&self, offset: ByteOffset, length: u64) -> Result<(), Error> {
        let block = self.shared.block_size.bytes();
        let size = self.map.size();
        if length == 0 || (offset.0 | length) & (u64::from(block) - 1) != 0 {
            return Err(Error::Unaligned { offset, length: ByteCount(length), block });
        }
        match offset.0.checked_add(length) {
            Some(end) if end <= size.0 => Ok(()),
            _ => Err(Error::OutOfRange { offset, length: ByteCount(length), size }),
        }
    }

    /// The cluster that holds the whole range, and the first block in it.
    #[inline]
    fn single(&self, offset: ByteOffset, length: usize) -> Option<(VolumeCluster, BlockCount)> {
        let size = self.map.cluster_size().0;
        let (cluster, within) = (offset.0 / size, offset.0 % size);
        let length = length as u64;
        let fits = within + length <= size && length <= self.shared.max_transfer;
        let block = BlockCount(within >> self.shared.block_size.shift());
        // The range was checked against the size, which is counted in 32-bit clusters.
        fits.then_some((VolumeCluster(cluster as u32), block))
    }

    /// The device's block of a block in a cluster.
    #[inline]
    fn lba(&self, place: ClusterIndex, block: BlockCount) -> Lba {
        let start = u64::from(place.0) * self.map.cluster_size().0;
        Lba((start >> self.shared.block_size.shift()) + block.0)
    }

    /// Cuts a range into pieces. Clusters that follow each other on the device are one piece.
    fn pieces(&self, offset: ByteOffset, length: usize, write: bool) -> Vec<Piece<'_>> {
        let shared = &*self.shared;
        let (size, shift) = (self.map.cluster_size().0, shared.block_size.shift());
        let external = self.map.external();
        let mut pieces: Vec<Piece<'_>> = Vec::new();
        let mut done = 0;
        while done < length {
            let at = offset.0 + done as u64;
            let (cluster, within) = (VolumeCluster((at / size) as u32), at % size);
            let left = (size - within).min(shared.max_transfer);
            let bytes = (length - done).min(usize::try_from(left).unwrap_or(usize::MAX));
            done += bytes;
            let flight = shared.tracker.enter();
            let block = BlockCount(within >> shift);
            let (place, flight) = match self.map.get(cluster) {
                Place::Own(place) => (Some(place), Some(flight)),
                Place::Parent(place) if !write => (Some(place), Some(flight)),
                Place::Parent(_) | Place::None => {
                    flight.finish();
                    (None, None)
                }
            };
            let way = match (place, flight) {
                (Some(place), Some(flight)) => {
                    let lba = self.lba(place, block);
                    if let Some(Piece { bytes: before, way: Way::Place(start, _) }) =
                        pieces.last_mut()
                        && start.0 + (*before as u64 >> shift) == lba.0
                        && (*before + bytes) as u64 <= shared.max_transfer
                    {
                        *before += bytes;
                        flight.finish();
                        continue;
                    }
                    Way::Place(lba, flight)
                }
                _ if write => Way::Owner(cluster, block),
                _ => match &external {
                    Some(shown) => Way::External(Arc::clone(shown), ByteOffset(at)),
                    None => Way::Zeros,
                },
            };
            pieces.push(Piece { bytes, way });
        }
        pieces
    }

    async fn read_pieces(
        &self,
        offset: ByteOffset,
        buffer: DmaBuffer,
        depth: Depth,
    ) -> VolumeTransfer {
        let pieces = self.pieces(offset, buffer.len(), false);
        let parts = cut(buffer, &pieces);
        let reads = pieces.into_iter().zip(parts).map(|(piece, mut part)| async move {
            match piece.way {
                Way::Place(start, flight) => {
                    let read = self.shared.device.read(start, part).await;
                    flight.finish();
                    read.map_err(IoFailure::from)
                }
                Way::External(shown, at) => {
                    let (externals, arena) = (&self.shared.externals, &self.shared.arena);
                    externals.read(&shown, at, part, arena, depth).await
                }
                Way::Zeros | Way::Owner(..) => {
                    part.fill(0);
                    Ok(part)
                }
            }
        });
        join(join_all(reads).await)
    }

    async fn write_pieces(&self, offset: ByteOffset, buffer: DmaBuffer) -> VolumeTransfer {
        let pieces = self.pieces(offset, buffer.len(), true);
        let parts = cut(buffer, &pieces);
        let writes = pieces.into_iter().zip(parts).map(|(piece, part)| match piece.way {
            Way::Place(start, flight) => Either::Left(async move {
                let written = self.shared.device.write(start, part, Durability::Cached).await;
                flight.finish();
                written.map_err(IoFailure::from)
            }),
            Way::Owner(cluster, block) => Either::Right(self.write_by_owner(cluster, block, part)),
            Way::Zeros | Way::External(..) => {
                unreachable!("pieces of a write have a place or none")
            }
        });
        join(join_all(writes).await)
    }

    async fn write_by_owner(
        &self,
        cluster: VolumeCluster,
        block: BlockCount,
        part: DmaBuffer,
    ) -> VolumeTransfer {
        let (map, patience) = (Arc::clone(&self.map), self.interruption.clone());
        let write = move |store: Rc<Store<D>>| async move {
            store.write_cluster(map, cluster, block, part, patience.into()).await
        };
        let written = self.shared.owner.call(&self.shared.reactor, write).await;
        written.unwrap_or(Err(IoFailure { error: Error::Gone, buffer: None }))
    }

    /// Makes a checked range, or an empty one, read as zeros.
    async fn zero(&self, offset: ByteOffset, length: ByteCount) -> Result<(), Error> {
        let (size, shift) = (self.map.cluster_size().0, self.shared.block_size.shift());
        let (mut at, end) = (offset.0, offset.0 + length.0);
        while at < end {
            let (cluster, within) = (VolumeCluster((at / size) as u32), at % size);
            let bytes = (size - within).min(end - at);
            self.writable().await?;
            let flight = self.shared.tracker.enter();
            match self.map.get(cluster) {
                Place::None if self.map.external().is_none() => {
                    flight.finish();
                    // Holes can be large.
                    let last = end.div_ceil(size) as u32;
                    let next = self.map.find(cluster, last, true);
                    at = next.map_or(end, |next| u64::from(next.0) * size).max(at + bytes);
                }
                Place::Own(place) => {
                    let start = self.lba(place, BlockCount(within >> shift));
                    let blocks = BlockCount(bytes >> shift);
                    let zeroed = self.shared.device.write_zeroes(start, blocks).await;
                    flight.finish();
                    zeroed?;
                    at += bytes;
                }
                Place::Parent(_) | Place::None => {
                    flight.finish();
                    let step = bytes.min(ZERO_STEP);
                    let (arena, length) = (&self.shared.arena, step as usize);
                    let buffer = self.shared.reactor.allocate(arena, length, Share::All).await;
                    let mut buffer = buffer.ok_or(Error::NoMemory { bytes: step })?;
                    buffer.fill(0);
                    let block = BlockCount(within >> shift);
                    let written = self.write_by_owner(cluster, block, buffer).await;
                    drop(written.map_err(|failed| failed.error)?);
                    at += step;
                }
            }
        }
        Ok(())
    }
}
