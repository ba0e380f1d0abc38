//! A device over a file or a block device of the host, through the reactor's io_uring.
//!
//! * Opened with `O_DIRECT` where the file system allows it; else through the page cache, which
//!   is then the volatile cache. Either way a flush is one `fdatasync`.
//! * Flushes that are asked for while one runs share the next one (group commit): each of them
//!   was asked for before that one starts, so it covers them.
//! * Discard punches a hole and write zeroes asks for a zero range; where the file system has
//!   neither, zeros are written.
//! * A flush fails once the file was deleted, replaced or cut short under us.
//! * The exclusive lock is held while the device is open, so that no second process serves it.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::flush_group::FlushGroup;
use super::{
    BlockDevice, BlockError, Counted, Counters, Counting, Discard, Durability, Geometry, Transfer,
    TransferError,
};
use crate::hw::dma::{DmaArena, DmaBuffer, MAX_BUFFER};
use crate::hw::file::{Fallocate, Kept, lock_exclusive, size_of};
use crate::reactor::{Reactor, Share};
use crate::units::{BlockCount, BlockSize, ByteCount, Lba};

/// What a failed opening says: which file, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system would not open, create or size it.
    #[error("cannot {operation} {}: {source}", .path.display())]
    System {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{} is in use: another process holds its lock; stop that one first", .path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It is neither a regular file nor a block device.
    #[error("{} is neither a regular file nor a block device", .path.display())]
    WrongKind {
        /// The file.
        path: PathBuf,
    },
    /// It is smaller than the configuration says.
    #[error(
        "{} has {actual} bytes, but the configuration says {wanted}; \
         correct `size`, or enlarge the file",
        .path.display()
    )]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Its size.
        actual: u64,
        /// The configured size.
        wanted: u64,
    },
}

/// How to open a device file.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The file or block device.
    pub path: PathBuf,
    /// Its size; `None` takes what is there.
    pub size: Option<ByteCount>,
    /// Whether to create a missing file (sparse, of `size` bytes).
    pub create: bool,
    /// Whether to try `O_DIRECT`.
    pub direct: bool,
}

/// A file that is open, locked and of the right size.
#[derive(Debug)]
pub struct OpenedFile {
    /// The file.
    pub file: File,
    /// Bytes to use.
    pub size: ByteCount,
    /// Whether I/O bypasses the page cache.
    pub direct: bool,
    /// Whether this call created it.
    pub created: bool,
}

/// Opens, locks, and if asked creates a device file.
///
/// # Errors
/// [`OpenError`]; nothing was changed, except that a file may have been created.
pub fn open(options: &FileOptions) -> Result<OpenedFile, OpenError> {
    let path = &options.path;
    let system =
        |operation| move |source| OpenError::System { operation, path: path.clone(), source };
    let created = create_if_missing(options)?;
    let attempt = |flags| {
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC | flags).open(path)
    };
    let direct = options.direct.then(|| attempt(libc::O_DIRECT).ok()).flatten();
    let is_direct = direct.is_some();
    let file = match direct {
        Some(file) => file,
        None => attempt(0).map_err(system("open"))?,
    };
    let kind = file.metadata().map_err(system("examine"))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(OpenError::WrongKind { path: path.clone() });
    }
    lock_exclusive(&file).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { path: path.clone() },
        _ => system("lock")(error),
    })?;
    let actual = size_of(&file).map_err(system("measure"))?;
    let size = match options.size {
        Some(wanted) if created => {
            file.set_len(wanted.get()).map_err(system("set the size of"))?;
            wanted
        }
        Some(wanted) if actual < wanted.get() => {
            let (path, wanted) = (path.clone(), wanted.get());
            return Err(OpenError::TooSmall { path, actual, wanted });
        }
        _ => ByteCount(actual),
    };
    Ok(OpenedFile { file, size, direct: is_direct, created })
}

fn create_if_missing(options: &FileOptions) -> Result<bool, OpenError> {
    let path = &options.path;
    let system =
        |operation| move |source| OpenError::System { operation, path: path.clone(), source };
    if !options.create || options.size.is_none() {
        return Ok(false);
    }
    if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
        std::fs::create_dir_all(folder).map_err(system("create the folder of"))?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(system("create")(error)),
    }
}

/// The shared part of a file device.
#[derive(Clone, Debug)]
pub struct FileDevice(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: Arc<File>,
    kept: Kept,
    geometry: Geometry,
}

impl FileDevice {
    /// A device over an opened file, in blocks of `block_size`.
    ///
    /// # Errors
    /// [`OpenError::TooSmall`] if not one block fits.
    pub fn new(opened: OpenedFile, path: &Path, block_size: BlockSize) -> Result<Self, OpenError> {
        let block_count = BlockCount(opened.size.get() >> block_size.shift());
        if block_count.get() == 0 {
            let (actual, wanted) = (opened.size.get(), u64::from(block_size.bytes()));
            return Err(OpenError::TooSmall { path: path.to_owned(), actual, wanted });
        }
        let geometry = Geometry {
            block_size,
            physical_block_size: block_size,
            block_count: block_count.into(),
            // What the disk below promises is not known: one of our blocks is all we may assume.
            atomic_write: ByteCount(u64::from(block_size.bytes())),
            volatile_cache: true,
            discard: Discard::Zeroes,
            max_transfer: ByteCount(MAX_BUFFER as u64),
        };
        let kept = Kept::of(&opened.file).map_err(|source| OpenError::System {
            operation: "examine",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self(Arc::new(Shared { file: Arc::new(opened.file), kept, geometry })))
    }

    /// What the device is.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.0.geometry
    }

    /// Looks whether the file, or the block device, has become larger. One that has become smaller
    /// stays as large as it was: what is missing fails when it is used.
    ///
    /// # Errors
    /// The system's.
    pub fn rescan(&self) -> io::Result<()> {
        let geometry = &self.0.geometry;
        let bytes = self.0.kept.measure(&self.0.file)?;
        geometry.block_count.grow(BlockCount(bytes >> geometry.block_size.shift()));
        Ok(())
    }

    /// A channel for `reactor`; zeros that must be written come from `arena`.
    #[must_use]
    pub fn channel(&self, reactor: &Rc<Reactor>, arena: &DmaArena) -> FileChannel {
        FileChannel(Rc::new(Channel {
            shared: Arc::clone(&self.0),
            reactor: Rc::clone(reactor),
            arena: arena.clone(),
            counting: Counting::default(),
            flush: Rc::default(),
            has_zero_range: Cell::new(true),
            has_punch_hole: Cell::new(true),
        }))
    }
}

/// One reactor's way to a file device.
#[derive(Clone)]
pub struct FileChannel(Rc<Channel>);

struct Channel {
    shared: Arc<Shared>,
    reactor: Rc<Reactor>,
    arena: DmaArena,
    counting: Counting,
    flush: Rc<FlushGroup>,
    has_zero_range: Cell<bool>,
    has_punch_hole: Cell<bool>,
}

fn system(operation: &'static str, offset: u64, error: &io::Error) -> BlockError {
    BlockError::System { operation, offset, errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

impl Channel {
    fn outcome(
        operation: &'static str,
        offset: u64,
        result: &io::Result<usize>,
        wanted: usize,
    ) -> Result<(), BlockError> {
        match result {
            Ok(moved) if *moved == wanted => Ok(()),
            Ok(_) => Err(BlockError::Short { operation, offset }),
            Err(error) => Err(system(operation, offset, error)),
        }
    }

    fn finish(&self, what: Counted, result: Result<(), BlockError>, buffer: DmaBuffer) -> Transfer {
        self.counting.add(what, result.is_ok());
        match result {
            Ok(()) => Ok(buffer),
            Err(error) => Err(TransferError::new(error, buffer)),
        }
    }

    async fn flush_once(&self) -> Result<(), BlockError> {
        let result = self.reactor.ring().fdatasync(&self.shared.file).await;
        // What was synced to a file without a name is on the medium, and still nobody's.
        let result = result.map_err(|error| system("flush", 0, &error)).and_then(|()| {
            self.shared.kept.check(&self.shared.file).map_err(|error| {
                match error.get_ref().and_then(|cause| cause.downcast_ref()) {
                    Some(taken) => BlockError::TakenAway(*taken),
                    None => system("flush", 0, &error),
                }
            })
        });
        self.counting.add(Counted::Flush, result.is_ok());
        result
    }

    async fn zero(&self, first: Fallocate, offset: u64, length: u64) -> Result<(), BlockError> {
        for (mode, available) in [
            (Fallocate::ZeroRange, &self.has_zero_range),
            (Fallocate::PunchHole, &self.has_punch_hole),
        ] {
            if !available.get() || (first == Fallocate::PunchHole && mode != first) {
                continue;
            }
            match self.reactor.ring().fallocate(&self.shared.file, mode, offset, length).await {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    available.set(false);
                }
                Err(error) => return Err(system("zeroing", offset, &error)),
            }
        }
        self.write_zero_buffers(offset, length).await
    }

    async fn write_zero_buffers(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        const STEP: u64 = 256 << 10;
        let bytes = length.min(STEP);
        let buffer = self.reactor.allocate(&self.arena, bytes as usize, Share::All).await;
        let mut buffer = buffer.ok_or(BlockError::NoMemory { bytes })?;
        buffer.fill(0);
        let mut done = 0;
        while done < length {
            let step = (length - done).min(bytes) as usize;
            let rest = buffer.split_off(step);
            let at = offset + done;
            let (result, back) =
                self.reactor.ring().write_at(&self.shared.file, at, buffer, false).await;
            Self::outcome("write", at, &result, step)?;
            buffer = back;
            if buffer.join(rest).is_err() {
                unreachable!("both are parts of one buffer");
            }
            done += step as u64;
        }
        Ok(())
    }
}

impl BlockDevice for FileChannel {
    fn geometry(&self) -> &Geometry {
        &self.0.shared.geometry
    }

    async fn read(&self, start: Lba, buffer: DmaBuffer) -> Transfer {
        let wanted = buffer.len();
        let what = Counted::Read(wanted as u64);
        let offset = match self.geometry().check_transfer(start, wanted) {
            Ok((offset, _)) => offset,
            Err(error) => return self.0.finish(what, Err(error), buffer),
        };
        let (result, buffer) =
            self.0.reactor.ring().read_at(&self.0.shared.file, offset, buffer).await;
        self.0.finish(what, Channel::outcome("read", offset, &result, wanted), buffer)
    }

    async fn write(&self, start: Lba, buffer: DmaBuffer, durability: Durability) -> Transfer {
        let wanted = buffer.len();
        let what = Counted::Write(wanted as u64, durability);
        let offset = match self.geometry().check_transfer(start, wanted) {
            Ok((offset, _)) => offset,
            Err(error) => return self.0.finish(what, Err(error), buffer),
        };
        let durable = durability == Durability::ForceUnitAccess;
        let file = &self.0.shared.file;
        let (result, buffer) = self.0.reactor.ring().write_at(file, offset, buffer, durable).await;
        self.0.finish(what, Channel::outcome("write", offset, &result, wanted), buffer)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let channel = Rc::clone(&self.0);
        let once = move || {
            let channel = Rc::clone(&channel);
            async move { channel.flush_once().await }
        };
        self.0.flush.join(&self.0.reactor, once).await
    }

    async fn discard(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        let offset = self.geometry().check(start, blocks)?;
        let length = blocks.get() << self.geometry().block_size.shift();
        let result = self.0.zero(Fallocate::PunchHole, offset, length).await;
        self.0.counting.add(Counted::Discard, result.is_ok());
        result
    }

    async fn write_zeroes(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        let offset = self.geometry().check(start, blocks)?;
        let length = blocks.get() << self.geometry().block_size.shift();
        let result = self.0.zero(Fallocate::ZeroRange, offset, length).await;
        self.0.counting.add(Counted::WriteZeroes, result.is_ok());
        result
    }

    fn counters(&self) -> Counters {
        self.0.counting.get()
    }
}
