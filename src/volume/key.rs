//! Numbers for pools and volumes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use uuid::Uuid;

/// The number of a pool or a volume in this process and, as long as no two are alike, in every
/// other: it is made from the UUID. Fits 62 bits and is never small, so that front ends may give
/// small numbers a meaning of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

impl Key {
    /// Keys are at least this.
    pub const MIN: u64 = 1 << 32;
    const MASK: u64 = (1 << 62) - 1;

    /// The key with this number, whether or not anything has it.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    pub(super) fn of(uuid: Uuid) -> Self {
        let (high, low) = uuid.as_u64_pair();
        Self(((high ^ low.rotate_left(32)) & Self::MASK) | Self::MIN)
    }

    pub(super) fn next(self) -> Self {
        Self((self.0.wrapping_add(1) & Self::MASK) | Self::MIN)
    }
}

/// A map that is looked into for every request.
pub(super) type KeyMap<T> = HashMap<Key, T, BuildHasherDefault<KeyHasher>>;

/// Spreads keys by one multiplication: they come from UUIDs, and there are no more of them than
/// volumes.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        /// 2^64 over the golden ratio.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0 ^ number).wrapping_mul(SPREAD).rotate_left(32);
    }
}
