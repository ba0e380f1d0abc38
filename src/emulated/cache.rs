//! A disk in memory with a volatile write cache, and what a power cut leaves of it.
//!
//! Two pictures of the disk are kept: `current`, which reads see, and `stable`, which a power cut
//! cannot take. Between them lies the log of *versions*: each write, zeroing or deallocation since,
//! in the order the controller carried it out. A version is
//!
//! * *durable* once it completed with force unit access (or with the cache switched off), or once
//!   a flush completed that was submitted after the version had completed;
//! * *undecided* before that: a power cut keeps or loses each of its atomic units on its own,
//!   whatever happened to the units around it and to versions before and after it.
//!
//! A durable version stays in the log while an undecided one lies before it, so that what is
//! undecided can never overwrite what is durable. Invariant: `stable` with the whole log applied
//! in order equals `current`.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::scatter::Scatter;
use super::sparse::{CHUNK, Chunk, SparseBytes, ZEROS, pieces};
use crate::hw::dma::OutsideWindow;
use crate::units::{BlockCount, BlockSize, ByteCount};

/// Largest disk in memory: its table takes 8 MiB for each TiB, before anything is written.
pub const MAX_MEMORY_CAPACITY: ByteCount = ByteCount(16 << 40);
/// A version of zeros is undecided in at most this many parts, however long it is.
const MAX_ZERO_UNITS: u64 = 64;

/// What is flipped in a byte that rots.
pub(super) const ROT: u8 = 0x40;

/// What one command promises once it has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// It is in the cache.
    Volatile,
    /// It is on the medium.
    Durable,
}

/// The command a version belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    /// Serial number of the command; later commands have larger ones.
    pub(super) command: u64,
    /// What its completion will mean.
    pub(super) durability: Durability,
}

/// The shape of a disk in memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryGeometry {
    /// Size of a logical block.
    pub block_size: BlockSize,
    /// Blocks of the disk.
    pub blocks: BlockCount,
    /// A write that crosses no multiple of this many bytes survives a power cut whole or not at
    /// all. Any other may be torn at each block. Below the block size (a drive that breaks the
    /// rules) even a block may be torn, at each multiple of it. A power of two, 512 or more.
    pub atomic_unit: ByteCount,
    /// Bytes of undecided data to hold before the oldest is written back.
    pub cache: ByteCount,
}

impl MemoryGeometry {
    /// `blocks` blocks of `block_size`, atomic only by the block, with a cache of 32 MiB.
    #[must_use]
    pub const fn new(block_size: BlockSize, blocks: BlockCount) -> Self {
        Self {
            block_size,
            blocks,
            atomic_unit: ByteCount(block_size.bytes() as u64),
            cache: ByteCount(32 << 20),
        }
    }
}

/// A disk in memory. A clone is a snapshot, undecided versions included, and costs little: the
/// same moment can be cut many times.
#[derive(Clone)]
pub struct Memory {
    geometry: MemoryGeometry,
    current: SparseBytes,
    stable: SparseBytes,
    log: VecDeque<Version>,
    /// Bytes of data in `log`.
    logged: u64,
}

#[derive(Clone)]
struct Version {
    command: u64,
    durability: Durability,
    /// Place of the command's completion among all completions, once there was one.
    completed: Option<u64>,
    /// Nothing can take it any more.
    durable: bool,
    bytes: Range<u64>,
    contents: Contents,
}

#[derive(Clone)]
enum Contents {
    Zeros,
    /// One chunk for each that `bytes` touches; only the bytes in `bytes` count.
    Data(Vec<Arc<Chunk>>),
}

impl Memory {
    /// A disk of zeros. Sizes past [`MAX_MEMORY_CAPACITY`] are cut to it.
    #[must_use]
    pub fn new(mut geometry: MemoryGeometry) -> Self {
        let most = MAX_MEMORY_CAPACITY.get() >> geometry.block_size.shift();
        geometry.blocks = BlockCount(geometry.blocks.get().min(most));
        let unit = geometry.atomic_unit.get().clamp(512, 1 << 20);
        geometry.atomic_unit = ByteCount(1 << unit.ilog2());
        let empty = SparseBytes::new(geometry.blocks.get() << geometry.block_size.shift());
        Self { geometry, current: empty.clone(), stable: empty, log: VecDeque::new(), logged: 0 }
    }

    /// The disk's shape.
    #[must_use]
    pub fn geometry(&self) -> MemoryGeometry {
        self.geometry
    }

    /// Size in bytes.
    #[must_use]
    pub fn capacity(&self) -> ByteCount {
        ByteCount(self.geometry.blocks.get() << self.geometry.block_size.shift())
    }

    /// Bytes of memory that the disk's newest contents take.
    #[must_use]
    pub fn allocated(&self) -> ByteCount {
        ByteCount(self.current.allocated())
    }

    /// Gives the disk another size. What lay past a smaller one is lost, and what is new reads
    /// as zeros. Makes everything durable.
    pub fn resize(&mut self, blocks: BlockCount) {
        let most = MAX_MEMORY_CAPACITY.get() >> self.geometry.block_size.shift();
        self.geometry.blocks = BlockCount(blocks.get().min(most));
        self.write_back_all();
        self.current.resize(self.capacity().get());
        self.stable = self.current.clone();
    }

    /// Reads what a host would read at `offset` bytes, past any controller. Bytes past the end
    /// read as zeros.
    pub fn peek(&self, offset: u64, into: &mut [u8]) {
        self.current.read(offset, into);
    }

    /// Puts `bytes` on the medium at `offset` bytes, past any controller and any cache: how a
    /// test prepares a disk or lets a bit rot. Bytes past the end are dropped.
    pub fn poke(&mut self, offset: u64, bytes: &[u8]) {
        let room = self.capacity().get().saturating_sub(offset);
        let kept = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        self.write_back_all();
        self.current.write(offset, &bytes[..kept]);
        self.stable = self.current.clone();
    }

    /// How many atomic units a power cut now would decide on.
    #[must_use]
    pub fn undecided(&self) -> usize {
        let undecided = self.log.iter().filter(|version| !version.durable);
        undecided.map(|version| self.units(version).count()).sum::<usize>()
    }

    /// Cuts the power: of what is undecided, chance decides. Some seeds keep all, none, most or
    /// few; some decide for whole commands, others for each atomic unit.
    pub fn power_cut(&mut self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let odds = [0, 1, 4, 4, 7, 8][random.usize(..6)];
        if random.bool() {
            self.cut(|_, _| random.u8(..8) < odds);
        } else {
            let mut last = None;
            self.cut(|_, command| match last {
                Some((same, kept)) if same == command => kept,
                _ => {
                    let kept = random.u8(..8) < odds;
                    last = Some((command, kept));
                    kept
                }
            });
        }
    }

    /// Cuts the power: undecided unit `n`, counted from the oldest, is kept if bit `n` of `mask`
    /// is set. Units past the 64th are lost.
    pub fn power_cut_keep(&mut self, mask: u64) {
        self.cut(|unit, _| unit < 64 && mask >> unit & 1 == 1);
    }

    /// Cuts the power; `keep` is asked for each undecided unit, with its number and the serial
    /// number of its command.
    fn cut(&mut self, mut keep: impl FnMut(usize, u64) -> bool) {
        let mut unit = 0;
        for version in std::mem::take(&mut self.log) {
            if version.durable {
                version.apply(&mut self.stable, version.bytes.clone());
                continue;
            }
            for bytes in units(&self.geometry, &version) {
                if keep(unit, version.command) {
                    version.apply(&mut self.stable, bytes);
                }
                unit += 1;
            }
        }
        self.logged = 0;
        self.current = self.stable.clone();
    }

    /// Carries out a read.
    pub(super) fn read(&self, offset: u64, length: u64, into: &mut Scatter<'_>) -> Outside {
        for piece in pieces(offset..offset + length) {
            into.put(&self.current.bytes(piece.chunk)[piece.bytes])?;
        }
        Ok(())
    }

    /// Carries out a write. On an error nothing is changed.
    pub(super) fn write(
        &mut self,
        tag: Tag,
        offset: u64,
        length: u64,
        from: &mut Scatter<'_>,
    ) -> Outside {
        let bytes = offset..offset + length;
        let mut chunks = Vec::with_capacity((length as usize).div_ceil(CHUNK) + 1);
        for piece in pieces(bytes.clone()) {
            let old = match piece.is_whole() {
                true => &ZEROS,
                false => self.current.bytes(piece.chunk),
            };
            let mut chunk = Arc::new(*old);
            if let Some(fresh) = Arc::get_mut(&mut chunk) {
                from.take(&mut fresh[piece.bytes])?;
            }
            chunks.push(chunk);
        }
        for (index, chunk) in (offset / CHUNK as u64..).zip(&chunks) {
            self.current.set_chunk(index, Some(Arc::clone(chunk)));
        }
        self.remember(tag, bytes, Contents::Data(chunks));
        Ok(())
    }

    /// Carries out a write of zeros, or a deallocation: deallocated blocks read as zeros.
    pub(super) fn zero(&mut self, tag: Tag, offset: u64, length: u64) {
        let bytes = offset..offset + length;
        self.current.zero(bytes.clone());
        self.remember(tag, bytes, Contents::Zeros);
    }

    /// Changes the byte at `offset` as part of `tag`'s command.
    pub(super) fn rot(&mut self, tag: Tag, offset: u64) {
        let index = offset / CHUNK as u64;
        let mut chunk = *self.current.bytes(index);
        chunk[(offset % CHUNK as u64) as usize] ^= ROT;
        let chunk = Arc::new(chunk);
        self.current.set_chunk(index, Some(Arc::clone(&chunk)));
        self.remember(tag, offset..offset + 1, Contents::Data(vec![chunk]));
    }

    fn remember(&mut self, tag: Tag, bytes: Range<u64>, contents: Contents) {
        self.logged += contents.cost();
        self.log.push_back(Version {
            command: tag.command,
            durability: tag.durability,
            completed: None,
            durable: false,
            bytes,
            contents,
        });
        while self.logged > self.geometry.cache.get().max(CHUNK as u64) {
            self.write_back_oldest();
        }
    }

    /// The host was told that `command` succeeded, as completion number `sequence`.
    pub(super) fn completed(&mut self, command: u64, sequence: u64) {
        let newest_first = self.log.iter_mut().rev();
        for version in newest_first.take_while(|version| version.command >= command) {
            if version.command == command {
                version.completed = Some(sequence);
                version.durable = version.durability == Durability::Durable;
            }
        }
        self.drain();
    }

    /// The host was told that a flush succeeded, which was submitted after completion number
    /// `covered` and before the next.
    pub(super) fn flushed(&mut self, covered: u64) {
        for version in &mut self.log {
            version.durable |= version.completed.is_some_and(|number| number <= covered);
        }
        self.drain();
    }

    /// Makes everything durable, as a controller does that is shut down in order.
    pub(super) fn write_back_all(&mut self) {
        self.log.clear();
        self.logged = 0;
        self.stable = self.current.clone();
    }

    fn drain(&mut self) {
        while self.log.front().is_some_and(|version| version.durable) {
            self.write_back_oldest();
        }
    }

    fn write_back_oldest(&mut self) {
        if let Some(version) = self.log.pop_front() {
            self.logged -= version.contents.cost();
            version.apply(&mut self.stable, version.bytes.clone());
        }
    }

    fn units(&self, version: &Version) -> impl Iterator<Item = Range<u64>> + use<> {
        units(&self.geometry, version)
    }
}

/// Whether host memory could be reached.
type Outside = Result<(), OutsideWindow>;

impl Contents {
    /// Bytes it counts for in the cache: zeros are a range, but not for free, so that a host
    /// cannot make the log grow without bound.
    fn cost(&self) -> u64 {
        match self {
            Self::Zeros => 64,
            Self::Data(chunks) => (chunks.len() * CHUNK) as u64,
        }
    }
}

impl Version {
    /// Applies the part of the version that lies in `bytes`, which is within `self.bytes`.
    fn apply(&self, to: &mut SparseBytes, bytes: Range<u64>) {
        let Contents::Data(chunks) = &self.contents else {
            to.zero(bytes);
            return;
        };
        let first = self.bytes.start / CHUNK as u64;
        for piece in pieces(bytes) {
            let Some(chunk) = chunks.get((piece.chunk - first) as usize) else {
                unreachable!("a version has a chunk for each that its range touches");
            };
            if piece.is_whole() {
                to.set_chunk(piece.chunk, Some(Arc::clone(chunk)));
            } else {
                to.copy_piece(&piece, &chunk[piece.bytes.clone()]);
            }
        }
    }
}

/// The parts of `version` that a power cut decides on separately.
fn units(geometry: &MemoryGeometry, version: &Version) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = version.bytes;
    let atomic = geometry.atomic_unit.get();
    let step = match &version.contents {
        _ if start / atomic == (end - 1) / atomic => atomic,
        Contents::Data(_) => atomic.min(u64::from(geometry.block_size.bytes())),
        Contents::Zeros => {
            let block = atomic.min(u64::from(geometry.block_size.bytes()));
            (end - start).div_ceil(MAX_ZERO_UNITS).next_multiple_of(block)
        }
    };
    let mut position = start;
    std::iter::from_fn(move || {
        if position >= end {
            return None;
        }
        let from = position;
        position = end.min((from / step + 1) * step);
        Some(from..position)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulated::scatter::Segment;
    use crate::hw::dma::DmaArena;

    struct Disk {
        arena: DmaArena,
        memory: Memory,
        commands: u64,
        completions: u64,
    }

    impl Disk {
        fn new(atomic_unit: u64) -> Self {
            let mut geometry = MemoryGeometry::new(BlockSize::B512, BlockCount(1 << 20));
            geometry.atomic_unit = ByteCount(atomic_unit);
            Self {
                arena: DmaArena::new(ByteCount::MIB, false).unwrap(),
                memory: Memory::new(geometry),
                commands: 0,
                completions: 0,
            }
        }

        fn start(&mut self, block: u64, blocks: u64, byte: u8, durability: Durability) -> u64 {
            let length = (blocks * 512) as usize;
            let mut buffer = self.arena.allocate(length).unwrap();
            buffer.fill(byte);
            self.commands += 1;
            let tag = Tag { command: self.commands, durability };
            let segments = [Segment { iova: buffer.iova(), length }];
            let window = self.arena.window();
            let mut from = Scatter::new(&window, &segments);
            self.memory.write(tag, block * 512, length as u64, &mut from).unwrap();
            self.commands
        }

        fn complete(&mut self, command: u64) {
            self.completions += 1;
            self.memory.completed(command, self.completions);
        }

        fn write(&mut self, block: u64, blocks: u64, byte: u8) {
            let command = self.start(block, blocks, byte, Durability::Volatile);
            self.complete(command);
        }

        fn blocks(memory: &Memory, count: u64) -> Vec<u8> {
            let read = |block: u64| {
                let mut bytes = [0; 512];
                memory.peek(block * 512, &mut bytes);
                assert!(bytes.iter().all(|&byte| byte == bytes[0]), "a torn block");
                bytes[0]
            };
            (0..count).map(read).collect()
        }

        /// Every outcome that some mask gives, for the first `count` blocks.
        fn outcomes(&self, count: u64) -> std::collections::BTreeSet<Vec<u8>> {
            let undecided = self.memory.undecided();
            assert!(undecided <= 16, "{undecided} undecided");
            let cut = |mask| {
                let mut memory = self.memory.clone();
                memory.power_cut_keep(mask);
                assert_eq!(memory.undecided(), 0);
                Self::blocks(&memory, count)
            };
            (0..1 << undecided).map(cut).collect()
        }
    }

    #[test]
    fn any_version_of_a_block_may_survive() {
        let mut disk = Disk::new(512);
        disk.write(0, 1, 1);
        disk.memory.flushed(disk.completions);
        disk.write(0, 1, 2);
        disk.write(0, 1, 3);
        assert_eq!(Disk::blocks(&disk.memory, 1), [3]);
        assert_eq!(disk.outcomes(1), [vec![1], vec![2], vec![3]].into());
    }

    #[test]
    fn a_write_tears_at_each_block_unless_it_is_atomic() {
        let mut disk = Disk::new(512);
        disk.write(0, 2, 1);
        assert_eq!(disk.outcomes(2).len(), 4);
        let mut disk = Disk::new(4096);
        disk.write(0, 8, 1);
        assert_eq!(disk.outcomes(8).len(), 2, "one aligned unit");
        let mut disk = Disk::new(4096);
        disk.write(2, 4, 1);
        assert_eq!(disk.outcomes(8).len(), 2, "within one unit");
        let mut disk = Disk::new(4096);
        disk.write(7, 2, 1);
        assert_eq!(disk.outcomes(9).len(), 4, "across a boundary");
    }

    #[test]
    fn a_flush_covers_what_completed_before_it_was_submitted() {
        let mut disk = Disk::new(512);
        disk.write(0, 1, 1);
        let covered = disk.completions;
        disk.write(1, 1, 1);
        let in_flight = disk.start(2, 1, 1, Durability::Volatile);
        disk.memory.flushed(covered);
        assert_eq!(disk.outcomes(3).len(), 4);
        assert!(disk.outcomes(3).iter().all(|blocks| blocks[0] == 1));
        disk.complete(in_flight);
        disk.memory.flushed(disk.completions);
        assert_eq!(disk.outcomes(3), [vec![1, 1, 1]].into());
    }

    #[test]
    fn force_unit_access_makes_its_own_data_durable_only() {
        let mut disk = Disk::new(512);
        disk.write(0, 2, 1);
        let command = disk.start(0, 1, 2, Durability::Durable);
        assert_eq!(disk.outcomes(1).len(), 3, "not before it completed");
        disk.complete(command);
        assert_eq!(disk.outcomes(2), [vec![2, 0], vec![2, 1]].into());
    }

    #[test]
    fn what_is_undecided_never_hides_what_is_durable() {
        let mut disk = Disk::new(512);
        let early = disk.start(0, 1, 1, Durability::Volatile);
        disk.write(0, 1, 2);
        disk.memory.flushed(disk.completions);
        disk.complete(early);
        assert_eq!(disk.outcomes(1), [vec![2]].into());
    }

    #[test]
    fn a_deallocation_may_survive_or_not() {
        let mut disk = Disk::new(512);
        disk.write(0, 4, 7);
        disk.memory.flushed(disk.completions);
        let tag = Tag { command: 9, durability: Durability::Volatile };
        disk.memory.zero(tag, 512, 1024);
        assert_eq!(disk.outcomes(4).len(), 4);
        disk.memory.zero(tag, 0, 1 << 28);
        assert!(disk.memory.undecided() <= 2 + MAX_ZERO_UNITS as usize);
    }

    #[test]
    fn the_cache_is_bounded_and_writes_back_in_order() {
        let mut disk = Disk::new(512);
        disk.memory.geometry.cache = ByteCount(8 * CHUNK as u64);
        for byte in 1..100 {
            disk.write(0, 8, byte);
        }
        assert!(disk.memory.log.len() <= 8);
        disk.memory.power_cut_keep(0);
        assert_eq!(Disk::blocks(&disk.memory, 1), [91]);
    }

    #[test]
    fn seeds_reach_every_outcome_and_repeat() {
        let mut disk = Disk::new(512);
        disk.write(0, 1, 1);
        disk.write(1, 1, 1);
        disk.write(0, 1, 2);
        let cut = |seed| {
            let mut memory = disk.memory.clone();
            memory.power_cut(seed);
            Disk::blocks(&memory, 2)
        };
        let seen: std::collections::BTreeSet<_> = (0..200).map(cut).collect();
        assert_eq!(seen, disk.outcomes(2));
        assert_eq!(cut(5), cut(5));
    }
}
