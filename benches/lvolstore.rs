//! What the lvolstore itself costs: a snapshot under load, first writes, fsync, the map's memory.
//!
//! The device is in memory, so what is measured is our own work; but for the fsyncs, which go to a
//! file in the system's folder for temporary files, too. Where first writes and copies go, its memory
//! is touched before and stays ([`Drive`]), so that no page fault of the host is counted. Everything
//! runs on one reactor: the owner of the pool and the writers share one thread, which is the worst
//! case for a pause. Run with `cargo bench --bench lvolstore`; the figures are medians, with the least
//! and the most of all runs.

#![expect(clippy::print_stdout, reason = "the figures are the program's output")]

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use lvolfs::block::file::{FileDevice, FileOptions, open};
use lvolfs::block::memory::{MemoryChannel, MemoryDevice};
use lvolfs::block::{BlockDevice, BlockError, Counters, Discard, Durability, Geometry, Transfer};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::lvol::{FormatOptions, NewRelative, NewVolume, Store, StoreIo, VolumeIo};
use lvolfs::reactor::policy::SpinPermits;
use lvolfs::reactor::{Clock, Reactor, ReactorOptions, Wait};
use lvolfs::units::{BlockCount, BlockSize, ByteCount, ByteOffset, Lba};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const CLUSTER: u64 = MIB;
const RUNS: usize = 7;
/// Places that the writer beside a snapshot writes to: few enough for the copies that the snapshot
/// makes of their clusters to stay in memory, far apart enough to be in all extent pages.
const PLACES: u64 = 512;
/// Writes of that writer before the snapshot: what one pause is when there is none.
const WARM_UP: u64 = 10_000;
/// First writes without a break: no more than there are zeroed clusters ready.
const BURST: usize = 32;

struct Bench {
    reactor: Rc<Reactor>,
    arena: DmaArena,
}

struct Pool<D: BlockDevice> {
    store: Rc<Store<D>>,
    io: StoreIo<D>,
}

impl Bench {
    async fn pool<D: BlockDevice>(&self, device: D) -> Pool<D> {
        let layout =
            LayoutOptions { cluster_size: ByteCount(CLUSTER), metadata_ratio_percent: 100 };
        let options = FormatOptions { name: "pool".to_owned(), uuid: None, layout };
        Store::format(&device, &self.arena, &options).await.expect("a blank device");
        let store = Store::open(device.clone(), &self.reactor, &self.arena).await.expect("fresh");
        let remote = store.remote().expect("it is open");
        let io = StoreIo::attach(remote, &self.reactor, device, &self.arena).await;
        Pool { store, io: io.expect("it is open") }
    }

    async fn write<D: BlockDevice>(&self, volume: &VolumeIo<D>, offset: u64) {
        let buffer = self.arena.allocate_zeroed(4096).expect("an idle arena");
        let written = volume.write(ByteOffset(offset), buffer, Durability::Cached).await;
        drop(written.expect("there is space, and the device does not fail"));
    }
}

impl<D: BlockDevice> Pool<D> {
    async fn make(&self, new: NewVolume) -> VolumeIo<D> {
        let volume = self.store.create_volume(new).await.expect("there is space");
        self.io.volume(volume.id).await.expect("it was just made")
    }

    /// Gives back its memory, and the device's.
    async fn close(self) {
        self.store.close().await.expect("the device does not fail");
        self.io.detach();
    }
}

fn memory(bytes: u64) -> MemoryDevice {
    MemoryDevice::new(ByteCount(bytes), BlockSize::B4096)
}

/// A device in memory of which a part is as a drive is: it takes memory from the start, zeros are
/// bytes that are written, and a discard promises nothing.
#[derive(Clone)]
struct Drive {
    memory: MemoryChannel,
    geometry: Geometry,
    arena: DmaArena,
    touched: Range<u64>,
}

impl Drive {
    /// Of `bytes` bytes, those from `from` on being such a part.
    async fn new(bytes: u64, from: u64, arena: &DmaArena) -> Self {
        let memory = memory(bytes).channel();
        let geometry = Geometry { discard: Discard::Ignored, ..memory.geometry().clone() };
        let (start, end) = (from >> geometry.block_size.shift(), geometry.block_count.count().0);
        let drive = Self { memory, geometry, arena: arena.clone(), touched: start..end };
        let zeroed = drive.write_zeroes(Lba(start), BlockCount(end - start)).await;
        zeroed.expect("memory does not fail");
        drive
    }
}

impl BlockDevice for Drive {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    async fn read(&self, start: Lba, buffer: DmaBuffer) -> Transfer {
        self.memory.read(start, buffer).await
    }

    async fn write(&self, start: Lba, buffer: DmaBuffer, durability: Durability) -> Transfer {
        self.memory.write(start, buffer, durability).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.memory.flush().await
    }

    async fn discard(&self, _: Lba, _: BlockCount) -> Result<(), BlockError> {
        Ok(())
    }

    async fn write_zeroes(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        const STEP: u64 = 64 << 10;
        let shift = self.geometry.block_size.shift();
        let end = start.0 + blocks.0;
        if end <= self.touched.start {
            return self.memory.write_zeroes(start, blocks).await;
        }
        for at in (start.0..end).step_by((STEP >> shift) as usize) {
            let bytes = ((end - at) << shift).min(STEP) as usize;
            let zeros = self.arena.allocate_zeroed(bytes).expect("an idle arena");
            self.write(Lba(at), zeros, Durability::Cached).await.map_err(|failed| failed.error)?;
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.memory.counters()
    }
}

/// Median, least and most.
fn told(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let (least, most) = (times[0], times[times.len() - 1]);
    format!("{:.2?} ({least:.2?} to {most:.2?})", times[times.len() / 2])
}

/// How the clusters of a volume lie on the device.
#[derive(Clone, Copy)]
enum Order {
    /// As in a thick volume.
    Runs,
    /// As in a thin one after writes to random places.
    Random,
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Runs => "in runs",
            Self::Random => "at random",
        })
    }
}

/// A volume of `size` bytes, all of them mapped and durable.
async fn mapped<D: BlockDevice>(pool: &Pool<D>, size: u64, order: Order) -> VolumeIo<D> {
    if let Order::Runs = order {
        return pool.make(NewVolume::thick("volume", ByteCount(size))).await;
    }
    let volume = pool.make(NewVolume::thin("volume", ByteCount(size))).await;
    let mut clusters: Vec<u64> = (0..size / CLUSTER).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut clusters);
    for cluster in clusters {
        let allocated = volume.allocate(ByteOffset(cluster * CLUSTER), ByteCount(CLUSTER)).await;
        allocated.expect("there is space");
    }
    volume.flush().await.expect("the device does not fail");
    volume
}

/// The longest time between two writes of a volume that is written all the time: while a snapshot
/// of it is made, after that, and before.
fn snapshot(bench: &Bench, order: Order) {
    let size = 100 * GIB;
    let (mut pauses, mut copies) = (Vec::new(), Vec::new());
    let (mut wholes, mut usual) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        bench.reactor.block_on(async {
            // Metadata and volume take a little more than 100 GiB, so the copies go to the part that
            // takes memory from the start.
            let drive = Drive::new(size + 5 * GIB / 4, size + GIB / 4, &bench.arena).await;
            let pool = bench.pool(drive).await;
            let volume = mapped(&pool, size, order).await;
            let id = volume.map().blob();
            let longest = Rc::new(Cell::new(Duration::ZERO));
            let over = Rc::new(Cell::new(false));
            let written = Rc::new(Cell::new(0));
            let writer = {
                let (longest, over) = (Rc::clone(&longest), Rc::clone(&over));
                let written = Rc::clone(&written);
                let (reactor, arena) = (Rc::clone(&bench.reactor), bench.arena.clone());
                let volume = volume.clone();
                bench.reactor.task(async move {
                    let bench = Bench { reactor, arena };
                    let mut rng = fastrand::Rng::with_seed(1);
                    let mut last = Instant::now();
                    while !over.get() {
                        bench.write(&volume, rng.u64(0..PLACES) * (size / PLACES)).await;
                        longest.set(longest.get().max(last.elapsed()));
                        written.set(written.get() + 1);
                        last = Instant::now();
                        bench.reactor.sleep(Duration::ZERO).await;
                    }
                })
            };
            let has_written = async |count| {
                while written.get() < count {
                    bench.reactor.sleep(Duration::ZERO).await;
                }
            };
            has_written(WARM_UP).await;
            usual.push(longest.replace(Duration::ZERO));
            let begin = Instant::now();
            pool.store.snapshot_volume(id, NewRelative::named("s")).await.expect("there is space");
            wholes.push(begin.elapsed());
            // The write that waited has ended.
            has_written(written.get() + 1).await;
            pauses.push(longest.replace(Duration::ZERO));
            // And now some that copy a cluster.
            has_written(written.get() + PLACES).await;
            copies.push(longest.get());
            over.set(true);
            writer.await;
            pool.close().await;
        });
    }
    println!(
        "snapshot of a 100 GiB volume, all of it mapped, {order}: longest pause of a writer {}; while \
         its writes copy clusters after that {}; without a snapshot {}; the whole operation {}",
        told(pauses),
        told(copies),
        told(usual),
        told(wholes)
    );
}

/// Random 4 KiB writes, each the first to its cluster, and the same again.
fn first_writes(bench: &Bench, ready: bool) {
    const WRITES: u64 = 512;
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        bench.reactor.block_on(async {
            let pool = bench.pool(Drive::new(GIB, 0, &bench.arena).await).await;
            let volume = pool.make(NewVolume::thin("volume", ByteCount(16 * GIB))).await;
            let mut rng = fastrand::Rng::with_seed(run as u64);
            let mut clusters: Vec<u64> = (0..16 * GIB / CLUSTER).collect();
            rng.shuffle(&mut clusters);
            if ready {
                // The first write of all calls for the supply.
                pool.store.keep_zeroed_clusters();
                bench.write(&volume, clusters[WRITES as usize] * CLUSTER).await;
            }
            let mut spent = Duration::ZERO;
            let offsets: Vec<u64> = clusters[..WRITES as usize]
                .iter()
                .map(|cluster| cluster * CLUSTER + rng.u64(0..CLUSTER / 4096) * 4096)
                .collect();
            // In bursts that the supply covers, with time between them to fill it again.
            for burst in offsets.chunks(BURST) {
                while ready && (pool.store.zeroed_clusters().0 as usize) < BURST {
                    bench.reactor.sleep(Duration::from_millis(1)).await;
                }
                let begin = Instant::now();
                for offset in burst {
                    bench.write(&volume, *offset).await;
                }
                spent += begin.elapsed();
            }
            first.push(spent / WRITES as u32);
            let begin = Instant::now();
            for offset in &offsets {
                bench.write(&volume, *offset).await;
            }
            again.push(begin.elapsed() / WRITES as u32);
            pool.close().await;
        });
    }
    let median = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64()
    };
    println!(
        "random 4 KiB writes into a thin volume with 1 MiB clusters, {}: first {}, again {}; ratio \
         of medians {:.1}",
        if ready { "zeroed clusters ready" } else { "none ready" },
        told(first.clone()),
        told(again.clone()),
        median(&first) / median(&again)
    );
}

/// An fsync after an overwrite, and after a first write.
fn fsyncs<D: BlockDevice>(bench: &Bench, what: &str, device: impl Fn() -> D) {
    const EACH: u64 = 200;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        bench.reactor.block_on(async {
            let pool = bench.pool(device()).await;
            let volume = pool.make(NewVolume::thin("volume", ByteCount(GIB))).await;
            for (times, step) in [(&mut with, CLUSTER), (&mut without, 0)] {
                let mut spent = Duration::ZERO;
                for index in 0..EACH {
                    bench.write(&volume, index * step).await;
                    let begin = Instant::now();
                    volume.flush().await.expect("the device does not fail");
                    spent += begin.elapsed();
                }
                times.push(spent / EACH as u32);
            }
            pool.close().await;
        });
    }
    println!(
        "fsync on {what}: after an overwrite {}, after a first write {}",
        told(without),
        told(with)
    );
}

fn map_memory(bench: &Bench, order: Order) {
    bench.reactor.block_on(async {
        let pool = bench.pool(memory((1 << 40) + 8 * GIB).channel()).await;
        let volume = mapped(&pool, 1 << 40, order).await;
        let bytes = volume.map().memory().get();
        println!(
            "memory of the map of 1 TiB with 1 MiB clusters, all of it mapped, {order}: {} KiB",
            bytes.div_ceil(1024)
        );
        pool.close().await;
    });
}

fn main() {
    let (wait, permits, clock) = (Wait::Adaptive, SpinPermits::new(1), Clock::real());
    let options = ReactorOptions { index: 0, wait, permits, clock };
    let reactor = Reactor::new(options).expect("io_uring");
    let arena = DmaArena::new(ByteCount(64 << 20), false).expect("memory");
    let bench = Bench { reactor, arena };
    for order in [Order::Runs, Order::Random] {
        snapshot(&bench, order);
    }
    first_writes(&bench, false);
    first_writes(&bench, true);
    fsyncs(&bench, "a device in memory", || memory(4 * GIB).channel());
    let folder = std::env::temp_dir().join(format!("lvolfs-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for a file");
    let count = RefCell::new(0);
    fsyncs(&bench, "a file", || {
        *count.borrow_mut() += 1;
        let path = folder.join(format!("disk{}", count.borrow()));
        let size = Some(ByteCount(4 * GIB));
        let options = FileOptions { path: path.clone(), size, create: true, direct: true };
        let opened = open(&options).expect("a new file");
        let device = FileDevice::new(opened, &path, BlockSize::B4096).expect("it is large enough");
        device.channel(&bench.reactor, &bench.arena)
    });
    std::fs::remove_dir_all(&folder).expect("it was made here");
    for order in [Order::Runs, Order::Random] {
        map_memory(&bench, order);
    }
}
