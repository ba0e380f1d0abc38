//! Bytes of a large disk of which little was ever written: a two-level table of chunks that are
//! shared until they are changed, so that a copy of a disk costs a few pointers.
//!
//! Invariant: a chunk that is absent reads as zeros. Positions are checked by the caller; one
//! outside the table reads as zeros and takes no writes.

use std::ops::Range;
use std::sync::Arc;

/// Bytes in a chunk.
pub(super) const CHUNK: usize = 4096;
/// Chunks in a leaf: a leaf covers 2 MiB.
const LEAF: usize = 512;

/// The contents of one chunk.
pub(super) type Chunk = [u8; CHUNK];
type Leaf = [Option<Arc<Chunk>>; LEAF];

/// What an absent chunk reads as.
pub(super) static ZEROS: Chunk = [0; CHUNK];

/// A sparse array of bytes. Cloning shares every chunk.
#[derive(Clone)]
pub(super) struct SparseBytes {
    leaves: Vec<Option<Arc<Leaf>>>,
}

/// The part of a byte range that lies in one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which chunk.
    pub(super) chunk: u64,
    /// Which bytes of it.
    pub(super) bytes: Range<usize>,
}

impl Piece {
    /// Whether the piece is the entire chunk.
    pub(super) fn is_whole(&self) -> bool {
        self.bytes.len() == CHUNK
    }
}

/// Cuts `range` at the boundaries of chunks.
pub(super) fn pieces(range: Range<u64>) -> impl Iterator<Item = Piece> {
    let mut position = range.start;
    std::iter::from_fn(move || {
        if position >= range.end {
            return None;
        }
        let start = (position % CHUNK as u64) as usize;
        let length = (range.end - position).min((CHUNK - start) as u64) as usize;
        let chunk = position / CHUNK as u64;
        position += length as u64;
        Some(Piece { chunk, bytes: start..start + length })
    })
}

impl SparseBytes {
    /// `length` bytes of zeros.
    pub(super) fn new(length: u64) -> Self {
        let leaves = length.div_ceil((CHUNK * LEAF) as u64);
        Self { leaves: vec![None; usize::try_from(leaves).unwrap_or(0)] }
    }

    /// Gives the array another length. What is new reads as zeros.
    pub(super) fn resize(&mut self, length: u64) {
        let leaves = length.div_ceil((CHUNK * LEAF) as u64);
        self.leaves.resize(usize::try_from(leaves).unwrap_or(0), None);
        self.zero(length..leaves * (CHUNK * LEAF) as u64);
    }

    /// The chunk at `index`, if it was ever written.
    pub(super) fn chunk(&self, index: u64) -> Option<&Arc<Chunk>> {
        let (leaf, slot) = split(index);
        self.leaves.get(leaf)?.as_ref()?[slot].as_ref()
    }

    /// Replaces the chunk at `index`; `None` makes it read as zeros.
    pub(super) fn set_chunk(&mut self, index: u64, chunk: Option<Arc<Chunk>>) {
        let (leaf, slot) = split(index);
        let Some(entry) = self.leaves.get_mut(leaf) else {
            return;
        };
        if entry.is_none() && chunk.is_none() {
            return;
        }
        let leaf = entry.get_or_insert_with(|| Arc::new([const { None }; LEAF]));
        Arc::make_mut(leaf)[slot] = chunk;
    }

    /// Copies `from` over `piece`.
    pub(super) fn copy_piece(&mut self, piece: &Piece, from: &[u8]) {
        let mut chunk = self.chunk(piece.chunk).map_or(ZEROS, |chunk| **chunk);
        chunk[piece.bytes.clone()].copy_from_slice(from);
        self.set_chunk(piece.chunk, Some(Arc::new(chunk)));
    }

    /// Makes `range` read as zeros and gives whole chunks of it back.
    pub(super) fn zero(&mut self, range: Range<u64>) {
        let leaf_bytes = (CHUNK * LEAF) as u64;
        let mut position = range.start;
        while position < range.end {
            let next_leaf = (position / leaf_bytes + 1) * leaf_bytes;
            let end = range.end.min(next_leaf);
            let leaf = usize::try_from(position / leaf_bytes).unwrap_or(usize::MAX);
            match self.leaves.get_mut(leaf) {
                Some(Some(_)) if end - position < leaf_bytes => {
                    for piece in pieces(position..end) {
                        self.zero_piece(&piece);
                    }
                }
                Some(entry) => *entry = None,
                None => return,
            }
            position = end;
        }
    }

    fn zero_piece(&mut self, piece: &Piece) {
        if piece.is_whole() {
            self.set_chunk(piece.chunk, None);
        } else if self.chunk(piece.chunk).is_some() {
            self.copy_piece(piece, &ZEROS[piece.bytes.clone()]);
        }
    }

    /// Reads `into.len()` bytes from `offset`.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        let mut rest = into;
        for piece in pieces(offset..offset.saturating_add(rest.len() as u64)) {
            let (head, tail) = rest.split_at_mut(piece.bytes.len());
            head.copy_from_slice(&self.bytes(piece.chunk)[piece.bytes]);
            rest = tail;
        }
    }

    /// Writes `from` at `offset`.
    pub(super) fn write(&mut self, offset: u64, from: &[u8]) {
        let mut rest = from;
        for piece in pieces(offset..offset.saturating_add(rest.len() as u64)) {
            let (head, tail) = rest.split_at(piece.bytes.len());
            self.copy_piece(&piece, head);
            rest = tail;
        }
    }

    /// The contents of the chunk at `index`.
    pub(super) fn bytes(&self, index: u64) -> &Chunk {
        self.chunk(index).map_or(&ZEROS, |chunk| &**chunk)
    }

    /// Bytes of memory that chunks take.
    pub(super) fn allocated(&self) -> u64 {
        let chunks: usize =
            self.leaves.iter().flatten().map(|leaf| leaf.iter().flatten().count()).sum();
        (chunks * CHUNK) as u64
    }
}

fn split(index: u64) -> (usize, usize) {
    let leaf = usize::try_from(index / LEAF as u64).unwrap_or(usize::MAX);
    (leaf, (index % LEAF as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_an_array_of_bytes() {
        const LENGTH: usize = 6 << 20;
        let seed = 7;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut model = vec![0_u8; LENGTH];
        let mut sparse = SparseBytes::new(LENGTH as u64);
        for step in 0..200 {
            let start = random.usize(..LENGTH);
            let end = (start + random.usize(1..20_000)).min(LENGTH);
            if random.u8(..3) == 0 {
                let end = (start + random.usize(1..3_000_000)).min(LENGTH);
                model[start..end].fill(0);
                sparse.zero(start as u64..end as u64);
            } else {
                model[start..end].fill(step);
                sparse.write(start as u64, &model[start..end]);
            }
            let from = random.usize(..LENGTH);
            let to = (from + random.usize(1..100_000)).min(LENGTH);
            let mut seen = vec![9; to - from];
            sparse.read(from as u64, &mut seen);
            assert!(seen == model[from..to], "seed {seed} step {step}");
        }
    }

    #[test]
    fn a_copy_shares_until_it_is_changed() {
        let mut first = SparseBytes::new(1 << 40);
        first.write(1 << 39, b"old");
        let second = first.clone();
        first.write(1 << 39, b"new");
        let mut seen = [0; 3];
        second.read(1 << 39, &mut seen);
        assert_eq!(&seen, b"old");
        assert_eq!(first.allocated(), CHUNK as u64);
        first.zero(0..1 << 40);
        assert_eq!(first.allocated(), 0);
    }
}
