//! The operations of the file system without a kernel: requests in, answers out.

use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lvolfs::block::AnyDevice;
use lvolfs::block::memory::MemoryDevice;
use lvolfs::fuse::abi;
use lvolfs::fuse::errno::Errno;
use lvolfs::fuse::openings::Openings;
use lvolfs::fuse::operations::Operations;
use lvolfs::fuse::reply::Reply;
use lvolfs::fuse::request::{Caller, Changes, FileHandle, NodeId, Operation, Request, SetTime};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::lvol::{FormatOptions, NewVolume, OnFull};
use lvolfs::reactor::{Reactor, ReactorOptions, Remote};
use lvolfs::reservation::{self, Command, ExistingKey, Register};
use lvolfs::units::{BlockSize, ByteCount};
use lvolfs::volume::{
    Attributes, Caching, Catalog, Directory, Error, Key, Pool, PoolOwner, Replace, Store,
};
use zerocopy::{FromBytes, Immutable, KnownLayout};

const CLUSTER: u64 = 64 << 10;

/// A pool `p` on a memory device, and the operations on it.
pub(crate) struct Served {
    pub(crate) reactor: Rc<Reactor>,
    pub(crate) arena: DmaArena,
    pub(crate) device: AnyDevice,
    pub(crate) directory: Directory,
    pub(crate) pool: Arc<Pool>,
    pub(crate) owner: Rc<PoolOwner>,
    pub(crate) openings: Arc<Openings>,
    pub(crate) operations: Rc<Operations>,
}

pub(crate) fn memory_device(size: u64, block_size: BlockSize) -> AnyDevice {
    AnyDevice::Memory(MemoryDevice::new(ByteCount(size), block_size))
}

pub(crate) fn defaults() -> Attributes {
    Attributes::new(0o600, 0, 0)
}

impl Served {
    pub(crate) async fn format(reactor: &Rc<Reactor>, device: AnyDevice) -> Self {
        let arena = DmaArena::new(ByteCount(32 << 20), false).unwrap();
        Self::format_in(reactor, device, arena, Directory::default()).await
    }

    /// As [`Served::format`], with memory and a directory that the test chose.
    pub(crate) async fn format_in(
        reactor: &Rc<Reactor>,
        device: AnyDevice,
        arena: DmaArena,
        directory: Directory,
    ) -> Self {
        let options = FormatOptions {
            name: "p".into(),
            uuid: None,
            layout: LayoutOptions { cluster_size: ByteCount(CLUSTER), ..Default::default() },
        };
        let channel = device.channel(reactor, &arena).unwrap();
        Store::format(&channel, &arena, &options).await.unwrap();
        Self::open_in(reactor, device, arena, directory).await
    }

    pub(crate) async fn open(reactor: &Rc<Reactor>, device: AnyDevice, arena: DmaArena) -> Self {
        Self::open_in(reactor, device, arena, Directory::default()).await
    }

    /// As [`Served::open`], into a directory that the test chose.
    pub(crate) async fn open_in(
        reactor: &Rc<Reactor>,
        device: AnyDevice,
        arena: DmaArena,
        directory: Directory,
    ) -> Self {
        let channel = device.channel(reactor, &arena).unwrap();
        let store = Store::open(channel.clone(), reactor, &arena).await.unwrap();
        let remote = store.remote().unwrap();
        let (owner, pool) = PoolOwner::open(reactor, store, &directory, defaults()).await.unwrap();
        let catalog = Rc::new(Catalog::new(reactor, &arena, &directory));
        catalog.attach(&pool, remote, channel).await.unwrap();
        let openings = Arc::default();
        let operations = Rc::new(Operations::new(&catalog, &openings, defaults()));
        let (reactor, directory) = (Rc::clone(reactor), directory.clone());
        Self { reactor, arena, device, directory, pool, owner, openings, operations }
    }

    pub(crate) async fn close(&self) {
        self.owner.close(&self.pool).await.unwrap();
    }

    /// Where the store is, for other reactors.
    pub(crate) fn store(&self) -> Remote<Store> {
        self.owner.store().remote().unwrap()
    }

    pub(crate) async fn reopen(self) -> Self {
        self.close().await;
        Self::open(&self.reactor, self.device, self.arena).await
    }

    /// As after a crash: what is open stays open, nothing is closed.
    async fn crash(self) -> Self {
        Self::open(&self.reactor, self.device, self.arena).await
    }

    pub(crate) fn pool_node(&self) -> NodeId {
        NodeId(self.pool.key().number())
    }

    pub(crate) async fn ask_as(
        &self,
        thread: u32,
        node: NodeId,
        operation: Operation,
        data: Option<&[u8]>,
    ) -> Result<Vec<u8>, Errno> {
        let caller = Caller { uid: 10, gid: 20, thread };
        let request = Request { unique: 1, node, caller, operation };
        let data = data.map(|bytes| self.buffer(bytes));
        match self.operations.handle(request, data).await {
            Reply::Error(errno) => Err(errno),
            reply => Ok(reply.body().to_vec()),
        }
    }

    pub(crate) async fn ask(&self, node: NodeId, operation: Operation) -> Result<Vec<u8>, Errno> {
        self.ask_as(1, node, operation, None).await
    }

    fn buffer(&self, bytes: &[u8]) -> DmaBuffer {
        let mut buffer = self.arena.allocate(bytes.len()).unwrap();
        buffer.copy_from_slice(bytes);
        buffer
    }

    async fn create(&self, name: &str) -> Result<(NodeId, FileHandle), Errno> {
        let flags = (libc::O_CREAT | libc::O_RDWR).cast_unsigned();
        let operation = Operation::Create { name: named(name), mode: 0o100_640, flags };
        let created: abi::CreateOut = out(&self.ask(self.pool_node(), operation).await?);
        Ok((NodeId(created.entry.nodeid), FileHandle(created.open.fh)))
    }

    /// A volume that is not open.
    pub(crate) async fn volume(&self, name: &str, size: u64) -> NodeId {
        let (node, handle) = self.create(name).await.unwrap();
        self.truncate(node, size, Some(handle)).await.unwrap();
        self.ask(node, Operation::Release { handle }).await.unwrap();
        node
    }

    pub(crate) async fn truncate(
        &self,
        node: NodeId,
        size: u64,
        handle: Option<FileHandle>,
    ) -> Result<abi::Attr, Errno> {
        let changes = Changes { size: Some(size), handle, ..Default::default() };
        let body = self.ask(node, Operation::SetAttr(changes)).await?;
        Ok(out::<abi::AttrOut>(&body).attr)
    }

    async fn attributes(&self, node: NodeId) -> Result<abi::Attr, Errno> {
        Ok(out::<abi::AttrOut>(&self.ask(node, Operation::GetAttr).await?).attr)
    }

    pub(crate) async fn lookup(&self, name: &str) -> Result<NodeId, Errno> {
        let operation = Operation::Lookup { name: named(name) };
        let body = self.ask(self.pool_node(), operation).await?;
        Ok(NodeId(out::<abi::EntryOut>(&body).nodeid))
    }

    pub(crate) async fn open_file(
        &self,
        node: NodeId,
        thread: u32,
        flags: i32,
    ) -> Result<FileHandle, Errno> {
        let flags = flags.cast_unsigned();
        let body = self.ask_as(thread, node, Operation::Open { flags }, None).await?;
        Ok(FileHandle(out::<abi::OpenOut>(&body).fh))
    }

    pub(crate) async fn write(
        &self,
        node: NodeId,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        self.write_by(FileHandle(0), node, offset, data).await
    }

    async fn write_by(
        &self,
        handle: FileHandle,
        node: NodeId,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        let size = data.len() as u32;
        let operation = Operation::Write { handle, offset, size, flags: 0 };
        let body = self.ask_as(1, node, operation, Some(data)).await?;
        Ok(out::<abi::WriteOut>(&body).size as usize)
    }

    pub(crate) async fn read(
        &self,
        node: NodeId,
        offset: u64,
        size: usize,
    ) -> Result<Vec<u8>, Errno> {
        let (handle, size) = (FileHandle(0), size as u32);
        self.ask(node, Operation::Read { handle, offset, size }).await
    }

    async fn unlink(&self, name: &str) -> Result<(), Errno> {
        let operation = Operation::Unlink { name: named(name) };
        self.ask(self.pool_node(), operation).await.map(drop)
    }

    async fn rename(&self, from: &str, to: &str, flags: u32) -> Result<(), Errno> {
        let operation = Operation::Rename {
            name: named(from),
            new_parent: self.pool_node(),
            new_name: named(to),
            flags,
        };
        self.ask(self.pool_node(), operation).await.map(drop)
    }

    /// Names in a directory, as a reader with a small buffer sees them.
    pub(crate) async fn list(&self, node: NodeId, size: u32, plus: bool) -> Vec<String> {
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let body = self.ask(node, Operation::ReadDir { offset, size, plus }).await.unwrap();
            let mut rest = &body[..];
            if rest.is_empty() {
                return names;
            }
            while !rest.is_empty() {
                if plus {
                    rest = &rest[size_of::<abi::EntryOut>()..];
                }
                let (entry, after) = abi::Dirent::read_from_prefix(rest).unwrap();
                let length = entry.namelen as usize;
                names.push(String::from_utf8(after[..length].to_vec()).unwrap());
                rest = &after[length.next_multiple_of(8)..];
                offset = entry.off;
            }
        }
    }
}

pub(crate) fn named(name: &str) -> lvolfs::fuse::request::Name {
    let header = abi::InHeader { opcode: abi::opcode::LOOKUP, ..Default::default() };
    let request = Request::parse(&header, format!("{name}\0").as_bytes()).unwrap();
    let Operation::Lookup { name } = request.operation else { unreachable!("a LOOKUP") };
    name
}

pub(crate) fn out<T: FromBytes + KnownLayout + Immutable>(body: &[u8]) -> T {
    T::read_from_bytes(body).unwrap()
}

pub(crate) fn reactor() -> Rc<Reactor> {
    Reactor::new(ReactorOptions::deterministic()).unwrap()
}

/// Runs a test on a pool of 64 MiB.
fn served<F: Future<Output = ()>>(test: impl FnOnce(Served) -> F) {
    let reactor = reactor();
    reactor.block_on(async {
        let device = memory_device(64 << 20, BlockSize::B4096);
        test(Served::format(&reactor, device).await).await;
    });
}

#[test]
fn volumes_are_created_found_renamed_and_deleted() {
    served(async |served| {
        assert_eq!(served.lookup("a").await, Err(Errno::ENOENT));
        let a = served.volume("a", 1 << 20).await;
        let b = served.volume("b", 2 << 20).await;
        assert_eq!(served.lookup("a").await, Ok(a));
        let attributes = served.attributes(a).await.unwrap();
        assert_eq!((attributes.size, attributes.blocks, attributes.nlink), (1 << 20, 0, 1));
        assert_eq!((attributes.mode, attributes.uid, attributes.gid), (0o100_640, 10, 20));
        assert_eq!(served.rename("a", "b", libc::RENAME_NOREPLACE).await, Err(Errno::EEXIST));
        assert_eq!(served.rename("a", "c", libc::RENAME_EXCHANGE).await, Err(Errno::EINVAL));
        assert_eq!(served.rename("x", "c", 0).await, Err(Errno::ENOENT));
        served.rename("a", "c", libc::RENAME_NOREPLACE).await.unwrap();
        assert_eq!(served.lookup("c").await, Ok(a), "the number stays");
        served.rename("c", "b", 0).await.unwrap();
        assert_eq!(served.lookup("b").await, Ok(a));
        assert_eq!(served.attributes(b).await, Err(Errno::ESTALE), "what it replaced is gone");
        let served = served.reopen().await;
        assert_eq!(served.lookup("b").await, Ok(a), "also after a restart");
        served.unlink("b").await.unwrap();
        assert_eq!(served.unlink("b").await, Err(Errno::ENOENT));
        assert_eq!(served.list(served.pool_node(), 4096, false).await, [".", ".."]);
    });
}

#[test]
fn directories_are_what_the_configuration_made() {
    served(async |served| {
        let pool = served.pool_node();
        assert_eq!(served.list(NodeId::ROOT, 4096, true).await, [".", "..", "p"]);
        assert_eq!(served.attributes(NodeId::ROOT).await.unwrap().nlink, 3);
        for node in [NodeId::ROOT, pool] {
            let mkdir = Operation::MkDir { name: named("d") };
            assert_eq!(served.ask(node, mkdir).await, Err(Errno::EPERM));
        }
        let rmdir = Operation::RmDir { name: named("p") };
        assert_eq!(served.ask(NodeId::ROOT, rmdir).await, Err(Errno::EPERM));
        let create = Operation::Create { name: named("x"), mode: 0, flags: 0 };
        assert_eq!(served.ask(NodeId::ROOT, create).await, Err(Errno::EPERM));
        let device = Operation::MkNod { name: named("x"), mode: libc::S_IFBLK };
        assert_eq!(served.ask(pool, device).await, Err(Errno::EPERM));
        let a = served.volume("a", 0).await;
        let lookup = Operation::Lookup { name: named("x") };
        assert_eq!(served.ask(a, lookup).await, Err(Errno::ENOTDIR));
        assert_eq!(served.read(pool, 0, 1).await, Err(Errno::EISDIR));
        assert_eq!(served.read(NodeId(77), 0, 1).await, Err(Errno::ESTALE));
        assert_eq!(served.create(".deleted-x").await, Err(Errno::EPERM));
        let long = "n".repeat(64);
        assert_eq!(served.create(&long).await, Err(Errno::ENAMETOOLONG));
        let changes = Changes { mode: Some(0o777), ..Default::default() };
        assert_eq!(served.ask(pool, Operation::SetAttr(changes)).await, Err(Errno::EPERM));
    });
}

#[test]
fn a_listing_survives_changes_while_it_is_read() {
    served(async |served| {
        let pool = served.pool_node();
        for index in 0..20 {
            served.volume(&format!("v{index}"), 0).await;
        }
        for (size, plus) in [(64, false), (160, false), (200, true), (65536, true)] {
            let mut names = served.list(pool, size, plus).await;
            assert_eq!(names.drain(..2).collect::<Vec<_>>(), [".", ".."]);
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), 20, "{size} {plus}");
        }
        // Read a part, delete a volume that was listed, create another, go on.
        let first =
            served.ask(pool, Operation::ReadDir { offset: 2, size: 100, plus: false }).await;
        let (entry, name) = abi::Dirent::read_from_prefix(first.as_deref().unwrap()).unwrap();
        let name = std::str::from_utf8(&name[..entry.namelen as usize]).unwrap();
        served.unlink(name).await.unwrap();
        let go_on = Operation::ReadDir { offset: entry.off, size: 65536, plus: false };
        let rest = served.ask(pool, go_on).await.unwrap();
        assert_eq!(rest.len(), 19 * 32, "each of the others once");
    });
}

/// What a volume must read as.
struct Model(Vec<u8>);

impl Model {
    fn resize(&mut self, size: u64) {
        self.0.truncate(size as usize);
        self.0.resize(size.next_multiple_of(CLUSTER) as usize, 0);
    }
}

async fn random_step(served: &Served, node: NodeId, model: &mut Model, random: &mut fastrand::Rng) {
    let size = model.0.len() as u64;
    let granule = [1, 512, 4096, CLUSTER][random.usize(..4)];
    let offset = random.u64(..=size + granule) / granule * granule;
    let longest = [600, 9000, 200_000][random.usize(..3)];
    let length = random.u64(1..=longest);
    let length = length.next_multiple_of(granule);
    let end = (offset + length).min(size);
    let inside = (offset.min(size) as usize)..(end.max(offset.min(size)) as usize);
    match random.u32(..12) {
        0..=4 => {
            let mut data = vec![0; length as usize];
            random.fill(&mut data);
            match served.write(node, offset, &data).await {
                Ok(written) => {
                    assert_eq!(written, inside.len());
                    model.0[inside.clone()].copy_from_slice(&data[..inside.len()]);
                }
                Err(errno) => {
                    assert_eq!((errno, offset >= size), (Errno::ENOSPC, true));
                }
            }
        }
        5..=7 => {
            let data = served.read(node, offset, length as usize).await.unwrap();
            assert!(data == model.0[inside], "a read of {length} bytes at {offset}");
        }
        8 | 9 => {
            let keep = libc::FALLOC_FL_KEEP_SIZE;
            let modes = [libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE];
            let mode = (keep | modes[random.usize(..2)]).cast_unsigned();
            served.ask(node, Operation::FAllocate { offset, length, mode }).await.unwrap();
            model.0[inside].fill(0);
        }
        10 => {
            let new = random.u64(..10 * CLUSTER);
            let attributes = served.truncate(node, new, Some(FileHandle(0))).await.unwrap();
            model.resize(new);
            assert_eq!(attributes.size, model.0.len() as u64);
        }
        _ => drop(served.ask(node, Operation::FSync { data_only: true }).await.unwrap()),
    }
}

#[test]
fn any_alignment_reads_back_what_was_written() {
    for seed in 0..30 {
        let reactor = reactor();
        reactor.block_on(async {
            let block_size = [BlockSize::B512, BlockSize::B4096][seed as usize % 2];
            let device = memory_device(16 << 20, block_size);
            let mut served = Served::format(&reactor, device).await;
            let mut random = fastrand::Rng::with_seed(seed);
            let node = served.volume("v", 8 * CLUSTER).await;
            let mut model = Model(vec![0; 8 * CLUSTER as usize]);
            for step in 0..60 {
                tracing::trace!(seed, step);
                random_step(&served, node, &mut model, &mut random).await;
                if step % 20 == 19 {
                    served = served.reopen().await;
                }
            }
            let all = served.read(node, 0, model.0.len().max(1)).await.unwrap();
            assert!(all == model.0, "seed {seed}");
        });
    }
}

#[test]
fn parts_of_one_block_written_at_once_do_not_lose_each_other() {
    served(async |served| {
        let served = Rc::new(served);
        let node = served.volume("v", CLUSTER).await;
        for round in 0..20_u8 {
            let mut tasks = Vec::new();
            for part in 0..40_u64 {
                let served_here = Rc::clone(&served);
                tasks.push(served.reactor.task(async move {
                    let data = vec![round ^ part as u8; 100];
                    served_here.write(node, part * 100, &data).await.unwrap();
                }));
            }
            for task in tasks {
                task.await;
            }
            let data = served.read(node, 0, 4000).await.unwrap();
            for (part, bytes) in data.chunks(100).enumerate() {
                assert!(bytes.iter().all(|&byte| byte == round ^ part as u8), "part {part}");
            }
        }
    });
}

#[test]
fn o_trunc_keeps_the_size_and_truncate_changes_it() {
    served(async |served| {
        let node = served.volume("v", 2 * CLUSTER).await;
        served.write(node, 0, b"data").await.unwrap();
        let size_of = async |thread: u32, size| {
            let changes = Changes { size: Some(size), ..Default::default() };
            let operation = Operation::SetAttr(changes);
            out::<abi::AttrOut>(&served.ask_as(thread, node, operation, None).await.unwrap())
                .attr
                .size
        };
        // open(O_TRUNC): OPEN, then SETATTR by the same thread.
        let handle = served.open_file(node, 7, libc::O_WRONLY).await.unwrap();
        assert_eq!(size_of(7, 0).await, 2 * CLUSTER, "kept");
        assert_eq!(served.read(node, 0, 4).await.unwrap(), b"data");
        // Only once for each opening, only by that thread, only if it was not used.
        served.truncate(node, 2 * CLUSTER, None).await.unwrap();
        assert_eq!(size_of(7, 0).await, 0, "truncate(2) after the first");
        served.truncate(node, 2 * CLUSTER, None).await.unwrap();
        let second = served.open_file(node, 8, libc::O_RDWR).await.unwrap();
        assert_eq!(size_of(9, 0).await, 0, "another thread");
        served.truncate(node, 2 * CLUSTER, None).await.unwrap();
        served.write_by(second, node, 0, b"x").await.unwrap();
        assert_eq!(size_of(8, 0).await, 0, "it was used");
        served.truncate(node, 2 * CLUSTER, None).await.unwrap();
        served.open_file(node, 8, libc::O_RDONLY).await.unwrap();
        assert_eq!(size_of(8, 0).await, 0, "opened for reading");
        served.truncate(node, 2 * CLUSTER, None).await.unwrap();
        served.open_file(node, 8, libc::O_RDWR).await.unwrap();
        served.reactor.sleep(Duration::from_secs(11)).await;
        assert_eq!(size_of(8, 0).await, 0, "long ago");
        served.truncate(node, 2 * CLUSTER, None).await.unwrap();
        served.open_file(node, 8, libc::O_RDWR).await.unwrap();
        assert_eq!(size_of(8, CLUSTER).await, CLUSTER, "another size");
        // ftruncate names the handle.
        assert_eq!(served.truncate(node, 0, Some(handle)).await.unwrap().size, 0);
    });
}

#[test]
fn a_new_volume_grows_by_writing_and_an_old_one_does_not() {
    served(async |served| {
        let (node, handle) = served.create("new").await.unwrap();
        assert_eq!(served.write(node, 0, b"x").await, Err(Errno::ENOSPC), "not by this handle");
        let data = vec![7; 100_000];
        assert_eq!(served.write_by(handle, node, 10, &data).await, Ok(100_000));
        assert_eq!(served.attributes(node).await.unwrap().size, 2 * CLUSTER);
        assert_eq!(served.read(node, 0, 11).await.unwrap(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        served.ask(node, Operation::Release { handle }).await.unwrap();
        let handle = served.open_file(node, 1, libc::O_RDWR).await.unwrap();
        let end = 2 * CLUSTER;
        assert_eq!(served.write_by(handle, node, end - 3, b"12345").await, Ok(3), "up to the end");
        assert_eq!(served.write_by(handle, node, end, b"45").await, Err(Errno::ENOSPC));
        assert_eq!(served.read(node, end - 3, 10).await.unwrap(), b"123");
        assert_eq!(served.read(node, end, 10).await.unwrap(), b"");
        assert_eq!(served.write(node, u64::MAX, b"x").await, Err(Errno::EFBIG));
        // fallocate asks for more on purpose.
        let grow = Operation::FAllocate { offset: end, length: 1, mode: 0 };
        served.ask(node, grow).await.unwrap();
        let attributes = served.attributes(node).await.unwrap();
        assert_eq!((attributes.size, attributes.blocks), (3 * CLUSTER, 3 * CLUSTER / 512));
    });
}

#[test]
fn holes_are_told_and_storage_comes_back() {
    served(async |served| {
        let node = served.volume("v", 8 * CLUSTER).await;
        let free = async || {
            let body = served.ask(served.pool_node(), Operation::StatFs).await.unwrap();
            let statfs: abi::StatfsOut = out(&body);
            assert_eq!(statfs.bfree, statfs.bavail);
            statfs.bfree * u64::from(statfs.frsize)
        };
        let before = free().await;
        served.write(node, 3 * CLUSTER + 5, b"data").await.unwrap();
        assert_eq!(before - free().await, CLUSTER);
        let seek = async |offset, whence: i32| {
            let whence = whence.cast_unsigned();
            let body = served.ask(node, Operation::LSeek { offset, whence }).await?;
            Ok::<u64, Errno>(out::<abi::LseekOut>(&body).offset)
        };
        assert_eq!(seek(0, libc::SEEK_DATA).await, Ok(3 * CLUSTER));
        assert_eq!(seek(3 * CLUSTER + 1, libc::SEEK_DATA).await, Ok(3 * CLUSTER + 1));
        assert_eq!(seek(3 * CLUSTER, libc::SEEK_HOLE).await, Ok(4 * CLUSTER));
        assert_eq!(seek(5, libc::SEEK_HOLE).await, Ok(5));
        assert_eq!(seek(4 * CLUSTER, libc::SEEK_DATA).await, Err(Errno::ENXIO));
        assert_eq!(seek(8 * CLUSTER, libc::SEEK_HOLE).await, Err(Errno::ENXIO));
        assert_eq!(seek(0, libc::SEEK_SET).await, Err(Errno::EINVAL));
        let mode = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).cast_unsigned();
        let punch = Operation::FAllocate { offset: 1, length: u64::MAX - 1, mode };
        served.ask(node, punch).await.unwrap();
        served.ask(node, Operation::FSync { data_only: false }).await.unwrap();
        assert_eq!(served.attributes(node).await.unwrap().blocks, 0);
        assert_eq!(free().await, before);
        for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_PUNCH_HOLE] {
            let mode = mode.cast_unsigned();
            let unknown = Operation::FAllocate { offset: 0, length: 4096, mode };
            assert_eq!(served.ask(node, unknown).await, Err(Errno::EOPNOTSUPP));
        }
    });
}

#[test]
fn a_held_volume_cannot_be_removed_and_its_new_size_is_told() {
    served(|served| async move {
        let node = served.volume("v", 1 << 20).await;
        served.volume("w", 1 << 20).await;
        let key = Key::from_number(node.0);
        let told = Arc::new(Mutex::new(Vec::new()));
        let listed = Arc::clone(&told);
        served.directory.watch_sizes(move |key| listed.lock().unwrap().push(key));
        let entry = served.directory.volume(key).unwrap();
        let hold = entry.hold("subsystem a").unwrap();
        let second = entry.hold("subsystem b").unwrap_err();
        assert_eq!(second, Error::Held { by: "subsystem a".into() });
        assert_eq!(served.unlink("v").await, Err(Errno::EBUSY));
        assert_eq!(served.rename("w", "v", 0).await, Err(Errno::EBUSY));
        let handle = served.open_file(node, 1, libc::O_RDWR).await.unwrap();
        assert_eq!(served.unlink("v").await, Err(Errno::EBUSY), "open or not");
        served.ask(node, Operation::Release { handle }).await.unwrap();
        served.rename("v", "x", 0).await.unwrap();
        served.truncate(node, 3 << 20, None).await.unwrap();
        assert_eq!(*told.lock().unwrap(), [key]);
        drop(hold);
        served.unlink("x").await.unwrap();
        served.close().await;
    });
}

#[test]
fn an_open_volume_outlives_its_name() {
    served(async |served| {
        let node = served.volume("v", CLUSTER).await;
        let first = served.open_file(node, 1, libc::O_RDWR).await.unwrap();
        let second = served.open_file(node, 1, libc::O_RDONLY).await.unwrap();
        served.write(node, 0, b"still here").await.unwrap();
        served.unlink("v").await.unwrap();
        assert_eq!(served.lookup("v").await, Err(Errno::ENOENT));
        assert_eq!(served.list(served.pool_node(), 4096, true).await, [".", ".."]);
        assert_eq!(served.attributes(node).await.unwrap().nlink, 0);
        let other = served.volume("v", CLUSTER).await;
        assert_ne!(other, node, "the name is free");
        assert_eq!(served.read(node, 0, 10).await.unwrap(), b"still here");
        served.ask(node, Operation::Release { handle: first }).await.unwrap();
        assert_eq!(served.read(node, 0, 10).await.unwrap(), b"still here");
        served.ask(node, Operation::Release { handle: second }).await.unwrap();
        assert!(served.read(node, 0, 10).await.is_err());
        assert_eq!(served.attributes(node).await, Err(Errno::ESTALE));
        // Opened, unlinked, crashed: gone at the next start.
        served.open_file(other, 1, libc::O_RDWR).await.unwrap();
        served.unlink("v").await.unwrap();
        let served = served.crash().await;
        assert_eq!(served.list(served.pool_node(), 4096, true).await, [".", ".."]);
        let served = served.reopen().await;
        assert_eq!(served.directory.volumes(served.pool.key()).len(), 0);
    });
}

#[test]
fn attributes_are_kept() {
    served(async |served| {
        let node = served.volume("v", CLUSTER).await;
        let time = |seconds| SetTime::At(Duration::new(seconds, 5));
        let changes = Changes {
            mode: Some(0o100_4755),
            uid: Some(1),
            gid: Some(2),
            atime: Some(time(3)),
            mtime: Some(time(4)),
            ..Default::default()
        };
        served.ask(node, Operation::SetAttr(changes)).await.unwrap();
        let served = served.reopen().await;
        let attributes = served.attributes(node).await.unwrap();
        assert_eq!((attributes.mode, attributes.uid, attributes.gid), (0o100_755, 1, 2));
        assert_eq!((attributes.atime, attributes.mtime, attributes.mtimensec), (3, 4, 5));
        served.write(node, 0, b"x").await.unwrap();
        let written = served.attributes(node).await.unwrap();
        assert!(written.mtime > 4 && written.ctime >= written.mtime, "{written:?}");
        let served = served.reopen().await;
        let kept = served.attributes(node).await.unwrap();
        assert_eq!((kept.mtime, kept.mtimensec), (written.mtime, written.mtimensec));
    });
}

#[test]
fn extended_attributes_tell_and_keep() {
    served(async |served| {
        let node = served.volume("v", 2 * CLUSTER).await;
        let get = async |name: &str, size| {
            served.ask(node, Operation::GetXattr { name: named(name), size }).await
        };
        let text = async |name: &str| String::from_utf8(get(name, 100).await.unwrap()).unwrap();
        assert_eq!(text("user.lvolfs.pool").await, "p");
        assert_eq!(text("user.lvolfs.thin").await, "true");
        assert_eq!(text("user.lvolfs.size").await, (2 * CLUSTER).to_string());
        assert_eq!(get("user.lvolfs.nonsense", 100).await, Err(Errno::ENODATA));
        assert_eq!(get("user.a", 100).await, Err(Errno::ENODATA));
        assert_eq!(get("security.selinux", 100).await, Err(Errno::EOPNOTSUPP));
        let set = async |name: &str, value: &[u8], flags: i32| {
            let (name, value, flags) = (named(name), value.into(), flags.cast_unsigned());
            served.ask(node, Operation::SetXattr { name, value, flags }).await.map(drop)
        };
        assert_eq!(set("user.a", b"1", libc::XATTR_REPLACE).await, Err(Errno::ENODATA));
        set("user.a", b"value", 0).await.unwrap();
        assert_eq!(set("user.a", b"2", libc::XATTR_CREATE).await, Err(Errno::EEXIST));
        assert_eq!(set("user.lvolfs.uuid", b"1", 0).await, Err(Errno::EPERM));
        assert_eq!(set("trusted.a", b"1", 0).await, Err(Errno::EOPNOTSUPP));
        assert_eq!(get("user.a", 4).await, Err(Errno::ERANGE));
        assert_eq!(out::<abi::GetxattrOut>(&get("user.a", 0).await.unwrap()).size, 5);
        let list = served.ask(node, Operation::ListXattr { size: 4096 }).await.unwrap();
        let list = String::from_utf8(list).unwrap();
        assert!(list.contains("user.lvolfs.uuid\0") && list.ends_with("\0user.a\0"), "{list}");
        let served = served.reopen().await;
        let get = Operation::GetXattr { name: named("user.a"), size: 100 };
        assert_eq!(served.ask(node, get.clone()).await.unwrap(), b"value");
        let remove = Operation::RemoveXattr { name: named("user.a") };
        served.ask(node, remove.clone()).await.unwrap();
        assert_eq!(served.ask(node, get).await, Err(Errno::ENODATA));
        assert_eq!(served.ask(node, remove).await, Err(Errno::ENODATA));
    });
}

#[test]
fn a_full_pool_refuses_the_writer_and_serves_the_others() {
    let reactor = reactor();
    reactor.block_on(async {
        let served = Served::format(&reactor, memory_device(8 << 20, BlockSize::B4096)).await;
        let small = served.volume("small", CLUSTER).await;
        served.write(small, 0, b"here").await.unwrap();
        let large = served.volume("large", 64 << 20).await;
        let data = vec![1; CLUSTER as usize];
        let mut clusters = 0;
        let refused = loop {
            match served.write(large, clusters * CLUSTER, &data).await {
                Ok(_) => clusters += 1,
                Err(errno) => break errno,
            }
        };
        assert_eq!(refused, Errno::ENOSPC);
        assert!(clusters > 50);
        served.write(large, 0, b"a mapped cluster is no new one").await.unwrap();
        assert_eq!(served.read(small, 0, 4).await.unwrap(), b"here");
        served.ask(large, Operation::FSync { data_only: false }).await.unwrap();
        served.unlink("large").await.unwrap();
        served.write(small, 0, b"more").await.unwrap();
    });
}

#[test]
fn a_signal_ends_the_wait_for_space() {
    let reactor = reactor();
    reactor.block_on(async {
        let served = Served::format(&reactor, memory_device(8 << 20, BlockSize::B4096)).await;
        let (waits, large) =
            (served.volume("waits", 1 << 20).await, served.volume("large", 64 << 20).await);
        let entry = served.directory.find_volume(served.pool.key(), "waits").unwrap();
        served.owner.store().set_on_full(entry.blob(), OnFull::Wait).await.unwrap();
        let data = vec![1; CLUSTER as usize];
        let mut clusters = 0;
        while served.write(large, clusters * CLUSTER, &data).await.is_ok() {
            clusters += 1;
        }
        let before = reactor.now();
        let signal = async {
            reactor.sleep(Duration::from_secs(1)).await;
            // `ask_as` numbers each request 1.
            let asked = served.ask(waits, Operation::Interrupt { unique: 1 }).await;
            assert_eq!(asked, Ok(Vec::new()));
        };
        let write = served.write(waits, 0, &data);
        let (written, ()) = futures_util::future::join(write, signal).await;
        assert_eq!(written, Err(Errno::EINTR));
        assert!(reactor.now().since(before) < Duration::from_secs(2));
        served.unlink("large").await.unwrap();
        served.write(waits, 0, &data).await.unwrap();
    });
}

/// The flags with which a file is opened.
async fn open_flags(served: &Served, node: NodeId) -> u32 {
    let flags = libc::O_RDWR.cast_unsigned();
    out::<abi::OpenOut>(&served.ask(node, Operation::Open { flags }).await.unwrap()).open_flags
}

#[test]
fn a_cached_volume_is_neither_exported_nor_reserved() {
    served(|served| async move {
        let node = served.volume("v", 4 * CLUSTER).await;
        let entry = served.directory.find_volume(served.pool.key(), "v").unwrap();
        let host = served.directory.hosts().local();
        let register = Command::Register {
            action: Register::Replace(reservation::Key(7)),
            existing: ExistingKey::Ignored,
            persistence: None,
        };
        let catalog = Catalog::new(&served.reactor, &served.arena, &served.directory);
        let direct = abi::fopen::DIRECT_IO | abi::fopen::PARALLEL_DIRECT_WRITES;
        assert_eq!(open_flags(&served, node).await, direct);
        // Cached first.
        entry.set_caching(Caching::WriteBack).unwrap();
        assert_eq!(open_flags(&served, node).await, abi::fopen::KEEP_CACHE);
        assert_eq!(entry.hold("nqn.host").unwrap_err(), Error::Cached);
        assert_eq!(catalog.reserve(&entry, host, register).await, Err(Error::Cached));
        // Exported first.
        entry.set_caching(Caching::Direct).unwrap();
        let hold = entry.hold("nqn.host").unwrap();
        let held = Error::Held { by: "nqn.host".into() };
        assert_eq!(entry.set_caching(Caching::WriteBack), Err(held));
        drop(hold);
        // Reserved first.
        catalog.reserve(&entry, host, register).await.unwrap();
        assert_eq!(entry.set_caching(Caching::WriteBack), Err(Error::Reserved));
        assert_eq!(open_flags(&served, node).await, direct);
    });
}

#[test]
fn a_cached_volume_is_all_data_and_grows_uncached() {
    served(|served| async move {
        served.directory.set_caching(Caching::WriteBack);
        let (node, handle) = served.create("v").await.unwrap();
        assert_ne!(
            open_flags(&served, node).await & abi::fopen::DIRECT_IO,
            0,
            "it grows by writing"
        );
        served.truncate(node, 4 * CLUSTER, Some(handle)).await.unwrap();
        assert_eq!(open_flags(&served, node).await, abi::fopen::KEEP_CACHE);
        let seek = async |offset, whence: i32| {
            let whence = whence.cast_unsigned();
            let found = served.ask(node, Operation::LSeek { offset, whence }).await?;
            Ok(out::<abi::LseekOut>(&found).offset)
        };
        assert_eq!(seek(5, libc::SEEK_DATA).await, Ok(5));
        assert_eq!(seek(5, libc::SEEK_HOLE).await, Ok(4 * CLUSTER));
        assert_eq!(seek(4 * CLUSTER, libc::SEEK_DATA).await, Err(Errno::ENXIO));
        // What the kernel says with each flush: kept, and not committed for it.
        let commits = served.owner.store().counters().commits;
        let at = |seconds| Some(SetTime::At(Duration::from_secs(seconds)));
        let changes = Changes { mtime: at(100), ctime: at(200), ..Default::default() };
        served.ask(node, Operation::SetAttr(changes)).await.unwrap();
        let attributes = served.attributes(node).await.unwrap();
        assert_eq!((attributes.mtime, attributes.ctime), (100, 200));
        assert_eq!(served.owner.store().counters().commits, commits);
        let served = served.reopen().await;
        let node = served.lookup("v").await.unwrap();
        assert_eq!(served.attributes(node).await.unwrap().mtime, 100);
    });
}

/// It is made anew for each request, and moved.
#[test]
fn the_future_of_a_request_is_small() {
    const MOST: usize = 4096;
    served(|served| async move {
        let node = served.volume("v", CLUSTER).await;
        let operation = Operation::Read { handle: FileHandle(0), offset: 0, size: 4096 };
        let caller = Caller { uid: 0, gid: 0, thread: 1 };
        let request = Request { unique: 1, node, caller, operation };
        let size = size_of_val(&served.operations.handle(request, None));
        assert!(size <= MOST, "{size} bytes");
    });
}

/// Takes every page for metadata but those that other volumes need already.
async fn use_up_pages(served: &Served) {
    let store = served.owner.store();
    let mut fillers = Vec::new();
    let mut number = 0;
    while let Ok(filler) = {
        number += 1;
        let new = NewVolume::thin(&format!("filler {number}"), ByteCount(0));
        store.create_volume(new).await
    } {
        fillers.push(filler.id);
    }
    for filler in fillers {
        for name in [b"user.x", b"user.y"] {
            if store.set_xattr(filler, name, &[b'x'; 3000]).await.is_err() {
                return;
            }
        }
    }
    panic!("there is a page for everybody");
}

#[test]
fn a_volume_is_replaced_by_a_rename_that_succeeds_or_stays() {
    let reactor = reactor();
    reactor.block_on(async {
        let device = memory_device(4 << 20, BlockSize::B4096);
        let served = Served::format(&reactor, device).await;
        let a = served.volume("a", CLUSTER).await;
        let b = served.volume("b", CLUSTER).await;
        let target = served.volume("target", CLUSTER).await;
        served.write(target, 0, b"precious").await.unwrap();
        let served = served.reopen().await;
        let blob = |node: NodeId| {
            let all = served.directory.volumes(served.pool.key());
            all.iter().find(|entry| entry.key().number() == node.0).unwrap().blob()
        };
        let store = served.owner.store();
        // A snapshot takes the place of a volume, too.
        store.set_read_only(blob(b)).await.unwrap();
        served.volume("other", CLUSTER).await;
        served.rename("b", "other", 0).await.unwrap();
        assert_eq!(served.lookup("other").await, Ok(b));
        assert_eq!(served.lookup("b").await, Err(Errno::ENOENT));
        // The name of `a` is in a page that must be written anew.
        for name in [b"user.x", b"user.y"] {
            store.set_xattr(blob(a), name, &[b'x'; 3000]).await.unwrap();
        }
        use_up_pages(&served).await;
        let handle = served.open_file(target, 1, libc::O_RDWR).await.unwrap();
        for open in [true, false] {
            assert_eq!(served.rename("a", "target", 0).await, Err(Errno::ENOSPC), "{open}");
            assert_eq!(served.lookup("a").await, Ok(a));
            assert_eq!(served.lookup("target").await, Ok(target));
            assert_eq!(served.read(target, 0, 8).await.unwrap(), b"precious");
            if open {
                served.ask(target, Operation::Release { handle }).await.unwrap();
            }
        }
        let served = served.crash().await;
        assert_eq!(served.lookup("target").await, Ok(target));
        assert_eq!(served.read(target, 0, 8).await.unwrap(), b"precious");
        served.unlink("filler 1").await.unwrap();
        served.unlink("filler 2").await.unwrap();
        served.rename("a", "target", 0).await.unwrap();
        assert_eq!(served.lookup("target").await, Ok(a));
        assert_eq!(served.attributes(target).await, Err(Errno::ESTALE));
    });
}

#[test]
fn what_a_copy_needed_goes_when_it_is_needed_no_more() {
    served(async |served| {
        let find = |served: &Served, name: &str| {
            served.directory.find_volume(served.pool.key(), name).unwrap()
        };
        let names = async |served: &Served| {
            let mut names = served.list(served.pool_node(), 4096, false).await;
            names.retain(|name| !name.starts_with('.') || name.starts_with(".copy-"));
            names.sort();
            names
        };
        let original = served.volume("v", CLUSTER).await;
        served.write(original, 0, b"content").await.unwrap();
        let copy = async |served: &Served| {
            served.volume("w", 0).await;
            served.owner.copy_whole(&find(served, "v"), &find(served, "w")).await.unwrap();
            assert_eq!(names(served).await.len(), 3);
        };
        // The copy becomes independent.
        copy(&served).await;
        served.owner.inflate(&find(&served, "w")).await.unwrap();
        assert_eq!(names(&served).await, ["v", "w"]);
        served.unlink("w").await.unwrap();
        // It is deleted while it is open, and a crash comes before it is closed.
        copy(&served).await;
        served.open_file(served.lookup("w").await.unwrap(), 1, libc::O_RDWR).await.unwrap();
        served.unlink("w").await.unwrap();
        let served = served.crash().await;
        assert_eq!(names(&served).await, ["v"]);
        // It cannot be made: there is no room for the metadata of the empty volume.
        served.volume("w", 0).await;
        let (v, w) = (find(&served, "v"), find(&served, "w"));
        let store = served.owner.store();
        for number in 0..16 {
            let name = format!("user.{number}");
            store.set_xattr(w.blob(), name.as_bytes(), &[b'x'; 3000]).await.unwrap();
        }
        // Enough for a snapshot.
        while store.info().free_metadata_pages > 11 {
            let name = format!("filler {}", store.info().free_metadata_pages);
            store.create_volume(NewVolume::thin(&name, ByteCount(0))).await.unwrap();
        }
        let failed = served.owner.copy_whole(&v, &w).await.unwrap_err();
        assert!(matches!(failed, Error::Store(_)), "{failed}");
        assert_eq!(names(&served).await, ["v", "w"]);
        assert_eq!(served.read(original, 0, 7).await.unwrap(), b"content");
    });
}

#[test]
fn a_new_name_is_one_that_a_file_can_have() {
    served(async |served| {
        served.volume("v", CLUSTER).await;
        let v = served.directory.find_volume(served.pool.key(), "v").unwrap();
        let owner = &served.owner;
        for name in ["a/b", "/", ".", "..", "", "a\0b"] {
            let refused = Error::NotFileName { name: name.to_owned() };
            let new = lvolfs::volume::NewVolume {
                name: name.to_owned(),
                size: ByteCount(CLUSTER),
                thin: true,
                uuid: None,
                attributes: None,
            };
            assert_eq!(owner.create(&served.pool, new).await.err(), Some(refused.clone()));
            assert_eq!(owner.rename(&v, name, Replace::Never).await, Err(refused.clone()));
            assert_eq!(owner.snapshot(&v, name).await.err(), Some(refused.clone()));
            assert_eq!(owner.clone_volume(&v, name).await.err(), Some(refused.clone()));
            assert_eq!(Errno::from(refused), Errno::EINVAL);
        }
        // One made elsewhere can be given another name.
        let new = NewVolume::thin("a/b", ByteCount(CLUSTER));
        let made = owner.store().create_volume(new).await.unwrap();
        let served = served.reopen().await;
        assert_eq!(served.list(served.pool_node(), 4096, false).await, [".", "..", "v"]);
        let uuid = made.uuid.unwrap().to_string();
        let found = served.directory.find(&uuid).unwrap();
        served.owner.rename(&found, "b", Replace::Never).await.unwrap();
        let mut names = served.list(served.pool_node(), 4096, false).await;
        names.sort();
        assert_eq!(names, [".", "..", "b", "v"]);
    });
}
