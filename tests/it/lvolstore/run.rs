//! A pool on a simulated disk that is recorded, with a model of what each cut may find: what tests of
//! power cuts do with it, and the four questions that they ask after a cut.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use lvolfs::block::{BlockDevice, Durability};
use lvolfs::lvol::format::{LayoutOptions, Xattr};
use lvolfs::lvol::validate::Finding;
use lvolfs::lvol::{
    Error, FormatOptions, NewRelative, NewVolume, ReadOnlyReason, Store, VolumeInfo, VolumeIo,
};
use lvolfs::sim::{SimChannel, SimDisk, SimOptions};
use lvolfs::units::{BlobId, ByteCount, ByteOffset, ClusterCount};
use uuid::Uuid;

use super::bench::{BLOCK, Bench, Pool, validated};
use super::model::{ModelVolume, Span};

/// How a run is made.
#[derive(Clone, Debug)]
pub(crate) struct RunOptions {
    pub(crate) seed: u64,
    pub(crate) disk: SimOptions,
    pub(crate) cluster: u64,
    pub(crate) metadata_ratio_percent: u32,
    /// Whether zeroed clusters are kept ready for first writes.
    pub(crate) zeroed_ready: bool,
}

/// A pool and its model.
pub(crate) struct Run {
    bench: Rc<Bench>,
    pub(crate) disk: SimDisk,
    cluster: u64,
    pub(crate) pool: RefCell<Pool<SimChannel>>,
    pub(crate) model: RefCell<Model>,
    rng: RefCell<fastrand::Rng>,
    clock: Cell<u64>,
    next: Cell<u64>,
}

/// Volumes by UUID, those that are gone included.
pub(crate) type Model = BTreeMap<Uuid, ModelVolume>;

/// As which the model has the pool itself: its name, its size, and whether it must be clean.
const POOL: Uuid = Uuid::nil();

/// What can be told of a volume beside its name, size and content.
fn facts_of<D: BlockDevice>(store: &Store<D>, id: BlobId) -> String {
    let info = store.volume(id).unwrap();
    let xattrs = store.xattrs(id).unwrap();
    facts(info.read_only.is_some(), info.reserve.0, &xattrs)
}

/// Of a volume like any other: `facts(false, 0, &[])`.
pub(crate) fn facts(read_only: bool, reserve: u32, xattrs: &[Xattr]) -> String {
    let xattrs = xattrs.iter().map(|xattr| (&xattr.name, xattr.value.len(), xattr.value.first()));
    format!("read-only {read_only}, {reserve} clusters, {:?}", xattrs.collect::<Vec<_>>())
}

/// A volume of the model and of the pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    pub(crate) uuid: Uuid,
    pub(crate) id: BlobId,
}

/// A beginning: what the two clocks showed.
type Beginning = (u64, u64);

impl Run {
    pub(crate) async fn new(bench: Rc<Bench>, options: RunOptions) -> Self {
        let RunOptions { seed, disk, cluster, metadata_ratio_percent, zeroed_ready } = options;
        let disk = SimDisk::new(disk);
        disk.record();
        let device = disk.channel(&bench.reactor);
        let layout = LayoutOptions { cluster_size: ByteCount(cluster), metadata_ratio_percent };
        let options =
            FormatOptions { name: "pool".to_owned(), uuid: Some(Uuid::from_u128(1)), layout };
        Store::format(&device, &bench.arena, &options).await.unwrap();
        let pool = bench.open(device).await.unwrap();
        if zeroed_ready {
            pool.store.keep_zeroed_clusters();
        }
        let made = Span::first(disk.commands());
        let clusters = u64::from(pool.store.info().data_clusters.0);
        let model = ModelVolume::new(made, "pool".to_owned(), clusters, String::new());
        Self {
            bench,
            model: RefCell::new(BTreeMap::from([(POOL, model)])),
            disk,
            cluster,
            pool: RefCell::new(pool),
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            clock: Cell::new(0),
            next: Cell::new(1),
        }
    }

    fn per_cluster(&self) -> u64 {
        self.cluster / BLOCK as u64
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

    pub(crate) fn random(&self, end: u64) -> u64 {
        self.rng.borrow_mut().u64(0..end)
    }

    pub(crate) fn store(&self) -> Rc<Store<SimChannel>> {
        Rc::clone(&self.pool.borrow().store)
    }

    /// A volume that exists, at random.
    pub(crate) fn any(&self) -> Option<Made> {
        self.any_of(|_| true)
    }

    /// One that takes writes.
    pub(crate) fn any_writable(&self) -> Option<Made> {
        self.any_of(|volume| volume.read_only.is_none())
    }

    /// One that can have clones.
    pub(crate) fn any_read_only(&self) -> Option<Made> {
        self.any_of(|volume| volume.read_only.is_some())
    }

    fn any_of(&self, suits: impl Fn(&VolumeInfo) -> bool) -> Option<Made> {
        let mut volumes = self.store().volumes();
        volumes.retain(suits);
        if volumes.is_empty() {
            return None;
        }
        let volume = &volumes[self.random(volumes.len() as u64) as usize];
        Some(Made { uuid: volume.uuid.unwrap(), id: volume.id })
    }

    fn io(&self, id: BlobId) -> VolumeIo<SimChannel> {
        let pool = self.pool.borrow();
        pool.io.volume_of(pool.store.map(id).unwrap())
    }

    /// A new volume; `None` if there is no space.
    pub(crate) async fn create(&self, thin: bool, clusters: u64) -> Option<Made> {
        let serial = self.fresh();
        let (name, size) = (format!("volume {serial}"), ByteCount(clusters * self.cluster));
        let uuid = Uuid::from_u128(u128::from(serial));
        let new = NewVolume { thin, uuid: Some(uuid), ..NewVolume::thin(&name, size) };
        let beginning = self.begin();
        let created = self.store().create_volume(new).await;
        let span = self.end(beginning);
        match created {
            Ok(info) => {
                let facts = facts_of(&self.store(), info.id);
                let volume = ModelVolume::new(span, name, clusters, facts);
                self.model.borrow_mut().insert(uuid, volume);
                Some(Made { uuid, id: info.id })
            }
            Err(error) => {
                assert!(matches!(error, Error::NoSpace { .. }), "{error}");
                None
            }
        }
    }

    pub(crate) async fn delete(&self, Made { uuid, id }: Made) {
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
    pub(crate) async fn snapshot(&self, Made { uuid, id }: Made) -> Option<Made> {
        let serial = self.fresh();
        let (name, snapshot) = (format!("snapshot {serial}"), Uuid::from_u128(u128::from(serial)));
        let new = NewRelative { uuid: Some(snapshot), ..NewRelative::named(&name) };
        let beginning = self.begin();
        let made = self.store().snapshot_volume(id, new).await;
        let span = self.end(beginning);
        self.related(made, uuid, snapshot, span, name)
    }

    fn related(
        &self,
        made: Result<VolumeInfo, Error>,
        from: Uuid,
        to: Uuid,
        span: Span,
        name: String,
    ) -> Option<Made> {
        match made {
            Ok(info) => {
                let facts = facts_of(&self.store(), info.id);
                self.relate(from, to, span, (name, facts));
                Some(Made { uuid: to, id: info.id })
            }
            Err(error) => {
                assert!(matches!(error, Error::NoSpace { .. }), "{error}");
                None
            }
        }
    }

    fn relate(&self, from: Uuid, to: Uuid, span: Span, (name, facts): (String, String)) {
        let mut model = self.model.borrow_mut();
        let original = model.get_mut(&from).unwrap();
        let copy = original.copy(span, name, facts);
        original.fsync(span);
        model.insert(to, copy);
    }

    pub(crate) async fn clone(&self, snapshot: Made) -> Option<Made> {
        let serial = self.fresh();
        let (name, clone) = (format!("clone {serial}"), Uuid::from_u128(u128::from(serial)));
        let new = NewRelative { uuid: Some(clone), ..NewRelative::named(&name) };
        let beginning = self.begin();
        let made = self.store().clone_volume(snapshot.id, new).await;
        let span = self.end(beginning);
        self.related(made, snapshot.uuid, clone, span, name)
    }

    pub(crate) async fn leave_parent(&self, Made { uuid, id }: Made, inflate: bool) {
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

    /// Gives an empty thin volume of the same size as the snapshot that parent.
    pub(crate) async fn set_parent(&self, Made { uuid, id }: Made, parent: Made) {
        let beginning = self.begin();
        self.store().set_parent(id, parent.id).await.unwrap();
        let span = self.end(beginning);
        let shown = self.model.borrow()[&parent.uuid].clone();
        self.change(uuid, |volume| volume.show(span, &shown));
    }

    pub(crate) async fn set_xattr(&self, Made { uuid, id }: Made, value: &[u8]) {
        let beginning = self.begin();
        self.store().set_xattr(id, b"user.note", value).await.unwrap();
        self.told(beginning, uuid, id);
    }

    pub(crate) async fn set_read_only(&self, Made { uuid, id }: Made) {
        let beginning = self.begin();
        self.store().set_read_only(id).await.unwrap();
        self.told(beginning, uuid, id);
    }

    pub(crate) async fn set_reserve(&self, Made { uuid, id }: Made, clusters: u64) {
        let beginning = self.begin();
        self.store().set_reserve(id, ByteCount(clusters * self.cluster)).await.unwrap();
        self.told(beginning, uuid, id);
    }

    fn told(&self, beginning: Beginning, uuid: Uuid, id: BlobId) {
        let span = self.end(beginning);
        let facts = facts_of(&self.store(), id);
        self.change(uuid, |volume| volume.tell(span, facts));
    }

    pub(crate) async fn rename_pool(&self, name: &str) {
        let beginning = self.begin();
        self.store().rename(name).await.unwrap();
        let span = self.end(beginning);
        self.change(POOL, |pool| pool.rename(span, name.to_owned()));
    }

    /// The disk becomes larger, and then the pool.
    pub(crate) async fn grow_pool(&self, size: ByteCount) {
        self.disk.grow(size);
        let beginning = self.begin();
        let (now, before) = self.store().grow_with_device().await.unwrap();
        let span = self.end(beginning);
        assert!(now > before, "{before:?} clusters became {now:?}");
        self.change(POOL, |pool| pool.resize(span, u64::from(now.0), self.per_cluster()));
    }

    pub(crate) async fn rename(&self, Made { uuid, id }: Made) {
        let name = format!("renamed {}", self.fresh());
        let beginning = self.begin();
        self.store().rename_volume(id, &name).await.unwrap();
        let span = self.end(beginning);
        self.change(uuid, |volume| volume.rename(span, name));
    }

    pub(crate) async fn resize(&self, Made { uuid, id }: Made, clusters: u64) {
        let beginning = self.begin();
        let resized = self.store().resize_volume(id, ByteCount(clusters * self.cluster)).await;
        let span = self.end(beginning);
        match resized {
            Ok(()) => self.change(uuid, |volume| volume.resize(span, clusters, self.per_cluster())),
            Err(error) => assert!(matches!(error, Error::NoSpace { .. }), "{error}"),
        }
    }

    /// An orderly close.
    pub(crate) async fn close(&self) {
        let beginning = self.begin();
        self.store().close().await.unwrap();
        let span = self.end(beginning);
        let mut model = self.model.borrow_mut();
        model.values_mut().filter(|volume| volume.exists()).for_each(|volume| volume.fsync(span));
        model.get_mut(&POOL).unwrap().close(span);
    }

    /// Opens the pool that was closed.
    pub(crate) async fn open(&self) {
        let device = self.disk.channel(&self.bench.reactor);
        let pool = self.bench.open(device).await.unwrap();
        assert!(pool.store.recovery().clean);
        *self.pool.borrow_mut() = pool;
        // From the next command on it may be anything but clean.
        self.model.borrow_mut().get_mut(&POOL).unwrap().open(self.disk.commands());
    }

    /// Opens the pool anew as if the process had ended: what was written is there.
    pub(crate) async fn recover(&self) {
        let device = self.disk.channel(&self.bench.reactor);
        let pool = self.bench.open(device).await.unwrap();
        assert!(!pool.store.recovery().clean);
        *self.pool.borrow_mut() = pool;
    }

    pub(crate) async fn fsync(&self, made: Made) {
        self.fsync_of(made.uuid, made.id).await;
    }

    async fn fsync_of(&self, uuid: Uuid, id: BlobId) {
        let beginning = self.begin();
        self.io(id).flush().await.unwrap();
        let span = self.end(beginning);
        self.change(uuid, |volume| volume.fsync(span));
    }

    /// Reads and writes and fsyncs at once; no block is touched twice.
    pub(crate) async fn batch(&self) {
        let mut tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
        let mut taken = BTreeSet::new();
        for _ in 0..=self.random(6) {
            let Some(made) = self.any_writable() else { return };
            let blocks = self.model.borrow()[&made.uuid].clusters() * self.per_cluster();
            if blocks == 0 || self.random(8) == 0 {
                tasks.push(Box::pin(self.fsync(made)));
                continue;
            }
            let first = self.random(blocks);
            let count = (1 + self.random(9)).min(blocks - first);
            if !(first..first + count).all(|block| taken.insert((made.uuid, block))) {
                continue;
            }
            match self.random(8) {
                0 | 1 => tasks.push(Box::pin(self.discard(made, first, count))),
                2 => tasks.push(Box::pin(self.read(made, first, count))),
                3 => tasks.push(Box::pin(self.write(made, first, count, true))),
                _ => tasks.push(Box::pin(self.write(made, first, count, false))),
            }
        }
        join_all(tasks).await;
    }

    pub(crate) async fn write(
        &self,
        Made { uuid, id }: Made,
        first: u64,
        count: u64,
        durable: bool,
    ) {
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

    pub(crate) async fn discard(&self, Made { uuid, id }: Made, first: u64, count: u64) {
        let beginning = self.begin();
        let (offset, length) = (first * BLOCK as u64, count * BLOCK as u64);
        self.io(id).discard(ByteOffset(offset), ByteCount(length)).await.unwrap();
        let span = self.end(beginning);
        for block in first..first + count {
            self.change(uuid, |volume| volume.write(span, block, 0, false));
        }
    }

    async fn read(&self, Made { uuid, id }: Made, first: u64, count: u64) {
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

    /// Waits until nothing is left to do behind anybody's back.
    pub(crate) async fn at_rest(&self) {
        self.bench.reactor.sleep(Duration::from_millis(10)).await;
    }

    /// A command that does nothing but be one: a cut at it finds what was done before.
    pub(crate) async fn last_command(&self) {
        self.disk.channel(&self.bench.reactor).flush().await.unwrap();
    }

    /// A change that makes the pool not clean.
    pub(crate) async fn touch_pool(&self) {
        self.rename_pool("pool again").await;
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

/// What is in a pool, by UUID: name, clusters, for each block the values that are in it (more than one
/// if a write that was not flushed was torn), and other facts.
pub(crate) type Found = BTreeMap<Uuid, (String, u64, Vec<BTreeSet<u64>>, String)>;

/// What a cut left.
pub(crate) struct Observed {
    was_clean: bool,
    found: Found,
}

/// What a question after a cut came to.
pub(crate) type Answer = Result<(), String>;

fn check(holds: bool, say: impl FnOnce() -> String) -> Answer {
    if holds { Ok(()) } else { Err(say()) }
}

async fn found(bench: &Bench, disk: &SimDisk, free: Option<ClusterCount>) -> Result<Found, String> {
    let opened = bench.open(disk.channel(&bench.reactor)).await;
    let pool = opened.map_err(|error| format!("it does not open: {error}"))?;
    let quarantined = pool.store.quarantined();
    check(quarantined.is_empty(), || format!("quarantined: {quarantined:?}"))?;
    let cluster = pool.store.info().cluster_size.0;
    let mut found = Found::new();
    for info in pool.store.volumes() {
        let limit = info.read_only;
        check(matches!(limit, None | Some(ReadOnlyReason::Marked)), || format!("{info:?}"))?;
        let content = pool.content(&pool.volume(&info.name).await).await;
        let content = content.map_err(|error| format!("{}: {error}", info.name))?;
        let values = content.chunks_exact(BLOCK).map(values_of).collect();
        let facts = facts_of(&pool.store, info.id);
        let clusters = info.size.0 / cluster;
        found.insert(info.uuid.unwrap(), (info.name, clusters, values, facts));
    }
    let info = pool.store.info();
    let clusters = u64::from(info.data_clusters.0);
    found.insert(POOL, (info.name, clusters, Vec::new(), String::new()));
    let counted = pool.store.info().free_clusters;
    if let Some(free) = free {
        check(counted == free, || format!("{counted} clusters are free, not {free}"))?;
    }
    let closed = pool.store.close().await;
    closed.map_err(|error| format!("it does not close: {error}"))?;
    Ok(found)
}

/// The values of a block, each a whole number of sectors.
fn values_of(block: &[u8]) -> BTreeSet<u64> {
    block
        .chunks_exact(512)
        .map(|sector| {
            let words = sector.as_chunks::<8>().0;
            // What is no value that was ever written is one that is never allowed.
            let same = words.iter().all(|word| word == &words[0]);
            if same { u64::from_le_bytes(words[0]) } else { u64::MAX }
        })
        .collect()
}

/// The four questions about one cut: does the pool open with the volumes it must have, is all
/// flushed data exact and the rest old or new, is nothing owned twice and the free space right, and
/// does opening it again change nothing?
pub(crate) async fn examine(bench: &Bench, model: &Model, cut: u64, disk: &SimDisk) -> Answer {
    judge(&observe(bench, disk).await?, model, cut)
}

/// What is on a disk after a cut, as far as that can be judged without the model.
pub(crate) async fn observe(bench: &Bench, disk: &SimDisk) -> Result<Observed, String> {
    let report = validated(disk);
    let was_clean = report.clean;
    let errors: Vec<_> = report.errors().collect();
    check(errors.is_empty(), || format!("the validator finds {errors:?}"))?;
    // Ending an interrupted deletion frees more.
    let unfinished = |finding: &Finding| {
        matches!(finding, Finding::SnapshotUnfinished { .. } | Finding::DeletionUnfinished { .. })
    };
    let free = (!report.findings.iter().any(unfinished)).then_some(report.free_clusters);
    let first = found(bench, disk, free).await?;
    // It was closed; opening it again finds the same.
    let disk = disk.cut_keep(0);
    let report = validated(&disk);
    let wrong = report.errors().count();
    check(report.clean && wrong == 0, || format!("{:?}", report.findings))?;
    let again = found(bench, &disk, Some(report.free_clusters)).await?;
    check(again == first, || "opening it again finds something else".to_owned())?;
    Ok(Observed { was_clean, found: first })
}

/// Whether a cut may leave that.
pub(crate) fn judge(observed: &Observed, model: &Model, cut: u64) -> Answer {
    let Observed { was_clean, found } = observed;
    let closed = model[&POOL].is_closed(cut);
    check(*was_clean || !closed, || "it was closed and is not clean".to_owned())?;
    for (uuid, (name, clusters, blocks, facts)) in found {
        let volume = model.get(uuid).ok_or_else(|| format!("{name} was never made"))?;
        check(volume.existence(cut).0, || format!("{name} should not be there"))?;
        let names = volume.names(cut);
        check(names.contains(name), || format!("{name} is not one of {names:?}"))?;
        check(volume.sizes(cut).contains(clusters), || format!("{name}: {clusters} clusters"))?;
        let told = volume.facts(cut);
        check(told.contains(facts), || format!("{name}: {facts} is not one of {told:?}"))?;
        for (block, values) in (0..).zip(blocks) {
            let allowed = volume.values(block, cut);
            let right = values.iter().all(|value| allowed.contains(value));
            check(right, || format!("{name}: block {block}: {values:?} not in {allowed:?}"))?;
        }
    }
    for (uuid, volume) in model {
        let there = found.contains_key(uuid);
        check(there || !volume.existence(cut).1, || format!("{:?} is lost", volume.names(cut)))?;
    }
    Ok(())
}
