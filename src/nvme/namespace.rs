//! A namespace's geometry: what its Identify page says, checked, by a policy that prefers to
//! promise too little.

use std::fmt;

use super::identity::ControllerIdentity;
use crate::spec::command::MAX_BLOCKS_PER_COMMAND;
use crate::spec::identify::{DeallocatedReads, IdentifyNamespace};
use crate::units::{BlockCount, BlockSize, ByteCount, NamespaceId};

/// A namespace that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its identifier.
    pub id: NamespaceId,
    /// Its logical block.
    pub block_size: BlockSize,
    /// How many blocks it has.
    pub block_count: BlockCount,
    /// The largest transfer of one command: a multiple of the block size.
    pub max_transfer: ByteCount,
    /// Whether a completed write can be lost until a flush.
    pub volatile_cache: bool,
    /// A write of this many blocks, aligned to that, is old or new as a whole after a power cut.
    /// A power of two.
    ///
    /// The policy is Linux's: NAWUPF counts if NSFEAT says that it is valid and NABO is 0; the
    /// controller's AWUPF never does, as it is in blocks of no particular format.
    pub atomic_write_blocks: u32,
    /// The preferred granularity of writes, in blocks. At least 1.
    pub preferred_write_blocks: u32,
    /// What a deallocated block reads as.
    pub deallocated_reads: DeallocatedReads,
    /// Whether Write Zeroes may deallocate (DEAC): the namespace says that it does so, and that
    /// deallocated blocks read as zeros (DLFEAT), which is Linux's rule. Never on a thin one, where
    /// a later write to the blocks could then find no space.
    pub zeroes_by_deallocation: bool,
    /// Blocks of the largest Write Zeroes; 0 if there is none.
    pub max_write_zeroes_blocks: u32,
    /// Ranges of the largest Dataset Management command; 0 if there is none.
    pub max_discard_ranges: usize,
    /// Blocks of its largest range. At least 1.
    pub max_discard_range_blocks: u32,
    /// Blocks of all its ranges. At least 1.
    pub max_discard_blocks: u64,
    /// Whether it cannot be written now.
    pub write_protected: bool,
    /// Whether it is thinly provisioned: writes may fail with Capacity Exceeded.
    pub thin: bool,
    /// NGUID; zeros if it has none.
    pub nguid: [u8; 16],
    /// EUI64; zeros if it has none.
    pub eui64: [u8; 8],
}

/// Why a namespace cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceRefused {
    /// It has no blocks: it is not active.
    Inactive,
    /// Its blocks carry metadata, which this driver does not move.
    Metadata {
        /// Bytes per block.
        bytes: u16,
    },
    /// It is formatted with protection information.
    Protection {
        /// The type, 1 to 3.
        kind: u8,
    },
    /// Its block size is not 512 bytes to 64 KiB.
    BlockSize {
        /// log2 of it.
        shift: u8,
    },
    /// Its block is larger than the largest transfer.
    TransferTooSmall {
        /// The block.
        block_size: BlockSize,
        /// The transfer.
        max_transfer: ByteCount,
    },
    /// Its size in bytes is beyond 64 bits.
    TooLarge {
        /// Its size in blocks.
        blocks: u64,
    },
}

impl fmt::Display for NamespaceRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inactive => f.write_str("it has no blocks"),
            Self::Metadata { bytes } => write!(
                f,
                "its blocks carry {bytes} bytes of metadata; format it without (nvme format)"
            ),
            Self::Protection { kind } => write!(
                f,
                "it has protection information of type {kind}; format it without (nvme format)"
            ),
            Self::BlockSize { shift } => {
                write!(f, "blocks of 2^{shift} bytes are not supported (512 B to 64 KiB are)")
            }
            Self::TransferTooSmall { block_size, max_transfer } => write!(
                f,
                "its blocks of {block_size} bytes are above the largest transfer, {max_transfer}"
            ),
            Self::TooLarge { blocks } => {
                write!(f, "{blocks} blocks are more than can be addressed")
            }
        }
    }
}

impl Namespace {
    /// Reads Identify Namespace. `cached` says whether this namespace can have a volatile cache
    /// if its controller has one (VWCNP is 0).
    ///
    /// # Errors
    /// Why the namespace cannot be used.
    pub(crate) fn new(
        id: NamespaceId,
        identify: &IdentifyNamespace,
        controller: &ControllerIdentity,
        cached: bool,
    ) -> Result<Self, NamespaceRefused> {
        let (block_size, block_count) = checked_size(identify)?;
        let max_transfer = controller.max_transfer.get() / u64::from(block_size.bytes())
            * u64::from(block_size.bytes());
        if max_transfer == 0 {
            let max_transfer = controller.max_transfer;
            return Err(NamespaceRefused::TransferTooSmall { block_size, max_transfer });
        }
        let deallocated_reads = identify.deallocated_reads();
        let thin = identify.features & IdentifyNamespace::NSFEAT_THIN != 0;
        let identified = !controller.quirks.identifiers_repeat;
        let deallocates =
            identify.deallocate_features & IdentifyNamespace::DLFEAT_WRITE_ZEROES != 0;
        Ok(Self {
            id,
            block_size,
            block_count,
            max_transfer: ByteCount(max_transfer),
            volatile_cache: controller.volatile_write_cache && cached,
            atomic_write_blocks: atomic_write(identify),
            preferred_write_blocks: preferred_write(identify),
            deallocated_reads,
            zeroes_by_deallocation: deallocates
                && deallocated_reads == DeallocatedReads::Zeros
                && !thin,
            max_write_zeroes_blocks: write_zeroes_blocks(controller, block_size),
            max_discard_ranges: match controller.dataset_management {
                true => controller.discard_ranges,
                false => 0,
            },
            max_discard_range_blocks: controller.discard_blocks.0.unwrap_or(u32::MAX),
            max_discard_blocks: controller.discard_blocks.1.unwrap_or(u64::MAX),
            write_protected: identify.attributes & IdentifyNamespace::NSATTR_WRITE_PROTECTED != 0,
            thin,
            nguid: if identified { identify.nguid } else { [0; 16] },
            eui64: if identified { identify.eui64 } else { [0; 8] },
        })
    }

    /// The size in bytes.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        ByteCount(self.block_count.get() << self.block_size.shift())
    }
}

fn checked_size(identify: &IdentifyNamespace) -> Result<(BlockSize, BlockCount), NamespaceRefused> {
    let blocks = identify.size.get();
    if blocks == 0 {
        return Err(NamespaceRefused::Inactive);
    }
    let format = identify.format();
    if format.metadata_size.get() != 0 {
        return Err(NamespaceRefused::Metadata { bytes: format.metadata_size.get() });
    }
    let kind = identify.protection_settings & 7;
    if kind != 0 {
        return Err(NamespaceRefused::Protection { kind });
    }
    let shift = format.data_size;
    let block_size = 1_u32.checked_shl(shift.into()).and_then(BlockSize::new);
    let block_size = block_size.ok_or(NamespaceRefused::BlockSize { shift })?;
    let count = BlockCount(blocks);
    block_size.bytes_in(count).ok_or(NamespaceRefused::TooLarge { blocks })?;
    Ok((block_size, count))
}

/// Blocks that are written as a whole across a power cut, wherever a multiple of them starts.
fn atomic_write(identify: &IdentifyNamespace) -> u32 {
    let valid = identify.features & IdentifyNamespace::NSFEAT_ATOMICS != 0;
    if !valid || identify.atomic_boundary_offset.get() != 0 {
        return 1;
    }
    let unit = u32::from(identify.atomic_write_unit_power_fail.get()) + 1;
    let aligned = 1 << unit.ilog2();
    match identify.atomic_boundary_power_fail.get() {
        0 => aligned,
        // An aligned power of two that divides the boundary never crosses it.
        boundary => aligned.min(1 << (u32::from(boundary) + 1).trailing_zeros()),
    }
}

fn preferred_write(identify: &IdentifyNamespace) -> u32 {
    match identify.features & IdentifyNamespace::NSFEAT_PREFERRED {
        0 => 1,
        _ => u32::from(identify.preferred_write_granularity.get()) + 1,
    }
}

/// Linux's rule: where the controller states no limit, a Write Zeroes is no longer than a transfer.
fn write_zeroes_blocks(controller: &ControllerIdentity, block_size: BlockSize) -> u32 {
    if !controller.write_zeroes {
        return 0;
    }
    let bytes = controller.write_zeroes_limit.unwrap_or(controller.max_transfer.get());
    let blocks = bytes >> block_size.shift();
    u32::try_from(blocks).unwrap_or(u32::MAX).min(MAX_BLOCKS_PER_COMMAND)
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromBytes, FromZeros, IntoBytes};

    use super::*;
    use crate::nvme::quirks::Quirks;
    use crate::spec::identify::{IdentifyController, LbaFormat};
    use crate::spec::register::Capabilities;

    fn controller() -> ControllerIdentity {
        let mut page = IdentifyController::new_zeroed();
        page.max_transfer = 5;
        page.volatile_write_cache = 1;
        page.optional_commands.set(0xc);
        ControllerIdentity::new(
            &page,
            Capabilities::emulated(64, 1),
            0x0001_0400,
            Quirks::default(),
        )
    }

    fn page(shift: u8) -> IdentifyNamespace {
        let mut page = IdentifyNamespace::new_zeroed();
        page.size.set(1 << 20);
        page.formats[0] = LbaFormat::plain(shift);
        page
    }

    fn read(page: &IdentifyNamespace) -> Result<Namespace, NamespaceRefused> {
        Namespace::new(NamespaceId(1), page, &controller(), true)
    }

    #[test]
    fn an_ordinary_namespace() {
        let namespace = read(&page(12)).unwrap();
        assert_eq!(namespace.block_size, BlockSize::B4096);
        assert_eq!(namespace.size(), ByteCount(4 << 30));
        assert_eq!(namespace.max_transfer, ByteCount(128 << 10));
        assert_eq!(namespace.max_write_zeroes_blocks, 32);
        assert_eq!(namespace.max_discard_ranges, 256);
        assert!(namespace.volatile_cache && !namespace.zeroes_by_deallocation);
    }

    #[test]
    fn the_atomic_unit_is_one_block_unless_the_namespace_is_clear() {
        let mut page = page(9);
        page.atomic_write_unit_power_fail.set(7);
        assert_eq!(read(&page).unwrap().atomic_write_blocks, 1, "NSFEAT bit 1 is not set");
        page.features = IdentifyNamespace::NSFEAT_ATOMICS;
        assert_eq!(read(&page).unwrap().atomic_write_blocks, 8);
        page.atomic_boundary_power_fail.set(3);
        assert_eq!(read(&page).unwrap().atomic_write_blocks, 4);
        page.atomic_boundary_power_fail.set(11);
        assert_eq!(read(&page).unwrap().atomic_write_blocks, 4, "4 divides 12");
        page.atomic_boundary_power_fail.set(8);
        assert_eq!(read(&page).unwrap().atomic_write_blocks, 1, "9 is odd");
        page.atomic_boundary_power_fail.set(0);
        page.atomic_write_unit_power_fail.set(10);
        assert_eq!(read(&page).unwrap().atomic_write_blocks, 8, "of 11");
        page.atomic_boundary_offset.set(1);
        assert_eq!(read(&page).unwrap().atomic_write_blocks, 1);
    }

    #[test]
    fn zeroing_deallocates_where_that_is_promised_and_takes_no_space_away() {
        for (features, thin, expected) in [
            (0, false, false),
            (1, false, false),
            (1 << 3, false, false),
            (1 | 1 << 3, false, true),
            (2 | 1 << 3, false, false),
            (1 | 1 << 3, true, false),
        ] {
            let mut page = page(12);
            page.deallocate_features = features;
            page.features = if thin { IdentifyNamespace::NSFEAT_THIN } else { 0 };
            let namespace = read(&page).unwrap();
            assert_eq!(namespace.zeroes_by_deallocation, expected, "DLFEAT {features:#x}");
        }
    }

    #[test]
    fn identifiers_that_drives_share_are_none() {
        let mut page = page(12);
        (page.nguid, page.eui64) = ([1; 16], [2; 8]);
        assert_eq!(read(&page).unwrap().nguid, [1; 16]);
        let mut controller = controller();
        controller.quirks.identifiers_repeat = true;
        let namespace = Namespace::new(NamespaceId(1), &page, &controller, true).unwrap();
        assert_eq!((namespace.nguid, namespace.eui64), ([0; 16], [0; 8]));
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_reason() {
        let mut metadata = page(9);
        metadata.formats[0].metadata_size.set(8);
        assert_eq!(read(&metadata), Err(NamespaceRefused::Metadata { bytes: 8 }));
        let mut protected = page(9);
        protected.protection_settings = 1;
        assert_eq!(read(&protected), Err(NamespaceRefused::Protection { kind: 1 }));
        let mut empty = page(9);
        empty.size.set(0);
        assert_eq!(read(&empty), Err(NamespaceRefused::Inactive));
        for shift in [0, 8, 17, 32, 255] {
            assert_eq!(read(&page(shift)), Err(NamespaceRefused::BlockSize { shift }));
        }
        let mut large = page(12);
        large.size.set(u64::MAX);
        assert_eq!(read(&large), Err(NamespaceRefused::TooLarge { blocks: u64::MAX }));
    }

    #[test]
    fn no_page_makes_it_panic() {
        let seed = 0x6e76_6d65;
        let mut random = fastrand::Rng::with_seed(seed);
        for round in 0..2000 {
            let mut page = page(9 + round as u8 % 4);
            for _ in 0..random.usize(0..40) {
                let at = random.usize(0..384);
                page.as_mut_bytes()[at] = random.u8(..);
            }
            if let Ok(namespace) = read(&page) {
                assert!(
                    namespace.atomic_write_blocks.is_power_of_two(),
                    "seed {seed}, round {round}"
                );
                assert!(namespace.max_transfer.get() >= namespace.block_size.bytes().into());
            }
        }
        let _ = read(&IdentifyNamespace::read_from_bytes(&[0xff; 4096]).unwrap());
    }
}
