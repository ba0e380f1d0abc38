//! What reservations cost: the gate, which every operation of every host passes, with nothing
//! reserved and with a reservation held; and a Register, with its state kept nowhere, and in a
//! file that is durable before the answer.
//!
//! Run with `cargo bench --bench gate`; the spread of the gate is that of twenty windows, of a
//! Register that of its runs. Files are made in the folder `GATE_FOLDER`, or the working directory.

#![expect(clippy::print_stdout, reason = "the figures are the program's output")]

use std::hint::black_box;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use lvolfs::block::AnyDevice;
use lvolfs::block::memory::MemoryDevice;
use lvolfs::hw::dma::DmaArena;
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::lvol::{FormatOptions, Tracker};
use lvolfs::reactor::policy::SpinPermits;
use lvolfs::reactor::{Clock, Reactor, ReactorOptions, Wait};
use lvolfs::reservation::{
    Acquire, Command, ExistingKey, Key, Persistence, Register, ReservationType, StateFile,
};
use lvolfs::spec::reservation::HostId;
use lvolfs::units::{BlockSize, ByteCount};
use lvolfs::volume::{
    Access, Attributes, Catalog, Directory, Entry, Hosts, Keeping, NewVolume, Pool, PoolOwner,
    Store, Volume,
};

const WINDOWS: usize = 20;
const CHECKS_PER_WINDOW: usize = 1_000_000;
const REGISTERS: usize = 200;

fn host(number: u8) -> HostId {
    HostId::new([number; 16]).expect("not zero")
}

/// A pool with one volume, on one reactor.
struct Bench {
    catalog: Rc<Catalog>,
    entry: Arc<Entry>,
    owner: Rc<PoolOwner>,
    pool: Arc<Pool>,
}

impl Bench {
    async fn new(reactor: &Rc<Reactor>, keeping: Keeping) -> Self {
        let arena = DmaArena::new(ByteCount(16 << 20), false).expect("memory for the arena");
        let device = AnyDevice::Memory(MemoryDevice::new(ByteCount(64 << 20), BlockSize::B4096));
        let channel = device.channel(reactor, &arena).expect("memory has channels");
        let layout = LayoutOptions { cluster_size: ByteCount(64 << 10), ..Default::default() };
        let options = FormatOptions { name: "p".into(), uuid: None, layout };
        Store::format(&channel, &arena, &options).await.expect("a blank device");
        let store = Store::open(channel.clone(), reactor, &arena).await.expect("a fresh pool");
        let remote = store.remote().expect("it is open");
        let directory = Directory::new(Hosts::new(host(9), keeping));
        let defaults = Attributes::new(0o600, 0, 0);
        let opened = PoolOwner::open(reactor, store, &directory, defaults).await;
        let (owner, pool) = opened.expect("a fresh pool");
        let catalog = Rc::new(Catalog::new(reactor, &arena, &directory));
        catalog.attach(&pool, remote, channel).await.expect("it is open");
        let (name, size) = ("v".to_owned(), ByteCount(1 << 20));
        let new = NewVolume { name, size, thin: true, uuid: None, attributes: None };
        let entry = catalog.create(&pool, new).await.expect("there is space");
        Self { catalog, entry, owner, pool }
    }

    async fn volume(&self, host: HostId) -> Rc<Volume> {
        self.catalog.volume_for(self.entry.key(), host).await.expect("it is there")
    }

    async fn register(&self, key: u64, persistence: Persistence) {
        let command = Command::Register {
            action: Register::Replace(Key(key)),
            existing: ExistingKey::Ignored,
            persistence: Some(persistence),
        };
        self.catalog.reserve(&self.entry, host(1), command).await.expect("a valid command");
    }

    async fn close(self) {
        self.owner.close(&self.pool).await.expect("memory does not fail");
    }
}

fn figures(mut figures: Vec<f64>) -> (f64, f64, f64) {
    figures.sort_by(f64::total_cmp);
    (figures[figures.len() / 2], figures[0], figures[figures.len() - 1])
}

/// Prints nanoseconds for one `operation`.
fn gate(what: &str, operation: impl Fn()) {
    let window = |_| {
        let begin = Instant::now();
        for _ in 0..CHECKS_PER_WINDOW {
            operation();
        }
        begin.elapsed().as_nanos() as f64 / CHECKS_PER_WINDOW as f64
    };
    let (median, best, worst) = figures((0..WINDOWS).map(window).collect());
    println!("{what:>52}: {median:6.2} ns (best {best:.2}, worst {worst:.2})");
}

/// As an operation passes the gate: asked, counted, ended.
fn pass(volume: &Volume, tracker: &Tracker, allowed: bool) {
    let passed = black_box(volume).check(black_box(Access::Write));
    assert_eq!(passed.is_ok(), allowed);
    if allowed {
        black_box(tracker.enter()).finish();
    }
}

async fn gates(reactor: &Rc<Reactor>) {
    let bench = Bench::new(reactor, Keeping::Nowhere).await;
    let (ours, theirs) = (bench.volume(host(1)).await, bench.volume(host(2)).await);
    let tracker = Tracker::default();
    gate("gate, nothing reserved", || pass(&ours, &tracker, true));
    bench.register(7, Persistence::Volatile).await;
    let command = Command::Acquire {
        action: Acquire::Acquire,
        key: Key(7),
        reservation_type: ReservationType::WriteExclusive,
    };
    bench.catalog.reserve(&bench.entry, host(1), command).await.expect("nobody holds one");
    gate("gate, the holder of a reservation", || pass(&ours, &tracker, true));
    gate("gate, a host that a reservation keeps out", || pass(&theirs, &tracker, false));
    gate("of it, counting the operation", || black_box(tracker.enter()).finish());
    drop((ours, theirs));
    bench.close().await;
}

fn print_times(what: &str, times: Vec<f64>) {
    let (median, best, worst) = figures(times);
    println!("{what:>52}: {median:8.1} us (best {best:.1}, worst {worst:.1})");
}

async fn registers(reactor: &Rc<Reactor>, folder: &Path) {
    for (what, keeping, persistence) in [
        ("register, kept nowhere", Keeping::Nowhere, Persistence::Volatile),
        ("register, in a file", Keeping::Folder(folder.into()), Persistence::ThroughPowerLoss),
    ] {
        let bench = Bench::new(reactor, keeping).await;
        let mut times = Vec::new();
        for key in 1..=REGISTERS as u64 {
            let begin = Instant::now();
            bench.register(key, persistence).await;
            times.push(begin.elapsed().as_nanos() as f64 / 1000.0);
        }
        print_times(what, times);
        bench.close().await;
    }
}

/// The same file without a reactor and a thread: what the file system alone takes.
async fn stores(reactor: &Rc<Reactor>, folder: &Path) {
    let bench = Bench::new(reactor, Keeping::Nowhere).await;
    let path = folder.join("alone.json");
    let (mut file, _) = StateFile::load(&path, bench.entry.uuid());
    let mut times = Vec::new();
    for key in 1..=REGISTERS as u64 {
        let command = Command::Register {
            action: Register::Replace(Key(key)),
            existing: ExistingKey::Ignored,
            persistence: Some(Persistence::ThroughPowerLoss),
        };
        let state = bench.entry.gate().reservations();
        let after = state.apply(host(1), &command).expect("a valid command").after;
        let begin = Instant::now();
        file.store(&after).expect("the folder is there");
        times.push(begin.elapsed().as_nanos() as f64 / 1000.0);
    }
    print_times("of it, the five steps of the file", times);
    bench.close().await;
}

fn main() {
    let permits = SpinPermits::new(1);
    let clock = Clock::Real(Instant::now());
    let options = ReactorOptions { index: 0, wait: Wait::Adaptive, permits, clock };
    let reactor = Reactor::new(options).expect("io_uring");
    let below = std::env::var("GATE_FOLDER").unwrap_or_else(|_| ".".to_owned());
    let folder = tempfile::tempdir_in(below).expect("a folder for the state file");
    reactor.block_on(async {
        gates(&reactor).await;
        registers(&reactor, folder.path()).await;
        stores(&reactor, folder.path()).await;
    });
}
