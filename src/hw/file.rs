//! Calls on files and block devices that the standard library does not have.

#![expect(unsafe_code, reason = "fallocate, ioctl and open file description locks")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};

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

/// The first byte from `offset` on that may be other than zero; `None` if there is none. What cannot
/// tell holes from data is all data. Moves the file's position.
#[must_use]
pub fn next_data(file: &File, offset: u64) -> Option<u64> {
    let Ok(start) = i64::try_from(offset) else { return Some(offset) };
    // SAFETY: an open descriptor; the call touches no memory of ours.
    let found = unsafe { libc::lseek(file.as_raw_fd(), start, libc::SEEK_DATA) };
    match u64::try_from(found) {
        Ok(found) => Some(found),
        Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => None,
        Err(_) => Some(offset),
    }
}

/// How many names a file has, and how many bytes. Its times are not asked for, as `fstat(2)` does:
/// once it has told them, the system gives the next write a time of its own, and the next flush
/// has the inode to write as well.
fn names_and_bytes(file: &File) -> io::Result<(u32, u64)> {
    // SAFETY: a `statx` is plain numbers, for which zeros are valid.
    let mut told: libc::statx = unsafe { std::mem::zeroed() };
    let (descriptor, mask) = (file.as_raw_fd(), libc::STATX_NLINK | libc::STATX_SIZE);
    // SAFETY: an open descriptor, an empty path, and an owned structure that the call fills.
    let result =
        unsafe { libc::statx(descriptor, c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &raw mut told) };
    if result == 0 { Ok((told.stx_nlink, told.stx_size)) } else { Err(io::Error::last_os_error()) }
}

/// What became of an open file behind our back: what is written to it now is in no file that
/// anybody can open later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TakenAway {
    /// It has no name any more, or another file has it.
    #[error(
        "the file was deleted or replaced while it was in use; what is not copied from here \
             is lost at the end of this process"
    )]
    Deleted,
    /// It is shorter than it was.
    #[error("the file was cut to {actual} of its {wanted} bytes while it was in use")]
    Cut {
        /// Bytes it has.
        actual: u64,
        /// Bytes it had.
        wanted: u64,
    },
}

/// What a file was when it was last measured, to notice later that it was taken away.
#[derive(Debug)]
pub struct Kept {
    /// Whether it had a name, and its bytes. `None` for a block device: its name may go and its
    /// blocks stay.
    regular: Option<(bool, AtomicU64)>,
}

impl Kept {
    /// How the file is now.
    ///
    /// # Errors
    /// The system's.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let regular = metadata.is_file().then(|| (metadata.nlink() > 0, metadata.len().into()));
        Ok(Self { regular })
    }

    /// Measures the file again, and keeps what it has gained; its bytes.
    ///
    /// # Errors
    /// As for [`size_of`].
    pub fn measure(&self, file: &File) -> io::Result<u64> {
        let bytes = size_of(file)?;
        if let Some((_, kept)) = &self.regular {
            kept.fetch_max(bytes, Ordering::Relaxed);
        }
        Ok(bytes)
    }

    /// Whether the file still is what it was: it has a name if it had one, and is no shorter.
    ///
    /// # Errors
    /// [`TakenAway`], as an error of kind `NotFound` or `UnexpectedEof`; else the system's.
    pub fn check(&self, file: &File) -> io::Result<()> {
        let Some((named, wanted)) = &self.regular else {
            return Ok(());
        };
        let ((names, actual), wanted) = (names_and_bytes(file)?, wanted.load(Ordering::Relaxed));
        if *named && names == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, TakenAway::Deleted));
        }
        if actual < wanted {
            let cut = TakenAway::Cut { actual, wanted };
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_that_is_taken_away_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        file.set_len(8192).unwrap();
        let kept = Kept::of(&file).unwrap();
        kept.check(&file).unwrap();
        file.set_len(16384).unwrap();
        kept.check(&file).unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(kept.check(&file).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        file.set_len(8192).unwrap();
        kept.check(&file).unwrap();
        // What was taken in must stay as well.
        file.set_len(16384).unwrap();
        assert_eq!(kept.measure(&file).unwrap(), 16384);
        file.set_len(16383).unwrap();
        assert_eq!(kept.measure(&file).unwrap(), 16383);
        assert_eq!(kept.check(&file).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        file.set_len(16384).unwrap();
        std::fs::write(folder.path().join("other"), "").unwrap();
        std::fs::rename(folder.path().join("other"), &path).unwrap();
        let error = kept.check(&file).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("deleted or replaced"), "{error}");
        // One that never had a name is no worse off without one.
        let unnamed = tempfile::tempfile().unwrap();
        Kept::of(&unnamed).unwrap().check(&unnamed).unwrap();
    }

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
