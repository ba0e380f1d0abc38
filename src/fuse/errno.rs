//! Error numbers: what a failed request answers. The one place where errors of the layers below
//! become numbers; no match here has a wildcard arm.

use std::fmt;

use crate::block::BlockError;
use crate::lvol;
use crate::lvol::format::XattrError;
use crate::lvol::format::lvolstore::IdentityError;
use crate::spec::status::StatusCode;
use crate::volume;

/// A Linux error number, positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! numbers {
    ($($name:ident)*) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`, see `errno(3)`.")]
                pub const $name: Self = Self(libc::$name);
            )*
        }
    };
}

numbers! {
    EBADE EBUSY EEXIST EFBIG EINTR EINVAL EIO EISDIR ENAMETOOLONG ENODATA ENOENT ENOMEM ENOSPC ENOSYS
    ENOTDIR ENOTEMPTY ENOTTY ENXIO EOPNOTSUPP EPERM ERANGE EROFS ESTALE EXDEV
}

impl Errno {
    /// The number.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl From<volume::Error> for Errno {
    fn from(error: volume::Error) -> Self {
        match error {
            volume::Error::NotFound => Self::ENOENT,
            volume::Error::Deleted => Self::ESTALE,
            // What writing at the end of a block device gives.
            volume::Error::PastEnd { .. } => Self::ENOSPC,
            // What a Linux host makes of the status.
            volume::Error::ReservationConflict => Self::EBADE,
            volume::Error::Reservation { status: StatusCode::INVALID_FIELD, .. } => Self::EINVAL,
            volume::Error::Reservation { .. } => Self::EIO,
            volume::Error::ReservedName => Self::EPERM,
            volume::Error::NotFileName { .. } => Self::EINVAL,
            volume::Error::OtherPool => Self::EXDEV,
            volume::Error::PoolExists { .. } => Self::EEXIST,
            volume::Error::Held { .. }
            | volume::Error::ParentOf { .. }
            | volume::Error::PoolInUse { .. }
            | volume::Error::Cached
            | volume::Error::Reserved => Self::EBUSY,
            volume::Error::NoMemory { .. } => Self::ENOMEM,
            volume::Error::NotAttached => Self::EIO,
            volume::Error::Store(error) => error.into(),
        }
    }
}

impl From<lvol::Error> for Errno {
    fn from(error: lvol::Error) -> Self {
        match error {
            lvol::Error::NotFound => Self::ENOENT,
            lvol::Error::Exists { .. } => Self::EEXIST,
            lvol::Error::NoAttribute => Self::ENODATA,
            lvol::Error::NoSpace { .. } => Self::ENOSPC,
            lvol::Error::WaitInterrupted => Self::EINTR,
            lvol::Error::ReadOnly { .. } => Self::EROFS,
            lvol::Error::HasClones { .. } | lvol::Error::Busy { .. } => Self::EBUSY,
            lvol::Error::Unsuitable(_) => Self::EINVAL,
            lvol::Error::InvalidName(error) => error.into(),
            lvol::Error::InvalidAttribute(error) => error.into(),
            lvol::Error::ReservedAttribute => Self::EPERM,
            lvol::Error::TooLarge { .. } => Self::EFBIG,
            // The volume shrank while the request was under way.
            lvol::Error::OutOfRange { .. } => Self::ENOSPC,
            lvol::Error::Unaligned { .. } => Self::EINVAL,
            lvol::Error::NoMemory { .. } => Self::ENOMEM,
            lvol::Error::Device(error) => error.into(),
            lvol::Error::Poisoned { .. }
            | lvol::Error::Closed
            | lvol::Error::ExternalParent
            | lvol::Error::ExternalDevice(_)
            | lvol::Error::ExternalVolume(_)
            | lvol::Error::ExternalDepth
            | lvol::Error::CopyTarget(_)
            | lvol::Error::NotBlank(_)
            | lvol::Error::SuperBlock(_)
            | lvol::Error::Layout(_)
            | lvol::Error::TooManyClusters { .. }
            | lvol::Error::SuperBlob(_)
            | lvol::Error::Gone => Self::EIO,
        }
    }
}

impl From<IdentityError> for Errno {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::NameTooLong { .. } => Self::ENAMETOOLONG,
            IdentityError::Missing { .. }
            | IdentityError::NameEmpty
            | IdentityError::NameNotText
            | IdentityError::Uuid => Self::EINVAL,
        }
    }
}

impl From<XattrError> for Errno {
    fn from(error: XattrError) -> Self {
        match error {
            XattrError::NoName => Self::EINVAL,
            XattrError::TooLarge { .. } => Self::ENOSPC,
        }
    }
}

impl From<BlockError> for Errno {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::NoMemory { .. } => Self::ENOMEM,
            BlockError::OutOfRange { .. }
            | BlockError::BadLength { .. }
            | BlockError::System { .. }
            | BlockError::Short { .. }
            | BlockError::TakenAway(_)
            | BlockError::NoAnswer { .. }
            | BlockError::Gone
            | BlockError::Nvme { .. }
            | BlockError::CacheLost
            | BlockError::NoQueue
            | BlockError::Injected { .. } => Self::EIO,
        }
    }
}
