//! The submission queue entry (Base 3.3.3.1) and the dwords of the commands we use.
//!
//! One struct for all commands. Each command has a constructor, for the host, and the fields have
//! readers, for the controller; a reader is only meaningful for the commands that its
//! documentation names.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{assert_layout, open_enum};
use crate::units::{BlockCount, CommandId, Iova, Lba, NamespaceId, QueueId};

mod admin;
mod io;

/// Size of a submission queue entry in bytes.
pub const SUBMISSION_ENTRY_SIZE: usize = 64;
/// A command identifier that must not be used: error logs use it for "no command".
pub const RESERVED_COMMAND_ID: u16 = 0xffff;
/// The namespace identifier that means every namespace.
pub const ALL_NAMESPACES: NamespaceId = NamespaceId(0xffff_ffff);
/// The most blocks that the NLB field of a command can name.
pub const MAX_BLOCKS_PER_COMMAND: u32 = 1 << 16;
/// The most ranges of one Dataset Management command.
pub const MAX_DSM_RANGES: usize = 256;

open_enum! {
    /// Opcode of an admin command.
    AdminOpcode(u8) {
        /// Delete I/O Submission Queue.
        DELETE_SUBMISSION_QUEUE = 0x00,
        /// Create I/O Submission Queue.
        CREATE_SUBMISSION_QUEUE = 0x01,
        /// Get Log Page.
        GET_LOG_PAGE = 0x02,
        /// Delete I/O Completion Queue.
        DELETE_COMPLETION_QUEUE = 0x04,
        /// Create I/O Completion Queue.
        CREATE_COMPLETION_QUEUE = 0x05,
        /// Identify.
        IDENTIFY = 0x06,
        /// Abort.
        ABORT = 0x08,
        /// Set Features.
        SET_FEATURES = 0x09,
        /// Get Features.
        GET_FEATURES = 0x0a,
        /// Asynchronous Event Request.
        ASYNC_EVENT_REQUEST = 0x0c,
        /// Namespace Attachment.
        NAMESPACE_ATTACHMENT = 0x15,
        /// Keep Alive.
        KEEP_ALIVE = 0x18,
        /// Doorbell Buffer Config.
        DOORBELL_BUFFER_CONFIG = 0x7c,
        /// Fabrics commands; the type is in the first byte of NSID.
        FABRICS = 0x7f,
        /// Format NVM.
        FORMAT_NVM = 0x80,
    }
}

open_enum! {
    /// Opcode of an NVM command set I/O command.
    IoOpcode(u8) {
        /// Flush.
        FLUSH = 0x00,
        /// Write.
        WRITE = 0x01,
        /// Read.
        READ = 0x02,
        /// Write Uncorrectable.
        WRITE_UNCORRECTABLE = 0x04,
        /// Compare.
        COMPARE = 0x05,
        /// Write Zeroes.
        WRITE_ZEROES = 0x08,
        /// Dataset Management.
        DATASET_MANAGEMENT = 0x09,
        /// Verify.
        VERIFY = 0x0c,
        /// Reservation Register.
        RESERVATION_REGISTER = 0x0d,
        /// Reservation Report.
        RESERVATION_REPORT = 0x0e,
        /// Reservation Acquire.
        RESERVATION_ACQUIRE = 0x11,
        /// Reservation Release.
        RESERVATION_RELEASE = 0x15,
        /// Copy.
        COPY = 0x19,
    }
}

open_enum! {
    /// What an Identify command asks for (CNS).
    IdentifyKind(u8) {
        /// One namespace, NVM command set.
        NAMESPACE = 0x00,
        /// The controller.
        CONTROLLER = 0x01,
        /// Identifiers of active namespaces above NSID.
        ACTIVE_NAMESPACES = 0x02,
        /// Descriptors that identify a namespace.
        NAMESPACE_DESCRIPTORS = 0x03,
        /// One namespace, of the command set in CSI.
        COMMAND_SET_NAMESPACE = 0x05,
        /// The controller, of the command set in CSI.
        COMMAND_SET_CONTROLLER = 0x06,
        /// One namespace, whatever its command set.
        INDEPENDENT_NAMESPACE = 0x08,
        /// Identifiers of allocated namespaces above NSID.
        ALLOCATED_NAMESPACES = 0x10,
        /// The combinations of command sets.
        COMMAND_SETS = 0x1c,
    }
}

open_enum! {
    /// A feature (FID).
    Feature(u8) {
        /// Arbitration.
        ARBITRATION = 0x01,
        /// Power Management.
        POWER_MANAGEMENT = 0x02,
        /// Temperature Threshold.
        TEMPERATURE_THRESHOLD = 0x04,
        /// Error Recovery.
        ERROR_RECOVERY = 0x05,
        /// Volatile Write Cache; bit 0 of the value is WCE.
        VOLATILE_WRITE_CACHE = 0x06,
        /// Number of Queues.
        NUMBER_OF_QUEUES = 0x07,
        /// Interrupt Coalescing.
        INTERRUPT_COALESCING = 0x08,
        /// Interrupt Vector Configuration.
        INTERRUPT_VECTOR = 0x09,
        /// Write Atomicity Normal; bit 0 of the value is DN.
        WRITE_ATOMICITY = 0x0a,
        /// Asynchronous Event Configuration.
        ASYNC_EVENT_CONFIGURATION = 0x0b,
        /// Autonomous Power State Transition.
        AUTONOMOUS_POWER_STATES = 0x0c,
        /// Keep Alive Timer.
        KEEP_ALIVE_TIMER = 0x0f,
        /// Host Behavior Support; byte 0 of the data is ACRE.
        HOST_BEHAVIOR = 0x16,
        /// Host Identifier.
        HOST_IDENTIFIER = 0x81,
        /// Reservation Notification Mask.
        RESERVATION_NOTIFICATION_MASK = 0x82,
        /// Reservation Persistence.
        RESERVATION_PERSISTENCE = 0x83,
    }
}

/// Which I/O queues exist: the value of [`Feature::NUMBER_OF_QUEUES`], asked for and granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueCounts {
    /// I/O submission queues, 1 to 65 536.
    pub submission: u32,
    /// I/O completion queues, 1 to 65 536.
    pub completion: u32,
}

impl QueueCounts {
    /// As dword 11 of Set Features, and dword 0 of its completion.
    #[must_use]
    pub const fn to_dword(self) -> u32 {
        let submission = self.submission.saturating_sub(1) & 0xffff;
        let completion = self.completion.saturating_sub(1) & 0xffff;
        submission | completion << 16
    }

    /// From such a dword.
    #[must_use]
    pub const fn from_dword(dword: u32) -> Self {
        Self { submission: (dword & 0xffff) + 1, completion: (dword >> 16) + 1 }
    }
}

/// Whether a write is durable when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForceUnitAccess {
    /// It may stay in a volatile cache until a flush.
    No,
    /// Its data is on the medium when it completes (FUA).
    Yes,
}

/// Whether Write Zeroes may deallocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deallocate {
    /// The blocks keep their place.
    No,
    /// The controller may deallocate the blocks (DEAC).
    Yes,
}

/// A submission queue entry.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct SubmissionEntry {
    /// Opcode.
    pub opcode: u8,
    /// FUSE in bits 1:0, PSDT in bits 7:6 (0 is PRPs).
    pub flags: u8,
    /// CID.
    pub command_id: U16,
    /// NSID.
    pub namespace: U32,
    /// Command dword 2.
    pub dword2: U32,
    /// Command dword 3.
    pub dword3: U32,
    /// MPTR.
    pub metadata: U64,
    /// PRP entry 1.
    pub prp1: U64,
    /// PRP entry 2.
    pub prp2: U64,
    /// Command dword 10.
    pub dword10: U32,
    /// Command dword 11.
    pub dword11: U32,
    /// Command dword 12.
    pub dword12: U32,
    /// Command dword 13.
    pub dword13: U32,
    /// Command dword 14.
    pub dword14: U32,
    /// Command dword 15.
    pub dword15: U32,
}
assert_layout!(
    SubmissionEntry,
    SUBMISSION_ENTRY_SIZE,
    command_id @ 2,
    namespace @ 4,
    metadata @ 16,
    prp1 @ 24,
    prp2 @ 32,
    dword10 @ 40,
    dword11 @ 44,
    dword15 @ 60,
);

impl SubmissionEntry {
    pub(super) const fn with_opcode(opcode: u8, namespace: NamespaceId) -> Self {
        Self {
            opcode,
            flags: 0,
            command_id: U16::ZERO,
            namespace: U32::new(namespace.get()),
            dword2: U32::ZERO,
            dword3: U32::ZERO,
            metadata: U64::ZERO,
            prp1: U64::ZERO,
            prp2: U64::ZERO,
            dword10: U32::ZERO,
            dword11: U32::ZERO,
            dword12: U32::ZERO,
            dword13: U32::ZERO,
            dword14: U32::ZERO,
            dword15: U32::ZERO,
        }
    }

    /// The entry as it lies in a queue.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; SUBMISSION_ENTRY_SIZE] {
        zerocopy::transmute_ref!(self)
    }

    /// The same with CID set.
    #[must_use]
    pub const fn with_command_id(mut self, id: CommandId) -> Self {
        self.command_id = U16::new(id.get());
        self
    }

    /// The same with both PRP entries set.
    #[must_use]
    pub const fn with_prps(mut self, prp1: Iova, prp2: Iova) -> Self {
        self.prp1 = U64::new(prp1.get());
        self.prp2 = U64::new(prp2.get());
        self
    }

    /// CID.
    #[must_use]
    pub const fn id(&self) -> CommandId {
        CommandId(self.command_id.get())
    }

    /// NSID.
    #[must_use]
    pub const fn nsid(&self) -> NamespaceId {
        NamespaceId(self.namespace.get())
    }

    /// FUSE: 0 for a command of its own.
    #[must_use]
    pub const fn fused(&self) -> u8 {
        self.flags & 3
    }

    /// PSDT: 0 if the data is described by PRPs.
    #[must_use]
    pub const fn data_pointer_kind(&self) -> u8 {
        self.flags >> 6
    }

    const fn set_64(&mut self, value: u64) {
        self.dword10 = U32::new(value as u32);
        self.dword11 = U32::new((value >> 32) as u32);
    }
}

/// A range of a Dataset Management command.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes; hints, 0 for none.
    pub attributes: U32,
    /// Length in blocks; not counted from zero, 0 is an empty range.
    pub blocks: U32,
    /// First block.
    pub start: U64,
}
assert_layout!(DsmRange, 16, blocks @ 4, start @ 8);

impl DsmRange {
    /// The range of `blocks` blocks from `start` with no hints.
    #[must_use]
    pub const fn new(start: Lba, blocks: u32) -> Self {
        Self { attributes: U32::ZERO, blocks: U32::new(blocks), start: U64::new(start.get()) }
    }

    /// First block.
    #[must_use]
    pub const fn lba(&self) -> Lba {
        Lba(self.start.get())
    }

    /// Length.
    #[must_use]
    pub const fn block_count(&self) -> BlockCount {
        BlockCount(self.blocks.get() as u64)
    }
}

const fn queue_dword(queue: QueueId, entries: u16) -> u32 {
    queue.get() as u32 | (entries.saturating_sub(1) as u32) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_and_write_dwords() {
        let write =
            SubmissionEntry::write(NamespaceId(1), Lba(0x1_0000_0002), 8, ForceUnitAccess::Yes)
                .with_command_id(CommandId(0x3005))
                .with_prps(Iova(0x1000), Iova(0x2000));
        let bytes = write.bytes();
        assert_eq!(bytes[..8], [1, 0, 5, 0x30, 1, 0, 0, 0]);
        assert_eq!(bytes[24..26], [0, 0x10]);
        assert_eq!(bytes[33], 0x20);
        assert_eq!(bytes[40..52], [2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0x40]);
        assert_eq!(write.lba(), Lba(0x1_0000_0002));
        assert_eq!(write.block_count(), BlockCount(8));
        assert_eq!(write.force_unit_access(), ForceUnitAccess::Yes);
        let read = SubmissionEntry::read(NamespaceId(1), Lba(0), MAX_BLOCKS_PER_COMMAND);
        assert_eq!(read.block_count(), BlockCount(65_536));
        assert_eq!(read.force_unit_access(), ForceUnitAccess::No);
        let zeroes = SubmissionEntry::write_zeroes(
            NamespaceId(1),
            Lba(9),
            1,
            Deallocate::Yes,
            ForceUnitAccess::No,
        );
        assert_eq!(zeroes.dword12.get(), 1 << 25);
        assert_eq!(zeroes.deallocate(), Deallocate::Yes);
        let discard = SubmissionEntry::deallocate_ranges(NamespaceId(1), 256);
        assert_eq!((discard.dword10.get(), discard.dword11.get()), (255, 4));
        assert_eq!(discard.range_count(), 256);
        assert!(discard.is_deallocate());
    }

    #[test]
    fn admin_dwords() {
        let identify = SubmissionEntry::identify(IdentifyKind::NAMESPACE, NamespaceId(2));
        assert_eq!(identify.identify_kind(), IdentifyKind::NAMESPACE);
        let create =
            SubmissionEntry::create_completion_queue(QueueId(3), 256, Iova(0x1_0000), Some(2));
        assert_eq!(create.dword10.get(), 0x00ff_0003);
        assert_eq!(create.dword11.get(), 0x0002_0003);
        assert_eq!((create.queue_id(), create.queue_entries()), (QueueId(3), 256));
        assert_eq!(create.interrupt_vector(), Some(2));
        assert!(create.contiguous());
        let polled = SubmissionEntry::create_completion_queue(QueueId(1), 2, Iova(0), None);
        assert_eq!(polled.interrupt_vector(), None);
        let create = SubmissionEntry::create_submission_queue(QueueId(3), 64, Iova(0), QueueId(4));
        assert_eq!(create.dword11.get(), 0x0004_0001);
        assert_eq!(create.completion_queue(), QueueId(4));
        let log =
            SubmissionEntry::get_log_page(super::super::log::LogPage::SMART, ALL_NAMESPACES, 512);
        assert_eq!(log.dword10.get(), 127 << 16 | 2);
        assert_eq!(log.log_length(), 512);
        let abort = SubmissionEntry::abort(QueueId(1), CommandId(0x1002));
        assert_eq!(abort.abort_target(), (QueueId(1), CommandId(0x1002)));
        let counts = QueueCounts { submission: 4, completion: 5 };
        assert_eq!(counts.to_dword(), 0x0004_0003);
        assert_eq!(QueueCounts::from_dword(0x0004_0003), counts);
        let set = SubmissionEntry::set_features(Feature::NUMBER_OF_QUEUES, counts.to_dword());
        assert_eq!((set.feature(), set.feature_value()), (Feature::NUMBER_OF_QUEUES, 0x0004_0003));
    }

    #[test]
    fn unknown_opcodes_have_a_text() {
        assert_eq!(format!("{:?}", IoOpcode(0x99)), "IoOpcode(0x99)");
        assert_eq!(format!("{:?}", IoOpcode::FLUSH), "FLUSH");
    }
}
