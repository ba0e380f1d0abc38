//! Memory in pieces of one size that read as zeros at first, cut out of huge pages.
//!
//! What is read and written in small parts in no order misses the translation cache almost each
//! time; with huge pages, far more rarely. A sparse thing would waste most of a huge page of its
//! own: here pieces that have nothing to do with each other share one, in the order in which they
//! were asked for.

#![expect(unsafe_code, reason = "maps memory and gives out disjoint slices of it")]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::dma::HUGE_PAGE;

/// Bytes of a piece.
pub const PIECE: usize = 64 << 10;
/// Bytes that are mapped at a time: a huge page.
const EXTENT: usize = HUGE_PAGE;
const PIECES_PER_EXTENT: u32 = (EXTENT / PIECE) as u32;
const _: () = assert!(PIECES_PER_EXTENT == u32::BITS, "a bit for each");

/// Where pieces come from. Cheap to clone; the memory lives until the last clone and the last
/// piece are gone.
#[derive(Clone, Debug, Default)]
pub struct Pieces(Arc<Mutex<Extents>>);

#[derive(Debug, Default)]
struct Extents {
    all: Vec<Extent>,
    /// Pieces that nobody has: extent, and number in it.
    free: Vec<(u32, u32)>,
}

#[derive(Debug)]
struct Extent {
    base: NonNull<u8>,
    used: u32,
    /// Which pieces may hold something else than zeros when they are free, a bit each.
    dirty: u32,
}

// SAFETY: the pointers are to mappings that live as long as this does, and that are touched only
// through the pieces, each of which has its own part of them.
unsafe impl Send for Extents {}

/// [`PIECE`] bytes. Given back when dropped.
#[derive(Debug)]
pub struct Piece {
    base: NonNull<u8>,
    extent: u32,
    piece: u32,
    pieces: Pieces,
}

// SAFETY: a piece is the only way to its bytes, as a box is.
unsafe impl Send for Piece {}
// SAFETY: as above; `&Piece` only reads.
unsafe impl Sync for Piece {}

impl Pieces {
    /// A piece that reads as zeros; `None` if the system has no memory left.
    #[must_use]
    pub fn allocate(&self) -> Option<Piece> {
        let mut extents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if extents.free.is_empty() {
            extents.grow()?;
        }
        let (extent, piece) = extents.free.pop()?;
        let known = &mut extents.all[extent as usize];
        known.used += 1;
        let dirty = known.dirty & 1 << piece != 0;
        // SAFETY: the extent has room for all of its pieces.
        let base = unsafe { known.base.add(piece as usize * PIECE) };
        drop(extents);
        let mut piece = Piece { base, extent, piece, pieces: self.clone() };
        if dirty {
            piece.fill(0);
        }
        Some(piece)
    }
}

impl Extents {
    fn grow(&mut self) -> Option<()> {
        let extent = u32::try_from(self.all.len()).ok()?;
        // What is small stays small: the first extent is not one huge page.
        let base = map(extent > 0)?;
        self.all.push(Extent { base, used: 0, dirty: 0 });
        self.free.extend((0..PIECES_PER_EXTENT).rev().map(|piece| (extent, piece)));
        Some(())
    }

    fn release(&mut self, extent: u32, piece: u32) {
        self.free.push((extent, piece));
        let known = &mut self.all[extent as usize];
        known.used -= 1;
        known.dirty |= 1 << piece;
        if known.used > 0 {
            return;
        }
        // SAFETY: a private mapping of this length, of which nobody has a piece.
        let dropped =
            unsafe { libc::madvise(known.base.as_ptr().cast(), EXTENT, libc::MADV_DONTNEED) == 0 };
        if dropped {
            // The system has it again, and gives zeros when it is touched next.
            known.dirty = 0;
        }
    }
}

impl Drop for Extents {
    fn drop(&mut self) {
        for extent in &self.all {
            // SAFETY: mapped by `map` with this length; each piece keeps the extents alive, so
            // that none is left.
            unsafe { libc::munmap(extent.base.as_ptr().cast(), EXTENT) };
        }
    }
}

/// Zeros at a boundary of [`EXTENT`] bytes, in one huge page if wanted and if there is one.
fn map(huge: bool) -> Option<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // Twice as much, to cut an aligned part out of it.
    // SAFETY: a new private mapping at an address that the kernel chooses.
    let whole = unsafe { libc::mmap(std::ptr::null_mut(), 2 * EXTENT, protection, flags, -1, 0) };
    if whole == libc::MAP_FAILED {
        return None;
    }
    let before = whole.addr().next_multiple_of(EXTENT) - whole.addr();
    let after = EXTENT - before;
    let base = whole.wrapping_byte_add(before);
    // SAFETY: both are parts of the mapping just made that nobody uses; a failure only wastes
    // addresses.
    unsafe {
        if before > 0 {
            libc::munmap(whole, before);
        }
        if after > 0 {
            libc::munmap(base.wrapping_byte_add(EXTENT), after);
        }
    }
    let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    // SAFETY: what is left of the mapping made above. Failure only costs the hint.
    unsafe { libc::madvise(base, EXTENT, advice) };
    NonNull::new(base.cast())
}

impl Deref for Piece {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `PIECE` bytes of a mapping that `pieces` keeps, which belong to this piece.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), PIECE) }
    }
}

impl DerefMut for Piece {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), PIECE) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut extents = self.pieces.0.lock().unwrap_or_else(PoisonError::into_inner);
        extents.release(self.extent, self.piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zeroed_disjoint_and_used_again() {
        let pieces = Pieces::default();
        let count = 3 * PIECES_PER_EXTENT as usize;
        let mut all: Vec<Piece> = (0..count).filter_map(|_| pieces.allocate()).collect();
        assert_eq!(all.len(), count);
        for (number, piece) in all.iter_mut().enumerate() {
            assert!(piece.iter().all(|byte| *byte == 0));
            piece.fill(number as u8 + 1);
        }
        for (number, piece) in all.iter().enumerate() {
            assert!(piece.iter().all(|byte| *byte == number as u8 + 1), "piece {number}");
        }
        // Some of one extent, and all of another.
        drop(all.drain(8..80));
        let again: Vec<Piece> = (8..80).filter_map(|_| pieces.allocate()).collect();
        assert!(again.iter().all(|piece| piece.iter().all(|byte| *byte == 0)));
        assert_eq!(pieces.0.lock().unwrap().all.len(), 3);
        // A piece outlives the name of the pool.
        drop(pieces);
        assert_eq!(all[7][PIECE - 1], 8);
    }
}
