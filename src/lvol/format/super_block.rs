//! The super block: who the store is, where its regions are, and whether it was closed cleanly.
//!
//! There is one copy, rewritten in place. A [`SuperBlock`] keeps the bytes it was read from, so that
//! what it does not know survives a rewrite.

use zerocopy::{FromBytes, FromZeros};

use crate::units::{BlobId, ByteCount};

use super::layout::{Layout, LayoutError, Medium};
use super::raw::{NO_BLOB, RawSuperBlock};
use super::{MaskKind, PageBytes, STRUCTURE_SIZE, checksum, root_page, seal};

/// What every blobstore starts with.
pub(super) const SIGNATURE: [u8; 8] = *b"SPDKBLOB";

/// The kind of blobstore that an lvolstore is, zero padded.
pub(super) const LVOLSTORE: [u8; 16] = *b"LVOLSTORE\0\0\0\0\0\0\0";

/// The version we write, and the newest we read; 1 is the oldest.
const VERSION: u32 = 3;

/// The smallest sector, the last one of which has nothing but the checksum.
const UNFINISHED: usize = 512;

/// Why a super block is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperBlockError {
    /// It does not start with `SPDKBLOB`.
    #[error("the device does not start with a blobstore's signature")]
    Signature,
    /// The checksum does not match: damaged, or torn while it was written.
    #[error("the super block is damaged (checksum {stored:#010x}, computed {computed:#010x})")]
    Checksum {
        /// As stored.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
    /// Written by something newer, or nonsense.
    #[error("the store has version {found}; versions 1 to {VERSION} are known")]
    Version {
        /// The version found.
        found: u32,
    },
    /// The length field is not 4096.
    #[error("the super block claims a length of {found} bytes instead of {STRUCTURE_SIZE}")]
    Length {
        /// The length found.
        found: u32,
    },
    /// `clean` is neither 0 nor 1.
    #[error("the clean mark is {found} instead of 0 or 1")]
    CleanMark {
        /// The value found.
        found: u32,
    },
    /// A blobstore of another kind.
    #[error("the blobstore is of kind {kind:?}, not an lvolstore")]
    Kind {
        /// The kind, zero padded.
        kind: [u8; 16],
    },
    /// The super blob's id cannot be the id of a blob of this store.
    #[error("the super blob id {:#x} is impossible", .id.0)]
    SuperBlob {
        /// The id found.
        id: BlobId,
    },
    /// The geometry contradicts itself or the device.
    #[error("the geometry of the store is impossible")]
    Layout(#[from] LayoutError),
}

/// A checked super block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperBlock {
    raw: RawSuperBlock,
    layout: Layout,
}

impl SuperBlock {
    /// The super block of a new store: no super blob yet, not clean.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        let mut raw = RawSuperBlock::new_zeroed();
        raw.signature = SIGNATURE;
        raw.version = VERSION.into();
        raw.length = (STRUCTURE_SIZE as u32).into();
        raw.super_blob = NO_BLOB.into();
        raw.bstype = LVOLSTORE;
        let mut block = Self { raw, layout };
        block.write_layout();
        block
    }

    /// Reads and checks a super block against the device that it was read from.
    ///
    /// # Errors
    /// [`SuperBlockError`] for the first thing that is wrong.
    pub fn parse(bytes: &PageBytes, medium: Medium) -> Result<Self, SuperBlockError> {
        let raw: RawSuperBlock = zerocopy::transmute!(*bytes);
        if raw.signature != SIGNATURE {
            return Err(SuperBlockError::Signature);
        }
        let (stored, computed) = (raw.crc.get(), checksum(bytes));
        if stored != computed {
            return Err(SuperBlockError::Checksum { stored, computed });
        }
        let found = raw.version.get();
        if !(1..=VERSION).contains(&found) {
            return Err(SuperBlockError::Version { found });
        }
        let found = raw.length.get();
        if found as usize != STRUCTURE_SIZE {
            return Err(SuperBlockError::Length { found });
        }
        let found = raw.clean.get();
        if found > 1 {
            return Err(SuperBlockError::CleanMark { found });
        }
        if raw.bstype != LVOLSTORE {
            return Err(SuperBlockError::Kind { kind: raw.bstype });
        }
        let layout = Layout::open(&raw, medium)?;
        let block = Self { raw, layout };
        if let Some(id) = block.super_blob() {
            let known = root_page(id).is_some_and(|page| page.0 < block.layout.metadata_pages());
            if !known {
                return Err(SuperBlockError::SuperBlob { id });
            }
        }
        Ok(block)
    }

    /// The bytes to write at the start of the device.
    #[must_use]
    pub fn encode(&self) -> PageBytes {
        let mut bytes: PageBytes = zerocopy::transmute!(self.raw);
        seal(&mut bytes);
        bytes
    }

    /// Whose checksum is wrong since a power cut ended a write of it, as far as that can be proven:
    ///
    /// * The checksum is right for the other mark "clean": nothing but the mark was being changed.
    ///   What comes out says "not clean".
    /// * The last sector is zero: the making of the store was about to end with it, when all else was
    ///   durable. The caller must see that the store's own blob is there.
    ///
    /// What else can be torn, the journal knows.
    ///
    /// # Errors
    /// As for [`SuperBlock::parse`].
    pub fn parse_torn(bytes: &PageBytes, medium: Medium) -> Result<Self, SuperBlockError> {
        let refused = match Self::parse(bytes, medium) {
            Err(refused @ SuperBlockError::Checksum { .. }) => refused,
            parsed => return parsed,
        };
        let mut raw: RawSuperBlock = zerocopy::transmute!(*bytes);
        let other_mark = [0, 1].into_iter().any(|mark| {
            raw.clean = mark.into();
            checksum(&zerocopy::transmute!(raw)) == raw.crc.get()
        });
        if !other_mark && !bytes.ends_with(&[0; UNFINISHED]) {
            return Err(refused);
        }
        raw.clean = 0.into();
        let mut sealed: PageBytes = zerocopy::transmute!(raw);
        seal(&mut sealed);
        Self::parse(&sealed, medium)
    }

    /// A super block whose checksum is not looked at: good only for finding the journal.
    ///
    /// # Errors
    /// As for [`SuperBlock::parse`].
    pub fn parse_unproven(bytes: &PageBytes, medium: Medium) -> Result<Self, SuperBlockError> {
        let mut sealed = *bytes;
        seal(&mut sealed);
        Self::parse(&sealed, medium)
    }

    /// The bytes to write first when a store is made: all but the last sector of
    /// [`SuperBlock::encode`], which alone is missing then.
    #[must_use]
    pub fn encode_unfinished(&self) -> PageBytes {
        let mut bytes = self.encode();
        bytes[STRUCTURE_SIZE - UNFINISHED..].fill(0);
        bytes
    }

    /// Where everything lies.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Takes over the layout of the grown store; see [`Layout::grow`].
    pub fn set_layout(&mut self, layout: Layout) {
        self.layout = layout;
        self.write_layout();
    }

    /// Whether the bitmaps on the device can be believed: the store was closed in order, and has
    /// all three.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.raw.clean.get() == 1 && self.layout.mask_region(MaskKind::UsedBlobIds).is_some()
    }

    /// Says whether the bitmaps on the device are true. `true` may be written only after they are
    /// durable, `false` must be durable before anything that makes them untrue.
    pub fn set_clean(&mut self, clean: bool) {
        self.raw.clean = u32::from(clean).into();
    }

    /// Whether another one differs in nothing but the mark "clean".
    #[must_use]
    pub fn differs_by_mark(&self, other: &Self) -> bool {
        let mut marked = self.clone();
        marked.raw.clean = other.raw.clean;
        marked.encode() == other.encode()
    }

    /// The blob that holds the store's name and UUID.
    #[must_use]
    pub fn super_blob(&self) -> Option<BlobId> {
        let id = self.raw.super_blob.get();
        (id != NO_BLOB).then_some(BlobId(id))
    }

    /// Names the blob that holds the store's name and UUID.
    pub fn set_super_blob(&mut self, blob: Option<BlobId>) {
        self.raw.super_blob = blob.map_or(NO_BLOB, BlobId::get).into();
    }

    /// The version of the format: 1 to 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.raw.version.get()
    }

    fn write_layout(&mut self) {
        let (raw, layout) = (&mut self.raw, &self.layout);
        raw.cluster_size = bytes_u32(layout.cluster_size()).into();
        raw.md_page_size = bytes_u32(layout.metadata_page_size()).into();
        raw.io_unit_size = layout.io_unit().bytes().into();
        raw.size = layout.size().0.into();
        let metadata = layout.metadata_region();
        raw.md_start = metadata.first.into();
        raw.md_len = metadata.pages.into();
        if let Some(region) = layout.mask_region(MaskKind::UsedPages) {
            raw.used_page_mask_start = region.first.into();
            raw.used_page_mask_len = region.pages.into();
        }
        if let Some(region) = layout.mask_region(MaskKind::UsedClusters) {
            raw.used_cluster_mask_start = region.first.into();
            raw.used_cluster_mask_len = region.pages.into();
        }
        if let Some(region) = layout.mask_region(MaskKind::UsedBlobIds) {
            raw.used_blobid_mask_start = region.first.into();
            raw.used_blobid_mask_len = region.pages.into();
        }
    }
}

/// Cluster and page sizes are 32 bits wide on the medium, and so in [`Layout`].
fn bytes_u32(size: ByteCount) -> u32 {
    let Ok(bytes) = u32::try_from(size.0) else {
        unreachable!("a layout's cluster and page sizes are 32 bits wide")
    };
    bytes
}

/// The kind that a blobstore's super block names, if `first` starts with one.
pub(super) fn blobstore_kind(first: &[u8]) -> Option<[u8; 16]> {
    let (raw, _) = RawSuperBlock::ref_from_prefix(first).ok()?;
    (raw.signature == SIGNATURE).then_some(raw.bstype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvol::format::{LayoutOptions, blob_id};
    use crate::units::{BlockCount, BlockSize, PageIndex};

    fn medium() -> Medium {
        Medium::new(BlockSize::B4096, BlockCount(16384))
    }

    fn block() -> SuperBlock {
        let options = LayoutOptions { cluster_size: ByteCount::MIB, ..LayoutOptions::default() };
        SuperBlock::new(Layout::create(medium(), options).unwrap())
    }

    /// The error after `damage` was done and the checksum made right again.
    fn refused(damage: impl FnOnce(&mut RawSuperBlock)) -> SuperBlockError {
        let mut raw = block().raw;
        damage(&mut raw);
        let mut bytes: PageBytes = zerocopy::transmute!(raw);
        seal(&mut bytes);
        SuperBlock::parse(&bytes, medium()).unwrap_err()
    }

    #[test]
    fn it_reads_back() {
        let mut block = block();
        block.set_super_blob(Some(blob_id(PageIndex(0))));
        block.set_clean(true);
        let back = SuperBlock::parse(&block.encode(), medium()).unwrap();
        assert!(back.is_clean());
        assert_eq!(back.layout(), block.layout());
        assert_eq!(back.super_blob(), Some(blob_id(PageIndex(0))));
        assert_eq!(back.encode(), block.encode());
    }

    #[test]
    fn a_torn_mark_is_proven_by_the_checksum() {
        let (mut marked, mut unmarked) = (block(), block());
        marked.set_clean(true);
        unmarked.set_clean(false);
        let (marked, unmarked) = (marked.encode(), unmarked.encode());
        for (head, tail) in [(marked, unmarked), (unmarked, marked)] {
            let mut torn = head;
            torn[2048..].copy_from_slice(&tail[2048..]);
            assert!(SuperBlock::parse(&torn, medium()).is_err());
            let read = SuperBlock::parse_torn(&torn, medium()).unwrap();
            assert_eq!(read.encode(), unmarked, "it says not clean");
            torn[32] ^= 1;
            assert!(SuperBlock::parse_torn(&torn, medium()).is_err());
        }
        assert_eq!(SuperBlock::parse_torn(&marked, medium()).unwrap().encode(), marked);
        let unfinished = block().encode_unfinished();
        assert!(SuperBlock::parse(&unfinished, medium()).is_err());
        let read = SuperBlock::parse_torn(&unfinished, medium()).unwrap();
        assert_eq!(read.encode(), block().encode());
    }

    #[test]
    fn growing_reads_back() {
        let larger = Medium::new(BlockSize::B4096, BlockCount(65536));
        let mut block = block();
        block.set_layout(block.layout().grow(larger).unwrap());
        let back = SuperBlock::parse(&block.encode(), larger).unwrap();
        assert_eq!(back.layout().clusters().0, 256);
        let refused = SuperBlock::parse(&block.encode(), medium());
        assert!(matches!(refused, Err(SuperBlockError::Layout(LayoutError::DeviceShrunk { .. }))));
    }

    #[test]
    fn each_damage_has_its_name() {
        use SuperBlockError as E;
        assert_eq!(refused(|raw| raw.signature[0] = b'X'), E::Signature);
        assert_eq!(refused(|raw| raw.version = 4.into()), E::Version { found: 4 });
        assert_eq!(refused(|raw| raw.version = 0.into()), E::Version { found: 0 });
        assert_eq!(refused(|raw| raw.length = 512.into()), E::Length { found: 512 });
        assert_eq!(refused(|raw| raw.clean = 7.into()), E::CleanMark { found: 7 });
        let kind = *b"BLOBFS\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(refused(|raw| raw.bstype = kind), E::Kind { kind });
        for id in [0, 64 | 1 << 32, 5 << 32, u64::MAX - 1] {
            let error = refused(|raw| raw.super_blob = id.into());
            assert_eq!(error, E::SuperBlob { id: BlobId(id) });
        }
        let mut bytes = block().encode();
        bytes[2000] ^= 1;
        let error = SuperBlock::parse(&bytes, medium()).unwrap_err();
        assert!(matches!(error, E::Checksum { .. }), "{error}");
    }

    #[test]
    fn impossible_geometry_is_refused() {
        type Damage = fn(&mut RawSuperBlock);
        let damages: [Damage; 18] = [
            |raw| raw.cluster_size = 0.into(),
            |raw| raw.cluster_size = 4097.into(),
            |raw| raw.cluster_size = 2048.into(),
            |raw| raw.md_page_size = 512.into(),
            |raw| raw.md_page_size = 0xffff_f000.into(),
            |raw| raw.io_unit_size = 512.into(),
            |raw| raw.io_unit_size = 6000.into(),
            |raw| raw.size = u64::MAX.into(),
            |raw| raw.size = 1.into(),
            |raw| raw.md_len = 0.into(),
            |raw| raw.md_len = u32::MAX.into(),
            |raw| raw.md_start = 0.into(),
            |raw| raw.md_start = u32::MAX.into(),
            |raw| raw.used_page_mask_start = 0.into(),
            |raw| raw.used_page_mask_len = 2.into(),
            |raw| raw.used_cluster_mask_len = 0.into(),
            |raw| raw.used_cluster_mask_start = 4.into(),
            |raw| raw.used_blobid_mask_len = u32::MAX.into(),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let error = refused(damage);
            assert!(matches!(error, SuperBlockError::Layout(_)), "damage {number}: {error}");
        }
    }

    #[test]
    fn what_old_stores_leave_out_has_its_default() {
        let mut raw = block().raw;
        raw.version = 2.into();
        raw.clean = 1.into();
        raw.used_blobid_mask_len = 0.into();
        raw.used_blobid_mask_start = 0.into();
        raw.size = 0.into();
        raw.io_unit_size = 0.into();
        raw.md_page_size = 0.into();
        let mut bytes: PageBytes = zerocopy::transmute!(raw);
        seal(&mut bytes);
        let old = SuperBlock::parse(&bytes, medium()).unwrap();
        assert!(!old.is_clean(), "without a blob id bitmap it must be recovered");
        assert_eq!(old.layout().size(), ByteCount(64 << 20));
        assert_eq!(old.layout().io_unit(), BlockSize::B4096);
        assert_eq!(old.version(), 2);
    }

    #[test]
    fn random_super_blocks_never_panic() {
        let seed = 0x7375_7065;
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let mut bytes = block().encode();
            for _ in 0..random.usize(1..6) {
                bytes[random.usize(8..96)] = random.u8(..);
            }
            seal(&mut bytes);
            if let Ok(parsed) = SuperBlock::parse(&bytes, medium()) {
                let layout = parsed.layout();
                let last = PageIndex(layout.metadata_pages() - 1);
                let end = layout.page_offset(last).unwrap().0 + layout.metadata_page_size().0;
                assert!(end <= 64 << 20, "seed {seed:#x}");
                assert!(layout.max_clusters() >= layout.clusters(), "seed {seed:#x}");
            }
        }
    }
}
