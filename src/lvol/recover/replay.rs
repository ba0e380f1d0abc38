//! What comes before anything else in an opening: pages that a power cut has torn are restored from
//! the journal. The restored pages are written in their places. FLUSH. A crash in between leaves
//! them torn or restored, and the journal as it was.

use crate::block::{BlockDevice, BlockError};
use crate::units::{ByteOffset, PageIndex};

use super::super::error::Error;
use super::super::format::root_page;
use super::super::format::{Journal, Layout, PageBytes, Record, SuperBlock, SuperBlockError};
use super::super::metadata_io::{MetadataIo, medium};
use super::{Cache, LoadedBlob, Pages, limited, scan};

/// Blobs that say that they are the journal and are looked at.
const CANDIDATES: usize = 16;

/// Restores what the journal of a store has whole and its place has torn; how many pages those were.
/// `candidates` are roots that say they are a journal's.
pub(super) async fn restore<D: BlockDevice>(
    io: &MetadataIo<D>,
    layout: &Layout,
    candidates: &[PageIndex],
) -> Result<usize, Error> {
    let Some(journal) = find(io, layout, candidates).await else { return Ok(0) };
    let torn = match torn_pages(io, layout, &journal).await {
        Ok(torn) => torn,
        Err(error) => {
            tracing::warn!(%error, "the journal cannot be read; going on without it");
            return Ok(0);
        }
    };
    if torn.is_empty() {
        return Ok(0);
    }
    for (offset, _) in &torn {
        tracing::warn!(offset = offset.0, "a power cut tore this page; restoring it");
    }
    io.write_pages(&torn).await?;
    io.flush().await?;
    Ok(torn.len())
}

async fn find<D: BlockDevice>(
    io: &MetadataIo<D>,
    layout: &Layout,
    candidates: &[PageIndex],
) -> Option<Journal> {
    let pages = Pages::new(io, layout, Cache::default());
    for root in candidates.iter().take(CANDIDATES) {
        if let Ok(LoadedBlob { blob, map }) = pages.load(*root).await.result
            && let Some(journal) =
                Journal::of(layout, &blob, map.clusters(), |cluster| map.get(cluster))
        {
            return Some(journal);
        }
    }
    None
}

async fn torn_pages<D: BlockDevice>(
    io: &MetadataIo<D>,
    layout: &Layout,
    journal: &Journal,
) -> Result<Vec<(ByteOffset, PageBytes)>, BlockError> {
    let mut places = journal.places().iter();
    let Some(first) = places.next() else { return Ok(Vec::new()) };
    let Some(record) = Record::parse(layout, journal, &io.read_page(*first).await?) else {
        return Ok(Vec::new());
    };
    let mut images = Vec::new();
    for place in places.take(record.offsets().len()) {
        images.push(io.read_page(*place).await?);
    }
    if !record.is_complete(&images) {
        return Ok(Vec::new());
    }
    let mut torn = Vec::new();
    for (index, (offset, image)) in record.offsets().zip(images).enumerate() {
        // What cannot be read is damage of another kind.
        if let Ok(now) = io.read_page(offset).await
            && record.is_torn(index, &image, &now)
        {
            torn.push((offset, image));
        }
    }
    Ok(torn)
}

/// The super block of a store whose checksum is wrong, if it can be proven what it must be; it is
/// durable then.
pub(super) async fn restore_super_block<D: BlockDevice>(
    io: &MetadataIo<D>,
    bytes: &PageBytes,
    refused: SuperBlockError,
) -> Result<SuperBlock, Error> {
    let medium = medium(io.device().geometry());
    let Ok(unproven) = SuperBlock::parse_unproven(bytes, medium) else {
        return Err(refused.into());
    };
    let unproven = limited(unproven)?;
    let scan = scan(io, unproven.layout()).await?;
    restore(io, unproven.layout(), &scan.journals).await?;
    let bytes = io.read_page(ByteOffset(0)).await?;
    if let Ok(restored) = SuperBlock::parse(&bytes, medium) {
        return limited(restored);
    }
    let proven = SuperBlock::parse_torn(&bytes, medium)?;
    let own = proven.super_blob().and_then(root_page);
    if own.is_none_or(|root| scan.roots.binary_search(&root).is_err()) {
        return Err(refused.into());
    }
    tracing::warn!("a power cut tore the super block; restoring it");
    io.write_page(ByteOffset(0), &proven.encode()).await?;
    io.flush().await?;
    limited(proven)
}
