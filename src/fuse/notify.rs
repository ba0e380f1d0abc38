//! Telling the kernel what it remembers wrongly: sizes and names that were changed by another door.
//!
//! To be called on threads that serve no requests: the kernel may wait for one to be answered.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::abi::{NotifyInvalEntryOut, NotifyInvalInodeOut, OutHeader};
use super::device::Connection;
use super::request::NodeId;
use crate::volume::Key;

/// `FUSE_NOTIFY_INVAL_INODE` and `FUSE_NOTIFY_INVAL_ENTRY`.
const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;

/// A way to tell the kernel. Clones are the same.
#[derive(Clone)]
pub struct Notifier(Option<Arc<File>>);

impl Notifier {
    /// By the connection of a mount.
    ///
    /// # Errors
    /// The system's.
    pub fn new(connection: &Connection) -> io::Result<Self> {
        Ok(Self(Some(connection.file()?)))
    }

    /// Where nothing is mounted, there is nobody to tell.
    #[must_use]
    pub fn nobody() -> Self {
        Self(None)
    }

    /// Size or attributes of a pool or a volume have changed.
    pub fn attributes(&self, key: Key) {
        self.node(key.into());
    }

    fn node(&self, id: NodeId) {
        // A negative offset: no data is remembered wrongly, only attributes.
        let body = NotifyInvalInodeOut { ino: id.0, off: -1, len: 0 };
        self.send(INVAL_INODE, body.as_bytes());
    }

    /// What a volume reads as has changed.
    pub fn content(&self, key: Key) {
        // All of it: no length is to the end.
        let body = NotifyInvalInodeOut { ino: NodeId::from(key).0, off: 0, len: 0 };
        self.send(INVAL_INODE, body.as_bytes());
    }

    /// What had the name `name` in the pool has it no longer.
    pub fn name(&self, pool: Key, name: &str) {
        self.entry(pool.into(), name);
    }

    /// What had the name `name` in the root, or had not, is no longer so.
    pub fn pool(&self, name: &str) {
        self.entry(NodeId::ROOT, name);
    }

    fn entry(&self, parent: NodeId, name: &str) {
        let namelen = u32::try_from(name.len()).unwrap_or(u32::MAX);
        let body = NotifyInvalEntryOut { parent: parent.0, namelen, flags: 0 };
        self.send(INVAL_ENTRY, &[body.as_bytes(), name.as_bytes(), &[0]].concat());
        self.node(parent);
    }

    fn send(&self, code: i32, body: &[u8]) {
        let Some(connection) = &self.0 else { return };
        let len = u32::try_from(size_of::<OutHeader>() + body.len()).unwrap_or(u32::MAX);
        let header = OutHeader { len, error: code, unique: 0 };
        let message = [header.as_bytes(), body].concat();
        if let Err(error) = (&**connection).write(&message)
            // It remembers nothing of it; the mount is gone.
            && !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENOTDIR))
        {
            tracing::debug!(%error, code, "the kernel refused a notification");
        }
    }
}
