//! Admin commands (Base 5).

use super::answers::Answer;
use super::core::{Core, Outcome};
use super::identify::NAMESPACE;
use super::prp;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::scatter::Scatter;
use crate::spec::command::{
    ALL_NAMESPACES, AdminOpcode, Feature, SUBMISSION_ENTRY_SIZE, SubmissionEntry,
};
use crate::spec::completion::COMPLETION_ENTRY_SIZE;
use crate::spec::log::{AsyncEventType, LogPage};
use crate::spec::status::StatusCode;
use crate::units::{ByteCount, CommandId, Iova, NamespaceId, QueueId};

/// The most of a log page that one command may read: more than any page has.
const LONGEST_LOG: u64 = 64 << 10;
/// What Abort returns if the command was not aborted.
const NOT_ABORTED: u32 = 1;

impl Core {
    /// Carries out an admin command.
    pub(super) fn admin(&mut self, entry: &SubmissionEntry) -> Result<Outcome, StatusCode> {
        if entry.fused() != 0 || entry.data_pointer_kind() != 0 {
            return Err(StatusCode::INVALID_FIELD);
        }
        match entry.admin_opcode() {
            AdminOpcode::IDENTIFY => self.identify_command(entry),
            AdminOpcode::CREATE_COMPLETION_QUEUE => self.create_completion_queue(entry),
            AdminOpcode::CREATE_SUBMISSION_QUEUE => self.create_submission_queue(entry),
            AdminOpcode::DELETE_SUBMISSION_QUEUE => self.delete_submission_queue(entry.queue_id()),
            AdminOpcode::DELETE_COMPLETION_QUEUE => self.delete_completion_queue(entry.queue_id()),
            AdminOpcode::GET_FEATURES => {
                let value = self.features.get(entry.feature(), entry.feature_select())?;
                Ok(Outcome::Done(value))
            }
            AdminOpcode::SET_FEATURES => self.set_features(entry),
            AdminOpcode::GET_LOG_PAGE => self.get_log_page(entry),
            AdminOpcode::ABORT => {
                let (queue, command) = entry.abort_target();
                Ok(Outcome::Done(self.abort(queue, command)))
            }
            AdminOpcode::DOORBELL_BUFFER_CONFIG => {
                self.doorbell_buffers(entry)?;
                Ok(Outcome::Done(0))
            }
            AdminOpcode::ASYNC_EVENT_REQUEST if self.events.request(entry.id()) => {
                Ok(Outcome::Later)
            }
            AdminOpcode::ASYNC_EVENT_REQUEST => Err(StatusCode::ASYNC_EVENT_LIMIT_EXCEEDED),
            _ => Err(StatusCode::INVALID_OPCODE),
        }
    }

    /// Sends `data` to the memory that the command names.
    fn send(&mut self, entry: &SubmissionEntry, data: &[u8]) -> Result<Outcome, StatusCode> {
        let window = self.window().ok_or(StatusCode::DATA_TRANSFER_ERROR)?;
        let entries = [entry.prp1.get(), entry.prp2.get()];
        let walked = prp::walk(&window, entries, data.len(), &mut self.segments);
        self.note_access(walked)?;
        let put = Scatter::new(&window, &self.segments).put(data);
        put.map_err(|_| StatusCode::DATA_TRANSFER_ERROR)?;
        Ok(Outcome::Done(0))
    }

    /// Counts what a walk says of the driver.
    pub(super) fn note_access(&mut self, walked: Result<(), StatusCode>) -> Result<(), StatusCode> {
        self.counters.outside_window += u64::from(walked == Err(StatusCode::DATA_TRANSFER_ERROR));
        walked
    }

    fn identify_command(&mut self, entry: &SubmissionEntry) -> Result<Outcome, StatusCode> {
        let page = self.identify(entry.identify_kind(), entry.nsid())?;
        self.send(entry, &page)
    }

    fn get_log_page(&mut self, entry: &SubmissionEntry) -> Result<Outcome, StatusCode> {
        if ![NamespaceId(0), NAMESPACE, ALL_NAMESPACES].contains(&entry.nsid()) {
            return Err(StatusCode::INVALID_NAMESPACE);
        }
        let (length, offset) = (entry.log_length(), entry.log_offset());
        if !offset.is_multiple_of(4) || length > self.max_transfer().get().min(LONGEST_LOG) {
            return Err(StatusCode::INVALID_FIELD);
        }
        let mut page = self.log_page(entry.log_page())?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if start > page.len() {
            return Err(StatusCode::INVALID_FIELD);
        }
        page.drain(..start);
        // Past the end of a page there is nothing in particular.
        page.resize(length as usize, 0);
        let outcome = self.send(entry, &page)?;
        if !entry.retain_event() {
            match entry.log_page() {
                LogPage::ERROR => self.events.read(AsyncEventType::ERROR),
                LogPage::SMART => self.events.read(AsyncEventType::SMART),
                LogPage::FIRMWARE => self.events.read(AsyncEventType::NOTICE),
                LogPage::CHANGED_NAMESPACES => {
                    self.namespace_changed = false;
                    self.events.read(AsyncEventType::NOTICE);
                }
                _ => {}
            }
        }
        Ok(outcome)
    }

    fn set_features(&mut self, entry: &SubmissionEntry) -> Result<Outcome, StatusCode> {
        if entry.feature_save() {
            return Err(StatusCode::FEATURE_NOT_SAVEABLE);
        }
        if entry.feature() == Feature::NUMBER_OF_QUEUES
            && self.completion.iter().skip(1).any(Option::is_some)
        {
            return Err(StatusCode::COMMAND_SEQUENCE_ERROR);
        }
        let cached = self.features.write_cache_enabled();
        let result = self.features.set(entry.feature(), entry.feature_value())?;
        if cached && !self.features.write_cache_enabled() {
            // From here on nobody flushes.
            self.media.write_back()?;
        }
        Ok(Outcome::Done(result))
    }

    /// What both kinds of queue have in common: identifier, size and memory.
    fn check_queue(
        &mut self,
        entry: &SubmissionEntry,
        exists: bool,
        shift: u32,
    ) -> Result<(Iova, u32), StatusCode> {
        let id = entry.queue_id();
        if id == QueueId(0) || id.get() > self.settings.io_queues || exists {
            return Err(StatusCode::INVALID_QUEUE_ID);
        }
        let entries = entry.queue_entries();
        if entries < 2 || entries > u32::from(self.settings.queue_entries) {
            return Err(StatusCode::INVALID_QUEUE_SIZE);
        }
        if !entry.contiguous() {
            return Err(StatusCode::INVALID_FIELD);
        }
        let memory = entry.prp1.get();
        if !memory.is_multiple_of(prp::PAGE as u64) {
            return Err(StatusCode::INVALID_PRP_OFFSET);
        }
        let length = (entries as usize) << shift;
        let window = self.window().ok_or(StatusCode::DATA_TRANSFER_ERROR)?;
        if !window.contains(Iova(memory), length) {
            self.note_access(Err(StatusCode::DATA_TRANSFER_ERROR))?;
        }
        Ok((Iova(memory), entries))
    }

    fn create_completion_queue(&mut self, entry: &SubmissionEntry) -> Result<Outcome, StatusCode> {
        let index = usize::from(entry.queue_id().get());
        let exists = matches!(self.completion.get(index), Some(Some(_)));
        let shift = COMPLETION_ENTRY_SIZE.trailing_zeros();
        if self.registers.configuration().completion_entry_shift() != shift {
            return Err(StatusCode::INVALID_QUEUE_SIZE);
        }
        let (memory, entries) = self.check_queue(entry, exists, shift)?;
        let vector = entry.interrupt_vector();
        if vector.is_some_and(|vector| vector >= self.settings.vectors) {
            return Err(StatusCode::INVALID_INTERRUPT_VECTOR);
        }
        self.ports.doorbells.store(2 * index + 1, 0);
        self.completion[index] = Some(CompletionQueue::new(memory, entries, vector));
        Ok(Outcome::Done(0))
    }

    fn create_submission_queue(&mut self, entry: &SubmissionEntry) -> Result<Outcome, StatusCode> {
        let index = usize::from(entry.queue_id().get());
        let exists = matches!(self.submission.get(index), Some(Some(_)));
        let shift = SUBMISSION_ENTRY_SIZE.trailing_zeros();
        if self.registers.configuration().submission_entry_shift() != shift {
            return Err(StatusCode::INVALID_QUEUE_SIZE);
        }
        let (memory, entries) = self.check_queue(entry, exists, shift)?;
        let target = entry.completion_queue();
        let completion = self.completion.get_mut(usize::from(target.get()));
        let Some(Some(completion)) = completion.filter(|_| target != QueueId(0)) else {
            return Err(StatusCode::COMPLETION_QUEUE_INVALID);
        };
        completion.users += 1;
        self.ports.doorbells.store(2 * index, 0);
        self.submission[index] = Some(SubmissionQueue::new(memory, entries, target));
        Ok(Outcome::Done(0))
    }

    /// Commands that wait in the queue are answered as aborted. What a fault holds back is never
    /// answered: after this the host may take all buffers of the queue back.
    fn delete_submission_queue(&mut self, id: QueueId) -> Result<Outcome, StatusCode> {
        let index = usize::from(id.get());
        let Some(Some(queue)) = self.submission.get_mut(index).filter(|_| index != 0) else {
            return Err(StatusCode::INVALID_QUEUE_ID);
        };
        let target = usize::from(queue.completion_queue.get());
        for command in std::mem::take(&mut queue.waiting) {
            let status = StatusCode::ABORTED_QUEUE_DELETED.into();
            self.answer(Answer::new(id, command.entry.id(), 0).failed(status));
        }
        self.held.retain(|(_, answer)| answer.queue != id);
        self.submission[index] = None;
        self.ports.doorbells.store(2 * index, 0);
        if let Some(Some(completion)) = self.completion.get_mut(target) {
            completion.users -= 1;
        }
        Ok(Outcome::Done(0))
    }

    fn delete_completion_queue(&mut self, id: QueueId) -> Result<Outcome, StatusCode> {
        let index = usize::from(id.get());
        let Some(Some(queue)) = self.completion.get(index).filter(|_| index != 0) else {
            return Err(StatusCode::INVALID_QUEUE_ID);
        };
        if queue.users > 0 {
            return Err(StatusCode::INVALID_QUEUE_DELETION);
        }
        self.completion[index] = None;
        self.ports.doorbells.store(2 * index + 1, 0);
        Ok(Outcome::Done(0))
    }

    /// Aborts a command that was not begun, or whose answer a fault holds back.
    fn abort(&mut self, queue: QueueId, id: CommandId) -> u32 {
        let aborted = Answer::new(queue, id, 0).failed(StatusCode::ABORT_REQUESTED.into());
        if queue == QueueId(0) && self.events.abort(id) {
            self.answer(aborted);
            return 0;
        }
        let index = usize::from(queue.get());
        if let Some(Some(target)) = self.submission.get_mut(index) {
            let place = target.waiting.iter().position(|command| command.entry.id() == id);
            if place.and_then(|place| target.waiting.remove(place)).is_some() {
                self.answer(aborted);
                return 0;
            }
        }
        let before = self.held.len();
        self.held.retain(|(_, answer)| (answer.queue, answer.id) != (queue, id));
        if self.held.len() == before {
            return NOT_ABORTED;
        }
        self.answer(aborted);
        0
    }

    /// The largest transfer of one command.
    pub(super) fn max_transfer(&self) -> ByteCount {
        match self.settings.max_transfer {
            0 => ByteCount(1 << 40),
            exponent => ByteCount((prp::PAGE as u64) << exponent.min(20)),
        }
    }
}
