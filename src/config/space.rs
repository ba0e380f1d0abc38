//! Keys about the space of pools: the low-water mark, and what is kept for a volume.

use super::DEFAULT_LOW_WATER;
use super::check::Checker;
use super::raw::{Key, Size};
use crate::units::ByteCount;

impl Checker<'_> {
    pub(super) fn low_water(&mut self, key: Key<u32>) -> Option<u32> {
        let Some(key) = key else { return Some(DEFAULT_LOW_WATER) };
        if *key.get_ref() < 100 {
            return Some(*key.get_ref());
        }
        self.refuse(key.span(), "pool.low_water", "it is a percentage from 0 to 99");
        None
    }

    pub(super) fn reserve(&mut self, key: Key<Size>, size: ByteCount) -> Option<ByteCount> {
        let Some(key) = key else { return Some(ByteCount(0)) };
        let reserve = key.get_ref().0;
        if reserve <= size {
            return Some(reserve);
        }
        let rule = format!("it is at most the volume's size, {}", size.human());
        self.refuse(key.span(), "volume.reserve", rule);
        None
    }
}
