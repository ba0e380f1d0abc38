//! A device that fails when it is told to: for tests of what is above it.

use std::cell::RefCell;
use std::rc::Rc;

use super::{BlockDevice, BlockError, Counters, Durability, Geometry, Transfer, TransferError};
use crate::hw::dma::DmaBuffer;
use crate::units::{BlockCount, Lba};

/// An operation of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
    /// A discard.
    Discard,
    /// A write-zeroes.
    WriteZeroes,
}

/// Which operations fail.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The operation.
    pub operation: Operation,
    /// Blocks that it must touch; `None` matches any (and flushes).
    pub blocks: Option<std::ops::Range<u64>>,
    /// How many matching operations succeed first.
    pub after: u64,
    /// How many then fail.
    pub times: u64,
}

/// The faults of one device, shared by its channels and the test that sets them.
#[derive(Clone, Debug, Default)]
pub struct Faults(Rc<RefCell<Vec<Fault>>>);

impl Faults {
    /// Adds a fault.
    pub fn inject(&self, fault: Fault) {
        self.0.borrow_mut().push(fault);
    }

    /// Removes all faults.
    pub fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    fn hits(&self, operation: Operation, start: u64, blocks: u64) -> bool {
        for fault in &mut *self.0.borrow_mut() {
            let touches = fault
                .blocks
                .as_ref()
                .is_none_or(|range| start < range.end && range.start < start + blocks);
            if fault.operation != operation || !touches || fault.times == 0 {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
                continue;
            }
            fault.times -= 1;
            return true;
        }
        false
    }
}

/// A channel with faults. A failed write did not happen.
#[derive(Clone)]
pub struct Faulty<D> {
    inner: D,
    faults: Faults,
}

impl<D: BlockDevice> Faulty<D> {
    /// `inner`, failing as `faults` say.
    #[must_use]
    pub fn new(inner: D, faults: Faults) -> Self {
        Self { inner, faults }
    }

    fn check(
        &self,
        operation: Operation,
        name: &'static str,
        start: Lba,
        blocks: u64,
    ) -> Result<(), BlockError> {
        if self.faults.hits(operation, start.get(), blocks) {
            return Err(BlockError::Injected { operation: name });
        }
        Ok(())
    }

    fn blocks(&self, bytes: usize) -> u64 {
        bytes as u64 >> self.inner.geometry().block_size.shift()
    }
}

impl<D: BlockDevice> BlockDevice for Faulty<D> {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    async fn read(&self, start: Lba, buffer: DmaBuffer) -> Transfer {
        match self.check(Operation::Read, "read", start, self.blocks(buffer.len())) {
            Ok(()) => self.inner.read(start, buffer).await,
            Err(error) => Err(TransferError::new(error, buffer)),
        }
    }

    async fn write(&self, start: Lba, buffer: DmaBuffer, durability: Durability) -> Transfer {
        match self.check(Operation::Write, "write", start, self.blocks(buffer.len())) {
            Ok(()) => self.inner.write(start, buffer, durability).await,
            Err(error) => Err(TransferError::new(error, buffer)),
        }
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.check(Operation::Flush, "flush", Lba(0), u64::MAX)?;
        self.inner.flush().await
    }

    async fn discard(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        self.check(Operation::Discard, "discard", start, blocks.get())?;
        self.inner.discard(start, blocks).await
    }

    async fn write_zeroes(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        self.check(Operation::WriteZeroes, "write zeroes", start, blocks.get())?;
        self.inner.write_zeroes(start, blocks).await
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}
