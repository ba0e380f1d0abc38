//! The operations of the file system: unpack, call, reply. The work is done in `volume`.
//!
//! One instance for each reactor; what reactors share is in the directory and in [`Openings`].
//! Transports give it requests and send its answers; it knows nothing of them.
//! `docs/semantics.md` tells what users can rely on.

mod listing;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::abi::{CreateOut, LseekOut, OpenOut, WriteOut, fopen};
use super::errno::Errno;
use super::interrupts::Watch;
use super::openings::{Growth, Mode, Openings};
use super::reply::Reply;
use super::request::{Caller, Changes, FileHandle, Name, NodeId, Operation, Request, SetTime};
use super::transfer::TRANSFER_LIMIT;
use super::tree::{self, Node, attr_out, entry_out, resolve};
use super::{copy, statfs, xattr};
use crate::block::Durability;
use crate::hw::dma::DmaBuffer;
use crate::units::{ByteCount, ByteOffset};
use crate::volume::attributes::wall_clock;
use crate::volume::{Attributes, Caching, Catalog, Entry, NewVolume, Pool, Replace, Volume};

/// What was asked of one reactor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct OperationCounters {
    /// READ.
    pub reads: u64,
    /// WRITE.
    pub writes: u64,
    /// WRITE of a file opened with `O_SYNC` or `O_DSYNC`, among `writes`.
    pub sync_writes: u64,
    /// FSYNC.
    pub fsyncs: u64,
    /// Everything else.
    pub others: u64,
    /// Those answered with an error.
    pub errors: u64,
}

/// The operations, on one reactor.
pub struct Operations {
    catalog: Rc<Catalog>,
    openings: Arc<Openings>,
    /// Owner of the directories.
    defaults: Attributes,
    counters: Cell<OperationCounters>,
}

type Answer = Result<Reply, Errno>;

impl Operations {
    /// Operations on the volumes of `catalog`, with the openings of the mount. The directories
    /// belong to the owner in `defaults`.
    #[must_use]
    pub fn new(catalog: &Rc<Catalog>, openings: &Arc<Openings>, defaults: Attributes) -> Self {
        let (catalog, openings) = (Rc::clone(catalog), Arc::clone(openings));
        Self { catalog, openings, defaults, counters: Cell::default() }
    }

    /// What was asked so far.
    #[must_use]
    pub fn counters(&self) -> OperationCounters {
        self.counters.get()
    }

    /// Does what a request asks and answers it. `data` is the data of a WRITE, or memory that the
    /// data of a READ may be read into.
    pub async fn handle(&self, request: Request, data: Option<DmaBuffer>) -> Reply {
        let mut counters = self.counters.get();
        match &request.operation {
            Operation::Read { .. } => counters.reads += 1,
            Operation::Write { flags, .. } => {
                counters.writes += 1;
                counters.sync_writes += u64::from(durability(*flags) != Durability::Cached);
            }
            Operation::FSync { .. } => counters.fsyncs += 1,
            _ => counters.others += 1,
        }
        self.counters.set(counters);
        let Request { unique, node, caller, operation } = request;
        // Small futures for what comes all the time: those of the others would be moved with them.
        let answer = match operation {
            Operation::Read { handle, offset, size } => {
                self.read(node, handle, offset, size, data).await
            }
            Operation::Write { handle, offset, size, flags } => {
                let data = data.filter(|data| data.len() == size as usize);
                self.write((unique, node), handle, offset, data, durability(flags)).await
            }
            Operation::FSync { .. } => self.fsync(node).await,
            other => Box::pin(self.dispatch((unique, node), caller, other)).await,
        };
        answer.unwrap_or_else(|errno| {
            let mut counters = self.counters.get();
            counters.errors += 1;
            self.counters.set(counters);
            tracing::trace!(unique, node = node.0, ?errno, "refused");
            Reply::Error(errno)
        })
    }

    async fn dispatch(
        &self,
        (unique, node): (u64, NodeId),
        caller: Caller,
        operation: Operation,
    ) -> Answer {
        match operation {
            // Done by `handle`.
            Operation::Read { .. } | Operation::Write { .. } | Operation::FSync { .. } => {
                Err(Errno::ENOSYS)
            }
            Operation::FAllocate { offset, length, mode } => {
                let (volume, _watch) = self.volume_to_write(node, unique).await?;
                self.fallocate(&volume, offset, length, mode).await
            }
            Operation::CopyFileRange(range) => copy::whole(&self.catalog, node, range).await,
            Operation::LSeek { offset, whence } => self.lseek(node, offset, whence).await,
            Operation::GetAttr => self.getattr(node).await,
            Operation::SetAttr(changes) => self.setattr(node, caller, changes).await,
            Operation::Lookup { name } => self.lookup(node, &name).await,
            Operation::Open { flags } => self.open(node, caller, flags).await,
            Operation::Create { name, mode, flags } => {
                self.create(node, caller, &name, mode, flags).await
            }
            Operation::Release { handle } => self.release(handle).await,
            Operation::MkNod { name, mode } => self.mknod(node, caller, &name, mode).await,
            Operation::Unlink { name } => self.unlink(node, &name).await,
            Operation::Rename { name, new_parent, new_name, flags } => {
                self.rename((node, &name), (new_parent, &new_name), flags).await
            }
            Operation::MkDir { name } => self.mkdir(node, &name),
            Operation::RmDir { name } => self.rmdir(node, &name),
            Operation::ReadDir { offset, size, plus } => {
                self.readdir(node, offset, size, plus).await
            }
            Operation::StatFs => statfs::of(&self.catalog, &self.node(node)?).await,
            Operation::GetXattr { .. }
            | Operation::SetXattr { .. }
            | Operation::ListXattr { .. }
            | Operation::RemoveXattr { .. } => {
                let node = resolve(self.catalog.directory(), node)?;
                xattr::handle(&self.catalog, &node, operation).await
            }
            Operation::OpenDir => Ok(Reply::structure(&OpenOut::default())),
            // Changes of names are durable before they are answered.
            Operation::FSyncDir | Operation::ReleaseDir => Ok(Reply::empty()),
            Operation::Access | Operation::Destroy => Ok(Reply::empty()),
            Operation::Forget => Ok(Reply::None),
            // Closing a file makes nothing durable. The kernel does not ask again.
            Operation::Flush => Err(Errno::ENOSYS),
            Operation::Interrupt { unique } => {
                self.openings.interrupts().interrupt(unique);
                Ok(Reply::None)
            }
            Operation::Refused(errno) => Err(errno),
        }
    }

    async fn read(
        &self,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        size: u32,
        landing: Option<DmaBuffer>,
    ) -> Answer {
        self.openings.used(handle, || self.now());
        let length = size as usize;
        if length > TRANSFER_LIMIT {
            return Err(Errno::EINVAL);
        }
        let volume = self.volume(node).await?;
        match volume.read_into(ByteOffset(offset), length, landing).await? {
            Some(slice) => Ok(Reply::Data(slice.buffer, slice.range)),
            None => Ok(Reply::empty()),
        }
    }

    async fn write(
        &self,
        (unique, node): (u64, NodeId),
        handle: FileHandle,
        offset: u64,
        data: Option<DmaBuffer>,
        durability: Durability,
    ) -> Answer {
        self.openings.used(handle, || self.now());
        let data = data.ok_or(Errno::EINVAL)?;
        let (volume, _watch) = self.volume_to_write(node, unique).await?;
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        if handle.grows() && end > volume.size().get() {
            self.catalog.grow_to(volume.entry(), ByteCount(end)).await?;
        }
        let written = volume.write(ByteOffset(offset), data, durability).await?;
        let size = u32::try_from(written).unwrap_or(u32::MAX);
        Ok(Reply::structure(&WriteOut { size, padding: 0 }))
    }

    async fn fsync(&self, node: NodeId) -> Answer {
        self.volume(node).await?.flush().await?;
        Ok(Reply::empty())
    }

    async fn fallocate(&self, volume: &Volume, offset: u64, length: u64, mode: u32) -> Answer {
        const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE.cast_unsigned();
        const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE.cast_unsigned();
        const ZERO_RANGE: u32 = libc::FALLOC_FL_ZERO_RANGE.cast_unsigned();
        let end = offset.checked_add(length).ok_or(Errno::EFBIG)?;
        if mode & KEEP_SIZE == 0 && end > volume.size().get() {
            self.catalog.grow_to(volume.entry(), ByteCount(end)).await?;
        }
        let offset = ByteOffset(offset);
        match mode & !KEEP_SIZE {
            0 => volume.allocate_range(offset, length).await?,
            PUNCH_HOLE if mode & KEEP_SIZE != 0 => volume.discard(offset, length).await?,
            ZERO_RANGE => volume.write_zeroes(offset, length).await?,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        Ok(Reply::empty())
    }

    async fn lseek(&self, node: NodeId, offset: u64, whence: u32) -> Answer {
        let volume = self.volume(node).await?;
        if offset >= volume.size().get() {
            return Err(Errno::ENXIO);
        }
        let offset = ByteOffset(offset);
        // The kernel may hold data for any hole.
        let cached = volume.entry().caching() == Caching::WriteBack;
        let found = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) if cached => offset,
            Ok(libc::SEEK_HOLE) if cached => ByteOffset(volume.size().get()),
            Ok(libc::SEEK_DATA) => volume.next_data(offset).ok_or(Errno::ENXIO)?,
            // The end of a file counts as a hole.
            Ok(libc::SEEK_HOLE) => {
                volume.next_hole(offset).unwrap_or(ByteOffset(volume.size().get()))
            }
            _ => return Err(Errno::EINVAL),
        };
        Ok(Reply::structure(&LseekOut { offset: found.get() }))
    }

    async fn getattr(&self, id: NodeId) -> Answer {
        let attr = match resolve(self.catalog.directory(), id)? {
            Node::Root => tree::root_attributes(self.catalog.directory(), &self.defaults),
            Node::Pool(pool) => tree::pool_attributes(&pool, &self.defaults),
            Node::Volume(entry) => tree::volume_attributes(&*self.volume_of(&entry).await?),
        };
        Ok(Reply::structure(&attr_out(attr)))
    }

    async fn setattr(&self, id: NodeId, caller: Caller, changes: Changes) -> Answer {
        let Node::Volume(entry) = resolve(self.catalog.directory(), id)? else {
            return Err(Errno::EPERM);
        };
        let volume = self.volume_of(&entry).await?;
        if let Some(size) = changes.size {
            let by_open = size == 0
                && changes.handle.is_none()
                && self.openings.was_opened_to_truncate(id, caller, self.now());
            if !by_open {
                self.set_size(&volume, size).await?;
            }
        }
        let Changes { mode, uid, gid, atime, mtime, ctime, .. } = changes;
        if let (Caching::WriteBack, Some(SetTime::At(mtime)), Some(SetTime::At(ctime))) =
            (entry.caching(), mtime, ctime)
            && mode.is_none()
            && uid.is_none()
            && gid.is_none()
            && atime.is_none()
        {
            // The kernel tells so with each flush when it was written last: no reason to commit.
            entry.note_times(mtime, ctime);
        } else if mode.is_some()
            || uid.is_some()
            || gid.is_some()
            || atime.is_some()
            || mtime.is_some()
        {
            let now = wall_clock();
            let time = move |time| match time {
                SetTime::Now => now,
                SetTime::At(time) => time,
            };
            let change = move |attributes: &mut Attributes| {
                attributes.mode = mode.map_or(attributes.mode, Attributes::permissions);
                attributes.uid = uid.unwrap_or(attributes.uid);
                attributes.gid = gid.unwrap_or(attributes.gid);
                attributes.atime = atime.map_or(attributes.atime, time);
                attributes.mtime = mtime.map_or(attributes.mtime, time);
                attributes.ctime = now;
            };
            self.catalog.change_attributes(&entry, change).await?;
        }
        Ok(Reply::structure(&attr_out(tree::volume_attributes(&volume))))
    }

    /// Sizes are whole clusters. What a smaller size cuts off reads as zeros where the last
    /// cluster still holds it.
    async fn set_size(&self, volume: &Volume, size: u64) -> Result<(), Errno> {
        let before = volume.size().get();
        let cluster = volume.entry().pool().cluster_size().get();
        let same = size < before && size.next_multiple_of(cluster) == before;
        if same && volume.entry().caching() == Caching::WriteBack {
            // The kernel cuts its pages only where the size changes, and would show what was cut.
            tracing::warn!(
                volume = volume.entry().name(),
                size,
                cluster,
                "not cut: not whole clusters"
            );
            return Err(Errno::EINVAL);
        }
        self.catalog.resize(volume.entry(), ByteCount(size)).await?;
        let after = volume.size().get();
        if size < before && size < after {
            volume.write_zeroes(ByteOffset(size), after - size).await?;
        }
        Ok(())
    }

    async fn lookup(&self, parent: NodeId, name: &Name) -> Answer {
        let attr = match resolve(self.catalog.directory(), parent)? {
            Node::Root => {
                let pool = self.catalog.directory().find_pool(name).ok_or(Errno::ENOENT)?;
                tree::pool_attributes(&pool, &self.defaults)
            }
            Node::Pool(pool) => {
                let entry = self.find(&pool, name)?;
                tree::volume_attributes(&*self.volume_of(&entry).await?)
            }
            Node::Volume(_) => return Err(Errno::ENOTDIR),
        };
        Ok(Reply::structure(&entry_out(attr)))
    }

    async fn open(&self, id: NodeId, caller: Caller, flags: u32) -> Answer {
        let volume = self.volume(id).await?;
        Ok(Reply::structure(&self.open_volume(&volume, caller, flags)?))
    }

    fn open_volume(&self, volume: &Volume, caller: Caller, flags: u32) -> Result<OpenOut, Errno> {
        let mode = Mode::of(flags);
        if mode == Mode::Write && volume.is_read_only() {
            return Err(Errno::EROFS);
        }
        let empty = volume.size() == ByteCount(0);
        let growth = if mode == Mode::Write && empty { Growth::ByWriting } else { Growth::Fixed };
        let handle = self.openings.open(volume.entry(), mode, growth, caller, self.now())?;
        // One that grows by writing is not cached: the kernel would find out too late that it can
        // grow no more.
        let open_flags = match (volume.entry().caching(), growth) {
            (Caching::WriteBack, Growth::Fixed) => fopen::KEEP_CACHE,
            _ => fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES,
        };
        Ok(OpenOut { fh: handle.0, open_flags, backing_id: 0 })
    }

    async fn release(&self, handle: FileHandle) -> Answer {
        if let Some(entry) = self.openings.release(handle) {
            self.catalog.delete_unlinked(&entry).await.inspect_err(|error| {
                tracing::warn!(volume = %entry.uuid(), %error, "an unlinked volume stays for now");
            })?;
        }
        Ok(Reply::empty())
    }

    async fn create(
        &self,
        parent: NodeId,
        caller: Caller,
        name: &Name,
        mode: u32,
        flags: u32,
    ) -> Answer {
        let pool = self.pool_for_new(parent, name)?;
        let entry = match self.find(&pool, name) {
            Ok(_) if flags & libc::O_EXCL.cast_unsigned() != 0 => return Err(Errno::EEXIST),
            Ok(entry) => entry,
            Err(_) => self.new_volume(&pool, caller, name, mode).await?,
        };
        let volume = self.volume_of(&entry).await?;
        let open = self.open_volume(&volume, caller, flags)?;
        Ok(Reply::structure(&CreateOut {
            entry: entry_out(tree::volume_attributes(&volume)),
            open,
        }))
    }

    async fn mknod(&self, parent: NodeId, caller: Caller, name: &Name, mode: u32) -> Answer {
        let pool = self.pool_for_new(parent, name)?;
        if mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Errno::EPERM);
        }
        if self.find(&pool, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let entry = self.new_volume(&pool, caller, name, mode).await?;
        let volume = self.volume_of(&entry).await?;
        Ok(Reply::structure(&entry_out(tree::volume_attributes(&volume))))
    }

    /// An empty thin volume. `truncate -s` or a write through the opening gives it a size.
    async fn new_volume(
        &self,
        pool: &Arc<Pool>,
        caller: Caller,
        name: &Name,
        mode: u32,
    ) -> Result<Arc<Entry>, Errno> {
        let new = NewVolume {
            name: name.to_string(),
            size: ByteCount(0),
            thin: true,
            uuid: None,
            attributes: Some(Attributes::new(mode, caller.uid, caller.gid)),
        };
        Ok(self.catalog.create(pool, new).await?)
    }

    /// The pool in which a file is to be created.
    fn pool_for_new(&self, parent: NodeId, name: &Name) -> Result<Arc<Pool>, Errno> {
        match resolve(self.catalog.directory(), parent)? {
            Node::Pool(pool) => Ok(pool),
            Node::Root => {
                tracing::info!(name = &**name, "no file can be in the root of a mount");
                Err(Errno::EPERM)
            }
            Node::Volume(_) => Err(Errno::ENOTDIR),
        }
    }

    async fn unlink(&self, parent: NodeId, name: &Name) -> Answer {
        let Node::Pool(pool) = resolve(self.catalog.directory(), parent)? else {
            return Err(Errno::EPERM);
        };
        let entry = self.find(&pool, name)?;
        self.catalog.delete(&entry).await.inspect_err(|error| {
            // The caller gets a number; the reason is only here.
            tracing::warn!(pool = %pool.name(), volume = name.to_string(), %error, "not removed");
        })?;
        Ok(Reply::empty())
    }

    async fn rename(&self, from: (NodeId, &Name), to: (NodeId, &Name), flags: u32) -> Answer {
        let replace = match flags {
            0 => Replace::Existing,
            libc::RENAME_NOREPLACE => Replace::Never,
            _ => return Err(Errno::EINVAL),
        };
        let (old, new) = (self.node(from.0)?, self.node(to.0)?);
        let (Node::Pool(pool), Node::Pool(new_pool)) = (old, new) else {
            tracing::info!(name = &**from.1, "pools are renamed by the command line, not by mv");
            return Err(Errno::EPERM);
        };
        if pool.key() != new_pool.key() {
            return Err(Errno::EXDEV);
        }
        self.catalog.rename(&self.find(&pool, from.1)?, to.1, replace).await?;
        Ok(Reply::empty())
    }

    fn mkdir(&self, parent: NodeId, name: &Name) -> Answer {
        match self.node(parent)? {
            Node::Root => {
                tracing::info!(
                    name = &**name,
                    "pools are made by the configuration or by `lvolfs pool create`, not by mkdir"
                );
            }
            Node::Pool(pool) => {
                tracing::info!(pool = &*pool.name(), name = &**name, "a pool has no directories");
            }
            Node::Volume(_) => return Err(Errno::ENOTDIR),
        }
        Err(Errno::EPERM)
    }

    fn rmdir(&self, parent: NodeId, name: &Name) -> Answer {
        match self.node(parent)? {
            Node::Root => {
                tracing::info!(
                    name = &**name,
                    "pools are destroyed by `lvolfs pool delete`, not by rmdir"
                );
                Err(Errno::EPERM)
            }
            Node::Pool(_) | Node::Volume(_) => Err(Errno::ENOTDIR),
        }
    }

    fn node(&self, id: NodeId) -> Result<Node, Errno> {
        resolve(self.catalog.directory(), id)
    }

    fn find(&self, pool: &Pool, name: &Name) -> Result<Arc<Entry>, Errno> {
        self.catalog.directory().find_volume(pool.key(), name).ok_or(Errno::ENOENT)
    }

    async fn volume(&self, id: NodeId) -> Result<Rc<Volume>, Errno> {
        if let Some(volume) = self.catalog.known(id.key()) {
            return Ok(volume);
        }
        match resolve(self.catalog.directory(), id)? {
            Node::Volume(entry) => self.volume_of(&entry).await,
            Node::Root | Node::Pool(_) => Err(Errno::EISDIR),
        }
    }

    /// A volume for an operation that may wait for space, until the caller gets a signal.
    async fn volume_to_write(
        &self,
        id: NodeId,
        unique: u64,
    ) -> Result<(Rc<Volume>, Option<Watch<'_>>), Errno> {
        let volume = self.volume(id).await?;
        if !volume.waits_for_space() {
            return Ok((volume, None));
        }
        let watch = self.openings.interrupts().watch(unique);
        Ok((Rc::new(volume.interruptible(watch.interruption())), Some(watch)))
    }

    async fn volume_of(&self, entry: &Entry) -> Result<Rc<Volume>, Errno> {
        Ok(self.catalog.volume(entry.key()).await?)
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.catalog.reactor().now().as_nanos())
    }
}

/// When a write must be durable: `O_SYNC` and `O_DSYNC` come with each WRITE, and no FSYNC
/// follows.
fn durability(flags: u32) -> Durability {
    const SYNC: u32 = (libc::O_SYNC | libc::O_DSYNC).cast_unsigned();
    if flags & SYNC == 0 { Durability::Cached } else { Durability::ForceUnitAccess }
}
