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

use crate::units::{
    BlobId, BlockCount, BlockSize, ByteCount, ByteOffset, ClusterCount, ClusterIndex, PageIndex,
};

use super::format::lvolstore::{self, IdentityError};
use super::format::{
    BitSet, BlobError, Layout, MapProblem, MaskError, MaskKind, Medium, Oddity, PageProblem,
    SuperBlock, SuperBlockError, VolumeName, decode_mask, mask_bytes,
};

mod image;
mod ownership;
mod relations;
mod torn;
mod volume;
pub(super) mod walk;

pub use image::ImageRead;
pub(super) use image::{Overlay, Pages, Tolerant, read as image_read};
pub use volume::{Parent, ReadError, Volume};

pub(super) use ownership::Owned;
use torn::Torn;
pub(super) use torn::restored_super_block;
pub(super) use walk::Walk;

/// Findings after which a validation stops looking for more.
pub const FINDINGS_LIMIT: usize = 10_000;

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

/// Something about a store that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    /// More than [`FINDINGS_LIMIT`] findings; the rest was not looked for.
    #[error("there is more than is listed here")]
    More,
    /// A bitmap of a clean store cannot be read.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// A bitmap of a clean store contradicts the metadata.
    #[error("the {mask} bitmap has {index} as {}, the metadata says otherwise", used(*.claimed))]
    MaskBit {
        /// Which bitmap.
        mask: MaskKind,
        /// The page or cluster.
        index: u32,
        /// Whether the bitmap has it as used.
        claimed: bool,
    },
    /// A blob cannot be read.
    #[error("blob {:#x} cannot be read: {error}", .blob.0)]
    Blob {
        /// Which.
        blob: BlobId,
        /// Why.
        error: BlobError,
    },
    /// A blob is strange but readable.
    #[error("blob {:#x} is odd: {oddity:?}", .blob.0)]
    Odd {
        /// Which.
        blob: BlobId,
        /// How.
        oddity: Oddity,
    },
    /// An extent page of a blob cannot be read.
    #[error("extent page {page} of blob {:#x} cannot be read: {problem}", .blob.0)]
    ExtentPage {
        /// Whose.
        blob: BlobId,
        /// Which.
        page: PageIndex,
        /// Why.
        problem: PageProblem,
    },
    /// Extent pages of a blob contradict its table or its flags.
    #[error("the mapping of blob {:#x} is wrong: {problem}", .blob.0)]
    Mapping {
        /// Whose.
        blob: BlobId,
        /// How.
        problem: MapProblem,
    },
    /// The table and the last extent page of a blob state different sizes.
    #[error("blob {:#x} has {table} clusters by its table, {pages} by its last extent page", .blob.0)]
    Size {
        /// Whose.
        blob: BlobId,
        /// As the table says.
        table: ClusterCount,
        /// As the extent page says.
        pages: ClusterCount,
    },
    /// Clusters with two owners.
    #[error("{count} clusters from {first} belong to blobs {:#x} and {:#x}", .owners.0.0, .owners.1.0)]
    SharedClusters {
        /// The first.
        first: ClusterIndex,
        /// How many.
        count: ClusterCount,
        /// Both owners.
        owners: (BlobId, BlobId),
    },
    /// A metadata page with two owners.
    #[error("metadata page {page} belongs to blobs {:#x} and {:#x}", .owners.0.0, .owners.1.0)]
    SharedPage {
        /// Which.
        page: PageIndex,
        /// Both owners.
        owners: (BlobId, BlobId),
    },
    /// The super block names no readable super blob, so the store has no name.
    #[error("the store has no super blob")]
    NoSuperBlob,
    /// The super blob has clusters.
    #[error("the super blob has {clusters} clusters")]
    SuperBlobClusters {
        /// How many.
        clusters: ClusterCount,
    },
    /// Name or UUID of a volume or of the store is missing or unusable.
    #[error("blob {:#x}: {error}", .blob.0)]
    Identity {
        /// Whose.
        blob: BlobId,
        /// What is wrong.
        error: IdentityError,
    },
    /// Two volumes have one name.
    #[error("blobs {:#x} and {:#x} are both named {name}", .blobs.0.0, .blobs.1.0)]
    SameName {
        /// The name.
        name: VolumeName,
        /// Both volumes.
        blobs: (BlobId, BlobId),
    },
    /// Two volumes have one UUID.
    #[error("blobs {:#x} and {:#x} both have UUID {uuid}", .blobs.0.0, .blobs.1.0)]
    SameUuid {
        /// The UUID.
        uuid: Uuid,
        /// Both volumes.
        blobs: (BlobId, BlobId),
    },
    /// A clone whose snapshot does not exist or cannot be read.
    #[error("blob {:#x} is a clone of {:#x}, which is not there", .blob.0, .parent.0)]
    NoParent {
        /// The clone.
        blob: BlobId,
        /// The snapshot.
        parent: BlobId,
    },
    /// A clone that is its own ancestor.
    #[error("blob {:#x} is its own ancestor", .blob.0)]
    ParentLoop {
        /// The clone.
        blob: BlobId,
    },
    /// A clone that is not thin could never show its parent's data.
    #[error("blob {:#x} has a parent and is not thin", .blob.0)]
    ThickClone {
        /// The clone.
        blob: BlobId,
    },
    /// A blob with a parent inside and one outside of the store.
    #[error("blob {:#x} has two parents", .blob.0)]
    TwoParents {
        /// Which.
        blob: BlobId,
    },
    /// The flag for an external parent and the name of one do not go together.
    #[error("blob {:#x}: the flag for an external parent and its name contradict", .blob.0)]
    ExternalParent {
        /// Which.
        blob: BlobId,
    },
    /// A snapshot that has clones and could be written.
    #[error("blob {:#x} has clones and is not read-only", .blob.0)]
    WritableParent {
        /// Which.
        blob: BlobId,
    },
    /// Making this snapshot was interrupted; opening ends it one way or the other.
    #[error("snapshot {:#x} of blob {:#x} is not finished", .blob.0, .of.0)]
    SnapshotUnfinished {
        /// The snapshot.
        blob: BlobId,
        /// What it is made of.
        of: BlobId,
    },
    /// An interrupted snapshot operation whose other volume is not there: nobody can tell how to
    /// end it.
    #[error("blob {:#x} is in an operation with {:#x}, which is not there", .blob.0, .other.0)]
    Unfinishable {
        /// The snapshot.
        blob: BlobId,
        /// The other volume.
        other: BlobId,
    },
    /// Deleting this snapshot was interrupted; opening ends it one way or the other.
    #[error("deleting snapshot {:#x} with clone {:#x} is not finished", .blob.0, .clone.0)]
    DeletionUnfinished {
        /// The snapshot.
        blob: BlobId,
        /// Its only clone.
        clone: BlobId,
    },
    /// Blobs refer to more extent pages and clusters than a store can have: the rest of this
    /// blob's was not looked at.
    #[error("blob {:#x} is one too many: the blobs use more than there is", .blob.0)]
    Excess {
        /// Which.
        blob: BlobId,
    },
    /// A part of the metadata cannot be read; what was in it is damaged.
    #[error("{length} bytes at {offset} cannot be read")]
    Unreadable {
        /// Where.
        offset: ByteOffset,
        /// How much.
        length: ByteCount,
    },
    /// A page that a power cut tore while it was rewritten; the journal or its checksum says what it
    /// must be, and opening restores it.
    #[error("the page at byte {offset} is torn; opening restores it")]
    Torn {
        /// Where.
        offset: ByteOffset,
    },
    /// An intact metadata page that belongs to no blob.
    #[error("metadata page {page}, written by blob {:#x}, is not in use", .writer.0)]
    UnusedPage {
        /// Which.
        page: PageIndex,
        /// The blob that wrote it.
        writer: BlobId,
    },
    /// A metadata page that is neither intact nor erased and that no blob refers to. It may be a
    /// page that was being written, or the root of a lost volume.
    #[error("metadata page {page} is damaged")]
    DamagedPage {
        /// Which.
        page: PageIndex,
    },
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// What an interrupted operation left behind; nothing is wrong with the volumes.
    Note,
    /// Wrong, and can be put right without guessing.
    Repairable,
    /// Something is lost, or two things contradict each other.
    Damage,
}

fn used(used: bool) -> &'static str {
    if used { "used" } else { "free" }
}

impl Finding {
    /// Whether this is damage, and not what an interrupted operation may leave.
    #[must_use]
    pub const fn is_error(&self) -> bool {
        !matches!(
            self,
            Self::Size { .. }
                | Self::Torn { .. }
                | Self::SnapshotUnfinished { .. }
                | Self::DeletionUnfinished { .. }
                | Self::UnusedPage { .. }
                | Self::DamagedPage { .. }
        )
    }

    /// How bad it is.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self {
            Self::Size { .. } | Self::UnusedPage { .. } | Self::DamagedPage { .. } => {
                Severity::Note
            }
            Self::Mask(_)
            | Self::MaskBit { .. }
            | Self::Torn { .. }
            | Self::SnapshotUnfinished { .. }
            | Self::DeletionUnfinished { .. } => Severity::Repairable,
            _ => Severity::Damage,
        }
    }

    /// A short name of its kind, for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::More => "more",
            Self::Mask(_) => "mask",
            Self::MaskBit { .. } => "mask-bit",
            Self::Blob { .. } => "blob",
            Self::Odd { .. } => "odd",
            Self::ExtentPage { .. } => "extent-page",
            Self::Mapping { .. } => "mapping",
            Self::Size { .. } => "size",
            Self::SharedClusters { .. } => "shared-clusters",
            Self::SharedPage { .. } => "shared-page",
            Self::NoSuperBlob => "no-super-blob",
            Self::SuperBlobClusters { .. } => "super-blob-clusters",
            Self::Identity { .. } => "identity",
            Self::SameName { .. } => "same-name",
            Self::SameUuid { .. } => "same-uuid",
            Self::NoParent { .. } => "no-parent",
            Self::ParentLoop { .. } => "parent-loop",
            Self::ThickClone { .. } => "thick-clone",
            Self::TwoParents { .. } => "two-parents",
            Self::ExternalParent { .. } => "external-parent",
            Self::WritableParent { .. } => "writable-parent",
            Self::SnapshotUnfinished { .. } => "snapshot-unfinished",
            Self::DeletionUnfinished { .. } => "deletion-unfinished",
            Self::Unfinishable { .. } => "unfinishable",
            Self::Excess { .. } => "excess",
            Self::Unreadable { .. } => "unreadable",
            Self::Torn { .. } => "torn-page",
            Self::UnusedPage { .. } => "unused-page",
            Self::DamagedPage { .. } => "damaged-page",
        }
    }
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
    /// Data clusters that no readable blob has.
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
    if let Some(masks) = &masks {
        compare(MaskKind::UsedPages, masks.pages.as_ref(), &owned.pages, &mut findings);
        compare(MaskKind::UsedClusters, masks.clusters.as_ref(), &owned.clusters, &mut findings);
        compare(MaskKind::UsedBlobIds, masks.blob_ids.as_ref(), &walk.roots, &mut findings);
    }
    relations::check(&walk, super_block.super_blob(), &mut findings);
    check_names(&walk, super_block.super_blob(), &mut findings);
    let Torn { journal, pages: torn } = torn::find(image, super_block.layout(), &walk)?;
    Ok(Examined { super_block, masks, walk, owned, journal, torn, findings: findings.list })
}

impl Examined {
    /// The findings, and the volumes.
    pub(super) fn report(self) -> Report {
        let Self { super_block, walk, owned, journal, findings, .. } = self;
        let layout = super_block.layout();
        let mut volumes = walk.volumes(layout);
        let store = super_block.super_blob().and_then(|id| volumes.remove(&id));
        let journal = journal.and_then(|id| volumes.remove(&id));
        Report {
            layout: layout.clone(),
            clean: super_block.is_clean(),
            name: store.as_ref().and_then(|store| store.name.clone()),
            uuid: store.as_ref().and_then(|store| store.uuid),
            volumes,
            journal,
            free_clusters: ClusterCount(owned.clusters.clear_count()),
            findings,
        }
    }
}

/// What has been found so far.
#[derive(Debug, Default)]
struct Findings {
    list: Vec<Finding>,
}

impl Findings {
    /// Adds a finding; drops it where the limit is reached.
    fn add(&mut self, finding: Finding) {
        if self.list.len() < FINDINGS_LIMIT {
            self.list.push(finding);
        } else if self.list.len() == FINDINGS_LIMIT {
            self.list.push(Finding::More);
        }
    }

    /// Whether looking on makes no sense.
    fn is_full(&self) -> bool {
        self.list.len() > FINDINGS_LIMIT
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

/// Reports each bit in which the bitmap on the medium differs from what the metadata says.
fn compare(mask: MaskKind, found: Option<&BitSet>, expected: &BitSet, findings: &mut Findings) {
    let Some(found) = found else { return };
    let surplus = found.iter().filter(|index| !expected.contains(*index));
    let missing = expected.iter().filter(|index| !found.contains(*index));
    let all = surplus.map(|index| (index, true)).chain(missing.map(|index| (index, false)));
    for (index, claimed) in all {
        findings.add(Finding::MaskBit { mask, index, claimed });
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
