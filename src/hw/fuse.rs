//! System calls around `/dev/fuse` and mounts that the standard library does not have.

#![expect(unsafe_code, reason = "FUSE_DEV_IOC_CLONE and umount2 are system calls")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `_IOR(229, 0, u32)`, `include/uapi/linux/fuse.h`.
const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

/// A further descriptor of the connection behind `session`, with a queue of its own for the
/// requests that are read from it. Reading and writing it never blocks.
///
/// # Errors
/// The system's.
pub fn clone_connection(session: BorrowedFd<'_>) -> io::Result<File> {
    let clone =
        File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/fuse")?;
    let source = session.as_raw_fd().cast_unsigned();
    // SAFETY: the ioctl reads one owned u32, the number of an open descriptor.
    match unsafe { libc::ioctl(clone.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const source) } {
        0 => Ok(clone),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Aborts the connection of a mount that is in use (`MNT_FORCE`). The mount stays in the tree.
///
/// # Errors
/// The system's: `EPERM` for a user without the right to unmount.
pub fn abort_by_unmounting(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: an owned C string and plain flags.
    match unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::UMOUNT_NOFOLLOW) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // The connection is aborted before the mount is found in use.
            error if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
            error => Err(error),
        },
    }
}

/// Unmounts a file system that nobody uses.
///
/// # Errors
/// The system's: `EBUSY` if somebody does, `EINVAL` if nothing is mounted there, `EPERM` for a user
/// without the right to unmount.
pub fn unmount(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: an owned C string and plain flags.
    match unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes a mount out of the tree now; the file system ends when its last user is gone
/// (`MNT_DETACH`).
///
/// # Errors
/// The system's: `EPERM` for a user without the right to unmount.
pub fn unmount_lazily(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: an owned C string and plain flags.
    match unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
