//! The tree of a mount: the root, a directory for each pool, a file for each volume.
//!
//! A node's number is the key of what it stands for, which comes from a UUID: it stays the same
//! across renames and restarts, and belongs to nothing else afterwards. So a node can be looked
//! up for as long as the thing exists, and no count of the kernel's look-ups is needed.

use std::sync::Arc;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::abi::{Attr, AttrOut, Dirent, EntryOut};
use super::errno::Errno;
use super::request::NodeId;
use crate::volume::{Attributes, Directory, Entry, Key, Pool, Volume};

/// How long the kernel may use names and attributes without asking again. It is told of changes
/// by other doors ([`super::notify`]); if it were not, they would be seen within this time.
const VALID_SECONDS: u64 = 1;
/// What `st_blksize` says: the page, below which writes to a 4 KiB device must read first.
const BLOCK_SIZE: u32 = 4096;
/// Unit of `st_blocks`.
const SECTOR: u64 = 512;
const DIRECTORY_MODE: u32 = libc::S_IFDIR | 0o755;

/// Something with a number.
#[derive(Clone)]
pub(super) enum Node {
    Root,
    Pool(Arc<Pool>),
    Volume(Arc<Entry>),
}

impl NodeId {
    /// The key of the pool or volume that has this number.
    pub(super) fn key(self) -> Key {
        Key::from_number(self.0)
    }
}

impl From<Key> for NodeId {
    fn from(key: Key) -> Self {
        Self(key.number())
    }
}

/// What has the number `id`.
pub(super) fn resolve(directory: &Directory, id: NodeId) -> Result<Node, Errno> {
    if id == NodeId::ROOT {
        return Ok(Node::Root);
    }
    if let Some(entry) = directory.volume(id.key()) {
        return Ok(Node::Volume(entry));
    }
    directory.pool(id.key()).map(Node::Pool).ok_or(Errno::ESTALE)
}

/// The attributes of the root.
pub(super) fn root_attributes(directory: &Directory, defaults: &Attributes) -> Attr {
    let pools = directory.pools();
    let changed = pools.iter().map(|pool| pool.changed()).max().unwrap_or(defaults.mtime);
    directory_attributes(NodeId::ROOT, 2 + pools.len(), changed, defaults)
}

/// The attributes of a pool's directory.
pub(super) fn pool_attributes(pool: &Pool, defaults: &Attributes) -> Attr {
    directory_attributes(pool.key().into(), 2, pool.changed(), defaults)
}

fn directory_attributes(
    id: NodeId,
    links: usize,
    changed: Duration,
    defaults: &Attributes,
) -> Attr {
    let (seconds, nanoseconds) = (changed.as_secs(), changed.subsec_nanos());
    Attr {
        ino: id.0,
        atime: seconds,
        mtime: seconds,
        ctime: seconds,
        atimensec: nanoseconds,
        mtimensec: nanoseconds,
        ctimensec: nanoseconds,
        mode: DIRECTORY_MODE,
        nlink: u32::try_from(links).unwrap_or(u32::MAX),
        uid: defaults.uid,
        gid: defaults.gid,
        blksize: BLOCK_SIZE,
        ..Default::default()
    }
}

/// The attributes of a volume.
pub(super) fn volume_attributes(volume: &Volume) -> Attr {
    let entry = volume.entry();
    let attributes = entry.attributes();
    Attr {
        ino: entry.key().number(),
        size: volume.size().get(),
        blocks: volume.allocated().get() / SECTOR,
        atime: attributes.atime.as_secs(),
        mtime: attributes.mtime.as_secs(),
        ctime: attributes.ctime.as_secs(),
        atimensec: attributes.atime.subsec_nanos(),
        mtimensec: attributes.mtime.subsec_nanos(),
        ctimensec: attributes.ctime.subsec_nanos(),
        mode: libc::S_IFREG | attributes.mode,
        nlink: u32::from(entry.is_named()),
        uid: attributes.uid,
        gid: attributes.gid,
        blksize: BLOCK_SIZE,
        ..Default::default()
    }
}

/// Attributes as the answer to GETATTR and SETATTR.
pub(super) fn attr_out(attr: Attr) -> AttrOut {
    AttrOut { attr_valid: VALID_SECONDS, attr, ..Default::default() }
}

/// Attributes as the answer to LOOKUP and the like.
pub(super) fn entry_out(attr: Attr) -> EntryOut {
    EntryOut {
        nodeid: attr.ino,
        entry_valid: VALID_SECONDS,
        attr_valid: VALID_SECONDS,
        attr,
        ..Default::default()
    }
}

/// The place in a directory after which a listing goes on. Numbers of nodes are used, so that
/// what is created and deleted meanwhile neither repeats nor hides anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    Start,
    AfterDot,
    AfterDotDot,
    After(Key),
}

impl Position {
    pub(super) fn from_offset(offset: u64) -> Self {
        match offset {
            0 => Self::Start,
            1 => Self::AfterDot,
            2 => Self::AfterDotDot,
            number => Self::After(Key::from_number(number)),
        }
    }
}

/// The answer to READDIR or READDIRPLUS while it is put together.
pub(super) struct Listing {
    bytes: Vec<u8>,
    limit: usize,
    plus: bool,
}

impl Listing {
    /// An empty one of at most `limit` bytes; with `plus`, each entry has its attributes.
    pub(super) fn new(limit: usize, plus: bool) -> Self {
        Self { bytes: Vec::new(), limit, plus }
    }

    /// The most entries that can still fit.
    pub(super) fn room(&self) -> usize {
        (self.limit - self.bytes.len()) / (size_of::<Dirent>() + 8)
    }

    pub(super) fn has_attributes(&self) -> bool {
        self.plus
    }

    /// Adds an entry at `offset`; false if it does not fit. Without `attr`, the kernel looks it
    /// up when it wants more.
    pub(super) fn push(
        &mut self,
        name: &str,
        id: NodeId,
        offset: u64,
        kind: u32,
        attr: Option<Attr>,
    ) -> bool {
        let length = size_of::<Dirent>() + name.len();
        let before = if self.plus { size_of::<EntryOut>() } else { 0 };
        if self.bytes.len() + before + length.next_multiple_of(8) > self.limit {
            return false;
        }
        if self.plus {
            let entry = attr.map(entry_out).unwrap_or_default();
            self.bytes.extend_from_slice(entry.as_bytes());
        }
        let namelen = u32::try_from(name.len()).unwrap_or(u32::MAX);
        // The type is that of the mode, as `d_type` has it.
        let header = Dirent { ino: id.0, off: offset, namelen, kind: kind >> 12 };
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        true
    }

    /// Adds `.` and `..` as far as `position` wants them; false if the listing is full.
    pub(super) fn push_dots(&mut self, position: Position, id: NodeId) -> bool {
        let dots = [(Position::Start, ".", id), (Position::AfterDot, "..", NodeId::ROOT)];
        let skip = match position {
            Position::Start => 0,
            Position::AfterDot => 1,
            Position::AfterDotDot | Position::After(_) => 2,
        };
        dots.into_iter().enumerate().skip(skip).all(|(index, (_, name, id))| {
            self.push(name, id, index as u64 + 1, libc::S_IFDIR, None)
        })
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_keeps_its_limit_and_its_alignment() {
        for (limit, plus) in [(0, false), (31, false), (32, false), (160, true), (4096, true)] {
            let mut listing = Listing::new(limit, plus);
            let mut added = 0;
            while added < 50 && listing.push("volume-1", NodeId(9), added, libc::S_IFREG, None) {
                added += 1;
            }
            let each = if plus { 160 } else { 32 };
            assert_eq!(added, (limit as u64 / each).min(50), "{limit} {plus}");
            assert_eq!(listing.into_bytes().len() as u64, added * each);
        }
    }

    #[test]
    fn dots_come_first_and_once() {
        let count = |position| {
            let mut listing = Listing::new(4096, false);
            assert!(listing.push_dots(position, NodeId(5)));
            listing.into_bytes().len() / 32
        };
        assert_eq!(count(Position::Start), 2);
        assert_eq!(count(Position::from_offset(1)), 1);
        assert_eq!(count(Position::from_offset(2)), 0);
        assert_eq!(count(Position::from_offset(Key::MIN)), 0);
    }
}
