//! The power goes under the target: a host writes, clears, compares and writes, and flushes over
//! two queues, through volume, lvolstore and NVMe driver, to an emulated controller that loses,
//! keeps and reorders what its volatile cache holds. After each cut the pool is opened again: what
//! was written with FUA, or was answered before a Flush that was answered, is there; each other
//! block is old or new. It is read as a file, so that the two doors agree.
//!
//! A failure prints its seed; `SEED=n cargo test --test it nvmf::power_cut` runs one seed,
//! `POWER_CUTS=n` runs n of them.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use futures_util::future::join;
use lvolfs::nvmf::pdu::Digests;
use lvolfs::spec::command::{
    ALL_NAMESPACES, Deallocate, DsmRange, ForceUnitAccess, IoOpcode, SubmissionEntry,
};
use lvolfs::units::{ByteCount, Lba, NamespaceId};
use zerocopy::IntoBytes;

use super::exported::{self, Exported, HOST, SUBSYSTEM, Source};
use super::host::{Host, Identity};
use super::pipe::Pipe;
use crate::power::{Bench, CLUSTER, FIRST_CLUSTERS, History, VOLUMES, content, cut_with_seeds};

/// A block: what is written and compared at once.
const UNIT: u64 = 4096;
const UNITS: u64 = FIRST_CLUSTERS * CLUSTER / UNIT;
/// Batches of commands in one run.
const STEPS: usize = 10;
/// Cuts that are examined in one run, at most.
const CUTS: usize = 3;
/// Runs, unless it is said otherwise.
const SEEDS: u64 = 300;

/// A command, and what it means once it is answered.
enum Op {
    Write {
        volume: usize,
        first: u64,
        values: Vec<u64>,
        durable: bool,
    },
    Flush(Vec<usize>),
    /// The first half of a fused operation: the second one is the write.
    Compare,
}

struct Run {
    history: History,
    /// Blocks that the commands of one step touch; none is touched by two.
    taken: RefCell<BTreeSet<(usize, u64)>>,
}

impl Run {
    /// The blocks of a command of up to `longest`, if no other command has one of them.
    fn take(&self, longest: u64) -> Option<(usize, u64, u64)> {
        let (volume, first) = (self.history.random(2) as usize, self.history.random(UNITS));
        let count = (1 + self.history.random(longest)).min(UNITS - first);
        let mut taken = self.taken.borrow_mut();
        let range = (first..first + count).map(|unit| (volume, unit));
        if range.clone().any(|unit| taken.contains(&unit)) {
            return None;
        }
        taken.extend(range);
        Some((volume, first, count))
    }

    fn flush(&self) -> (SubmissionEntry, Vec<u8>, Op) {
        let (volumes, id) = match self.history.random(3) {
            2 => (vec![0, 1], ALL_NAMESPACES),
            volume => (vec![volume as usize], namespace(volume as usize)),
        };
        (SubmissionEntry::flush(id), Vec::new(), Op::Flush(volumes))
    }

    /// One command, or two that are fused.
    fn commands(&self) -> Vec<(SubmissionEntry, Vec<u8>, Op)> {
        let kind = self.history.random(16);
        let longest = if kind >= 12 { 12 } else { 5 };
        let Some((volume, first, count)) = self.take(if kind == 11 { 1 } else { longest }) else {
            return vec![self.flush()];
        };
        let (id, lba) = (namespace(volume), Lba(first));
        let durable = self.history.random(4) == 0;
        let force = if durable { ForceUnitAccess::Yes } else { ForceUnitAccess::No };
        let zeros = vec![0; count as usize];
        let clear = |durable| Op::Write { volume, first, values: zeros.clone(), durable };
        match kind {
            0..11 => {
                let values: Vec<u64> = self.history.values(count).collect();
                let entry = SubmissionEntry::write(id, lba, count as u32, force);
                let data = content(values.iter().copied(), UNIT);
                vec![(entry, data, Op::Write { volume, first, values, durable })]
            }
            11 => {
                let before = self.history.model.borrow()[volume].value(first);
                let values: Vec<u64> = self.history.values(1).collect();
                let mut compare = SubmissionEntry::write(id, lba, 1, ForceUnitAccess::No);
                compare.opcode = IoOpcode::COMPARE.0;
                let mut write = SubmissionEntry::write(id, lba, 1, force);
                (compare.flags, write.flags) = (1, 2);
                let expected = content(std::iter::once(before), UNIT);
                let data = content(values.iter().copied(), UNIT);
                let exchanged = Op::Write { volume, first, values, durable };
                vec![(compare, expected, Op::Compare), (write, data, exchanged)]
            }
            12 | 13 => {
                let how = if kind == 12 { Deallocate::Yes } else { Deallocate::No };
                let entry = SubmissionEntry::write_zeroes(id, lba, count as u32, how, force);
                vec![(entry, Vec::new(), clear(durable))]
            }
            14 => {
                let range = DsmRange::new(lba, count as u32);
                let entry = SubmissionEntry::deallocate_ranges(id, 1);
                vec![(entry, range.as_bytes().to_vec(), clear(false))]
            }
            _ => vec![self.flush()],
        }
    }

    /// Several commands at once on one queue.
    async fn batch(&self, queue: &mut Host<Pipe>) {
        let mut pending = HashMap::new();
        for _ in 0..=self.history.random(4) {
            for (entry, data, op) in self.commands() {
                let beginning = self.history.begin();
                let id = queue.submit(entry, &data, 0).await;
                pending.insert(id, (beginning, op));
            }
        }
        while !pending.is_empty() {
            let answer = queue.complete().await.unwrap().ok();
            let (beginning, op) = pending.remove(&answer.completion.command_id()).unwrap();
            let span = self.history.end(beginning);
            match op {
                Op::Write { volume, first, values, durable } => {
                    self.history.written(span, volume, first, values.into_iter(), durable);
                }
                Op::Flush(volumes) => {
                    volumes.into_iter().for_each(|volume| self.history.flushed(span, volume));
                }
                Op::Compare => {}
            }
        }
    }
}

fn namespace(volume: usize) -> NamespaceId {
    NamespaceId(volume as u32 + 1)
}

/// One workload and its cuts; returns how many.
async fn run(bench: &Bench, seed: u64) -> usize {
    let drive = bench.drive(bench.formatted().await, seed).await;
    let served = bench.serve(&drive).await;
    let source = Source {
        reactor: &bench.reactor,
        arena: &bench.arena,
        directory: &served.directory,
        pool: &served.pool,
        store: served.store(),
        channel: drive.device.channel(&bench.reactor, &bench.arena).unwrap(),
    };
    let exported = Exported::new(source, &VOLUMES, ByteCount(FIRST_CLUSTERS * CLUSTER)).await;
    let connect = async || {
        let digests = Digests::from_bits(seed as u8 & 3);
        Host::initialize(exported::connect(&exported.service), digests, 0).await
    };
    let identity = Identity::new(SUBSYSTEM, HOST);
    let mut admin = connect().await;
    let controller = admin.connect_admin(&identity, 0).await;
    let (mut one, mut two) = (connect().await, connect().await);
    for (queue, id) in [(&mut one, 1), (&mut two, 2)] {
        queue.connect_io(&identity, controller, id, 32, seed & 4 == 0).await.ok();
    }
    let stepped = Rc::clone(&drive.stepped);
    let run = Run { history: History::new(&stepped, seed), taken: RefCell::default() };
    run.history.picture(CUTS, seed);
    for _ in 0..STEPS {
        run.taken.borrow_mut().clear();
        join(run.batch(&mut one), run.batch(&mut two)).await;
    }
    let pictures = stepped.pictures();
    drop((admin, one, two));
    exported.service.drain().await;
    drop(exported);
    served.close().await;
    drop(served);
    drive.end().await;
    let count = pictures.len();
    let model = run.history.model.into_inner();
    bench.examine_all(pictures, &model, UNIT, seed).await;
    count
}

#[test]
fn a_power_cut_under_the_target_loses_nothing_that_was_flushed() {
    // One channel for the files, one for the target.
    cut_with_seeds(2, SEEDS, run);
}
