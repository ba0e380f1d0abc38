//! Answers: from what a command came to, to an entry in a completion queue and an interrupt.

use std::time::Duration;

use super::core::Core;
use super::queue::SubmissionQueue;
use crate::spec::completion::CompletionEntry;
use crate::spec::status::Status;
use crate::units::{CommandId, Lba, NamespaceId, QueueId};

/// How often a thread looks whether a full completion queue has room again: its doorbell wakes
/// nobody, since a driver that keeps its queues in order never lets one fill.
const STALL_POLL: Duration = Duration::from_millis(1);

/// An answer that is ready to be posted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) queue: QueueId,
    pub(super) id: CommandId,
    pub(super) status: Status,
    pub(super) result: u32,
    /// Namespace and first block, or what a command has in their place.
    pub(super) place: (NamespaceId, Lba),
    /// Serial number of the command.
    pub(super) command: u64,
    /// Of a flush: the last completion it covers.
    pub(super) covers: Option<u64>,
    /// Whether the host is told by an interrupt, too.
    pub(super) interrupts: bool,
    /// The identifier to lie about.
    pub(super) posted_id: CommandId,
    pub(super) copies: u8,
}

/// What an answer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Room in its completion queue.
    Room,
    /// The sync at the end of the step.
    Sync,
    /// The device's clock.
    Due(Duration),
    /// `release_held`.
    Released,
}

impl Core {
    /// Makes durable what an answer needs that a fault holds back anyway.
    pub(super) fn sync_if(&mut self, needs: Until) {
        if needs == Until::Sync {
            self.counters.syncs += 1;
            // A failure is not reported, as if the drive had lost track of the command.
            let _ = self.media.sync();
        }
    }

    /// Posts an answer as soon as `until` allows.
    pub(super) fn finish(&mut self, answer: Answer, until: Until) {
        match self.submission.get(usize::from(answer.queue.get())) {
            Some(Some(queue)) if until == Until::Room && self.has_room(queue.completion_queue) => {
                self.post(answer);
            }
            Some(Some(_)) => self.held.push((until, answer)),
            // The queue is gone, and its commands with it.
            _ => {}
        }
    }

    /// Posts an answer as soon as its completion queue has room.
    pub(super) fn answer(&mut self, answer: Answer) {
        self.finish(answer, Until::Room);
    }

    pub(super) fn answer_what_is_due(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let now = self.clock;
        for (until, answer) in std::mem::take(&mut self.held) {
            match until {
                Until::Due(due) if due <= now => self.finish(answer, Until::Room),
                other => self.finish(answer, other),
            }
        }
    }

    /// Makes durable what waits for it, with one call for all.
    pub(super) fn sync(&mut self) {
        if !self.held.iter().any(|(until, _)| *until == Until::Sync) {
            return;
        }
        // A sync takes its time; what needs none of it is not kept waiting.
        self.interrupt();
        self.counters.syncs += 1;
        let result = self.media.sync();
        for (until, answer) in std::mem::take(&mut self.held) {
            match (until, result) {
                (Until::Sync, Ok(())) => self.finish(answer, Until::Room),
                (Until::Sync, Err(code)) => self.finish(answer.failed(code.into()), Until::Room),
                _ => self.held.push((until, answer)),
            }
        }
    }

    /// Answers everything that a fault holds back.
    pub(super) fn release_held(&mut self) {
        for (until, answer) in std::mem::take(&mut self.held) {
            let until = if until == Until::Released { Until::Room } else { until };
            self.finish(answer, until);
        }
        self.interrupt();
    }

    pub(super) fn post(&mut self, answer: Answer) {
        let Some((window, _)) = &self.window else {
            return;
        };
        let Some(Some(queue)) = self.submission.get_mut(usize::from(answer.queue.get())) else {
            return;
        };
        self.sequence += 1;
        if answer.status.is_success() {
            self.media.completed(answer.command, self.sequence);
            if let Some(covered) = answer.covers {
                self.media.flushed(covered);
            }
        } else {
            self.counters.failures += 1;
            self.errors.command(&answer);
        }
        queue.finished(answer.id);
        let entry = CompletionEntry::new(answer.posted_id, answer.status, answer.result)
            .with_queue(answer.queue.get(), queue.head());
        let index = usize::from(queue.completion_queue.get());
        let Some(Some(completion)) = self.completion.get_mut(index) else {
            return;
        };
        completion.news |= answer.interrupts;
        let mut reached = true;
        for _ in 0..answer.copies {
            if !completion.is_full() {
                reached &= completion.post(window, entry);
            }
        }
        if !reached {
            self.counters.outside_window += 1;
            self.fail();
        }
    }

    pub(super) fn report_events(&mut self) {
        while let Some((id, event)) = self.events.next() {
            self.serial += 1;
            let mut answer = Answer::new(QueueId(0), id, self.serial);
            answer.result = event.to_dword();
            self.finish(answer, Until::Room);
        }
    }

    /// Raises the interrupts of completion queues that got entries.
    pub(super) fn interrupt(&mut self) {
        let mask = self.registers.interrupt_mask();
        for queue in self.completion.iter_mut().flatten() {
            let Some(vector) = queue.vector.filter(|_| queue.news) else {
                continue;
            };
            let masked = vector < 32 && mask >> vector & 1 == 1;
            if !masked && let Some(event) = self.ports.vectors.get(usize::from(vector)) {
                queue.news = false;
                self.counters.interrupts += 1;
                event.signal();
            }
        }
    }

    /// Whether something waits for the host to consume completions.
    pub(super) fn is_stalled(&self) -> bool {
        let full = |queue: &SubmissionQueue| {
            !queue.waiting.is_empty() && !self.has_room(queue.completion_queue)
        };
        self.held.iter().any(|(until, _)| *until == Until::Room)
            || self.submission.iter().flatten().any(full)
    }

    /// When [`Core::step`] has something to do that no submission doorbell announces.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let answers = self.held.iter().filter_map(|(until, _)| match until {
            Until::Due(due) => Some(*due),
            Until::Room | Until::Sync | Until::Released => None,
        });
        let stalled = self.is_stalled().then(|| self.clock.saturating_add(STALL_POLL));
        answers.chain(self.registers.change_due()).chain(stalled).min()
    }
}

impl Answer {
    /// Success with result 0.
    pub(super) fn new(queue: QueueId, id: CommandId, command: u64) -> Self {
        Self {
            queue,
            id,
            status: Status::SUCCESS,
            result: 0,
            place: (NamespaceId(0), Lba(0)),
            command,
            covers: None,
            interrupts: true,
            posted_id: id,
            copies: 1,
        }
    }

    /// The same command, failed.
    pub(super) fn failed(mut self, status: Status) -> Self {
        self.status = status;
        self.covers = None;
        self
    }
}
