//! A submission ring and a completion ring in shared memory, with their doorbells.
//!
//! The rings know entries, indices and the phase tag, and nothing of commands. The caller keeps
//! fewer commands in flight than the rings have entries, so neither can overflow, and the
//! submission head that completions report is not needed.

use super::shadow::Bell;
use crate::hw::dma::{DmaArena, SharedMemory};
use crate::spec::command::{SUBMISSION_ENTRY_SIZE, SubmissionEntry};
use crate::spec::completion::{COMPLETION_ENTRY_SIZE, CompletionEntry};
use crate::units::Iova;

/// The doorbells of a queue pair.
#[derive(Debug)]
pub(crate) struct Doorbells {
    pub(crate) submission: Bell,
    pub(crate) completion: Bell,
}

/// Both rings of a queue pair, of the same number of entries.
#[derive(Debug)]
pub(crate) struct Rings {
    submissions: SharedMemory,
    completions: SharedMemory,
    doorbells: Doorbells,
    entries: u16,
    /// Where the next command goes.
    tail: u16,
    /// The tail that the device was told.
    rung: u16,
    /// Where the next completion comes.
    head: u16,
    /// The phase tag that a new completion has at `head`.
    phase: bool,
    /// Completions taken since the device was told.
    taken: u16,
}

impl Rings {
    /// Rings of `entries` entries (2 or more), zeroed; `None` if the arena is full.
    pub(crate) fn new(arena: &DmaArena, entries: u16, doorbells: Doorbells) -> Option<Self> {
        assert!(entries >= 2, "a queue has at least two entries");
        let entry_count = usize::from(entries);
        let submissions = arena.allocate_shared(entry_count * SUBMISSION_ENTRY_SIZE)?;
        let Some(completions) = arena.allocate_shared(entry_count * COMPLETION_ENTRY_SIZE) else {
            drop(submissions.reclaim());
            return None;
        };
        Some(Self {
            submissions,
            completions,
            doorbells,
            entries,
            tail: 0,
            rung: 0,
            head: 0,
            phase: true,
            taken: 0,
        })
    }

    /// Device addresses of the submission and the completion ring.
    pub(crate) fn addresses(&self) -> (Iova, Iova) {
        (self.submissions.iova(), self.completions.iova())
    }

    /// Entries of each ring.
    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    /// Puts a command at the tail. The device does not look before [`Rings::ring`].
    #[inline]
    pub(crate) fn push(&mut self, entry: &SubmissionEntry) {
        self.submissions.store_entry(usize::from(self.tail), entry.bytes());
        self.tail = if self.tail + 1 == self.entries { 0 } else { self.tail + 1 };
    }

    /// Tells the device of the commands pushed since the last call. The doorbell's release fence
    /// makes the entries, PRP lists and data stored before visible to a device that sees it.
    #[inline]
    pub(crate) fn ring(&mut self) {
        if self.tail != self.rung {
            self.rung = self.tail;
            self.doorbells.submission.ring(u32::from(self.tail));
        }
    }

    /// Takes the next completion, if there is one. Its second half, which holds the phase tag, is
    /// loaded with acquire: whatever the device wrote before it, data included, is visible.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<CompletionEntry> {
        let offset = usize::from(self.head) * COMPLETION_ENTRY_SIZE;
        let high = self.completions.load_acquire(offset + 8);
        if (high >> 48) & 1 != u64::from(self.phase) {
            return None;
        }
        let low = self.completions.load_acquire(offset);
        self.taken += 1;
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(CompletionEntry::from_words([low, high]))
    }

    /// Gives the entries taken since the last call back to the device.
    #[inline]
    pub(crate) fn release(&mut self) {
        if self.taken != 0 {
            self.taken = 0;
            self.doorbells.completion.ring(u32::from(self.head));
        }
    }

    /// Starts over, as the device does when the queues are created anew. Only while the device
    /// does not use them.
    pub(crate) fn restart(&mut self) {
        self.completions.clear();
        self.doorbells.submission.restart();
        self.doorbells.completion.restart();
        (self.tail, self.rung, self.head, self.taken) = (0, 0, 0, 0);
        self.phase = true;
    }

    /// Frees the memory. Only once the device does not use it any more.
    pub(crate) fn reclaim(self) {
        drop(self.submissions.reclaim());
        drop(self.completions.reclaim());
    }
}
