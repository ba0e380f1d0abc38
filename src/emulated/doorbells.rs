//! Doorbells: what the host rang, and whether it makes sense.

use std::sync::atomic::{Ordering, fence};

use super::core::Core;
use super::prp;
use super::queue::{Rung, SubmissionQueue};
use crate::spec::command::SubmissionEntry;
use crate::spec::log::{AsyncEvent, AsyncEventType, LogPage};
use crate::spec::status::StatusCode;
use crate::units::{Iova, QueueId};

/// The first doorbell that is not the admin queue's.
const IO_DOORBELLS: usize = 2;

impl Core {
    /// Where doorbell `index` lies in each of the shadow pages, if the host has told of them and it
    /// lies in them.
    fn shadow_of(&self, index: usize) -> Option<[Iova; 2]> {
        let in_pages = (IO_DOORBELLS..prp::PAGE / size_of::<u32>()).contains(&index);
        let pages = self.shadow.filter(|_| in_pages)?;
        Some(pages.map(|page| Iova(page.get() + 4 * index as u64)))
    }

    /// The value of doorbell `index`: of its shadow, if it has one and its queue exists.
    fn bell(&self, index: usize) -> u32 {
        let exists = match index % 2 {
            0 => self.submission[index / 2].is_some(),
            _ => self.completion[index / 2].is_some(),
        };
        let shadow = self.shadow_of(index).filter(|_| exists).zip(self.window.as_ref());
        match shadow.map(|([shadow, _], (window, _))| window.load_half(shadow)) {
            Some(Ok(value)) => value,
            _ => self.ports.doorbells.load(index).unwrap_or(0),
        }
    }

    /// Before the thread stops looking: tells the host from which value of each submission doorbell
    /// on it wants to hear of the register. Another look must follow.
    pub(super) fn ask_for_doorbells(&self) {
        let Some((window, _)) = self.window.as_ref().filter(|_| self.shadow.is_some()) else {
            return;
        };
        for (index, queue) in self.submission.iter().enumerate() {
            if let Some(queue) = queue
                && let Some([_, event]) = self.shadow_of(2 * index)
            {
                // Both pages were found to lie in the window.
                let _ = window.store_half(event, queue.rung());
            }
        }
        fence(Ordering::SeqCst);
    }

    /// Doorbell Buffer Config.
    pub(super) fn doorbell_buffers(&mut self, entry: &SubmissionEntry) -> Result<(), StatusCode> {
        if !self.settings.shadow_doorbells {
            return Err(StatusCode::INVALID_OPCODE);
        }
        let pages = [Iova(entry.prp1.get()), Iova(entry.prp2.get())];
        if pages.iter().any(|page| !page.get().is_multiple_of(prp::PAGE as u64)) {
            return Err(StatusCode::INVALID_FIELD);
        }
        let window = self.window().ok_or(StatusCode::DATA_TRANSFER_ERROR)?;
        if pages.iter().any(|page| !window.contains(*page, prp::PAGE)) {
            self.note_access(Err(StatusCode::DATA_TRANSFER_ERROR))?;
        }
        self.shadow = Some(pages);
        Ok(())
    }

    /// Whether [`Core::step`] would find something to do.
    pub(super) fn has_work(&self) -> bool {
        let bell = |index| self.bell(index);
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
            let (tail, head) = (self.bell(2 * index), self.bell(2 * index + 1));
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
