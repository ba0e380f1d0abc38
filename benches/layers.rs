//! What each layer below the doors costs: the driver on the emulated controller's thread, and a
//! volume over the bare device.
//!
//! Controller and device are in memory, so that no medium hides the layers. Run with
//! `cargo bench --bench layers`; each figure is the median of its windows, with the spread, and the
//! windows of what is compared alternate.

#![expect(clippy::print_stdout, reason = "the figures are the program's output")]

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use lvolfs::block::memory::{MemoryChannel, MemoryDevice};
use lvolfs::block::nvme::{NvmeChannel, NvmeController, Wanted};
use lvolfs::block::{BlockDevice, Durability};
use lvolfs::emulated::{ControllerThread, EmulatedController, Memory, MemoryGeometry, Settings};
use lvolfs::hw::dma::DmaArena;
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::lvol::{FormatOptions, NewVolume, Store, StoreIo, VolumeIo};
use lvolfs::reactor::clock::Clock;
use lvolfs::reactor::policy::SpinPermits;
use lvolfs::reactor::{Reactor, ReactorOptions, Wait};
use lvolfs::units::{BlockCount, BlockSize, ByteCount, ByteOffset, Lba, NamespaceId};

const WINDOWS: usize = 21;
const BLOCK: usize = 4096;
/// What is read at random: small enough for the processor's cache, so that the layers show.
const BLOCKS: u64 = 256;
const READS: u64 = 20_000;
const DEPTHS: [usize; 2] = [1, 32];

/// Nanoseconds an operation: the median of the windows, and their spread.
struct Figure(f64, f64, f64);

impl Figure {
    fn of(mut windows: Vec<f64>) -> Self {
        windows.sort_unstable_by(f64::total_cmp);
        Self(windows[windows.len() / 2], windows[0], windows[windows.len() - 1])
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} ns ({:.0}-{:.0})", self.0, self.1, self.2)
    }
}

fn reactor() -> Rc<Reactor> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Reactor::new(ReactorOptions {
        index: 0,
        wait: Wait::Adaptive,
        permits: SpinPermits::new(cpus),
        clock: Clock::real(),
    })
    .expect("io_uring")
}

/// Nanoseconds a read takes the device, with `depth` of them always in flight.
async fn device_reads<D: BlockDevice>(device: &D, arena: &DmaArena, depth: usize) -> f64 {
    let lane = |number: usize| async move {
        let mut rng = fastrand::Rng::with_seed(number as u64);
        let mut buffer = arena.allocate(BLOCK).expect("an idle arena");
        for _ in 0..READS / depth as u64 {
            let block = Lba(rng.u64(0..BLOCKS));
            buffer = device.read(block, buffer).await.expect("memory does not fail");
        }
        black_box(buffer);
    };
    let begin = Instant::now();
    join_all((0..depth).map(lane)).await;
    begin.elapsed().as_nanos() as f64 / READS as f64
}

/// The same through a volume.
async fn volume_reads<D: BlockDevice>(volume: &VolumeIo<D>, arena: &DmaArena, depth: usize) -> f64 {
    let lane = |number: usize| async move {
        let mut rng = fastrand::Rng::with_seed(number as u64);
        let mut buffer = arena.allocate(BLOCK).expect("an idle arena");
        for _ in 0..READS / depth as u64 {
            let offset = ByteOffset(rng.u64(0..BLOCKS) * BLOCK as u64);
            buffer = volume.read(offset, buffer).await.expect("memory does not fail");
        }
        black_box(buffer);
    };
    let begin = Instant::now();
    join_all((0..depth).map(lane)).await;
    begin.elapsed().as_nanos() as f64 / READS as f64
}

async fn device_writes<D: BlockDevice>(device: &D, arena: &DmaArena, depth: usize) -> f64 {
    let lane = |number: usize| async move {
        let mut rng = fastrand::Rng::with_seed(number as u64);
        let mut buffer = arena.allocate_zeroed(BLOCK).expect("an idle arena");
        for _ in 0..READS / depth as u64 {
            let block = Lba(rng.u64(0..BLOCKS));
            let written = device.write(block, buffer, Durability::Cached).await;
            buffer = written.expect("memory does not fail");
        }
        black_box(buffer);
    };
    let begin = Instant::now();
    join_all((0..depth).map(lane)).await;
    begin.elapsed().as_nanos() as f64 / READS as f64
}

/// A pool on `device` with one volume, its first clusters mapped and durable.
async fn volume(
    device: &MemoryChannel,
    reactor: &Rc<Reactor>,
    arena: &DmaArena,
) -> (Rc<Store<MemoryChannel>>, VolumeIo<MemoryChannel>) {
    let layout = LayoutOptions { cluster_size: ByteCount(1 << 20), metadata_ratio_percent: 100 };
    let options = FormatOptions { name: "pool".to_owned(), uuid: None, layout };
    Store::format(device, arena, &options).await.expect("a blank device");
    let store = Store::open(device.clone(), reactor, arena).await.expect("a fresh pool");
    let remote = store.remote().expect("it is open");
    let io = StoreIo::attach(remote, reactor, device.clone(), arena).await.expect("it is open");
    let new = NewVolume::thin("volume", ByteCount(16 << 20));
    let made = store.create_volume(new).await.expect("a new name");
    let volume = io.volume(made.id).await.expect("it was just made");
    for block in 0..BLOCKS {
        let offset = ByteOffset(block * BLOCK as u64);
        let mut buffer = arena.allocate(BLOCK).expect("an idle arena");
        buffer.fill(block as u8 + 1);
        volume.write(offset, buffer, Durability::Cached).await.expect("there is space");
    }
    volume.flush().await.expect("memory does not fail");
    (store, volume)
}

/// The lvolstore's part: reads of mapped clusters, beside the same reads of the bare device.
fn lvolstore(reactor: &Rc<Reactor>, arena: &DmaArena) {
    let device = MemoryDevice::new(ByteCount(256 << 20), BlockSize::B4096).channel();
    let (_store, volume) = reactor.block_on(volume(&device, reactor, arena));
    // The same blocks below: those of the volume's first cluster.
    for depth in DEPTHS {
        let (mut below, mut above) = (Vec::new(), Vec::new());
        for _ in 0..WINDOWS {
            below.push(reactor.block_on(device_reads(&device, arena, depth)));
            above.push(reactor.block_on(volume_reads(&volume, arena, depth)));
        }
        let added =
            Figure::of(above.iter().zip(&below).map(|(above, below)| above - below).collect());
        let (below, above) = (Figure::of(below), Figure::of(above));
        println!(
            "4 KiB read at depth {depth}: device in memory {below}, a volume on it {above}, added {added}"
        );
    }
}

/// The driver's part: it on one thread, the emulated controller on another.
async fn driver(reactor: &Rc<Reactor>, arena: &DmaArena) {
    let memory = Memory::new(MemoryGeometry::new(BlockSize::B4096, BlockCount(1 << 16)));
    let settings = Settings { io_queues: 2, ..Settings::default() };
    let emulated = EmulatedController::new(settings, memory).expect("descriptors");
    let _thread = ControllerThread::spawn(Arc::clone(&emulated)).expect("a thread");
    let wanted = Wanted::new(Some(NamespaceId(1)), 1);
    let opened = NvmeController::open(reactor, arena, emulated, &wanted).await;
    let (controller, devices) = opened.expect("it comes up");
    let channel: NvmeChannel = devices[0].channel(reactor, arena).expect("it was asked for");
    for depth in DEPTHS {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for _ in 0..WINDOWS {
            reads.push(device_reads(&channel, arena, depth).await);
            writes.push(device_writes(&channel, arena, depth).await);
        }
        let (reads, writes) = (Figure::of(reads), Figure::of(writes));
        println!(
            "driver and emulated controller, 4 KiB at depth {depth}: read {reads}, write {writes}"
        );
    }
    let (hot, cold) = channel.queue_counters();
    println!("of these commands: polled {:?}, with interrupt {:?}", hot, cold);
    drop(channel);
    controller.shut_down().await.expect("it is well");
}

fn main() {
    let reactor = reactor();
    let arena = DmaArena::new(ByteCount(64 << 20), false).expect("memory");
    lvolstore(&reactor, &arena);
    reactor.block_on(driver(&reactor, &arena));
}
