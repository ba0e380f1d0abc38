//! Physical region pages (Base 4.1.1): how a command says where its data is.
//!
//! The data of one command is one contiguous range of device addresses, as buffers lie in one
//! arena. One page takes PRP 1; two take PRP 1 and 2; more take PRP 1 and a list, to which PRP 2
//! points. Each slot of a queue pair has its list in memory set aside for it. Lists are at most
//! one page, a power of two and aligned to their size, so none crosses a page boundary and none
//! is chained: [`MAX_TRANSFER`] is what such a list can describe at any offset.

use crate::hw::dma::{DmaArena, PAGE, SharedMemory};
use crate::spec::command::DsmRange;
use crate::units::{ByteCount, Iova};

/// The largest transfer of one command, whatever the controller allows.
pub(crate) const MAX_TRANSFER: ByteCount = ByteCount(1 << 20);
const ENTRY: usize = 8;
const RANGE: usize = size_of::<DsmRange>();
/// The smallest list: room for 32 ranges of a Dataset Management command.
const MIN_LIST: usize = 512;

/// Pages that a transfer of `length` bytes at `start` touches.
fn pages(start: Iova, length: usize) -> usize {
    let offset = (start.get() % PAGE as u64) as usize;
    (offset + length).div_ceil(PAGE)
}

/// The PRP lists of a queue pair.
#[derive(Debug)]
pub(crate) struct PrpLists {
    memory: SharedMemory,
    list_size: usize,
}

impl PrpLists {
    /// Lists for `slots` commands of up to `max_transfer` bytes; `None` if the arena is full.
    pub(crate) fn new(arena: &DmaArena, slots: u16, max_transfer: ByteCount) -> Option<Self> {
        let largest = max_transfer.get().min(MAX_TRANSFER.get()) as usize;
        // A transfer at an offset touches one page more; the first page is in PRP 1.
        let entries = largest.div_ceil(PAGE);
        let list_size = (entries * ENTRY).next_power_of_two().clamp(MIN_LIST, PAGE);
        let memory = arena.allocate_shared(list_size * usize::from(slots))?;
        Some(Self { memory, list_size })
    }

    /// Describes `length` bytes at `start` for the command in `slot`: PRP 1 and PRP 2. `None` if
    /// it cannot be described: not at a multiple of four, empty, or too long for the list.
    #[inline]
    pub(crate) fn describe(&self, slot: u16, start: Iova, length: usize) -> Option<(Iova, Iova)> {
        let pages = pages(start, length);
        if !start.get().is_multiple_of(4) || length == 0 || pages > self.list_size / ENTRY + 1 {
            return None;
        }
        let second = (start.get() / PAGE as u64 + 1) * PAGE as u64;
        match pages {
            1 => Some((start, Iova(0))),
            2 => Some((start, Iova(second))),
            _ => {
                let list = usize::from(slot) * self.list_size;
                self.memory.store_series(list, pages - 1, second, PAGE as u64);
                Some((start, Iova(self.memory.iova().get() + list as u64)))
            }
        }
    }

    /// How many ranges a Dataset Management command can have.
    pub(crate) fn max_ranges(&self) -> usize {
        self.list_size / RANGE
    }

    /// Writes `ranges` where the list of `slot` is, and returns their address. `None` if there
    /// are too many.
    pub(crate) fn write_ranges(&self, slot: u16, ranges: &[DsmRange]) -> Option<Iova> {
        if ranges.len() > self.max_ranges() {
            return None;
        }
        let list = usize::from(slot) * self.list_size;
        for (index, range) in ranges.iter().enumerate() {
            let first = u64::from(range.attributes.get()) | u64::from(range.blocks.get()) << 32;
            self.memory.store(list + index * RANGE, first);
            self.memory.store(list + index * RANGE + 8, range.start.get());
        }
        Some(Iova(self.memory.iova().get() + list as u64))
    }

    /// Frees the memory. Only once the device does not use it any more.
    pub(crate) fn reclaim(self) {
        drop(self.memory.reclaim());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hw::dma::DmaWindow;

    /// What a controller makes of PRP 1 and 2: the ranges of memory in order, as the
    /// specification says it, page by page.
    fn walk(window: &DmaWindow, prps: (Iova, Iova), length: usize) -> Vec<(u64, usize)> {
        let (first, second) = (prps.0.get(), prps.1.get());
        let mut left = length;
        let mut ranges = Vec::new();
        let mut take = |address: u64, left: &mut usize| {
            let room = PAGE - (address % PAGE as u64) as usize;
            let bytes = room.min(*left);
            *left -= bytes;
            ranges.push((address, bytes));
        };
        take(first, &mut left);
        if left > PAGE {
            let mut entry = second;
            while left > 0 {
                assert_eq!(entry / PAGE as u64, second / PAGE as u64, "the list left its page");
                let mut bytes = [0; 8];
                window.read(Iova(entry), &mut bytes).unwrap();
                let page = u64::from_le_bytes(bytes);
                assert_eq!(page % PAGE as u64, 0, "only PRP 1 may have an offset");
                take(page, &mut left);
                entry += 8;
            }
        } else if left > 0 {
            assert_eq!(second % PAGE as u64, 0, "PRP 2 of two pages has no offset");
            take(second, &mut left);
        } else {
            assert_eq!(second, 0, "PRP 2 is not used");
        }
        ranges
    }

    proptest! {
        #[test]
        fn a_controller_finds_exactly_the_data(
            offset in 0_usize..PAGE / 4,
            length in prop_oneof![1_usize..3 * PAGE, 1..=MAX_TRANSFER.get() as usize],
            slot in 0_u16..7,
            max_transfer in prop_oneof![Just(PAGE as u64), Just(128 << 10), Just(1 << 20)],
        ) {
            let arena = DmaArena::new(ByteCount(8 << 20), false).unwrap();
            let lists = PrpLists::new(&arena, 7, ByteCount(max_transfer)).unwrap();
            let start = Iova(arena.iova().get() + (1 << 20) + 4 * offset as u64);
            match lists.describe(slot, start, length) {
                Some(prps) => {
                    let mut at = start.get();
                    for (address, bytes) in walk(&arena.window(), prps, length) {
                        prop_assert_eq!(address, at);
                        at += bytes as u64;
                    }
                    prop_assert_eq!(at, start.get() + length as u64);
                }
                None => prop_assert!(length as u64 > max_transfer, "{} must fit", length),
            }
        }
    }

    #[test]
    fn what_cannot_be_described_is_refused() {
        let arena = DmaArena::new(ByteCount(8 << 20), false).unwrap();
        let lists = PrpLists::new(&arena, 2, MAX_TRANSFER).unwrap();
        let start = arena.iova();
        assert_eq!(lists.describe(0, Iova(start.get() + 2), 512), None);
        assert_eq!(lists.describe(0, start, 0), None);
        assert_eq!(lists.describe(0, start, 2 << 20), None);
        assert!(lists.describe(0, start, 1 << 20).is_some());
        let ranges = [DsmRange::new(crate::units::Lba(7), 9); 129];
        assert_eq!(lists.write_ranges(1, &ranges), None);
        let at = lists.write_ranges(1, &ranges[..128]).unwrap();
        let mut bytes = [0; 32];
        arena.window().read(at, &mut bytes).unwrap();
        let wire = [0, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!((&bytes[..16], &bytes[16..]), (&wire[..], &wire[..]));
    }
}
