//! What the namespace's blocks are kept on, and what its failures mean in NVMe's words.
//!
//! Ranges are in bytes, were checked by the caller and lie within the medium.

use std::io;

use super::cache::{Memory, Tag};
use super::file::FileMedia;
use super::scatter::Scatter;
use crate::hw::dma::OutsideWindow;
use crate::spec::status::StatusCode;
use crate::units::{BlockCount, BlockSize};

/// Where an emulated controller keeps its blocks.
pub enum Media {
    /// In memory, with a model of a volatile write cache.
    Memory(Memory),
    /// In a file or on a block device.
    File(FileMedia),
}

impl From<Memory> for Media {
    fn from(memory: Memory) -> Self {
        Self::Memory(memory)
    }
}

impl From<FileMedia> for Media {
    fn from(file: FileMedia) -> Self {
        Self::File(file)
    }
}

impl Media {
    /// Size of a logical block.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        match self {
            Self::Memory(memory) => memory.geometry().block_size,
            Self::File(file) => file.block_size(),
        }
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        match self {
            Self::Memory(memory) => memory.geometry().blocks,
            Self::File(file) => file.blocks(),
        }
    }

    /// Bytes that survive a power cut together, if written within one multiple of it; the block
    /// size if nothing more is known.
    pub(super) fn atomic_unit(&self) -> u64 {
        let block = u64::from(self.block_size().bytes());
        match self {
            Self::Memory(memory) => memory.geometry().atomic_unit.get().max(block),
            Self::File(_) => block,
        }
    }

    /// Whether durability costs a [`Media::sync`], which many commands can share.
    pub(super) fn syncs(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// Reads `length` bytes at `offset`.
    pub(super) fn read(
        &self,
        offset: u64,
        length: u64,
        into: &mut Scatter<'_>,
    ) -> Result<(), StatusCode> {
        match self {
            Self::Memory(memory) => memory.read(offset, length, into).map_err(outside),
            Self::File(file) => {
                file.read(offset, into).map_err(|_| StatusCode::UNRECOVERED_READ_ERROR)
            }
        }
    }

    /// Writes `length` bytes at `offset`.
    pub(super) fn write(
        &mut self,
        tag: Tag,
        offset: u64,
        length: u64,
        from: &mut Scatter<'_>,
    ) -> Result<(), StatusCode> {
        match self {
            Self::Memory(memory) => memory.write(tag, offset, length, from).map_err(outside),
            Self::File(file) => file.write(offset, from).map_err(|error| write(&error)),
        }
    }

    /// Makes a range read as zeros, giving its storage back if `deallocate`.
    pub(super) fn zero(
        &mut self,
        tag: Tag,
        offset: u64,
        length: u64,
        deallocate: bool,
    ) -> Result<(), StatusCode> {
        match self {
            Self::Memory(memory) => {
                memory.zero(tag, offset, length);
                Ok(())
            }
            Self::File(file) if deallocate && file.deallocate(offset, length).is_ok() => Ok(()),
            Self::File(file) => file.zero(offset, length).map_err(|error| write(&error)),
        }
    }

    /// Follows a host's hint that it needs a range no more, or leaves the range as it is.
    pub(super) fn deallocate(&mut self, tag: Tag, offset: u64, length: u64) {
        match self {
            Self::Memory(memory) => memory.zero(tag, offset, length),
            // A hint that the file system does not take is no error.
            Self::File(file) => drop(file.deallocate(offset, length)),
        }
    }

    /// Changes one byte on the medium as part of `tag`'s command: a bit rots.
    pub(super) fn rot(&mut self, tag: Tag, offset: u64) {
        match self {
            Self::Memory(memory) => memory.rot(tag, offset),
            Self::File(file) => file.rot(offset),
        }
    }

    /// Makes everything written so far durable, where that takes an action.
    pub(super) fn sync(&mut self) -> Result<(), StatusCode> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::File(file) => file.sync().map_err(|error| write(&error)),
        }
    }

    /// The host was told that `command` succeeded: completion number `sequence`.
    pub(super) fn completed(&mut self, command: u64, sequence: u64) {
        if let Self::Memory(memory) = self {
            memory.completed(command, sequence);
        }
    }

    /// The host was told that a flush succeeded, submitted after completion number `covered`.
    pub(super) fn flushed(&mut self, covered: u64) {
        if let Self::Memory(memory) = self {
            memory.flushed(covered);
        }
    }

    /// Makes everything durable, as before an orderly shutdown.
    pub(super) fn write_back(&mut self) -> Result<(), StatusCode> {
        if let Self::Memory(memory) = self {
            memory.write_back_all();
        }
        self.sync()
    }
}

fn outside(_: OutsideWindow) -> StatusCode {
    StatusCode::DATA_TRANSFER_ERROR
}

fn write(error: &io::Error) -> StatusCode {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StatusCode::CAPACITY_EXCEEDED,
        _ => StatusCode::WRITE_FAULT,
    }
}
