//! Memory of queues.

#![expect(unsafe_code, reason = "atomics in the arena's mapping")]

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{DeviceBuffer, DmaBuffer};
use crate::units::Iova;

/// Memory that CPU and device use at the same time: a submission or completion queue, a PRP
/// list. Offsets are bytes; an access outside is the caller's mistake and panics. As with a
/// [`DeviceBuffer`], dropping it puts its memory in quarantine; `reclaim` takes it back.
pub struct SharedMemory {
    /// The first word; valid for as long as `memory` is.
    base: NonNull<AtomicU64>,
    /// How many words there are.
    words: usize,
    memory: DeviceBuffer,
}

// SAFETY: `base` points into `memory`, which is `Send`; access is through atomics only.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    pub(super) fn new(memory: DeviceBuffer) -> Option<Self> {
        let base = NonNull::new(memory.pointer().cast::<AtomicU64>())?;
        assert!(base.is_aligned(), "allocations start at pages");
        Some(Self { base, words: memory.len() / 8, memory })
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `base` is aligned and `words` words from it lie within `memory`, which lives as
        // long as `self`. The CPU accesses this memory through these atomics only.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }

    /// Where the device sees the first byte.
    #[must_use]
    #[inline]
    pub fn iova(&self) -> Iova {
        self.memory.iova()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether the length is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the memory back. Only code that has seen the device stop using it may call this: the
    /// queue's deletion, or a reset that the device confirmed.
    #[must_use]
    pub fn reclaim(self) -> DmaBuffer {
        self.memory.reclaim()
    }

    /// Loads eight bytes; what the device wrote before them is visible after it (acquire).
    #[inline]
    #[must_use]
    pub fn load_acquire(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8), "no word starts at {offset}");
        u64::from_le(self.words()[offset / 8].load(Ordering::Acquire))
    }

    /// Stores eight bytes with no ordering of its own; a doorbell's release orders it.
    #[inline]
    pub fn store(&self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8), "no word starts at {offset}");
        self.words()[offset / 8].store(value.to_le(), Ordering::Relaxed);
    }

    /// The half of a word at `offset`. Memory that is used by halves is never used by words at the
    /// same time.
    fn half(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.words * 8, "no half at {offset}");
        // SAFETY: aligned and within `memory`, as just checked; `memory` lives as long as `self`.
        unsafe { self.base.cast::<AtomicU32>().add(offset / 4).as_ref() }
    }

    /// Loads four bytes (acquire).
    #[inline]
    #[must_use]
    pub fn load_half(&self, offset: usize) -> u32 {
        u32::from_le(self.half(offset).load(Ordering::Acquire))
    }

    /// Stores four bytes: what was stored before is visible to who sees them (release).
    #[inline]
    pub fn store_half(&self, offset: usize, value: u32) {
        self.half(offset).store(value.to_le(), Ordering::Release);
    }

    /// Stores `first`, `first + step` and so on, `count` words from `offset`, like `store`.
    #[inline]
    pub fn store_series(&self, offset: usize, count: usize, first: u64, step: u64) {
        assert!(offset.is_multiple_of(8), "no word starts at {offset}");
        let mut value = first;
        for word in &self.words()[offset / 8..][..count] {
            word.store(value.to_le(), Ordering::Relaxed);
            value = value.wrapping_add(step);
        }
    }

    /// Stores a whole 64-byte submission queue entry, with no ordering of its own.
    #[inline]
    pub fn store_entry(&self, index: usize, entry: &[u8; 64]) {
        let words = &self.words()[index * 8..][..8];
        for (word, bytes) in words.iter().zip(entry.as_chunks::<8>().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    }

    /// Sets everything to zero.
    pub fn clear(&self) {
        for word in self.words() {
            word.store(0, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedMemory({:#x}+{})", self.iova().get(), self.len())
    }
}
