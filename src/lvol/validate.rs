//! The strict validator: reads a whole store and says everything that is wrong with it.
//!
//! It is written from `docs/on-disk-format.md` alone and shares with the store only the parsers of
//! [`super::format`]: so it can judge what the store wrote. It never writes. Two kinds of things
//! are found: errors, which no order of writes that we allow can leave behind, not even one that a
//! power cut ended; and leftovers, which an interrupted operation leaves and an opening clears up.
//!
//! Work and memory are bounded by the size of the metadata region, and the number of findings by
//! [`FINDINGS_LIMIT`].

use std::collections::{BTreeMap, HashMap};
use std::io;

use uuid::Uuid;

use crate::units::{BlobId, BlockCount, BlockSize, ByteCount, ByteOffset, ClusterCount};

use super::format::lvolstore;
use super::format::{
    BitSet, Layout, MaskKind, Medium, SuperBlock, SuperBlockError, VolumeName, decode_mask,
    mask_bytes,
};

mod finding;
mod image;
mod ownership;
mod relations;
mod torn;
mod volume;
pub(super) mod walk;

pub use finding::{BitRange, FINDINGS_LIMIT, Finding, Severity};
pub use image::ImageRead;
pub(super) use image::{Overlay, Pages, Tolerant, read as image_read};
pub use volume::{Parent, ReadError, Volume};

use finding::Findings;
pub(super) use ownership::Owned;
use torn::Torn;
pub(super) use torn::restored_super_block;
pub(super) use walk::Walk;

/// Why a store cannot be validated at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ValidateError {
    /// The image cannot be read.
    #[error("cannot read {length} bytes at {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// How much.
        length: usize,
        /// Why.
        source: io::Error,
    },
    /// The size of the image cannot be told.
    #[error("cannot tell the size")]
    Size(#[source] io::Error),
    /// Without the super block nothing can be found.
    #[error("cannot use the super block")]
    SuperBlock(#[from] SuperBlockError),
}

/// What was found in a store.
#[derive(Debug)]
pub struct Report {
    /// Where everything lies.
    pub layout: Layout,
    /// Whether the store was closed in order.
    pub clean: bool,
    /// The store's name, if its super blob can be read.
    pub name: Option<VolumeName>,
    /// The store's UUID, if its super blob can be read.
    pub uuid: Option<Uuid>,
    /// All volumes that can be read, snapshots included, by blob id.
    pub volumes: BTreeMap<BlobId, Volume>,
    /// The journal of pages that are rewritten in place; none of the volumes.
    pub journal: Option<Volume>,
    /// Data clusters that no readable blob has, and that are not held for damaged ones.
    pub free_clusters: ClusterCount,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The findings that are damage.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.is_error())
    }

    /// The volume of that name.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        let named = |volume: &&Volume| volume.name.as_ref().is_some_and(|n| n.as_str() == name);
        self.volumes.values().find(named)
    }
}

/// Reads a store on a device with blocks of `block_size` and says what is wrong with it.
///
/// # Errors
/// [`ValidateError`] if the image cannot be read or has no usable super block.
pub fn validate(image: &dyn ImageRead, block_size: BlockSize) -> Result<Report, ValidateError> {
    let mut first = [0; 4096];
    image::read(image, 0, &mut first)?;
    let medium = medium_of(image, block_size)?;
    let (super_block, is_torn) = match SuperBlock::parse(&first, medium) {
        Ok(super_block) => (super_block, false),
        Err(error @ SuperBlockError::Checksum { .. }) => {
            (restored_super_block(image, &first, medium)?.ok_or(error)?, true)
        }
        Err(error) => return Err(error.into()),
    };
    Ok(examine(image, super_block, is_torn)?.report())
}

/// The image as the format sees it.
pub(super) fn medium_of(
    image: &dyn ImageRead,
    block_size: BlockSize,
) -> Result<Medium, ValidateError> {
    let size = image.size().map_err(ValidateError::Size)?;
    Ok(Medium::new(block_size, BlockCount(size.0 >> block_size.shift())))
}

/// All that a validation learns, for those who go on from there.
pub(super) struct Examined {
    pub(super) super_block: SuperBlock,
    /// Only those of a clean store.
    pub(super) masks: Option<Masks>,
    pub(super) walk: Walk,
    pub(super) owned: Owned,
    pub(super) journal: Option<BlobId>,
    /// What opening would restore; all else is as if it were.
    pub(super) torn: Pages,
    pub(super) findings: Vec<Finding>,
}

/// Validates the store that `super_block` describes. `is_torn`: its own page is not what it says
/// yet.
pub(super) fn examine(
    image: &dyn ImageRead,
    super_block: SuperBlock,
    is_torn: bool,
) -> Result<Examined, ValidateError> {
    let super_page = super_block.encode();
    let image = Tolerant::new(image);
    let mut examined = look(&image, super_block)?;
    let mut torn = std::mem::take(&mut examined.torn);
    if !torn.is_empty() {
        let restored = Overlay { below: &image, pages: torn.clone() };
        examined = look(&restored, examined.super_block)?;
    }
    if is_torn {
        torn.insert(0, super_page);
    }
    let found = torn.keys().map(|offset| Finding::Torn { offset: ByteOffset(*offset) });
    examined.findings.extend(found);
    let unreadable = image.unreadable().into_iter().map(|(offset, length)| Finding::Unreadable {
        offset: ByteOffset(offset),
        length: ByteCount(length),
    });
    examined.findings.extend(unreadable);
    Ok(Examined { torn, ..examined })
}

/// Validates a store as it is.
fn look(image: &dyn ImageRead, super_block: SuperBlock) -> Result<Examined, ValidateError> {
    let layout = super_block.layout();
    let mut findings = Findings::default();
    let masks =
        if super_block.is_clean() { Some(read_masks(image, layout, &mut findings)?) } else { None };
    let roots = masks.as_ref().and_then(|masks| masks.blob_ids.as_ref());
    let walk = Walk::of(image, layout, roots, &mut findings)?;
    let owned = ownership::check(layout, &walk, &mut findings);
    relations::check(&walk, super_block.super_blob(), &mut findings);
    check_names(&walk, super_block.super_blob(), &mut findings);
    // When all damage is known.
    if let Some(masks) = &masks {
        compare(MaskKind::UsedPages, masks.pages.as_ref(), &owned.pages, &mut findings);
        compare(MaskKind::UsedClusters, masks.clusters.as_ref(), &owned.clusters, &mut findings);
        compare(MaskKind::UsedBlobIds, masks.blob_ids.as_ref(), &walk.roots, &mut findings);
    }
    let Torn { journal, pages: torn } = torn::find(image, super_block.layout(), &walk)?;
    Ok(Examined { super_block, masks, walk, owned, journal, torn, findings: findings.list })
}

impl Examined {
    /// The findings, and the volumes.
    pub(super) fn report(self) -> Report {
        let Self { super_block, walk, owned, journal, findings, .. } = self;
        let layout = super_block.layout();
        let mut volumes = walk.volumes(layout);
        let held = findings.iter().map(|finding| match finding {
            Finding::Held { mask: MaskKind::UsedClusters, bits } => bits.last - bits.first + 1,
            _ => 0,
        });
        let free = owned.clusters.clear_count() - held.sum::<u32>();
        let store = super_block.super_blob().and_then(|id| volumes.remove(&id));
        let journal = journal.and_then(|id| volumes.remove(&id));
        Report {
            layout: layout.clone(),
            clean: super_block.is_clean(),
            name: store.as_ref().and_then(|store| store.name.clone()),
            uuid: store.as_ref().and_then(|store| store.uuid),
            volumes,
            journal,
            free_clusters: ClusterCount(free),
            findings,
        }
    }
}

/// The bitmaps of a clean store; `None` for one that cannot be read.
pub(super) struct Masks {
    pub(super) pages: Option<BitSet>,
    pub(super) clusters: Option<BitSet>,
    pub(super) blob_ids: Option<BitSet>,
}

fn read_masks(
    image: &dyn ImageRead,
    layout: &Layout,
    findings: &mut Findings,
) -> Result<Masks, ValidateError> {
    let mut read = |mask| -> Result<Option<BitSet>, ValidateError> {
        let Some(region) = layout.mask_region(mask) else { return Ok(None) };
        let bits = layout.mask_bits(mask);
        let mut bytes = vec![0; mask_bytes(bits)];
        image::read(image, layout.region_bytes(region).0.0, &mut bytes)?;
        match decode_mask(mask, &bytes, bits) {
            Ok(set) => Ok(Some(set)),
            Err(error) => {
                findings.add(error.into());
                Ok(None)
            }
        }
    };
    Ok(Masks {
        pages: read(MaskKind::UsedPages)?,
        clusters: read(MaskKind::UsedClusters)?,
        blob_ids: read(MaskKind::UsedBlobIds)?,
    })
}

/// Reports in which bits the bitmap on the medium differs from what the metadata says.
fn compare(mask: MaskKind, found: Option<&BitSet>, expected: &BitSet, findings: &mut Findings) {
    let Some(found) = found else { return };
    let damaged = findings.list.iter().any(|finding| finding.severity() == Severity::Damage);
    let surplus = found.iter().filter(|index| !expected.contains(*index));
    let missing = expected.iter().filter(|index| !found.contains(*index));
    let surplus = BitRange::of(surplus).map(|bits| match damaged {
        true => Finding::Held { mask, bits },
        false => Finding::MaskBits { mask, bits, claimed: true },
    });
    let missing =
        BitRange::of(missing).map(|bits| Finding::MaskBits { mask, bits, claimed: false });
    for finding in surplus.chain(missing) {
        findings.add(finding);
        if findings.is_full() {
            return;
        }
    }
}

/// Reports names and UUIDs that two volumes have.
fn check_names(walk: &Walk, super_blob: Option<BlobId>, findings: &mut Findings) {
    let mut names = HashMap::new();
    let mut uuids = HashMap::new();
    for (id, member) in walk.blobs.iter().filter(|(id, _)| Some(**id) != super_blob) {
        if let Ok(name) = lvolstore::name(&member.blob.xattrs)
            && let Some(other) = names.insert(name.clone(), *id)
        {
            findings.add(Finding::SameName { name, blobs: (other, *id) });
        }
        if let Ok(uuid) = lvolstore::uuid(&member.blob.xattrs)
            && let Some(other) = uuids.insert(uuid, *id)
        {
            findings.add(Finding::SameUuid { uuid, blobs: (other, *id) });
        }
    }
}
