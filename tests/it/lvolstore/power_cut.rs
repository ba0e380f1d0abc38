//! A random workload, a power cut at each of its device commands, and four questions: does the
//! pool open with the volumes it must have, is all flushed data exact and the rest old or new, is
//! nothing owned twice, and does opening it again change nothing?
//!
//! A failure prints its seed and its command; `SEED=n cargo test --test it power_cut` runs one seed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use futures_util::future::join_all;
use lvolfs::block::{Discard, Durability};
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::lvol::validate::Finding;
use lvolfs::lvol::{Error, FormatOptions, NewRelative, NewVolume, ReadOnlyReason, Store, VolumeIo};
use lvolfs::sim::{SimChannel, SimDisk, SimOptions};
use lvolfs::units::{BlobId, ByteCount, ByteOffset, ClusterCount};
use uuid::Uuid;

use super::bench::{BLOCK, Bench, Pool, assert_valid, validated};
use super::model::{ModelVolume, Span};

/// Small clusters, so that little data makes many mappings.
const CLUSTER: u64 = 16 << 10;
const PER_CLUSTER: u64 = CLUSTER / BLOCK as u64;
const DISK: u64 = 2 << 20;

struct Run {
    bench: Rc<Bench>,
    disk: SimDisk,
    pool: RefCell<Pool<SimChannel>>,
    model: RefCell<BTreeMap<Uuid, ModelVolume>>,
    rng: RefCell<fastrand::Rng>,
    clock: Cell<u64>,
    next: Cell<u64>,
}

/// A beginning: what the two clocks showed.
type Beginning = (u64, u64);

impl Run {
    async fn new(bench: Rc<Bench>, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let delays = rng.bool().then(|| rng.u64(..));
        let discard = if rng.bool() { Discard::Zeroes } else { Discard::Unspecified };
        let options = SimOptions { delays, discard, ..SimOptions::new(ByteCount(DISK)) };
        let disk = SimDisk::new(options);
        disk.record();
        let device = disk.channel(&bench.reactor);
        let layout =
            LayoutOptions { cluster_size: ByteCount(CLUSTER), metadata_ratio_percent: 100 };
        let options =
            FormatOptions { name: "pool".to_owned(), uuid: Some(Uuid::from_u128(1)), layout };
        Store::format(&device, &bench.arena, &options).await.unwrap();
        let pool = bench.open(device).await.unwrap();
        // Half of the seeds have zeroed clusters ready.
        if rng.bool() {
            pool.store.keep_zeroed_clusters();
        }
        Self {
            bench,
            disk,
            pool: RefCell::new(pool),
            model: RefCell::default(),
            rng: RefCell::new(rng),
            clock: Cell::new(0),
            next: Cell::new(1),
        }
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    fn begin(&self) -> Beginning {
        (self.tick(), self.disk.commands())
    }

    fn end(&self, (began, first_command): Beginning) -> Span {
        Span { began, ended: self.tick(), first_command, last_command: self.disk.commands() }
    }

    fn fresh(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    fn random(&self, end: u64) -> u64 {
        self.rng.borrow_mut().u64(0..end)
    }

    fn store(&self) -> Rc<Store<SimChannel>> {
        Rc::clone(&self.pool.borrow().store)
    }

    /// A volume that exists, at random.
    fn any(&self) -> Option<(Uuid, BlobId)> {
        let volumes = self.store().volumes();
        if volumes.is_empty() {
            return None;
        }
        let volume = &volumes[self.random(volumes.len() as u64) as usize];
        Some((volume.uuid.unwrap(), volume.id))
    }

    /// One that takes writes.
    fn any_writable(&self) -> Option<(Uuid, BlobId)> {
        let mut volumes = self.store().volumes();
        volumes.retain(|volume| volume.read_only.is_none());
        if volumes.is_empty() {
            return None;
        }
        let volume = &volumes[self.random(volumes.len() as u64) as usize];
        Some((volume.uuid.unwrap(), volume.id))
    }

    fn io(&self, id: BlobId) -> VolumeIo<SimChannel> {
        let pool = self.pool.borrow();
        pool.io.volume_of(pool.store.map(id).unwrap())
    }

    async fn step(&self) {
        match self.random(26) {
            0 | 1 => self.create().await,
            2 => self.delete().await,
            3 => self.rename().await,
            4 | 5 => self.resize().await,
            6 if self.random(2) == 0 => self.reopen().await,
            7..=9 => self.fsync().await,
            10 | 11 => self.snapshot().await,
            12 => self.clone_one().await,
            13 => self.leave_parent(true).await,
            14 => self.leave_parent(false).await,
            _ => self.batch().await,
        }
    }

    async fn create(&self) {
        let serial = self.fresh();
        let clusters = self.random(10);
        let (name, size) = (format!("volume {serial}"), ByteCount(clusters * CLUSTER));
        let uuid = Uuid::from_u128(u128::from(serial));
        let thin = self.random(3) > 0;
        let new = NewVolume { thin, uuid: Some(uuid), ..NewVolume::thin(&name, size) };
        let beginning = self.begin();
        let created = self.store().create_volume(new).await;
        let span = self.end(beginning);
        match created {
            Ok(_) => {
                let volume = ModelVolume::new(span, name, clusters);
                self.model.borrow_mut().insert(uuid, volume);
            }
            Err(error) => assert!(matches!(error, Error::NoSpace { .. }), "{error}"),
        }
    }

    async fn delete(&self) {
        let Some((uuid, id)) = self.any() else { return };
        let clones = self.store().volume(id).unwrap().clones;
        let beginning = self.begin();
        let deleted = self.store().delete_volume(id).await;
        let span = self.end(beginning);
        match deleted {
            Ok(()) => self.change(uuid, |volume| volume.delete(span)),
            Err(Error::HasClones { names }) => assert!(names.len() > 1 && clones.len() > 1),
            Err(error) => assert!(matches!(error, Error::NoSpace { .. }), "{error}"),
        }
    }

    /// A snapshot is what the volume was, flushed.
    async fn snapshot(&self) {
        let Some((uuid, id)) = self.any_writable() else { return };
        let serial = self.fresh();
        let (name, snapshot) = (format!("snapshot {serial}"), Uuid::from_u128(u128::from(serial)));
        let new = NewRelative { uuid: Some(snapshot), ..NewRelative::named(&name) };
        let beginning = self.begin();
        let made = self.store().snapshot_volume(id, new).await;
        let span = self.end(beginning);
        match made {
            Ok(_) => self.relate(uuid, snapshot, span, name),
            Err(error) => assert!(matches!(error, Error::NoSpace { .. }), "{error}"),
        }
    }

    fn relate(&self, from: Uuid, to: Uuid, span: Span, name: String) {
        let mut model = self.model.borrow_mut();
        let original = model.get_mut(&from).unwrap();
        let copy = original.copy(span, name);
        original.fsync(span);
        model.insert(to, copy);
    }

    async fn clone_one(&self) {
        let volumes = self.store().volumes();
        let Some(snapshot) = volumes.iter().find(|volume| volume.read_only.is_some()) else {
            return;
        };
        let serial = self.fresh();
        let (name, clone) = (format!("clone {serial}"), Uuid::from_u128(u128::from(serial)));
        let new = NewRelative { uuid: Some(clone), ..NewRelative::named(&name) };
        let beginning = self.begin();
        let made = self.store().clone_volume(snapshot.id, new).await;
        let span = self.end(beginning);
        match made {
            Ok(_) => self.relate(snapshot.uuid.unwrap(), clone, span, name),
            Err(error) => assert!(matches!(error, Error::NoSpace { .. }), "{error}"),
        }
    }

    async fn leave_parent(&self, inflate: bool) {
        let Some((uuid, id)) = self.any_writable() else { return };
        let parent = self.store().volume(id).unwrap().parent;
        let beginning = self.begin();
        let left = match inflate {
            true => self.store().inflate_volume(id).await,
            false => self.store().decouple_volume(id).await,
        };
        let span = self.end(beginning);
        match left {
            Ok(()) => self.change(uuid, |volume| volume.fsync(span)),
            Err(Error::Unsuitable(_)) => assert!(!inflate && parent.is_none()),
            Err(error) => assert!(matches!(error, Error::NoSpace { .. }), "{error}"),
        }
    }

    async fn rename(&self) {
        let Some((uuid, id)) = self.any_writable() else { return };
        let name = format!("renamed {}", self.fresh());
        let beginning = self.begin();
        self.store().rename_volume(id, &name).await.unwrap();
        let span = self.end(beginning);
        self.change(uuid, |volume| volume.rename(span, name));
    }

    async fn resize(&self) {
        let Some((uuid, id)) = self.any_writable() else { return };
        let clusters = self.random(14);
        let beginning = self.begin();
        let resized = self.store().resize_volume(id, ByteCount(clusters * CLUSTER)).await;
        let span = self.end(beginning);
        match resized {
            Ok(()) => self.change(uuid, |volume| volume.resize(span, clusters, PER_CLUSTER)),
            Err(error) => assert!(matches!(error, Error::NoSpace { .. }), "{error}"),
        }
    }

    async fn reopen(&self) {
        let beginning = self.begin();
        self.store().close().await.unwrap();
        let device = self.disk.channel(&self.bench.reactor);
        let pool = self.bench.open(device).await.unwrap();
        let span = self.end(beginning);
        assert!(pool.store.recovery().clean);
        *self.pool.borrow_mut() = pool;
        let mut model = self.model.borrow_mut();
        model.values_mut().filter(|volume| volume.exists()).for_each(|volume| volume.fsync(span));
    }

    async fn fsync(&self) {
        let Some((uuid, id)) = self.any() else { return };
        self.fsync_of(uuid, id).await;
    }

    async fn fsync_of(&self, uuid: Uuid, id: BlobId) {
        let beginning = self.begin();
        self.io(id).flush().await.unwrap();
        let span = self.end(beginning);
        self.change(uuid, |volume| volume.fsync(span));
    }

    /// Reads and writes and fsyncs at once; no block is touched twice.
    async fn batch(&self) {
        let mut tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
        let mut taken = std::collections::BTreeSet::new();
        for _ in 0..=self.random(6) {
            let Some((uuid, id)) = self.any_writable() else { return };
            let blocks = self.model.borrow()[&uuid].clusters() * PER_CLUSTER;
            if blocks == 0 || self.random(8) == 0 {
                tasks.push(Box::pin(self.fsync_of(uuid, id)));
                continue;
            }
            let first = self.random(blocks);
            let count = (1 + self.random(9)).min(blocks - first);
            if !(first..first + count).all(|block| taken.insert((uuid, block))) {
                continue;
            }
            match self.random(8) {
                0 | 1 => tasks.push(Box::pin(self.discard(uuid, id, first, count))),
                2 => tasks.push(Box::pin(self.read(uuid, id, first, count))),
                3 => tasks.push(Box::pin(self.write(uuid, id, first, count, true))),
                _ => tasks.push(Box::pin(self.write(uuid, id, first, count, false))),
            }
        }
        join_all(tasks).await;
    }

    async fn write(&self, uuid: Uuid, id: BlobId, first: u64, count: u64, durable: bool) {
        let values: Vec<u64> = (0..count).map(|_| self.fresh()).collect();
        let mut buffer = self.bench.buffer(count as usize * BLOCK, 0);
        for (block, value) in buffer.chunks_exact_mut(BLOCK).zip(&values) {
            block.as_chunks_mut::<8>().0.fill(value.to_le_bytes());
        }
        let durability = if durable { Durability::ForceUnitAccess } else { Durability::Cached };
        let beginning = self.begin();
        let volume = self.io(id);
        let written = volume.write(ByteOffset(first * BLOCK as u64), buffer, durability).await;
        match written {
            Ok(_) => {
                let span = self.end(beginning);
                for (block, value) in (first..).zip(values) {
                    self.change(uuid, |volume| volume.write(span, block, value, durable));
                }
            }
            Err(failed) => {
                let full = matches!(failed.error, Error::NoSpace { .. });
                assert!(full, "{}", failed.error);
                // Each block is old or new: see which.
                let now = self.values(id, first, count).await;
                let span = self.end(beginning);
                for (block, value) in (first..).zip(now) {
                    self.change(uuid, |volume| volume.write(span, block, value, false));
                }
            }
        }
    }

    async fn discard(&self, uuid: Uuid, id: BlobId, first: u64, count: u64) {
        let beginning = self.begin();
        let (offset, length) = (first * BLOCK as u64, count * BLOCK as u64);
        self.io(id).discard(ByteOffset(offset), ByteCount(length)).await.unwrap();
        let span = self.end(beginning);
        for block in first..first + count {
            self.change(uuid, |volume| volume.write(span, block, 0, false));
        }
    }

    async fn read(&self, uuid: Uuid, id: BlobId, first: u64, count: u64) {
        let found = self.values(id, first, count).await;
        let model = self.model.borrow();
        let expected: Vec<_> =
            (first..first + count).map(|block| model[&uuid].value(block)).collect();
        assert_eq!(found, expected, "what was written is read");
    }

    async fn values(&self, id: BlobId, first: u64, count: u64) -> Vec<u64> {
        let buffer = self.bench.buffer(count as usize * BLOCK, 0xee);
        let read = self.io(id).read(ByteOffset(first * BLOCK as u64), buffer).await;
        read.unwrap().chunks_exact(BLOCK).map(value_of).collect()
    }

    fn change(&self, uuid: Uuid, change: impl FnOnce(&mut ModelVolume)) {
        change(self.model.borrow_mut().get_mut(&uuid).unwrap());
    }
}

fn value_of(block: &[u8]) -> u64 {
    let words = block.as_chunks::<8>().0;
    assert!(words.iter().all(|word| word == &words[0]), "a block of mixed content");
    u64::from_le_bytes(words[0])
}

/// What is in a pool, by UUID: name, clusters, values of the blocks.
type Found = BTreeMap<Uuid, (String, u64, Vec<u64>)>;

async fn found(bench: &Bench, disk: &SimDisk, free: Option<ClusterCount>) -> Found {
    let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
    assert_eq!(pool.store.quarantined(), []);
    let mut found = Found::new();
    for info in pool.store.volumes() {
        assert!(matches!(info.read_only, None | Some(ReadOnlyReason::Marked)), "{info:?}");
        let content = pool.content(&pool.volume(&info.name).await).await.unwrap();
        let values = content.chunks_exact(BLOCK).map(value_of).collect();
        found.insert(info.uuid.unwrap(), (info.name, info.size.0 / CLUSTER, values));
    }
    if let Some(free) = free {
        assert_eq!(pool.store.info().free_clusters, free, "free is what nobody has");
    }
    pool.store.close().await.unwrap();
    found
}

/// The four questions about one cut.
async fn examine(bench: &Bench, model: &BTreeMap<Uuid, ModelVolume>, cut: u64, disk: &SimDisk) {
    let report = validated(disk);
    assert_eq!(report.errors().collect::<Vec<_>>(), Vec::<&Finding>::new());
    // Ending an interrupted deletion frees more.
    let unfinished = |finding: &Finding| {
        matches!(finding, Finding::SnapshotUnfinished { .. } | Finding::DeletionUnfinished { .. })
    };
    let free = (!report.findings.iter().any(unfinished)).then_some(report.free_clusters);
    let first = found(bench, disk, free).await;
    for (uuid, (name, clusters, values)) in &first {
        let volume = model.get(uuid).unwrap_or_else(|| panic!("{name} was never made"));
        assert!(volume.existence(cut).0, "{name} should not be there");
        assert!(volume.names(cut).contains(name), "{name} is not one of {:?}", volume.names(cut));
        assert!(volume.sizes(cut).contains(clusters), "{name}: {clusters} clusters");
        for (block, value) in (0..).zip(values) {
            let allowed = volume.values(block, cut);
            assert!(allowed.contains(value), "{name}: block {block}: {value} not in {allowed:?}");
        }
    }
    for (uuid, volume) in model {
        let there = first.contains_key(uuid);
        assert!(there || !volume.existence(cut).1, "{:?} is lost", volume.names(cut));
    }
    // It was closed; opening it again finds the same.
    let disk = disk.cut_keep(0);
    let report = validated(&disk);
    assert!(report.clean && report.errors().count() == 0, "{:?}", report.findings);
    assert_eq!(found(bench, &disk, Some(report.free_clusters)).await, first);
}

fn run(seed: u64, steps: usize, cuts_each: u64) {
    let bench = Rc::new(Bench::new());
    let print = format!("seed {seed}");
    let run = bench.run(async {
        let run = Run::new(Rc::clone(&bench), seed).await;
        for _ in 0..steps {
            run.step().await;
        }
        run
    });
    let model = run.model.borrow();
    let formatted = run.disk.recorded();
    let mut examined = 0;
    for (command, moment) in formatted {
        // Before the super block is there, there is no pool to ask.
        let mut first = [0; 8];
        moment.cut_keep(0).read_at(0, &mut first);
        if &first != b"SPDKBLOB" {
            continue;
        }
        let undecided = moment.undecided();
        let small = undecided <= 2;
        let masks = if small { 1 << undecided } else { cuts_each };
        for choice in 0..masks {
            let disk = match (small, choice) {
                (true, _) | (_, 0) => moment.cut_keep(choice),
                _ => moment.cut(seed ^ command << 20 ^ choice),
            };
            let told = Told(format!("{print}, command {command}, cut {choice}"));
            bench.run(examine(&bench, &model, command, &disk));
            drop(told);
            examined += 1;
        }
    }
    assert!(examined > 0);
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

#[test]
fn a_power_cut_at_any_command_loses_nothing_that_was_flushed() {
    if let Ok(seed) = std::env::var("SEED") {
        return run(seed.parse().unwrap(), 40, 8);
    }
    for seed in 0..12 {
        run(seed, 40, 2);
    }
}

/// Making a pool is all or nothing.
#[test]
fn a_power_cut_while_formatting_leaves_nothing_or_a_pool() {
    let bench = Bench::new();
    let disk = super::bench::disk();
    disk.record();
    bench.run(bench.format(&disk.channel(&bench.reactor)));
    let mut pools = 0;
    for (command, moment) in disk.recorded() {
        for seed in 0..20 {
            let cut = moment.cut(seed);
            let opened = bench.run(bench.open(cut.channel(&bench.reactor)));
            match opened {
                Ok(pool) => {
                    assert_valid(&cut);
                    assert_eq!(pool.store.info().name, "pool");
                    pools += 1;
                }
                Err(Error::SuperBlock(_)) => {
                    bench.run(bench.format(&cut.channel(&bench.reactor)));
                }
                Err(error) => panic!("command {command}, seed {seed}: {error}"),
            }
        }
    }
    assert!(pools > 0);
}
