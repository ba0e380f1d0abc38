//! A file system that does nothing, on the transports of lvolfs: the floor under every figure of
//! the mount. For `benches/compare-fuse`.
//!
//!     fuse_null FOLDER SIZE [dev_fuse | plain | ram]
//!
//! By /dev/fuse with `dev_fuse`; with `plain`, by io_uring on threads that stay where the scheduler
//! puts them, which is what `benches/compare-placement` compares the placement with; with `ram`, it keeps what is written, as simply as
//! that can be done: the floor under a volume in memory. One file, `null`, of SIZE bytes: writes are forgotten, reads give whatever is in memory.

use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, RwLock};

use lvolfs::fuse::abi;
use lvolfs::fuse::device;
use lvolfs::fuse::errno::Errno;
use lvolfs::fuse::mount::{Access, Mount, MountOptions, Transport};
use lvolfs::fuse::reply::Reply;
use lvolfs::fuse::request::{NodeId, Operation, Request};
use lvolfs::fuse::uring::{self, Queues, Shape};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use lvolfs::hw::thread::{allowed_cpus, possible_cpus};
use lvolfs::reactor::policy::SpinPermits;
use lvolfs::reactor::{Clock, Reactor, ReactorOptions, Wait};
use lvolfs::units::ByteCount;

const FILE: NodeId = NodeId(2);

/// [`PIECE`] bytes of the file each.
type Ram = Vec<RwLock<Box<[u8]>>>;
const PIECE: usize = 1 << 20;

struct Null {
    arena: DmaArena,
    size: u64,
    ram: Option<Arc<Ram>>,
}

/// The pieces of `length` bytes at `offset`: number, first byte there, part of the range.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
    let (first, mut done) = (offset as usize, 0);
    std::iter::from_fn(move || {
        let (piece, start) = ((first + done) / PIECE, (first + done) % PIECE);
        let part = done..length.min(done + PIECE - start);
        done = part.end;
        (!part.is_empty()).then_some((piece, start, part))
    })
}

impl Null {
    fn attributes(&self, node: NodeId) -> abi::Attr {
        let root = node == NodeId::ROOT;
        abi::Attr {
            ino: node.0,
            size: if root { 0 } else { self.size },
            mode: if root { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o600 },
            nlink: 1,
            blksize: 4096,
            ..Default::default()
        }
    }

    fn answer(&self, request: &Request, data: Option<DmaBuffer>) -> Reply {
        const VALID: u64 = 3600;
        match &request.operation {
            Operation::Read { offset, size, .. } => {
                let size = *size as usize;
                let Some(mut buffer) = data.or_else(|| self.arena.allocate(size)) else {
                    return Errno::ENOMEM.into();
                };
                for ram in self.ram.iter() {
                    for (piece, start, part) in pieces(*offset, size) {
                        let Some(bytes) = ram.get(piece) else { break };
                        let length = part.len();
                        let bytes = bytes.read().expect("nobody panics");
                        buffer[part].copy_from_slice(&bytes[start..start + length]);
                    }
                }
                Reply::Data(buffer, 0..size)
            }
            Operation::Write { offset, size, .. } => {
                for (ram, data) in self.ram.iter().zip(data) {
                    for (piece, start, part) in pieces(*offset, data.len()) {
                        let Some(bytes) = ram.get(piece) else { break };
                        let mut bytes = bytes.write().expect("nobody panics");
                        bytes[start..start + part.len()].copy_from_slice(&data[part]);
                    }
                }
                Reply::structure(&abi::WriteOut { size: *size, padding: 0 })
            }
            Operation::Lookup { name } if **name == *"null" => Reply::structure(&abi::EntryOut {
                nodeid: FILE.0,
                entry_valid: VALID,
                attr_valid: VALID,
                attr: self.attributes(FILE),
                ..Default::default()
            }),
            Operation::Lookup { .. } => Errno::ENOENT.into(),
            Operation::GetAttr | Operation::SetAttr(_) => Reply::structure(&abi::AttrOut {
                attr_valid: VALID,
                attr: self.attributes(request.node),
                ..Default::default()
            }),
            Operation::Open { .. } => Reply::structure(&abi::OpenOut {
                open_flags: abi::fopen::DIRECT_IO | abi::fopen::PARALLEL_DIRECT_WRITES,
                ..Default::default()
            }),
            Operation::FSync { .. } | Operation::Release { .. } => Reply::empty(),
            Operation::Forget => Reply::None,
            _ => Errno::ENOSYS.into(),
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(size)) = (arguments.next(), arguments.next()) else {
        panic!("fuse_null FOLDER SIZE [dev_fuse | plain | ram]");
    };
    let size: u64 = size.parse().expect("SIZE is a number of bytes");
    let how = arguments.next();
    let ram = (how.as_deref() == Some("ram")).then(|| {
        let piece = |_| RwLock::new(vec![0; PIECE].into());
        Arc::new((0..size.div_ceil(PIECE as u64)).map(piece).collect::<Ram>())
    });
    let placed = how.as_deref() != Some("plain");
    let transport =
        if how.as_deref() == Some("dev_fuse") { Transport::DevFuse } else { Transport::IoUring };
    let path = PathBuf::from(path);
    let options = MountOptions { path, access: Access::Owner, transport, write_back: false };
    let mount = Mount::new(&options).expect("mounted");
    let shape = Shape::of(possible_cpus());
    let cpus = allowed_cpus();
    let homes: Vec<_> = cpus.iter().copied().map(Some).collect();
    let permits = SpinPermits::new(cpus.len());
    let arena = DmaArena::new(ByteCount(shape.memory().get() + (32 << 20)), false).expect("memory");
    let mut threads = Vec::new();
    for (index, queues) in uring::assign(shape, &homes).into_iter().enumerate() {
        let connection = mount.connection().expect("a connection");
        let file = connection.file().expect("a descriptor");
        let (arena, permits, cpus) = (arena.clone(), permits.clone(), cpus.clone());
        let ram = ram.clone();
        let fast = mount.io_uring().is_ok();
        let serve = move || {
            let (clock, wait) = (Clock::real(), Wait::Adaptive);
            let options = ReactorOptions { index, wait, permits, clock };
            let reactor = Reactor::new(options).expect("an io_uring");
            let null = Rc::new(Null { arena: arena.clone(), size, ram: ram.clone() });
            let handler = Rc::new(async move |request: Request, data: Option<DmaBuffer>| {
                null.answer(&request, data)
            });
            reactor.block_on(async {
                let device = Rc::clone(&handler);
                let (never, rest) = (std::future::pending(), arena.clone());
                let read = device::serve(Rc::clone(&reactor), rest, connection, device, never);
                if !fast {
                    return read.await.expect("served");
                }
                let file = Arc::clone(&file);
                let queues = Queues::register(&reactor, &arena, &file, &queues, shape.depth);
                let others = cpus.iter().copied().filter(|cpu| *cpu != cpus[index]).collect();
                if placed {
                    reactor.settle(cpus[index], others).expect("a CPU");
                }
                let never = std::future::pending();
                let queues = uring::serve(&reactor, queues.expect("queues"), handler, never);
                let (_, stopped) = futures_util::future::join(read, queues).await;
                stopped.ended().await;
            });
        };
        threads.push(std::thread::spawn(serve));
    }
    for thread in threads {
        thread.join().expect("a thread that ends in order");
    }
}
