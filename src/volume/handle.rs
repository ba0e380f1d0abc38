//! I/O on one volume from one reactor, at any byte.

mod compare;

use std::cell::Cell;
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use super::directory::Entry;
use super::error::Error;
use super::gate::Access;
use crate::block::{AnyChannel, Durability};
use crate::hw::dma::{DmaArena, DmaBuffer};
use crate::lvol::{Interruption, Tracker, VolumeIo};
use crate::reactor::{Reactor, Share};
use crate::reservation::Pass;
use crate::spec::reservation::HostId;
use crate::units::{ByteCount, ByteOffset};

/// A volume as one reactor uses it for one host.
pub struct Volume {
    entry: Arc<Entry>,
    io: VolumeIo<AnyChannel>,
    reactor: Rc<Reactor>,
    arena: DmaArena,
    /// Shared by all hosts that use the volume on this reactor.
    counters: Rc<Cell<VolumeCounters>>,
    pass: Pass,
    /// The host's operations, from the gate to their end.
    in_flight: Rc<Tracker>,
}

/// What went through one reactor to a volume: operations that succeeded, and those that did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct VolumeCounters {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Writes that were durable before they were answered, among `writes`.
    pub durable_writes: u64,
    /// Writes that had to read a block first, among `writes`.
    pub partial_writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Ranges unmapped, zeroed or allocated.
    pub ranges: u64,
    /// Operations that failed.
    pub errors: u64,
}

impl std::ops::Add for VolumeCounters {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            bytes_read: self.bytes_read + other.bytes_read,
            writes: self.writes + other.writes,
            bytes_written: self.bytes_written + other.bytes_written,
            durable_writes: self.durable_writes + other.durable_writes,
            partial_writes: self.partial_writes + other.partial_writes,
            flushes: self.flushes + other.flushes,
            ranges: self.ranges + other.ranges,
            errors: self.errors + other.errors,
        }
    }
}

/// Data that was read: part of a buffer.
#[derive(Debug)]
pub struct Slice {
    /// Whole blocks.
    pub buffer: DmaBuffer,
    /// The bytes of them that were asked for.
    pub range: Range<usize>,
}

/// What to do with a range of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clear {
    /// Give its storage back; it reads as zeros.
    Discard,
    /// Make it read as zeros.
    Zero,
}

impl Volume {
    pub(super) fn new(
        entry: Arc<Entry>,
        io: VolumeIo<AnyChannel>,
        reactor: &Rc<Reactor>,
        arena: &DmaArena,
        host: HostId,
        in_flight: Rc<Tracker>,
    ) -> Self {
        let pass = entry.gate().pass(host);
        let (reactor, arena) = (Rc::clone(reactor), arena.clone());
        Self { entry, io, reactor, arena, counters: Rc::default(), pass, in_flight }
    }

    /// The same volume for another host.
    pub(super) fn of_host(&self, host: HostId, in_flight: Rc<Tracker>) -> Self {
        Self {
            entry: Arc::clone(&self.entry),
            io: self.io.clone(),
            reactor: Rc::clone(&self.reactor),
            arena: self.arena.clone(),
            counters: Rc::clone(&self.counters),
            pass: self.entry.gate().pass(host),
            in_flight,
        }
    }

    /// The same volume, whose operations stop waiting for space when `interruption` happens.
    #[must_use]
    pub fn interruptible(&self, interruption: &Interruption) -> Self {
        let io = self.io.interruptible(interruption);
        Self { io, ..self.of_host(self.host(), Rc::clone(&self.in_flight)) }
    }

    /// Whether writes to places without storage may wait for space.
    #[must_use]
    pub fn waits_for_space(&self) -> bool {
        self.io.map().waits_for_space()
    }

    /// Whose operations these are.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.pass.host()
    }

    /// Whether an operation may start now. Each operation asks by itself; this is for those that
    /// consist of several, of which none may start if one would be refused.
    ///
    /// # Errors
    /// Those of the gate.
    #[inline]
    pub fn check(&self, access: Access) -> Result<(), Error> {
        self.entry.gate().check(&self.pass, access)
    }

    /// Runs an operation that the gate lets through, and counts it as in flight until its end.
    /// Nothing is awaited between the two, so that who publishes new reservations and then hears
    /// from this reactor knows that every operation that asked before is counted.
    #[inline]
    async fn admitted<T>(
        &self,
        access: Access,
        operation: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.check(access)?;
        let in_flight = self.in_flight.enter();
        let result = operation.await;
        in_flight.finish();
        result
    }

    /// What all reactors share of it.
    #[must_use]
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Its size in bytes now.
    #[inline]
    #[must_use]
    pub fn size(&self) -> ByteCount {
        self.io.size()
    }

    /// Bytes that have storage of their own.
    #[must_use]
    pub fn allocated(&self) -> ByteCount {
        let clusters = u64::from(self.io.allocated_clusters().get());
        ByteCount(clusters.saturating_mul(self.io.cluster_size().get()))
    }

    /// The unit in which the device is written; smaller writes read first.
    #[must_use]
    pub fn block_size(&self) -> ByteCount {
        ByteCount(self.io.block_size().bytes().into())
    }

    /// Whether it takes no writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.io.map().is_read_only()
    }

    /// Whether its clusters get storage only when they are written.
    #[must_use]
    pub fn is_thin(&self) -> bool {
        self.io.map().is_thin()
    }

    /// What went through here.
    #[must_use]
    pub fn counters(&self) -> VolumeCounters {
        self.counters.get()
    }

    /// Reads up to `length` bytes; fewer at the end of the volume, `None` behind it.
    ///
    /// # Errors
    /// [`Error::NoMemory`], [`Error::Store`], and those of the gate.
    pub async fn read(&self, offset: ByteOffset, length: usize) -> Result<Option<Slice>, Error> {
        self.read_into(offset, length, None).await
    }

    /// As [`Volume::read`]. The data goes to the beginning of `landing` if that is possible:
    /// if the range is one of whole blocks and `landing` is not shorter.
    ///
    /// # Errors
    /// As there.
    pub async fn read_into(
        &self,
        offset: ByteOffset,
        length: usize,
        landing: Option<DmaBuffer>,
    ) -> Result<Option<Slice>, Error> {
        let read = self.read_blocks(offset, length, landing);
        let result = self.admitted(Access::Read, read).await;
        self.count(&result, |counters| {
            let bytes = result.as_ref().ok().and_then(Option::as_ref).map_or(0, |s| s.range.len());
            counters.reads += 1;
            counters.bytes_read += bytes as u64;
        });
        result
    }

    async fn read_blocks(
        &self,
        offset: ByteOffset,
        length: usize,
        landing: Option<DmaBuffer>,
    ) -> Result<Option<Slice>, Error> {
        let Some(length) = self.clip(offset, length) else { return Ok(None) };
        let (start, blocks) = self.cover(offset.get(), length);
        let fits = |landing: &DmaBuffer| landing.len() >= blocks && start == offset.get();
        let buffer = match landing.filter(fits) {
            Some(mut landing) => {
                if landing.len() > blocks {
                    drop(landing.split_off(blocks));
                }
                landing
            }
            None => self.allocate(blocks, Share::Most).await?,
        };
        let buffer = self.io.read(ByteOffset(start), buffer).await?;
        let skip = (offset.get() - start) as usize;
        Ok(Some(Slice { buffer, range: skip..skip + length }))
    }

    /// Writes `data`, or the part of it that lies before the volume's end, and returns how many
    /// bytes that were. On return they are visible to every read; durable they are as
    /// `durability` says, the mapping that finds them included.
    ///
    /// # Errors
    /// [`Error::PastEnd`] if nothing lies before the end, [`Error::NoMemory`], [`Error::Store`],
    /// and those of the gate. After an error each block of the range is old or new.
    pub async fn write(
        &self,
        offset: ByteOffset,
        data: DmaBuffer,
        durability: Durability,
    ) -> Result<usize, Error> {
        let partial = !self.is_aligned(offset.get(), data.len() as u64);
        let write = self.write_bytes(offset, data, durability);
        let result = self.admitted(Access::Write, write).await;
        self.count(&result, |counters| {
            counters.writes += 1;
            counters.bytes_written += *result.as_ref().unwrap_or(&0) as u64;
            counters.durable_writes += u64::from(durability == Durability::ForceUnitAccess);
            counters.partial_writes += u64::from(partial);
        });
        result
    }

    async fn write_bytes(
        &self,
        offset: ByteOffset,
        mut data: DmaBuffer,
        durability: Durability,
    ) -> Result<usize, Error> {
        let Some(length) = self.clip(offset, data.len()) else {
            return Err(Error::PastEnd { offset, size: self.size() });
        };
        if length < data.len() {
            drop(data.split_off(length));
        }
        if self.is_aligned(offset.get(), length as u64) {
            let _held = self.entry.locks().shared(offset.get(), length as u64).await;
            drop(self.io.write(offset, data, durability).await?);
        } else {
            Box::pin(self.write_partial(offset.get(), &data, durability)).await?;
        }
        self.entry.note_write();
        Ok(length)
    }

    /// Writes bytes that do not make whole blocks: reads the blocks at both ends, puts the bytes
    /// between them, writes all.
    async fn write_partial(
        &self,
        offset: u64,
        data: &[u8],
        durability: Durability,
    ) -> Result<(), Error> {
        let block = self.block_size().get();
        let (start, length) = self.cover(offset, data.len());
        let _held = self.entry.locks().exclusive(start, length as u64).await;
        let mut whole = self.allocate(length, Share::Most).await?;
        let end = start + length as u64;
        let first = (offset > start).then_some(start);
        let last = (offset + data.len() as u64 != end).then_some(end - block);
        for edge in [first, last.filter(|last| first != Some(*last))].into_iter().flatten() {
            let buffer = self.allocate(block as usize, Share::All).await?;
            let old = self.io.read(ByteOffset(edge), buffer).await?;
            let at = (edge - start) as usize;
            whole[at..at + old.len()].copy_from_slice(&old);
        }
        let at = (offset - start) as usize;
        whole[at..at + data.len()].copy_from_slice(data);
        drop(self.io.write(ByteOffset(start), whole, durability).await?);
        Ok(())
    }

    /// Makes every write that was answered before, on any reactor, durable.
    ///
    /// # Errors
    /// [`Error::Store`]: it is then not known what is durable, and the pool takes no more writes;
    /// and those of the gate: a flush counts as a write.
    pub async fn flush(&self) -> Result<(), Error> {
        let flush = async { self.io.flush().await.map_err(Error::from) };
        let result = self.admitted(Access::Write, flush).await;
        self.count(&result, |counters| counters.flushes += 1);
        result
    }

    /// As [`Volume::flush`], for a Compare with force unit access: makes what was read durable, and
    /// counts as a read.
    ///
    /// # Errors
    /// As there.
    pub async fn flush_what_was_read(&self) -> Result<(), Error> {
        let flush = async { self.io.flush().await.map_err(Error::from) };
        let result = self.admitted(Access::Read, flush).await;
        self.count(&result, |counters| counters.flushes += 1);
        result
    }

    /// Makes a range read as zeros and gives back the storage of the whole clusters in it. What
    /// lies behind the end is ignored.
    ///
    /// # Errors
    /// As for a write.
    pub async fn discard(&self, offset: ByteOffset, length: u64) -> Result<(), Error> {
        self.clear(offset, length, Clear::Discard).await
    }

    /// Makes a range read as zeros. What lies behind the end is ignored.
    ///
    /// # Errors
    /// As for a write.
    pub async fn write_zeroes(&self, offset: ByteOffset, length: u64) -> Result<(), Error> {
        self.clear(offset, length, Clear::Zero).await
    }

    async fn clear(&self, offset: ByteOffset, length: u64, how: Clear) -> Result<(), Error> {
        let clear = self.clear_range(offset.get(), length, how);
        let result = self.admitted(Access::Write, clear).await;
        self.count(&result, |counters| counters.ranges += 1);
        result
    }

    async fn clear_range(&self, offset: u64, length: u64, how: Clear) -> Result<(), Error> {
        let end = offset.saturating_add(length).min(self.size().get());
        if offset >= end {
            return Ok(());
        }
        let block = self.block_size().get();
        let inner = offset.next_multiple_of(block)..end - end % block;
        if inner.start < inner.end {
            self.clear_blocks(inner.start, inner.end, how).await?;
        }
        // Parts of blocks at both ends, or a range within one block.
        let head = offset..inner.start.min(end);
        let tail = inner.end.max(head.end)..end;
        for edge in [head, tail].into_iter().filter(|edge| edge.start < edge.end) {
            // A hole reads as zeros already, and should stay one.
            if self.next_data(ByteOffset(edge.start)).is_none_or(|data| data.get() >= edge.end) {
                continue;
            }
            let zeros = vec![0; (edge.end - edge.start) as usize];
            self.write_partial(edge.start, &zeros, Durability::Cached).await?;
        }
        self.entry.note_write();
        Ok(())
    }

    async fn clear_blocks(&self, start: u64, end: u64, how: Clear) -> Result<(), Error> {
        let _held = self.entry.locks().shared(start, end - start).await;
        let (offset, length) = (ByteOffset(start), ByteCount(end - start));
        match how {
            Clear::Discard => self.io.discard(offset, length).await?,
            Clear::Zero => self.io.write_zeroes(offset, length).await?,
        }
        Ok(())
    }

    /// Gives every cluster of a range storage. What lies behind the end is ignored.
    ///
    /// # Errors
    /// As for a write.
    pub async fn allocate_range(&self, offset: ByteOffset, length: u64) -> Result<(), Error> {
        let allocate = self.allocate_blocks(offset.get(), length);
        let result = self.admitted(Access::Write, allocate).await;
        self.count(&result, |counters| counters.ranges += 1);
        result
    }

    async fn allocate_blocks(&self, offset: u64, length: u64) -> Result<(), Error> {
        let end = offset.saturating_add(length).min(self.size().get());
        if offset >= end {
            return Ok(());
        }
        let block = self.block_size().get();
        let start = offset - offset % block;
        // Sizes are whole clusters, so the end rounds up to nothing behind it.
        let length = end.next_multiple_of(block) - start;
        Ok(self.io.allocate(ByteOffset(start), ByteCount(length)).await?)
    }

    /// The first byte at or after `offset` that has storage; `None` if there is none.
    #[must_use]
    pub fn next_data(&self, offset: ByteOffset) -> Option<ByteOffset> {
        self.io.next_data(offset)
    }

    /// The first byte at or after `offset` that has no storage; `None` if there is none before
    /// the end.
    #[must_use]
    pub fn next_hole(&self, offset: ByteOffset) -> Option<ByteOffset> {
        self.io.next_hole(offset)
    }

    /// How much of `length` bytes at `offset` lies before the end; `None` for nothing.
    fn clip(&self, offset: ByteOffset, length: usize) -> Option<usize> {
        let left = self.size().get().checked_sub(offset.get())?;
        let length = usize::try_from(left).map_or(length, |left| left.min(length));
        (length > 0).then_some(length)
    }

    fn is_aligned(&self, offset: u64, length: u64) -> bool {
        (offset | length) & (self.block_size().get() - 1) == 0
    }

    /// The whole blocks around a range: first byte and length.
    fn cover(&self, offset: u64, length: usize) -> (u64, usize) {
        let mask = self.block_size().get() - 1;
        let start = offset & !mask;
        let end = (offset + length as u64 + mask) & !mask;
        (start, (end - start) as usize)
    }

    async fn allocate(&self, bytes: usize, share: Share) -> Result<DmaBuffer, Error> {
        let buffer = self.reactor.allocate(&self.arena, bytes, share).await;
        buffer.ok_or(Error::NoMemory { bytes })
    }

    fn count<T>(&self, result: &Result<T, Error>, change: impl FnOnce(&mut VolumeCounters)) {
        let mut counters = self.counters.get();
        match result {
            Ok(_) => change(&mut counters),
            Err(_) => counters.errors += 1,
        }
        self.counters.set(counters);
    }
}
