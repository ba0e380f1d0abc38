//! Mounting and unmounting: what is checked first, what is agreed with the kernel, what is left.
//!
//! fuser mounts (by `mount(2)`, or by `fusermount3` for a user without the right to), answers
//! the handshake and unmounts. It serves no requests: those come by clones of its descriptor, see
//! [`super::device`] and [`super::uring`].

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fuser::{InitFlags, KernelConfig, MountOption, SessionACL};

use super::device::Connection;
use super::transfer;
use crate::hw;

/// The source of our mounts in `/proc/self/mountinfo`, and their subtype: `fuse.lvolfs`.
pub const FILE_SYSTEM: &str = "lvolfs";
/// Asynchronous requests that the kernel sends before it waits for answers: with fewer, deep
/// queues of two writers halve their rate.
const BACKGROUND_LIMIT: u16 = 512;
/// Most that the kernel reads ahead.
const READ_AHEAD_LIMIT: u32 = 128 << 10;
/// How long a mount that is in our place may take to show whether somebody serves it.
const ALIVE_WAIT: Duration = Duration::from_secs(5);
/// How often a mount in use is tried again before it is said to be in use, and how far apart.
const BUSY_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Where and for whom to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// An empty directory.
    pub path: PathBuf,
    /// Who may use the mount.
    pub access: Access,
    /// How requests are to come.
    pub transport: Transport,
    /// Whether files may be opened for write-back. The kernel then keeps the sizes of all files
    /// that are open, and learns of no others.
    pub write_back: bool,
}

/// How requests come from the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// By queues of io_uring, if the kernel offers them, else by `/dev/fuse`.
    #[default]
    Auto,
    /// By queues of io_uring; no mount without them.
    IoUring,
    /// By reading `/dev/fuse`.
    DevFuse,
}

/// Who may use a mount. Permission bits are checked by the kernel in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The user that mounts, and nobody else, not even root.
    Owner,
    /// Everybody. A user other than root needs `user_allow_other` in `/etc/fuse.conf` for it.
    Everybody,
}

/// Why there is no mount, or no clean end of one.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Nothing is at the path.
    #[error("mount path {} does not exist; create the directory", .path.display())]
    Missing {
        /// The mount path.
        path: PathBuf,
    },
    /// A file is at the path.
    #[error("mount path {} is not a directory", .path.display())]
    NotADirectory {
        /// The mount path.
        path: PathBuf,
    },
    /// The directory holds something that a mount would hide.
    #[error(
        "mount path {} is not empty: it holds {entry:?}; a mount would hide it", .path.display()
    )]
    NotEmpty {
        /// The mount path.
        path: PathBuf,
        /// One of its entries.
        entry: String,
    },
    /// Something is mounted there.
    #[error(
        "mount path {} is already mounted, from {source_name} ({kind}); \
         unmount it or choose another path", .path.display()
    )]
    AlreadyMounted {
        /// The mount path.
        path: PathBuf,
        /// Type of the file system there.
        kind: String,
        /// What is mounted there.
        source_name: String,
    },
    /// FUSE over io_uring was asked for, and nothing else.
    #[error(
        "FUSE over io_uring is not available: {reason}; mount.transport = \"auto\" does without"
    )]
    NoIoUring {
        /// Why, and what to do.
        reason: String,
    },
    /// The system refused.
    #[error("cannot {action} {}: {error}", .path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
}

/// How a mount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// Nobody used it any more.
    Clean,
    /// It is in use, and still there.
    InUse,
}

/// A mount that is there. Dropping it unmounts.
pub struct Mount {
    path: PathBuf,
    session: fuser::Session<Handshake>,
    io_uring: Result<(), String>,
}

impl Mount {
    /// Checks the path, clears the dead mount of a killed daemon from it, and mounts.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn new(options: &MountOptions) -> Result<Self, MountError> {
        let path = prepare(&options.path)?;
        let mut config = fuser::Config::default();
        config.mount_options = vec![
            MountOption::FSName(FILE_SYSTEM.into()),
            // fuser's own `Subtype` reaches `fusermount3`, but not `mount(2)`.
            MountOption::CUSTOM(format!("subtype={FILE_SYSTEM}")),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
        ];
        config.acl = match options.access {
            Access::Owner => SessionACL::Owner,
            Access::Everybody => SessionACL::All,
        };
        let agreed = Arc::new(AtomicBool::new(false));
        let wanted = options.transport != Transport::DevFuse;
        let handshake =
            Handshake { wanted, write_back: options.write_back, agreed: Arc::clone(&agreed) };
        let session = fuser::Session::new(handshake, &path, &config).map_err(|error| {
            MountError::System { action: "mount on", path: path.clone(), error }
        })?;
        let io_uring = match (wanted, agreed.load(Ordering::Relaxed)) {
            (_, true) => Ok(()),
            (true, false) => Err(why_no_io_uring()),
            (false, false) => Err("the configuration says mount.transport = \"dev_fuse\"".into()),
        };
        match (options.transport, io_uring) {
            (Transport::IoUring, Err(reason)) => Err(MountError::NoIoUring { reason }),
            (_, io_uring) => Ok(Self { path, session, io_uring }),
        }
    }

    /// Whether requests are to come by io_uring. Then the kernel holds them back until all queues
    /// are registered or refused: see [`super::uring`].
    ///
    /// # Errors
    /// Why they come by `/dev/fuse`, and what to do about it.
    pub fn io_uring(&self) -> Result<(), &str> {
        self.io_uring.as_ref().copied().map_err(String::as_str)
    }

    /// Where it is, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A connection for one more reactor.
    ///
    /// # Errors
    /// The system's.
    pub fn connection(&self) -> Result<Connection, MountError> {
        Connection::new(self.session.as_fd()).map_err(|error| {
            let path = self.path.clone();
            MountError::System { action: "clone the connection of", path, error }
        })
    }

    /// Unmounts if nobody uses the mount; blocks until the kernel let go.
    ///
    /// # Errors
    /// The system's.
    pub fn unmount(&mut self) -> Result<Unmounted, MountError> {
        let attempt = self.session.unmount();
        for _ in 0..BUSY_TRIES {
            match find_mount(&self.path)? {
                Some(mount) if mount.is_ours() => {}
                _ => return Ok(Unmounted::Clean),
            }
            // Often whoever uses it is just going: a process that ends, or one that was just
            // forked and has not let go of the files of its parent.
            std::thread::sleep(BUSY_PAUSE);
            if hw::fuse::unmount(&self.path).is_ok() {
                return Ok(Unmounted::Clean);
            }
        }
        if let Err(error) = attempt {
            tracing::warn!(path = %self.path.display(), %error, "the mount is in use");
        }
        Ok(Unmounted::InUse)
    }

    /// Ends a mount that is in use: its connection is aborted, so that whoever waits for an answer
    /// or asks for one later gets an error, and it is taken out of the tree.
    ///
    /// # Errors
    /// If it is still there.
    pub fn detach(self) -> Result<(), MountError> {
        let number = find_mount(&self.path)?.and_then(|mount| mount.device);
        let aborted = hw::fuse::abort_by_unmounting(&self.path).or_else(|_| {
            // Whoever may not unmount by force may still abort a connection of their own.
            let number = number.ok_or(io::ErrorKind::NotFound)?;
            fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), "1")
        });
        if let Err(error) = aborted {
            tracing::warn!(%error, "the connection ends with this process: cannot abort it");
        }
        detach(&self.path)
    }
}

/// Why the kernel does not offer FUSE over io_uring, and what to do about it.
fn why_no_io_uring() -> String {
    const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
    match fs::read_to_string(SWITCH).as_deref().map(str::trim) {
        Err(_) => "this kernel does not have it; Linux 6.14 and newer do".to_owned(),
        Ok("Y" | "1") => "the kernel does not offer it".to_owned(),
        Ok(_) => format!(
            "it is turned off; as root: echo Y > {SWITCH}, then start again (for every boot: \
             \"options fuse enable_uring=1\" in /etc/modprobe.d)"
        ),
    }
}

/// What is asked of the kernel when it greets.
struct Handshake {
    /// Whether to ask for io_uring.
    wanted: bool,
    /// Whether to ask for the write-back cache.
    write_back: bool,
    /// Whether it was offered and accepted.
    agreed: Arc<AtomicBool>,
}

impl fuser::Filesystem for Handshake {
    fn init(&mut self, _request: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not asked for: ATOMIC_O_TRUNC, see `operations`.
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
            | if self.write_back { InitFlags::FUSE_WRITEBACK_CACHE } else { InitFlags::empty() }
            | if self.wanted { InitFlags::FUSE_OVER_IO_URING } else { InitFlags::empty() };
        let offered = wanted & config.capabilities();
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        config
            .add_capabilities(offered)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let transfer = u32::try_from(transfer::size()).unwrap_or(u32::MAX);
        config.set_max_write(transfer).map_err(invalid)?;
        config
            .set_max_background(BACKGROUND_LIMIT)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // With more, the payload of a queue's entry would have to be larger.
        config.set_max_readahead(READ_AHEAD_LIMIT).map_or_else(drop, drop);
        self.agreed.store(offered.contains(InitFlags::FUSE_OVER_IO_URING), Ordering::Relaxed);
        tracing::debug!(?offered, "agreed with the kernel");
        Ok(())
    }
}

/// Tells whether a mount could be made at `path` now, and clears it if a killed daemon left its
/// mount there: for a daemon that wants to know before it touches anything else.
///
/// # Errors
/// As [`Mount::new`].
pub fn check(path: &Path) -> Result<(), MountError> {
    prepare(path).map(drop)
}

/// Checks a mount path, and clears it if a killed daemon left its mount there. Returns the path
/// without symbolic links.
fn prepare(path: &Path) -> Result<PathBuf, MountError> {
    let system = |action| move |error| MountError::System { action, path: path.into(), error };
    let missing = || MountError::Missing { path: path.into() };
    // Only the folders above are resolved: a dead mount cannot be looked into.
    let resolved = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            match parent.canonicalize() {
                Ok(parent) => parent.join(name),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
                Err(error) => return Err(system("resolve")(error)),
            }
        }
        _ => path.canonicalize().map_err(system("resolve"))?,
    };
    if let Some(mount) = find_mount(&resolved)? {
        if !(mount.is_ours() && is_dead(&resolved)) {
            let (kind, source_name) = (mount.kind, mount.source);
            return Err(MountError::AlreadyMounted { path: path.into(), kind, source_name });
        }
        tracing::warn!(path = %path.display(), "clearing the mount of a daemon that was killed");
        detach(&resolved)?;
        return prepare(path);
    }
    let resolved = match resolved.canonicalize() {
        Ok(resolved) => resolved,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
        Err(error) => return Err(system("resolve")(error)),
    };
    if !resolved.is_dir() {
        return Err(MountError::NotADirectory { path: path.into() });
    }
    // A placeholder is how a folder gets into a repository; nobody misses it under a mount.
    let hidden = |entry: &io::Result<fs::DirEntry>| {
        !entry.as_ref().is_ok_and(|entry| entry.file_name() == ".gitkeep")
    };
    match fs::read_dir(&resolved).map_err(system("list"))?.find(hidden) {
        None => Ok(resolved),
        Some(Ok(entry)) => {
            let entry = entry.file_name().to_string_lossy().into_owned();
            Err(MountError::NotEmpty { path: path.into(), entry })
        }
        Some(Err(error)) => Err(system("list")(error)),
    }
}

/// Whether nobody serves the mount at `path` any more. A server that does not answer is alive.
fn is_dead(path: &Path) -> bool {
    let (answer, answered) = mpsc::channel();
    let path = path.to_owned();
    // On a thread of its own, which a server that hangs may keep. A directory that is opened asks
    // the server; its attributes may be remembered by the kernel. The connection of a daemon that
    // was killed a moment ago may end while it is asked.
    std::thread::spawn(move || {
        let error = fs::read_dir(path).err().and_then(|error| error.raw_os_error());
        answer.send(matches!(error, Some(libc::ENOTCONN | libc::ECONNABORTED)))
    });
    answered.recv_timeout(ALIVE_WAIT).unwrap_or(false)
}

/// Takes a mount out of the tree, by `fusermount3` if we may not do it ourselves.
fn detach(path: &Path) -> Result<(), MountError> {
    let failed = |error| MountError::System { action: "unmount", path: path.into(), error };
    match hw::fuse::unmount_lazily(path) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let status =
                Command::new("fusermount3").args(["-u", "-z", "-q", "--"]).arg(path).status();
            match status.map_err(failed)? {
                status if status.success() => Ok(()),
                status => Err(failed(io::Error::other(format!("fusermount3 ended with {status}")))),
            }
        }
        // Whoever aborted it, or used it last, has taken it out already.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result.map_err(failed),
    }
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct MountEntry {
    /// Minor number of its device, if that is an anonymous one.
    device: Option<u32>,
    path: PathBuf,
    kind: String,
    source: String,
}

impl MountEntry {
    /// Reads a line; see `proc_pid_mountinfo(5)`.
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let path = unescape(left.split(' ').nth(4)?);
        let device = left.split(' ').nth(2)?.strip_prefix("0:");
        let device = device.and_then(|minor| minor.parse().ok());
        let mut right = right.split(' ');
        Some(Self { device, path, kind: right.next()?.into(), source: right.next()?.into() })
    }

    fn is_ours(&self) -> bool {
        self.source == FILE_SYSTEM && self.kind.split('.').next() == Some("fuse")
    }
}

/// Undoes the kernel's escapes: a backslash and three octal digits for a space and the like.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// What is mounted at `path` now: the topmost, if several are.
fn find_mount(path: &Path) -> Result<Option<MountEntry>, MountError> {
    const TABLE: &str = "/proc/self/mountinfo";
    let table = fs::read(TABLE).map_err(|error| MountError::System {
        action: "read",
        path: TABLE.into(),
        error,
    })?;
    let table = String::from_utf8_lossy(&table);
    Ok(table.lines().rev().filter_map(MountEntry::parse).find(|entry| entry.path == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read() {
        let line = "36 35 0:45 / /mnt/a\\040b rw,nosuid shared:2 master:1 - fuse.lvolfs lvolfs rw";
        let entry = MountEntry::parse(line).unwrap();
        assert_eq!((entry.path.as_path(), entry.device), (Path::new("/mnt/a b"), Some(45)));
        assert!(entry.is_ours());
        let other = MountEntry::parse("1 2 0:3 / / rw - ext4 /dev/vda rw").unwrap();
        assert!(!other.is_ours());
        for bad in ["", "1 2 3", "1 2 0:3 / / rw - ", " - "] {
            assert!(MountEntry::parse(bad).is_none_or(|entry| !entry.is_ours()), "{bad:?}");
        }
        assert_eq!(unescape("a\\04"), Path::new("a\\04"));
    }

    #[test]
    fn bad_mount_paths_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| prepare(path).unwrap_err().to_string();
        let missing = folder.path().join("missing");
        assert!(message(&missing).ends_with("missing does not exist; create the directory"));
        assert!(message(&missing.join("deeper")).contains("does not exist"));
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(message(&file).ends_with("file is not a directory"));
        assert!(message(folder.path()).contains("is not empty: it holds \"file\""));
        let proc = message(Path::new("/proc"));
        assert!(proc.contains("/proc is already mounted, from proc (proc)"), "{proc}");
        let empty = folder.path().join("empty");
        fs::create_dir(&empty).unwrap();
        assert_eq!(prepare(&empty).unwrap(), empty.canonicalize().unwrap());
    }
}
