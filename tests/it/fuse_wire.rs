//! Requests as the two transports bring them: encoded as the kernel does, parsed and given memory
//! as each transport does it, but without a kernel.

use lvolfs::fuse::abi::{self, fattr, opcode};
use lvolfs::fuse::errno::Errno;
use lvolfs::fuse::reply::Reply;
use lvolfs::fuse::request::{Changes, NodeId, Operation, Request};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use zerocopy::IntoBytes;

use super::fuse_operations::Served;

/// How a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Read from `/dev/fuse`: arguments in one piece, data in the first part of a buffer for the
    /// largest request, or copied from there.
    DevFuse,
    /// By a queue's entry: arguments in the header, data lent from the entry's payload, which must
    /// be whole again before the answer goes out; reads land there too.
    IoUring,
}

/// Payload of an entry, and largest request.
const CAPACITY: usize = 64 << 10;
/// What is copied rather than kept where it was read.
const COPIED: usize = 16 << 10;

/// The kernel's bytes of an operation: its opcode and its structure.
fn encode(operation: &Operation) -> (u32, Vec<u8>) {
    match operation {
        Operation::Read { handle, offset, size } => {
            let (fh, offset, size) = (handle.0, *offset, *size);
            let read = abi::ReadIn { fh, offset, size, ..Default::default() };
            (opcode::READ, read.as_bytes().to_vec())
        }
        Operation::Write { handle, offset, size, flags } => {
            let (fh, offset, size, flags) = (handle.0, *offset, *size, *flags);
            let write = abi::WriteIn { fh, offset, size, flags, ..Default::default() };
            (opcode::WRITE, write.as_bytes().to_vec())
        }
        Operation::FSync { data_only } => {
            let fsync_flags = if *data_only { abi::FSYNC_FDATASYNC } else { 0 };
            let fsync = abi::FsyncIn { fsync_flags, ..Default::default() };
            (opcode::FSYNC, fsync.as_bytes().to_vec())
        }
        Operation::FAllocate { offset, length, mode } => {
            let (offset, length, mode) = (*offset, *length, *mode);
            let fallocate = abi::FallocateIn { offset, length, mode, ..Default::default() };
            (opcode::FALLOCATE, fallocate.as_bytes().to_vec())
        }
        Operation::SetAttr(Changes { size: Some(size), handle, .. }) => {
            let valid = fattr::SIZE | if handle.is_some() { fattr::FH } else { 0 };
            let fh = handle.map_or(0, |handle| handle.0);
            let setattr = abi::SetattrIn { valid, fh, size: *size, ..Default::default() };
            (opcode::SETATTR, setattr.as_bytes().to_vec())
        }
        other => panic!("{other:?} is not encoded here"),
    }
}

/// What is left of an entry while a part of its payload is lent.
struct Lent(DmaBuffer);

impl Lent {
    fn new(arena: &DmaArena, length: usize) -> (DmaBuffer, Self) {
        let mut payload = arena.allocate(CAPACITY).unwrap();
        let rest = payload.split_off(length);
        (payload, Self(rest))
    }
}

impl Served {
    /// Has a request done that comes in such a manner; `data` is that of a WRITE.
    pub(crate) async fn ask_by(
        &self,
        manner: Manner,
        node: NodeId,
        operation: &Operation,
        data: Option<&[u8]>,
    ) -> Result<Vec<u8>, Errno> {
        let (opcode, arguments) = encode(operation);
        let header =
            abi::InHeader { opcode, nodeid: node.0, unique: 2, pid: 1, ..Default::default() };
        let mut fixed = [0; 128];
        fixed[..arguments.len()].copy_from_slice(&arguments);
        let request = match manner {
            Manner::DevFuse => Request::parse(&header, &arguments),
            Manner::IoUring => Request::parse_parts(&header, &fixed, &[]),
        }
        .unwrap();
        assert_eq!(&request.operation, operation);
        let length = match operation {
            Operation::Read { size, .. } => *size as usize,
            _ => data.map_or(0, <[u8]>::len),
        };
        let (mut memory, lent) = match (manner, operation) {
            (Manner::IoUring, Operation::Read { .. } | Operation::Write { .. }) => {
                let (memory, lent) = Lent::new(&self.arena, length);
                (Some(memory), Some(lent))
            }
            (Manner::DevFuse, Operation::Write { .. }) if length <= COPIED => {
                (Some(self.arena.allocate(length).unwrap()), None)
            }
            (Manner::DevFuse, Operation::Write { .. }) => {
                let mut buffer = self.arena.allocate(CAPACITY).unwrap();
                drop(buffer.split_off(length));
                (Some(buffer), None)
            }
            _ => (None, None),
        };
        if let (Some(memory), Some(data)) = (&mut memory, data) {
            memory.copy_from_slice(data);
        }
        let reply = self.operations.handle(request, memory).await;
        let answer = match &reply {
            Reply::Error(errno) => Err(*errno),
            reply => Ok(reply.body().to_vec()),
        };
        drop(reply);
        if let Some(Lent(mut payload)) = lent {
            assert!(payload.rejoin(CAPACITY), "a part of the payload did not come back");
        }
        answer
    }
}
