//! Error numbers: what a failed request answers.

use std::fmt;

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
    EBADE EBUSY EEXIST EFBIG EINVAL EIO EISDIR ENAMETOOLONG ENODATA ENOENT ENOMEM ENOSPC ENOSYS
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
