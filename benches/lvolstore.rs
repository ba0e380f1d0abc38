//! What the lvolstore itself costs: a snapshot under load, first writes, fsync, the map's memory.
//!
//! The device is in memory, so what is measured is our own work; but for the fsyncs, which go to a
//! file in the system's folder for temporary files, too. For first writes its memory is touched
//! before and stays ([`Drive`]), so that no page fault of the host is counted. Everything runs on one reactor: the owner
//! of the pool and the writers share one thread, which is the worst case for a pause. Run with
//! `cargo bench --bench lvolstore`; the figures are medians, with the least and the most of all runs.

#![expect(clippy::print_stdout, reason = "the figures are the program's output")]

use std::cell::{Cell, RefCell};
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
}

fn memory(bytes: u64) -> MemoryDevice {
    MemoryDevice::new(ByteCount(bytes), BlockSize::B4096)
}

/// A device in memory that is as a drive: all of it takes memory from the start, zeros are bytes that
/// are written, and a discard promises nothing.
#[derive(Clone)]
struct Drive {
    memory: MemoryChannel,
    geometry: Geometry,
    arena: DmaArena,
}

impl Drive {
    async fn new(bytes: u64, arena: &DmaArena) -> Self {
        let memory = memory(bytes).channel();
        let geometry = Geometry { discard: Discard::Ignored, ..memory.geometry().clone() };
        let all = geometry.block_count.count();
        let drive = Self { memory, geometry, arena: arena.clone() };
        drive.write_zeroes(Lba(0), all).await.expect("memory does not fail");
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

/// The longest time between two writes of a volume that is written all the time, while a snapshot of
/// it is made; and how long that took as a whole.
fn snapshot(bench: &Bench) {
    let size = 100 * GIB;
    let (mut pauses, mut wholes, mut usual) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        bench.reactor.block_on(async {
            let pool = bench.pool(memory(size + 2 * GIB).channel()).await;
            let volume = pool.make(NewVolume::thick("volume", ByteCount(size))).await;
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
            // The write that waited has ended, and some that copy a cluster.
            has_written(written.get() + PLACES).await;
            over.set(true);
            writer.await;
            pauses.push(longest.get());
        });
    }
    println!(
        "snapshot of a fully mapped 100 GiB volume: longest pause of a writer {}; without it {}; \
         the whole operation {}",
        told(pauses),
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
            let pool = bench.pool(Drive::new(GIB, &bench.arena).await).await;
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
        });
    }
    println!(
        "fsync on {what}: after an overwrite {}, after a first write {}",
        told(without),
        told(with)
    );
}

fn map_memory(bench: &Bench) {
    bench.reactor.block_on(async {
        let pool = bench.pool(memory((1 << 40) + 8 * GIB).channel()).await;
        let volume = pool.make(NewVolume::thick("volume", ByteCount(1 << 40))).await;
        println!(
            "memory of the map of 1 TiB with 1 MiB clusters, all mapped: {:.2} MiB",
            volume.map().memory().get() as f64 / MIB as f64
        );
    });
}

fn main() {
    let (wait, permits, clock) = (Wait::Adaptive, SpinPermits::new(1), Clock::real());
    let options = ReactorOptions { index: 0, wait, permits, clock };
    let reactor = Reactor::new(options).expect("io_uring");
    let arena = DmaArena::new(ByteCount(64 << 20), false).expect("memory");
    let bench = Bench { reactor, arena };
    snapshot(&bench);
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
    map_memory(&bench);
}
