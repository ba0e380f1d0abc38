//! Every operation that changes metadata, with a power cut at each of its device commands and each
//! choice of what survives of the writes that no flush covered; recovery is cut, too; and each flush
//! is left out once to see that it is missed.
//!
//! Clusters of 4096 bytes keep the choices few, and what a cut decides about is only what makes a
//! difference ([`SimDisk::choices`]). So they can be enumerated: every subset of the atomic units that
//! no flush covered, if there are no more than [`Depth::outstanding`] of them. If there are more, but
//! no more outstanding writes than that, every subset of the writes, each kept or lost as a whole.
//! Beyond that, and of writes that are kept in part, as many as a full enumeration would be are
//! drawn. `POWER_CUT=full cargo test --release --test it exhaustive` enumerates up to 12. A failure
//! names the operation, the atomic unit, the command and the choice.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use lvolfs::lvol::NewVolume;
use lvolfs::sim::{SimDisk, SimOptions};
use lvolfs::units::{BlockSize, ByteCount};
use uuid::Uuid;

use super::bench::Bench;
use super::model::{ModelVolume, Span};
use super::run::{Answer, Made, Model, Observed, Run, RunOptions, facts, judge, observe};

const CLUSTER: u64 = 4096;
const DISK: u64 = 1 << 20;
/// Bytes that a cut keeps or loses as one.
const UNITS: [usize; 2] = [4096, 512];

/// How thorough a run is.
#[derive(Clone, Copy)]
struct Depth {
    /// So many outstanding units, or writes, are enumerated at each moment.
    outstanding: u32,
    /// Cuts of an operation after which recovery is cut again.
    recoveries: usize,
    /// The same at each moment of a recovery.
    outstanding_in_recovery: u32,
}

impl Depth {
    fn chosen() -> Self {
        match std::env::var("POWER_CUT").as_deref() {
            Ok("full") => Self { outstanding: 12, recoveries: 400, outstanding_in_recovery: 8 },
            _ => Self { outstanding: 5, recoveries: 6, outstanding_in_recovery: 3 },
        }
    }
}

/// Everything that changes metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    CreateThin,
    CreateThick,
    DeleteThin,
    DeleteThick,
    DeleteAndCreate,
    GrowThin,
    GrowThick,
    GrowClone,
    Shrink,
    ShrinkAndGrow,
    Rename,
    RenamePool,
    GrowPool,
    GrowCleanPool,
    SetXattr,
    SetLongXattr,
    SetReadOnly,
    SetReserve,
    Snapshot,
    SnapshotOfOverwritten,
    SnapshotClone,
    Clone,
    Merge,
    MergeInChain,
    Inflate,
    Decouple,
    SetParent,
    FirstWrite,
    FirstWriteForced,
    CopyOnWrite,
    Overwrite,
    Unmap,
    UnmapAndReuse,
    TwoVolumes,
    Close,
    CloseDirty,
    CloseClean,
    ChangeAfterOpen,
    CloseAndOpen,
    ChangeAfterCrash,
}

use Operation::*;

impl Operation {
    /// What is there before, all of it durable and at rest.
    async fn prepare(self, run: &Run) -> Vec<Made> {
        let mut made = Vec::new();
        match self {
            CreateThin | CreateThick | RenamePool => {}
            DeleteThick | GrowThick => made.extend(run.create(false, 3).await),
            TwoVolumes | UnmapAndReuse => {
                made.extend(run.create(true, 4).await);
                made.extend(run.create(true, 4).await);
                run.write(made[0], 0, 2, true).await;
                run.write(made[1], 1, 2, true).await;
            }
            _ => {
                let volume = run.create(true, 4).await.unwrap();
                run.write(volume, 1, 2, false).await;
                run.fsync(volume).await;
                made.push(volume);
            }
        }
        match self {
            GrowClone | SnapshotClone | Merge | MergeInChain | Inflate | Decouple | CopyOnWrite => {
                if matches!(self, MergeInChain | Decouple) {
                    run.snapshot(made[0]).await;
                    run.write(made[0], 2, 2, true).await;
                }
                let snapshot = run.snapshot(made[0]).await.unwrap();
                made.push(snapshot);
                run.write(made[0], 0, 1, true).await;
            }
            Clone => {
                let snapshot = run.snapshot(made[0]).await.unwrap();
                made.push(snapshot);
            }
            SetParent => {
                let snapshot = run.snapshot(made[0]).await.unwrap();
                made.extend([snapshot, run.create(true, 4).await.unwrap()]);
            }
            _ => {}
        }
        if self == GrowClone {
            run.resize(made[0], 2).await;
        }
        // What was left over is reclaimed, and the disk is at rest.
        run.close().await;
        run.open().await;
        match self {
            ChangeAfterOpen | CloseClean | GrowCleanPool => {}
            // What the bitmaps say has changed.
            Close => run.write(made[0], 0, 1, true).await,
            _ => {
                run.touch_pool().await;
            }
        }
        made
    }

    async fn carry_out(self, run: &Run, made: &[Made]) {
        match self {
            CreateThin => drop(run.create(true, 3).await),
            CreateThick => drop(run.create(false, 3).await),
            DeleteThin | DeleteThick | Merge | MergeInChain => {
                run.delete(made[made.len() - 1]).await;
            }
            DeleteAndCreate => {
                run.delete(made[0]).await;
                let new = run.create(false, 3).await.unwrap();
                run.write(new, 0, 3, true).await;
            }
            GrowThin | GrowThick | GrowClone => run.resize(made[0], 5).await,
            Shrink => run.resize(made[0], 1).await,
            ShrinkAndGrow => {
                run.resize(made[0], 1).await;
                run.resize(made[0], 4).await;
                let other = run.create(false, 3).await.unwrap();
                run.write(other, 0, 3, true).await;
            }
            Rename => run.rename(made[0]).await,
            RenamePool => run.rename_pool("another name").await,
            GrowPool | GrowCleanPool => {
                run.write(made[0], 3, 1, false).await;
                run.grow_pool(ByteCount(2 * DISK)).await;
            }
            SetXattr => run.set_xattr(made[0], b"value").await,
            SetLongXattr => {
                run.set_xattr(made[0], &[7; 4000]).await;
                run.set_xattr(made[0], &[8; 4000]).await;
            }
            SetReadOnly => run.set_read_only(made[0]).await,
            SetReserve => run.set_reserve(made[0], 4).await,
            Snapshot | SnapshotClone => {
                run.write(made[0], 1, 1, false).await;
                run.write(made[0], 3, 1, false).await;
                let _made = run.snapshot(made[0]).await;
            }
            SnapshotOfOverwritten => {
                run.write(made[0], 1, 1, false).await;
                let _made = run.snapshot(made[0]).await;
            }
            Clone => drop(run.clone(made[1]).await),
            Inflate => run.leave_parent(made[0], true).await,
            Decouple => run.leave_parent(made[0], false).await,
            SetParent => run.set_parent(made[2], made[1]).await,
            FirstWrite | CopyOnWrite => {
                run.write(made[0], 3, 1, false).await;
                run.write(made[0], 2, 1, false).await;
                run.fsync(made[0]).await;
            }
            FirstWriteForced => run.write(made[0], 3, 1, true).await,
            Overwrite => {
                run.write(made[0], 1, 2, false).await;
                run.fsync(made[0]).await;
            }
            Unmap => {
                run.discard(made[0], 1, 1).await;
                run.fsync(made[0]).await;
            }
            UnmapAndReuse => {
                run.discard(made[0], 0, 2).await;
                run.fsync(made[0]).await;
                run.at_rest().await;
                run.write(made[1], 0, 1, true).await;
                run.write(made[1], 3, 1, true).await;
            }
            TwoVolumes => {
                run.write(made[0], 2, 2, false).await;
                run.write(made[1], 3, 1, false).await;
                futures_util::future::join(run.fsync(made[0]), run.fsync(made[1])).await;
            }
            Close => {
                run.write(made[0], 1, 1, false).await;
                run.close().await;
            }
            CloseDirty => {
                run.write(made[0], 3, 1, false).await;
                run.close().await;
            }
            CloseClean => {
                run.write(made[0], 1, 1, false).await;
                run.close().await;
            }
            ChangeAfterOpen => drop(run.create(true, 2).await),
            CloseAndOpen => {
                run.write(made[0], 3, 1, false).await;
                run.close().await;
                run.open().await;
                run.write(made[0], 0, 1, true).await;
            }
            ChangeAfterCrash => {
                run.recover().await;
                run.write(made[0], 3, 1, true).await;
            }
        }
        run.at_rest().await;
    }
}

/// One operation, cut everywhere.
struct Subject {
    bench: Rc<Bench>,
    name: String,
    model: Model,
    moments: Vec<(u64, SimDisk)>,
    flushes: std::ops::Range<u64>,
}

impl Subject {
    /// Carries the operation out; the `ignored`-th of its flushes does nothing.
    fn new(operation: Operation, unit: usize, ignored: Option<u64>) -> Self {
        let bench = Rc::new(Bench::new());
        let block_size = if unit == 512 { BlockSize::B512 } else { BlockSize::B4096 };
        let disk = SimOptions { atomic_unit: unit, block_size, ..SimOptions::new(ByteCount(DISK)) };
        let options = RunOptions {
            seed: 7,
            disk,
            cluster: CLUSTER,
            metadata_ratio_percent: 15,
            zeroed_ready: false,
        };
        let (run, begun, flushes) = bench.run(async {
            let run = Run::new(Rc::clone(&bench), options).await;
            let made = operation.prepare(&run).await;
            run.at_rest().await;
            let (begun, first) = (run.disk.commands(), run.disk.flushes());
            if let Some(ignored) = ignored {
                run.disk.ignore_flush(first + ignored);
            }
            operation.carry_out(&run, &made).await;
            let last = run.disk.flushes();
            // So that there is a moment after it has returned.
            run.last_command().await;
            (run, begun, first + 1..last + 1)
        });
        let mut moments = run.disk.recorded();
        moments.retain(|(command, _)| *command > begun);
        let model = run.model.borrow().clone();
        let name = format!("{operation:?}, torn at {unit}");
        Self { bench, name, model, moments, flushes }
    }

    /// Tries choices at each moment, until one is wrong.
    fn cut_everywhere(&self, outstanding: u32, mut each: impl FnMut(u64, &SimDisk)) -> Answer {
        let seen = Seen::default();
        for (command, moment) in &self.moments {
            for (choice, disk) in outcomes(moment, outstanding, *command) {
                let found = seen.observe(&self.bench, &disk);
                let answer = found.and_then(|found| judge(&found, &self.model, *command));
                answer.map_err(|wrong| {
                    format!("{}: command {command}, choice {choice:?}: {wrong}", self.name)
                })?;
                each(*command, &disk);
            }
        }
        Ok(())
    }
}

/// What disks held that were looked at: many choices come to the same.
#[derive(Default)]
struct Seen(RefCell<HashMap<u64, Result<Rc<Observed>, String>>>);

impl Seen {
    fn observe(&self, bench: &Bench, disk: &SimDisk) -> Result<Rc<Observed>, String> {
        let print = disk.fingerprint();
        if let Some(found) = self.0.borrow().get(&print) {
            return found.clone();
        }
        let found = bench.run(observe(bench, disk)).map(Rc::new);
        self.0.borrow_mut().insert(print, found.clone());
        found
    }
}

/// What survives of what a cut decides about.
#[derive(Clone, Copy, Debug)]
enum Choice {
    /// Those whose bit is set.
    Bits(u64),
    /// Those of writes whose bit is set.
    Writes(u64),
    /// All but one.
    Without(usize),
    /// One.
    Only(usize),
    /// Each as the seed draws, with so many chances of 16.
    Drawn(u64, u8),
}

impl Choice {
    fn of(self, moment: &SimDisk) -> SimDisk {
        match self {
            Self::Bits(bits) => moment.cut_choosing(|number| bits >> number.min(63) & 1 != 0),
            Self::Writes(bits) => {
                let writes = moment.writes_of_choices();
                moment.cut_choosing(|number| bits >> writes[number] & 1 != 0)
            }
            Self::Without(without) => moment.cut_choosing(|number| number != without),
            Self::Only(only) => moment.cut_choosing(|number| number == only),
            Self::Drawn(seed, chances) => {
                let mut rng = fastrand::Rng::with_seed(seed);
                moment.cut_choosing(|_| rng.u8(0..16) < chances)
            }
        }
    }
}

/// The disks that a cut at a moment may leave: all, if no more than `outstanding` units decide about
/// them. Otherwise with each subset of the writes kept, if those are no more; and as many again:
/// with nothing; with all; with all but one and nothing but one, those that were written last first;
/// and with what is drawn.
fn outcomes(
    moment: &SimDisk,
    outstanding: u32,
    seed: u64,
) -> impl Iterator<Item = (Choice, SimDisk)> {
    let writes = moment.writes_of_choices();
    let (choices, wanted) = (writes.len(), 1 << outstanding);
    let chosen: Vec<Choice> = if choices <= outstanding as usize {
        (0..1 << choices).map(Choice::Bits).collect()
    } else {
        let count = writes.last().map_or(0, |last| last + 1);
        let subsets = if count <= outstanding as usize { 1 << count } else { 0 };
        let ends = [Choice::Bits(0), Choice::Bits(u64::MAX)].into_iter();
        let singles = (0..choices).rev().flat_map(|one| [Choice::Without(one), Choice::Only(one)]);
        let chances = [8, 12, 4, 14, 2, 15, 1].into_iter().cycle();
        let drawn = (seed << 16..).zip(chances).map(|(seed, chance)| Choice::Drawn(seed, chance));
        let others = ends.chain(singles.take(wanted / 2)).chain(drawn).take(wanted);
        (0..subsets).map(Choice::Writes).chain(others).collect()
    };
    let moment = moment.clone();
    chosen.into_iter().map(move |choice| (choice, choice.of(&moment)))
}

/// Opens a pool after a cut and changes something, cut everywhere.
fn cut_recovery(
    bench: &Bench,
    name: &str,
    model: &Model,
    cut: u64,
    disk: &SimDisk,
    outstanding: u32,
) {
    let uuid = Uuid::from_u128(u128::MAX);
    let mut model = model.clone();
    let later = disk.cut_keep(0);
    later.record();
    bench.run(async {
        let pool = bench.open(later.channel(&bench.reactor)).await.unwrap();
        let new = NewVolume { uuid: Some(uuid), ..NewVolume::thin("later", ByteCount(CLUSTER)) };
        pool.store.create_volume(new).await.unwrap();
    });
    model.insert(
        uuid,
        ModelVolume::new(Span::perhaps(), "later".to_owned(), 1, facts(false, 0, &[])),
    );
    let seen = Seen::default();
    for (command, moment) in later.recorded() {
        for (choice, disk) in outcomes(&moment, outstanding, command) {
            let found = seen.observe(bench, &disk);
            let answer = found.and_then(|found| judge(&found, &model, cut));
            assert_eq!(
                answer,
                Ok(()),
                "{name}: recovery after command {cut}: command {command}, choice {choice:?}"
            );
        }
    }
}

fn cut(operation: Operation) {
    let depth = Depth::chosen();
    for unit in UNITS {
        let subject = Subject::new(operation, unit, None);
        // Some of the different disks that are left: those of the smallest prints.
        let mut left = BTreeMap::new();
        let answer = subject.cut_everywhere(depth.outstanding, |command, disk| {
            left.entry(disk.fingerprint()).or_insert_with(|| (command, disk.clone()));
            if left.len() > depth.recoveries {
                left.pop_last();
            }
        });
        assert_eq!(answer, Ok(()));
        for (cut, disk) in left.into_values() {
            let (bench, model) = (&subject.bench, &subject.model);
            let outstanding = depth.outstanding_in_recovery;
            cut_recovery(bench, &subject.name, model, cut, &disk, outstanding);
        }
    }
}

/// Flushes that nobody misses: the operation, the atomic unit, which of its flushes, and the reason.
const NOT_MISSED: &[(Operation, usize, u64, &str)] = &[
    (Merge, 4096, 1, COVERED),
    (MergeInChain, 4096, 1, COVERED),
    (Snapshot, 4096, 5, ENDED),
    (Snapshot, 512, 8, ENDED),
    (SnapshotOfOverwritten, 4096, 3, ENDED),
    (SnapshotOfOverwritten, 512, 6, ENDED),
    (SnapshotClone, 4096, 5, ENDED),
    (SnapshotClone, 512, 8, ENDED),
    (CloseAndOpen, 4096, 4, OPENED),
    (CloseAndOpen, 512, 4, OPENED),
    (GrowCleanPool, 4096, 1, MARKED),
    (GrowCleanPool, 4096, 2, MARKED),
    (GrowCleanPool, 512, 1, MARKED),
    (GrowCleanPool, 512, 2, MARKED),
];

/// The mark on the snapshot must be durable before the clone's root, and the flush of the clone's
/// fresh pages is between them. Where pages tear, the mark's own flush is needed: the journal's next
/// record may replace the mark's only when that is in its place.
const COVERED: &str = "the flush of the clone's fresh pages covers it";
/// The commit that marks the store writes the same root again, and the larger super block, which has
/// flushes of its own, says "not clean", too.
const MARKED: &str = "the larger super block takes the place of the one that was marked";
/// It spares the next opening the work.
const ENDED: &str = "a snapshot that still says that it is being made is finished by opening";
/// Of an orderly close, whose flushes are missed in `CloseDirty`.
const OPENED: &str = "nothing is cut between the close and the opening that follows";

/// The device answers one flush and does nothing; some cut must show it.
fn miss(operation: Operation) {
    let mut wrong = Vec::new();
    for unit in UNITS {
        let count = Subject::new(operation, unit, None).flushes.count() as u64;
        assert!(count > 0, "{operation:?} has no flush");
        for flush in 1..=count {
            let told = catch_unwind(AssertUnwindSafe(|| {
                let subject = Subject::new(operation, unit, Some(flush));
                subject.cut_everywhere(6, |_, _| ()).is_err()
            }));
            let excused = NOT_MISSED
                .iter()
                .any(|(of, torn, at, _)| (*of, *torn, *at) == (operation, unit, flush));
            if told.unwrap_or(true) == excused {
                wrong.push(format!("flush {flush} of {count}, torn at {unit}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{operation:?}: {wrong:?}");
}

macro_rules! each {
    ($($name:ident: $operation:ident,)*) => {
        mod a_cut_anywhere_leaves_it_undone_or_done {
            $(
                #[test]
                fn $name() {
                    super::cut(super::Operation::$operation);
                }
            )*
        }

        mod each_flush_is_missed {
            $(
                #[test]
                fn $name() {
                    super::miss(super::Operation::$operation);
                }
            )*
        }
    };
}

each! {
    create_thin: CreateThin,
    create_thick: CreateThick,
    delete_thin: DeleteThin,
    delete_thick: DeleteThick,
    delete_and_create: DeleteAndCreate,
    grow_thin: GrowThin,
    grow_thick: GrowThick,
    grow_clone: GrowClone,
    shrink: Shrink,
    shrink_and_grow: ShrinkAndGrow,
    rename: Rename,
    rename_pool: RenamePool,
    grow_pool: GrowPool,
    grow_clean_pool: GrowCleanPool,
    set_xattr: SetXattr,
    set_long_xattr: SetLongXattr,
    set_read_only: SetReadOnly,
    set_reserve: SetReserve,
    snapshot: Snapshot,
    snapshot_of_overwritten: SnapshotOfOverwritten,
    snapshot_clone: SnapshotClone,
    clone: Clone,
    merge: Merge,
    merge_in_chain: MergeInChain,
    inflate: Inflate,
    decouple: Decouple,
    set_parent: SetParent,
    first_write: FirstWrite,
    first_write_forced: FirstWriteForced,
    copy_on_write: CopyOnWrite,
    overwrite: Overwrite,
    unmap: Unmap,
    unmap_and_reuse: UnmapAndReuse,
    two_volumes: TwoVolumes,
    close: Close,
    close_dirty: CloseDirty,
    close_clean: CloseClean,
    change_after_open: ChangeAfterOpen,
    close_and_open: CloseAndOpen,
    change_after_crash: ChangeAfterCrash,
}
