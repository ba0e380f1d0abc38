//! NVMe over Fabrics: the commands of opcode 7Fh, SGL descriptors in capsules, and the Discovery
//! log page (Base 3.3.3.2, 5.1.12.3.1, 6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::command::{AdminOpcode, SubmissionEntry};
use super::{assert_layout, open_enum};
use crate::units::{NamespaceId, QueueId};

/// The NQN under which every discovery controller can be reached.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// The longest NQN, without its NUL.
pub const MAX_NQN: usize = 223;
/// CNTLID of a Connect that lets the subsystem choose.
pub const DYNAMIC_CONTROLLER: u16 = 0xffff;
/// The largest identifier of a controller.
pub const MAX_CONTROLLER_ID: u16 = 0xffef;

open_enum! {
    /// The type of a Fabrics command (FCTYPE).
    FabricsType(u8) {
        /// Property Set.
        PROPERTY_SET = 0x00,
        /// Connect.
        CONNECT = 0x01,
        /// Property Get.
        PROPERTY_GET = 0x04,
        /// Authentication Send.
        AUTHENTICATION_SEND = 0x05,
        /// Authentication Receive.
        AUTHENTICATION_RECEIVE = 0x06,
        /// Disconnect.
        DISCONNECT = 0x08,
    }
}

open_enum! {
    /// Type and subtype of an SGL descriptor, as they stand in its last byte.
    SglKind(u8) {
        /// Data block at an address.
        DATA_BLOCK = 0x00,
        /// Data block at an offset in the capsule.
        IN_CAPSULE = 0x01,
        /// A segment of descriptors at an address, the last of which names another segment.
        SEGMENT = 0x20,
        /// The last segment.
        LAST_SEGMENT = 0x30,
        /// Transport data block: moved as the transport does it.
        TRANSPORT = 0x5a,
    }
}

/// An SGL descriptor in the DPTR field of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SglDescriptor {
    /// Address, or offset in the capsule.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Type and subtype.
    pub kind: SglKind,
}

impl SglDescriptor {
    /// As it lies in memory.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        let second = self.length as u128 | (self.kind.0 as u128) << 56;
        (self.address as u128 | second << 64).to_le_bytes()
    }

    /// From memory. The reserved bytes count for nothing.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_le_bytes(bytes);
        Self {
            address: both as u64,
            length: (both >> 64) as u32,
            kind: SglKind((both >> 120) as u8),
        }
    }
}

/// CATTR: the host does without SQ flow control.
pub const CONNECT_NO_FLOW_CONTROL: u8 = 1 << 2;
/// FLAGS of a command whose data is described by an SGL in the capsule (PSDT 01b).
pub const FLAGS_SGL: u8 = 1 << 6;

impl SubmissionEntry {
    const fn fabrics(kind: FabricsType) -> Self {
        let mut entry = Self::with_opcode(AdminOpcode::FABRICS.0, NamespaceId(kind.0 as u32));
        entry.flags = FLAGS_SGL;
        entry
    }

    /// FCTYPE of a Fabrics command.
    #[must_use]
    pub const fn fabrics_type(&self) -> FabricsType {
        FabricsType(self.namespace.get() as u8)
    }

    /// The SGL descriptor in DPTR.
    #[must_use]
    pub const fn sgl(&self) -> SglDescriptor {
        let second = self.prp2.get();
        SglDescriptor {
            address: self.prp1.get(),
            length: second as u32,
            kind: SglKind((second >> 56) as u8),
        }
    }

    /// The same with an SGL descriptor in DPTR.
    #[must_use]
    pub const fn with_sgl(mut self, sgl: SglDescriptor) -> Self {
        self.flags = self.flags & 0x3f | FLAGS_SGL;
        self.prp1 = U64::new(sgl.address);
        self.prp2 = U64::new(sgl.length as u64 | (sgl.kind.0 as u64) << 56);
        self
    }

    /// Connect of `queue` with room for `entries` commands (2 to 65 536), and a keep-alive
    /// timeout in milliseconds. The data is a [`ConnectData`].
    #[must_use]
    pub const fn connect(queue: QueueId, entries: u32, attributes: u8, keep_alive: u32) -> Self {
        let mut entry = Self::fabrics(FabricsType::CONNECT);
        entry.dword10 = U32::new((queue.get() as u32) << 16);
        let size = entries.saturating_sub(1) & 0xffff;
        entry.dword11 = U32::new(size | (attributes as u32) << 16);
        entry.dword12 = U32::new(keep_alive);
        entry
    }

    /// Connect: RECFMT.
    #[must_use]
    pub const fn connect_format(&self) -> u16 {
        self.dword10.get() as u16
    }

    /// Connect: QID.
    #[must_use]
    pub const fn connect_queue(&self) -> QueueId {
        QueueId((self.dword10.get() >> 16) as u16)
    }

    /// Connect: how many entries the queue has, 1 to 65 536 (SQSIZE + 1).
    #[must_use]
    pub const fn connect_entries(&self) -> u32 {
        (self.dword11.get() & 0xffff) + 1
    }

    /// Connect: CATTR.
    #[must_use]
    pub const fn connect_attributes(&self) -> u8 {
        (self.dword11.get() >> 16) as u8
    }

    /// Connect: KATO, milliseconds; 0 is none.
    #[must_use]
    pub const fn connect_keep_alive(&self) -> u32 {
        self.dword12.get()
    }

    /// Property Get of the property at `offset`, of 8 bytes if `wide`, else of 4.
    #[must_use]
    pub const fn property_get(offset: u32, wide: bool) -> Self {
        let mut entry = Self::fabrics(FabricsType::PROPERTY_GET);
        entry.dword10 = U32::new(wide as u32);
        entry.dword11 = U32::new(offset);
        entry
    }

    /// Property Set of the property at `offset`, of 8 bytes if `wide`, else of 4.
    #[must_use]
    pub const fn property_set(offset: u32, wide: bool, value: u64) -> Self {
        let mut entry = Self::fabrics(FabricsType::PROPERTY_SET);
        entry.dword10 = U32::new(wide as u32);
        entry.dword11 = U32::new(offset);
        entry.dword12 = U32::new(value as u32);
        entry.dword13 = U32::new((value >> 32) as u32);
        entry
    }

    /// Property Get and Set: size field of ATTRIB, 0 for 4 bytes and 1 for 8.
    #[must_use]
    pub const fn property_size(&self) -> u8 {
        (self.dword10.get() & 7) as u8
    }

    /// Property Get and Set: OFST.
    #[must_use]
    pub const fn property_offset(&self) -> u32 {
        self.dword11.get()
    }

    /// Property Set: VALUE.
    #[must_use]
    pub const fn property_value(&self) -> u64 {
        self.dword12.get() as u64 | (self.dword13.get() as u64) << 32
    }
}

/// Data of Connect.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// HOSTID.
    pub host_id: [u8; 16],
    /// CNTLID; 0xffff for a Connect of the admin queue.
    pub controller_id: U16,
    /// Reserved.
    pub reserved18: [u8; 238],
    /// SUBNQN, ended by NUL.
    pub subsystem_nqn: [u8; 256],
    /// HOSTNQN, ended by NUL.
    pub host_nqn: [u8; 256],
    /// Reserved.
    pub reserved768: [u8; 256],
}
assert_layout!(
    ConnectData,
    1024,
    controller_id @ 16,
    subsystem_nqn @ 256,
    host_nqn @ 512,
);

/// An NQN field up to its NUL; `None` if it has none, is empty, too long or no text.
#[must_use]
pub fn nqn(field: &[u8; 256]) -> Option<&str> {
    let end = field.iter().position(|&byte| byte == 0)?;
    if end == 0 || end > MAX_NQN {
        return None;
    }
    std::str::from_utf8(&field[..end]).ok()
}

/// Fills an NQN field; what does not fit is cut.
pub fn fill_nqn(field: &mut [u8; 256], nqn: &str) {
    field.fill(0);
    for (to, from) in field[..MAX_NQN].iter_mut().zip(nqn.bytes()) {
        *to = from;
    }
}

/// Dword 0 of a Connect that was refused with Connect Invalid Parameters: which byte of the
/// command, or of its data, is wrong.
#[must_use]
pub const fn invalid_parameter(in_data: bool, offset: u16) -> u32 {
    offset as u32 | (in_data as u32) << 16
}

open_enum! {
    /// Transport type (TRTYPE).
    TransportType(u8) {
        /// RDMA.
        RDMA = 1,
        /// Fibre Channel.
        FIBRE_CHANNEL = 2,
        /// TCP.
        TCP = 3,
        /// Within one host.
        LOOP = 254,
    }
}

open_enum! {
    /// Address family (ADRFAM).
    AddressFamily(u8) {
        /// IPv4.
        IPV4 = 1,
        /// IPv6.
        IPV6 = 2,
    }
}

open_enum! {
    /// What a discovery log entry names (SUBTYPE).
    SubsystemType(u8) {
        /// Another discovery subsystem.
        REFERRAL = 1,
        /// A subsystem with namespaces.
        NVM = 2,
        /// This discovery subsystem.
        CURRENT_DISCOVERY = 3,
    }
}

/// Start of the Discovery log page, followed by [`DiscoveryEntry`]s.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// GENCTR: changes whenever an entry does.
    pub generation: U64,
    /// NUMREC.
    pub records: U64,
    /// RECFMT.
    pub record_format: U16,
    /// DLPF.
    pub format: u8,
    /// Reserved.
    pub reserved19: u8,
    /// TDLPL: length of the whole page.
    pub length: U32,
    /// Reserved.
    pub reserved24: [u8; 1000],
}
assert_layout!(DiscoveryHeader, 1024, records @ 8, record_format @ 16, length @ 20);

/// An entry of the Discovery log page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryEntry {
    /// TRTYPE.
    pub transport: u8,
    /// ADRFAM.
    pub family: u8,
    /// SUBTYPE.
    pub subsystem_type: u8,
    /// TREQ: secure channel in 1:0 (2 is not required), bit 2 SQ flow control can be off.
    pub requirements: u8,
    /// PORTID.
    pub port: U16,
    /// CNTLID: 0xffff for controllers made on demand.
    pub controller_id: U16,
    /// ASQSZ.
    pub admin_queue_size: U16,
    /// EFLAGS.
    pub flags: U16,
    /// Reserved.
    pub reserved12: [u8; 20],
    /// TRSVCID: ASCII padded with spaces.
    pub service: [u8; 32],
    /// Reserved.
    pub reserved64: [u8; 192],
    /// SUBNQN, padded with NUL.
    pub subsystem_nqn: [u8; 256],
    /// TRADDR: ASCII padded with spaces.
    pub address: [u8; 256],
    /// TSAS; for TCP, byte 0 is the kind of security, 0 for none.
    pub transport_specific: [u8; 256],
}
assert_layout!(
    DiscoveryEntry,
    1024,
    subsystem_type @ 2,
    port @ 4,
    admin_queue_size @ 8,
    flags @ 10,
    service @ 32,
    subsystem_nqn @ 256,
    address @ 512,
    transport_specific @ 768,
);

impl DiscoveryEntry {
    /// TREQ: a secure channel is not required.
    pub const NO_SECURE_CHANNEL: u8 = 2;
    /// TREQ: SQ flow control can be off.
    pub const FLOW_CONTROL_OPTIONAL: u8 = 1 << 2;
    /// EFLAGS: reading through this entry's address gives the same page.
    pub const DUPLICATE_INFORMATION: u16 = 1;
    /// EFLAGS: connections to discovery may be kept.
    pub const PERSISTENT_CONNECTIONS: u16 = 1 << 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fabrics_commands_are_where_the_specification_has_them() {
        let connect = SubmissionEntry::connect(QueueId(3), 128, CONNECT_NO_FLOW_CONTROL, 15_000)
            .with_sgl(SglDescriptor { address: 0, length: 1024, kind: SglKind::IN_CAPSULE });
        let bytes = connect.bytes();
        assert_eq!((bytes[0], bytes[1], bytes[4]), (0x7f, 0x40, 1));
        assert_eq!(bytes[32..40], [0, 4, 0, 0, 0, 0, 0, 0x01]);
        assert_eq!(bytes[40..48], [0, 0, 3, 0, 127, 0, 4, 0]);
        assert_eq!(bytes[48..52], 15_000_u32.to_le_bytes());
        assert_eq!(connect.connect_entries(), 128);
        assert_eq!(connect.connect_queue(), QueueId(3));
        assert_eq!(connect.sgl().kind, SglKind::IN_CAPSULE);
        let set = SubmissionEntry::property_set(0x14, false, 0x0046_0001);
        assert_eq!(set.bytes()[40..56], [0, 0, 0, 0, 0x14, 0, 0, 0, 1, 0, 0x46, 0, 0, 0, 0, 0]);
        let get = SubmissionEntry::property_get(0, true);
        assert_eq!((get.property_size(), get.bytes()[4]), (1, 4));
        assert_eq!(invalid_parameter(true, 256), 0x0001_0100);
    }

    #[test]
    fn nqns_end_at_their_nul() {
        let mut field = [0; 256];
        assert_eq!(nqn(&field), None);
        fill_nqn(&mut field, DISCOVERY_NQN);
        assert_eq!(nqn(&field), Some(DISCOVERY_NQN));
        fill_nqn(&mut field, &"n".repeat(300));
        assert_eq!(nqn(&field).map(str::len), Some(MAX_NQN));
        field[223] = b'n';
        assert_eq!(nqn(&field), None, "longer than an NQN may be");
        field.fill(b'n');
        assert_eq!(nqn(&field), None, "no end");
        field[3] = 0;
        field[0] = 0xff;
        assert_eq!(nqn(&field), None, "no text");
    }
}
