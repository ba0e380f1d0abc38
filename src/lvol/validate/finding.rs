//! What can be wrong with a store, in words and in classes.

use uuid::Uuid;

use crate::lvol::format::lvolstore::IdentityError;
use crate::lvol::format::{
    BlobError, MapProblem, MaskError, MaskKind, Oddity, PageProblem, VolumeName,
};
use crate::units::{BlobId, ByteCount, ByteOffset, ClusterCount, ClusterIndex, PageIndex};

/// Findings after which a validation stops looking for more.
pub const FINDINGS_LIMIT: usize = 10_000;

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
    #[error("the {mask} bitmap has {bits} as {}, the metadata says otherwise", used(*.claimed))]
    MaskBits {
        /// Which bitmap.
        mask: MaskKind,
        /// The pages or clusters.
        bits: BitRange,
        /// Whether the bitmap has them as used.
        claimed: bool,
    },
    /// A bitmap of a clean store has as used what no readable blob has, and there are blobs that
    /// cannot be read.
    #[error("the {mask} bitmap has {bits} as used, maybe by what is damaged: left reserved")]
    Held {
        /// Which bitmap.
        mask: MaskKind,
        /// The pages or clusters.
        bits: BitRange,
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
    #[error(
        "metadata page {page} is damaged, and nobody's: it was being written when the power \
             failed, or it is what is left of a lost volume"
    )]
    DamagedPage {
        /// Which.
        page: PageIndex,
    },
}

/// Successive bits of a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitRange {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
}

impl std::fmt::Display for BitRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first} to {last}") }
    }
}

impl BitRange {
    /// The ranges that `bits`, which ascend, make.
    pub(super) fn of(bits: impl Iterator<Item = u32>) -> impl Iterator<Item = Self> {
        let mut bits = bits.peekable();
        std::iter::from_fn(move || {
            let first = bits.next()?;
            let mut last = first;
            while let Some(next) = bits.next_if(|next| last.checked_add(1) == Some(*next)) {
                last = next;
            }
            Some(Self { first, last })
        })
    }
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
                | Self::Held { .. }
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
            Self::Size { .. }
            | Self::Held { .. }
            | Self::UnusedPage { .. }
            | Self::DamagedPage { .. } => Severity::Note,
            Self::Mask(_)
            | Self::MaskBits { .. }
            | Self::Torn { .. }
            | Self::SnapshotUnfinished { .. }
            | Self::DeletionUnfinished { .. } => Severity::Repairable,
            _ => Severity::Damage,
        }
    }

    /// The blobs that it is about, at most two.
    pub fn blobs(&self) -> impl Iterator<Item = BlobId> {
        let (one, other) = match self {
            Self::More
            | Self::Mask(_)
            | Self::MaskBits { .. }
            | Self::Held { .. }
            | Self::NoSuperBlob
            | Self::SuperBlobClusters { .. }
            | Self::Unreadable { .. }
            | Self::Torn { .. }
            | Self::UnusedPage { .. }
            | Self::DamagedPage { .. } => (None, None),
            Self::Blob { blob, .. }
            | Self::Odd { blob, .. }
            | Self::ExtentPage { blob, .. }
            | Self::Mapping { blob, .. }
            | Self::Size { blob, .. }
            | Self::Identity { blob, .. }
            | Self::NoParent { blob, .. }
            | Self::ParentLoop { blob }
            | Self::ThickClone { blob }
            | Self::TwoParents { blob }
            | Self::ExternalParent { blob }
            | Self::WritableParent { blob }
            | Self::SnapshotUnfinished { blob, .. }
            | Self::DeletionUnfinished { blob, .. }
            | Self::Unfinishable { blob, .. }
            | Self::Excess { blob } => (Some(*blob), None),
            Self::SharedClusters { owners: (one, other), .. }
            | Self::SharedPage { owners: (one, other), .. }
            | Self::SameName { blobs: (one, other), .. }
            | Self::SameUuid { blobs: (one, other), .. } => (Some(*one), Some(*other)),
        };
        one.into_iter().chain(other)
    }

    /// A short name of its kind, for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::More => "more",
            Self::Mask(_) => "mask",
            Self::MaskBits { .. } => "mask-bits",
            Self::Held { .. } => "held",
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

/// What has been found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) list: Vec<Finding>,
}

impl Findings {
    /// Adds a finding; drops it where the limit is reached.
    pub(super) fn add(&mut self, finding: Finding) {
        if self.list.len() < FINDINGS_LIMIT {
            self.list.push(finding);
        } else if self.list.len() == FINDINGS_LIMIT {
            self.list.push(Finding::More);
        }
    }

    /// Whether looking on makes no sense.
    pub(super) fn is_full(&self) -> bool {
        self.list.len() > FINDINGS_LIMIT
    }
}
