//! A pool on some device, and what tests do with it again and again.

use std::io;
use std::rc::Rc;

use lvolfs::block::{BlockDevice, Durability};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::lvol::validate::{ImageRead, Report, validate};
use lvolfs::lvol::{Error, FormatOptions, NewVolume, Place, Store, StoreIo, VolumeIo};
use lvolfs::reactor::{Reactor, ReactorOptions};
use lvolfs::sim::{SimDisk, SimOptions};
use lvolfs::units::{BlobId, BlockSize, ByteCount, ByteOffset, VolumeCluster};

/// The cluster size of most tests.
pub(crate) const CLUSTER: u64 = 64 << 10;
/// The block size of most tests.
pub(crate) const BLOCK: usize = 4096;

/// One reactor with virtual time, and memory.
pub(crate) struct Bench {
    pub(crate) reactor: Rc<Reactor>,
    pub(crate) arena: DmaArena,
}

/// A pool in use.
pub(crate) struct Pool<D: BlockDevice> {
    pub(crate) store: Rc<Store<D>>,
    pub(crate) io: StoreIo<D>,
    arena: DmaArena,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(ReactorOptions::deterministic())
    }

    pub(crate) fn with(options: ReactorOptions) -> Self {
        let reactor = Reactor::new(options).unwrap();
        let arena = DmaArena::new(ByteCount(64 << 20), false).unwrap();
        Self { reactor, arena }
    }

    pub(crate) fn run<R>(&self, work: impl Future<Output = R>) -> R {
        self.reactor.block_on(work)
    }

    /// Formats a device with clusters of [`CLUSTER`] bytes.
    pub(crate) async fn format<D: BlockDevice>(&self, device: &D) {
        let cluster_size = ByteCount(CLUSTER);
        let layout = LayoutOptions { cluster_size, metadata_ratio_percent: 100 };
        let uuid = Some(uuid::Uuid::from_u128(7));
        let options = FormatOptions { name: "pool".to_owned(), uuid, layout };
        Store::format(device, &self.arena, &options).await.unwrap();
    }

    pub(crate) async fn open<D: BlockDevice>(&self, device: D) -> Result<Pool<D>, Error> {
        let store = Store::open(device.clone(), &self.reactor, &self.arena).await?;
        let io = StoreIo::attach(store.remote()?, &self.reactor, device, &self.arena).await?;
        Ok(Pool { store, io, arena: self.arena.clone() })
    }

    /// A new pool.
    pub(crate) async fn pool<D: BlockDevice>(&self, device: D) -> Pool<D> {
        self.format(&device).await;
        self.open(device).await.unwrap()
    }

    pub(crate) fn buffer(&self, bytes: usize, value: u8) -> DmaBuffer {
        buffer(&self.arena, bytes, value)
    }
}

fn buffer(arena: &DmaArena, bytes: usize, value: u8) -> DmaBuffer {
    let mut buffer = arena.allocate(bytes).unwrap();
    buffer.fill(value);
    buffer
}

impl<D: BlockDevice> Pool<D> {
    pub(crate) async fn thin(&self, name: &str, clusters: u64) -> VolumeIo<D> {
        self.make(NewVolume::thin(name, ByteCount(clusters * CLUSTER))).await
    }

    pub(crate) async fn thick(&self, name: &str, clusters: u64) -> VolumeIo<D> {
        self.make(NewVolume::thick(name, ByteCount(clusters * CLUSTER))).await
    }

    pub(crate) async fn thin_of(&self, name: &str, size: ByteCount) -> VolumeIo<D> {
        self.make(NewVolume::thin(name, size)).await
    }

    async fn make(&self, new: NewVolume) -> VolumeIo<D> {
        let volume = self.store.create_volume(new).await.unwrap();
        self.io.volume(volume.id).await.unwrap()
    }

    pub(crate) fn id(&self, name: &str) -> BlobId {
        self.store.find(name).unwrap_or_else(|| panic!("no volume {name}")).id
    }

    /// The device's first block of a volume's first cluster, which must be its own.
    pub(crate) fn place_of_first_cluster(&self, volume: &VolumeIo<D>) -> u64 {
        match volume.map().get(VolumeCluster(0)) {
            Place::Own(cluster) => u64::from(cluster.0) * CLUSTER / BLOCK as u64,
            other => panic!("it is {other:?}"),
        }
    }

    pub(crate) async fn volume(&self, name: &str) -> VolumeIo<D> {
        self.io.volume(self.id(name)).await.unwrap()
    }

    /// Fills blocks of a volume.
    pub(crate) async fn write(
        &self,
        volume: &VolumeIo<D>,
        block: u64,
        blocks: usize,
        value: u8,
    ) -> Result<(), Error> {
        let unit = volume.block_size().bytes() as usize;
        let buffer = buffer(&self.arena, blocks * unit, value);
        let offset = ByteOffset(block * unit as u64);
        let written = volume.write(offset, buffer, Durability::Cached).await;
        written.map(drop).map_err(|failed| failed.error)
    }

    /// The whole content of a volume.
    pub(crate) async fn content(&self, volume: &VolumeIo<D>) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        let size = volume.size().get();
        while (content.len() as u64) < size {
            let step = (size - content.len() as u64).min(256 << 10) as usize;
            let buffer = buffer(&self.arena, step, 0xee);
            let read = volume.read(ByteOffset(content.len() as u64), buffer).await;
            content.extend_from_slice(&read.map_err(|failed| failed.error)?);
        }
        Ok(content)
    }

    /// The first byte of each block of a volume, after checking that all bytes of it are the same.
    pub(crate) async fn blocks(&self, volume: &VolumeIo<D>) -> Vec<u8> {
        let content = self.content(volume).await.unwrap();
        let unit = volume.block_size().bytes() as usize;
        content.chunks(unit).map(whole).collect()
    }
}

fn whole(block: &[u8]) -> u8 {
    assert!(block.iter().all(|byte| *byte == block[0]), "a block of mixed content");
    block[0]
}

/// A simulated disk of 4 MiB and blocks of 4096 bytes.
pub(crate) fn disk() -> SimDisk {
    SimDisk::new(SimOptions::new(ByteCount(4 << 20)))
}

/// What the strict validator says of a disk.
pub(crate) fn validated(disk: &SimDisk) -> Report {
    // The smallest block there is: good for every store.
    validate(&OfDisk(disk), BlockSize::B512).unwrap()
}

/// What a disk holds, as an image.
struct OfDisk<'d>(&'d SimDisk);

impl ImageRead for OfDisk<'_> {
    fn size(&self) -> io::Result<ByteCount> {
        Ok(self.0.size())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.0.size().get()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.read_at(offset, into);
        Ok(())
    }
}

/// Fails if the validator finds an error.
pub(crate) fn assert_valid(disk: &SimDisk) {
    let report = validated(disk);
    let errors: Vec<_> = report.errors().collect();
    assert!(errors.is_empty(), "the validator found {errors:#?}");
}
