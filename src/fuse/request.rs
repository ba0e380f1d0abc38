//! A request of the kernel, parsed from its bytes.
//!
//! The bytes are input: nothing here panics on any of them, names are checked before anything
//! sees them, and what is unknown is answered, not guessed. The data of a WRITE is not part of
//! the parsed request; it stays in the buffer that it arrived in.

use std::time::Duration;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::abi::{self, fattr, opcode};
use super::errno::Errno;

/// Longest name of a file.
pub const NAME_LIMIT: usize = 255;
/// Longest value of an extended attribute; the kernel's `XATTR_SIZE_MAX`.
const XATTR_LIMIT: usize = 65536;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its number, which the answer repeats.
    pub unique: u64,
    /// The node that it is about.
    pub node: NodeId,
    /// Who asks.
    pub caller: Caller,
    /// What is asked.
    pub operation: Operation,
}

/// The kernel's number of a file or directory; the inode number too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the mount.
    pub const ROOT: Self = Self(abi::ROOT_ID);
}

/// The thread that made the system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread id in the mount's pid namespace; 0 if it has none there.
    pub thread: u32,
}

/// The number that OPEN gave and that every request on the opened file repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle(pub u64);

/// A file name: 1 to [`NAME_LIMIT`] bytes of UTF-8 without `/` and NUL, neither `.` nor `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(Box<str>);

impl Name {
    fn new(bytes: &[u8]) -> Result<Self, Errno> {
        if bytes.len() > NAME_LIMIT {
            return Err(Errno::ENAMETOOLONG);
        }
        // Names of pools and volumes are UTF-8: anything else names nothing and can name nothing.
        let name = std::str::from_utf8(bytes).map_err(|_| Errno::EINVAL)?;
        if name.is_empty() || name == "." || name == ".." || name.contains('/') {
            return Err(Errno::EINVAL);
        }
        Ok(Self(name.into()))
    }
}

impl std::ops::Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// A time that SETATTR sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the call.
    Now,
    /// This time, since the epoch.
    At(Duration),
}

/// What SETATTR changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the attribute of its name")]
pub struct Changes {
    pub size: Option<u64>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub ctime: Option<SetTime>,
    /// The opened file that the call named (`ftruncate`, `fchmod`), rather than a path.
    pub handle: Option<FileHandle>,
}

/// What COPY_FILE_RANGE copies from the request's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRange {
    /// From here on.
    pub offset: u64,
    /// To this node.
    pub target: NodeId,
    /// From here on.
    pub target_offset: u64,
    /// So many bytes.
    pub length: u64,
    /// Whether the answer counts in 64 bits.
    pub wide: bool,
}

/// What is asked. Field names are the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the kernel's operation of its name, see fuse.h")]
pub enum Operation {
    Lookup {
        name: Name,
    },
    Forget,
    CopyFileRange(CopyRange),
    GetAttr,
    SetAttr(Changes),
    MkNod {
        name: Name,
        mode: u32,
    },
    MkDir {
        name: Name,
    },
    Unlink {
        name: Name,
    },
    RmDir {
        name: Name,
    },
    Rename {
        name: Name,
        new_parent: NodeId,
        new_name: Name,
        flags: u32,
    },
    Open {
        flags: u32,
    },
    Create {
        name: Name,
        mode: u32,
        flags: u32,
    },
    Read {
        handle: FileHandle,
        offset: u64,
        size: u32,
    },
    Write {
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: u32,
    },
    StatFs,
    Release {
        handle: FileHandle,
    },
    Flush,
    FSync {
        data_only: bool,
    },
    SetXattr {
        name: Name,
        value: Box<[u8]>,
        flags: u32,
    },
    GetXattr {
        name: Name,
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: Name,
    },
    OpenDir,
    ReadDir {
        offset: u64,
        size: u32,
        plus: bool,
    },
    ReleaseDir,
    FSyncDir,
    FAllocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    LSeek {
        offset: u64,
        whence: u32,
    },
    Access,
    Interrupt {
        unique: u64,
    },
    Destroy,
    /// Known, and refused with this error.
    Refused(Errno),
}

/// A request that cannot be understood: its opcode and what it is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request with opcode {opcode} is malformed: {errno:?}")]
pub struct Malformed {
    /// Its opcode.
    pub opcode: u32,
    /// The answer.
    pub errno: Errno,
}

impl Request {
    /// Reads a request from its header and what follows it (for a WRITE: up to the data).
    ///
    /// # Errors
    /// [`Malformed`], if it is shorter than its opcode wants or holds an impossible name.
    pub fn parse(header: &abi::InHeader, arguments: &[u8]) -> Result<Self, Malformed> {
        Self::parse_arguments(header, Arguments { fixed: arguments, rest: None })
    }

    /// As [`Request::parse`], where the operation's structure and what follows it, its names,
    /// lie in two places.
    ///
    /// # Errors
    /// As there.
    pub fn parse_parts(
        header: &abi::InHeader,
        fixed: &[u8],
        rest: &[u8],
    ) -> Result<Self, Malformed> {
        Self::parse_arguments(header, Arguments { fixed, rest: Some(rest) })
    }

    fn parse_arguments(
        header: &abi::InHeader,
        mut arguments: Arguments<'_>,
    ) -> Result<Self, Malformed> {
        let operation = operation(header.opcode, &mut arguments)
            .map_err(|errno| Malformed { opcode: header.opcode, errno })?;
        Ok(Self {
            unique: header.unique,
            node: NodeId(header.nodeid),
            caller: Caller { uid: header.uid, gid: header.gid, thread: header.pid },
            operation,
        })
    }
}

/// What of a request was not read yet.
struct Arguments<'a> {
    /// The operation's structure; what follows it too, unless that is in `rest`.
    fixed: &'a [u8],
    rest: Option<&'a [u8]>,
}

impl<'a> Arguments<'a> {
    fn structure<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, Errno> {
        let (structure, after) = T::read_from_prefix(self.fixed).map_err(|_| Errno::EINVAL)?;
        self.fixed = after;
        Ok(structure)
    }

    fn variable(&mut self) -> &mut &'a [u8] {
        self.rest.as_mut().unwrap_or(&mut self.fixed)
    }

    fn bytes_to_nul(&mut self) -> Result<&'a [u8], Errno> {
        let left = self.variable();
        let end = left.iter().position(|&byte| byte == 0).ok_or(Errno::EINVAL)?;
        let (bytes, after) = left.split_at(end);
        *left = &after[1..];
        Ok(bytes)
    }

    fn name(&mut self) -> Result<Name, Errno> {
        Name::new(self.bytes_to_nul()?)
    }

    /// A name to look for: one that cannot exist is not there.
    fn existing(&mut self) -> Result<Name, Errno> {
        match self.name() {
            Err(Errno::EINVAL) => Err(Errno::ENOENT),
            name => name,
        }
    }

    fn value(&mut self, size: u32) -> Result<Box<[u8]>, Errno> {
        let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
        if size > XATTR_LIMIT {
            return Err(Errno::ERANGE);
        }
        self.variable().get(..size).map(Into::into).ok_or(Errno::EINVAL)
    }
}

fn operation(code: u32, arguments: &mut Arguments<'_>) -> Result<Operation, Errno> {
    Ok(match code {
        opcode::READ => {
            let read: abi::ReadIn = arguments.structure()?;
            let handle = FileHandle(read.fh);
            Operation::Read { handle, offset: read.offset, size: read.size }
        }
        opcode::WRITE => {
            let write: abi::WriteIn = arguments.structure()?;
            let (handle, flags) = (FileHandle(write.fh), write.flags);
            Operation::Write { handle, offset: write.offset, size: write.size, flags }
        }
        opcode::FSYNC => {
            let fsync: abi::FsyncIn = arguments.structure()?;
            Operation::FSync { data_only: fsync.fsync_flags & abi::FSYNC_FDATASYNC != 0 }
        }
        opcode::GETATTR => Operation::GetAttr,
        opcode::SETATTR => Operation::SetAttr(changes(&arguments.structure()?)?),
        opcode::OPEN => Operation::Open { flags: arguments.structure::<abi::OpenIn>()?.flags },
        opcode::RELEASE => {
            let release: abi::ReleaseIn = arguments.structure()?;
            Operation::Release { handle: FileHandle(release.fh) }
        }
        opcode::FLUSH => Operation::Flush,
        opcode::FALLOCATE => {
            let abi::FallocateIn { offset, length, mode, .. } = arguments.structure()?;
            Operation::FAllocate { offset, length, mode }
        }
        opcode::LSEEK => {
            let abi::LseekIn { offset, whence, .. } = arguments.structure()?;
            Operation::LSeek { offset, whence }
        }
        opcode::STATFS => Operation::StatFs,
        opcode::ACCESS => Operation::Access,
        opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
            return xattr(code, arguments);
        }
        opcode::OPENDIR => Operation::OpenDir,
        opcode::READDIR | opcode::READDIRPLUS => {
            let abi::ReadIn { offset, size, .. } = arguments.structure()?;
            Operation::ReadDir { offset, size, plus: code == opcode::READDIRPLUS }
        }
        opcode::RELEASEDIR => Operation::ReleaseDir,
        opcode::FSYNCDIR => Operation::FSyncDir,
        opcode::FORGET | opcode::BATCH_FORGET => Operation::Forget,
        opcode::INTERRUPT => {
            Operation::Interrupt { unique: arguments.structure::<abi::InterruptIn>()?.unique }
        }
        opcode::DESTROY => Operation::Destroy,
        _ => return named(code, arguments),
    })
}

/// The operations on a directory's entries, and those that are refused.
fn named(code: u32, arguments: &mut Arguments<'_>) -> Result<Operation, Errno> {
    Ok(match code {
        opcode::LOOKUP => Operation::Lookup { name: arguments.existing()? },
        opcode::CREATE => {
            let abi::CreateIn { flags, mode, .. } = arguments.structure()?;
            Operation::Create { name: arguments.name()?, mode, flags }
        }
        opcode::MKNOD => {
            let abi::MknodIn { mode, .. } = arguments.structure()?;
            Operation::MkNod { name: arguments.name()?, mode }
        }
        opcode::MKDIR => {
            let abi::MkdirIn { .. } = arguments.structure()?;
            Operation::MkDir { name: arguments.name()? }
        }
        opcode::UNLINK => Operation::Unlink { name: arguments.existing()? },
        opcode::RMDIR => Operation::RmDir { name: arguments.existing()? },
        opcode::RENAME | opcode::RENAME2 => {
            let (new_parent, flags) = if code == opcode::RENAME {
                (arguments.structure::<abi::RenameIn>()?.newdir, 0)
            } else {
                let abi::Rename2In { newdir, flags, .. } = arguments.structure()?;
                (newdir, flags)
            };
            let (name, new_name) = (arguments.existing()?, arguments.name()?);
            Operation::Rename { name, new_parent: NodeId(new_parent), new_name, flags }
        }
        // What `link(2)` and `symlink(2)` give on a file system that has neither.
        opcode::LINK | opcode::SYMLINK => Operation::Refused(Errno::EPERM),
        opcode::READLINK => Operation::Refused(Errno::EINVAL),
        opcode::IOCTL => Operation::Refused(Errno::ENOTTY),
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            let copy: abi::CopyFileRangeIn = arguments.structure()?;
            Operation::CopyFileRange(CopyRange {
                offset: copy.off_in,
                target: NodeId(copy.nodeid_out),
                target_offset: copy.off_out,
                length: copy.len,
                wide: code == opcode::COPY_FILE_RANGE_64,
            })
        }
        // The kernel takes ENOSYS for "never ask again".
        _ => Operation::Refused(Errno::ENOSYS),
    })
}

fn xattr(code: u32, arguments: &mut Arguments<'_>) -> Result<Operation, Errno> {
    Ok(match code {
        opcode::SETXATTR => {
            let abi::SetxattrIn { size, flags } = arguments.structure()?;
            let name = arguments.name()?;
            Operation::SetXattr { name, value: arguments.value(size)?, flags }
        }
        opcode::GETXATTR => {
            let abi::GetxattrIn { size, .. } = arguments.structure()?;
            Operation::GetXattr { name: arguments.name()?, size }
        }
        opcode::LISTXATTR => {
            let abi::GetxattrIn { size, .. } = arguments.structure()?;
            Operation::ListXattr { size }
        }
        _ => Operation::RemoveXattr { name: arguments.name()? },
    })
}

fn changes(setattr: &abi::SetattrIn) -> Result<Changes, Errno> {
    let has = |bit| setattr.valid & bit != 0;
    let time = |bit, now, seconds, nanoseconds| match (has(now), has(bit)) {
        (true, _) => Ok(Some(SetTime::Now)),
        (false, true) if nanoseconds < 1_000_000_000 => {
            Ok(Some(SetTime::At(Duration::new(seconds, nanoseconds))))
        }
        (false, true) => Err(Errno::EINVAL),
        (false, false) => Ok(None),
    };
    Ok(Changes {
        size: has(fattr::SIZE).then_some(setattr.size),
        mode: has(fattr::MODE).then_some(setattr.mode),
        uid: has(fattr::UID).then_some(setattr.uid),
        gid: has(fattr::GID).then_some(setattr.gid),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, setattr.atime, setattr.atimensec)?,
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, setattr.mtime, setattr.mtimensec)?,
        ctime: time(fattr::CTIME, 0, setattr.ctime, setattr.ctimensec)?,
        handle: has(fattr::FH).then_some(FileHandle(setattr.fh)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn parse(opcode: u32, arguments: &[u8]) -> Result<Operation, Errno> {
        let header = abi::InHeader { opcode, nodeid: 7, unique: 9, ..Default::default() };
        match Request::parse(&header, arguments) {
            Ok(request) => {
                assert_eq!((request.node, request.unique), (NodeId(7), 9));
                Ok(request.operation)
            }
            Err(malformed) => Err(malformed.errno),
        }
    }

    #[test]
    fn names_are_checked() {
        let name = |text: &str| Name::new(text.as_bytes());
        assert_eq!(
            parse(opcode::LOOKUP, b"demo\0"),
            Ok(Operation::Lookup { name: name("demo").unwrap() })
        );
        assert_eq!(parse(opcode::LOOKUP, b"demo"), Err(Errno::ENOENT), "no end");
        assert_eq!(parse(opcode::LOOKUP, b"\xff\0"), Err(Errno::ENOENT), "not UTF-8");
        assert_eq!(parse(opcode::UNLINK, b"\0"), Err(Errno::ENOENT), "empty");
        let long = [[b'a'; 256].as_slice(), &[0]].concat();
        assert_eq!(parse(opcode::LOOKUP, &long), Err(Errno::ENAMETOOLONG));
        for bad in ["", ".", "..", "a/b"] {
            assert_eq!(name(bad), Err(Errno::EINVAL), "{bad:?}");
        }
    }

    #[test]
    fn a_rename_has_two_names() {
        let fixed = abi::Rename2In { newdir: 3, flags: 1, padding: 0 };
        let bytes = [fixed.as_bytes(), b"old\0new\0"].concat();
        let Ok(Operation::Rename { name, new_parent, new_name, flags }) =
            parse(opcode::RENAME2, &bytes)
        else {
            panic!("not a rename");
        };
        assert_eq!((&*name, new_parent, &*new_name, flags), ("old", NodeId(3), "new", 1));
        assert_eq!(parse(opcode::RENAME2, &bytes[..bytes.len() - 1]), Err(Errno::EINVAL));
    }

    #[test]
    fn an_attribute_value_is_as_long_as_it_says() {
        let fixed = abi::SetxattrIn { size: 3, flags: 0 };
        let bytes = [fixed.as_bytes(), b"user.a\0xyz"].concat();
        assert!(matches!(
            parse(opcode::SETXATTR, &bytes),
            Ok(Operation::SetXattr { value, .. }) if *value == *b"xyz"
        ));
        assert_eq!(parse(opcode::SETXATTR, &bytes[..bytes.len() - 1]), Err(Errno::EINVAL));
        let large = abi::SetxattrIn { size: u32::MAX, flags: 0 };
        let bytes = [large.as_bytes(), b"user.a\0xyz"].concat();
        assert_eq!(parse(opcode::SETXATTR, &bytes), Err(Errno::ERANGE));
    }

    #[test]
    fn times_are_now_or_given() {
        let mut setattr = abi::SetattrIn {
            valid: fattr::ATIME | fattr::ATIME_NOW | fattr::MTIME,
            mtime: 5,
            mtimensec: 6,
            ..Default::default()
        };
        let changed = changes(&setattr).unwrap();
        assert_eq!(changed.atime, Some(SetTime::Now));
        assert_eq!(changed.mtime, Some(SetTime::At(Duration::new(5, 6))));
        assert_eq!((changed.ctime, changed.size), (None, None));
        setattr.mtimensec = 1_000_000_000;
        assert_eq!(changes(&setattr), Err(Errno::EINVAL));
    }

    #[test]
    fn random_bytes_never_panic() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..2000 {
                let mut bytes = vec![0_u8; random.usize(..200)];
                random.fill(&mut bytes);
                if random.bool() {
                    // Names end somewhere.
                    bytes.iter_mut().step_by(7).for_each(|byte| *byte = 0);
                }
                let opcode = random.u32(..60);
                let _ = parse(opcode, &bytes);
                let (fixed, rest) = bytes.split_at(random.usize(..=bytes.len()));
                let header = abi::InHeader { opcode, ..Default::default() };
                let _ = Request::parse_parts(&header, fixed, rest);
            }
        }
    }
}
