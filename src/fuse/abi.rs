//! The kernel's FUSE ABI (`include/uapi/linux/fuse.h`, protocol 7.40) as far as this file system
//! speaks it: fixed structures in the machine's byte order, opcodes and flags.
//!
//! Sizes are asserted at compile time; there is no implicit padding (`zerocopy` refuses it).
//! Names and numbers are the kernel's, without the `fuse_` prefix.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! structures {
    ($($(#[$doc:meta])* struct $name:ident: $size:literal { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
            #[repr(C)]
            #[expect(missing_docs, reason = "the fields are the kernel's, documented in fuse.h")]
            pub struct $name { $(pub $field: $type),* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

structures! {
    /// In front of every request.
    struct InHeader: 40 {
        len: u32, opcode: u32, unique: u64, nodeid: u64,
        uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
    }
    /// In front of every reply. `error` is 0 or a negated errno.
    struct OutHeader: 16 { len: u32, error: i32, unique: u64 }

    /// A file's attributes.
    struct Attr: 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// Answer to LOOKUP, MKNOD, MKDIR and first part of the answer to CREATE.
    struct EntryOut: 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    /// Answer to GETATTR and SETATTR.
    struct AttrOut: 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// Answer to OPEN and OPENDIR, and second part of the answer to CREATE.
    struct OpenOut: 16 { fh: u64, open_flags: u32, backing_id: u32 }
    /// Answer to CREATE.
    struct CreateOut: 144 { entry: EntryOut, open: OpenOut }
    /// Answer to WRITE.
    struct WriteOut: 8 { size: u32, padding: u32 }
    /// Answer to LSEEK.
    struct LseekOut: 8 { offset: u64 }
    /// Answer to GETXATTR and LISTXATTR when they ask for the size only.
    struct GetxattrOut: 8 { size: u32, padding: u32 }
    /// Answer to STATFS.
    struct StatfsOut: 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// A directory entry; its name follows, padded to eight bytes.
    struct Dirent: 24 { ino: u64, off: u64, namelen: u32, kind: u32 }

    /// The kernel is to forget a file's attributes.
    struct NotifyInvalInodeOut: 24 { ino: u64, off: i64, len: i64 }
    /// The kernel is to forget a name, which follows with a NUL.
    struct NotifyInvalEntryOut: 16 { parent: u64, namelen: u32, flags: u32 }

    /// FORGET.
    struct ForgetIn: 8 { nlookup: u64 }
    /// BATCH_FORGET; `count` pairs of node and number follow.
    struct BatchForgetIn: 8 { count: u32, dummy: u32 }
    /// SETATTR.
    struct SetattrIn: 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64,
        atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// MKNOD; a name follows.
    struct MknodIn: 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// MKDIR; a name follows.
    struct MkdirIn: 8 { mode: u32, umask: u32 }
    /// RENAME; two names follow.
    struct RenameIn: 8 { newdir: u64 }
    /// RENAME2; two names follow.
    struct Rename2In: 16 { newdir: u64, flags: u32, padding: u32 }
    /// OPEN and OPENDIR.
    struct OpenIn: 8 { flags: u32, open_flags: u32 }
    /// CREATE; a name follows.
    struct CreateIn: 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// READ, READDIR and READDIRPLUS.
    struct ReadIn: 40 {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    /// WRITE; the data follows.
    struct WriteIn: 40 {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    /// RELEASE and RELEASEDIR.
    struct ReleaseIn: 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// FSYNC and FSYNCDIR.
    struct FsyncIn: 16 { fh: u64, fsync_flags: u32, padding: u32 }
    /// SETXATTR, in its short form; a name and the value follow.
    struct SetxattrIn: 8 { size: u32, flags: u32 }
    /// GETXATTR (a name follows) and LISTXATTR.
    struct GetxattrIn: 8 { size: u32, padding: u32 }
    /// FALLOCATE.
    struct FallocateIn: 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// COPY_FILE_RANGE and COPY_FILE_RANGE_64.
    struct CopyFileRangeIn: 56 {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64
    }
    /// INTERRUPT.
    struct InterruptIn: 8 { unique: u64 }
    /// LSEEK.
    struct LseekIn: 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
}

/// The node of the mount's root.
pub const ROOT_ID: u64 = 1;

/// FSYNC: only the data and what is needed to read it back.
pub const FSYNC_FDATASYNC: u32 = 1;

/// SETATTR's `valid`: which fields count.
pub mod fattr {
    #![expect(missing_docs, reason = "the kernel's names")]
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
}

/// The answer to OPEN: how the kernel is to treat the file.
pub mod fopen {
    /// No page cache: every read and write of the file arrives here.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// What the page cache holds of the file from earlier openings is still right.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// Writes to one file may arrive at the same time.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// Opcodes.
pub mod opcode {
    #![expect(missing_docs, reason = "the kernel's names")]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}
