//! Doorbells: what the host rang, and whether it makes sense.

use super::core::Core;
use super::queue::{Rung, SubmissionQueue};
use crate::spec::log::{AsyncEvent, AsyncEventType, LogPage};
use crate::units::QueueId;

impl Core {
    /// Whether [`Core::step`] would find something to do.
    pub(super) fn has_work(&self) -> bool {
        let bell = |index| self.ports.doorbells.load(index).unwrap_or(0);
        let submitted = |index: usize| match &self.submission[index] {
            Some(queue) => queue.has_news(bell(2 * index)) || self.can_begin(queue),
            None => bell(2 * index) != 0,
        };
        let consumed = |index: usize| match &self.completion[index] {
            Some(queue) => queue.has_news(bell(2 * index + 1)),
            None => bell(2 * index + 1) != 0,
        };
        let queues = || 0..self.submission.len();
        self.is_running()
            && (queues().any(submitted)
                || self.events.has_next()
                || self.is_stalled() && queues().any(consumed))
    }

    pub(super) fn error_event(&mut self, information: u8) {
        self.counters.invalid_doorbells += 1;
        self.errors.doorbell();
        self.events.raise(AsyncEvent {
            event_type: AsyncEventType::ERROR,
            information,
            log_page: LogPage::ERROR,
        });
    }

    /// Looks at every doorbell and fetches the commands that were submitted.
    pub(super) fn look_at_doorbells(&mut self) {
        let Some(window) = self.window() else {
            return;
        };
        for index in 0..self.submission.len() {
            let bell = |register| self.ports.doorbells.load(register).unwrap_or(0);
            let (tail, head) = (bell(2 * index), bell(2 * index + 1));
            let rung = match &mut self.submission[index] {
                Some(queue) if queue.has_news(tail) => queue.fetch(&window, tail, self.sequence),
                None if tail != 0 => {
                    self.ports.doorbells.store(2 * index, 0);
                    self.error_event(AsyncEvent::INVALID_DOORBELL_REGISTER);
                    Rung::Fine
                }
                _ => Rung::Fine,
            };
            match rung {
                Rung::Fine => {}
                Rung::InvalidValue => self.error_event(AsyncEvent::INVALID_DOORBELL_VALUE),
                Rung::Unreachable => {
                    self.counters.outside_window += 1;
                    self.fail();
                }
            }
            match self.completion[index].as_mut().map(|queue| queue.look(head)) {
                Some(true) => {}
                Some(false) => self.error_event(AsyncEvent::INVALID_DOORBELL_VALUE),
                None if head == 0 => {}
                None => {
                    self.ports.doorbells.store(2 * index + 1, 0);
                    self.error_event(AsyncEvent::INVALID_DOORBELL_REGISTER);
                }
            }
        }
    }

    /// A queue with a full completion queue stalls.
    pub(super) fn can_begin(&self, queue: &SubmissionQueue) -> bool {
        !queue.waiting.is_empty() && self.has_room(queue.completion_queue)
    }

    pub(super) fn has_room(&self, completion_queue: QueueId) -> bool {
        let queue = self.completion.get(usize::from(completion_queue.get()));
        queue.and_then(Option::as_ref).is_some_and(|queue| !queue.is_full())
    }
}
