//! Queues, seen from the controller: it fetches commands from a submission queue and posts entries
//! to a completion queue, both in host memory.

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use crate::hw::dma::DmaWindow;
use crate::spec::command::{SUBMISSION_ENTRY_SIZE, SubmissionEntry};
use crate::spec::completion::{COMPLETION_ENTRY_SIZE, CompletionEntry};
use crate::units::{CommandId, Iova, QueueId};

/// A command in the controller's hands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetched {
    pub(super) entry: SubmissionEntry,
    /// Number of the last completion that was posted before the command was submitted.
    pub(super) submitted_after: u64,
    /// Whether its identifier was in use when it was submitted.
    pub(super) conflict: bool,
}

/// A submission queue.
#[derive(Debug)]
pub(super) struct SubmissionQueue {
    pub(super) completion_queue: QueueId,
    memory: Iova,
    entries: u32,
    /// Next entry to fetch, and what completions report as fetched.
    head: u32,
    /// The doorbell's last valid value.
    tail: u32,
    /// The doorbell's last value, valid or not.
    rung: u32,
    /// Fetched and not begun, in the order of submission.
    pub(super) waiting: VecDeque<Fetched>,
    outstanding: CommandIds,
}

/// What came of looking at a submission queue's doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rung {
    /// Its value is what it was, or commands were fetched.
    Fine,
    /// Its value is no entry of the queue.
    InvalidValue,
    /// The queue's memory cannot be reached.
    Unreachable,
}

impl SubmissionQueue {
    pub(super) fn new(memory: Iova, entries: u32, completion_queue: QueueId) -> Self {
        Self {
            completion_queue,
            memory,
            entries,
            head: 0,
            tail: 0,
            rung: 0,
            waiting: VecDeque::new(),
            outstanding: CommandIds::default(),
        }
    }

    /// Whether [`SubmissionQueue::fetch`] would find something.
    pub(super) fn has_news(&self, doorbell: u32) -> bool {
        let room = self.waiting.len() < self.entries as usize;
        doorbell != self.rung || (self.head != self.tail && room)
    }

    /// Looks at the doorbell and fetches what is new, as long as no more commands wait than the
    /// queue has entries. `sequence` is the number of the last completion posted so far.
    pub(super) fn fetch(&mut self, window: &DmaWindow, doorbell: u32, sequence: u64) -> Rung {
        let mut result = Rung::Fine;
        if doorbell != self.rung {
            self.rung = doorbell;
            if doorbell < self.entries {
                self.tail = doorbell;
            } else {
                result = Rung::InvalidValue;
            }
        }
        while self.head != self.tail && self.waiting.len() < self.entries as usize {
            let mut entry = SubmissionEntry::default();
            let at = u64::from(self.head) * SUBMISSION_ENTRY_SIZE as u64;
            let from = Iova(self.memory.get() + at);
            if window.read(from, entry.as_mut_bytes()).is_err() {
                return Rung::Unreachable;
            }
            self.head = (self.head + 1) % self.entries;
            self.waiting.push_back(Fetched {
                entry,
                submitted_after: sequence,
                conflict: !self.outstanding.insert(entry.id()),
            });
        }
        result
    }

    /// The value of the doorbell that was last looked at.
    pub(super) fn rung(&self) -> u32 {
        self.rung
    }

    /// How far commands were fetched, as a completion reports it.
    pub(super) fn head(&self) -> u16 {
        self.head as u16
    }

    /// The identifier may be used again.
    pub(super) fn finished(&mut self, id: CommandId) {
        self.outstanding.remove(id);
    }
}

/// Which command identifiers are in use.
#[derive(Debug)]
struct CommandIds(Box<[u64]>);

impl Default for CommandIds {
    fn default() -> Self {
        Self(vec![0; (1 << 16) / 64].into())
    }
}

impl CommandIds {
    /// Marks `id` as in use; false if it was already.
    fn insert(&mut self, id: CommandId) -> bool {
        let (word, bit) = (usize::from(id.get() / 64), 1 << (id.get() % 64));
        let fresh = self.0[word] & bit == 0;
        self.0[word] |= bit;
        fresh
    }

    fn remove(&mut self, id: CommandId) {
        self.0[usize::from(id.get() / 64)] &= !(1 << (id.get() % 64));
    }
}

/// A completion queue.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    /// The interrupt to raise after posting, if interrupts are enabled.
    pub(super) vector: Option<u16>,
    /// Submission queues that complete here.
    pub(super) users: u32,
    memory: Iova,
    entries: u32,
    /// Next entry to write.
    tail: u32,
    /// Next entry the host will look at, by its doorbell.
    head: u32,
    /// The doorbell's last value, valid or not.
    rung: u32,
    phase: bool,
    /// The vector's interrupt is due.
    pub(super) news: bool,
}

impl CompletionQueue {
    pub(super) fn new(memory: Iova, entries: u32, vector: Option<u16>) -> Self {
        Self {
            vector,
            users: 0,
            memory,
            entries,
            tail: 0,
            head: 0,
            rung: 0,
            phase: true,
            news: false,
        }
    }

    /// Whether the doorbell holds a value that was not looked at.
    pub(super) fn has_news(&self, doorbell: u32) -> bool {
        doorbell != self.rung
    }

    /// Looks at the doorbell. False if its value is no entry of the queue, or lies past the last
    /// entry that was posted.
    pub(super) fn look(&mut self, doorbell: u32) -> bool {
        if doorbell == self.rung {
            return true;
        }
        self.rung = doorbell;
        let consumed = |head: u32| (head + self.entries - self.head) % self.entries;
        if doorbell >= self.entries || consumed(doorbell) > consumed(self.tail) {
            return false;
        }
        self.head = doorbell;
        true
    }

    /// Whether no entry can be posted until the host has consumed some.
    pub(super) fn is_full(&self) -> bool {
        (self.tail + 1) % self.entries == self.head
    }

    /// Posts an entry; the half that holds the phase tag becomes visible last. False if the
    /// queue's memory cannot be reached. The queue must not be full.
    pub(super) fn post(&mut self, window: &DmaWindow, entry: CompletionEntry) -> bool {
        let at = u64::from(self.tail) * COMPLETION_ENTRY_SIZE as u64;
        let at = self.memory.get() + at;
        let [low, high] = entry.with_phase(self.phase).to_words();
        let written = window.store_release(Iova(at), low).is_ok()
            && window.store_release(Iova(at + 8), high).is_ok();
        self.tail += 1;
        if self.tail == self.entries {
            self.tail = 0;
            self.phase = !self.phase;
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::dma::DmaArena;
    use crate::spec::status::Status;
    use crate::units::{ByteCount, NamespaceId};

    #[test]
    fn commands_are_fetched_in_order_and_conflicts_noticed() {
        let arena = DmaArena::new(ByteCount::MIB, false).unwrap();
        let window = arena.window();
        let memory = arena.allocate_shared(4096).unwrap();
        let mut queue = SubmissionQueue::new(memory.iova(), 3, QueueId(1));
        let put = |slot, id| {
            let entry = SubmissionEntry::flush(NamespaceId(1)).with_command_id(CommandId(id));
            memory.store_entry(slot, entry.bytes());
        };
        put(0, 7);
        put(1, 7);
        assert!(queue.has_news(2) && !queue.has_news(0));
        assert_eq!(queue.fetch(&window, 2, 5), Rung::Fine);
        let conflicts: Vec<_> = queue.waiting.drain(..).map(|command| command.conflict).collect();
        assert_eq!(conflicts, [false, true]);
        queue.finished(CommandId(7));
        put(2, 7);
        assert_eq!(queue.fetch(&window, 0, 9), Rung::Fine);
        let command = queue.waiting.pop_front().unwrap();
        assert_eq!((command.conflict, command.submitted_after, queue.head()), (false, 9, 0));
        assert_eq!(queue.fetch(&window, 3, 9), Rung::InvalidValue);
        assert_eq!(queue.fetch(&window, 3, 9), Rung::Fine, "said once");
        let mut lost = SubmissionQueue::new(Iova(0), 3, QueueId(1));
        assert_eq!(lost.fetch(&window, 1, 0), Rung::Unreachable);
    }

    #[test]
    fn a_completion_queue_wraps_and_flips_its_phase() {
        let arena = DmaArena::new(ByteCount::MIB, false).unwrap();
        let window = arena.window();
        let memory = arena.allocate_shared(4096).unwrap();
        let mut queue = CompletionQueue::new(memory.iova(), 3, None);
        let post = |queue: &mut CompletionQueue, id| {
            assert!(!queue.is_full());
            let entry = CompletionEntry::new(CommandId(id), Status::SUCCESS, 0);
            assert!(queue.post(&window, entry));
        };
        let seen = |slot: usize| {
            let words = [memory.load_acquire(slot * 16), memory.load_acquire(slot * 16 + 8)];
            let entry = CompletionEntry::from_words(words);
            (entry.command_id().get(), entry.phase())
        };
        post(&mut queue, 1);
        post(&mut queue, 2);
        assert!(queue.is_full());
        assert!(!queue.look(3), "no such entry");
        assert!(queue.look(2));
        assert!(!queue.look(1), "past what was posted");
        assert!(queue.look(2));
        post(&mut queue, 3);
        post(&mut queue, 4);
        assert_eq!([seen(0), seen(1), seen(2)], [(4, false), (2, true), (3, true)]);
    }
}
