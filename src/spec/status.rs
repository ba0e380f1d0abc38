//! Command status (Base 4.2.3): type, code, and the flags that say what a host may do about it.

use std::fmt;

/// Status Code Type (SCT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatusType {
    /// Of any command.
    Generic,
    /// Of this command.
    CommandSpecific,
    /// Of the medium or the data.
    Media,
    /// Of the path to the namespace.
    Path,
    /// A reserved type.
    Reserved,
    /// Of the vendor.
    Vendor,
}

/// Type and code of a status: SCT in the upper byte, SC in the lower.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatusCode(pub u16);

macro_rules! codes {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl StatusCode {
            $(#[doc = concat!("\"", $text, "\"")] pub const $name: Self = Self($value);)*

            /// The specification's name for this code, if we know it.
            #[must_use]
            pub const fn text(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    SUCCESS = 0x000, "Successful Completion";
    INVALID_OPCODE = 0x001, "Invalid Command Opcode";
    INVALID_FIELD = 0x002, "Invalid Field in Command";
    COMMAND_ID_CONFLICT = 0x003, "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0x004, "Data Transfer Error";
    ABORTED_POWER_LOSS = 0x005, "Commands Aborted due to Power Loss Notification";
    INTERNAL_ERROR = 0x006, "Internal Error";
    ABORT_REQUESTED = 0x007, "Command Abort Requested";
    ABORTED_QUEUE_DELETED = 0x008, "Command Aborted due to SQ Deletion";
    ABORTED_FAILED_FUSED = 0x009, "Command Aborted due to Failed Fused Command";
    ABORTED_MISSING_FUSED = 0x00a, "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE = 0x00b, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = 0x00c, "Command Sequence Error";
    INVALID_SGL_SEGMENT = 0x00d, "Invalid SGL Segment Descriptor";
    INVALID_SGL_COUNT = 0x00e, "Invalid Number of SGL Descriptors";
    DATA_SGL_LENGTH_INVALID = 0x00f, "Data SGL Length Invalid";
    METADATA_SGL_LENGTH_INVALID = 0x010, "Metadata SGL Length Invalid";
    SGL_DESCRIPTOR_TYPE_INVALID = 0x011, "SGL Descriptor Type Invalid";
    INVALID_CMB_USE = 0x012, "Invalid Use of Controller Memory Buffer";
    INVALID_PRP_OFFSET = 0x013, "PRP Offset Invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = 0x014, "Atomic Write Unit Exceeded";
    OPERATION_DENIED = 0x015, "Operation Denied";
    SGL_OFFSET_INVALID = 0x016, "SGL Offset Invalid";
    HOST_ID_INCONSISTENT_FORMAT = 0x018, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_EXPIRED = 0x019, "Keep Alive Timer Expired";
    KEEP_ALIVE_INVALID = 0x01a, "Keep Alive Timeout Invalid";
    ABORTED_PREEMPT = 0x01b, "Command Aborted due to Preempt and Abort";
    SANITIZE_FAILED = 0x01c, "Sanitize Failed";
    SANITIZE_IN_PROGRESS = 0x01d, "Sanitize In Progress";
    SGL_GRANULARITY_INVALID = 0x01e, "SGL Data Block Granularity Invalid";
    NOT_SUPPORTED_IN_CMB = 0x01f, "Command Not Supported for Queue in CMB";
    NAMESPACE_WRITE_PROTECTED = 0x020, "Namespace is Write Protected";
    COMMAND_INTERRUPTED = 0x021, "Command Interrupted";
    TRANSIENT_TRANSPORT_ERROR = 0x022, "Transient Transport Error";
    PROHIBITED_BY_LOCKDOWN = 0x023, "Command Prohibited by Command and Feature Lockdown";
    ADMIN_MEDIA_NOT_READY = 0x024, "Admin Command Media Not Ready";
    LBA_OUT_OF_RANGE = 0x080, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0x081, "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0x082, "Namespace Not Ready";
    RESERVATION_CONFLICT = 0x083, "Reservation Conflict";
    FORMAT_IN_PROGRESS = 0x084, "Format In Progress";

    COMPLETION_QUEUE_INVALID = 0x100, "Completion Queue Invalid";
    INVALID_QUEUE_ID = 0x101, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 0x102, "Invalid Queue Size";
    ABORT_LIMIT_EXCEEDED = 0x103, "Abort Command Limit Exceeded";
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x105, "Asynchronous Event Request Limit Exceeded";
    INVALID_FIRMWARE_SLOT = 0x106, "Invalid Firmware Slot";
    INVALID_FIRMWARE_IMAGE = 0x107, "Invalid Firmware Image";
    INVALID_INTERRUPT_VECTOR = 0x108, "Invalid Interrupt Vector";
    INVALID_LOG_PAGE = 0x109, "Invalid Log Page";
    INVALID_FORMAT = 0x10a, "Invalid Format";
    INVALID_QUEUE_DELETION = 0x10c, "Invalid Queue Deletion";
    FEATURE_NOT_SAVEABLE = 0x10d, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 0x10e, "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10f, "Feature Not Namespace Specific";
    NAMESPACE_ID_UNAVAILABLE = 0x116, "Namespace Identifier Unavailable";
    INVALID_CONTROLLER_ID = 0x11f, "Invalid Controller Identifier";
    CONFLICTING_ATTRIBUTES = 0x180, "Conflicting Attributes";
    INVALID_PROTECTION_INFO = 0x181, "Invalid Protection Information";
    WRITE_TO_READ_ONLY_RANGE = 0x182, "Attempted Write to Read Only Range";
    COMMAND_SIZE_LIMIT_EXCEEDED = 0x183, "Command Size Limits Exceeded";

    WRITE_FAULT = 0x280, "Write Fault";
    UNRECOVERED_READ_ERROR = 0x281, "Unrecovered Read Error";
    GUARD_CHECK_ERROR = 0x282, "End-to-end Guard Check Error";
    APPLICATION_TAG_CHECK_ERROR = 0x283, "End-to-end Application Tag Check Error";
    REFERENCE_TAG_CHECK_ERROR = 0x284, "End-to-end Reference Tag Check Error";
    COMPARE_FAILURE = 0x285, "Compare Failure";
    ACCESS_DENIED = 0x286, "Access Denied";
    DEALLOCATED_BLOCK = 0x287, "Deallocated or Unwritten Logical Block";

    INTERNAL_PATH_ERROR = 0x300, "Internal Path Error";
    ANA_PERSISTENT_LOSS = 0x301, "Asymmetric Access Persistent Loss";
    ANA_INACCESSIBLE = 0x302, "Asymmetric Access Inaccessible";
    ANA_TRANSITION = 0x303, "Asymmetric Access Transition";
    CONTROLLER_PATHING_ERROR = 0x360, "Controller Pathing Error";
    HOST_PATHING_ERROR = 0x370, "Host Pathing Error";
    ABORTED_BY_HOST = 0x371, "Command Aborted By Host";
}

/// Codes of Fabrics commands, which share their numbers with codes of I/O commands.
impl StatusCode {
    /// "Connect Incompatible Format"
    pub const CONNECT_INCOMPATIBLE_FORMAT: Self = Self(0x180);
    /// "Connect Controller Busy"
    pub const CONNECT_CONTROLLER_BUSY: Self = Self(0x181);
    /// "Connect Invalid Parameters"
    pub const CONNECT_INVALID_PARAMETERS: Self = Self(0x182);
    /// "Connect Restart Discovery"
    pub const CONNECT_RESTART_DISCOVERY: Self = Self(0x183);
    /// "Connect Invalid Host"
    pub const CONNECT_INVALID_HOST: Self = Self(0x184);
    /// "Discover Restart"
    pub const DISCOVER_RESTART: Self = Self(0x190);
}

impl StatusCode {
    /// SCT.
    #[must_use]
    pub const fn status_type(self) -> StatusType {
        match self.0 >> 8 {
            0 => StatusType::Generic,
            1 => StatusType::CommandSpecific,
            2 => StatusType::Media,
            3 => StatusType::Path,
            7 => StatusType::Vendor,
            _ => StatusType::Reserved,
        }
    }
}

impl fmt::Debug for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (status_type, code) = (self.0 >> 8, self.0 & 0xff);
        match self.text() {
            Some(text) => write!(f, "{text} ({status_type:x}/{code:02x})"),
            None => write!(f, "status {status_type:x}/{code:02x}"),
        }
    }
}

/// The 15 bits of status that end a completion queue entry, without the phase tag: SC in 7:0,
/// SCT in 10:8, CRD in 12:11, M in 13, DNR in 14.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Status(u16);

impl Status {
    /// Success.
    pub const SUCCESS: Self = Self(0);
    const MORE: u16 = 1 << 13;
    const DNR: u16 = 1 << 14;

    /// The status with code `code` and no flags.
    #[must_use]
    pub const fn of(code: StatusCode) -> Self {
        Self(code.0 & 0x7ff)
    }

    /// The status of 15 bits from the wire; bit 15 is ignored.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & 0x7fff)
    }

    /// The 15 bits for the wire.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Type and code.
    #[must_use]
    pub const fn code(self) -> StatusCode {
        StatusCode(self.0 & 0x7ff)
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// Whether type and code are `code`, whatever the flags.
    #[must_use]
    pub const fn is(self, code: StatusCode) -> bool {
        self.0 & 0x7ff == code.0
    }

    /// DNR: the same command will fail again.
    #[must_use]
    pub const fn is_final(self) -> bool {
        self.0 & Self::DNR != 0
    }

    /// M: the error information log has more.
    #[must_use]
    pub const fn has_more(self) -> bool {
        self.0 & Self::MORE != 0
    }

    /// CRD: which of the controller's retry delays to wait, 1 to 3; 0 is none.
    #[must_use]
    pub const fn retry_delay(self) -> u8 {
        (self.0 >> 11 & 3) as u8
    }

    /// The same with DNR set.
    #[must_use]
    pub const fn do_not_retry(self) -> Self {
        Self(self.0 | Self::DNR)
    }

    /// The same with M set.
    #[must_use]
    pub const fn with_more(self) -> Self {
        Self(self.0 | Self::MORE)
    }

    /// The same with CRD set to `delay` (0 to 3).
    #[must_use]
    pub const fn with_retry_delay(self, delay: u8) -> Self {
        Self(self.0 & !(3 << 11) | (delay as u16 & 3) << 11)
    }
}

impl From<StatusCode> for Status {
    fn from(code: StatusCode) -> Self {
        Self::of(code)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.code(), f)?;
        if self.is_final() {
            f.write_str(", do not retry")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let status = Status::of(StatusCode::UNRECOVERED_READ_ERROR)
            .do_not_retry()
            .with_more()
            .with_retry_delay(2);
        assert_eq!(status.bits(), 0x7281);
        assert_eq!(status.code().status_type(), StatusType::Media);
        assert_eq!(status.retry_delay(), 2);
        assert!(status.is_final() && status.has_more() && !status.is_success());
        assert!(status.is(StatusCode::UNRECOVERED_READ_ERROR));
        assert!(Status::SUCCESS.is_success());
    }

    #[test]
    fn every_bit_pattern_has_a_text() {
        for bits in 0..=u16::MAX {
            assert!(!Status::from_bits(bits).to_string().is_empty());
        }
        let full = Status::of(StatusCode::CAPACITY_EXCEEDED).do_not_retry();
        assert_eq!(full.to_string(), "Capacity Exceeded (0/81), do not retry");
        assert_eq!(StatusCode(0x2ff).to_string(), "status 2/ff");
    }
}
