//! A drive whose power is cut, and what the tests of power cuts have in common, whatever the door:
//! a controller that is stepped and keeps pictures of its disk, a pool on it, the history that says
//! what each cut may find, and what is done with seeds.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use lvolfs::block::AnyDevice;
use lvolfs::block::nvme::{NvmeController, Wanted};
use lvolfs::emulated::{EmulatedController, Memory, MemoryGeometry, Settings};
use lvolfs::fuse::request::{FileHandle, Operation};
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
pub(crate) const CLUSTER: u64 = 16 << 10;
const DISK: u64 = 2 << 20;
pub(crate) const VOLUMES: [&str; 2] = ["a", "b"];
pub(crate) const FIRST_CLUSTERS: u64 = 6;
/// Runs that share a reactor and an arena. A queue pair that is dropped while its controller runs
/// keeps its memory, as it must; so arenas are not for ever.
const RUNS_IN_A_BENCH: usize = 8;
/// Commands between two pictures, at most.
const BETWEEN_PICTURES: u64 = 60;

/// Before which commands a picture is taken.
enum Pictures {
    None,
    Each,
    Some { rng: fastrand::Rng, next: u64, left: usize },
}

impl Pictures {
    /// Whether there is one before command `number`.
    fn wants(&mut self, number: u64) -> bool {
        match self {
            Self::None => false,
            Self::Each => true,
            Self::Some { rng, next, left } => {
                let wanted = number >= *next && *left > 0;
                if wanted {
                    *left -= 1;
                    *next = number + rng.u64(1..BETWEEN_PICTURES);
                }
                wanted
            }
        }
    }
}

/// A controller that carries out one command in each turn, and keeps pictures of its disk: what
/// a power cut at that moment would have to work with.
pub(crate) struct Stepped {
    emulated: Arc<EmulatedController>,
    commands: Cell<u64>,
    wanted: RefCell<Pictures>,
    pictures: RefCell<Vec<(u64, Memory)>>,
}

impl Stepped {
    /// Commands that were carried out.
    pub(crate) fn commands(&self) -> u64 {
        self.commands.get()
    }

    pub(crate) fn flushes(&self) -> u64 {
        self.emulated.counters().flushes
    }

    /// Takes a picture before each command from now on.
    pub(crate) fn picture_each(&self) {
        *self.wanted.borrow_mut() = Pictures::Each;
    }

    /// Takes `count` pictures, at random; the first one before the command that is `first` commands
    /// from here.
    pub(crate) fn picture_some(&self, first: u64, count: usize, seed: u64) {
        let rng = fastrand::Rng::with_seed(seed);
        let next = self.commands() + first;
        *self.wanted.borrow_mut() = Pictures::Some { rng, next, left: count };
    }

    /// The pictures that were taken, each with the number of the command after it; no more are
    /// taken.
    pub(crate) fn pictures(&self) -> Vec<(u64, Memory)> {
        *self.wanted.borrow_mut() = Pictures::None;
        self.pictures.take()
    }
}

impl Poller for Stepped {
    fn poll(&self, _now: Instant) -> usize {
        if !self.emulated.has_work() {
            return 0;
        }
        let number = self.commands() + 1;
        if self.wanted.borrow_mut().wants(number) {
            let picture = self.emulated.snapshot().unwrap();
            self.pictures.borrow_mut().push((number, picture));
        }
        let done = self.emulated.step(1);
        self.commands.set(self.commands() + done as u64);
        done
    }

    fn outstanding(&self) -> bool {
        false
    }

    fn event(&self) -> Option<Arc<EventFd>> {
        None
    }
}

/// The controller over some memory, and our driver on it.
pub(crate) struct Drive {
    pub(crate) device: AnyDevice,
    pub(crate) stepped: Rc<Stepped>,
    controller: NvmeController,
    _steps: Registration,
}

impl Drive {
    /// A drive that gives out so many channels. Without a seed to reorder them by, commands are
    /// carried out in the order of their submission.
    pub(crate) async fn new(
        reactor: &Rc<Reactor>,
        arena: &DmaArena,
        memory: Memory,
        channels: u16,
        reorder: Option<u64>,
    ) -> Self {
        let settings = Settings {
            io_queues: 2 * channels,
            queue_entries: 64,
            vectors: 1 + channels,
            reorder,
            ..Settings::default()
        };
        let emulated = EmulatedController::new(settings, memory).unwrap();
        let stepped = Rc::new(Stepped {
            emulated: Arc::clone(&emulated),
            commands: Cell::new(0),
            wanted: RefCell::new(Pictures::None),
            pictures: RefCell::default(),
        });
        let steps = reactor.register(Rc::clone(&stepped) as Rc<dyn Poller>);
        let wanted = Wanted::new(Some(NamespaceId(1)), channels);
        let opened = NvmeController::open(reactor, arena, emulated, &wanted);
        let (controller, devices) = opened.await.unwrap();
        let [device] = &*devices else { panic!("one namespace was asked for") };
        let device = AnyDevice::Nvme(device.clone());
        Self { device, stepped, controller, _steps: steps }
    }

    /// What is on its disk and in its cache now.
    fn memory(&self) -> Memory {
        self.stepped.emulated.snapshot().unwrap()
    }

    /// Ends the use of the controller, which gives its memory back.
    pub(crate) async fn end(self) {
        drop(self.device);
        self.controller.shut_down().await.unwrap();
        let counters = self.stepped.emulated.counters();
        assert_eq!((counters.outside_window, counters.invalid_doorbells), (0, 0));
    }
}

/// One thread's reactor and memory, and a formatted disk to begin with.
pub(crate) struct Bench {
    pub(crate) reactor: Rc<Reactor>,
    pub(crate) arena: DmaArena,
    /// Channels that its drives give out.
    channels: u16,
    formatted: RefCell<Option<Memory>>,
}

impl Bench {
    pub(crate) fn new(channels: u16) -> Self {
        let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
        let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
        Self { reactor, arena, channels, formatted: RefCell::default() }
    }

    pub(crate) async fn drive(&self, memory: Memory, seed: u64) -> Drive {
        let reorder = (!seed.is_multiple_of(4)).then_some(seed);
        Drive::new(&self.reactor, &self.arena, memory, self.channels, reorder).await
    }

    pub(crate) async fn serve(&self, drive: &Drive) -> Served {
        Served::open(&self.reactor, drive.device.clone(), self.arena.clone()).await
    }

    /// A pool with its volumes, durable; the same for every run.
    pub(crate) async fn formatted(&self) -> Memory {
        if let Some(memory) = &*self.formatted.borrow() {
            return memory.clone();
        }
        let blocks = BlockCount(DISK >> BlockSize::B4096.shift());
        let memory = Memory::new(MemoryGeometry::new(BlockSize::B4096, blocks));
        let drive = self.drive(memory, 0).await;
        let layout =
            LayoutOptions { cluster_size: ByteCount(CLUSTER), metadata_ratio_percent: 100 };
        let uuid = Some(uuid::Uuid::from_u128(1));
        let options = FormatOptions { name: "p".into(), uuid, layout };
        // Channels are given out once: formatting has a drive of its own.
        let channel = drive.device.channel(&self.reactor, &self.arena).unwrap();
        Store::format(&channel, &self.arena, &options).await.unwrap();
        drop(channel);
        let memory = drive.memory();
        drive.end().await;
        let drive = self.drive(memory, 0).await;
        let served = self.serve(&drive).await;
        for name in VOLUMES {
            served.volume(name, FIRST_CLUSTERS * CLUSTER).await;
        }
        served.close().await;
        drop(served);
        let memory = drive.memory();
        drive.end().await;
        *self.formatted.borrow_mut() = Some(memory.clone());
        memory
    }

    /// Cuts the power at each picture, opens what is left, and compares it with what it must be.
    pub(crate) async fn examine_all(
        &self,
        pictures: Vec<(u64, Memory)>,
        model: &[ModelVolume],
        unit: u64,
        seed: u64,
    ) {
        for (command, mut memory) in pictures {
            let _told = Told(format!("command {command}"));
            memory.power_cut(seed ^ command << 32);
            let drive = self.drive(memory, seed).await;
            self.examine(&drive, model, command, unit, seed).await;
            drive.end().await;
        }
    }

    async fn examine(&self, drive: &Drive, model: &[ModelVolume], cut: u64, unit: u64, seed: u64) {
        let served = self.serve(drive).await;
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
            assert!(sizes.contains(&clusters), "volume {name}: {clusters} clusters, not {sizes:?}");
            for (index, bytes) in content.chunks(unit as usize).enumerate() {
                let found = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                let one = bytes.chunks(8).all(|word| word == &bytes[..8]);
                let allowed = volume.values(index as u64, cut);
                assert!(
                    one && allowed.contains(&found),
                    "volume {name}, unit {index}: found {found} (one: {one}), not {allowed:?}"
                );
            }
        }
        served.close().await;
    }
}

/// Every second seed uses the one transport, the others the other.
pub(crate) fn manner_of(seed: u64) -> Manner {
    if seed.is_multiple_of(2) { Manner::IoUring } else { Manner::DevFuse }
}

/// What was done to the volumes, and when.
pub(crate) struct History {
    stepped: Rc<Stepped>,
    pub(crate) model: RefCell<Vec<ModelVolume>>,
    rng: RefCell<fastrand::Rng>,
    clock: Cell<u64>,
    next: Cell<u64>,
}

impl History {
    pub(crate) fn new(stepped: &Rc<Stepped>, seed: u64) -> Self {
        let before = Span { began: 0, ended: 0, first_command: 0, last_command: 0 };
        let model = VOLUMES
            .map(|name| ModelVolume::new(before, name.to_owned(), FIRST_CLUSTERS, String::new()));
        Self {
            stepped: Rc::clone(stepped),
            model: RefCell::new(model.into()),
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            clock: Cell::new(0),
            next: Cell::new(1),
        }
    }

    pub(crate) fn random(&self, end: u64) -> u64 {
        self.rng.borrow_mut().u64(0..end)
    }

    /// Begins to keep `count` pictures of the disk.
    pub(crate) fn picture(&self, count: usize, seed: u64) {
        self.stepped.picture_some(1 + self.random(BETWEEN_PICTURES), count, seed);
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// A beginning: what the two clocks show.
    pub(crate) fn begin(&self) -> (u64, u64) {
        (self.tick(), self.stepped.commands())
    }

    pub(crate) fn end(&self, (began, first_command): (u64, u64)) -> Span {
        let last_command = self.stepped.commands();
        Span { began, ended: self.tick(), first_command, last_command }
    }

    pub(crate) fn clusters(&self, volume: usize) -> u64 {
        self.model.borrow()[volume].clusters()
    }

    /// Values that nothing else has, for so many units.
    pub(crate) fn values(&self, count: u64) -> Range<u64> {
        let start = self.next.get();
        self.next.set(start + count);
        start..start + count
    }

    pub(crate) fn written(
        &self,
        span: Span,
        volume: usize,
        first: u64,
        values: impl Iterator<Item = u64>,
        durable: bool,
    ) {
        let mut model = self.model.borrow_mut();
        for (unit, value) in (first..).zip(values) {
            model[volume].write(span, unit, value, durable);
        }
    }

    pub(crate) fn flushed(&self, span: Span, volume: usize) {
        self.model.borrow_mut()[volume].fsync(span);
    }
}

/// What units of so many bytes with these values hold.
pub(crate) fn content(values: impl Iterator<Item = u64>, unit: u64) -> Vec<u8> {
    values.flat_map(|value| value.to_le_bytes().repeat(unit as usize / 8)).collect()
}

/// Says where it happened, if it does.
pub(crate) struct Told(pub(crate) String);

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

/// Runs each seed, which returns how many cuts it had: the one in `SEED`, else as many as
/// `POWER_CUTS` says, else `usual`.
pub(crate) fn cut_with_seeds(
    channels: u16,
    usual: u64,
    run: impl AsyncFn(&Bench, u64) -> usize + Copy + Sync,
) {
    let told = async |bench: &Bench, seed: u64| {
        let _told = Told(format!("seed {seed}"));
        run(bench, seed).await
    };
    if let Some(seed) = number("SEED") {
        let bench = Bench::new(channels);
        bench.reactor.block_on(told(&bench, seed));
        return;
    }
    let seeds = number("POWER_CUTS").unwrap_or(usual);
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(8)) as u64;
    let one = |thread: u64| {
        move || {
            let mut cuts = 0;
            let seeds: Vec<u64> = (0..seeds).filter(|seed| seed % threads == thread).collect();
            for seeds in seeds.chunks(RUNS_IN_A_BENCH) {
                let bench = Bench::new(channels);
                for &seed in seeds {
                    cuts += bench.reactor.block_on(told(&bench, seed));
                }
            }
            cuts
        }
    };
    let cuts: usize = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(one(thread))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(cuts as u64 >= seeds, "{cuts} cuts in {seeds} runs");
}
