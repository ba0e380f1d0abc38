//! A damaged super block, rebuilt without guessing. One of these must prove it:
//!
//! 1. Its own checksum, once the clean mark or one bit of it is turned: a torn write of the mark,
//!    or a rotten bit.
//! 2. Its own fields, if they agree with the bitmaps' headers, or with the layout that the format
//!    computes for that size and cluster size.
//! 3. The bitmaps' headers: they state how many clusters and metadata pages there are, and lie where
//!    only one layout puts them. The block size must be known.
//! 4. What the operator knows: cluster size and block size.
//!
//! Whatever says so, the store's own blob must then be where the super block points, with a name, a
//! UUID and no clusters. A rebuilt super block says "not clean".

use crate::units::{BlockCount, BlockSize, ByteCount, PageIndex};

use super::super::format::{
    BlobReader, Layout, LayoutOptions, MaskKind, Medium, PageBytes, STRUCTURE_SIZE, SuperBlock,
    blob_id, checksum, lvolstore, mask_header, root_page,
};
use super::super::validate::{ImageRead, ValidateError, medium_of};
use super::{Known, read_page};

/// Bytes at the start that mean something; what follows is reserved.
const FIELDS: usize = 96;
/// Where the clean mark is.
const CLEAN: usize = 16;
/// Where the checksum is.
const CHECKSUM: usize = STRUCTURE_SIZE - 4;
/// Metadata page sizes that are looked for where nothing says which.
const PAGE_SIZES: [u32; 5] = [4096, 8192, 16384, 32768, 65536];

/// The super block as it must have been, if that can be told.
pub(super) fn rebuild(
    image: &dyn ImageRead,
    bytes: &PageBytes,
    known: Known,
) -> Result<Option<SuperBlock>, ValidateError> {
    let medium = medium_of(image, BlockSize::B512)?;
    let proven = by_checksum(bytes).and_then(|bytes| SuperBlock::parse(&bytes, medium).ok());
    if let Some(mut found) = proven
        && has_own_blob(image, &found)?
    {
        found.set_clean(false);
        return Ok(Some(found));
    }
    if let Some(found) = by_fields(image, bytes, medium)? {
        return Ok(Some(found));
    }
    let Some(block_size) = known.block_size else { return Ok(None) };
    let medium = medium_of(image, block_size)?;
    match known.cluster_size {
        Some(cluster_size) => by_knowledge(image, medium, cluster_size),
        None => by_masks(image, medium),
    }
}

/// The bytes with which the stored checksum is right.
fn by_checksum(bytes: &PageBytes) -> Option<PageBytes> {
    let stored = bytes[CHECKSUM..].to_vec();
    let is_right = |bytes: &PageBytes| checksum(bytes).to_le_bytes() == *stored;
    let mut marked = *bytes;
    for mark in [0_u32, 1] {
        marked[CLEAN..CLEAN + 4].copy_from_slice(&mark.to_le_bytes());
        if is_right(&marked) {
            return Some(marked);
        }
    }
    for bit in 0..FIELDS * 8 {
        let mut turned = *bytes;
        turned[bit / 8] ^= 1 << (bit % 8);
        if is_right(&turned) {
            return Some(turned);
        }
    }
    None
}

/// The fields as they are, if something else confirms them.
fn by_fields(
    image: &dyn ImageRead,
    bytes: &PageBytes,
    medium: Medium,
) -> Result<Option<SuperBlock>, ValidateError> {
    let mut sealed = *bytes;
    sealed[CLEAN..CLEAN + 4].fill(0);
    sealed[FIELDS..].fill(0);
    let crc = checksum(&sealed).to_le_bytes();
    sealed[CHECKSUM..].copy_from_slice(&crc);
    let Ok(found) = SuperBlock::parse(&sealed, medium) else { return Ok(None) };
    let layout = found.layout();
    let unit = layout.io_unit();
    let page_size = BlockSize::new(layout.metadata_page_size().0 as u32).unwrap_or(unit);
    let made_for = Medium {
        block_size: unit,
        physical_block_size: page_size,
        blocks: BlockCount(layout.size().0 >> unit.shift()),
    };
    let options =
        LayoutOptions { cluster_size: layout.cluster_size(), metadata_ratio_percent: 100 };
    let computed = Layout::create(made_for, options);
    let agrees = computed.is_ok_and(|computed| computed.same_places(layout));
    let confirmed = agrees || masks_agree(image, layout)?;
    Ok(if confirmed && has_own_blob(image, &found)? { Some(found) } else { None })
}

fn by_knowledge(
    image: &dyn ImageRead,
    medium: Medium,
    cluster_size: ByteCount,
) -> Result<Option<SuperBlock>, ValidateError> {
    let options = LayoutOptions { cluster_size, metadata_ratio_percent: 100 };
    match Layout::create(medium, options) {
        Ok(layout) => with_own_blob(image, layout),
        Err(_) => Ok(None),
    }
}

/// The only layout in whose places the bitmaps' headers are.
fn by_masks(image: &dyn ImageRead, medium: Medium) -> Result<Option<SuperBlock>, ValidateError> {
    let size = medium.size().unwrap_or_default().0;
    let mut found = None;
    for page in PAGE_SIZES {
        let Some(physical_block_size) = BlockSize::new(page).filter(|p| *p >= medium.block_size)
        else {
            continue;
        };
        let medium = Medium { physical_block_size, ..medium };
        let at = u64::from(page);
        if size < 2 * at {
            continue;
        }
        let Some((kind, pages)) = header_at(image, at)? else { continue };
        if kind != MaskKind::UsedPages || pages == 0 {
            continue;
        }
        for shift in 12..32 {
            let cluster_size = ByteCount(1 << shift);
            let clusters = size >> shift;
            if clusters == 0 {
                break;
            }
            // The ratio is a whole number of per cent; the pages are rounded down from it.
            let ratio = (u64::from(pages) * 100).div_ceil(clusters);
            let Ok(metadata_ratio_percent) = u32::try_from(ratio) else { continue };
            let options = LayoutOptions { cluster_size, metadata_ratio_percent };
            let Ok(layout) = Layout::create(medium, options) else { continue };
            if layout.metadata_pages() == pages && masks_agree(image, &layout)? {
                if found.is_some() {
                    return Ok(None);
                }
                found = Some(layout);
            }
        }
    }
    match found {
        Some(layout) => with_own_blob(image, layout),
        None => Ok(None),
    }
}

/// Whether the headers of all bitmaps are where the layout puts them, with the lengths it gives.
fn masks_agree(image: &dyn ImageRead, layout: &Layout) -> Result<bool, ValidateError> {
    for kind in [MaskKind::UsedPages, MaskKind::UsedClusters, MaskKind::UsedBlobIds] {
        let Some(region) = layout.mask_region(kind) else { return Ok(false) };
        let header = header_at(image, layout.region_bytes(region).0.0)?;
        if header != Some((kind, layout.mask_bits(kind))) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn header_at(image: &dyn ImageRead, offset: u64) -> Result<Option<(MaskKind, u32)>, ValidateError> {
    Ok(mask_header(&read_page(image, crate::units::ByteOffset(offset))?))
}

/// A super block for a layout, if the store's own blob is in the first place of its metadata, where
/// every maker of stores puts it.
fn with_own_blob(
    image: &dyn ImageRead,
    layout: Layout,
) -> Result<Option<SuperBlock>, ValidateError> {
    let mut super_block = SuperBlock::new(layout);
    super_block.set_super_blob(Some(blob_id(PageIndex(0))));
    Ok(has_own_blob(image, &super_block)?.then_some(super_block))
}

/// Whether the blob that the super block names can be that of the store.
fn has_own_blob(image: &dyn ImageRead, found: &SuperBlock) -> Result<bool, ValidateError> {
    let layout = found.layout();
    let root = found.super_blob().and_then(root_page);
    let Some((root, offset)) = root.and_then(|root| Some((root, layout.page_offset(root)?))) else {
        return Ok(false);
    };
    let page = read_page(image, offset)?;
    let Ok(reader) = BlobReader::start(layout, root, &page) else { return Ok(false) };
    if reader.next_page().is_some() {
        // Name and UUID fit into one page.
        return Ok(false);
    }
    Ok(reader.finish().is_ok_and(|read| {
        let blob = read.blob;
        // A volume is made with its name first.
        let first = blob.xattrs.iter().next().map(|xattr| xattr.name.as_slice());
        first == Some(b"uuid")
            && blob.mapping.clusters().0 == 0
            && lvolstore::name(&blob.xattrs).is_ok()
            && lvolstore::uuid(&blob.xattrs).is_ok()
    }))
}
