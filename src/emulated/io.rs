//! I/O commands (NVM command set 3.2 and 3.3, Base 7).

use zerocopy::FromBytes;

use super::cache::{Durability, ROT, Tag};
use super::core::{Core, Outcome};
use super::identify::NAMESPACE;
use super::prp;
use super::scatter::Scatter;
use super::sgl;
use crate::hw::dma::DmaWindow;
use crate::spec::command::{
    ALL_NAMESPACES, Deallocate, DsmRange, ForceUnitAccess, IoOpcode, SubmissionEntry,
};
use crate::spec::status::StatusCode;
use crate::units::{BlockCount, Lba};

/// A range of the medium in bytes.
#[derive(Clone, Copy)]
struct Extent {
    offset: u64,
    length: u64,
}

impl Core {
    /// Carries out an I/O command. If `corrupt`, one byte of its data is changed.
    pub(super) fn io(
        &mut self,
        entry: &SubmissionEntry,
        tag: Tag,
        corrupt: bool,
    ) -> Result<Outcome, StatusCode> {
        let opcode = entry.io_opcode();
        let everywhere = opcode == IoOpcode::FLUSH && entry.nsid() == ALL_NAMESPACES;
        if entry.nsid() != NAMESPACE && !everywhere {
            return Err(StatusCode::INVALID_NAMESPACE);
        }
        // PSDT 10b is for metadata in a segment of its own, and there is no metadata.
        let kinds = if self.settings.sgl { 0..=1 } else { 0..=0 };
        if entry.fused() != 0 || !kinds.contains(&entry.data_pointer_kind()) {
            return Err(StatusCode::INVALID_FIELD);
        }
        match opcode {
            IoOpcode::READ => self.read(entry, corrupt),
            IoOpcode::WRITE => self.write(entry, tag, corrupt),
            IoOpcode::FLUSH => {
                self.counters.flushes += 1;
                Ok(Outcome::Durable)
            }
            IoOpcode::WRITE_ZEROES => self.write_zeroes(entry, tag),
            IoOpcode::DATASET_MANAGEMENT => self.dataset_management(entry, tag),
            _ => Err(StatusCode::INVALID_OPCODE),
        }
    }

    fn extent(&self, lba: Lba, blocks: BlockCount) -> Result<Extent, StatusCode> {
        let end = lba.checked_add(blocks.get()).ok_or(StatusCode::LBA_OUT_OF_RANGE)?;
        if end.get() > self.media.blocks().get() {
            return Err(StatusCode::LBA_OUT_OF_RANGE);
        }
        let shift = self.media.block_size().shift();
        Ok(Extent { offset: lba.get() << shift, length: blocks.get() << shift })
    }

    /// Checks a command that moves data and finds its memory, which is left in `segments`.
    fn prepare(&mut self, entry: &SubmissionEntry) -> Result<(DmaWindow, Extent), StatusCode> {
        if entry.protection() != 0 {
            return Err(StatusCode::INVALID_PROTECTION_INFO);
        }
        let extent = self.extent(entry.lba(), entry.block_count())?;
        if extent.length > self.max_transfer().get() {
            return Err(StatusCode::INVALID_FIELD);
        }
        let window = self.find_memory(entry, extent.length as usize)?;
        Ok((window, extent))
    }

    /// Finds the memory of `length` bytes that a command names, and leaves it in `segments`.
    fn find_memory(
        &mut self,
        entry: &SubmissionEntry,
        length: usize,
    ) -> Result<DmaWindow, StatusCode> {
        let window = self.window().ok_or(StatusCode::DATA_TRANSFER_ERROR)?;
        let walked = if entry.data_pointer_kind() == 0 {
            let entries = [entry.prp1.get(), entry.prp2.get()];
            prp::walk(&window, entries, length, &mut self.segments)
        } else {
            self.counters.sgls += 1;
            sgl::walk(&window, entry.sgl(), length, &mut self.segments)
        };
        self.note_access(walked)?;
        Ok(window)
    }

    fn read(&mut self, entry: &SubmissionEntry, corrupt: bool) -> Result<Outcome, StatusCode> {
        let (window, Extent { offset, length }) = self.prepare(entry)?;
        self.counters.reads += 1;
        self.counters.bytes_read += length;
        self.media.read(offset, length, &mut Scatter::new(&window, &self.segments))?;
        if corrupt && let Some(first) = self.segments.first() {
            let mut byte = [0];
            let read = window.read(first.iova, &mut byte);
            let written = read.and_then(|()| window.write(first.iova, &[byte[0] ^ ROT]));
            written.map_err(|_| StatusCode::DATA_TRANSFER_ERROR)?;
        }
        Ok(Outcome::Done(0))
    }

    fn write(
        &mut self,
        entry: &SubmissionEntry,
        tag: Tag,
        corrupt: bool,
    ) -> Result<Outcome, StatusCode> {
        let (window, Extent { offset, length }) = self.prepare(entry)?;
        self.counters.writes += 1;
        self.counters.bytes_written += length;
        self.count_forced(entry);
        let mut from = Scatter::new(&window, &self.segments);
        self.media.write(tag, offset, length, &mut from)?;
        if corrupt {
            self.media.rot(tag, offset);
        }
        Ok(done(tag))
    }

    fn write_zeroes(&mut self, entry: &SubmissionEntry, tag: Tag) -> Result<Outcome, StatusCode> {
        if entry.protection() != 0 {
            return Err(StatusCode::INVALID_PROTECTION_INFO);
        }
        let Extent { offset, length } = self.extent(entry.lba(), entry.block_count())?;
        self.counters.write_zeroes += 1;
        self.count_forced(entry);
        let deallocate = entry.deallocate() == Deallocate::Yes;
        self.counters.deallocating_write_zeroes += u64::from(deallocate);
        self.media.zero(tag, offset, length, deallocate)?;
        Ok(done(tag))
    }

    /// All ranges are checked before the first is deallocated.
    fn dataset_management(
        &mut self,
        entry: &SubmissionEntry,
        tag: Tag,
    ) -> Result<Outcome, StatusCode> {
        const RANGE: usize = size_of::<DsmRange>();
        self.counters.dataset_managements += 1;
        let length = entry.range_count() * RANGE;
        let window = self.find_memory(entry, length)?;
        let mut bytes = [0; prp::PAGE];
        let bytes = &mut bytes[..length];
        let taken = Scatter::new(&window, &self.segments).take(bytes);
        taken.map_err(|_| StatusCode::DATA_TRANSFER_ERROR)?;
        let ranges = bytes.chunks_exact(RANGE).filter_map(|range| {
            DsmRange::read_from_bytes(range).ok().filter(|range| range.block_count().get() > 0)
        });
        for range in ranges.clone() {
            self.extent(range.lba(), range.block_count())?;
        }
        for range in ranges.filter(|_| entry.is_deallocate()) {
            let Extent { offset, length } = self.extent(range.lba(), range.block_count())?;
            self.media.deallocate(tag, offset, length);
        }
        Ok(done(Tag { durability: Durability::Volatile, ..tag }))
    }

    fn count_forced(&mut self, entry: &SubmissionEntry) {
        let forced = entry.force_unit_access() == ForceUnitAccess::Yes;
        self.counters.force_unit_access += u64::from(forced);
    }
}

fn done(tag: Tag) -> Outcome {
    match tag.durability {
        Durability::Volatile => Outcome::Done(0),
        Durability::Durable => Outcome::Durable,
    }
}
