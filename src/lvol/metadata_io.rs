//! Metadata to and from the device: pages, the super block, bitmaps.
//!
//! Writes go through a few buffers that are set aside when a pool is opened, so that a commit never
//! fails for want of memory that data I/O has taken.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use futures_channel::oneshot;
use futures_util::stream::{self, StreamExt};

use crate::block::{BlockDevice, BlockError, Durability, Geometry};
use crate::hw::dma::{DmaArena, DmaBuffer};
use crate::reactor::{Reactor, Share};
use crate::units::{BlockCount, ByteCount, ByteOffset, Lba};

use super::format::{Medium, PageBytes, STRUCTURE_SIZE};

/// Buffers set aside for writing metadata, and so the number of metadata writes in flight.
const WRITE_BUFFERS: usize = 16;
/// Bytes zeroed by one operation; a device may take long for more.
const ZERO_STEP: u64 = 64 << 20;
/// Zeroing and discarding operations in flight.
const ZERO_DEPTH: usize = 4;
/// Bytes of one read of a bitmap.
const READ_STEP: usize = 256 << 10;

/// The owner reactor's way to the metadata.
pub(super) struct MetadataIo<D> {
    device: D,
    arena: DmaArena,
    /// On which memory is waited for, if it may be.
    reactor: Option<Rc<Reactor>>,
    buffers: Rc<Buffers>,
}

/// A stretch of the device in whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) start: Lba,
    pub(super) blocks: BlockCount,
}

/// What the format needs to know of the device.
pub(super) fn medium(geometry: &Geometry) -> Medium {
    Medium {
        block_size: geometry.block_size,
        physical_block_size: geometry.physical_block_size,
        blocks: geometry.block_count.count(),
    }
}

impl<D: BlockDevice> MetadataIo<D> {
    /// Sets the buffers aside.
    ///
    /// # Errors
    /// [`BlockError::NoMemory`].
    pub(super) fn new(device: D, arena: &DmaArena) -> Result<Self, BlockError> {
        let block = device.geometry().block_size.bytes() as usize;
        let length = STRUCTURE_SIZE.max(block);
        let buffers: Option<VecDeque<_>> =
            (0..WRITE_BUFFERS).map(|_| arena.allocate_zeroed(length)).collect();
        let bytes = (WRITE_BUFFERS * length) as u64;
        let free = buffers.ok_or(BlockError::NoMemory { bytes })?;
        let left = Cell::new(free.len());
        let buffers = Buffers { free: RefCell::new(free), waiting: RefCell::default(), left };
        Ok(Self { device, arena: arena.clone(), reactor: None, buffers: Rc::new(buffers) })
    }

    /// Waits from now on where memory is short: others are about to give some back.
    pub(super) fn waiting_on(mut self, reactor: &Rc<Reactor>) -> Self {
        self.reactor = Some(Rc::clone(reactor));
        self
    }

    /// Memory for a transfer.
    ///
    /// # Errors
    /// [`BlockError::NoMemory`].
    pub(super) async fn allocate(&self, length: usize) -> Result<DmaBuffer, BlockError> {
        let buffer = match &self.reactor {
            Some(reactor) => reactor.allocate(&self.arena, length, Share::All).await,
            None => self.arena.allocate(length),
        };
        buffer.ok_or(BlockError::NoMemory { bytes: length as u64 })
    }

    pub(super) fn device(&self) -> &D {
        &self.device
    }

    pub(super) fn arena(&self) -> &DmaArena {
        &self.arena
    }

    /// Whole blocks from `offset` on; both come from a checked layout.
    pub(super) fn stretch(&self, offset: ByteOffset, length: ByteCount) -> Stretch {
        let shift = self.device.geometry().block_size.shift();
        Stretch { start: Lba(offset.0 >> shift), blocks: BlockCount(length.0 >> shift) }
    }

    /// Reads one structure.
    pub(super) async fn read_page(&self, offset: ByteOffset) -> Result<PageBytes, BlockError> {
        let block = self.device.geometry().block_size.bytes() as usize;
        let buffer = self.read(offset, STRUCTURE_SIZE.max(block)).await?;
        let mut page = [0; STRUCTURE_SIZE];
        page.copy_from_slice(&buffer[..STRUCTURE_SIZE]);
        Ok(page)
    }

    /// Reads `length` bytes, a multiple of the block size and at most what the device moves at
    /// once.
    pub(super) async fn read(
        &self,
        offset: ByteOffset,
        length: usize,
    ) -> Result<DmaBuffer, BlockError> {
        let buffer = self.allocate(length).await?;
        let Stretch { start, .. } = self.stretch(offset, ByteCount(length as u64));
        self.device.read(start, buffer).await.map_err(|failed| failed.error)
    }

    /// Reads a whole region, which the caller knows to be of a bearable size.
    pub(super) async fn read_region(
        &self,
        offset: ByteOffset,
        length: usize,
    ) -> Result<Vec<u8>, BlockError> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let step = (length - bytes.len()).min(READ_STEP);
            let at = ByteOffset(offset.0 + bytes.len() as u64);
            bytes.extend_from_slice(&self.read(at, step).await?);
        }
        Ok(bytes)
    }

    /// Writes one structure; the rest of its block, if the block is larger, becomes zero.
    pub(super) async fn write_page(
        &self,
        offset: ByteOffset,
        page: &PageBytes,
    ) -> Result<(), BlockError> {
        self.write_block(offset, page).await
    }

    /// Writes up to one buffer of bytes, padded with zeros to its end.
    async fn write_block(&self, offset: ByteOffset, bytes: &[u8]) -> Result<(), BlockError> {
        let mut buffer = self.buffers.take().await?;
        let (head, tail) = buffer.split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        tail.fill(0);
        let Stretch { start, .. } = self.stretch(offset, ByteCount(buffer.len() as u64));
        match self.device.write(start, buffer, Durability::Cached).await {
            Ok(buffer) => {
                self.buffers.give(buffer);
                Ok(())
            }
            Err(failed) => {
                match failed.buffer {
                    Some(buffer) => self.buffers.give(buffer),
                    None => self.buffers.lose(),
                }
                Err(failed.error)
            }
        }
    }

    /// Writes structures to their places, many at once. All have been tried when this returns.
    pub(super) async fn write_pages(
        &self,
        pages: &[(ByteOffset, PageBytes)],
    ) -> Result<(), BlockError> {
        let writes = pages.iter().map(|(offset, page)| self.write_page(*offset, page));
        first_error(writes, WRITE_BUFFERS).await
    }

    /// Writes bytes to consecutive blocks, the last one padded with zeros.
    pub(super) async fn write_region(
        &self,
        offset: ByteOffset,
        bytes: &[u8],
    ) -> Result<(), BlockError> {
        let block = self.device.geometry().block_size.bytes() as usize;
        let step = STRUCTURE_SIZE.max(block);
        let chunks = bytes.chunks(step).enumerate().map(|(index, chunk)| {
            self.write_block(ByteOffset(offset.0 + (index * step) as u64), chunk)
        });
        first_error(chunks, WRITE_BUFFERS).await
    }

    /// Makes stretches read as zeros; durable after a flush.
    pub(super) async fn zero(&self, stretches: &[Stretch]) -> Result<(), BlockError> {
        let steps = self.steps(stretches);
        let zeroing = steps.map(|step| self.device.write_zeroes(step.start, step.blocks));
        first_error(zeroing, ZERO_DEPTH).await
    }

    /// Tells the device that stretches are no longer needed.
    pub(super) async fn discard(&self, stretches: &[Stretch]) -> Result<(), BlockError> {
        let steps = self.steps(stretches);
        let discards = steps.map(|step| self.device.discard(step.start, step.blocks));
        first_error(discards, ZERO_DEPTH).await
    }

    /// Cuts stretches into operations of a bearable size.
    fn steps(&self, stretches: &[Stretch]) -> impl Iterator<Item = Stretch> {
        let step = ZERO_STEP >> self.device.geometry().block_size.shift();
        stretches.iter().flat_map(move |stretch| {
            let (start, blocks) = (stretch.start.0, stretch.blocks.0);
            (0..blocks.div_ceil(step)).map(move |index| Stretch {
                start: Lba(start + index * step),
                blocks: BlockCount(step.min(blocks - index * step)),
            })
        })
    }

    /// Makes durable what completed, if there is a cache that could lose it.
    pub(super) async fn flush(&self) -> Result<(), BlockError> {
        if self.device.geometry().volatile_cache { self.device.flush().await } else { Ok(()) }
    }
}

/// Runs all, some at once, to their end; the first error, if any. Nothing is given up half-way,
/// since a write that was started must have ended before its place is used again.
async fn first_error(
    operations: impl Iterator<Item = impl Future<Output = Result<(), BlockError>>>,
    depth: usize,
) -> Result<(), BlockError> {
    let results: Vec<_> = stream::iter(operations).buffer_unordered(depth).collect().await;
    results.into_iter().collect()
}

/// Buffers that come back.
struct Buffers {
    free: RefCell<VecDeque<DmaBuffer>>,
    waiting: RefCell<VecDeque<oneshot::Sender<DmaBuffer>>>,
    /// All but those that the device has kept.
    left: Cell<usize>,
}

impl Buffers {
    async fn take(&self) -> Result<DmaBuffer, BlockError> {
        if let Some(buffer) = self.free.borrow_mut().pop_front() {
            return Ok(buffer);
        }
        if self.left.get() == 0 {
            return Err(BlockError::Gone);
        }
        let (send, receive) = oneshot::channel();
        self.waiting.borrow_mut().push_back(send);
        // An error: a buffer will not come back, and this is whom it was meant for.
        receive.await.map_err(|_| BlockError::Gone)
    }

    /// A buffer stays with the device; whoever waits for it, or for the last one, must not wait for
    /// ever.
    fn lose(&self) {
        self.left.set(self.left.get().saturating_sub(1));
        let mut waiting = self.waiting.borrow_mut();
        drop(waiting.pop_front());
        if self.left.get() == 0 {
            waiting.clear();
        }
    }

    fn give(&self, mut buffer: DmaBuffer) {
        while let Some(waiting) = self.waiting.borrow_mut().pop_front() {
            match waiting.send(buffer) {
                Ok(()) => return,
                Err(back) => buffer = back,
            }
        }
        self.free.borrow_mut().push_back(buffer);
    }
}
