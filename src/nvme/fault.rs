//! What a device did that it must not do: counted, told, survived.

use tracing::warn;

use crate::spec::completion::CompletionEntry;
use crate::units::QueueId;

/// How often each kind is logged by one queue pair; afterwards it is only counted.
const LOGGED: u64 = 3;

/// Counts of what a device must not do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Misbehaviour {
    /// Completions with a command identifier that no command could have.
    pub unknown_commands: u64,
    /// Completions of commands that had completed before.
    pub repeated_completions: u64,
    /// Completions that name another submission queue.
    pub wrong_queues: u64,
}

impl Misbehaviour {
    /// All of it.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.unknown_commands + self.repeated_completions + self.wrong_queues
    }

    pub(crate) fn unknown_command(&mut self, queue: QueueId, entry: &CompletionEntry) {
        self.unknown_commands += 1;
        tell(self.unknown_commands, queue, entry, "a completion of no command");
    }

    pub(crate) fn repeated_completion(&mut self, queue: QueueId, entry: &CompletionEntry) {
        self.repeated_completions += 1;
        tell(self.repeated_completions, queue, entry, "a completion that came before");
    }

    pub(crate) fn wrong_queue(&mut self, queue: QueueId, entry: &CompletionEntry) {
        self.wrong_queues += 1;
        tell(self.wrong_queues, queue, entry, "a completion of another queue");
    }
}

fn tell(times: u64, queue: QueueId, entry: &CompletionEntry, what: &'static str) {
    if times <= LOGGED {
        warn!(
            queue = queue.get(),
            command = entry.command_id().get(),
            named_queue = entry.submission_queue.get(),
            status = %entry.status(),
            what,
            "NVMe controller misbehaves"
        );
    }
}
