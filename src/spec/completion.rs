//! The completion queue entry (Base 3.3.3.2): 16 bytes that a controller writes.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;
use super::status::Status;
use crate::units::CommandId;

/// Size of a completion queue entry in bytes.
pub const COMPLETION_ENTRY_SIZE: usize = 16;

/// A completion queue entry.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CompletionEntry {
    /// DW0, what the command returns.
    pub result: U32,
    /// DW1, the upper half of what the command returns.
    pub result_high: U32,
    /// How far the controller has fetched from the submission queue.
    pub submission_head: U16,
    /// The submission queue of the command.
    pub submission_queue: U16,
    /// CID of the command.
    pub command_id: U16,
    /// Phase tag in bit 0, status above it.
    pub status: U16,
}
assert_layout!(
    CompletionEntry,
    COMPLETION_ENTRY_SIZE,
    result_high @ 4,
    submission_head @ 8,
    submission_queue @ 10,
    command_id @ 12,
    status @ 14,
);

impl CompletionEntry {
    /// An entry with phase tag 0 and no queue named yet.
    #[must_use]
    pub const fn new(command_id: CommandId, status: Status, result: u32) -> Self {
        Self {
            result: U32::new(result),
            result_high: U32::ZERO,
            submission_head: U16::ZERO,
            submission_queue: U16::ZERO,
            command_id: U16::new(command_id.get()),
            status: U16::new(status.bits() << 1),
        }
    }

    /// The same with the submission queue and its head filled in.
    #[must_use]
    pub const fn with_queue(mut self, queue: u16, head: u16) -> Self {
        self.submission_queue = U16::new(queue);
        self.submission_head = U16::new(head);
        self
    }

    /// The same with the phase tag set to `phase`.
    #[must_use]
    pub const fn with_phase(mut self, phase: bool) -> Self {
        self.status = U16::new(self.status.get() & !1 | phase as u16);
        self
    }

    /// The phase tag.
    #[must_use]
    pub const fn phase(&self) -> bool {
        self.status.get() & 1 == 1
    }

    /// The status without the phase tag.
    #[must_use]
    pub const fn status(&self) -> Status {
        Status::from_bits(self.status.get() >> 1)
    }

    /// CID of the command.
    #[must_use]
    pub const fn command_id(&self) -> CommandId {
        CommandId(self.command_id.get())
    }

    /// The entry as the two words that queue memory is made of; the second one holds the phase
    /// tag and must become visible last.
    #[must_use]
    pub const fn to_words(&self) -> [u64; 2] {
        let low = self.result.get() as u64 | (self.result_high.get() as u64) << 32;
        let high = self.submission_head.get() as u64
            | (self.submission_queue.get() as u64) << 16
            | (self.command_id.get() as u64) << 32
            | (self.status.get() as u64) << 48;
        [low, high]
    }

    /// The entry of two words of queue memory.
    #[must_use]
    pub const fn from_words(words: [u64; 2]) -> Self {
        let [low, high] = words;
        Self {
            result: U32::new(low as u32),
            result_high: U32::new((low >> 32) as u32),
            submission_head: U16::new(high as u16),
            submission_queue: U16::new((high >> 16) as u16),
            command_id: U16::new((high >> 32) as u16),
            status: U16::new((high >> 48) as u16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::status::StatusCode;

    #[test]
    fn words_and_bytes_agree() {
        let status = Status::of(StatusCode::LBA_OUT_OF_RANGE).do_not_retry();
        let entry = CompletionEntry::new(CommandId(0x1234), status, 0xdead_beef)
            .with_queue(3, 7)
            .with_phase(true);
        let bytes = entry.as_bytes();
        assert_eq!(bytes[..4], [0xef, 0xbe, 0xad, 0xde]);
        assert_eq!(bytes[8..14], [7, 0, 3, 0, 0x34, 0x12]);
        let words = entry.to_words();
        assert_eq!(words[0].to_le_bytes(), bytes[..8]);
        assert_eq!(words[1].to_le_bytes(), bytes[8..]);
        assert_eq!(CompletionEntry::from_words(words), entry);
        assert!(entry.phase());
        assert_eq!(entry.status(), status);
    }
}
