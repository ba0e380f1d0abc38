//! The device contract, and the drivers that keep it.
//!
//! A device has a shared part, which any thread may hold ([`AnyDevice`]), and a *channel* for
//! each reactor, through which I/O is done without locks ([`AnyChannel`], or whatever implements
//! [`BlockDevice`]).
//!
//! What every driver promises:
//! * A buffer is moved in and comes back with the result. Only a buffer that a failed device may
//!   still write does not come back.
//! * Between two flushes nothing is promised about order. A flush covers what *completed* before
//!   it was submitted. A failed flush proves nothing about anything, and is not retried.
//! * Reads return what the last completed write to each block wrote, never another range's data.
//! * Ranges are checked here ([`Geometry::check`]); no driver is asked for a block past the end.
//!
//! Dispatch over our few drivers is an enum: no boxed futures on the data path.

mod any;
pub mod fault;
pub mod file;
mod flush_group;
pub mod memory;
pub mod nvme;
pub mod recording;

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use any::{AnyChannel, AnyDevice};
pub(crate) use flush_group::FlushGroup;

use crate::hw::dma::DmaBuffer;
use crate::units::{BlockCount, BlockSize, ByteCount, Lba};

/// What a device is, read once when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The logical block: unit of every address and length.
    pub block_size: BlockSize,
    /// The physical block, or the preferred granularity of writes: a multiple of `block_size`.
    pub physical_block_size: BlockSize,
    /// How many blocks it has now.
    pub block_count: DeviceBlocks,
    /// A write of this many bytes, aligned to its size, is after a power cut either old or new
    /// as a whole. At least one block.
    pub atomic_write: ByteCount,
    /// Whether completed writes can be lost until a flush. Without it a flush costs nothing.
    pub volatile_cache: bool,
    /// What discarding does.
    pub discard: Discard,
    /// Largest read or write in one call.
    pub max_transfer: ByteCount,
}

/// How many blocks a device has: the one thing of its geometry that can change while it is open,
/// and only upwards. Clones share the number, so every channel sees it rise.
#[derive(Clone, Debug)]
pub struct DeviceBlocks(Arc<AtomicU64>);

impl DeviceBlocks {
    /// The number now.
    #[must_use]
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// The same, by its type.
    #[must_use]
    pub fn count(&self) -> BlockCount {
        BlockCount(self.get())
    }

    /// The device is larger now; a smaller number changes nothing.
    pub fn grow(&self, blocks: BlockCount) {
        self.0.fetch_max(blocks.get(), Ordering::AcqRel);
    }
}

impl From<BlockCount> for DeviceBlocks {
    fn from(blocks: BlockCount) -> Self {
        Self(Arc::new(AtomicU64::new(blocks.get())))
    }
}

impl PartialEq for DeviceBlocks {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for DeviceBlocks {}

/// What discarding a block does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// Nothing: the call succeeds and changes nothing.
    Ignored,
    /// The block's contents are unspecified afterwards.
    Unspecified,
    /// The block reads as zeros afterwards.
    Zeroes,
}

/// When a write is on the medium.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Once a flush that was submitted after its completion has completed.
    #[default]
    Cached,
    /// When it completes (FUA). Says nothing about other writes.
    ForceUnitAccess,
}

/// Why a device did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The range ends past the device's end: our mistake, or a device that shrank.
    #[error("blocks {start}+{blocks} are outside a device of {device_blocks} blocks")]
    OutOfRange {
        /// First block asked for.
        start: Lba,
        /// How many were asked for.
        blocks: BlockCount,
        /// How many the device has.
        device_blocks: BlockCount,
    },
    /// The length is zero, not a whole number of blocks, or above the largest transfer.
    #[error("a transfer of {bytes} bytes is not possible: {reason}")]
    BadLength {
        /// Length asked for, in bytes.
        bytes: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file or block device under us said no.
    #[error("{operation} failed at byte {offset}: {}", io::Error::from_raw_os_error(*.errno))]
    System {
        /// What was tried.
        operation: &'static str,
        /// Where on the device.
        offset: u64,
        /// The system's error number.
        errno: i32,
    },
    /// A file ended before the device's end: it was truncated under us.
    #[error("{operation} at byte {offset} moved only part of the data: was the file truncated?")]
    Short {
        /// What was tried.
        operation: &'static str,
        /// Where on the device.
        offset: u64,
    },
    /// The file under us was deleted, replaced or truncated.
    #[error(transparent)]
    TakenAway(#[from] crate::hw::file::TakenAway),
    /// The NVMe controller answered with an error status.
    #[error("{operation} at LBA {start}: {status}")]
    Nvme {
        /// What was tried.
        operation: &'static str,
        /// First block.
        start: Lba,
        /// The controller's answer.
        status: crate::spec::status::Status,
    },
    /// The controller was reset while its volatile cache held writes that no flush had covered:
    /// they may be gone.
    #[error("the controller was reset before cached writes were flushed: they may be lost")]
    CacheLost,
    /// All queue pairs of the device are in use.
    #[error("the device has no queue pair left for another reactor")]
    NoQueue,
    /// The device did not answer in time, or reset before it answered. A write may have happened
    /// or not.
    #[error("{operation} at LBA {start} got no answer; its outcome is unknown")]
    NoAnswer {
        /// What was tried.
        operation: &'static str,
        /// First block.
        start: Lba,
    },
    /// The device is gone.
    #[error("the device is gone")]
    Gone,
    /// No DMA memory is left for the operation.
    #[error("no DMA memory left for {bytes} bytes; raise reactor.dma_memory")]
    NoMemory {
        /// What was needed.
        bytes: u64,
    },
    /// A fault injected by a test.
    #[error("injected fault in {operation}")]
    Injected {
        /// What was tried.
        operation: &'static str,
    },
}

/// A failed transfer: why, and the buffer, unless the device may still write to it.
#[derive(Debug)]
pub struct TransferError {
    /// Why.
    pub error: BlockError,
    /// The buffer that was moved in. Its contents are unspecified after a failed read.
    pub buffer: Option<DmaBuffer>,
}

impl TransferError {
    /// A failure whose buffer came back.
    #[must_use]
    pub fn new(error: BlockError, buffer: DmaBuffer) -> Self {
        Self { error, buffer: Some(buffer) }
    }
}

/// The outcome of a read or a write.
pub type Transfer = Result<DmaBuffer, TransferError>;

impl Geometry {
    /// Checks a range and returns its first byte.
    ///
    /// # Errors
    /// [`BlockError::OutOfRange`] or, for an empty range, [`BlockError::BadLength`].
    pub fn check(&self, start: Lba, blocks: BlockCount) -> Result<u64, BlockError> {
        if blocks.get() == 0 {
            return Err(BlockError::BadLength { bytes: 0, reason: "it is empty" });
        }
        match start.checked_add(blocks.get()) {
            Some(end) if end.get() <= self.block_count.get() => {
                Ok(start.get() << self.block_size.shift())
            }
            _ => Err(BlockError::OutOfRange {
                start,
                blocks,
                device_blocks: self.block_count.count(),
            }),
        }
    }

    /// Checks a transfer of `bytes` and returns its first byte and its length in blocks.
    ///
    /// # Errors
    /// [`BlockError::OutOfRange`] or [`BlockError::BadLength`].
    pub fn check_transfer(
        &self,
        start: Lba,
        bytes: usize,
    ) -> Result<(u64, BlockCount), BlockError> {
        let bytes = bytes as u64;
        let Some(blocks) = self.block_size.blocks_exact(bytes) else {
            let reason = "it is not a whole number of blocks";
            return Err(BlockError::BadLength { bytes, reason });
        };
        if bytes > self.max_transfer.get() {
            let reason = "it is above the device's largest transfer";
            return Err(BlockError::BadLength { bytes, reason });
        }
        Ok((self.check(start, blocks)?, blocks))
    }

    /// The device's size in bytes.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        self.block_size.bytes_in(self.block_count.count()).unwrap_or(ByteCount(u64::MAX))
    }
}

/// One reactor's way to a device. Cheap to clone; all clones share the channel's queue.
#[expect(async_fn_in_trait, reason = "the channel and its futures never leave their reactor")]
pub trait BlockDevice: Clone + 'static {
    /// What the device is.
    fn geometry(&self) -> &Geometry;

    /// Fills the whole of `buffer` from the blocks at `start`.
    async fn read(&self, start: Lba, buffer: DmaBuffer) -> Transfer;

    /// Writes the whole of `buffer` to the blocks at `start`. On return the data is visible to
    /// reads; it is on the medium as `durability` says. After an error each atomic unit of the
    /// range holds old or new data.
    async fn write(&self, start: Lba, buffer: DmaBuffer, durability: Durability) -> Transfer;

    /// Makes everything durable that completed before this call.
    ///
    /// # Errors
    /// Any; the durability of everything since the last good flush is then unknown.
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>>;

    /// Tells the device that the contents of a range are no longer needed; see
    /// [`Geometry::discard`] for what a read then returns. Durable after a flush, or not at all.
    fn discard(
        &self,
        start: Lba,
        blocks: BlockCount,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Makes a range read as zeros. Durable after a flush.
    fn write_zeroes(
        &self,
        start: Lba,
        blocks: BlockCount,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// What went through this channel.
    fn counters(&self) -> Counters;
}

/// What went through a channel: completed operations, good or bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Writes with force unit access, among `writes`.
    pub fua_writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Write-zeroes operations.
    pub write_zeroes: u64,
    /// Operations that failed.
    pub errors: u64,
}

impl std::ops::Add for Counters {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            bytes_read: self.bytes_read + other.bytes_read,
            writes: self.writes + other.writes,
            bytes_written: self.bytes_written + other.bytes_written,
            fua_writes: self.fua_writes + other.fua_writes,
            flushes: self.flushes + other.flushes,
            discards: self.discards + other.discards,
            write_zeroes: self.write_zeroes + other.write_zeroes,
            errors: self.errors + other.errors,
        }
    }
}

/// Counters that a channel keeps.
#[derive(Debug, Default)]
pub struct Counting(Cell<Counters>);

/// What an operation was, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// A read of this many bytes.
    Read(u64),
    /// A write of this many bytes.
    Write(u64, Durability),
    /// A flush.
    Flush,
    /// A discard.
    Discard,
    /// A write-zeroes operation.
    WriteZeroes,
}

impl Counting {
    /// Counts an operation that ended.
    pub fn add(&self, operation: Counted, succeeded: bool) {
        let mut counters = self.0.get();
        match operation {
            Counted::Read(bytes) => {
                counters.reads += 1;
                counters.bytes_read += bytes;
            }
            Counted::Write(bytes, durability) => {
                counters.writes += 1;
                counters.bytes_written += bytes;
                counters.fua_writes += u64::from(durability == Durability::ForceUnitAccess);
            }
            Counted::Flush => counters.flushes += 1,
            Counted::Discard => counters.discards += 1,
            Counted::WriteZeroes => counters.write_zeroes += 1,
        }
        counters.errors += u64::from(!succeeded);
        self.0.set(counters);
    }

    /// The counters so far.
    #[must_use]
    pub fn get(&self) -> Counters {
        self.0.get()
    }
}
