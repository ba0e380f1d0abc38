//! Reservations on the wire: host identifiers, the four commands and their data, the report and
//! the notification log page (Base, chapters "Reservation Acquire" to "Reservation Report" of the I/O
//! commands, "Reservations" of the extended capabilities).

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::command::{IoOpcode, SubmissionEntry};
use super::{assert_layout, open_enum};
use crate::units::NamespaceId;

/// The identity of a host (HOSTID): 16 bytes that a host gives in Connect or by Set Features, and
/// that all its controllers share. Never zero, which means "no identity" and cannot reserve.
///
/// The order is that of the bytes, so that 64-bit identifiers lie in the first eight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId([u8; 16]);

impl HostId {
    /// The identifier with these bytes, or `None` for all zeros.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Option<Self> {
        match u128::from_le_bytes(bytes) {
            0 => None,
            _ => Some(Self(bytes)),
        }
    }

    /// The bytes as they are on the wire.
    #[must_use]
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// The bytes read as a UUID in network order, which is how people and SPDK's files write them.
    #[must_use]
    pub const fn uuid(self) -> uuid::Uuid {
        uuid::Uuid::from_bytes(self.0)
    }

    /// The identifier as 64 bits, if it has no more.
    #[must_use]
    pub const fn as_64_bits(self) -> Option<u64> {
        let value = u128::from_le_bytes(self.0);
        if value >> 64 == 0 { Some(value as u64) } else { None }
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.uuid(), f)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The types of a reservation (RTYPE). In JSON and on the command line a type is its
/// [name](ReservationType::name).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ReservationType {
    /// Only the holder writes.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 2,
    /// Only registrants write; one of them is the holder.
    WriteExclusiveRegistrantsOnly = 3,
    /// Only registrants read and write; one of them is the holder.
    ExclusiveAccessRegistrantsOnly = 4,
    /// Only registrants write; each of them is a holder.
    WriteExclusiveAllRegistrants = 5,
    /// Only registrants read and write; each of them is a holder.
    ExclusiveAccessAllRegistrants = 6,
}

impl ReservationType {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// Its name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WriteExclusive => "write-exclusive",
            Self::ExclusiveAccess => "exclusive-access",
            Self::WriteExclusiveRegistrantsOnly => "write-exclusive-registrants-only",
            Self::ExclusiveAccessRegistrantsOnly => "exclusive-access-registrants-only",
            Self::WriteExclusiveAllRegistrants => "write-exclusive-all-registrants",
            Self::ExclusiveAccessAllRegistrants => "exclusive-access-all-registrants",
        }
    }

    /// The type of RTYPE `value`; `None` for 0 and reserved values.
    #[must_use]
    pub fn from_wire(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.wire() == value)
    }

    /// RTYPE.
    #[must_use]
    pub const fn wire(self) -> u8 {
        self as u8
    }

    /// Whether every registrant is a holder.
    #[must_use]
    pub const fn is_all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }

    /// Whether only the one holder may write, not each registrant.
    #[must_use]
    pub const fn is_for_holder_alone(self) -> bool {
        matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Whether those who may not write may not read either.
    #[must_use]
    pub const fn is_exclusive_access(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess
                | Self::ExclusiveAccessRegistrantsOnly
                | Self::ExclusiveAccessAllRegistrants
        )
    }
}

open_enum! {
    /// What a Reservation Register does (RREGA).
    RegisterAction(u8) {
        /// Register a key.
        REGISTER = 0,
        /// Unregister.
        UNREGISTER = 1,
        /// Replace the key.
        REPLACE = 2,
    }
}

open_enum! {
    /// What a Reservation Acquire does (RACQA).
    AcquireAction(u8) {
        /// Acquire a reservation.
        ACQUIRE = 0,
        /// Preempt a registration or the reservation.
        PREEMPT = 1,
        /// The same, and abort what the preempted hosts have outstanding.
        PREEMPT_AND_ABORT = 2,
    }
}

open_enum! {
    /// What a Reservation Release does (RRELA).
    ReleaseAction(u8) {
        /// Release the reservation.
        RELEASE = 0,
        /// Remove the reservation and every registration.
        CLEAR = 1,
    }
}

open_enum! {
    /// What a Reservation Register does to the Persist Through Power Loss state (CPTPL).
    PersistenceChange(u8) {
        /// No change.
        NONE = 0,
        /// Reservations and registrations are cleared by a power cycle.
        CLEAR = 2,
        /// Reservations and registrations persist.
        PERSIST = 3,
    }
}

/// Dword 10 of the reservation commands: ignore the existing key (IEKEY).
const IGNORE_EXISTING_KEY: u32 = 1 << 3;

impl SubmissionEntry {
    const fn reservation(opcode: IoOpcode, namespace: NamespaceId, dword10: u32) -> Self {
        let mut entry = Self::with_opcode(opcode.0, namespace);
        entry.dword10 = U32::new(dword10);
        entry
    }

    /// Reservation Register; the data is a [`RegisterData`].
    #[must_use]
    pub const fn reservation_register(
        namespace: NamespaceId,
        action: RegisterAction,
        persistence: PersistenceChange,
    ) -> Self {
        let dword10 = (action.0 & 7) as u32 | (persistence.0 as u32) << 30;
        Self::reservation(IoOpcode::RESERVATION_REGISTER, namespace, dword10)
    }

    /// Reservation Acquire of `reservation_type` (RTYPE); the data is an [`AcquireData`].
    #[must_use]
    pub const fn reservation_acquire(
        namespace: NamespaceId,
        action: AcquireAction,
        reservation_type: u8,
    ) -> Self {
        let dword10 = (action.0 & 7) as u32 | (reservation_type as u32) << 8;
        Self::reservation(IoOpcode::RESERVATION_ACQUIRE, namespace, dword10)
    }

    /// Reservation Release of `reservation_type` (RTYPE); the data is a [`ReleaseData`].
    #[must_use]
    pub const fn reservation_release(
        namespace: NamespaceId,
        action: ReleaseAction,
        reservation_type: u8,
    ) -> Self {
        let dword10 = (action.0 & 7) as u32 | (reservation_type as u32) << 8;
        Self::reservation(IoOpcode::RESERVATION_RELEASE, namespace, dword10)
    }

    /// Reservation Report of up to `dwords` dwords (at least 1), in the extended structure.
    #[must_use]
    pub const fn reservation_report(namespace: NamespaceId, dwords: u32) -> Self {
        let mut entry =
            Self::reservation(IoOpcode::RESERVATION_REPORT, namespace, dwords.saturating_sub(1));
        entry.dword11 = U32::new(1);
        entry
    }

    /// The same with IEKEY set.
    #[must_use]
    pub const fn ignoring_existing_key(mut self) -> Self {
        self.dword10 = U32::new(self.dword10.get() | IGNORE_EXISTING_KEY);
        self
    }

    /// RREGA of a Reservation Register.
    #[must_use]
    pub const fn register_action(&self) -> RegisterAction {
        RegisterAction((self.dword10.get() & 7) as u8)
    }

    /// RACQA of a Reservation Acquire.
    #[must_use]
    pub const fn acquire_action(&self) -> AcquireAction {
        AcquireAction((self.dword10.get() & 7) as u8)
    }

    /// RRELA of a Reservation Release.
    #[must_use]
    pub const fn release_action(&self) -> ReleaseAction {
        ReleaseAction((self.dword10.get() & 7) as u8)
    }

    /// IEKEY of a Reservation Register, Acquire or Release.
    #[must_use]
    pub const fn ignores_existing_key(&self) -> bool {
        self.dword10.get() & IGNORE_EXISTING_KEY != 0
    }

    /// CPTPL of a Reservation Register.
    #[must_use]
    pub const fn persistence_change(&self) -> PersistenceChange {
        PersistenceChange((self.dword10.get() >> 30) as u8)
    }

    /// RTYPE of a Reservation Acquire or Release.
    #[must_use]
    pub const fn reservation_type(&self) -> u8 {
        (self.dword10.get() >> 8) as u8
    }

    /// Length of the data that a Reservation Report asks for, in bytes; up to 16 GiB.
    #[must_use]
    pub const fn report_length(&self) -> u64 {
        (self.dword10.get() as u64 + 1) * 4
    }

    /// EDS of a Reservation Report: the extended structure is wanted.
    #[must_use]
    pub const fn wants_extended_report(&self) -> bool {
        self.dword11.get() & 1 != 0
    }
}

/// Data of Reservation Register.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegisterData {
    /// CRKEY.
    pub current_key: U64,
    /// NRKEY.
    pub new_key: U64,
}
assert_layout!(RegisterData, 16, new_key @ 8);

/// Data of Reservation Acquire.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AcquireData {
    /// CRKEY.
    pub current_key: U64,
    /// PRKEY.
    pub preempt_key: U64,
}
assert_layout!(AcquireData, 16, preempt_key @ 8);

/// Data of Reservation Release.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReleaseData {
    /// CRKEY.
    pub current_key: U64,
}
assert_layout!(ReleaseData, 8);

/// Start of the Reservation Status data structure, followed by [`RegisteredController`]s.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReportHeader {
    /// GEN.
    pub generation: U32,
    /// RTYPE; 0 if there is no reservation.
    pub reservation_type: u8,
    /// REGCTL: how many entries there are, also where fewer were asked for.
    pub registered_controllers: U16,
    /// Reserved.
    pub reserved7: [u8; 2],
    /// PTPLS: 1 if reservations persist through power loss.
    pub persistence: u8,
    /// Reserved.
    pub reserved10: [u8; 14],
}
assert_layout!(
    ReportHeader,
    24,
    reservation_type @ 4,
    registered_controllers @ 5,
    persistence @ 9,
);

/// Start of the extended Reservation Status data structure, followed by
/// [`RegisteredControllerExtended`]s.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReportHeaderExtended {
    /// What the other structure has.
    pub header: ReportHeader,
    /// Reserved.
    pub reserved24: [u8; 40],
}
assert_layout!(ReportHeaderExtended, 64, reserved24 @ 24);

/// RCSTS: the host of the entry holds the reservation.
pub const HOLDS_RESERVATION: u8 = 1;
/// CNTLID of an entry whose host has no controller.
pub const NO_CONTROLLER: u16 = 0xffff;

/// An entry of a report.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegisteredController {
    /// CNTLID.
    pub controller: U16,
    /// RCSTS, `HOLDS_RESERVATION` or 0.
    pub status: u8,
    /// Reserved.
    pub reserved3: [u8; 5],
    /// HOSTID of 64 bits.
    pub host: U64,
    /// RKEY.
    pub key: U64,
}
assert_layout!(RegisteredController, 24, status @ 2, host @ 8, key @ 16);

/// An entry of an extended report.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegisteredControllerExtended {
    /// CNTLID.
    pub controller: U16,
    /// RCSTS, `HOLDS_RESERVATION` or 0.
    pub status: u8,
    /// Reserved.
    pub reserved3: [u8; 5],
    /// RKEY.
    pub key: U64,
    /// HOSTID of 128 bits.
    pub host: [u8; 16],
    /// Reserved.
    pub reserved32: [u8; 32],
}
assert_layout!(RegisteredControllerExtended, 64, status @ 2, key @ 8, host @ 16);

open_enum! {
    /// What a notification tells.
    ReservationEvent(u8) {
        /// None: the log page is empty.
        EMPTY = 0,
        /// The host's registration was preempted.
        REGISTRATION_PREEMPTED = 1,
        /// The reservation was released.
        RESERVATION_RELEASED = 2,
        /// The reservation, and with it the host's registration, was cleared.
        RESERVATION_PREEMPTED = 3,
    }
}

/// The Reservation Notification log page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NotificationPage {
    /// Log page count: counts notifications from 1; 0 marks an empty page.
    pub count: U64,
    /// A [`ReservationEvent`].
    pub event: u8,
    /// How many more pages there are to read, at most 255.
    pub available: u8,
    /// Reserved.
    pub reserved10: [u8; 2],
    /// NSID.
    pub namespace: U32,
    /// Reserved.
    pub reserved16: [u8; 48],
}
assert_layout!(NotificationPage, 64, event @ 8, available @ 9, namespace @ 12);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dword_10_is_where_the_specification_has_it() {
        let nsid = NamespaceId(3);
        let register = SubmissionEntry::reservation_register(
            nsid,
            RegisterAction::REPLACE,
            PersistenceChange::PERSIST,
        )
        .ignoring_existing_key();
        assert_eq!((register.opcode, register.dword10.get()), (0x0d, 0xc000_000a));
        assert_eq!(register.register_action(), RegisterAction::REPLACE);
        assert_eq!(register.persistence_change(), PersistenceChange::PERSIST);
        assert!(register.ignores_existing_key());
        let acquire =
            SubmissionEntry::reservation_acquire(nsid, AcquireAction::PREEMPT_AND_ABORT, 6);
        assert_eq!((acquire.opcode, acquire.dword10.get()), (0x11, 0x0602));
        assert_eq!(acquire.acquire_action(), AcquireAction::PREEMPT_AND_ABORT);
        assert_eq!(acquire.reservation_type(), 6);
        let release = SubmissionEntry::reservation_release(nsid, ReleaseAction::CLEAR, 0);
        assert_eq!((release.opcode, release.dword10.get()), (0x15, 1));
        assert_eq!(release.release_action(), ReleaseAction::CLEAR);
        let report = SubmissionEntry::reservation_report(nsid, 32);
        assert_eq!((report.opcode, report.dword10.get(), report.dword11.get()), (0x0e, 31, 1));
        assert_eq!(report.report_length(), 128);
        assert!(report.wants_extended_report());
    }

    #[test]
    fn types_have_their_numbers_and_names() {
        for (wire, kind) in (1_u8..).zip(ReservationType::ALL) {
            assert_eq!((kind.wire(), ReservationType::from_wire(wire)), (wire, Some(kind)));
            let name = serde_json::to_value(kind).unwrap();
            assert_eq!(name, kind.name());
            assert_eq!(serde_json::from_value::<ReservationType>(name).unwrap(), kind);
        }
        assert_eq!([0, 7, 255].map(ReservationType::from_wire), [None; 3]);
    }

    #[test]
    fn host_identifiers() {
        assert_eq!(HostId::new([0; 16]), None);
        let text = "0f97cd74-8c80-4142-990f-65c4f0392420";
        let host = HostId::new(*uuid::Uuid::parse_str(text).unwrap().as_bytes()).unwrap();
        assert_eq!(host.to_string(), text);
        assert_eq!(host.bytes()[..2], [0x0f, 0x97]);
        assert_eq!(host.as_64_bits(), None);
        let short = HostId::new(7_u128.to_le_bytes()).unwrap();
        assert_eq!(short.as_64_bits(), Some(7));
    }
}
