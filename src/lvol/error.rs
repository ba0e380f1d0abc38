//! Why the lvolstore did not do what it was asked.

use crate::block::BlockError;
use crate::hw::dma::DmaBuffer;
use crate::units::{BlobId, ByteCount, ByteOffset, ClusterIndex, PageIndex};

use super::format::lvolstore::IdentityError;
use super::format::{
    BlobError, Contents, LayoutError, MapProblem, MaskError, SuperBlockError, XattrError,
};

/// An error of the lvolstore. Front ends map the variants to errno and NVMe status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No volume of that name or identity; or it was deleted meanwhile.
    #[error("there is no such volume")]
    NotFound,
    /// The name is taken.
    #[error("a volume named \"{name}\" exists already")]
    Exists {
        /// The name.
        name: String,
    },
    /// No such extended attribute.
    #[error("the volume has no such attribute")]
    NoAttribute,
    /// A write that waited for space was told not to.
    #[error("the wait for space was interrupted")]
    WaitInterrupted,
    /// No free cluster, or no free metadata page.
    #[error("the pool is full: no free {what}")]
    NoSpace {
        /// What ran out.
        what: Resource,
    },
    /// The volume cannot be changed.
    #[error("the volume is read-only: {reason}")]
    ReadOnly {
        /// Why.
        reason: ReadOnlyReason,
    },
    /// A flush or a metadata write failed before: the pool is read-only until it is reopened.
    #[error("the pool is read-only since a {operation} failed: {cause}")]
    Poisoned {
        /// What failed.
        operation: &'static str,
        /// Why.
        cause: BlockError,
    },
    /// The pool was closed.
    #[error("the pool is closed")]
    Closed,
    /// One of its kind is enough at a time.
    #[error("{with} is under way already")]
    Busy {
        /// What.
        with: &'static str,
    },
    /// Several other volumes depend on this one.
    #[error("the volume has {} clones: {}; delete or inflate all but one first", .names.len(), .names.join(", "))]
    HasClones {
        /// Their names.
        names: Vec<String>,
    },
    /// The operation makes no sense for the volume as it is.
    #[error("{0}")]
    Unsuitable(&'static str),
    /// A name that cannot be.
    #[error("the name cannot be used")]
    InvalidName(#[from] IdentityError),
    /// An attribute that cannot be, or that belongs to the format.
    #[error("the attribute cannot be set")]
    InvalidAttribute(#[from] XattrError),
    /// A name of an attribute that the lvolstore itself uses.
    #[error("the attribute belongs to the lvolstore")]
    ReservedAttribute,
    /// The size is above what a volume can have here.
    #[error("{size} bytes are more than a volume can have ({limit} bytes)")]
    TooLarge {
        /// Asked for.
        size: ByteCount,
        /// The limit.
        limit: ByteCount,
    },
    /// The range ends past the volume's end.
    #[error("the range {offset}+{length} ends past the volume's {size} bytes")]
    OutOfRange {
        /// First byte.
        offset: ByteOffset,
        /// Length in bytes.
        length: ByteCount,
        /// The volume's size.
        size: ByteCount,
    },
    /// The range is empty or does not consist of whole blocks.
    #[error("the range {offset}+{length} does not consist of whole blocks of {block} bytes")]
    Unaligned {
        /// First byte.
        offset: ByteOffset,
        /// Length in bytes.
        length: ByteCount,
        /// Bytes of a block.
        block: u32,
    },
    /// The data lies on a parent outside of the pool, which is not attached.
    #[error("the data lies on the volume's external parent, which is not attached")]
    ExternalParent,
    /// The device that a copy is written to said no.
    #[error("the copy's device failed: {0}")]
    CopyTarget(BlockError),
    /// The device that is the external parent said no.
    #[error("the volume's external parent failed: {0}")]
    ExternalDevice(BlockError),
    /// The volume of another pool that is the external parent said no.
    #[error("the volume's external parent failed: {0}")]
    ExternalVolume(Box<Error>),
    /// The external parent has one in turn, and so on: too many of them.
    #[error(
        "the volume's external parents are more than {} deep, or form a cycle",
        super::external::EXTERNAL_CHAIN_LIMIT
    )]
    ExternalDepth,
    /// No DMA memory is left for the operation.
    #[error("no DMA memory left for {bytes} bytes")]
    NoMemory {
        /// What was needed.
        bytes: u64,
    },
    /// The device said no.
    #[error("the device failed: {0}")]
    Device(#[from] BlockError),
    /// The device is not blank, so it is not formatted.
    #[error("the device holds {0}, so it is not formatted")]
    NotBlank(Contents),
    /// The super block is none of ours, or damaged.
    #[error("the super block cannot be used: {0}")]
    SuperBlock(#[from] SuperBlockError),
    /// The device or the options do not allow a store.
    #[error("no store can be made here: {0}")]
    Layout(#[from] LayoutError),
    /// The store has more clusters than this implementation can map.
    #[error("the store has {clusters} clusters; at most {limit} can be served")]
    TooManyClusters {
        /// Clusters of the store.
        clusters: u32,
        /// The limit.
        limit: u32,
    },
    /// The blob with the store's name and UUID is missing or damaged.
    #[error("the store's own blob cannot be read: {0}")]
    SuperBlob(Damage),
    /// The reactor that owns the pool has ended.
    #[error("the pool's reactor has ended")]
    Gone,
}

/// What can run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Clusters.
    Cluster,
    /// Metadata pages.
    MetadataPage,
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::MetadataPage => "metadata page",
        })
    }
}

/// Why a volume cannot be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadOnlyReason {
    /// Somebody said so; or it is a snapshot.
    #[error("it is marked so")]
    Marked,
    /// It has flags that are unknown here and forbid changes.
    #[error("it uses a feature that is unknown here")]
    UnknownFeature,
    /// It shares a cluster or a metadata page with another volume that is no relative.
    #[error("cluster {cluster} also belongs to blob {:#x}", .other.0)]
    SharedCluster {
        /// The cluster.
        cluster: ClusterIndex,
        /// The other owner.
        other: BlobId,
    },
    /// Another blob's tables name one of its metadata pages.
    #[error("metadata page {page} also belongs to blob {:#x}", .other.0)]
    SharedPage {
        /// The page.
        page: PageIndex,
        /// The other owner.
        other: BlobId,
    },
    /// Its parent is outside of the pool and not attached.
    #[error("its external parent is not attached")]
    ExternalParent,
}

/// Why a blob cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// There is none.
    #[error("it does not exist")]
    Missing,
    /// A metadata page is wrong.
    #[error("{0}")]
    Page(#[from] BlobError),
    /// Its parts do not make a map.
    #[error("{0}")]
    Map(#[from] MapProblem),
    /// Its name is missing or unusable.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// Another volume has the same name.
    #[error("blob {:#x} has the same name", .other.0)]
    DuplicateName {
        /// The other volume, which is served.
        other: BlobId,
    },
    /// Its parent is missing or damaged itself.
    #[error("its parent, blob {:#x}, cannot be used", .parent.0)]
    Parent {
        /// The parent.
        parent: BlobId,
    },
    /// A snapshot operation was interrupted, and the other volume of it cannot be used.
    #[error("a snapshot operation on blob {:#x} was interrupted", .other.0)]
    Interrupted {
        /// The other volume.
        other: BlobId,
    },
    /// It is larger than what can be mapped here.
    #[error("its size of {clusters} clusters is more than can be mapped")]
    TooLarge {
        /// Its size.
        clusters: u32,
    },
    /// The blobs refer to more extent pages and clusters than a store can have, and this one to
    /// those beyond.
    #[error("the blobs together use more than there is")]
    Excess,
    /// A bitmap of a cleanly closed store cannot be read.
    #[error("{0}")]
    Mask(#[from] MaskError),
    /// Its pages cannot be read.
    #[error("{0}")]
    Device(#[from] BlockError),
    /// No memory was left to read its pages.
    #[error("no DMA memory was left to read it")]
    NoMemory,
}

/// A failed transfer: why, and the buffer, unless the device may still write to it.
#[derive(Debug)]
pub struct IoFailure {
    /// Why.
    pub error: Error,
    /// The buffer that was moved in; its contents are unspecified after a failed read.
    pub buffer: Option<DmaBuffer>,
}

impl IoFailure {
    pub(super) fn new(error: Error, buffer: DmaBuffer) -> Self {
        Self { error, buffer: Some(buffer) }
    }
}

impl From<crate::block::TransferError> for IoFailure {
    fn from(failed: crate::block::TransferError) -> Self {
        Self { error: Error::Device(failed.error), buffer: failed.buffer }
    }
}

/// The outcome of a read or a write of a volume.
pub type VolumeTransfer = Result<DmaBuffer, IoFailure>;
