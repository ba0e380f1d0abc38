//! SPDK's blobstore and lvolstore format, to the bit: bytes in, types out.
//!
//! Nothing here does I/O, keeps a clock or knows a device; it can be read beside
//! `docs/on-disk-format.md`, which uses the same order and the same words. Everything that is parsed
//! is hostile: a value is believed only after the checksum of its structure and a check against the
//! [`Layout`], and no allocation is larger than what the bytes that were read can justify.
//!
//! How the parts are used, from the first byte of a device to the map of a volume:
//!
//! 1. [`Contents::identify`] tells what the first [`IDENTIFY_BYTES`] of a device hold.
//! 2. A blank device: [`Layout::create`], then [`SuperBlock::new`] and [`SuperBlock::encode`].
//!    An lvolstore: [`SuperBlock::parse`], whose [`SuperBlock::layout`] says where all regions are.
//! 3. [`Layout::mask_region`] and [`decode_mask`] give the bitmaps of a cleanly closed store, as
//!    [`BitSet`]; [`encode_mask`] writes them back.
//! 4. [`PageKind::classify`] says what one slot of the metadata region holds (recovery reads all).
//!    [`BlobReader`] follows a blob from its root page and ends in a [`Blob`] plus a list of
//!    [`Oddity`].
//! 5. [`ExtentPage::parse`] reads the extent pages that [`ExtentTable::iter`] names, and
//!    [`ClusterMap::of`] joins both to the map from volume clusters to device clusters.
//! 6. Writing: change the [`Blob`], ask [`Blob::pages_needed`], put fresh pages into
//!    [`Blob::chain`], call [`Blob::encode`]; extent pages through [`ExtentPage::encode`].
//! 7. [`Journal`], [`encode_record`] and [`Record`] write in-place pages twice, where a device tears
//!    them.
//! 8. [`VolumeName`] and the functions of [`lvolstore`] read and write what an lvolstore keeps in
//!    extended attributes.

use crate::units::{BlobId, PageIndex};

mod bitmap;
mod blob;
mod cluster_map;
mod contents;
mod extent;
mod journal;
mod layout;
pub mod lvolstore;
mod page;
pub mod raw;
mod reader;
mod super_block;
mod writer;

pub use bitmap::{BitSet, MaskError, MaskKind, decode_mask, encode_mask, mask_bytes, mask_header};
pub use blob::{Blob, ClearMethod, Flags, Mapping, Xattr, XattrError, Xattrs};
pub use cluster_map::{ClusterMap, MapProblem, MappedRun};
pub use contents::{Contents, IDENTIFY_BYTES};
pub use extent::{
    EXTENT_PAGE_CLUSTERS, ExtentPage, ExtentRun, ExtentRuns, ExtentTable, Run, Runs, TableSlot,
};
pub use journal::{
    JOURNAL_NAME, Journal, Record, Rewrite, encode_record, is_journal, is_torn_journal,
    names_journal,
};
pub use layout::{Layout, LayoutError, LayoutOptions, Medium, Region};
pub use lvolstore::VolumeName;
pub use page::{Descriptor, Descriptors, Page, PageKind, PageProblem, claims_root, names_blob};
pub use reader::{BlobError, BlobReader, Oddity, ReadBlob};
pub use super_block::{SuperBlock, SuperBlockError};
pub use writer::EncodeError;

/// The size of the super block and of every metadata page, whatever the slot's size is.
pub const STRUCTURE_SIZE: usize = 4096;

/// The bytes of a super block or of a metadata page.
pub type PageBytes = [u8; STRUCTURE_SIZE];

/// Where the checksum lies in a structure; it covers everything before.
const CHECKSUM_OFFSET: usize = STRUCTURE_SIZE - 4;

/// The upper word of every blob id.
const BLOB_ID_BASE: u64 = 1 << 32;

/// The identity of the blob whose root is metadata page `root`.
#[must_use]
pub const fn blob_id(root: PageIndex) -> BlobId {
    BlobId(BLOB_ID_BASE | root.0 as u64)
}

/// The root page of a blob, or `None` if `id` is not of the form that blob ids have.
#[must_use]
pub const fn root_page(id: BlobId) -> Option<PageIndex> {
    if id.0 >> 32 == 1 { Some(PageIndex(id.0 as u32)) } else { None }
}

/// CRC-32C (Castagnoli) over the first 4092 bytes.
#[must_use]
pub fn checksum(bytes: &PageBytes) -> u32 {
    crc32c::crc32c(&bytes[..CHECKSUM_OFFSET])
}

/// Writes the checksum into the last four bytes.
fn seal(bytes: &mut PageBytes) {
    let crc = checksum(bytes);
    bytes[CHECKSUM_OFFSET..].copy_from_slice(&crc.to_le_bytes());
}

/// Whether the checksum is right.
fn is_sealed(bytes: &PageBytes) -> bool {
    bytes[CHECKSUM_OFFSET..] == checksum(bytes).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_ids_name_their_root_page() {
        assert_eq!(blob_id(PageIndex(0)), BlobId(0x1_0000_0000));
        assert_eq!(root_page(blob_id(PageIndex(77))), Some(PageIndex(77)));
        for bad in [0, 77, 0x2_0000_0000, u64::MAX, u64::MAX - 1] {
            assert_eq!(root_page(BlobId(bad)), None, "{bad:#x}");
        }
    }

    #[test]
    fn an_erased_page_is_not_valid() {
        let page = [0; STRUCTURE_SIZE];
        assert_ne!(checksum(&page), 0);
    }
}
