//! Admin commands (Base 5): constructors and readers.

use zerocopy::little_endian::{U32, U64};

use super::{AdminOpcode, Feature, IdentifyKind, SubmissionEntry, queue_dword};
use crate::spec::log::LogPage;
use crate::units::{ByteCount, CommandId, Iova, NamespaceId, QueueId};

impl SubmissionEntry {
    const fn admin(opcode: AdminOpcode) -> Self {
        Self::with_opcode(opcode.0, NamespaceId(0))
    }

    /// The opcode, of an entry of the admin queue.
    #[must_use]
    pub const fn admin_opcode(&self) -> AdminOpcode {
        AdminOpcode(self.opcode)
    }

    /// Identify `kind`; 4096 bytes come back. The command set (CSI) is NVM.
    #[must_use]
    pub const fn identify(kind: IdentifyKind, namespace: NamespaceId) -> Self {
        let mut entry = Self::with_opcode(AdminOpcode::IDENTIFY.0, namespace);
        entry.dword10 = U32::new(kind.0 as u32);
        entry
    }

    /// Identify: what is asked for (CNS).
    #[must_use]
    pub const fn identify_kind(&self) -> IdentifyKind {
        IdentifyKind(self.dword10.get() as u8)
    }

    /// Identify: the controller asked about (CNTID).
    #[must_use]
    pub const fn identify_controller_id(&self) -> u16 {
        (self.dword10.get() >> 16) as u16
    }

    /// Identify: the command set (CSI); 0 is NVM.
    #[must_use]
    pub const fn identify_command_set(&self) -> u8 {
        (self.dword11.get() >> 24) as u8
    }

    /// Create I/O Completion Queue: contiguous memory at `memory`, `entries` entries (2 or more),
    /// interrupts on `vector` if there is one.
    #[must_use]
    pub const fn create_completion_queue(
        queue: QueueId,
        entries: u16,
        memory: Iova,
        vector: Option<u16>,
    ) -> Self {
        let mut entry = Self::admin(AdminOpcode::CREATE_COMPLETION_QUEUE);
        entry.prp1 = U64::new(memory.get());
        entry.dword10 = U32::new(queue_dword(queue, entries));
        entry.dword11 = U32::new(match vector {
            Some(vector) => 1 | 1 << 1 | (vector as u32) << 16,
            None => 1,
        });
        entry
    }

    /// Create I/O Submission Queue: contiguous memory at `memory`, `entries` entries (2 or more),
    /// completions to `completion_queue`.
    #[must_use]
    pub const fn create_submission_queue(
        queue: QueueId,
        entries: u16,
        memory: Iova,
        completion_queue: QueueId,
    ) -> Self {
        let mut entry = Self::admin(AdminOpcode::CREATE_SUBMISSION_QUEUE);
        entry.prp1 = U64::new(memory.get());
        entry.dword10 = U32::new(queue_dword(queue, entries));
        entry.dword11 = U32::new(1 | (completion_queue.get() as u32) << 16);
        entry
    }

    /// The same Create I/O Submission Queue with a priority class (QPRIO): 0 urgent to 3 low. It
    /// means nothing without weighted arbitration.
    #[must_use]
    pub const fn with_queue_priority(mut self, class: u8) -> Self {
        self.dword11 = U32::new(self.dword11.get() & !6 | ((class & 3) as u32) << 1);
        self
    }

    /// Delete I/O Submission Queue.
    #[must_use]
    pub const fn delete_submission_queue(queue: QueueId) -> Self {
        let mut entry = Self::admin(AdminOpcode::DELETE_SUBMISSION_QUEUE);
        entry.dword10 = U32::new(queue.get() as u32);
        entry
    }

    /// Delete I/O Completion Queue; its submission queues must be gone.
    #[must_use]
    pub const fn delete_completion_queue(queue: QueueId) -> Self {
        let mut entry = Self::admin(AdminOpcode::DELETE_COMPLETION_QUEUE);
        entry.dword10 = U32::new(queue.get() as u32);
        entry
    }

    /// Create and delete queue: which one.
    #[must_use]
    pub const fn queue_id(&self) -> QueueId {
        QueueId(self.dword10.get() as u16)
    }

    /// Create queue: how many entries, 1 to 65 536.
    #[must_use]
    pub const fn queue_entries(&self) -> u32 {
        (self.dword10.get() >> 16) + 1
    }

    /// Create queue: whether its memory is contiguous (PC).
    #[must_use]
    pub const fn contiguous(&self) -> bool {
        self.dword11.get() & 1 == 1
    }

    /// Create completion queue: the vector, if interrupts are enabled (IEN, IV).
    #[must_use]
    pub const fn interrupt_vector(&self) -> Option<u16> {
        if self.dword11.get() & 2 == 0 {
            return None;
        }
        Some((self.dword11.get() >> 16) as u16)
    }

    /// Create submission queue: where it completes (CQID).
    #[must_use]
    pub const fn completion_queue(&self) -> QueueId {
        QueueId((self.dword11.get() >> 16) as u16)
    }

    /// Set Features: `feature` of the controller to `value` (dword 11), not saved.
    #[must_use]
    pub const fn set_features(feature: Feature, value: u32) -> Self {
        let mut entry = Self::admin(AdminOpcode::SET_FEATURES);
        entry.dword10 = U32::new(feature.0 as u32);
        entry.dword11 = U32::new(value);
        entry
    }

    /// Get Features: the current value of `feature` of the controller.
    #[must_use]
    pub const fn get_features(feature: Feature) -> Self {
        let mut entry = Self::admin(AdminOpcode::GET_FEATURES);
        entry.dword10 = U32::new(feature.0 as u32);
        entry
    }

    /// Set and Get Features: which one (FID).
    #[must_use]
    pub const fn feature(&self) -> Feature {
        Feature(self.dword10.get() as u8)
    }

    /// Get Features: which of its values (SEL): 0 current, 1 default, 2 saved, 3 capabilities.
    #[must_use]
    pub const fn feature_select(&self) -> u8 {
        (self.dword10.get() >> 8) as u8 & 7
    }

    /// Set Features: whether to keep it across resets (SV).
    #[must_use]
    pub const fn feature_save(&self) -> bool {
        self.dword10.get() >> 31 == 1
    }

    /// Set Features: the new value, dword 11.
    #[must_use]
    pub const fn feature_value(&self) -> u32 {
        self.dword11.get()
    }

    /// Get Log Page: the first `length` bytes (a multiple of 4, at least 4) of `page`. The event
    /// that pointed at the page is cleared by reading it (RAE is 0).
    #[must_use]
    pub const fn get_log_page(page: LogPage, namespace: NamespaceId, length: u32) -> Self {
        let mut entry = Self::with_opcode(AdminOpcode::GET_LOG_PAGE.0, namespace);
        let dwords = (length / 4).saturating_sub(1);
        entry.dword10 = U32::new(page.0 as u32 | (dwords & 0xffff) << 16);
        entry.dword11 = U32::new(dwords >> 16);
        entry
    }

    /// Get Log Page: which (LID).
    #[must_use]
    pub const fn log_page(&self) -> LogPage {
        LogPage(self.dword10.get() as u8)
    }

    /// Get Log Page: how many bytes, at least 4 and up to 16 GiB (NUMDU, NUMDL).
    #[must_use]
    pub const fn log_length(&self) -> u64 {
        let dwords = self.dword10.get() >> 16 | (self.dword11.get() & 0xffff) << 16;
        (dwords as u64 + 1) * 4
    }

    /// Get Log Page: from which byte (LPOU, LPOL).
    #[must_use]
    pub const fn log_offset(&self) -> u64 {
        self.dword12.get() as u64 | (self.dword13.get() as u64) << 32
    }

    /// Get Log Page: whether the event stays outstanding (RAE).
    #[must_use]
    pub const fn retain_event(&self) -> bool {
        self.dword10.get() & 1 << 15 != 0
    }

    /// Abort command `command` of submission queue `queue`.
    #[must_use]
    pub const fn abort(queue: QueueId, command: CommandId) -> Self {
        let mut entry = Self::admin(AdminOpcode::ABORT);
        entry.dword10 = U32::new(queue.get() as u32 | (command.get() as u32) << 16);
        entry
    }

    /// Abort: the queue (SQID) and the command (CID).
    #[must_use]
    pub const fn abort_target(&self) -> (QueueId, CommandId) {
        let dword = self.dword10.get();
        (QueueId(dword as u16), CommandId((dword >> 16) as u16))
    }

    /// Asynchronous Event Request: completes when something happens.
    #[must_use]
    pub const fn async_event_request() -> Self {
        Self::admin(AdminOpcode::ASYNC_EVENT_REQUEST)
    }

    /// Doorbell Buffer Config: a page of shadow doorbells at `shadow`, and a page at `events` in
    /// which the controller says at which value it wants to hear of the doorbell itself.
    #[must_use]
    pub const fn doorbell_buffers(shadow: Iova, events: Iova) -> Self {
        Self::admin(AdminOpcode::DOORBELL_BUFFER_CONFIG).with_prps(shadow, events)
    }

    /// How many bytes an admin command moves between host and controller, as far as the command
    /// itself says so: Identify and Get Log Page. `None` for every other command.
    #[must_use]
    pub const fn admin_data_length(&self) -> Option<ByteCount> {
        match self.admin_opcode() {
            AdminOpcode::IDENTIFY => Some(ByteCount(4096)),
            AdminOpcode::GET_LOG_PAGE => Some(ByteCount(self.log_length())),
            _ => None,
        }
    }
}
