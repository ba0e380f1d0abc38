//! The error information log: the last failures, newest first (Base 5.1.12.1.2).

use std::collections::VecDeque;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::answers::Answer;
use crate::spec::log::ErrorLogEntry;
use crate::units::{Lba, NamespaceId};

/// Failures that are kept.
pub(super) const ENTRIES: usize = 64;
/// Stands for "no queue" and "no command".
const NONE: u16 = 0xffff;

/// The failures of one controller. Resets do not clear them.
#[derive(Debug, Default)]
pub(super) struct Errors {
    newest_first: VecDeque<ErrorLogEntry>,
    count: u64,
}

impl Errors {
    /// A command failed.
    pub(super) fn command(&mut self, answer: &Answer) {
        let status = answer.status.bits() << 1;
        self.push([answer.queue.get(), answer.id.get(), status], answer.place);
    }

    /// A doorbell was written that does not exist, or with an invalid value.
    pub(super) fn doorbell(&mut self) {
        self.push([NONE, NONE, 0], (NamespaceId(0), Lba(0)));
    }

    fn push(&mut self, [queue, command, status]: [u16; 3], place: (NamespaceId, Lba)) {
        self.count += 1;
        let mut entry = ErrorLogEntry::new_zeroed();
        entry.error_count = U64::new(self.count);
        entry.submission_queue = U16::new(queue);
        entry.command_id = U16::new(command);
        entry.status = U16::new(status);
        entry.parameter_location = U16::new(NONE);
        entry.lba = U64::new(place.1.get());
        entry.namespace = U32::new(place.0.get());
        self.newest_first.truncate(ENTRIES - 1);
        self.newest_first.push_front(entry);
    }

    /// Failures so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The log page.
    pub(super) fn page(&self) -> Vec<u8> {
        let mut page = vec![0; ENTRIES * size_of::<ErrorLogEntry>()];
        for (place, entry) in page.chunks_mut(size_of::<ErrorLogEntry>()).zip(&self.newest_first) {
            place.copy_from_slice(entry.as_bytes());
        }
        page
    }
}
