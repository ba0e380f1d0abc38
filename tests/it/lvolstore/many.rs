//! Ten thousand short random histories against a plain map of blocks. Each draws its own choice of
//! operations (some are left out altogether, which brings others to the front), the size of the
//! disk's surprises and the number of steps; each ends with a crash or an orderly close, is opened
//! again, compared, and held against the strict validator.
//!
//! A failure prints its seed; `SEED=n cargo test --test it many` runs one history.

use std::collections::BTreeMap;

use lvolfs::block::{Discard, Durability};
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::lvol::{Error, FormatOptions, NewRelative, NewVolume, Store};
use lvolfs::sim::{SimChannel, SimDisk, SimOptions};
use lvolfs::units::{ByteCount, ByteOffset};
use uuid::Uuid;

use super::bench::{BLOCK, Bench, Pool, assert_valid};

const HISTORIES: u64 = 10_000;
const CLUSTER: u64 = 16 << 10;
const PER_CLUSTER: usize = (CLUSTER / BLOCK as u64) as usize;
const DISK: u64 = 1 << 20;
const OPERATIONS: usize = 14;

/// What a block holds, and what else a crash may leave in it.
#[derive(Clone, Debug)]
struct Cell {
    now: u8,
    allowed: Vec<u8>,
}

impl Cell {
    fn flushed(now: u8) -> Self {
        Self { now, allowed: vec![now] }
    }

    fn write(&mut self, now: u8) {
        self.now = now;
        self.allowed.push(now);
    }
}

#[derive(Clone, Debug)]
struct Plain {
    read_only: bool,
    cells: Vec<Cell>,
}

impl Plain {
    fn flush(&mut self) {
        self.cells.iter_mut().for_each(|cell| cell.allowed = vec![cell.now]);
    }

    fn copy(&self, read_only: bool) -> Self {
        let cells = self.cells.iter().map(|cell| Cell::flushed(cell.now)).collect();
        Self { read_only, cells }
    }
}

struct History<'a> {
    bench: &'a Bench,
    disk: SimDisk,
    pool: Pool<SimChannel>,
    model: BTreeMap<String, Plain>,
    rng: fastrand::Rng,
    serial: u32,
}

impl History<'_> {
    fn name(&mut self) -> String {
        self.serial += 1;
        format!("v{}", self.serial)
    }

    fn any(&mut self, writable: bool) -> Option<String> {
        let fits = |(_, plain): &(&String, &Plain)| !(writable && plain.read_only);
        let names: Vec<_> = self.model.iter().filter(fits).map(|(name, _)| name.clone()).collect();
        (!names.is_empty()).then(|| names[self.rng.usize(..names.len())].clone())
    }

    fn plain(&mut self, name: &str) -> &mut Plain {
        self.model.get_mut(name).unwrap()
    }

    /// Whether it was done; a full pool is no failure.
    fn done(result: Result<(), Error>) -> bool {
        match result {
            Ok(()) => true,
            Err(Error::NoSpace { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    async fn step(&mut self, operation: usize) {
        match operation {
            0 => self.create().await,
            1 => self.snapshot().await,
            2 => self.clone_one().await,
            3 => self.delete().await,
            4 => self.resize().await,
            5 | 6 => self.leave_parent(operation == 5).await,
            7 => self.discard().await,
            8 => self.fsync().await,
            9 => self.restart(false).await,
            10 => self.restart(true).await,
            _ => self.write().await,
        }
    }

    async fn create(&mut self) {
        let (name, clusters) = (self.name(), self.rng.u64(1..6));
        let thin = self.rng.u8(..4) > 0;
        let new = NewVolume { thin, ..NewVolume::thin(&name, ByteCount(clusters * CLUSTER)) };
        if Self::done(self.pool.store.create_volume(new).await.map(drop)) {
            let cells = vec![Cell::flushed(0); clusters as usize * PER_CLUSTER];
            self.model.insert(name, Plain { read_only: false, cells });
        }
    }

    async fn snapshot(&mut self) {
        let Some(of) = self.any(true) else { return };
        let (name, id) = (self.name(), self.pool.id(&of));
        let made = self.pool.store.snapshot_volume(id, NewRelative::named(&name)).await;
        if Self::done(made.map(drop)) {
            self.plain(&of).flush();
            let copy = self.model[&of].copy(true);
            self.model.insert(name, copy);
        }
    }

    async fn clone_one(&mut self) {
        let Some(of) = self.any(false) else { return };
        let (name, id) = (self.name(), self.pool.id(&of));
        let made = self.pool.store.clone_volume(id, NewRelative::named(&name)).await;
        if !self.model[&of].read_only {
            assert!(matches!(made, Err(Error::Unsuitable(_))));
        } else if Self::done(made.map(drop)) {
            let copy = self.model[&of].copy(false);
            self.model.insert(name, copy);
        }
    }

    async fn delete(&mut self) {
        let Some(name) = self.any(false) else { return };
        let id = self.pool.id(&name);
        let clones = self.pool.store.volume(id).unwrap().clones.len();
        match self.pool.store.delete_volume(id).await {
            Err(Error::HasClones { names }) => assert!(names.len() == clones && clones > 1),
            deleted => {
                if Self::done(deleted) {
                    self.model.remove(&name);
                }
            }
        }
    }

    async fn resize(&mut self) {
        let Some(name) = self.any(true) else { return };
        let (id, clusters) = (self.pool.id(&name), self.rng.u64(0..8));
        let resized = self.pool.store.resize_volume(id, ByteCount(clusters * CLUSTER)).await;
        if Self::done(resized) {
            let cells = &mut self.plain(&name).cells;
            cells.resize(clusters as usize * PER_CLUSTER, Cell::flushed(0));
        }
    }

    async fn leave_parent(&mut self, inflate: bool) {
        let Some(name) = self.any(true) else { return };
        let id = self.pool.id(&name);
        let left = match inflate {
            true => self.pool.store.inflate_volume(id).await,
            false => self.pool.store.decouple_volume(id).await,
        };
        if matches!(left, Err(Error::Unsuitable(_))) {
            assert!(!inflate);
        } else if Self::done(left) {
            self.plain(&name).flush();
        }
    }

    fn range(&mut self, name: &str) -> Option<(usize, usize)> {
        let cells = self.model[name].cells.len();
        if cells == 0 {
            return None;
        }
        let first = self.rng.usize(..cells);
        Some((first, self.rng.usize(1..=(cells - first).min(9))))
    }

    async fn discard(&mut self) {
        let Some(name) = self.any(true) else { return };
        let Some((first, count)) = self.range(&name) else { return };
        let volume = self.pool.volume(&name).await;
        let offset = ByteOffset((first * BLOCK) as u64);
        let discarded = volume.discard(offset, ByteCount((count * BLOCK) as u64)).await;
        let done = Self::done(discarded);
        for cell in &mut self.plain(&name).cells[first..first + count] {
            cell.allowed.push(0);
            cell.now = if done { 0 } else { cell.now };
        }
        if !done {
            self.look(&name, first, count).await;
        }
    }

    async fn write(&mut self) {
        let Some(name) = self.any(true) else { return };
        let Some((first, count)) = self.range(&name) else { return };
        let (value, forced) = (self.rng.u8(1..), self.rng.u8(..8) == 0);
        let durability = if forced { Durability::ForceUnitAccess } else { Durability::Cached };
        let volume = self.pool.volume(&name).await;
        let offset = ByteOffset((first * BLOCK) as u64);
        let buffer = self.bench.buffer(count * BLOCK, value);
        let written = volume.write(offset, buffer, durability).await;
        let done = Self::done(written.map(drop).map_err(|failed| failed.error));
        let cells = &mut self.plain(&name).cells[first..first + count];
        for cell in cells {
            match (done, forced) {
                (true, true) => *cell = Cell::flushed(value),
                (true, false) => cell.write(value),
                (false, _) => cell.allowed.push(value),
            }
        }
        if !done {
            self.look(&name, first, count).await;
        }
    }

    /// After a failure each block is old or new: sees which.
    async fn look(&mut self, name: &str, first: usize, count: usize) {
        let found = self.pool.blocks(&self.pool.volume(name).await).await;
        let cells = &mut self.plain(name).cells[first..first + count];
        for (cell, value) in cells.iter_mut().zip(&found[first..]) {
            assert!(cell.allowed.contains(value));
            cell.now = *value;
        }
    }

    async fn fsync(&mut self) {
        let Some(name) = self.any(false) else { return };
        let flushed = self.pool.volume(&name).await.flush().await;
        if Self::done(flushed) {
            self.plain(&name).flush();
        }
    }

    /// Ends in one way or the other, opens again, and compares everything.
    async fn restart(&mut self, crash: bool) {
        if crash {
            let cut = self.disk.cut(self.rng.u64(..));
            // What becomes of the other disk is nobody's concern.
            self.pool.store.close().await.unwrap();
            self.disk = cut;
        } else {
            self.pool.store.close().await.unwrap();
            self.model.values_mut().for_each(Plain::flush);
        }
        assert_valid(&self.disk);
        self.pool = self.bench.open(self.disk.channel(&self.bench.reactor)).await.unwrap();
        assert_eq!(self.pool.store.quarantined(), []);
        let mut names: Vec<_> =
            self.pool.store.volumes().into_iter().map(|volume| volume.name).collect();
        names.sort_unstable();
        assert!(names.iter().eq(self.model.keys()), "{names:?}");
        for (name, plain) in &mut self.model {
            let found = self.pool.blocks(&self.pool.volume(name).await).await;
            assert_eq!(found.len(), plain.cells.len(), "{name}");
            for (block, (cell, value)) in plain.cells.iter_mut().zip(found).enumerate() {
                assert!(cell.allowed.contains(&value), "{name}: block {block}: {value} {cell:?}");
                *cell = Cell::flushed(value);
            }
        }
    }
}

fn history(bench: &Bench, image: &[u8], seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let delays = (rng.u8(..4) == 0).then(|| rng.u64(..));
    let discard = if rng.bool() { Discard::Zeroes } else { Discard::Unspecified };
    let options = SimOptions { delays, discard, ..SimOptions::new(ByteCount(DISK)) };
    let disk = SimDisk::with_image(options, image);
    let used: Vec<usize> = (0..OPERATIONS).filter(|_| rng.u8(..4) > 0).chain([0, 13]).collect();
    let steps = rng.usize(4..16);
    bench.run(async {
        let pool = bench.open(disk.channel(&bench.reactor)).await.unwrap();
        let model = BTreeMap::new();
        let mut history = History { bench, disk, pool, model, rng, serial: 0 };
        history.create().await;
        for _ in 0..steps {
            let operation = used[history.rng.usize(..used.len())];
            history.step(operation).await;
        }
        let crash = history.rng.bool();
        history.restart(crash).await;
        history.restart(false).await;
        history.pool.store.close().await.unwrap();
    });
}

#[test]
fn many_short_histories_agree_with_a_map_of_blocks() {
    let bench = Bench::new();
    let disk = SimDisk::new(SimOptions::new(ByteCount(DISK)));
    bench.run(async {
        let layout =
            LayoutOptions { cluster_size: ByteCount(CLUSTER), metadata_ratio_percent: 100 };
        let uuid = Some(Uuid::from_u128(1));
        let options = FormatOptions { name: "pool".to_owned(), uuid, layout };
        Store::format(&disk.channel(&bench.reactor), &bench.arena, &options).await.unwrap();
    });
    let mut image = vec![0; DISK as usize];
    disk.cut_keep(0).read_at(0, &mut image);
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..HISTORIES).collect(),
    };
    let mut bench = bench;
    for (number, seed) in seeds.into_iter().enumerate() {
        if number % 250 == 0 {
            bench = Bench::new();
        }
        let run = std::panic::AssertUnwindSafe(|| history(&bench, &image, seed));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("failed at seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
