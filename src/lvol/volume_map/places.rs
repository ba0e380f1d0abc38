//! The place of each cluster of a volume: one writer, readers without locks.
//!
//! Most volumes are mapped in runs: consecutive clusters that are consecutive on the device. So a
//! *leaf*, which is the 512 clusters of an extent page, is one word as long as one run says all
//! that it has: the entry of the run's first cluster, where that is, and how many follow. When an
//! entry does not fit into its run, a leaf gets an array of 512 entries, and keeps it.
//!
//! Leaves lie in chunks of 64, chunks in segments that double in size; all are made when the first
//! cluster in them gets a place, so that holes take no memory and nothing that a reader may hold
//! ever moves.
//!
//! Why a reader needs no lock:
//! * A change of a leaf's run is one store: a reader sees the run before or after it.
//! * An array is made with the entries that the leaf has after the change, and then shown. A reader
//!   looks for the array first and at the run only if there is none. The run does not change any
//!   more once the array can be seen, so what he reads was true when he looked for the array, or
//!   after that.
//! * Stores release and loads acquire: who sees an entry sees all that came before it.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use once_cell::race::OnceBox;

use crate::lvol::format::EXTENT_PAGE_CLUSTERS;
use crate::units::{ClusterCount, ClusterIndex, VolumeCluster};

use super::VOLUME_CLUSTERS_LIMIT;

/// In an entry: the cluster belongs to a parent.
pub(super) const PARENT_BIT: u32 = 1 << 31;
const LEAF: u32 = EXTENT_PAGE_CLUSTERS;
const CHUNK: usize = 64;
const CHUNK_CLUSTERS: usize = LEAF as usize * CHUNK;
/// Segment k holds 2^k chunks, so these hold `VOLUME_CLUSTERS_LIMIT` and more.
const SEGMENTS: usize =
    (VOLUME_CLUSTERS_LIMIT as usize / CHUNK_CLUSTERS).trailing_zeros() as usize + 1;

type Entries = [AtomicU32; LEAF as usize];
type Chunk = [Leaf; CHUNK];
type Segment = Box<[OnceBox<Chunk>]>;

/// Where a cluster of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: reads as zeros, or as the device outside of the pool that shows there.
    None,
    /// In a cluster of the volume's own.
    Own(ClusterIndex),
    /// In a cluster of a parent: never written in place.
    Parent(ClusterIndex),
}

impl Place {
    /// From an entry: 0 for none, else the cluster's number, with [`PARENT_BIT`] if it is a
    /// parent's.
    const fn decode(entry: u32) -> Self {
        match entry {
            0 => Self::None,
            entry if entry & PARENT_BIT != 0 => Self::Parent(ClusterIndex(entry & !PARENT_BIT)),
            entry => Self::Own(ClusterIndex(entry)),
        }
    }

    const fn encode(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Own(cluster) => cluster.0,
            Self::Parent(cluster) => cluster.0 | PARENT_BIT,
        }
    }

    /// The same as a clone has it.
    pub(super) const fn of_parent(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Own(cluster) | Self::Parent(cluster) => Self::Parent(cluster),
        }
    }

    /// The place of the cluster that follows `count` clusters later in the same run.
    pub(in crate::lvol) const fn after(self, count: u32) -> Self {
        match self {
            Self::None => Self::None,
            Self::Own(cluster) => Self::Own(ClusterIndex(cluster.0 + count)),
            Self::Parent(cluster) => Self::Parent(ClusterIndex(cluster.0 + count)),
        }
    }
}

/// Consecutive clusters of a volume, of one kind, that are consecutive on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lvol) struct PlacedRun {
    pub(in crate::lvol) first: VolumeCluster,
    pub(in crate::lvol) count: ClusterCount,
    /// Of the first; not [`Place::None`].
    pub(in crate::lvol) place: Place,
}

impl PlacedRun {
    /// The cluster after the last.
    pub(in crate::lvol) const fn end(&self) -> u32 {
        self.first.0 + self.count.0
    }
}

/// See the module.
pub(super) struct Places {
    segments: [OnceLock<Segment>; SEGMENTS],
}

impl Places {
    pub(super) const fn new() -> Self {
        Self { segments: [const { OnceLock::new() }; SEGMENTS] }
    }

    #[inline]
    pub(super) fn get(&self, cluster: VolumeCluster) -> Place {
        match self.leaf(cluster.0 / LEAF) {
            Some(leaf) => Place::decode(leaf.entry(cluster.0 % LEAF)),
            None => Place::None,
        }
    }

    /// Gives `count` clusters from `first` on consecutive places from `place` on, or takes them
    /// away.
    ///
    /// # Panics
    /// Beyond [`VOLUME_CLUSTERS_LIMIT`]: the owner checks sizes.
    pub(super) fn set(&self, first: VolumeCluster, count: ClusterCount, place: Place) -> OwnChange {
        let end = first.0.checked_add(count.0).filter(|end| *end <= VOLUME_CLUSTERS_LIMIT);
        let Some(end) = end else { panic!("{count} clusters from {first} on are too many") };
        let (mut at, mut own) = (first.0, OwnChange::default());
        while at < end {
            let (index, within) = (at / LEAF, at % LEAF);
            let part = (LEAF - within).min(end - at);
            let leaf = match place {
                Place::None => self.leaf(index),
                Place::Own(_) | Place::Parent(_) => Some(self.leaf_or_new(index)),
            };
            let Some(leaf) = leaf else {
                at = self.end_of_hole(index, end);
                continue;
            };
            let entry = place.after(at - first.0).encode();
            own += leaf.set(Run { start: within, count: part, entry });
            at += part;
        }
        own
    }

    /// Gives every cluster below `end` that has a place in `from` that place.
    pub(super) fn copy(&self, from: &Self, end: u32) -> OwnChange {
        let mut own = OwnChange::default();
        for (index, leaf) in from.leaves(end) {
            own += self.leaf_or_new(index).copy(leaf, LEAF.min(end - index * LEAF));
        }
        own
    }

    /// What is the volume's own below `end` becomes its parent's.
    pub(super) fn disown(&self, end: u32) -> OwnChange {
        let leaves = self.leaves(end);
        let changes = leaves.map(|(index, leaf)| leaf.disown(LEAF.min(end - index * LEAF)));
        changes.fold(OwnChange::default(), |all, change| all + change)
    }

    /// The leaves in which something below `end` has a place, in order.
    fn leaves(&self, end: u32) -> impl Iterator<Item = (u32, &Leaf)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let index = self.next_run(at, end)?.first.0 / LEAF;
            at = (index + 1) * LEAF;
            Some((index, self.leaf(index)?))
        })
    }

    /// The first cluster from `from` on, below `end`, that has a place (or has none, if `placed`
    /// is false). Holes are skipped by leaves.
    pub(super) fn find(
        &self,
        from: VolumeCluster,
        end: u32,
        placed: bool,
    ) -> Option<VolumeCluster> {
        if placed {
            return self.next_run(from.0, end).map(|run| run.first);
        }
        let mut at = from.0;
        while at < end {
            let index = at / LEAF;
            let base = index * LEAF;
            let Some(leaf) = self.leaf(index) else { return Some(VolumeCluster(at)) };
            let leaf_end = LEAF.min(end - base);
            let hole = leaf.next_hole(at - base, leaf_end);
            at = base + hole;
            if hole < leaf_end {
                return Some(VolumeCluster(at));
            }
        }
        None
    }

    /// What has a place in a range, in order, as runs that end where a leaf does.
    pub(super) fn runs(&self, clusters: Range<u32>) -> impl Iterator<Item = PlacedRun> + '_ {
        let mut at = clusters.start;
        std::iter::from_fn(move || {
            let run = self.next_run(at, clusters.end)?;
            at = run.end();
            Some(run)
        })
    }

    fn next_run(&self, from: u32, end: u32) -> Option<PlacedRun> {
        let mut at = from;
        while at < end {
            let index = at / LEAF;
            let base = index * LEAF;
            let Some(leaf) = self.leaf(index) else {
                at = self.end_of_hole(index, end);
                continue;
            };
            let run = leaf.next_run(at - base, LEAF.min(end - base));
            if run.count > 0 {
                return Some(PlacedRun {
                    first: VolumeCluster(base + run.start),
                    count: ClusterCount(run.count),
                    place: Place::decode(run.entry),
                });
            }
            at = base + LEAF;
        }
        None
    }

    /// Memory that they take, this value aside.
    pub(super) fn memory(&self) -> usize {
        let mut bytes = 0;
        for segment in self.segments.iter().filter_map(OnceLock::get) {
            bytes += size_of_val::<[OnceBox<Chunk>]>(segment);
            for chunk in segment.iter().filter_map(OnceBox::get) {
                let arrays = chunk.iter().filter(|leaf| leaf.entries.get().is_some()).count();
                bytes += size_of::<Chunk>() + arrays * size_of::<Entries>();
            }
        }
        bytes
    }

    #[inline]
    fn leaf(&self, index: u32) -> Option<&Leaf> {
        let (segment, position) = segment_of(index as usize / CHUNK);
        let chunk = self.segments.get(segment)?.get()?[position].get()?;
        Some(&chunk[index as usize % CHUNK])
    }

    fn leaf_or_new(&self, index: u32) -> &Leaf {
        let (segment, position) = segment_of(index as usize / CHUNK);
        let segment = self.segments[segment]
            .get_or_init(|| (0..1 << segment).map(|_| OnceBox::new()).collect());
        let chunk = segment[position].get_or_init(|| Box::new([const { Leaf::new() }; CHUNK]));
        &chunk[index as usize % CHUNK]
    }

    /// Where the hole ends that leaf `index` is missing in, as far as a chunk or a segment tells.
    fn end_of_hole(&self, index: u32, end: u32) -> u32 {
        let chunk = index as usize / CHUNK;
        let (segment, position) = segment_of(chunk);
        let next_chunk = match self.segments.get(segment).map(OnceLock::get) {
            // It was made just now.
            Some(Some(chunks)) if chunks[position].get().is_some() => {
                return (index * LEAF + LEAF).min(end);
            }
            Some(Some(_)) => chunk + 1,
            // Segment k ends with chunk 2^(k+1) - 2.
            Some(None) => (1 << (segment + 1)) - 1,
            None => return end,
        };
        u32::try_from(next_chunk * CHUNK_CLUSTERS).map_or(end, |next| next.min(end))
    }
}

/// The segment of a chunk, and the chunk's place in it.
#[inline]
const fn segment_of(chunk: usize) -> (usize, usize) {
    let segment = (chunk + 1).ilog2() as usize;
    (segment, chunk + 1 - (1 << segment))
}

/// The entries of 512 clusters.
struct Leaf {
    /// A packed [`Run`]: all that there is as long as there is no array.
    run: AtomicU64,
    entries: OnceBox<Entries>,
}

/// What a leaf has at one moment.
enum Content<'a> {
    Run(Run),
    Entries(&'a Entries),
}

impl Leaf {
    const fn new() -> Self {
        Self { run: AtomicU64::new(0), entries: OnceBox::new() }
    }

    #[inline]
    fn content(&self) -> Content<'_> {
        match self.entries.get() {
            Some(entries) => Content::Entries(entries),
            None => Content::Run(Run::unpack(self.run.load(Ordering::Acquire))),
        }
    }

    #[inline]
    fn entry(&self, index: u32) -> u32 {
        match self.content() {
            Content::Entries(entries) => entries[index as usize].load(Ordering::Acquire),
            Content::Run(run) => run.entry(index),
        }
    }

    /// Changes the entries of `new`. As all changes, by the owner alone.
    fn set(&self, new: Run) -> OwnChange {
        match self.content() {
            Content::Entries(entries) => {
                let mut own = OwnChange::default();
                for (index, entry) in new.range().zip(&entries[new.indices()]) {
                    own += change(entry, new.following(index));
                }
                own
            }
            Content::Run(run) => {
                match run.with(new) {
                    Some(run) => self.run.store(run.pack(), Ordering::Release),
                    None => self.show_entries(run, |entries| new.write(entries)),
                }
                let before = run.own_between(new.start, new.end());
                OwnChange { before, now: new.own_between(0, LEAF) }
            }
        }
    }

    /// Takes over what `from` has below `end`.
    fn copy(&self, from: &Self, end: u32) -> OwnChange {
        let first = from.next_run(0, end);
        let others = match from.content() {
            Content::Entries(entries) if from.next_run(first.end(), end).count > 0 => entries,
            _ => return if first.count > 0 { self.set(first) } else { OwnChange::default() },
        };
        let others = others[..end as usize].iter().map(|entry| entry.load(Ordering::Relaxed));
        let copy = |entries: &Entries| {
            let copies = entries.iter().zip(others).filter(|(_, other)| *other != 0);
            copies.fold(OwnChange::default(), |own, (entry, other)| own + change(entry, other))
        };
        match self.content() {
            Content::Entries(entries) => copy(entries),
            Content::Run(run) => {
                let mut own = OwnChange::default();
                self.show_entries(run, |entries| own = copy(entries));
                own
            }
        }
    }

    /// What is the volume's own below `end` becomes its parent's.
    fn disown(&self, end: u32) -> OwnChange {
        match self.content() {
            Content::Run(run) => match run.between(0, end) {
                own if is_own(own.entry) => self.set(Run { entry: own.entry | PARENT_BIT, ..own }),
                _ => OwnChange::default(),
            },
            Content::Entries(entries) => {
                let mut own = OwnChange::default();
                for entry in &entries[..end as usize] {
                    let before = entry.load(Ordering::Relaxed);
                    if is_own(before) {
                        own += change(entry, before | PARENT_BIT);
                    }
                }
                own
            }
        }
    }

    /// The leaf gets its array: `run`, and what `write` changes of it.
    fn show_entries(&self, run: Run, write: impl FnOnce(&Entries)) {
        let entries: Box<Entries> = Box::new([const { AtomicU32::new(0) }; LEAF as usize]);
        run.write(&entries);
        write(&entries);
        assert!(self.entries.set(entries).is_ok(), "a map has one writer");
    }

    /// The first run at or after `from`, below `end`; empty if there is none.
    fn next_run(&self, from: u32, end: u32) -> Run {
        match self.content() {
            Content::Run(run) => run.between(from, end),
            Content::Entries(entries) => {
                let entry = |index: u32| entries[index as usize].load(Ordering::Acquire);
                let mut placed = (from..end).map(|index| (index, entry(index)));
                let Some((start, first)) = placed.find(|(_, entry)| *entry != 0) else {
                    return Run::EMPTY;
                };
                let run = Run { start, count: 1, entry: first };
                let more = placed.take_while(|(index, entry)| *entry == run.following(*index));
                Run { count: 1 + more.count() as u32, ..run }
            }
        }
    }

    /// The first index at or after `from`, below `end`, without a place; `end` if there is none.
    fn next_hole(&self, from: u32, end: u32) -> u32 {
        match self.content() {
            Content::Run(run) if run.range().contains(&from) => run.end().min(end),
            Content::Run(_) => from,
            Content::Entries(entries) => {
                let none = |index: &u32| entries[*index as usize].load(Ordering::Acquire) == 0;
                (from..end).find(none).unwrap_or(end)
            }
        }
    }
}

/// Consecutive entries of a leaf, for consecutive clusters of the device; with entry 0, entries
/// that are all 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: u32,
    count: u32,
    /// Of `start`.
    entry: u32,
}

impl Run {
    const EMPTY: Self = Self { start: 0, count: 0, entry: 0 };

    /// In one word: the entry, 10 bits of start, the count.
    const fn pack(self) -> u64 {
        self.entry as u64 | (self.start as u64) << 32 | (self.count as u64) << 42
    }

    #[inline]
    const fn unpack(word: u64) -> Self {
        Self { start: (word >> 32) as u32 & 0x3ff, count: (word >> 42) as u32, entry: word as u32 }
    }

    const fn end(self) -> u32 {
        self.start + self.count
    }

    const fn range(self) -> Range<u32> {
        self.start..self.end()
    }

    const fn indices(self) -> Range<usize> {
        self.start as usize..self.end() as usize
    }

    /// Into an array that nobody else can see yet.
    fn write(self, entries: &Entries) {
        for (index, entry) in self.range().zip(&entries[self.indices()]) {
            entry.store(self.following(index), Ordering::Relaxed);
        }
    }

    /// What stands at an index, if nothing else has an entry.
    #[inline]
    const fn entry(self, index: u32) -> u32 {
        if index.wrapping_sub(self.start) < self.count { self.following(index) } else { 0 }
    }

    /// What stands, or would stand, at an index behind `start`.
    #[inline]
    const fn following(self, index: u32) -> u32 {
        if self.entry == 0 { 0 } else { self.entry.wrapping_add(index - self.start) }
    }

    /// The part of it that lies between two indices.
    fn between(self, from: u32, end: u32) -> Self {
        let (start, end) = (self.start.max(from), self.end().min(end));
        if start < end {
            Self { start, count: end - start, entry: self.following(start) }
        } else {
            Self::EMPTY
        }
    }

    fn own_between(self, from: u32, end: u32) -> u32 {
        if is_own(self.entry) { self.between(from, end).count } else { 0 }
    }

    /// The run that is left or comes about when the entries of `new` replace what stands there;
    /// `None` if that is not one run.
    fn with(self, new: Self) -> Option<Self> {
        let covered = new.start <= self.start && self.end() <= new.end();
        if new.entry == 0 {
            let (before, after) = (self.between(0, new.start), self.between(new.end(), self.end()));
            return match (before.count, after.count) {
                (0, _) => Some(after),
                (_, 0) => Some(before),
                _ => None,
            };
        }
        if self.count == 0 || covered {
            return Some(new);
        }
        let touches = new.start <= self.end() && self.start <= new.end();
        let (first, second) = if self.start <= new.start { (self, new) } else { (new, self) };
        // What continues is of the same kind: no place is cluster 0, which the metadata has.
        let continues = first.following(second.start) == second.entry;
        let end = first.end().max(second.end());
        (touches && continues).then_some(Self { count: end - first.start, ..first })
    }
}

const fn is_own(entry: u32) -> bool {
    entry != 0 && entry & PARENT_BIT == 0
}

/// The owner is the only writer, so this need not be one step.
fn change(entry: &AtomicU32, now: u32) -> OwnChange {
    let before = entry.load(Ordering::Relaxed);
    entry.store(now, Ordering::Release);
    OwnChange { before: u32::from(is_own(before)), now: u32::from(is_own(now)) }
}

/// How many of the clusters that were changed the volume had of its own before, and has now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OwnChange {
    pub(super) before: u32,
    pub(super) now: u32,
}

impl std::ops::Add for OwnChange {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { before: self.before + other.before, now: self.now + other.now }
    }
}

impl std::ops::AddAssign for OwnChange {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use proptest::prelude::*;

    use super::*;

    /// Clusters that the tests change: three leaves, so that runs cross them.
    const CLUSTERS: u32 = 3 * LEAF;

    /// One change, as [`Places::set`] takes it.
    #[derive(Clone, Copy, Debug)]
    struct Change {
        first: u32,
        count: u32,
        place: Place,
    }

    /// The same in a plain array.
    fn apply(model: &mut [Place], change: Change) {
        for offset in 0..change.count {
            model[(change.first + offset) as usize] = change.place.after(offset);
        }
    }

    impl Places {
        fn change(&self, Change { first, count, place }: Change) -> OwnChange {
            self.set(VolumeCluster(first), ClusterCount(count), place)
        }

        fn all(&self) -> Vec<Place> {
            (0..CLUSTERS).map(|cluster| self.get(VolumeCluster(cluster))).collect()
        }

        fn changed(changes: &[Change]) -> Self {
            let places = Self::new();
            for change in changes {
                places.change(*change);
            }
            places
        }

        fn arrays(&self) -> usize {
            let leaves = (0..CLUSTERS / LEAF).filter_map(|index| self.leaf(index));
            leaves.filter(|leaf| leaf.entries.get().is_some()).count()
        }
    }

    /// Changes as volumes see them: mostly what continues, repeats, cuts or turns a run around
    /// cluster 600, which is mapped to cluster 5600.
    fn changes() -> impl Strategy<Value = Change> {
        let first = prop_oneof![4 => 0..CLUSTERS, 3 => 500..530_u32, 3 => 590..610_u32];
        let count = prop_oneof![4 => Just(1_u32), 4 => 1..40_u32, 2 => 1..CLUSTERS];
        let kind = 0..3_usize;
        let shift = prop_oneof![6 => Just(5000_u32), 1 => 5000..5003_u32];
        (first, count, kind, shift).prop_map(|(first, count, kind, shift)| {
            let cluster = ClusterIndex(first + shift);
            let place = [Place::None, Place::Own(cluster), Place::Parent(cluster)][kind];
            Change { first, count: count.min(CLUSTERS - first), place }
        })
    }

    fn own(places: &[Place]) -> u32 {
        places.iter().filter(|place| matches!(place, Place::Own(_))).count() as u32
    }

    proptest! {
        #[test]
        fn any_changes_are_kept_as_a_plain_array_keeps_them(
            changes in prop::collection::vec(changes(), 1..30),
            from in 0..CLUSTERS,
            length in 0..CLUSTERS,
        ) {
            let places = Places::new();
            let mut model = vec![Place::None; CLUSTERS as usize];
            for change in changes {
                let range = change.first as usize..(change.first + change.count) as usize;
                let before = own(&model[range.clone()]);
                apply(&mut model, change);
                let now = own(&model[range]);
                prop_assert_eq!(places.change(change), OwnChange { before, now });
                prop_assert!(places.all() == model, "{:?}", change);
            }
            let end = (from + length).min(CLUSTERS);
            for placed in [true, false] {
                let hit = |at: &u32| (model[*at as usize] != Place::None) == placed;
                let found = places.find(VolumeCluster(from), end, placed);
                prop_assert_eq!(found.map(|found| found.0), (from..end).find(hit));
            }
            let mut runs = vec![Place::None; CLUSTERS as usize];
            let mut last = from;
            for PlacedRun { first, count, place } in places.runs(from..end) {
                prop_assert!(first.0 >= last && count.0 > 0 && place != Place::None);
                last = first.0 + count.0;
                prop_assert_eq!(first.0 / LEAF, (last - 1) / LEAF);
                apply(&mut runs, Change { first: first.0, count: count.0, place });
            }
            prop_assert!(last <= end.max(from));
            let (from, end) = (from as usize, end as usize);
            prop_assert_eq!(&runs[from.min(end)..end], &model[from.min(end)..end]);
        }
    }

    proptest! {
        #[test]
        fn a_snapshot_takes_over_and_disowns_what_a_plain_array_has(
            source in prop::collection::vec(changes(), 0..20),
            target in prop::collection::vec(changes(), 0..6),
            end in 0..=CLUSTERS,
        ) {
            let (source, target) = (Places::changed(&source), Places::changed(&target));
            let (there, mut model) = (source.all(), target.all());
            let shown = |(_, from): &(&mut Place, &Place)| **from != Place::None;
            let (mut before, mut now) = (0, 0);
            for (to, from) in model.iter_mut().zip(&there[..end as usize]).filter(shown) {
                before += own(&[*to]);
                now += own(&[*from]);
                *to = *from;
            }
            prop_assert_eq!(target.copy(&source, end), OwnChange { before, now });
            prop_assert!(target.all() == model);
            let before = own(&model[..end as usize]);
            for place in &mut model[..end as usize] {
                if let Place::Own(cluster) = *place {
                    *place = Place::Parent(cluster);
                }
            }
            prop_assert_eq!(target.disown(end), OwnChange { before, now: 0 });
            prop_assert!(target.all() == model);
        }
    }

    #[test]
    fn what_is_one_run_takes_no_array() {
        let places = Places::new();
        let set = |first, count, place| places.change(Change { first, count, place });
        let (own, parent) =
            (|at| Place::Own(ClusterIndex(at)), |at| Place::Parent(ClusterIndex(at)));
        // A thin volume that is written from the middle on, and before it backwards.
        for cluster in 100..600 {
            set(cluster, 1, own(1000 + cluster));
        }
        for cluster in (50..100).rev() {
            set(cluster, 1, own(1000 + cluster));
        }
        // Written again, cut at both ends, turned into a parent's and back.
        set(60, 20, own(1060));
        set(0, 55, Place::None);
        set(590, 300, Place::None);
        assert_eq!(set(55, 535, parent(1055)), OwnChange { before: 535, now: 0 });
        assert_eq!(set(0, CLUSTERS, own(9)), OwnChange { before: 0, now: CLUSTERS });
        // A snapshot of it.
        let snapshot = Places::new();
        snapshot.copy(&places, CLUSTERS);
        places.disown(CLUSTERS);
        assert_eq!(snapshot.all(), (0..CLUSTERS).map(|at| own(9 + at)).collect::<Vec<_>>());
        assert_eq!(places.all(), (0..CLUSTERS).map(|at| parent(9 + at)).collect::<Vec<_>>());
        assert_eq!((places.arrays(), snapshot.arrays()), (0, 0));
        assert_eq!(places.memory(), size_of::<Chunk>() + size_of::<OnceBox<Chunk>>());
        // An entry that does not fit in costs its own leaf an array, and no other.
        set(700, 1, own(5));
        assert_eq!(places.arrays(), 1);
        assert_eq!(places.get(VolumeCluster(701)), parent(9 + 701));
        // A copy of what became one run again is one.
        set(700, 1, parent(9 + 700));
        let copy = Places::new();
        copy.copy(&places, CLUSTERS);
        assert_eq!((places.arrays(), copy.arrays()), (1, 0));
    }

    #[test]
    fn segments_hold_every_chunk_once() {
        let mut expected = (0, 0);
        for chunk in 0..5000 {
            assert_eq!(segment_of(chunk), expected, "chunk {chunk}");
            expected.1 += 1;
            if expected.1 == 1 << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
        let last = VOLUME_CLUSTERS_LIMIT as usize / CHUNK_CLUSTERS - 1;
        assert!(segment_of(last).0 < SEGMENTS);
    }

    /// A map from the first change to the last, beside readers.
    struct Life {
        places: Places,
        changes: Vec<Change>,
        /// Every state that the changes lead through, the empty one first.
        states: Vec<Vec<Place>>,
        begun: AtomicUsize,
        done: AtomicUsize,
        reads: [AtomicUsize; READERS],
    }

    const READERS: usize = 2;

    impl Life {
        /// Changes as a volume goes through: written in order and at random, snapshots, pieces and
        /// sometimes all of it taken away.
        fn new(rng: &mut fastrand::Rng) -> Self {
            let mut states = vec![vec![Place::None; CLUSTERS as usize]];
            let mut changes = Vec::new();
            let mut at = rng.u32(0..CLUSTERS);
            for _ in 0..50 {
                let place = |first: u32| ClusterIndex(first + 5000);
                let some = rng.u32(0..CLUSTERS);
                let few = rng.u32(1..8).min(CLUSTERS - some);
                let change = match rng.u32(0..100) {
                    0..70 => {
                        at = (at + 1) % CLUSTERS;
                        Change { first: at, count: 1, place: Place::Own(place(at)) }
                    }
                    70..75 => Change { first: some, count: few, place: Place::Own(place(some)) },
                    75..80 => Change { first: some, count: few, place: Place::Parent(place(some)) },
                    80..85 => Change { first: some, count: few, place: Place::None },
                    85..90 => Change { first: 0, count: CLUSTERS, place: Place::Parent(place(0)) },
                    90..95 => Change { first: 0, count: CLUSTERS, place: Place::Own(place(1)) },
                    _ => Change { first: 0, count: CLUSTERS, place: Place::None },
                };
                let mut state = states[states.len() - 1].clone();
                apply(&mut state, change);
                states.push(state);
                changes.push(change);
            }
            let (places, [begun, done]) = (Places::new(), Default::default());
            Self { places, changes, states, begun, done, reads: Default::default() }
        }

        fn live(&self) {
            for (step, change) in self.changes.iter().enumerate() {
                self.begun.store(step + 1, Ordering::Release);
                self.places.change(*change);
                self.done.store(step + 1, Ordering::Release);
            }
        }

        /// One read at random: what is read, the cluster must have had at some moment between the
        /// beginning and the end of the read.
        fn read(&self, rng: &mut fastrand::Rng, seed: u64) {
            let next = self.begun.load(Ordering::Relaxed).min(self.changes.len() - 1);
            let Change { first, count, .. } = self.changes[next];
            let cluster = match rng.bool() {
                true => first + rng.u32(0..count),
                false => rng.u32(0..CLUSTERS),
            };
            let done = self.done.load(Ordering::Acquire);
            let place = self.places.get(VolumeCluster(cluster));
            let found = self.places.find(VolumeCluster(cluster), cluster + 1, true).is_some();
            let begun = self.begun.load(Ordering::Acquire);
            let had: Vec<_> =
                self.states[done..=begun].iter().map(|state| state[cluster as usize]).collect();
            let at = format_args!("seed {seed:#x}: cluster {cluster} had {had:?}");
            assert!(had.contains(&place), "{at} and was read as {place:?}");
            let placed = |had: &Place| (*had != Place::None) == found;
            assert!(had.iter().any(placed), "{at} and was found placed: {found}");
        }
    }

    /// Readers end, also when the one that they read beside has panicked.
    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }

    #[test]
    fn readers_on_other_threads_see_only_what_was_true() {
        let seed = 0x7061_6365;
        let mut rng = fastrand::Rng::with_seed(seed);
        let lives: Vec<_> = (0..100).map(|_| Life::new(&mut rng)).collect();
        let (current, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let (lives, current, over) = (&lives, &current, &over);
            let reader = |number: usize| {
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(seed + number as u64);
                    while !over.load(Ordering::Acquire) {
                        let life = &lives[current.load(Ordering::Acquire)];
                        life.read(&mut rng, seed);
                        life.reads[number].fetch_add(1, Ordering::Relaxed);
                    }
                })
            };
            let readers: Vec<_> = (0..READERS).map(reader).collect();
            let _over = Over(over);
            for (number, life) in lives.iter().enumerate() {
                current.store(number, Ordering::Release);
                // They are there, however few processors there are.
                let absent =
                    |(reader, reads): (&std::thread::ScopedJoinHandle<'_, ()>, &AtomicUsize)| {
                        !reader.is_finished() && reads.load(Ordering::Relaxed) == 0
                    };
                while readers.iter().zip(&life.reads).any(absent) {
                    std::thread::yield_now();
                }
                life.live();
            }
        });
    }
}
