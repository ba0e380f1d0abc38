//! The FUSE front end on the running kernel. Needs `/dev/fuse` and the right to mount; without
//! them the tests say so and pass.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use lvolfs::fuse::abi;
use lvolfs::fuse::device::{self, Connection};
use lvolfs::fuse::errno::Errno;
use lvolfs::fuse::mount::{Access, Mount, MountOptions, Unmounted};
use lvolfs::fuse::reply::Reply;
use lvolfs::fuse::request::{NodeId, Operation, Request};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use lvolfs::reactor::policy::SpinPermits;
use lvolfs::reactor::{Clock, Reactor, ReactorOptions, Wait};
use lvolfs::units::ByteCount;

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

    fn options(&self) -> MountOptions {
        MountOptions { path: self.0.path().into(), access: Access::Owner }
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

fn reactor() -> (Rc<Reactor>, DmaArena) {
    let options = ReactorOptions {
        index: 0,
        wait: Wait::Sleep,
        permits: SpinPermits::new(1),
        clock: Clock::real(),
    };
    let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
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
fn with_one_file(client: impl FnOnce(PathBuf) + Send + 'static) -> Option<Unmounted> {
    let point = MountPoint::new()?;
    let mount = Mount::new(&point.options()).unwrap();
    let (reactor, arena) = reactor();
    let connection: Connection = mount.connection().unwrap();
    let path = point.path().join("data");
    let (ended, end) = futures_channel::oneshot::channel::<()>();
    let worker = std::thread::spawn(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client(path)));
        let unmounted = mount.unmount();
        // Ends the serving also if the mount is still in use somewhere.
        drop(ended);
        result.map(|()| unmounted.unwrap())
    });
    let file = Rc::new((OneFile::default(), arena.clone()));
    let handler = Rc::new(async move |request: Request, data: Option<DmaBuffer>| {
        file.0.answer(&file.1, request, data)
    });
    let stop = async move { end.await.unwrap_or_default() };
    let serving = device::serve(Rc::clone(&reactor), arena, connection, handler, stop);
    reactor.block_on(serving).unwrap();
    match worker.join().unwrap() {
        Ok(unmounted) => Some(unmounted),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[test]
fn data_passes_the_kernel_unchanged_in_all_sizes() {
    let unmounted = with_one_file(|path| {
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
    let (keep, kept) = std::sync::mpsc::channel();
    let unmounted = with_one_file(move |path| {
        fs::write(&path, b"x").unwrap_err();
        keep.send(fs::File::open(path).unwrap()).unwrap();
    });
    if let Some(unmounted) = unmounted {
        assert_eq!(unmounted, Unmounted::Detached);
        let file = kept.recv().unwrap();
        assert!(file.read_at(&mut [0], 0).is_err(), "nobody serves it any more");
    }
}

#[test]
fn a_mount_path_in_use_is_refused() {
    with_one_file(|path| {
        let path = path.parent().unwrap().to_owned();
        let Err(error) = Mount::new(&MountOptions { path, access: Access::Owner }) else {
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
        let mount = Mount::new(&MountOptions { path: path.into(), access: Access::Owner }).unwrap();
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
    let mount = Mount::new(&point.options()).unwrap();
    assert_eq!(mount.unmount().unwrap(), Unmounted::Clean);
    fs::read_dir(point.path()).unwrap();
}
