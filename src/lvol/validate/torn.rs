//! Pages that a power cut has torn, and that opening restores before anything else: found and put
//! right in memory, so that what is judged is what an opening sees.

use std::collections::BTreeMap;

use super::super::format::{
    Journal, Layout, Medium, PageBytes, Record, STRUCTURE_SIZE, SuperBlock, root_page,
};
use super::image::{self, Overlay, Pages};
use super::walk::Walk;
use super::{Findings, ImageRead, ValidateError};
use crate::units::{BlobId, ByteOffset};

/// The journal of a store, and what it would restore.
#[derive(Default)]
pub(super) struct Torn {
    pub(super) journal: Option<BlobId>,
    pub(super) pages: Pages,
}

/// What the journal of a store would restore.
pub(super) fn find(
    image: &dyn ImageRead,
    layout: &Layout,
    walk: &Walk,
) -> Result<Torn, ValidateError> {
    let journal = walk.blobs.iter().find_map(|(id, member)| {
        let map = member.map.as_ref()?;
        let journal = Journal::of(layout, &member.blob, map.clusters(), |at| map.get(at))?;
        Some((*id, journal))
    });
    let Some((id, journal)) = journal else { return Ok(Torn::default()) };
    Ok(Torn { journal: Some(id), pages: torn_pages(image, layout, &journal)? })
}

fn torn_pages(
    image: &dyn ImageRead,
    layout: &Layout,
    journal: &Journal,
) -> Result<Pages, ValidateError> {
    let mut torn = BTreeMap::new();
    let mut places = journal.places().iter();
    let Some(first) = places.next() else { return Ok(torn) };
    let Some(record) = Record::parse(layout, journal, &read(image, *first)?) else {
        return Ok(torn);
    };
    let places = places.take(record.offsets().len());
    let images = places.map(|place| read(image, *place)).collect::<Result<Vec<_>, _>>()?;
    if !record.is_complete(&images) {
        return Ok(torn);
    }
    for (index, (offset, image_of)) in record.offsets().zip(images).enumerate() {
        if record.is_torn(index, &image_of, &read(image, offset)?) {
            torn.insert(offset.0, image_of);
        }
    }
    Ok(torn)
}

/// A super block whose checksum is wrong, as an opening restores it; `None` if it does not.
pub(in crate::lvol) fn restored_super_block(
    image: &dyn ImageRead,
    bytes: &PageBytes,
    medium: Medium,
) -> Result<Option<SuperBlock>, ValidateError> {
    let Ok(unproven) = SuperBlock::parse_unproven(bytes, medium) else { return Ok(None) };
    let layout = unproven.layout();
    let walk = Walk::of(image, layout, None, &mut Findings::default())?;
    let torn = find(image, layout, &walk)?.pages;
    let now = torn.get(&0).unwrap_or(bytes);
    let Ok(proven) = SuperBlock::parse_torn(now, medium) else { return Ok(None) };
    // The store's own blob may be torn, too.
    let restored = Overlay { below: image, pages: torn };
    let walk = Walk::of(&restored, layout, None, &mut Findings::default())?;
    let own = proven.super_blob().and_then(root_page);
    let has_own = own.is_some_and(|root| walk.roots.contains(root.0));
    Ok(has_own.then_some(proven))
}

fn read(image: &dyn ImageRead, offset: ByteOffset) -> Result<PageBytes, ValidateError> {
    let mut page = [0; STRUCTURE_SIZE];
    image::read(image, offset.0, &mut page)?;
    Ok(page)
}
