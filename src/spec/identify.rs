//! Identify data structures (Base 5.1.13, NVM 4.1.5): what a controller and a namespace say of
//! themselves, 4096 bytes each.
//!
//! Only the fields that the driver, the emulated controller or the target use have names; the
//! space between is kept as reserved bytes, so that a structure can be copied through unchanged.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;

mod descriptor;

pub use descriptor::{NamespaceDescriptor, NamespaceIdType, namespace_descriptors};

/// Size of every Identify data structure in bytes.
pub const IDENTIFY_SIZE: usize = 4096;

/// Identify Controller (CNS 01h).
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// VID, PCI vendor.
    pub vendor: U16,
    /// SSVID, PCI subsystem vendor.
    pub subsystem_vendor: U16,
    /// SN, ASCII padded with spaces.
    pub serial: [u8; 20],
    /// MN, ASCII padded with spaces.
    pub model: [u8; 40],
    /// FR, ASCII padded with spaces.
    pub firmware: [u8; 8],
    /// RAB.
    pub arbitration_burst: u8,
    /// IEEE OUI, least significant byte first.
    pub oui: [u8; 3],
    /// CMIC.
    pub multipath: u8,
    /// MDTS: the largest transfer is `2^mdts` pages of CAP.MPSMIN; 0 is no limit.
    pub max_transfer: u8,
    /// CNTLID.
    pub controller_id: U16,
    /// VER.
    pub version: U32,
    /// RTD3R, microseconds.
    pub resume_latency: U32,
    /// RTD3E, microseconds: how long a shutdown takes.
    pub entry_latency: U32,
    /// OAES: optional asynchronous events.
    pub async_events: U32,
    /// CTRATT.
    pub attributes: U32,
    /// RRLS.
    pub read_recovery_levels: U16,
    /// Reserved.
    pub reserved102: [u8; 9],
    /// CNTRLTYPE: 1 I/O, 2 discovery, 3 administrative.
    pub controller_type: u8,
    /// FGUID.
    pub fru_guid: [u8; 16],
    /// CRDT1 to CRDT3, in units of 100 ms.
    pub retry_delays: [U16; 3],
    /// Reserved.
    pub reserved134: [u8; 122],
    /// OACS.
    pub admin_commands: U16,
    /// ACL: concurrent Abort commands, 0's based.
    pub abort_limit: u8,
    /// AERL: outstanding Asynchronous Event Requests, 0's based.
    pub async_event_limit: u8,
    /// FRMW.
    pub firmware_updates: u8,
    /// LPA.
    pub log_attributes: u8,
    /// ELPE: error log entries, 0's based.
    pub error_log_entries: u8,
    /// NPSS: power states, 0's based.
    pub power_states: u8,
    /// AVSCC.
    pub vendor_commands: u8,
    /// APSTA.
    pub autonomous_power: u8,
    /// WCTEMP, kelvins.
    pub warning_temperature: U16,
    /// CCTEMP, kelvins.
    pub critical_temperature: U16,
    /// MTFA, in units of 100 ms.
    pub firmware_activation_time: U16,
    /// HMPRE, in units of 4 KiB.
    pub host_memory_preferred: U32,
    /// HMMIN, in units of 4 KiB.
    pub host_memory_minimum: U32,
    /// TNVMCAP, 128 bits.
    pub total_capacity: [U64; 2],
    /// UNVMCAP, 128 bits.
    pub unallocated_capacity: [U64; 2],
    /// RPMBS.
    pub replay_protected: U32,
    /// EDSTT to MAXCNA and what follows.
    pub reserved316: [u8; 4],
    /// KAS, in units of 100 ms.
    pub keep_alive: U16,
    /// Reserved and power, sanitize, ANA fields.
    pub reserved322: [u8; 190],
    /// SQES: required in 3:0, maximum in 7:4, as log2 of bytes.
    pub submission_entry_size: u8,
    /// CQES, like SQES.
    pub completion_entry_size: u8,
    /// MAXCMD.
    pub max_commands: U16,
    /// NN.
    pub namespaces: U32,
    /// ONCS: `ONCS_*`.
    pub optional_commands: U16,
    /// FUSES.
    pub fused: U16,
    /// FNA.
    pub format_attributes: u8,
    /// VWC: bit 0 a volatile write cache is present, bits 2:1 Flush of all namespaces.
    pub volatile_write_cache: u8,
    /// AWUN, blocks, 0's based.
    pub atomic_write_unit: U16,
    /// AWUPF, blocks, 0's based.
    pub atomic_write_unit_power_fail: U16,
    /// ICSVSCC.
    pub vendor_io_commands: u8,
    /// NWPC.
    pub write_protection: u8,
    /// ACWU, blocks, 0's based.
    pub atomic_compare_and_write: U16,
    /// CDFS.
    pub copy_formats: U16,
    /// SGLS.
    pub sgl_support: U32,
    /// MNAN.
    pub max_allowed_namespaces: U32,
    /// MAXDNA, 128 bits.
    pub max_domain_attachments: [U64; 2],
    /// MAXCNA.
    pub max_controller_attachments: U32,
    /// Reserved.
    pub reserved564: [u8; 204],
    /// SUBNQN, padded with NUL.
    pub subsystem_nqn: [u8; 256],
    /// Reserved.
    pub reserved1024: [u8; 768],
    /// The fields of NVMe over Fabrics.
    pub fabrics: FabricsController,
    /// PSD0 to PSD31.
    pub power_state_descriptors: [[u8; 32]; 32],
    /// Vendor specific.
    pub vendor_specific: [u8; 1024],
}
assert_layout!(
    IdentifyController,
    IDENTIFY_SIZE,
    serial @ 4,
    model @ 24,
    firmware @ 64,
    max_transfer @ 77,
    controller_id @ 78,
    version @ 80,
    resume_latency @ 84,
    entry_latency @ 88,
    async_events @ 92,
    attributes @ 96,
    controller_type @ 111,
    retry_delays @ 128,
    admin_commands @ 256,
    abort_limit @ 258,
    async_event_limit @ 259,
    log_attributes @ 261,
    error_log_entries @ 262,
    power_states @ 263,
    autonomous_power @ 265,
    firmware_activation_time @ 270,
    host_memory_preferred @ 272,
    host_memory_minimum @ 276,
    total_capacity @ 280,
    keep_alive @ 320,
    submission_entry_size @ 512,
    completion_entry_size @ 513,
    max_commands @ 514,
    namespaces @ 516,
    optional_commands @ 520,
    fused @ 522,
    format_attributes @ 524,
    volatile_write_cache @ 525,
    atomic_write_unit @ 526,
    atomic_write_unit_power_fail @ 528,
    atomic_compare_and_write @ 532,
    sgl_support @ 536,
    max_allowed_namespaces @ 540,
    subsystem_nqn @ 768,
    fabrics @ 1792,
    power_state_descriptors @ 2048,
    vendor_specific @ 3072,
);

impl IdentifyController {
    /// ONCS: Compare.
    pub const ONCS_COMPARE: u16 = 1;
    /// ONCS: Write Uncorrectable.
    pub const ONCS_WRITE_UNCORRECTABLE: u16 = 1 << 1;
    /// ONCS: Dataset Management.
    pub const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
    /// ONCS: Write Zeroes.
    pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
    /// ONCS: the Save field of Set Features and the Select field of Get Features.
    pub const ONCS_SAVE_FEATURES: u16 = 1 << 4;
    /// ONCS: reservations.
    pub const ONCS_RESERVATIONS: u16 = 1 << 5;
    /// ONCS: Timestamp.
    pub const ONCS_TIMESTAMP: u16 = 1 << 6;
    /// ONCS: Verify.
    pub const ONCS_VERIFY: u16 = 1 << 7;
    /// ONCS: Copy.
    pub const ONCS_COPY: u16 = 1 << 8;
    /// OACS: Format NVM.
    pub const OACS_FORMAT: u16 = 1 << 1;
    /// OACS: Namespace Management and Attachment.
    pub const OACS_NAMESPACE_MANAGEMENT: u16 = 1 << 3;
    /// OACS: Doorbell Buffer Config.
    pub const OACS_DOORBELL_BUFFER: u16 = 1 << 8;
    /// OAES: attached namespace attribute notices.
    pub const OAES_NAMESPACE_ATTRIBUTES: u32 = 1 << 8;
    /// OAES: firmware activation notices.
    pub const OAES_FIRMWARE_ACTIVATION: u32 = 1 << 9;
    /// VWC: present.
    pub const VWC_PRESENT: u8 = 1;
    /// SGLS: SGLs can be used in commands of the NVM command set, with any alignment (1) or with
    /// that of dwords (2).
    pub const SGLS_SUPPORTED: u32 = 3;

    /// Whether ONCS has `command` (one of `ONCS_*`).
    #[must_use]
    pub const fn supports(&self, command: u16) -> bool {
        self.optional_commands.get() & command != 0
    }
}

/// The part of Identify Controller that NVMe over Fabrics defines.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FabricsController {
    /// IOCCSZ, in units of 16 bytes.
    pub command_capsule_size: U32,
    /// IORCSZ, in units of 16 bytes.
    pub response_capsule_size: U32,
    /// ICDOFF, in units of 16 bytes.
    pub in_capsule_data_offset: U16,
    /// FCATT: bit 0 set for a static controller.
    pub attributes: u8,
    /// MSDBD.
    pub max_sgl_descriptors: u8,
    /// OFCS.
    pub optional_commands: U16,
    /// Reserved.
    pub reserved: [u8; 242],
}
assert_layout!(
    FabricsController,
    256,
    response_capsule_size @ 4,
    in_capsule_data_offset @ 8,
    attributes @ 10,
    max_sgl_descriptors @ 11,
    optional_commands @ 12,
);

/// A format that a namespace can have (LBAF).
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
pub struct LbaFormat {
    /// MS: metadata bytes per block.
    pub metadata_size: U16,
    /// LBADS: log2 of the block size in bytes; less than 9 is illegal, 0 is an unused format.
    pub data_size: u8,
    /// RP in bits 1:0: 0 best, 3 degraded.
    pub relative_performance: u8,
}
assert_layout!(LbaFormat, 4, data_size @ 2, relative_performance @ 3);

impl LbaFormat {
    /// Blocks of `2^shift` bytes without metadata.
    #[must_use]
    pub const fn plain(shift: u8) -> Self {
        Self { metadata_size: U16::ZERO, data_size: shift, relative_performance: 0 }
    }
}

/// Formats of a namespace.
pub const MAX_LBA_FORMATS: usize = 64;

/// Identify Namespace, NVM command set (CNS 00h).
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// NSZE, blocks.
    pub size: U64,
    /// NCAP, blocks that can be allocated at once.
    pub capacity: U64,
    /// NUSE, blocks allocated now.
    pub utilization: U64,
    /// NSFEAT: `NSFEAT_*`.
    pub features: u8,
    /// NLBAF: formats, 0's based.
    pub format_count: u8,
    /// FLBAS: the format in use in 3:0 and 6:5, bit 4 metadata interleaved.
    pub format_in_use: u8,
    /// MC.
    pub metadata_capabilities: u8,
    /// DPC.
    pub protection_capabilities: u8,
    /// DPS: type of protection information in 2:0.
    pub protection_settings: u8,
    /// NMIC: bit 0 set if the namespace may be shared.
    pub sharing: u8,
    /// RESCAP.
    pub reservation_capabilities: u8,
    /// FPI.
    pub format_progress: u8,
    /// DLFEAT: what a deallocated block reads as in 2:0, bit 3 Write Zeroes may deallocate.
    pub deallocate_features: u8,
    /// NAWUN, blocks, 0's based.
    pub atomic_write_unit: U16,
    /// NAWUPF, blocks, 0's based.
    pub atomic_write_unit_power_fail: U16,
    /// NACWU, blocks, 0's based.
    pub atomic_compare_and_write: U16,
    /// NABSN, blocks, 0's based.
    pub atomic_boundary: U16,
    /// NABO, blocks.
    pub atomic_boundary_offset: U16,
    /// NABSPF, blocks, 0's based; 0 is no boundary.
    pub atomic_boundary_power_fail: U16,
    /// NOIOB, blocks; 0 is not stated.
    pub optimal_io_boundary: U16,
    /// NVMCAP, 128 bits, bytes.
    pub nvm_capacity: [U64; 2],
    /// NPWG, blocks, 0's based.
    pub preferred_write_granularity: U16,
    /// NPWA, blocks, 0's based.
    pub preferred_write_alignment: U16,
    /// NPDG, blocks, 0's based.
    pub preferred_deallocate_granularity: U16,
    /// NPDA, blocks, 0's based.
    pub preferred_deallocate_alignment: U16,
    /// NOWS, blocks, 0's based.
    pub optimal_write_size: U16,
    /// MSSRL.
    pub max_copy_range: U16,
    /// MCL.
    pub max_copy_length: U32,
    /// MSRC and reserved.
    pub reserved80: [u8; 12],
    /// ANAGRPID.
    pub ana_group: U32,
    /// Reserved.
    pub reserved96: [u8; 3],
    /// NSATTR: bit 0 set if write protected.
    pub attributes: u8,
    /// NVMSETID.
    pub nvm_set: U16,
    /// ENDGID.
    pub endurance_group: U16,
    /// NGUID.
    pub nguid: [u8; 16],
    /// EUI64, most significant byte first.
    pub eui64: [u8; 8],
    /// LBAF0 to LBAF63.
    pub formats: [LbaFormat; MAX_LBA_FORMATS],
    /// Vendor specific.
    pub vendor_specific: [u8; 3712],
}
assert_layout!(
    IdentifyNamespace,
    IDENTIFY_SIZE,
    capacity @ 8,
    utilization @ 16,
    features @ 24,
    format_count @ 25,
    format_in_use @ 26,
    protection_settings @ 29,
    sharing @ 30,
    reservation_capabilities @ 31,
    deallocate_features @ 33,
    atomic_write_unit @ 34,
    atomic_write_unit_power_fail @ 36,
    atomic_boundary @ 40,
    atomic_boundary_offset @ 42,
    atomic_boundary_power_fail @ 44,
    optimal_io_boundary @ 46,
    nvm_capacity @ 48,
    preferred_write_granularity @ 64,
    preferred_deallocate_granularity @ 68,
    optimal_write_size @ 72,
    max_copy_length @ 76,
    ana_group @ 92,
    attributes @ 99,
    nguid @ 104,
    eui64 @ 120,
    formats @ 128,
    vendor_specific @ 384,
);

/// What a deallocated block reads as (DLFEAT bits 2:0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeallocatedReads {
    /// Not stated: zeros, ones or the old data.
    Unstated,
    /// All bytes are zero.
    Zeros,
    /// All bytes are FFh.
    Ones,
    /// A reserved value; to be taken as not stated.
    Reserved,
}

impl IdentifyNamespace {
    /// NSFEAT: thinly provisioned.
    pub const NSFEAT_THIN: u8 = 1;
    /// NSFEAT: NAWUN, NAWUPF and NACWU are valid.
    pub const NSFEAT_ATOMICS: u8 = 1 << 1;
    /// NSFEAT: reads of deallocated blocks can be made errors (DULBE).
    pub const NSFEAT_DEALLOCATED_ERROR: u8 = 1 << 2;
    /// NSFEAT: NPWG, NPWA, NPDG, NPDA and NOWS are valid.
    pub const NSFEAT_PREFERRED: u8 = 1 << 4;
    /// DLFEAT: Write Zeroes with DEAC deallocates.
    pub const DLFEAT_WRITE_ZEROES: u8 = 1 << 3;
    /// NSATTR: write protected.
    pub const NSATTR_WRITE_PROTECTED: u8 = 1;
    /// RESCAP: reservations can persist through power loss.
    pub const RESCAP_PERSIST: u8 = 1;
    /// RESCAP: all six types of reservation.
    pub const RESCAP_ALL_TYPES: u8 = 0b111_1110;
    /// RESCAP: IEKEY means what revision 1.3 or later says.
    pub const RESCAP_IGNORE_EXISTING_KEY: u8 = 1 << 7;

    /// Index of the format in use (FLBAS), 0 to 63.
    #[must_use]
    pub const fn format_index(&self) -> usize {
        let low = self.format_in_use & 0xf;
        // Bits 6:5 extend the index only if there are more than 16 formats (NVM 4.1.5.1).
        let high = if self.format_count >= 16 { self.format_in_use >> 5 & 3 } else { 0 };
        (low | high << 4) as usize
    }

    /// The format in use.
    #[must_use]
    pub const fn format(&self) -> LbaFormat {
        self.formats[self.format_index()]
    }

    /// What a deallocated block reads as.
    #[must_use]
    pub const fn deallocated_reads(&self) -> DeallocatedReads {
        match self.deallocate_features & 7 {
            0 => DeallocatedReads::Unstated,
            1 => DeallocatedReads::Zeros,
            2 => DeallocatedReads::Ones,
            _ => DeallocatedReads::Reserved,
        }
    }
}

/// Identify Controller, NVM command set (CNS 06h, CSI 0).
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNvmController {
    /// VSL.
    pub verify_limit: u8,
    /// WZSL: the largest Write Zeroes is `2^wzsl` pages of CAP.MPSMIN; 0 is not stated.
    pub write_zeroes_limit: u8,
    /// WUSL.
    pub write_uncorrectable_limit: u8,
    /// DMRL: ranges of a Dataset Management command; 0 is no limit.
    pub dsm_ranges: u8,
    /// DMRSL: blocks of one of its ranges; 0 is no limit.
    pub dsm_range_blocks: U32,
    /// DMSL: blocks of all its ranges; 0 is no limit.
    pub dsm_blocks: U64,
    /// Reserved.
    pub reserved: [u8; 4080],
}
assert_layout!(
    IdentifyNvmController,
    IDENTIFY_SIZE,
    write_zeroes_limit @ 1,
    dsm_ranges @ 3,
    dsm_range_blocks @ 4,
    dsm_blocks @ 8,
);

/// Identify Namespace, whatever its command set (CNS 08h).
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyIndependentNamespace {
    /// NSFEAT: bit 5 set if there is no volatile write cache for this namespace (VWCNP).
    pub features: u8,
    /// NMIC.
    pub sharing: u8,
    /// RESCAP.
    pub reservation_capabilities: u8,
    /// FPI.
    pub format_progress: u8,
    /// ANAGRPID.
    pub ana_group: U32,
    /// NSATTR.
    pub attributes: u8,
    /// Reserved.
    pub reserved9: u8,
    /// NVMSETID.
    pub nvm_set: U16,
    /// ENDGID.
    pub endurance_group: U16,
    /// NSTAT: bit 0 set if ready.
    pub status: u8,
    /// Reserved.
    pub reserved15: [u8; 4081],
}
assert_layout!(
    IdentifyIndependentNamespace,
    IDENTIFY_SIZE,
    ana_group @ 4,
    attributes @ 8,
    nvm_set @ 10,
    status @ 14,
);

impl IdentifyIndependentNamespace {
    /// NSFEAT: no volatile write cache for this namespace.
    pub const NSFEAT_NO_VOLATILE_CACHE: u8 = 1 << 5;
}

/// An ASCII field without its padding. What is not printable is shown as `?`.
#[must_use]
pub fn ascii(field: &[u8]) -> String {
    let text: String = field
        .iter()
        .map(|&byte| match byte {
            0 => ' ',
            b' '..=b'~' => char::from(byte),
            _ => '?',
        })
        .collect();
    text.trim().to_owned()
}

/// Fills an ASCII field, cutting `text` or padding it with spaces.
pub fn fill_ascii(field: &mut [u8], text: &str) {
    field.fill(b' ');
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_trimmed_and_made_printable() {
        assert_eq!(ascii(b"S4EW\x00\x1b \xff  "), "S4EW ? ?");
        let mut field = [0; 6];
        fill_ascii(&mut field, "ab");
        assert_eq!(&field, b"ab    ");
        fill_ascii(&mut field, "abcdefgh");
        assert_eq!(&field, b"abcdef");
    }

    #[test]
    fn the_format_in_use_is_read_with_its_extension() {
        let mut namespace = IdentifyNamespace::read_from_bytes(&[0; 4096]).unwrap();
        namespace.format_in_use = 0b0110_0001;
        assert_eq!(namespace.format_index(), 1);
        namespace.format_count = 20;
        assert_eq!(namespace.format_index(), 0x31);
        namespace.format_in_use = 0xff;
        namespace.format_count = 0xff;
        assert_eq!(namespace.format_index(), 63);
        namespace.deallocate_features = 0x09;
        assert_eq!(namespace.deallocated_reads(), DeallocatedReads::Zeros);
    }
}
