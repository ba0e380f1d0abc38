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

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use futures_util::future::join_all;
use lvolfs::fuse::request::{Changes, FileHandle, NodeId, Operation};

use super::fuse_operations::Served;
use super::fuse_wire::Manner;
use super::power::{Bench, CLUSTER, Drive, History, VOLUMES, content, cut_with_seeds, manner_of};

/// What is written, compared and cut off at once.
const UNIT: u64 = 512;
const PER_CLUSTER: u64 = CLUSTER / UNIT;
/// Operations, or batches of them, in one run.
const STEPS: usize = 10;
/// Cuts that are examined in one run, at most.
const CUTS: usize = 3;
/// Runs, unless it is said otherwise.
const SEEDS: u64 = 1000;

/// A workload, and what it must leave.
struct Run {
    served: Served,
    /// By which transport its requests come.
    manner: Manner,
    nodes: Vec<NodeId>,
    history: History,
}

impl Run {
    async fn new(bench: &Bench, drive: &Drive, seed: u64) -> Self {
        let served = bench.serve(drive).await;
        let mut nodes = Vec::new();
        for name in VOLUMES {
            nodes.push(served.lookup(name).await.unwrap());
        }
        let history = History::new(&drive.stepped, seed);
        Self { served, manner: manner_of(seed), nodes, history }
    }

    fn random(&self, end: u64) -> u64 {
        self.history.random(end)
    }

    fn units_of(&self, volume: usize) -> u64 {
        self.history.clusters(volume) * PER_CLUSTER
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
        let values = self.history.values(count);
        let data = content(values.clone(), UNIT);
        let operation = Operation::Write {
            handle: FileHandle(0),
            offset: first * UNIT,
            size: data.len() as u32,
            flags: flags.cast_unsigned(),
        };
        let beginning = self.history.begin();
        self.served.ask_by(self.manner, self.nodes[volume], &operation, Some(&data)).await.unwrap();
        let span = self.history.end(beginning);
        self.history.written(span, volume, first, values, flags & libc::O_DSYNC != 0);
    }

    /// Gives a range back, or writes zeros to it: zeros, once it is flushed.
    async fn zero(&self, volume: usize, first: u64, count: u64, mode: i32) {
        let mode = (mode | libc::FALLOC_FL_KEEP_SIZE).cast_unsigned();
        let (offset, length) = (first * UNIT, count * UNIT);
        let operation = Operation::FAllocate { offset, length, mode };
        let beginning = self.history.begin();
        self.served.ask_by(self.manner, self.nodes[volume], &operation, None).await.unwrap();
        let span = self.history.end(beginning);
        self.history.written(span, volume, first, (0..count).map(|_| 0), false);
    }

    async fn fsync(&self, volume: usize) {
        let beginning = self.history.begin();
        let operation = Operation::FSync { data_only: self.random(2) == 0 };
        self.served.ask_by(self.manner, self.nodes[volume], &operation, None).await.unwrap();
        let span = self.history.end(beginning);
        self.history.flushed(span, volume);
    }

    /// The size is durable at once. What is left of the last cluster behind it reads as zeros.
    async fn truncate(&self, volume: usize) {
        let (before, units) = (self.units_of(volume), self.random(10 * PER_CLUSTER));
        let beginning = self.history.begin();
        let handle = Some(FileHandle(0));
        let changes = Changes { size: Some(units * UNIT), handle, ..Default::default() };
        let operation = Operation::SetAttr(changes);
        self.served.ask_by(self.manner, self.nodes[volume], &operation, None).await.unwrap();
        let span = self.history.end(beginning);
        let clusters = units.div_ceil(PER_CLUSTER);
        let mut model = self.history.model.borrow_mut();
        model[volume].resize(span, clusters, PER_CLUSTER);
        if units < before {
            for unit in units..(clusters * PER_CLUSTER).min(before) {
                model[volume].write(span, unit, 0, false);
            }
        }
    }
}

/// One workload and its cuts; returns how many.
async fn run(bench: &Bench, seed: u64) -> usize {
    let drive = bench.drive(bench.formatted().await, seed).await;
    let run = Run::new(bench, &drive, seed).await;
    run.history.picture(CUTS, seed);
    for _ in 0..STEPS {
        run.step().await;
    }
    let pictures = drive.stepped.pictures();
    run.served.close().await;
    let Run { history, served, .. } = run;
    let model = history.model.into_inner();
    drop(served);
    drive.end().await;
    let count = pictures.len();
    bench.examine_all(pictures, &model, UNIT, seed).await;
    count
}

#[test]
fn a_power_cut_under_the_mount_loses_nothing_that_was_fsynced() {
    cut_with_seeds(1, SEEDS, run);
}

/// Who asks while a flush runs shares the next one.
#[test]
fn fsyncs_at_once_share_flushes() {
    const WRITERS: u64 = 4;
    const ROUNDS: u64 = 50;
    const PER_BLOCK: u64 = 4096 / UNIT;
    let bench = Bench::new(1);
    bench.reactor.block_on(async {
        let drive = bench.drive(bench.formatted().await, 0).await;
        let run = Rc::new(Run::new(&bench, &drive, 0).await);
        run.write(0, 0, WRITERS * PER_BLOCK, 0).await;
        run.fsync(0).await;
        let before = drive.stepped.flushes();
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
        let flushes = drive.stepped.flushes() - before;
        assert!(flushes >= ROUNDS, "{flushes} flushes for {ROUNDS} fsyncs one after the other");
        let asked = WRITERS * ROUNDS;
        assert!(flushes <= asked * 2 / 3, "{flushes} flushes for {asked} fsyncs");
    });
}
