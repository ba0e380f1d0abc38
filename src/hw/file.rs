//! Calls on files and block devices that the standard library does not have.

#![expect(unsafe_code, reason = "fallocate, ioctl and open file description locks")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;

/// What `fallocate(2)` should do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Give the range storage.
    Allocate,
    /// Give the range's storage back; it reads as zeros.
    PunchHole,
    /// Make the range read as zeros, keeping its storage where the file system can.
    ZeroRange,
}

impl Fallocate {
    /// The mode as the system call takes it.
    #[must_use]
    pub const fn mode(self) -> i32 {
        match self {
            Self::Allocate => 0,
            Self::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Self::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }
}

/// `fallocate(2)` on a range of a file, or of a block device (which has no `Allocate`).
///
/// # Errors
/// The system's; `EOPNOTSUPP` where the file system lacks the mode.
pub fn fallocate(file: &File, what: Fallocate, offset: u64, length: u64) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (offset, length) =
        (i64::try_from(offset).map_err(invalid)?, i64::try_from(length).map_err(invalid)?);
    // SAFETY: an open descriptor and plain numbers.
    match unsafe { libc::fallocate(file.as_raw_fd(), what.mode(), offset, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the exclusive open-file-description lock on the whole file. It is held until every
/// descriptor of this opening is closed, also across threads, and is lost by no other close.
///
/// # Errors
/// `WouldBlock` if another opening holds a lock; else the system's.
pub fn lock_exclusive(file: &File) -> io::Result<()> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: an open descriptor and one owned structure.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EAGAIN)) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            error => Err(error),
        },
    }
}

/// The size of a regular file or a block device.
///
/// # Errors
/// The system's; `InvalidInput` for anything else.
pub fn size_of(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    if !metadata.file_type().is_block_device() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = 0_u64;
    // `_IOR(0x12, 114, size_t)`: BLKGETSIZE64.
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    // SAFETY: the ioctl writes eight bytes to an owned value.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) } {
        0 => Ok(bytes),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn holes_and_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 65536], 0).unwrap();
        fallocate(&file, Fallocate::PunchHole, 0, 32768).unwrap();
        let mut bytes = [1; 65536];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..32768].iter().all(|&b| b == 0) && bytes[32768..].iter().all(|&b| b == 7));
        assert!(file.metadata().unwrap().blocks() * 512 <= 49152);
        assert_eq!(size_of(&file).unwrap(), 65536);
    }

    #[test]
    fn a_lock_keeps_a_second_opening_out() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(path.path()).unwrap();
        let (first, second) = (open(), open());
        lock_exclusive(&first).unwrap();
        assert_eq!(lock_exclusive(&second).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        lock_exclusive(&second).unwrap();
    }
}
