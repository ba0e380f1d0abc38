//! Log pages (Base 5.1.12) and asynchronous events (Base 5.1.2).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{assert_layout, open_enum};
use crate::units::NamespaceId;

open_enum! {
    /// A log page (LID).
    LogPage(u8) {
        /// Supported Log Pages.
        SUPPORTED = 0x00,
        /// Error Information.
        ERROR = 0x01,
        /// SMART / Health Information.
        SMART = 0x02,
        /// Firmware Slot Information.
        FIRMWARE = 0x03,
        /// Changed Attached Namespace List.
        CHANGED_NAMESPACES = 0x04,
        /// Commands Supported and Effects.
        COMMAND_EFFECTS = 0x05,
        /// Asymmetric Namespace Access.
        ANA = 0x0c,
        /// Discovery.
        DISCOVERY = 0x70,
        /// Reservation Notification.
        RESERVATION_NOTIFICATION = 0x80,
    }
}

/// An entry of the Error Information log.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ErrorLogEntry {
    /// Counts errors since the controller was made; 0 marks an unused entry.
    pub error_count: U64,
    /// The queue of the command, or 0xffff.
    pub submission_queue: U16,
    /// The command, or 0xffff.
    pub command_id: U16,
    /// Status of the command, with the phase tag in bit 0.
    pub status: U16,
    /// Which byte and bit of the command is wrong.
    pub parameter_location: U16,
    /// First block of the error.
    pub lba: U64,
    /// NSID of the command.
    pub namespace: U32,
    /// The vendor's log page with more, or 0.
    pub vendor_log: u8,
    /// Transport type.
    pub transport: u8,
    /// Command set of the command.
    pub command_set: u8,
    /// Opcode of the command.
    pub opcode: u8,
    /// Command specific.
    pub command_specific: U64,
    /// Transport specific.
    pub transport_specific: U16,
    /// Reserved.
    pub reserved: [u8; 22],
}
assert_layout!(
    ErrorLogEntry,
    64,
    submission_queue @ 8,
    status @ 12,
    lba @ 16,
    namespace @ 24,
    command_specific @ 32,
);

/// SMART / Health Information.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    /// Critical warnings, `WARNING_*`.
    pub critical_warning: u8,
    /// Composite temperature in kelvins.
    pub temperature: U16,
    /// Spare that is left, in percent.
    pub available_spare: u8,
    /// The spare below which it is critical, in percent.
    pub spare_threshold: u8,
    /// Estimate of the life used up, in percent, up to 255.
    pub percentage_used: u8,
    /// Summary of endurance groups.
    pub endurance_warning: u8,
    /// Reserved.
    pub reserved0: [u8; 25],
    /// Data units (of 512 000 bytes) read, 128 bits.
    pub data_units_read: [U64; 2],
    /// Data units (of 512 000 bytes) written, 128 bits.
    pub data_units_written: [U64; 2],
    /// Read commands, 128 bits.
    pub host_reads: [U64; 2],
    /// Write commands, 128 bits.
    pub host_writes: [U64; 2],
    /// Minutes busy, 128 bits.
    pub busy_minutes: [U64; 2],
    /// Power cycles, 128 bits.
    pub power_cycles: [U64; 2],
    /// Hours powered on, 128 bits.
    pub power_on_hours: [U64; 2],
    /// Losses of power without a shutdown notification, 128 bits.
    pub unsafe_shutdowns: [U64; 2],
    /// Unrecovered data integrity errors, 128 bits.
    pub media_errors: [U64; 2],
    /// Entries ever made in the error log, 128 bits.
    pub error_log_entries: [U64; 2],
    /// Minutes above the warning temperature.
    pub warning_minutes: U32,
    /// Minutes above the critical temperature.
    pub critical_minutes: U32,
    /// Temperature sensors in kelvins.
    pub sensors: [U16; 8],
    /// Thermal management counters, and reserved.
    pub reserved1: [u8; 296],
}
assert_layout!(
    SmartLog,
    512,
    temperature @ 1,
    available_spare @ 3,
    percentage_used @ 5,
    data_units_read @ 32,
    host_writes @ 80,
    unsafe_shutdowns @ 144,
    media_errors @ 160,
    warning_minutes @ 192,
    sensors @ 200,
);

impl SmartLog {
    /// The spare is below its threshold.
    pub const WARNING_SPARE: u8 = 1;
    /// A temperature threshold was crossed.
    pub const WARNING_TEMPERATURE: u8 = 1 << 1;
    /// Reliability is degraded.
    pub const WARNING_RELIABILITY: u8 = 1 << 2;
    /// The medium is read-only.
    pub const WARNING_READ_ONLY: u8 = 1 << 3;
    /// The backup of the volatile memory failed: cached writes may be lost at a power cut even
    /// where there is said to be no volatile cache.
    pub const WARNING_BACKUP_FAILED: u8 = 1 << 4;
}

/// Namespaces in a list of identifiers: 1024 of them in ascending order, 0 ends it.
pub const NAMESPACE_LIST_ENTRIES: usize = 1024;
/// The first identifier of a Changed Namespace List that overflowed.
pub const NAMESPACE_LIST_OVERFLOW: u32 = u32::MAX;

/// A list of namespace identifiers: Identify with CNS 2 or 10h, and the Changed Attached
/// Namespace List log page.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NamespaceList {
    /// The identifiers; the first 0 ends the list.
    pub entries: [U32; NAMESPACE_LIST_ENTRIES],
}
assert_layout!(NamespaceList, 4096);

impl NamespaceList {
    /// The identifiers in the order of the list.
    pub fn iter(&self) -> impl Iterator<Item = NamespaceId> {
        let ids = self.entries.iter().map(|entry| NamespaceId(entry.get()));
        ids.take_while(|id| id.get() != 0)
    }
}

open_enum! {
    /// Type of an asynchronous event.
    AsyncEventType(u8) {
        /// Error status.
        ERROR = 0,
        /// SMART / health status.
        SMART = 1,
        /// Notice.
        NOTICE = 2,
        /// Immediate.
        IMMEDIATE = 3,
        /// I/O command set specific.
        IO_COMMAND_SET = 6,
        /// Vendor specific.
        VENDOR = 7,
    }
}

/// What the completion of an Asynchronous Event Request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// Type.
    pub event_type: AsyncEventType,
    /// What happened; its meaning depends on the type.
    pub information: u8,
    /// The page to read; reading it clears the event.
    pub log_page: LogPage,
}

impl AsyncEvent {
    /// Of [`AsyncEventType::ERROR`]: a doorbell that does not exist was written.
    pub const INVALID_DOORBELL_REGISTER: u8 = 0;
    /// Of [`AsyncEventType::ERROR`]: a doorbell was written with an invalid value.
    pub const INVALID_DOORBELL_VALUE: u8 = 1;
    /// Of [`AsyncEventType::NOTICE`]: an attached namespace changed.
    pub const NAMESPACE_ATTRIBUTES_CHANGED: u8 = 0;
    /// Of [`AsyncEventType::NOTICE`]: firmware activation starts.
    pub const FIRMWARE_ACTIVATION: u8 = 1;

    /// From dword 0 of the completion.
    #[must_use]
    pub const fn from_dword(dword: u32) -> Self {
        Self {
            event_type: AsyncEventType((dword & 7) as u8),
            information: (dword >> 8) as u8,
            log_page: LogPage((dword >> 16) as u8),
        }
    }

    /// As dword 0 of the completion.
    #[must_use]
    pub const fn to_dword(self) -> u32 {
        (self.event_type.0 & 7) as u32
            | (self.information as u32) << 8
            | (self.log_page.0 as u32) << 16
    }
}

/// Value of the Asynchronous Event Configuration feature: all SMART warnings.
pub const NOTIFY_SMART: u32 = 0xff;
/// Value of the Asynchronous Event Configuration feature: attached namespaces that change.
pub const NOTIFY_NAMESPACE_ATTRIBUTES: u32 = 1 << 8;
/// Value of the Asynchronous Event Configuration feature: firmware activation.
pub const NOTIFY_FIRMWARE_ACTIVATION: u32 = 1 << 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_lists() {
        let event = AsyncEvent {
            event_type: AsyncEventType::NOTICE,
            information: AsyncEvent::NAMESPACE_ATTRIBUTES_CHANGED,
            log_page: LogPage::CHANGED_NAMESPACES,
        };
        assert_eq!(event.to_dword(), 0x0004_0002);
        assert_eq!(AsyncEvent::from_dword(0x0004_0002), event);
        let mut bytes = [0; 4096];
        bytes[0] = 1;
        bytes[4] = 7;
        bytes[12] = 9;
        let list = NamespaceList::read_from_bytes(&bytes).unwrap();
        assert_eq!(list.iter().collect::<Vec<_>>(), [NamespaceId(1), NamespaceId(7)]);
    }
}
