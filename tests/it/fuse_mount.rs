//! The FUSE front end on the running kernel. Needs `/dev/fuse` and the right to mount; without
//! them the tests say so and pass.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join;
use lvolfs::block::AnyDevice;
use lvolfs::fuse::abi;
use lvolfs::fuse::device::{self, Connection};
use lvolfs::fuse::errno::Errno;
use lvolfs::fuse::mount::{Access, Mount, MountOptions, Transport, Unmounted};
use lvolfs::fuse::openings::Openings;
use lvolfs::fuse::operations::Operations;
use lvolfs::fuse::reply::Reply;
use lvolfs::fuse::request::{NodeId, Operation, Request};
use lvolfs::fuse::uring::{self, Queues, Shape};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use lvolfs::hw::thread::possible_cpus;
use lvolfs::reactor::policy::SpinPermits;
use lvolfs::reactor::{Clock, Reactor, ReactorOptions, Remote, Wait};
use lvolfs::units::{BlockSize, ByteCount};
use lvolfs::volume::{Catalog, Directory, Pool, Store};

use crate::fuse_operations::{Served, defaults, memory_device};

/// Entries of each queue: fewer than some tests have requests.
const QUEUE_DEPTH: usize = 4;

/// Straight to the descriptor: the test harness keeps what tests print.
fn say(text: &str) {
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// A mount point that leaves nothing mounted behind, whatever happens in the test.
struct MountPoint(tempfile::TempDir);

impl MountPoint {
    fn new() -> Option<Self> {
        if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
            say("skipped: /dev/fuse cannot be opened");
            return None;
        }
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn options(&self, transport: Transport) -> MountOptions {
        let path = self.0.path().into();
        MountOptions { path, access: Access::Owner, transport, write_back: false }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        while lvolfs::hw::fuse::unmount_lazily(self.path()).is_ok() {}
    }
}

/// Runs a test by each transport that this kernel offers.
fn by_each_transport(test: impl Fn(Transport)) {
    test(Transport::DevFuse);
    match fs::read_to_string("/sys/module/fuse/parameters/enable_uring").as_deref() {
        Ok("Y\n") => test(Transport::IoUring),
        _ => say("by /dev/fuse only: FUSE over io_uring is not enabled on this machine"),
    }
}

fn reactor(index: usize) -> (Rc<Reactor>, DmaArena) {
    let options = ReactorOptions {
        index,
        wait: Wait::Sleep,
        permits: SpinPermits::new(1),
        clock: Clock::real(),
    };
    let queues = Shape { queues: possible_cpus(), depth: QUEUE_DEPTH }.memory();
    let arena = DmaArena::new(ByteCount((16 << 20) + queues.get()), false).unwrap();
    (Reactor::new(options).unwrap(), arena)
}

/// One file, `data`, in memory.
#[derive(Default)]
struct OneFile(RefCell<Vec<u8>>);

impl OneFile {
    fn attributes(&self, node: NodeId) -> abi::Attr {
        let root = node == NodeId::ROOT;
        abi::Attr {
            ino: node.0,
            size: self.0.borrow().len() as u64,
            mode: if root { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o600 },
            nlink: 1,
            blksize: 4096,
            ..Default::default()
        }
    }

    fn answer(&self, arena: &DmaArena, request: Request, data: Option<DmaBuffer>) -> Reply {
        let attr = self.attributes(request.node);
        match request.operation {
            Operation::Lookup { name } if &*name == "data" => {
                let attr = self.attributes(NodeId(2));
                Reply::structure(&abi::EntryOut { nodeid: 2, attr, ..Default::default() })
            }
            Operation::Lookup { .. } => Errno::ENOENT.into(),
            Operation::GetAttr => Reply::structure(&abi::AttrOut { attr, ..Default::default() }),
            Operation::Open { .. } => Reply::structure(&abi::OpenOut {
                open_flags: abi::fopen::DIRECT_IO,
                ..Default::default()
            }),
            Operation::Write { offset, size, .. } => {
                let (data, offset) = (data.unwrap(), offset as usize);
                assert_eq!((data.len(), data.iova().get() % 4096), (size as usize, 0));
                let mut bytes = self.0.borrow_mut();
                let end = offset + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[offset..end].copy_from_slice(&data);
                Reply::structure(&abi::WriteOut { size, padding: 0 })
            }
            Operation::Read { offset, size, .. } => {
                let bytes = self.0.borrow();
                let start = bytes.len().min(offset as usize);
                let end = bytes.len().min(start + size as usize);
                if start == end {
                    return Reply::empty();
                }
                let mut buffer = arena.allocate(end - start).unwrap();
                buffer.copy_from_slice(&bytes[start..end]);
                Reply::Data(buffer, 0..end - start)
            }
            Operation::Release { .. } | Operation::Flush => Reply::empty(),
            Operation::Forget => Reply::None,
            _ => Errno::ENOSYS.into(),
        }
    }
}

/// Serves [`OneFile`] on this thread while `client` runs on another, then unmounts.
fn with_one_file(
    transport: Transport,
    client: impl FnOnce(PathBuf) + Send + 'static,
) -> Option<Unmounted> {
    let point = MountPoint::new()?;
    let mut mount = Mount::new(&point.options(transport)).unwrap();
    let (reactor, arena) = reactor(0);
    let connection: Connection = mount.connection().unwrap();
    let all: Vec<u16> = (0..possible_cpus() as u16).collect();
    let queues = mount.io_uring().ok().map(|()| {
        Queues::register(&reactor, &arena, &connection.file().unwrap(), &all, QUEUE_DEPTH).unwrap()
    });
    assert_eq!(queues.is_some(), transport == Transport::IoUring);
    let path = point.path().join("data");
    let (ended, end) = futures_channel::oneshot::channel::<()>();
    let worker = std::thread::spawn(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client(path)));
        let unmounted = mount.unmount();
        if let Ok(Unmounted::InUse) = unmounted {
            mount.detach().unwrap();
        }
        // Ends the serving also if the mount is still in use somewhere.
        drop(ended);
        result.map(|()| unmounted.unwrap())
    });
    let file = Rc::new((OneFile::default(), arena.clone()));
    let handler = Rc::new(async move |request: Request, data: Option<DmaBuffer>| {
        file.0.answer(&file.1, request, data)
    });
    let stop = async move { end.await.unwrap_or_default() }.shared();
    reactor.block_on(async {
        let device = Rc::clone(&handler);
        let device = device::serve(Rc::clone(&reactor), arena, connection, device, stop.clone());
        let (served, ()) = join(device, async {
            if let Some(queues) = queues {
                uring::serve(&reactor, queues, handler, stop).await.ended().await;
            }
        })
        .await;
        served.unwrap();
    });
    match worker.join().unwrap() {
        Ok(unmounted) => Some(unmounted),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[test]
fn data_passes_the_kernel_unchanged_in_all_sizes() {
    by_each_transport(data_passes_unchanged);
}

fn data_passes_unchanged(transport: Transport) {
    let unmounted = with_one_file(transport, |path| {
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let mut expected = vec![0; 5 << 20];
        random.fill(&mut expected);
        file.write_all_at(&expected, 0).unwrap();
        for size in [1, 511, 4096, 16384, 16385, 65536, 1 << 20, 3 << 20] {
            let offset = random.usize(..expected.len() - size);
            let mut part = vec![0; size];
            random.fill(&mut part);
            file.write_all_at(&part, offset as u64).unwrap();
            expected[offset..offset + size].copy_from_slice(&part);
            file.read_exact_at(&mut part, offset as u64).unwrap();
            assert_eq!(part, expected[offset..offset + size], "{size} bytes at {offset}");
        }
        let mut all = vec![0; expected.len()];
        file.read_exact_at(&mut all, 0).unwrap();
        assert!(all == expected);
    });
    assert!(matches!(unmounted, None | Some(Unmounted::Clean)));
}

#[test]
fn a_mount_in_use_is_detached() {
    by_each_transport(a_busy_mount_is_detached);
}

fn a_busy_mount_is_detached(transport: Transport) {
    let (keep, kept) = std::sync::mpsc::channel();
    let unmounted = with_one_file(transport, move |path| {
        fs::write(&path, b"x").unwrap_err();
        keep.send(fs::File::open(path).unwrap()).unwrap();
    });
    if let Some(unmounted) = unmounted {
        assert_eq!(unmounted, Unmounted::InUse);
        let file = kept.recv().unwrap();
        assert!(file.read_at(&mut [0], 0).is_err(), "nobody serves it any more");
    }
}

#[test]
fn a_mount_path_in_use_is_refused() {
    with_one_file(Transport::DevFuse, |path| {
        let path = path.parent().unwrap().to_owned();
        let (access, transport) = (Access::Owner, Transport::Auto);
        let options = MountOptions { path, access, transport, write_back: false };
        let Err(error) = Mount::new(&options) else {
            panic!("mounted twice");
        };
        let message = error.to_string();
        assert!(message.contains("is already mounted, from lvolfs (fuse.lvolfs)"), "{message}");
    });
}

/// Names the folder for the process that [`the_mount_of_a_killed_daemon_is_cleared`] kills.
const KILLED_MOUNT: &str = "LVOLFS_TEST_KILLED_MOUNT";

#[test]
fn the_mount_of_a_killed_daemon_is_cleared() {
    if let Ok(path) = std::env::var(KILLED_MOUNT) {
        let mount = Mount::new(&MountOptions {
            path: path.into(),
            access: Access::Owner,
            transport: Transport::DevFuse,
            write_back: false,
        })
        .unwrap();
        say("mounted");
        std::thread::park();
        drop(mount);
        return;
    }
    let Some(point) = MountPoint::new() else { return };
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "fuse_mount::the_mount_of_a_killed_daemon_is_cleared"])
        .env(KILLED_MOUNT, point.path())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let said = BufReader::new(daemon.stderr.take().unwrap()).lines().next();
    assert_eq!(said.unwrap().unwrap(), "mounted");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let error = fs::metadata(point.path()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "the mount is dead");
    let mut mount = Mount::new(&point.options(Transport::DevFuse)).unwrap();
    assert_eq!(mount.unmount().unwrap(), Unmounted::Clean);
    fs::read_dir(point.path()).unwrap();
}

/// What the owner of a pool tells the other reactors.
struct Shared {
    directory: Directory,
    pool: Arc<Pool>,
    store: Remote<Store>,
    device: AnyDevice,
    openings: Arc<Openings>,
}

/// Serves a pool `p` of 64 MiB on two reactors, while `client` runs on this thread with the
/// pool's folder.
fn with_pool(transport: Transport, client: impl FnOnce(&Path)) {
    let Some(point) = MountPoint::new() else { return };
    let mut mount = Mount::new(&point.options(transport)).unwrap();
    let shape = Shape { queues: possible_cpus(), depth: QUEUE_DEPTH };
    let queues = match mount.io_uring() {
        Ok(()) => uring::assign(shape, &[Some(0), Some(1)]),
        Err(_) => vec![Vec::new(), Vec::new()],
    };
    let one = |queues: &Vec<u16>| (mount.connection().unwrap(), queues.clone());
    let (first, second) = (one(&queues[0]), one(&queues[1]));
    let (share, shared) = std::sync::mpsc::channel::<Shared>();
    let (over, end_of_second) = futures_channel::oneshot::channel::<()>();
    let owner = std::thread::spawn(move || {
        let (reactor, arena) = reactor(0);
        reactor.block_on(async {
            let device = memory_device(64 << 20, BlockSize::B4096);
            let served = Served::format(&reactor, device).await;
            let (openings, store) = (Arc::clone(&served.openings), served.store());
            let (directory, pool) = (served.directory.clone(), Arc::clone(&served.pool));
            let device = served.device.clone();
            share.send(Shared { directory, pool, store, device, openings }).unwrap();
            serve(&reactor, &arena, first, &served.operations).await;
            end_of_second.await.unwrap_or_default();
            served.close().await;
        });
    });
    let other = std::thread::spawn(move || {
        let (reactor, arena) = reactor(1);
        let Shared { directory, pool, store, device, openings } = shared.recv().unwrap();
        reactor.block_on(async {
            let catalog = Rc::new(Catalog::new(&reactor, &arena, &directory));
            catalog.attach(&pool, store, device.channel(&reactor, &arena).unwrap()).await.unwrap();
            let operations = Rc::new(Operations::new(&catalog, &openings, defaults()));
            serve(&reactor, &arena, second, &operations).await;
        });
        drop(over);
    });
    let folder = point.path().join("p");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client(&folder)));
    assert_eq!(mount.unmount().unwrap(), Unmounted::Clean);
    other.join().unwrap();
    owner.join().unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

async fn serve(
    reactor: &Rc<Reactor>,
    arena: &DmaArena,
    (connection, queues): (Connection, Vec<u16>),
    operations: &Rc<Operations>,
) {
    let file = connection.file().unwrap();
    let queues = Queues::register(reactor, arena, &file, &queues, QUEUE_DEPTH).unwrap();
    let operations = Rc::clone(operations);
    let handler = Rc::new(async move |request: Request, data: Option<DmaBuffer>| {
        operations.handle(request, data).await
    });
    let (device, never) = (Rc::clone(&handler), std::future::pending);
    let device = device::serve(Rc::clone(reactor), arena.clone(), connection, device, never());
    let queues = async { uring::serve(reactor, queues, handler, never()).await.ended().await };
    join(device, queues).await.0.unwrap();
}

/// A volume of `size` bytes.
fn volume(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = folder.join(name);
    fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[test]
fn files_behave_as_files() {
    by_each_transport(|transport| with_pool(transport, files_behave_as_files_in));
}

fn files_behave_as_files_in(folder: &Path) {
    let path = volume(folder, "v", 8 << 20);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (8 << 20, 0));
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let mut expected = vec![0; 8 << 20];
    for _ in 0..200 {
        let length = random.usize(1..300_000);
        let offset = random.usize(..expected.len() - length);
        let part = &mut expected[offset..offset + length];
        random.fill(part);
        file.write_all_at(part, offset as u64).unwrap();
    }
    file.sync_all().unwrap();
    assert!(fs::read(&path).unwrap() == expected);
    let error = file.write_at(b"x", 8 << 20).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(file.write_at(b"abc", (8 << 20) - 1).unwrap(), 1);
    fs::rename(&path, folder.join("w")).unwrap();
    fs::remove_file(folder.join("w")).unwrap();
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    let mut byte = [0];
    file.read_exact_at(&mut byte, (8 << 20) - 1).unwrap();
    assert_eq!(&byte, b"a", "open, so still there");
    drop(file);
    assert!(fs::create_dir(folder.join("d")).is_err());
    assert!(fs::create_dir(folder.parent().unwrap().join("d")).is_err());
}

#[test]
fn writers_on_two_reactors_lose_nothing() {
    by_each_transport(|transport| with_pool(transport, writers_on_two_reactors_lose_nothing_in));
}

fn writers_on_two_reactors_lose_nothing_in(folder: &Path) {
    let path = volume(folder, "v", 1 << 20);
    std::thread::scope(|scope| {
        for writer in 0..4_u8 {
            let path = &path;
            scope.spawn(move || {
                let file = fs::File::options().write(true).open(path).unwrap();
                for step in 0..250 {
                    let offset = (step * 4 + u64::from(writer)) * 100;
                    file.write_all_at(&[writer + 1; 100], offset).unwrap();
                }
            });
        }
    });
    let data = fs::read(&path).unwrap();
    for (index, part) in data[..100_000].chunks(100).enumerate() {
        let writer = (index % 4) as u8 + 1;
        assert!(part.iter().all(|&byte| byte == writer), "part {index}");
    }
}

#[test]
fn dd_and_cp_write_volumes() {
    by_each_transport(|transport| with_pool(transport, dd_and_cp_write_volumes_in));
}

fn dd_and_cp_write_volumes_in(folder: &Path) {
    let source = tempfile::NamedTempFile::new().unwrap();
    let mut data = vec![0; 3 << 20];
    fastrand::Rng::with_seed(4).fill(&mut data);
    fs::write(source.path(), &data).unwrap();
    let from = source.path().to_str().unwrap();
    // Into an existing volume: it keeps its size, and what lies behind the data.
    let path = volume(folder, "old", 4 << 20);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"tail", (4 << 20) - 4).unwrap();
    drop(file);
    let to = path.to_str().unwrap();
    run("dd", &[&format!("if={from}"), &format!("of={to}"), "bs=1M", "conv=fsync"]);
    assert_eq!(fs::metadata(&path).unwrap().len(), 4 << 20);
    assert!(fs::read(&path).unwrap()[..3 << 20] == data);
    run("cp", &[from, to]);
    assert_eq!(fs::metadata(&path).unwrap().len(), 4 << 20);
    // Into a new one: it grows.
    let new = folder.join("new");
    run("cp", &["--sparse=always", from, new.to_str().unwrap()]);
    assert!(fs::read(&new).unwrap() == data);
    run("truncate", &["-s", "1M", new.to_str().unwrap()]);
    assert!(fs::read(&new).unwrap() == data[..1 << 20]);
    // Into the same mount: a copy.
    let copy = folder.join("copy");
    run("cp", &[new.to_str().unwrap(), copy.to_str().unwrap()]);
    assert!(fs::read(&copy).unwrap() == data[..1 << 20]);
}
