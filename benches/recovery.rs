//! Opening a pool that was not closed: 1 TiB, clusters of 4 MiB, on a sparse device in memory.
//!
//! The whole metadata region, 1 GiB, is read and checked. Beside it, in the same run: the time to
//! only read the region, with reads of the same size and as many at once. Once as it is, most of
//! the region a hole, which costs a device in memory next to nothing to read; and once with all of
//! it in memory, which is copied as a drive's blocks are. Run with `cargo bench --bench recovery`;
//! the figures are medians.

#![expect(clippy::print_stdout, reason = "the figures are the program's output")]

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use lvolfs::block::memory::{MemoryChannel, MemoryDevice};
use lvolfs::block::{BlockDevice, Durability};
use lvolfs::hw::dma::DmaArena;
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::lvol::{FormatOptions, NewVolume, Store, StoreIo};
use lvolfs::reactor::{Reactor, ReactorOptions};
use lvolfs::units::{BlockSize, ByteCount, ByteOffset, Lba};

const DEVICE: u64 = 1 << 40;
const CLUSTER: u64 = 4 << 20;
const VOLUMES: u64 = 64;
/// First writes into each volume, each to a cluster of its own.
const WRITES_EACH: u64 = 512;
const RUNS: usize = 7;
const READ: usize = 1 << 20;
const DEPTH: usize = 8;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn fill(device: &MemoryChannel, reactor: &std::rc::Rc<Reactor>, arena: &DmaArena) {
    let layout = LayoutOptions { cluster_size: ByteCount(CLUSTER), metadata_ratio_percent: 100 };
    let options = FormatOptions { name: "pool".to_owned(), uuid: None, layout };
    Store::format(device, arena, &options).await.expect("a blank device");
    let store = Store::open(device.clone(), reactor, arena).await.expect("a fresh pool");
    let remote = store.remote().expect("it is open");
    let io = StoreIo::attach(remote, reactor, device.clone(), arena).await.expect("it is open");
    let mut rng = fastrand::Rng::with_seed(1);
    let size = DEVICE / VOLUMES;
    for number in 0..VOLUMES {
        let new = NewVolume::thin(&format!("volume{number}"), ByteCount(size));
        let volume = store.create_volume(new).await.expect("a new name");
        let volume = io.volume(volume.id).await.expect("it was just made");
        for _ in 0..WRITES_EACH {
            let offset = ByteOffset(rng.u64(0..size / CLUSTER) * CLUSTER);
            let buffer = arena.allocate_zeroed(4096).expect("an idle arena");
            volume.write(offset, buffer, Durability::Cached).await.expect("there is space");
        }
        volume.flush().await.expect("memory does not fail");
    }
}

async fn read_region(device: &MemoryChannel, arena: &DmaArena, bytes: u64) {
    let shift = device.geometry().block_size.shift();
    let reads = (0..bytes).step_by(READ).map(|at| async move {
        let buffer = arena.allocate(READ).expect("an idle arena");
        device.read(Lba(at >> shift), buffer).await.expect("memory does not fail").len()
    });
    let mut reads = stream::iter(reads).buffer_unordered(DEPTH);
    while let Some(length) = reads.next().await {
        std::hint::black_box(length);
    }
}

/// Makes the device hold what it read as: chunks of a sparse one become memory of their own, as a
/// drive has its blocks.
async fn make_dense(device: &MemoryChannel, arena: &DmaArena, bytes: u64) {
    let shift = device.geometry().block_size.shift();
    for at in (0..bytes).step_by(READ) {
        let buffer = arena.allocate(READ).expect("an idle arena");
        let buffer = device.read(Lba(at >> shift), buffer).await.expect("memory does not fail");
        let written = device.write(Lba(at >> shift), buffer, Durability::Cached).await;
        drop(written.expect("memory does not fail"));
    }
}

fn main() {
    let reactor = Reactor::new(ReactorOptions::deterministic()).expect("io_uring");
    let arena = DmaArena::new(ByteCount(64 << 20), false).expect("memory");
    let device = MemoryDevice::new(ByteCount(DEVICE), BlockSize::B4096).channel();
    reactor.block_on(fill(&device, &reactor, &arena));
    let region = DEVICE / CLUSTER * 4096;
    for dense in [false, true] {
        if dense {
            reactor.block_on(make_dense(&device, &arena, region));
        }
        let (mut opening, mut reading) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let begin = Instant::now();
            let store = reactor.block_on(Store::open(device.clone(), &reactor, &arena));
            opening.push(begin.elapsed());
            let store = store.expect("it was committed");
            assert!(!store.recovery().clean && store.volumes().len() as u64 == VOLUMES);
            let begin = Instant::now();
            reactor.block_on(read_region(&device, &arena, region));
            reading.push(begin.elapsed());
        }
        let (opening, reading) = (median(opening), median(reading));
        println!(
            "recovery of 1 TiB, {VOLUMES} volumes, {}: {opening:.2?}; reading its {} MiB of metadata \
             alone: {reading:.2?}; {:.0} % of the raw bandwidth",
            if dense { "the region in memory" } else { "most of the region a hole" },
            region >> 20,
            100.0 * reading.as_secs_f64() / opening.as_secs_f64()
        );
    }
}
