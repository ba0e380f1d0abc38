//! I/O commands on volumes.
//!
//! What is durable when: a write, write zeroes or copy without FUA may be lost until a Flush that
//! came after its answer was answered; with FUA it is durable, with the mapping that finds it,
//! when it is answered. A Flush covers what was answered on any queue of any host, and what came
//! through the file. After an error of a write each block of its range is old or new.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U64};

use super::admin::{invalid_field, invalid_opcode, room};
use super::controller::Controller;
use super::dispatch::Half;
use super::limits::MAX_TRANSFER;
use super::queue::{Outcome, Queue};
use super::{namespace, reservation, status};
use crate::block::Durability;
use crate::hw::dma::DmaBuffer;
use crate::spec::command::{
    ALL_NAMESPACES, Deallocate, DsmRange, ForceUnitAccess, IoOpcode, SubmissionEntry,
};
use crate::spec::status::{Status, StatusCode};
use crate::units::ByteOffset;
use crate::volume::{Access, Error, Volume};

/// The largest fused Compare and Write, in blocks (ACWU).
pub(super) const COMPARE_AND_WRITE_BLOCKS: u16 = 16;
/// Source ranges of a Copy.
pub(super) const COPY_RANGES: u8 = 128;
/// The longest source range of a Copy, in blocks.
pub(super) const COPY_RANGE_BLOCKS: u16 = 4096;
/// All source ranges of a Copy, in blocks.
pub(super) const COPY_BLOCKS: u32 = 32_768;
/// Bytes that Copy and Verify move at a time.
const STEP: usize = 256 << 10;
/// How often, and how many times, a command that found no DMA memory tries again.
const MEMORY_TRIES: (u32, Duration) = (10_000, Duration::from_micros(500));

pub(super) async fn run(
    queue: &Rc<Queue>,
    controller: &Controller,
    key: usize,
    entry: &SubmissionEntry,
    data: Option<DmaBuffer>,
) -> Result<Outcome, Status> {
    let opcode = entry.io_opcode();
    if opcode == IoOpcode::FLUSH && entry.nsid() == ALL_NAMESPACES {
        queue.begin(key)?;
        return Box::pin(flush_all(queue, controller)).await;
    }
    let volume = namespace::volume(queue, controller, entry.nsid()).await?;
    match opcode {
        IoOpcode::READ => read(queue, controller, key, entry, &volume).await,
        IoOpcode::WRITE => write(queue, controller, key, entry, &volume, data).await,
        IoOpcode::FLUSH => {
            queue.begin(key)?;
            volume.flush().await.map_err(status::of)?;
            Ok(Outcome::success())
        }
        _ => Box::pin(run_rare(queue, controller, key, entry, &volume, data)).await,
    }
}

/// Everything but reads, writes and flushes: a future of its own, so that theirs are small.
async fn run_rare(
    queue: &Rc<Queue>,
    controller: &Controller,
    key: usize,
    entry: &SubmissionEntry,
    volume: &Volume,
    data: Option<DmaBuffer>,
) -> Result<Outcome, Status> {
    match entry.io_opcode() {
        IoOpcode::WRITE_ZEROES => write_zeroes(queue, key, entry, volume).await,
        IoOpcode::DATASET_MANAGEMENT => manage(queue, key, entry, volume, data).await,
        IoOpcode::COMPARE => {
            let length = Range::of(entry, volume)?.transfer()?;
            let expected = exactly(data, length)?;
            queue.begin(key)?;
            compare(queue, entry, volume, &expected).await
        }
        IoOpcode::VERIFY => verify(queue, key, entry, volume).await,
        IoOpcode::COPY => copy(queue, key, entry, volume, data).await,
        IoOpcode::RESERVATION_REGISTER
        | IoOpcode::RESERVATION_REPORT
        | IoOpcode::RESERVATION_ACQUIRE
        | IoOpcode::RESERVATION_RELEASE => {
            reservation::run(queue, controller, key, entry, volume, data).await
        }
        _ => Err(invalid_opcode()),
    }
}

/// The blocks that a command names, as bytes.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    length: u64,
}

impl Range {
    fn of(entry: &SubmissionEntry, volume: &Volume) -> Result<Self, Status> {
        Self::new(entry.lba().get(), entry.block_count().get(), volume)
    }

    fn new(lba: u64, blocks: u64, volume: &Volume) -> Result<Self, Status> {
        let block = volume.block_size().get();
        let end = lba.checked_add(blocks).and_then(|end| end.checked_mul(block));
        if end.is_none_or(|end| end > volume.size().get()) {
            return Err(Status::of(StatusCode::LBA_OUT_OF_RANGE).do_not_retry());
        }
        Ok(Self { start: lba * block, length: blocks * block })
    }

    /// Its length, if it is one that a command may transfer.
    fn transfer(self) -> Result<usize, Status> {
        if self.length > MAX_TRANSFER.into() {
            return Err(invalid_field());
        }
        Ok(self.length as usize)
    }
}

/// The first `length` bytes of what the host sent.
pub(super) fn exactly(data: Option<DmaBuffer>, length: usize) -> Result<DmaBuffer, Status> {
    match data {
        Some(mut data) if data.len() >= length => {
            if data.len() > length {
                drop(data.split_off(length));
            }
            Ok(data)
        }
        _ => Err(Status::of(StatusCode::DATA_SGL_LENGTH_INVALID).do_not_retry()),
    }
}

fn durability(entry: &SubmissionEntry) -> Durability {
    match entry.force_unit_access() {
        ForceUnitAccess::Yes => Durability::ForceUnitAccess,
        ForceUnitAccess::No => Durability::Cached,
    }
}

/// Tries again while there is no DMA memory. Nothing has been done when there was none.
async fn with_memory<T>(
    queue: &Queue,
    mut attempt: impl AsyncFnMut() -> Result<T, Error>,
) -> Result<T, Status> {
    let (tries, pause) = MEMORY_TRIES;
    for _ in 0..tries {
        match attempt().await {
            Err(Error::NoMemory { .. }) => queue.service.reactor.sleep(pause).await,
            result => return result.map_err(status::of),
        }
    }
    Err(StatusCode::COMMAND_INTERRUPTED.into())
}

/// Reads a range; the bytes lie where the slice says.
async fn fetch(queue: &Queue, volume: &Volume, range: Range) -> Result<DmaBuffer, Status> {
    let (start, length) = (ByteOffset(range.start), range.length as usize);
    let slice = with_memory(queue, async || volume.read(start, length).await).await?;
    match slice {
        Some(slice) if slice.range == (0..length) => Ok(slice.buffer),
        // The volume shrank.
        _ => Err(Status::of(StatusCode::LBA_OUT_OF_RANGE).do_not_retry()),
    }
}

async fn read(
    queue: &Rc<Queue>,
    controller: &Controller,
    key: usize,
    entry: &SubmissionEntry,
    volume: &Volume,
) -> Result<Outcome, Status> {
    let range = Range::of(entry, volume)?;
    let length = range.transfer()?;
    if room(entry)? < length {
        return Err(Status::of(StatusCode::DATA_SGL_LENGTH_INVALID).do_not_retry());
    }
    queue.reserve(key, length).await;
    queue.begin(key)?;
    let buffer = fetch(queue, volume, range).await?;
    controller.counters.reads.fetch_add(1, Ordering::Relaxed);
    controller.counters.bytes_read.fetch_add(length as u64, Ordering::Relaxed);
    Ok(Outcome::data(buffer))
}

async fn write(
    queue: &Rc<Queue>,
    controller: &Controller,
    key: usize,
    entry: &SubmissionEntry,
    volume: &Volume,
    data: Option<DmaBuffer>,
) -> Result<Outcome, Status> {
    let range = Range::of(entry, volume)?;
    let length = range.transfer()?;
    let data = exactly(data, length)?;
    queue.begin(key)?;
    let written = volume.write(ByteOffset(range.start), data, durability(entry)).await;
    if written.map_err(status::of)? < length {
        return Err(Status::of(StatusCode::LBA_OUT_OF_RANGE).do_not_retry());
    }
    controller.counters.writes.fetch_add(1, Ordering::Relaxed);
    controller.counters.bytes_written.fetch_add(length as u64, Ordering::Relaxed);
    Ok(Outcome::success())
}

/// Flushes every namespace that the host sees. The first failure is the answer; the others are
/// flushed all the same.
async fn flush_all(queue: &Queue, controller: &Controller) -> Result<Outcome, Status> {
    let subsystem = namespace::subsystem(queue, controller)?;
    let host = &controller.host().nqn;
    let mut result = Ok(Outcome::success());
    for id in subsystem.visible(host).map(|namespace| namespace.id) {
        let flushed = match namespace::volume(queue, controller, id).await {
            Ok(volume) => volume.flush().await.map_err(status::of),
            Err(status) => Err(status),
        };
        if let (Err(status), true) = (flushed, result.is_ok()) {
            result = Err(status);
        }
    }
    result
}

async fn write_zeroes(
    queue: &Rc<Queue>,
    key: usize,
    entry: &SubmissionEntry,
    volume: &Volume,
) -> Result<Outcome, Status> {
    let range = Range::of(entry, volume)?;
    queue.begin(key)?;
    let start = ByteOffset(range.start);
    let done = match entry.deallocate() {
        Deallocate::Yes => volume.discard(start, range.length).await,
        Deallocate::No => volume.write_zeroes(start, range.length).await,
    };
    done.map_err(status::of)?;
    force(entry, volume).await
}

/// The end of a command that may have FUA and whose parts have none.
async fn force(entry: &SubmissionEntry, volume: &Volume) -> Result<Outcome, Status> {
    if entry.force_unit_access() == ForceUnitAccess::Yes {
        volume.flush().await.map_err(status::of)?;
    }
    Ok(Outcome::success())
}

async fn manage(
    queue: &Rc<Queue>,
    key: usize,
    entry: &SubmissionEntry,
    volume: &Volume,
    data: Option<DmaBuffer>,
) -> Result<Outcome, Status> {
    let data = exactly(data, entry.range_count() * size_of::<DsmRange>())?;
    let Ok(ranges) = <[DsmRange]>::ref_from_bytes(&data) else {
        unreachable!("the length is that of whole ranges");
    };
    // All are checked before the first is done.
    let ranges: Result<Vec<Range>, Status> = ranges
        .iter()
        .map(|range| Range::new(range.lba().get(), range.block_count().get(), volume))
        .collect();
    let ranges = ranges?;
    queue.begin(key)?;
    // Also of those that may do nothing: a reservation stops the command, not its effects.
    volume.check(Access::Write).map_err(status::of)?;
    if !entry.is_deallocate() {
        // The other attributes are hints.
        return Ok(Outcome::success());
    }
    for range in ranges.iter().filter(|range| range.length > 0) {
        volume.discard(ByteOffset(range.start), range.length).await.map_err(status::of)?;
    }
    Ok(Outcome::success())
}

async fn compare(
    queue: &Queue,
    entry: &SubmissionEntry,
    volume: &Volume,
    expected: &[u8],
) -> Result<Outcome, Status> {
    let range = Range::of(entry, volume)?;
    let found = fetch(queue, volume, range).await?;
    if *found != *expected {
        return Err(StatusCode::COMPARE_FAILURE.into());
    }
    if entry.force_unit_access() == ForceUnitAccess::Yes {
        volume.flush_what_was_read().await.map_err(status::of)?;
    }
    Ok(Outcome::success())
}

async fn verify(
    queue: &Rc<Queue>,
    key: usize,
    entry: &SubmissionEntry,
    volume: &Volume,
) -> Result<Outcome, Status> {
    let range = Range::of(entry, volume)?;
    range.transfer()?;
    queue.begin(key)?;
    for at in (0..range.length).step_by(STEP) {
        let length = (range.length - at).min(STEP as u64);
        drop(fetch(queue, volume, Range { start: range.start + at, length }).await?);
    }
    Ok(Outcome::success())
}

/// A source range of Copy, descriptor format 0.
#[derive(
    Clone, Copy, FromBytes, zerocopy::Immutable, zerocopy::KnownLayout, zerocopy::Unaligned,
)]
#[repr(C)]
struct CopyRange {
    reserved: [u8; 8],
    start: U64,
    blocks: U16,
    rest: [u8; 14],
}

async fn copy(
    queue: &Rc<Queue>,
    key: usize,
    entry: &SubmissionEntry,
    volume: &Volume,
    data: Option<DmaBuffer>,
) -> Result<Outcome, Status> {
    let dword = entry.dword12.get();
    let count = (dword & 0xff) as usize + 1;
    if dword >> 8 & 0xf != 0 {
        return Err(invalid_field());
    }
    let too_large = || Status::of(StatusCode::COMMAND_SIZE_LIMIT_EXCEEDED).do_not_retry();
    if count > COPY_RANGES.into() {
        return Err(too_large());
    }
    let data = exactly(data, count * size_of::<CopyRange>())?;
    let Ok(ranges) = <[CopyRange]>::ref_from_bytes(&data) else {
        unreachable!("the length is that of whole ranges");
    };
    let mut sources = Vec::with_capacity(count);
    let mut total = 0;
    for range in ranges {
        let blocks = u64::from(range.blocks.get()) + 1;
        if blocks > COPY_RANGE_BLOCKS.into() {
            return Err(too_large());
        }
        sources.push(Range::new(range.start.get(), blocks, volume)?);
        total += blocks;
    }
    if total > COPY_BLOCKS.into() {
        return Err(too_large());
    }
    let mut to = Range::new(entry.lba().get(), total, volume)?.start;
    queue.begin(key)?;
    // Each step asks for itself, so that a preempt stops what is left; none begins if the host
    // may only read.
    volume.check(Access::ReadAndWrite).map_err(status::of)?;
    for source in sources {
        for at in (0..source.length).step_by(STEP) {
            let length = (source.length - at).min(STEP as u64);
            let from = Range { start: source.start + at, length };
            let buffer = fetch(queue, volume, from).await?;
            let written = volume.write(ByteOffset(to), buffer, Durability::Cached).await;
            written.map_err(status::of)?;
            to += length;
        }
    }
    force(entry, volume).await
}

/// Compare and Write: the one fused operation.
pub(super) async fn run_pair(
    queue: &Rc<Queue>,
    controller: &Controller,
    first: Half<'_>,
    second: Half<'_>,
) -> (Outcome, Outcome) {
    let failed = || Outcome::failure(StatusCode::ABORTED_FAILED_FUSED);
    let keys = (first.0, second.0);
    match exchange(queue, controller, first, second).await {
        Ok(true) => {
            queue.begin(keys.0).unwrap_or_default();
            (Outcome::success(), Outcome::success())
        }
        Ok(false) => (Outcome::failure(StatusCode::COMPARE_FAILURE), failed()),
        Err((status, true)) => (Outcome::failure(status), failed()),
        Err((status, false)) => (failed(), Outcome::failure(status)),
    }
}

/// Whether the volume had what was expected. An error says whether it is the first command's.
async fn exchange(
    queue: &Rc<Queue>,
    controller: &Controller,
    first: Half<'_>,
    second: Half<'_>,
) -> Result<bool, (Status, bool)> {
    let ((key, compare, expected), (other, write, data)) = (first, second);
    if (compare.io_opcode(), write.io_opcode()) != (IoOpcode::COMPARE, IoOpcode::WRITE) {
        return Err((invalid_field(), true));
    }
    let volume = namespace::volume(queue, controller, compare.nsid()).await;
    let volume = volume.map_err(|status| (status, true))?;
    let range = Range::of(compare, &volume).map_err(|status| (status, true))?;
    let same = (compare.nsid(), compare.lba(), compare.block_count())
        == (write.nsid(), write.lba(), write.block_count());
    if !same {
        return Err((invalid_field(), false));
    }
    if compare.block_count().get() > COMPARE_AND_WRITE_BLOCKS.into() {
        let code = StatusCode::ATOMIC_WRITE_UNIT_EXCEEDED;
        return Err((Status::of(code).do_not_retry(), true));
    }
    let length = range.transfer().map_err(|status| (status, true))?;
    let expected = exactly(expected, length).map_err(|status| (status, true))?;
    let data = exactly(data, length).map_err(|status| (status, false))?;
    queue.begin(key).map_err(|status| (status, true))?;
    queue.begin(other).map_err(|status| (status, false))?;
    let start = ByteOffset(range.start);
    // A reservation stops both; the conflict is told of the half that it is with.
    volume.check(Access::Read).map_err(|error| (status::of(error), true))?;
    let done = volume.compare_and_write(start, &expected, data, durability(write)).await;
    done.map_err(|error| (status::of(error), false))
}
