//! Entries of the queues of FUSE over io_uring: memory that the kernel fills with a request, and
//! that goes back to it with the answer.
//!
//! An entry is told to the kernel once (REGISTER), with the addresses of its two pieces of memory.
//! From then on it is the kernel's until its completion says that it holds a request, and ours
//! until it is committed (COMMIT_AND_FETCH), which answers that request and asks for the next.
//! Whose it is now is a matter of types: a [`QueueEntry`] is ours, an [`AtKernel`] the kernel's,
//! and each is made by giving up the other. Parts of the payload may be lent to others meanwhile;
//! an entry with a part missing cannot be committed.
//!
//! Layout: `include/uapi/linux/fuse.h`, `fuse_uring_req_header` and `fuse_uring_cmd_req`.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use io_uring::squeue::Entry128;
use io_uring::{opcode, types};
use zerocopy::IntoBytes;

use super::Ring;
use crate::hw::dma::{DeviceBuffer, DmaArena, DmaBuffer};

/// The kernel's header of a request: three areas, see `fuse_uring_req_header`.
pub const HEADER: usize = 288;
/// Where REGISTER finds the two addresses: behind the header, in the same memory.
const VECTORS: usize = 512;
/// Memory for a header.
const HEADER_MEMORY: usize = 1024;
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// Set in the user data of these commands.
pub(super) const ENTRY: u64 = 1 << 62;
/// Most entries that one ring holds. They wait in the kernel for as long as there is nothing to
/// do, so they do not count against the operations in flight.
pub const ENTRIES_LIMIT: usize = 2048;

/// What the ring keeps for an entry.
pub(super) struct Slot {
    connection: Arc<File>,
    queue: u16,
    state: SlotState,
}

enum SlotState {
    /// With its [`QueueEntry`].
    Ours,
    /// At the kernel, which may write to the memory.
    /// `wanted`: somebody waits for it, or will.
    AtKernel { header: DeviceBuffer, payload: DeviceBuffer, waker: Option<Waker>, wanted: bool },
    /// Back, with the kernel's result.
    Back { header: DmaBuffer, payload: DmaBuffer, result: i32 },
}

/// An entry that is ours.
pub struct QueueEntry {
    ring: Rc<Ring>,
    key: usize,
    header: DmaBuffer,
    payload: DmaBuffer,
    capacity: usize,
    damaged: bool,
}

impl QueueEntry {
    /// Offers a new entry of the queue with number `queue` to the kernel, with memory for
    /// `capacity` bytes of data. `None`: no memory left, or [`ENTRIES_LIMIT`] reached.
    pub fn register(
        ring: &Rc<Ring>,
        arena: &DmaArena,
        connection: &Arc<File>,
        queue: u16,
        capacity: usize,
    ) -> Option<AtKernel> {
        let (mut header, payload) =
            (arena.allocate_zeroed(HEADER_MEMORY)?, arena.allocate(capacity)?);
        let mut entries = ring.entries.borrow_mut();
        if entries.len() >= ENTRIES_LIMIT {
            return None;
        }
        let vectors =
            [header.as_ptr() as u64, HEADER as u64, payload.as_ptr() as u64, payload.len() as u64];
        header[VECTORS..VECTORS + size_of_val(&vectors)].copy_from_slice(vectors.as_bytes());
        let address = vectors[0] + VECTORS as u64;
        let slot = Slot { connection: Arc::clone(connection), queue, state: SlotState::Ours };
        let key = entries.insert(slot);
        drop(entries);
        let entry = Self { ring: Rc::clone(ring), key, header, payload, capacity, damaged: false };
        Some(entry.give(REGISTER, 0, Some(address)))
    }

    /// The kernel's header of the request, to be replaced by that of the answer.
    #[must_use]
    pub fn header(&mut self) -> &mut [u8; HEADER] {
        match self.header.first_chunk_mut() {
            Some(header) => header,
            None => unreachable!("the header's memory is longer than a header"),
        }
    }

    /// The payload: what of it is not lent.
    #[must_use]
    pub fn payload(&mut self) -> &mut DmaBuffer {
        &mut self.payload
    }

    /// How much data fits.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Lends the first `length` bytes of the payload. They come back by being dropped.
    #[must_use]
    pub fn lend(&mut self, length: usize) -> DmaBuffer {
        let tail = self.payload.split_off(length.min(self.payload.len()));
        std::mem::replace(&mut self.payload, tail)
    }

    /// Whether `buffer` is the beginning of what was lent.
    #[must_use]
    pub fn lent(&self, buffer: &DmaBuffer) -> bool {
        buffer.begins_with_allocation_of(&self.payload)
    }

    /// Whether part of the payload was lost when it was committed last, and still is.
    #[must_use]
    pub fn is_damaged(&mut self) -> bool {
        self.damaged && !self.is_whole()
    }

    /// Whether nothing of the payload is lent any more; it is whole then.
    #[must_use]
    pub fn is_whole(&mut self) -> bool {
        self.payload.rejoin(self.capacity)
    }

    /// As [`QueueEntry::commit`], with a part of the payload at a device that does not give it
    /// back. Nobody here reads that part any more; see [`QueueEntry::is_damaged`].
    #[must_use]
    pub fn commit_damaged(mut self, commit_id: u64) -> AtKernel {
        self.damaged = true;
        self.give(COMMIT_AND_FETCH, commit_id, None)
    }

    /// Gives the kernel the answer, and the memory for the next request. `Err` gives the entry
    /// back: a part of it is still lent.
    ///
    /// # Errors
    /// The entry.
    pub fn commit(mut self, commit_id: u64) -> Result<AtKernel, Self> {
        if !self.is_whole() {
            return Err(self);
        }
        self.damaged = false;
        Ok(self.give(COMMIT_AND_FETCH, commit_id, None))
    }

    fn give(self, command: u32, commit_id: u64, vectors: Option<u64>) -> AtKernel {
        let Self { ring, key, header, payload, capacity, damaged } = self;
        let (header, payload) = (header.into_device(), payload.into_device());
        let mut entries = ring.entries.borrow_mut();
        let slot = &mut entries[key];
        let entry = build(slot, command, commit_id, vectors).user_data(ENTRY | key as u64);
        slot.state = SlotState::AtKernel { header, payload, waker: None, wanted: true };
        drop(entries);
        ring.push128(&entry);
        AtKernel { ring, key, capacity, damaged }
    }
}

fn build(slot: &Slot, command: u32, commit_id: u64, vectors: Option<u64>) -> Entry128 {
    // fuse_uring_cmd_req: flags, commit_id, qid, padding.
    let mut area = [0; 80];
    area[8..16].copy_from_slice(&commit_id.to_ne_bytes());
    area[16..18].copy_from_slice(&slot.queue.to_ne_bytes());
    let descriptor = types::Fd(slot.connection.as_raw_fd());
    let build = opcode::UringCmd80::new(descriptor, command).cmd(area);
    match vectors {
        None => build.build(),
        Some(address) => super::with_length(build.addr(Some(address)).build(), 2),
    }
}

/// An entry at the kernel. Resolves when it is back: with 0, it holds a request.
pub struct AtKernel {
    ring: Rc<Ring>,
    key: usize,
    capacity: usize,
    damaged: bool,
}

impl AtKernel {
    /// Whether the kernel refused it at once, and why; to be asked after [`Ring::submit`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn accepted(&self) -> io::Result<()> {
        match self.ring.entries.borrow()[self.key].state {
            SlotState::Back { result, .. } if result < 0 => {
                Err(io::Error::from_raw_os_error(-result))
            }
            _ => Ok(()),
        }
    }
}

impl Future for AtKernel {
    type Output = Result<QueueEntry, io::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut entries = self.ring.entries.borrow_mut();
        let slot = &mut entries[self.key];
        match std::mem::replace(&mut slot.state, SlotState::Ours) {
            SlotState::Back { header, payload, result } => {
                if result != 0 {
                    entries.remove(self.key);
                }
                drop(entries);
                let this = self.get_mut();
                let (ring, capacity, damaged) =
                    (Rc::clone(&this.ring), this.capacity, this.damaged);
                // The slot is the entry's again, or nobody's.
                let key = std::mem::replace(&mut this.key, usize::MAX);
                Poll::Ready(match result {
                    0 => Ok(QueueEntry { ring, key, header, payload, capacity, damaged }),
                    error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
                })
            }
            SlotState::AtKernel { header, payload, .. } => {
                let waker = Some(context.waker().clone());
                slot.state = SlotState::AtKernel { header, payload, waker, wanted: true };
                Poll::Pending
            }
            SlotState::Ours => unreachable!("polled after its end"),
        }
    }
}

impl Drop for AtKernel {
    fn drop(&mut self) {
        let mut entries = self.ring.entries.borrow_mut();
        let Some(slot) = entries.get_mut(self.key) else { return };
        match &mut slot.state {
            // The memory stays in the slot until the kernel gives it back, or the ring ends.
            SlotState::AtKernel { waker, wanted, .. } => (*waker, *wanted) = (None, false),
            SlotState::Back { .. } | SlotState::Ours => drop(entries.remove(self.key)),
        }
    }
}

impl Ring {
    /// An entry is back.
    pub(super) fn entry_back(&self, user_data: u64, result: i32) -> Option<Waker> {
        let mut entries = self.entries.borrow_mut();
        let key = usize::try_from(user_data & !ENTRY).ok()?;
        let slot = entries.get_mut(key)?;
        let state = std::mem::replace(&mut slot.state, SlotState::Ours);
        let SlotState::AtKernel { header, payload, waker, wanted } = state else {
            slot.state = state;
            return None;
        };
        if result == 0 {
            self.arrivals.set(self.arrivals.get() + 1);
        }
        // The completion is the kernel's word that it no longer touches the memory.
        let (header, payload) = (header.reclaim(), payload.reclaim());
        slot.state = SlotState::Back { header, payload, result };
        if !wanted {
            entries.remove(key);
        }
        waker
    }
}
