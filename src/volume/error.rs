//! Why a volume did not do what it was asked.

use crate::lvol;
use crate::spec::status::StatusCode;
use crate::units::{ByteCount, ByteOffset};

/// An error of the volume layer. Front ends map the variants to errno and NVMe status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No pool or volume of that name or key; or it was deleted meanwhile.
    #[error("there is no such pool or volume")]
    NotFound,
    /// The volume is being deleted.
    #[error("the volume was deleted")]
    Deleted,
    /// A write that starts at or behind the end.
    #[error("offset {offset} is past the end of the volume, which has {size} bytes")]
    PastEnd {
        /// First byte.
        offset: ByteOffset,
        /// The volume's size.
        size: ByteCount,
    },
    /// A reservation forbids it to this host.
    #[error("a reservation of another host forbids it")]
    ReservationConflict,
    /// A reservation command was refused for another reason.
    #[error("{reason}")]
    Reservation {
        /// What a host gets.
        status: StatusCode,
        /// What a person gets.
        reason: String,
    },
    /// The name is reserved for volumes that lost theirs while they were open.
    #[error("names that begin with \"{}\" are reserved", super::owner::UNLINKED_PREFIX)]
    ReservedName,
    /// A new name that no file can have.
    #[error(
        "the name \"{name}\" cannot be a file's: it is empty, \".\" or \"..\", or has a \"/\" or NUL in it"
    )]
    NotFileName {
        /// The name.
        name: String,
    },
    /// The two volumes are in different pools.
    #[error("the volumes are in different pools")]
    OtherPool,
    /// Somebody keeps the volume from being deleted.
    #[error("the volume is in use by {by}")]
    Held {
        /// Who.
        by: String,
    },
    /// Volumes of other pools show what is in it.
    #[error("the volume is the external parent of {by}; decouple, inflate or delete that first")]
    ParentOf {
        /// Those volumes.
        by: String,
    },
    /// Another pool has the name.
    #[error("a pool named \"{name}\" exists already")]
    PoolExists {
        /// The name.
        name: String,
    },
    /// A volume of the pool is in use, so the pool stays.
    #[error("volume {volume} is in use by {by}")]
    PoolInUse {
        /// The volume.
        volume: String,
        /// Who uses it.
        by: String,
    },
    /// It is exported or reserved only if the local mount does not cache it.
    #[error(
        "the mount keeps data of the volume in the page cache (cache = \"writeback\"), which no \
         other host sees; give it cache = \"direct\" in the configuration and start again"
    )]
    Cached,
    /// The local mount caches it only if it is not reserved.
    #[error("the volume has reservations, so other hosts use it")]
    Reserved,
    /// No DMA memory is left for the operation.
    #[error("no DMA memory left for {bytes} bytes")]
    NoMemory {
        /// What was needed.
        bytes: usize,
    },
    /// This reactor was not attached to the pool.
    #[error("the pool is not attached on this reactor")]
    NotAttached,
    /// The lvolstore said no.
    #[error(transparent)]
    Store(#[from] lvol::Error),
}

impl From<lvol::IoFailure> for Error {
    /// The buffer, if it came back, returns to the arena.
    fn from(failure: lvol::IoFailure) -> Self {
        Self::Store(failure.error)
    }
}

impl From<crate::reactor::Gone> for Error {
    fn from(_: crate::reactor::Gone) -> Self {
        Self::Store(lvol::Error::Gone)
    }
}
