//! The power goes under a mount: random writes, `O_DSYNC` writes, fsyncs, truncates and discards as
//! FUSE operations, through volume, lvolstore and NVMe driver, to an emulated controller that loses,
//! keeps and reorders what its volatile cache holds. After each cut the pool is opened again, and
//! everything that was durable must be there.
//!
//! Requests come as each of the two transports brings them (`fuse_wire.rs`), in turn by seed.
//!
//! The unit of the checks is 512 bytes, an eighth of a block, so that parts of blocks that are
//! written at once are among them. A failure prints its seed; `SEED=n cargo test --test it
//! fuse_power_cut` runs one seed, `POWER_CUTS=n` runs n of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::join_all;
use lvolfs::block::AnyDevice;
use lvolfs::block::nvme::{NvmeController, Wanted};
use lvolfs::emulated::{EmulatedController, Memory, MemoryGeometry, Settings};
use lvolfs::fuse::request::{Changes, FileHandle, NodeId, Operation};
use lvolfs::hw::dma::DmaArena;
use lvolfs::hw::event::EventFd;
use lvolfs::lvol::FormatOptions;
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::reactor::{Instant, Poller, Reactor, ReactorOptions, Registration};
use lvolfs::units::{BlockCount, BlockSize, ByteCount, NamespaceId};
use lvolfs::volume::Store;

use super::fuse_operations::Served;
use super::fuse_wire::Manner;
use super::lvolstore::model::{ModelVolume, Span};

/// Small clusters, so that little data makes many mappings.
const CLUSTER: u64 = 16 << 10;
/// What is written, compared and cut off at once.
const UNIT: u64 = 512;
const PER_CLUSTER: u64 = CLUSTER / UNIT;
const DISK: u64 = 2 << 20;
const VOLUMES: [&str; 2] = ["a", "b"];
const FIRST_CLUSTERS: u64 = 6;
/// Operations, or batches of them, in one run.
const STEPS: usize = 10;
/// Runs that share a reactor and an arena. A queue pair that is dropped while its controller runs
/// keeps its memory, as it must; so arenas are not for ever.
const RUNS_IN_A_BENCH: usize = 8;
/// Cuts that are examined in one run, at most.
const CUTS: usize = 3;

/// One thread's reactor and memory, and a formatted disk to begin with.
struct Bench {
    reactor: Rc<Reactor>,
    arena: DmaArena,
    formatted: RefCell<Option<Memory>>,
}

/// A controller that carries out one command in each turn, and keeps pictures of its disk: what
/// a power cut at that moment would have to work with.
struct Stepped {
    emulated: Arc<EmulatedController>,
    commands: Cell<u64>,
    rng: RefCell<fastrand::Rng>,
    next_cut: Cell<u64>,
    cuts: RefCell<Vec<(u64, Memory)>>,
}

impl Poller for Stepped {
    fn poll(&self, _now: Instant) -> usize {
        if !self.emulated.has_work() {
            return 0;
        }
        let number = self.commands.get() + 1;
        if number >= self.next_cut.get() && self.cuts.borrow().len() < CUTS {
            let memory = self.emulated.snapshot().unwrap();
            self.cuts.borrow_mut().push((number, memory));
            self.next_cut.set(number + self.rng.borrow_mut().u64(1..60));
        }
        let done = self.emulated.step(1);
        self.commands.set(self.commands.get() + done as u64);
        done
    }

    fn outstanding(&self) -> bool {
        false
    }

    fn event(&self) -> Option<Arc<EventFd>> {
        None
    }
}

/// The whole stack over one controller.
struct Stack {
    device: AnyDevice,
    stepped: Rc<Stepped>,
    controller: NvmeController,
    _steps: Registration,
}

impl Bench {
    fn new() -> Self {
        let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
        let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
        Self { reactor, arena, formatted: RefCell::default() }
    }

    /// A controller over `memory` and our driver on it. Cuts begin at command `first_cut`.
    async fn stack(&self, memory: Memory, seed: u64) -> Stack {
        let settings = Settings {
            io_queues: 2,
            queue_entries: 64,
            vectors: 2,
            // Without a seed commands are carried out in the order of their submission.
            reorder: (!seed.is_multiple_of(4)).then_some(seed),
            ..Settings::default()
        };
        let emulated = EmulatedController::new(settings, memory).unwrap();
        let stepped = Rc::new(Stepped {
            emulated: Arc::clone(&emulated),
            commands: Cell::new(0),
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            next_cut: Cell::new(u64::MAX),
            cuts: RefCell::default(),
        });
        let steps = self.reactor.register(Rc::clone(&stepped) as Rc<dyn Poller>);
        let wanted = Wanted::new(Some(NamespaceId(1)), 1);
        let opened = NvmeController::open(&self.reactor, &self.arena, emulated, &wanted);
        let (controller, devices) = opened.await.unwrap();
        let [device] = &*devices else { panic!("one namespace was asked for") };
        let device = AnyDevice::Nvme(device.clone());
        Stack { device, stepped, controller, _steps: steps }
    }

    async fn serve(&self, stack: &Stack) -> Served {
        Served::open(&self.reactor, stack.device.clone(), self.arena.clone()).await
    }

    /// A pool with its volumes, durable; the same for every run.
    async fn formatted(&self) -> Memory {
        if let Some(memory) = &*self.formatted.borrow() {
            return memory.clone();
        }
        let blocks = BlockCount(DISK >> BlockSize::B4096.shift());
        let memory = Memory::new(MemoryGeometry::new(BlockSize::B4096, blocks));
        let stack = self.stack(memory, 0).await;
        let layout =
            LayoutOptions { cluster_size: ByteCount(CLUSTER), metadata_ratio_percent: 100 };
        let uuid = Some(uuid::Uuid::from_u128(1));
        let options = FormatOptions { name: "p".into(), uuid, layout };
        // The device gives out one channel: formatting has a stack of its own.
        let channel = stack.device.channel(&self.reactor, &self.arena).unwrap();
        Store::format(&channel, &self.arena, &options).await.unwrap();
        drop(channel);
        let memory = stack.stepped.emulated.snapshot().unwrap();
        stack.end().await;
        let stack = self.stack(memory, 0).await;
        let served = self.serve(&stack).await;
        for name in VOLUMES {
            served.volume(name, FIRST_CLUSTERS * CLUSTER).await;
        }
        served.close().await;
        drop(served);
        let memory = stack.stepped.emulated.snapshot().unwrap();
        stack.end().await;
        *self.formatted.borrow_mut() = Some(memory.clone());
        memory
    }
}

impl Stack {
    /// Ends the use of the controller, which gives its memory back.
    async fn end(self) {
        self.controller.shut_down().await.unwrap();
        let counters = self.stepped.emulated.counters();
        assert_eq!((counters.outside_window, counters.invalid_doorbells), (0, 0));
    }
}

/// A workload, and what it must leave.
struct Run {
    served: Served,
    /// By which transport its requests come.
    manner: Manner,
    stepped: Rc<Stepped>,
    nodes: Vec<NodeId>,
    model: RefCell<Vec<ModelVolume>>,
    rng: RefCell<fastrand::Rng>,
    clock: Cell<u64>,
    next: Cell<u64>,
}

impl Run {
    async fn new(served: Served, stepped: Rc<Stepped>, seed: u64) -> Self {
        let mut nodes = Vec::new();
        for name in VOLUMES {
            nodes.push(served.lookup(name).await.unwrap());
        }
        let before = Span { began: 0, ended: 0, first_command: 0, last_command: 0 };
        let model = VOLUMES
            .map(|name| ModelVolume::new(before, name.to_owned(), FIRST_CLUSTERS, String::new()));
        Self {
            served,
            manner: manner_of(seed),
            stepped,
            nodes,
            model: RefCell::new(model.into()),
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            clock: Cell::new(0),
            next: Cell::new(1),
        }
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// A beginning: what the two clocks show.
    fn begin(&self) -> (u64, u64) {
        (self.tick(), self.stepped.commands.get())
    }

    fn end(&self, (began, first_command): (u64, u64)) -> Span {
        let last_command = self.stepped.commands.get();
        Span { began, ended: self.tick(), first_command, last_command }
    }

    fn random(&self, end: u64) -> u64 {
        self.rng.borrow_mut().u64(0..end)
    }

    fn units_of(&self, volume: usize) -> u64 {
        self.model.borrow()[volume].clusters() * PER_CLUSTER
    }

    async fn step(&self) {
        match self.random(10) {
            0 => self.truncate(self.random(2) as usize).await,
            1 | 2 => self.fsync(self.random(2) as usize).await,
            _ => self.batch().await,
        }
    }

    /// Several operations at once; no unit is touched by two of them.
    async fn batch(&self) {
        let mut taken = BTreeSet::new();
        let mut tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
        for _ in 0..=self.random(5) {
            let volume = self.random(2) as usize;
            let (units, kind) = (self.units_of(volume), self.random(16));
            if units == 0 || kind == 15 {
                tasks.push(Box::pin(self.fsync(volume)));
                continue;
            }
            let longest = if kind >= 12 { 3 * PER_CLUSTER } else { 20 };
            let first = self.random(units);
            let count = (1 + self.random(longest)).min(units - first);
            let mut range = (first..first + count).map(|unit| (volume, unit));
            if range.clone().any(|unit| taken.contains(&unit)) {
                continue;
            }
            taken.extend(&mut range);
            tasks.push(match kind {
                0..4 => Box::pin(self.write(volume, first, count, libc::O_DSYNC)),
                4..12 => Box::pin(self.write(volume, first, count, 0)),
                12 | 13 => Box::pin(self.zero(volume, first, count, libc::FALLOC_FL_PUNCH_HOLE)),
                _ => Box::pin(self.zero(volume, first, count, libc::FALLOC_FL_ZERO_RANGE)),
            });
        }
        join_all(tasks).await;
    }

    async fn write(&self, volume: usize, first: u64, count: u64, flags: i32) {
        let start = self.next.get();
        self.next.set(start + count);
        let values = start..start + count;
        let of_unit = |value: u64| value.to_le_bytes().repeat(UNIT as usize / 8);
        let data: Vec<u8> = values.clone().flat_map(of_unit).collect();
        let operation = Operation::Write {
            handle: FileHandle(0),
            offset: first * UNIT,
            size: data.len() as u32,
            flags: flags.cast_unsigned(),
        };
        let beginning = self.begin();
        self.served.ask_by(self.manner, self.nodes[volume], &operation, Some(&data)).await.unwrap();
        let span = self.end(beginning);
        let mut model = self.model.borrow_mut();
        for (unit, value) in (first..).zip(values) {
            model[volume].write(span, unit, value, flags & libc::O_DSYNC != 0);
        }
    }

    /// Gives a range back, or writes zeros to it: zeros, once it is flushed.
    async fn zero(&self, volume: usize, first: u64, count: u64, mode: i32) {
        let mode = (mode | libc::FALLOC_FL_KEEP_SIZE).cast_unsigned();
        let (offset, length) = (first * UNIT, count * UNIT);
        let operation = Operation::FAllocate { offset, length, mode };
        let beginning = self.begin();
        self.served.ask_by(self.manner, self.nodes[volume], &operation, None).await.unwrap();
        let span = self.end(beginning);
        let mut model = self.model.borrow_mut();
        for unit in first..first + count {
            model[volume].write(span, unit, 0, false);
        }
    }

    async fn fsync(&self, volume: usize) {
        let beginning = self.begin();
        let operation = Operation::FSync { data_only: self.random(2) == 0 };
        self.served.ask_by(self.manner, self.nodes[volume], &operation, None).await.unwrap();
        let span = self.end(beginning);
        self.model.borrow_mut()[volume].fsync(span);
    }

    /// The size is durable at once. What is left of the last cluster behind it reads as zeros.
    async fn truncate(&self, volume: usize) {
        let (before, units) = (self.units_of(volume), self.random(10 * PER_CLUSTER));
        let beginning = self.begin();
        let handle = Some(FileHandle(0));
        let changes = Changes { size: Some(units * UNIT), handle, ..Default::default() };
        let operation = Operation::SetAttr(changes);
        self.served.ask_by(self.manner, self.nodes[volume], &operation, None).await.unwrap();
        let span = self.end(beginning);
        let clusters = units.div_ceil(PER_CLUSTER);
        let mut model = self.model.borrow_mut();
        model[volume].resize(span, clusters, PER_CLUSTER);
        if units < before {
            for unit in units..(clusters * PER_CLUSTER).min(before) {
                model[volume].write(span, unit, 0, false);
            }
        }
    }
}

/// Every second seed uses the one transport, the others the other.
fn manner_of(seed: u64) -> Manner {
    if seed.is_multiple_of(2) { Manner::IoUring } else { Manner::DevFuse }
}

/// Opens what a cut left, and compares it with what it must be.
async fn examine(bench: &Bench, model: &[ModelVolume], cut: u64, memory: Memory, seed: u64) {
    let stack = bench.stack(memory, seed).await;
    let served = bench.serve(&stack).await;
    for (name, volume) in VOLUMES.iter().zip(model) {
        let node = served.lookup(name).await.unwrap();
        let mut content = Vec::new();
        loop {
            let (handle, offset) = (FileHandle(0), content.len() as u64);
            let operation = Operation::Read { handle, offset, size: 64 << 10 };
            let read = served.ask_by(manner_of(seed), node, &operation, None).await.unwrap();
            if read.is_empty() {
                break;
            }
            content.extend(read);
        }
        let clusters = content.len() as u64 / CLUSTER;
        let sizes = volume.sizes(cut);
        assert!(sizes.contains(&clusters), "volume {name} has {clusters} clusters, not {sizes:?}");
        for (unit, bytes) in content.chunks(UNIT as usize).enumerate() {
            let found = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let one = bytes.chunks(8).all(|word| word == &bytes[..8]);
            let allowed = volume.values(unit as u64, cut);
            assert!(
                one && allowed.contains(&found),
                "volume {name}, unit {unit}: found {found} (one: {one}), not {allowed:?}"
            );
        }
    }
    served.close().await;
    drop(served);
    stack.end().await;
}

/// One workload and its cuts; returns how many.
async fn run(bench: &Bench, seed: u64) -> usize {
    let told = Told(format!("seed {seed}"));
    let stack = bench.stack(bench.formatted().await, seed).await;
    let served = bench.serve(&stack).await;
    let stepped = Rc::clone(&stack.stepped);
    let run = Run::new(served, Rc::clone(&stepped), seed).await;
    stepped.next_cut.set(stepped.commands.get() + 1 + run.random(60));
    for _ in 0..STEPS {
        run.step().await;
    }
    let cuts = stepped.cuts.take();
    stepped.next_cut.set(u64::MAX);
    run.served.close().await;
    let Run { model, served, .. } = run;
    let model = model.into_inner();
    drop(served);
    stack.end().await;
    let count = cuts.len();
    for (command, mut memory) in cuts {
        let _told = Told(format!("command {command}"));
        memory.power_cut(seed ^ command << 32);
        examine(bench, &model, command, memory, seed).await;
    }
    drop(told);
    count
}

/// Says where it happened, if it does.
struct Told(String);

impl Drop for Told {
    #[expect(clippy::print_stderr, reason = "a failing test says where it failed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed at {}", self.0);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn a_power_cut_under_the_mount_loses_nothing_that_was_fsynced() {
    if let Some(seed) = number("SEED") {
        let bench = Bench::new();
        bench.reactor.block_on(run(&bench, seed));
        return;
    }
    let seeds = number("POWER_CUTS").unwrap_or(1000);
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(8)) as u64;
    let one = |thread: u64| {
        move || {
            let mut cuts = 0;
            let seeds: Vec<u64> = (0..seeds).filter(|seed| seed % threads == thread).collect();
            for seeds in seeds.chunks(RUNS_IN_A_BENCH) {
                let bench = Bench::new();
                for &seed in seeds {
                    cuts += bench.reactor.block_on(run(&bench, seed));
                }
            }
            cuts
        }
    };
    let running: Vec<_> = (0..threads).map(|thread| std::thread::spawn(one(thread))).collect();
    let cuts: usize = running.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(cuts as u64 >= seeds, "{cuts} cuts in {seeds} runs");
}

/// Who asks while a flush runs shares the next one.
#[test]
fn fsyncs_at_once_share_flushes() {
    const WRITERS: u64 = 4;
    const ROUNDS: u64 = 50;
    const PER_BLOCK: u64 = 4096 / UNIT;
    let bench = Bench::new();
    bench.reactor.block_on(async {
        let stack = bench.stack(bench.formatted().await, 0).await;
        let served = bench.serve(&stack).await;
        let run = Rc::new(Run::new(served, Rc::clone(&stack.stepped), 0).await);
        run.write(0, 0, WRITERS * PER_BLOCK, 0).await;
        run.fsync(0).await;
        let before = stack.stepped.emulated.counters().flushes;
        let writer = |writer| {
            let run = Rc::clone(&run);
            bench.reactor.task(async move {
                for _ in 0..ROUNDS {
                    run.write(0, writer * PER_BLOCK, PER_BLOCK, 0).await;
                    run.fsync(0).await;
                }
            })
        };
        join_all((0..WRITERS).map(writer)).await;
        let flushes = stack.stepped.emulated.counters().flushes - before;
        assert!(flushes >= ROUNDS, "{flushes} flushes for {ROUNDS} fsyncs one after the other");
        let asked = WRITERS * ROUNDS;
        assert!(flushes <= asked * 2 / 3, "{flushes} flushes for {asked} fsyncs");
    });
}
