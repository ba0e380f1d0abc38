//! Where a device's addresses may lie: the IOMMU's ranges, with holes for what it keeps to itself
//! (on x86 the window of message signalled interrupts, on all of them what the firmware reserved).

use std::fmt;

use crate::units::{ByteCount, Iova};

/// The ranges of device addresses that an IOMMU translates, each with its first and last address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IovaRanges(Vec<(u64, u64)>);

impl IovaRanges {
    /// The ranges of `pairs`, first and last address each. An empty list means that the kernel
    /// does not tell.
    #[must_use]
    pub fn new(mut pairs: Vec<(u64, u64)>) -> Self {
        pairs.retain(|(first, last)| first <= last);
        pairs.sort_unstable();
        Self(pairs)
    }

    /// Whether `length` bytes at `first` can be mapped: they lie in one range. Also true if the
    /// kernel does not tell; mapping will.
    #[must_use]
    pub fn contain(&self, first: Iova, length: ByteCount) -> bool {
        let Some(last) = first.get().checked_add(length.get().saturating_sub(1)) else {
            return false;
        };
        self.0.is_empty() || self.0.iter().any(|&(low, high)| low <= first.get() && last <= high)
    }
}

impl fmt::Display for IovaRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{first:#x}-{last:#x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_lies_in_one_range_or_nowhere() {
        // What QEMU's intel-iommu offers: 39 bits with a hole for interrupts.
        let ranges = IovaRanges::new(vec![(0xfef0_0000, 0x7f_ffff_ffff), (0, 0xfedf_ffff)]);
        let contain = |first, length| ranges.contain(Iova(first), ByteCount(length));
        assert!(contain(4 << 30, 1 << 30));
        assert!(contain(4 << 30, 508 << 30));
        assert!(!contain(4 << 30, (508 << 30) + 1));
        assert!(contain(0, 0xfee0_0000));
        assert!(!contain(0, 0xfee0_0001));
        assert!(!contain(0xfee0_0000, 4096));
        assert!(!contain(u64::MAX, 2));
        assert_eq!(ranges.to_string(), "0x0-0xfedfffff, 0xfef00000-0x7fffffffff");
        let silent = IovaRanges::new(vec![(9, 3)]);
        assert!(silent.contain(Iova(4 << 30), ByteCount(4096)));
        assert!(!silent.contain(Iova(u64::MAX), ByteCount(4096)));
    }
}
