//! I/O commands of the NVM command set (NVM 3.2 and 3.3): constructors and readers.

use zerocopy::little_endian::U32;

use super::{Deallocate, ForceUnitAccess, IoOpcode, SubmissionEntry};
use crate::units::{BlockCount, Lba, NamespaceId};

const DEAC: u32 = 1 << 25;
const FUA: u32 = 1 << 30;
/// Dword 11 of Dataset Management: the ranges are to be deallocated (AD).
const DSM_DEALLOCATE: u32 = 1 << 2;

impl SubmissionEntry {
    const fn ranged(opcode: IoOpcode, namespace: NamespaceId, lba: Lba, blocks: u32) -> Self {
        let mut entry = Self::with_opcode(opcode.0, namespace);
        entry.set_64(lba.get());
        entry.dword12 = U32::new(blocks.saturating_sub(1) & 0xffff);
        entry
    }

    const fn with_force(mut self, force: ForceUnitAccess) -> Self {
        if matches!(force, ForceUnitAccess::Yes) {
            self.dword12 = U32::new(self.dword12.get() | FUA);
        }
        self
    }

    /// The opcode, of an entry of an I/O queue.
    #[must_use]
    pub const fn io_opcode(&self) -> IoOpcode {
        IoOpcode(self.opcode)
    }

    /// Read `blocks` blocks (1 to 65 536) from `lba`.
    #[must_use]
    pub const fn read(namespace: NamespaceId, lba: Lba, blocks: u32) -> Self {
        Self::ranged(IoOpcode::READ, namespace, lba, blocks)
    }

    /// Write `blocks` blocks (1 to 65 536) from `lba`.
    #[must_use]
    pub const fn write(
        namespace: NamespaceId,
        lba: Lba,
        blocks: u32,
        force: ForceUnitAccess,
    ) -> Self {
        Self::ranged(IoOpcode::WRITE, namespace, lba, blocks).with_force(force)
    }

    /// Flush: makes durable what completed on `namespace` before this was submitted.
    #[must_use]
    pub const fn flush(namespace: NamespaceId) -> Self {
        Self::with_opcode(IoOpcode::FLUSH.0, namespace)
    }

    /// Write Zeroes to `blocks` blocks (1 to 65 536) from `lba`.
    #[must_use]
    pub const fn write_zeroes(
        namespace: NamespaceId,
        lba: Lba,
        blocks: u32,
        deallocate: Deallocate,
        force: ForceUnitAccess,
    ) -> Self {
        let mut entry =
            Self::ranged(IoOpcode::WRITE_ZEROES, namespace, lba, blocks).with_force(force);
        if matches!(deallocate, Deallocate::Yes) {
            entry.dword12 = U32::new(entry.dword12.get() | DEAC);
        }
        entry
    }

    /// Dataset Management with the Deallocate attribute for `ranges` ranges (1 to 256), which lie
    /// at PRP 1 as [`super::DsmRange`]s.
    #[must_use]
    pub const fn deallocate_ranges(namespace: NamespaceId, ranges: u16) -> Self {
        let mut entry = Self::with_opcode(IoOpcode::DATASET_MANAGEMENT.0, namespace);
        entry.dword10 = U32::new(ranges.saturating_sub(1) as u32 & 0xff);
        entry.dword11 = U32::new(DSM_DEALLOCATE);
        entry
    }

    /// First block of a read, write, compare, write zeroes or verify (SLBA).
    #[must_use]
    pub const fn lba(&self) -> Lba {
        Lba(self.dword10.get() as u64 | (self.dword11.get() as u64) << 32)
    }

    /// Length of the same commands, 1 to 65 536 (NLB + 1).
    #[must_use]
    pub const fn block_count(&self) -> BlockCount {
        BlockCount((self.dword12.get() & 0xffff) as u64 + 1)
    }

    /// FUA of the same commands.
    #[must_use]
    pub const fn force_unit_access(&self) -> ForceUnitAccess {
        if self.dword12.get() & FUA != 0 { ForceUnitAccess::Yes } else { ForceUnitAccess::No }
    }

    /// PRINFO of the same commands: protection information, 0 for none.
    #[must_use]
    pub const fn protection(&self) -> u8 {
        (self.dword12.get() >> 26 & 0xf) as u8
    }

    /// DEAC of Write Zeroes.
    #[must_use]
    pub const fn deallocate(&self) -> Deallocate {
        if self.dword12.get() & DEAC != 0 { Deallocate::Yes } else { Deallocate::No }
    }

    /// How many ranges a Dataset Management command has, 1 to 256.
    #[must_use]
    pub const fn range_count(&self) -> usize {
        (self.dword10.get() & 0xff) as usize + 1
    }

    /// Whether a Dataset Management command deallocates (AD).
    #[must_use]
    pub const fn is_deallocate(&self) -> bool {
        self.dword11.get() & DSM_DEALLOCATE != 0
    }
}
