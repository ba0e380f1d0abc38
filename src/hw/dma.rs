//! DMA memory: one arena that a device can reach, and buffers whose owner is in their type.
//!
//! * [`DmaBuffer`] belongs to the CPU: it derefs to bytes.
//! * [`DeviceBuffer`] belongs to the device: it has an address and a length, and no bytes. It is
//!   made by giving a `DmaBuffer` away and turns back by `reclaim`, which only the code that saw
//!   the device finish may call. Dropping one leaks its memory on purpose (*quarantine*): memory
//!   that a device may still write must never be handed out again.
//! * [`SharedMemory`] belongs to both at once (queues): it is only read and written through
//!   atomic or volatile accesses.
//!
//! The arena is one `MAP_SHARED` memfd, in huge pages if the system has them to spare, populated
//! at creation and mapped at one linear range of device addresses, so that translation is an
//! addition; or, for devices without an IOMMU, one whose device addresses are the physical ones
//! (see `physical`). Allocation is a buddy system over 4 KiB pages with fixed bookkeeping: it never
//! allocates from the heap after set-up, and it answers `None` when full instead of growing.

#![expect(unsafe_code, reason = "maps the arena and gives out disjoint slices of it")]

mod buddy;
mod physical;
mod shared;
mod window;

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use self::buddy::{Buddy, MAX_ORDER};
pub use self::physical::PhysicalError;
use self::physical::PhysicalPages;
pub use self::shared::SharedMemory;
pub use self::window::{DmaWindow, OutsideWindow};
use crate::units::{ByteCount, Iova};

/// The arena's page: the smallest allocation and the alignment of each.
pub const PAGE: usize = 4096;
/// Largest single buffer: 2^10 pages, 4 MiB.
pub const MAX_BUFFER: usize = PAGE << MAX_ORDER;
pub(super) const HUGE_PAGE: usize = 2 << 20;
/// First device address of an arena behind an IOMMU: above the 32-bit MSI window that IOMMUs reserve.
const IOVA_BASE: u64 = 4 << 30;

/// A pool of memory that devices can reach. Cheap to clone; the memory lives until the last
/// clone and the last buffer are gone.
#[derive(Clone)]
pub struct DmaArena(Arc<Arena>);

struct Arena {
    base: NonNull<u8>,
    length: usize,
    memory: OwnedFd,
    huge_pages: bool,
    /// Where the pages are, if that is what devices are told.
    physical: Option<PhysicalPages>,
    buddy: Mutex<Buddy>,
    /// For the first page of each allocation: how many buffers share it (see `split_off`).
    references: Box<[AtomicU32]>,
    /// For the first page of each allocation: its order.
    orders: Box<[AtomicU8]>,
    quarantined: AtomicUsize,
}

// SAFETY: `base` is a mapping that lives as long as `Arena`; all access to it goes through
// buffers that own disjoint ranges, or through atomics and volatile copies.
unsafe impl Send for Arena {}
// SAFETY: as above; the bookkeeping is behind a mutex or atomic.
unsafe impl Sync for Arena {}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `DmaArena::new` with this length; no buffer is left,
        // since each holds a reference to the arena.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

impl DmaArena {
    /// Creates an arena of `size` bytes (rounded up to whole pages), populated and not inherited
    /// by child processes. Huge pages are used if `huge_pages` is true and enough are free.
    ///
    /// # Errors
    /// The system's, if it cannot give the memory.
    pub fn new(size: ByteCount, huge_pages: bool) -> io::Result<Self> {
        let length = Self::length(size).ok_or(io::ErrorKind::InvalidInput)?;
        if huge_pages && let Ok(arena) = Self::map(length, true) {
            return Ok(arena);
        }
        Self::map(length, false)
    }

    /// An arena in pinned huge pages whose device addresses are the physical ones, for devices that
    /// no IOMMU stands before. Its file in hugetlbfs is called `name`, which one process at a time
    /// can use; a process that is killed leaves it to the next.
    ///
    /// # Errors
    /// [`PhysicalError`], which says what to do about it.
    pub fn physical(size: ByteCount, name: &str) -> Result<Self, PhysicalError> {
        let length = Self::length(size).unwrap_or(MAX_BUFFER);
        let physical::Mapped { pages, file, base } = physical::map(name, length)?;
        Ok(Self::over(base, length, file.into(), true, Some(pages)))
    }

    /// `size` as whole blocks of the allocator.
    fn length(size: ByteCount) -> Option<usize> {
        usize::try_from(size.get()).ok()?.max(MAX_BUFFER).checked_next_multiple_of(MAX_BUFFER)
    }

    fn map(length: usize, huge_pages: bool) -> io::Result<Self> {
        let flags = libc::MFD_CLOEXEC | if huge_pages { libc::MFD_HUGETLB } else { 0 };
        // SAFETY: a constant C string and plain flags.
        let fd = unsafe { libc::memfd_create(c"lvolfs-dma".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and is owned by nobody else.
        let memory = unsafe { OwnedFd::from_raw_fd(fd) };
        let size = i64::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: an owned descriptor and a length.
        if unsafe { libc::ftruncate(fd, size) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // Huge pages are reserved at mmap time, so that a shortage is an error here and not a
        // SIGBUS later. Small pages are touched on first use: an idle daemon stays small.
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping of an owned descriptor at an address the kernel chooses.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self::over(base, length, memory, huge_pages, None))
    }

    /// The arena that is mapped at `base`, which nothing refers to yet.
    fn over(
        base: NonNull<u8>,
        length: usize,
        memory: OwnedFd,
        huge_pages: bool,
        physical: Option<PhysicalPages>,
    ) -> Self {
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            // SAFETY: the caller's mapping. Failure only costs the hint.
            unsafe { libc::madvise(base.as_ptr().cast(), length, advice) };
        }
        let pages = length / PAGE;
        Self(Arc::new(Arena {
            base,
            length,
            memory,
            huge_pages,
            physical,
            buddy: Mutex::new(Buddy::new(pages)),
            references: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            orders: (0..pages).map(|_| AtomicU8::new(0)).collect(),
            quarantined: AtomicUsize::new(0),
        }))
    }

    /// A buffer of `length` bytes at a page boundary, or `None` if the arena is full or `length`
    /// is 0 or above [`MAX_BUFFER`]. The contents are whatever was there before.
    #[must_use]
    pub fn allocate(&self, length: usize) -> Option<DmaBuffer> {
        self.allocate_leaving(length, ByteCount(0))
    }

    /// As [`DmaArena::allocate`], if at least `reserve` stays free.
    #[must_use]
    pub fn allocate_leaving(&self, length: usize, reserve: ByteCount) -> Option<DmaBuffer> {
        if length == 0 || length > MAX_BUFFER {
            return None;
        }
        let order = length.div_ceil(PAGE).next_power_of_two().trailing_zeros() as usize;
        let mut buddy = self.0.lock();
        let left = (buddy.free_pages() * PAGE).checked_sub(length)?;
        if (left as u64) < reserve.get() {
            return None;
        }
        let head = buddy.allocate(order)?;
        drop(buddy);
        self.0.references[head as usize].store(1, Ordering::Relaxed);
        self.0.orders[head as usize].store(order as u8, Ordering::Relaxed);
        let offset = head as usize * PAGE;
        Some(DmaBuffer(Range { arena: self.clone(), head, offset, length }))
    }

    /// As [`DmaArena::allocate`], filled with zeros.
    #[must_use]
    pub fn allocate_zeroed(&self, length: usize) -> Option<DmaBuffer> {
        let mut buffer = self.allocate(length)?;
        buffer.fill(0);
        Some(buffer)
    }

    /// Zeroed memory for a queue, which CPU and device use at the same time.
    #[must_use]
    pub fn allocate_shared(&self, length: usize) -> Option<SharedMemory> {
        let buffer = self.allocate_zeroed(length)?;
        SharedMemory::new(buffer.into_device())
    }

    /// The whole arena as the device sees it.
    #[must_use]
    pub fn window(&self) -> DmaWindow {
        DmaWindow::new(self.clone())
    }

    /// First device address of the arena.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.0.device_address(0)
    }

    /// Removes the file of an arena of physical addresses, so that its pages end with the process.
    /// Only once no device that was told of them can act on it any more: all were stopped.
    pub fn remove_file(&self) {
        if let Some(pages) = &self.0.physical {
            pages.remove();
        }
    }

    /// Whether device addresses are physical ones.
    #[must_use]
    pub fn is_physical(&self) -> bool {
        self.0.physical.is_some()
    }

    /// Size of the arena.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        ByteCount(self.0.length as u64)
    }

    /// Address of the mapping in this process, for the call that maps it for a device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.base.as_ptr() as u64
    }

    /// Bytes not allocated now.
    #[must_use]
    pub fn free(&self) -> ByteCount {
        ByteCount(self.0.lock().free_pages() as u64 * PAGE as u64)
    }

    /// Bytes lost to devices that never gave them back.
    #[must_use]
    pub fn quarantined(&self) -> ByteCount {
        ByteCount(self.0.quarantined.load(Ordering::Relaxed) as u64)
    }

    /// Whether the arena lies in huge pages.
    #[must_use]
    pub fn in_huge_pages(&self) -> bool {
        self.0.huge_pages
    }
}

impl AsFd for DmaArena {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.memory.as_fd()
    }
}

impl fmt::Debug for DmaArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaArena")
            .field("size", &self.size())
            .field("huge_pages", &self.0.huge_pages)
            .finish_non_exhaustive()
    }
}

impl Arena {
    fn lock(&self) -> std::sync::MutexGuard<'_, Buddy> {
        // The bookkeeping is consistent between any two statements that can panic.
        self.buddy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a device sees the byte at `offset`. Within one allocation addresses follow each other.
    #[inline]
    fn device_address(&self, offset: usize) -> Iova {
        match &self.physical {
            None => Iova(IOVA_BASE + offset as u64),
            Some(pages) => pages.addresses.at(offset),
        }
    }

    /// The offset of `length` bytes that a device sees at `iova`, if all of them are here.
    fn offset_of(&self, iova: Iova, length: usize) -> Option<usize> {
        match &self.physical {
            None => {
                let offset = usize::try_from(iova.get().checked_sub(IOVA_BASE)?).ok()?;
                (offset.checked_add(length)? <= self.length).then_some(offset)
            }
            Some(pages) => pages.addresses.find(iova, length),
        }
    }

    /// One buffer less shares the allocation at `head`; the last one frees it.
    fn release(&self, head: u32) {
        if self.references[head as usize].fetch_sub(1, Ordering::AcqRel) == 1 {
            self.lock().release(head);
        }
    }
}

/// Part of an allocation: what both buffer types are made of.
struct Range {
    arena: DmaArena,
    /// First page of the allocation this lies in.
    head: u32,
    /// Byte offset in the arena.
    offset: usize,
    length: usize,
}

impl Range {
    #[inline]
    fn iova(&self) -> Iova {
        self.arena.0.device_address(self.offset)
    }

    fn pointer(&self) -> *mut u8 {
        // SAFETY: `offset + length` lies within the mapping by construction.
        unsafe { self.arena.0.base.as_ptr().add(self.offset) }
    }
}

/// Memory that belongs to the CPU: bytes to read and write, to be moved into an operation and
/// returned by it. Freed when dropped.
pub struct DmaBuffer(Range);

impl DmaBuffer {
    /// Where the device would see the first byte.
    #[must_use]
    #[inline]
    pub fn iova(&self) -> Iova {
        self.0.iova()
    }

    /// Cuts the buffer in two at `at`; `self` keeps the first part. Both are parts of one
    /// allocation, which is freed when the last of its parts is dropped.
    ///
    /// # Panics
    /// If `at` is past the end: the caller's mistake, never an outsider's.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.0.length, "split at {at} of a buffer of {} bytes", self.0.length);
        let arena = self.0.arena.clone();
        arena.0.references[self.0.head as usize].fetch_add(1, Ordering::Relaxed);
        let tail = Range {
            head: self.0.head,
            offset: self.0.offset + at,
            length: self.0.length - at,
            arena,
        };
        self.0.length = at;
        Self(tail)
    }

    /// Joins what [`DmaBuffer::split_off`] cut.
    ///
    /// # Errors
    /// `tail` itself, if it does not follow `self` in the same allocation.
    pub fn join(&mut self, tail: Self) -> Result<(), Self> {
        let follows = self.0.head == tail.0.head
            && self.0.offset + self.0.length == tail.0.offset
            && Arc::ptr_eq(&self.0.arena.0, &tail.0.arena.0);
        if !follows {
            return Err(tail);
        }
        self.0.length += tail.0.length;
        Ok(())
    }

    /// Makes this the first `length` bytes of its allocation, if no other part of that is left
    /// anywhere, neither with the CPU nor with a device; false, and nothing changes, if one is,
    /// or if the allocation is smaller.
    #[must_use]
    #[inline]
    pub fn rejoin(&mut self, length: usize) -> bool {
        let (arena, head) = (&self.0.arena.0, self.0.head as usize);
        // Acquire: what the other parts' last users did with the memory is done.
        let alone = arena.references[head].load(Ordering::Acquire) == 1;
        let whole = PAGE << arena.orders[head].load(Ordering::Relaxed);
        if !alone || length > whole {
            return false;
        }
        self.0.offset = head * PAGE;
        self.0.length = length;
        true
    }

    /// Whether this begins where the allocation begins of which `part` is a part.
    #[must_use]
    #[inline]
    pub fn begins_with_allocation_of(&self, part: &Self) -> bool {
        self.0.offset == part.0.head as usize * PAGE
            && Arc::ptr_eq(&self.0.arena.0, &part.0.arena.0)
    }

    /// Gives the memory to the device.
    #[must_use]
    #[inline]
    pub fn into_device(self) -> DeviceBuffer {
        let this = std::mem::ManuallyDrop::new(self);
        DeviceBuffer(Some(Range {
            // SAFETY: `this` is never dropped, so its reference to the arena moves on.
            arena: unsafe { std::ptr::read(&raw const this.0.arena) },
            head: this.0.head,
            offset: this.0.offset,
            length: this.0.length,
        }))
    }
}

impl Deref for DmaBuffer {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: this buffer alone owns the range (allocations are disjoint, parts of one
        // allocation are disjoint), and no device does: only `DeviceBuffer` is given to devices.
        unsafe { std::slice::from_raw_parts(self.0.pointer(), self.0.length) }
    }
}

impl DerefMut for DmaBuffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; `&mut self` makes this the only slice.
        unsafe { std::slice::from_raw_parts_mut(self.0.pointer(), self.0.length) }
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        self.0.arena.0.release(self.0.head);
    }
}

impl fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuffer({:#x}+{})", self.0.iova().get(), self.0.length)
    }
}

/// Memory that belongs to the device, which may write it at any moment. No bytes can be seen.
/// Dropping it puts its memory in quarantine for the life of the process.
pub struct DeviceBuffer(Option<Range>);

impl DeviceBuffer {
    /// Where the device sees the first byte.
    #[must_use]
    #[inline]
    pub fn iova(&self) -> Iova {
        self.0.as_ref().map_or(Iova(0), Range::iova)
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |range| range.length)
    }

    /// Whether the length is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the CPU would see the first byte: for system calls that play the device's part.
    #[must_use]
    pub fn pointer(&self) -> *mut u8 {
        self.0.as_ref().map_or(std::ptr::null_mut(), Range::pointer)
    }

    /// Takes the memory back. Only code that has seen the device finish with it may call this:
    /// a completion of the command, the queue's deletion, or a reset that the device confirmed.
    #[must_use]
    #[inline]
    pub fn reclaim(mut self) -> DmaBuffer {
        match self.0.take() {
            Some(range) => DmaBuffer(range),
            // `0` is `None` only inside this function and `drop`, both of which end the value.
            None => unreachable!("a device buffer is reclaimed once"),
        }
    }
}

impl Drop for DeviceBuffer {
    #[inline]
    fn drop(&mut self) {
        if let Some(range) = &self.0 {
            // The allocation keeps its reference count for ever: quarantined.
            range.arena.0.quarantined.fetch_add(range.length, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBuffer({:#x}+{})", self.iova().get(), self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(mib: u64) -> DmaArena {
        DmaArena::new(ByteCount(mib << 20), false).unwrap()
    }

    #[test]
    fn buffers_are_disjoint_and_come_back() {
        let arena = arena(4);
        let whole = arena.free();
        let mut held = Vec::new();
        let mut seed = 1_u64;
        while let Some(mut buffer) = {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            arena.allocate((seed >> 33) as usize % 20_000 + 1)
        } {
            buffer.fill(held.len() as u8);
            assert!(buffer.iova().get().is_multiple_of(PAGE as u64));
            held.push(buffer);
        }
        assert!(held.len() > 10);
        for (index, buffer) in held.iter().enumerate() {
            assert!(buffer.iter().all(|&byte| byte == index as u8), "buffer {index} was shared");
        }
        drop(held);
        assert_eq!(arena.free(), whole);
        assert!(arena.allocate(MAX_BUFFER).is_some(), "freed blocks must merge again");
    }

    #[test]
    fn limits_are_answers_not_panics() {
        let arena = arena(4);
        assert!(arena.allocate(0).is_none());
        assert!(arena.allocate(MAX_BUFFER + 1).is_none());
    }

    #[test]
    fn a_buffer_splits_and_joins() {
        let arena = arena(4);
        let whole = arena.free();
        let mut head = arena.allocate_zeroed(8192).unwrap();
        let mut tail = head.split_off(4096);
        tail[0] = 7;
        assert_eq!(tail.iova().get(), head.iova().get() + 4096);
        let stranger = arena.allocate(4096).unwrap();
        let stranger = head.join(stranger).unwrap_err();
        drop(stranger);
        head.join(tail).unwrap();
        assert_eq!((head.len(), head[4096]), (8192, 7));
        let tail = head.split_off(100);
        drop(head);
        assert!(arena.free() < whole, "a part keeps its allocation");
        drop(tail);
        assert_eq!(arena.free(), whole);
    }

    #[test]
    fn what_a_device_keeps_is_never_reused() {
        let arena = arena(4);
        let before = arena.free();
        let lent = arena.allocate(4096).unwrap().into_device();
        let back = lent.reclaim();
        drop(back);
        assert_eq!(arena.free(), before);
        drop(arena.allocate(4096).unwrap().into_device());
        assert_eq!(arena.free().get(), before.get() - 4096);
        assert_eq!(arena.quarantined(), ByteCount(4096));
    }

    #[test]
    fn the_window_refuses_addresses_outside() {
        let arena = arena(4);
        let window = arena.window();
        let end = Iova(arena.iova().get() + arena.size().get());
        let mut byte = [0; 1];
        assert!(window.read(arena.iova(), &mut byte).is_ok());
        assert!(window.read(end, &mut byte).is_err());
        assert!(window.contains(arena.iova(), arena.size().get() as usize));
        assert!(!window.contains(end, 1));
        assert!(window.read(Iova(0), &mut byte).is_err());
        assert!(window.read(Iova(u64::MAX), &mut byte).is_err());
        assert!(window.write(Iova(end.get() - 1), &[1, 2]).is_err());
        assert!(window.store_release(Iova(arena.iova().get() + 4), 1).is_err());
    }

    #[test]
    fn shared_memory_is_what_the_device_wrote() {
        let arena = arena(4);
        let queue = arena.allocate_shared(4096).unwrap();
        let window = arena.window();
        window.store_release(Iova(queue.iova().get() + 8), 0x0102_0304).unwrap();
        assert_eq!(queue.load_acquire(8), 0x0102_0304);
        let entry: [u8; 64] = std::array::from_fn(|i| i as u8);
        queue.store_entry(1, &entry);
        let mut seen = [0; 64];
        window.read(Iova(queue.iova().get() + 64), &mut seen).unwrap();
        assert_eq!(seen, entry);
        queue.clear();
        assert_eq!(queue.load_acquire(8), 0);
        let whole = arena.free();
        drop(queue.reclaim());
        assert_eq!(arena.free().get(), whole.get() + 4096);
        drop(arena.allocate_shared(4096).unwrap());
        assert_eq!((arena.free(), arena.quarantined()), (whole, ByteCount(4096)));
    }
}
