//! A device that writes down what it was asked: for tests of order.

use std::cell::RefCell;
use std::rc::Rc;

use super::fault::Operation;
use super::{BlockDevice, BlockError, Counters, Durability, Geometry, Transfer};
use crate::hw::dma::DmaBuffer;
use crate::units::{BlockCount, Lba};

/// One operation, as it was asked for or as it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What.
    pub operation: Operation,
    /// First block (0 for a flush).
    pub start: Lba,
    /// How many blocks (0 for a flush).
    pub blocks: BlockCount,
    /// Whether this is its end; its beginning stands earlier in the record.
    pub ended: bool,
}

/// The record of one device, shared by its channels and the test that reads it.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Rc<RefCell<Vec<Record>>>);

impl Recorder {
    /// Takes everything recorded so far.
    #[must_use]
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut self.0.borrow_mut())
    }

    fn note(&self, operation: Operation, start: Lba, blocks: BlockCount, ended: bool) {
        self.0.borrow_mut().push(Record { operation, start, blocks, ended });
    }
}

/// A channel that records.
#[derive(Clone)]
pub struct Recording<D> {
    inner: D,
    recorder: Recorder,
}

impl<D: BlockDevice> Recording<D> {
    /// `inner`, recorded by `recorder`.
    #[must_use]
    pub fn new(inner: D, recorder: Recorder) -> Self {
        Self { inner, recorder }
    }

    async fn record<R>(
        &self,
        operation: Operation,
        start: Lba,
        blocks: BlockCount,
        work: impl Future<Output = R>,
    ) -> R {
        self.recorder.note(operation, start, blocks, false);
        let result = work.await;
        self.recorder.note(operation, start, blocks, true);
        result
    }

    fn blocks(&self, buffer: &DmaBuffer) -> BlockCount {
        BlockCount(buffer.len() as u64 >> self.inner.geometry().block_size.shift())
    }
}

impl<D: BlockDevice> BlockDevice for Recording<D> {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    async fn read(&self, start: Lba, buffer: DmaBuffer) -> Transfer {
        let blocks = self.blocks(&buffer);
        self.record(Operation::Read, start, blocks, self.inner.read(start, buffer)).await
    }

    async fn write(&self, start: Lba, buffer: DmaBuffer, durability: Durability) -> Transfer {
        let blocks = self.blocks(&buffer);
        let write = self.inner.write(start, buffer, durability);
        self.record(Operation::Write, start, blocks, write).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.record(Operation::Flush, Lba(0), BlockCount(0), self.inner.flush()).await
    }

    async fn discard(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        let discard = self.inner.discard(start, blocks);
        self.record(Operation::Discard, start, blocks, discard).await
    }

    async fn write_zeroes(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        let write_zeroes = self.inner.write_zeroes(start, blocks);
        self.record(Operation::WriteZeroes, start, blocks, write_zeroes).await
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}
