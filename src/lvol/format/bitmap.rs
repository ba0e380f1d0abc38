//! The three bitmaps: in memory a [`BitSet`], on the medium a header of five bytes and the bits.
//!
//! They carry no checksum and are worth something only while the super block says `clean`.

use std::fmt;

use zerocopy::{FromBytes, IntoBytes};

use super::raw::RawMaskHeader;

/// Bytes before the first bit.
pub(super) const MASK_HEADER_BYTES: usize = size_of::<RawMaskHeader>();

/// Which of the three bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskKind {
    /// Slots of the metadata region in use: roots, chain pages and extent pages.
    UsedPages,
    /// Clusters in use, those of the metadata included.
    UsedClusters,
    /// Slots of the metadata region that are the root of a blob.
    UsedBlobIds,
}

impl MaskKind {
    const fn code(self) -> u8 {
        match self {
            Self::UsedPages => 0,
            Self::UsedClusters => 1,
            Self::UsedBlobIds => 2,
        }
    }
}

impl fmt::Display for MaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UsedPages => "used page",
            Self::UsedClusters => "used cluster",
            Self::UsedBlobIds => "used blob id",
        })
    }
}

/// Why bytes are not the bitmap that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MaskError {
    /// The type byte names another bitmap.
    #[error("the {mask} bitmap carries type {found}")]
    Kind {
        /// Which bitmap was expected.
        mask: MaskKind,
        /// The type byte.
        found: u8,
    },
    /// The number of bits is not what the super block implies.
    #[error("the {mask} bitmap has {found} bits, not {expected}")]
    Length {
        /// Which bitmap.
        mask: MaskKind,
        /// Bits that the super block implies.
        expected: u32,
        /// Bits that the header claims.
        found: u32,
    },
    /// Fewer bytes were given than the header and the bits take.
    #[error("{given} bytes cannot hold the {mask} bitmap of {bits} bits")]
    Truncated {
        /// Which bitmap.
        mask: MaskKind,
        /// Bytes given.
        given: usize,
        /// Bits expected.
        bits: u32,
    },
}

/// A set of the numbers from 0 to its length, one bit each.
#[derive(Clone, PartialEq, Eq)]
pub struct BitSet {
    words: Vec<u64>,
    length: u32,
    ones: u32,
}

impl BitSet {
    /// The empty set of numbers below `length`.
    #[must_use]
    pub fn new(length: u32) -> Self {
        Self { words: vec![0; (length as usize).div_ceil(64)], length, ones: 0 }
    }

    /// The numbers it may hold are below this.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.length
    }

    /// Whether it holds no number.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ones == 0
    }

    /// How many numbers it holds.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.ones
    }

    /// How many numbers below its length it does not hold.
    #[must_use]
    pub const fn clear_count(&self) -> u32 {
        self.length - self.ones
    }

    /// Whether it holds `bit`; a number that is out of range is not held.
    #[must_use]
    pub fn contains(&self, bit: u32) -> bool {
        bit < self.length && self.words[bit as usize / 64] & mask_of(bit) != 0
    }

    /// Adds `bit`; tells whether it was absent. A number that is out of range stays absent.
    pub fn insert(&mut self, bit: u32) -> bool {
        if bit >= self.length || self.contains(bit) {
            return false;
        }
        self.words[bit as usize / 64] |= mask_of(bit);
        self.ones += 1;
        true
    }

    /// Adds `count` numbers from `first` on; tells how many of them were absent. Those that are out
    /// of range stay absent and do not count.
    pub fn insert_run(&mut self, first: u32, count: u32) -> u32 {
        let (mut at, end) = (first, first.saturating_add(count).min(self.length));
        let mut added = 0;
        while at < end {
            // Of the word that `at` is in, what lies in the run.
            let part = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - part)) << (at % 64);
            let word = &mut self.words[at as usize / 64];
            added += (mask & !*word).count_ones();
            *word |= mask;
            at += part;
        }
        self.ones += added;
        added
    }

    /// Removes `bit`; tells whether it was held.
    pub fn remove(&mut self, bit: u32) -> bool {
        if !self.contains(bit) {
            return false;
        }
        self.words[bit as usize / 64] &= !mask_of(bit);
        self.ones -= 1;
        true
    }

    /// The lowest number at or above `from` that it does not hold.
    #[must_use]
    pub fn first_clear(&self, from: u32) -> Option<u32> {
        let mut index = from as usize / 64;
        // Numbers below `from` count as held.
        let mut below = mask_of(from) - 1;
        while let Some(word) = self.words.get(index) {
            let clear = !(word | below);
            if clear != 0 {
                let bit = index as u32 * 64 + clear.trailing_zeros();
                return (bit < self.length).then_some(bit);
            }
            below = 0;
            index += 1;
        }
        None
    }

    /// The numbers it holds, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| index as u32 * 64 + rest.trailing_zeros());
                rest &= rest.wrapping_sub(1);
                bit
            })
        })
    }

    /// Changes the length; numbers that are no longer below it are removed.
    pub fn resize(&mut self, length: u32) {
        self.words.resize((length as usize).div_ceil(64), 0);
        self.length = length;
        self.trim();
    }

    /// Restores what `words` alone does not say: no bit past the length, and the count.
    fn trim(&mut self) {
        let rest = self.length % 64;
        if let Some(last) = self.words.last_mut().filter(|_| rest != 0) {
            *last &= (1 << rest) - 1;
        }
        self.ones = self.words.iter().map(|word| word.count_ones()).sum();
    }
}

impl fmt::Debug for BitSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BitSet({} of {})", self.ones, self.length)
    }
}

const fn mask_of(bit: u32) -> u64 {
    1 << (bit % 64)
}

/// Bytes that a bitmap of `bits` bits takes, header included.
#[must_use]
pub const fn mask_bytes(bits: u32) -> usize {
    MASK_HEADER_BYTES + (bits as usize).div_ceil(8)
}

/// The bytes of a bitmap, header first; padding to the region's length is zero and not included.
#[must_use]
pub fn encode_mask(mask: MaskKind, bits: &BitSet) -> Vec<u8> {
    let header = RawMaskHeader { kind: mask.code(), length: bits.len().into() };
    let mut bytes = Vec::with_capacity(mask_bytes(bits.len()) + 8);
    bytes.extend_from_slice(header.as_bytes());
    for word in &bits.words {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(mask_bytes(bits.len()));
    bytes
}

/// What the header of a bitmap says: which it is, and how many bits it has; `None` for bytes that
/// are none.
#[must_use]
pub fn mask_header(bytes: &[u8]) -> Option<(MaskKind, u32)> {
    let (header, _) = RawMaskHeader::ref_from_prefix(bytes).ok()?;
    let kinds = [MaskKind::UsedPages, MaskKind::UsedClusters, MaskKind::UsedBlobIds];
    let kind = kinds.into_iter().find(|kind| kind.code() == header.kind)?;
    Some((kind, header.length.get()))
}

/// Reads a bitmap of `length` bits from the start of its region.
///
/// A cluster bitmap may claim more bits than the super block implies: growing writes the bitmap
/// before the super block, so an interrupted one leaves that. The surplus is dropped.
///
/// # Errors
/// [`MaskError`] if the bytes are those of another bitmap, have another length or are too few.
pub fn decode_mask(mask: MaskKind, bytes: &[u8], length: u32) -> Result<BitSet, MaskError> {
    let truncated = MaskError::Truncated { mask, given: bytes.len(), bits: length };
    let Ok((header, rest)) = RawMaskHeader::ref_from_prefix(bytes) else {
        return Err(truncated);
    };
    if header.kind != mask.code() {
        return Err(MaskError::Kind { mask, found: header.kind });
    }
    let found = header.length.get();
    let longer = mask == MaskKind::UsedClusters && found > length;
    if found != length && !longer {
        return Err(MaskError::Length { mask, expected: length, found });
    }
    let Some(body) = rest.get(..(length as usize).div_ceil(8)) else {
        return Err(truncated);
    };
    let mut bits = BitSet::new(length);
    for (word, chunk) in bits.words.iter_mut().zip(body.chunks(8)) {
        let mut padded = [0; 8];
        padded[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(padded);
    }
    bits.trim();
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_clear_bit_is_found() {
        let mut set = BitSet::new(130);
        for bit in 0..130 {
            assert_eq!(set.first_clear(0), Some(bit));
            assert!(set.insert(bit));
            assert!(!set.insert(bit));
        }
        assert_eq!(set.first_clear(0), None);
        assert!(set.remove(7) && set.remove(64) && set.remove(129));
        assert_eq!(set.first_clear(0), Some(7));
        assert_eq!(set.first_clear(8), Some(64));
        assert_eq!(set.first_clear(65), Some(129));
        assert_eq!(set.first_clear(130), None);
        assert_eq!(set.first_clear(u32::MAX), None);
        assert_eq!(set.count(), 127);
        assert!(!set.contains(130) && !set.insert(130) && !set.remove(u32::MAX));
    }

    #[test]
    fn a_run_is_added_as_its_numbers_are() {
        let seed = 0x7275_6e73;
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..2000 {
            let length = random.u32(1..400);
            let (mut bulk, mut single) = (BitSet::new(length), BitSet::new(length));
            for _ in 0..6 {
                let first = random.u32(0..length + 70);
                let count = if random.u8(0..10) == 0 { u32::MAX } else { random.u32(0..200) };
                let end = first.saturating_add(count).min(length);
                let added = (first..end).filter(|bit| single.insert(*bit)).count();
                assert_eq!(bulk.insert_run(first, count), added as u32, "seed {seed:#x}");
                assert_eq!((&bulk, bulk.count()), (&single, single.count()), "seed {seed:#x}");
            }
        }
    }

    #[test]
    fn resizing_drops_what_is_beyond() {
        let mut set = BitSet::new(100);
        set.insert(3);
        set.insert(70);
        set.insert(99);
        set.resize(71);
        assert_eq!(set.iter().collect::<Vec<_>>(), [3, 70]);
        set.resize(200);
        assert_eq!((set.count(), set.clear_count()), (2, 198));
    }

    #[test]
    fn random_masks_read_back() {
        let seed = 0x6d61_736b;
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..500 {
            let length = random.u32(1..5000);
            let mut set = BitSet::new(length);
            for _ in 0..random.u32(0..length) {
                set.insert(random.u32(0..length));
            }
            let bytes = encode_mask(MaskKind::UsedClusters, &set);
            assert_eq!(bytes.len(), mask_bytes(length));
            let back = decode_mask(MaskKind::UsedClusters, &bytes, length);
            assert_eq!(back, Ok(set.clone()), "seed {seed:#x}");
            assert_eq!(set.iter().count() as u32, set.count());
        }
    }

    #[test]
    fn bits_are_least_significant_first() {
        let mut set = BitSet::new(10);
        set.insert(0);
        set.insert(9);
        assert_eq!(encode_mask(MaskKind::UsedBlobIds, &set), [2, 10, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn damaged_masks_are_refused() {
        let bytes = encode_mask(MaskKind::UsedPages, &BitSet::new(64));
        let decode = |bytes: &[u8], length| decode_mask(MaskKind::UsedPages, bytes, length);
        assert!(decode(&bytes, 64).is_ok());
        assert!(matches!(decode(&bytes, 63), Err(MaskError::Length { found: 64, .. })));
        assert!(matches!(decode(&bytes, 65), Err(MaskError::Length { found: 64, .. })));
        assert!(matches!(decode(&bytes[..12], 64), Err(MaskError::Truncated { .. })));
        assert!(matches!(decode(&[0], 64), Err(MaskError::Truncated { .. })));
        let other = decode_mask(MaskKind::UsedClusters, &bytes, 64);
        assert_eq!(other, Err(MaskError::Kind { mask: MaskKind::UsedClusters, found: 0 }));
    }

    #[test]
    fn a_longer_cluster_mask_is_truncated() {
        let mut set = BitSet::new(100);
        set.insert(10);
        set.insert(90);
        let bytes = encode_mask(MaskKind::UsedClusters, &set);
        let kept = decode_mask(MaskKind::UsedClusters, &bytes, 70).unwrap();
        assert_eq!(kept.iter().collect::<Vec<_>>(), [10]);
        assert_eq!(kept.len(), 70);
    }
}
