//! The arena's allocator: a buddy system with bookkeeping of fixed size.

/// Largest block: 2^10 pages.
pub(super) const MAX_ORDER: usize = 10;
/// Single pages that are kept apart when they are freed.
const KEPT: usize = 256;

/// A buddy system over pages: one bitmap of free blocks for each order.
pub(super) struct Buddy {
    free: [Vec<u64>; MAX_ORDER + 1],
    /// How many blocks of each order are free.
    counts: [usize; MAX_ORDER + 1],
    /// Where the search for a free block of each order begins.
    hint: [usize; MAX_ORDER + 1],
    /// Order of the allocation that starts at each page.
    order: Vec<u8>,
    free_pages: usize,
    /// Single pages freed last, free as well: most allocations are of one page, and are served
    /// by the one that was used last, which is in the CPU's cache. Merged when something needs it.
    kept: Vec<u32>,
}

impl Buddy {
    pub(super) fn new(pages: usize) -> Self {
        let mut buddy = Self {
            free: std::array::from_fn(|order| vec![0; (pages >> order).div_ceil(64)]),
            counts: [0; MAX_ORDER + 1],
            hint: [0; MAX_ORDER + 1],
            order: vec![0; pages],
            free_pages: pages,
            kept: Vec::with_capacity(KEPT),
        };
        for block in 0..pages >> MAX_ORDER {
            buddy.put(MAX_ORDER, block);
        }
        buddy
    }

    fn put(&mut self, order: usize, block: usize) {
        self.free[order][block / 64] |= 1 << (block % 64);
        self.counts[order] += 1;
        self.hint[order] = block / 64;
    }

    /// Takes a certain block, if it is free.
    fn take(&mut self, order: usize, block: usize) -> bool {
        let bit = 1_u64 << (block % 64);
        match self.free[order].get_mut(block / 64) {
            Some(bits) if *bits & bit != 0 => *bits &= !bit,
            _ => return false,
        }
        self.counts[order] -= 1;
        true
    }

    fn take_any(&mut self, order: usize) -> Option<usize> {
        if self.counts[order] == 0 {
            return None;
        }
        let words = self.free[order].len();
        let start = self.hint[order];
        let word = (start..words).chain(0..start).find(|&word| self.free[order][word] != 0)?;
        self.hint[order] = word;
        let block = word * 64 + self.free[order][word].trailing_zeros() as usize;
        self.take(order, block).then_some(block)
    }

    /// Pages not allocated now.
    pub(super) fn free_pages(&self) -> usize {
        self.free_pages
    }

    fn find(&mut self, order: usize) -> Option<(usize, usize)> {
        (order..=MAX_ORDER).find_map(|have| Some((self.take_any(have)?, have)))
    }

    /// The first page of `1 << order` free pages, now allocated.
    pub(super) fn allocate(&mut self, order: usize) -> Option<u32> {
        if order == 0
            && let Some(page) = self.kept.pop()
        {
            self.free_pages -= 1;
            return Some(page);
        }
        let (mut block, mut have) = match self.find(order) {
            Some(found) => found,
            None => {
                while let Some(page) = self.kept.pop() {
                    self.merge(page as usize);
                }
                self.find(order)?
            }
        };
        while have > order {
            have -= 1;
            block *= 2;
            self.put(have, block + 1);
        }
        let page = block << order;
        self.order[page] = order as u8;
        self.free_pages -= 1 << order;
        u32::try_from(page).ok()
    }

    /// Frees the allocation that starts at `page`, merging it with its free neighbours.
    pub(super) fn release(&mut self, page: u32) {
        let order = self.order[page as usize];
        self.free_pages += 1 << order;
        if order == 0 && self.kept.len() < KEPT {
            self.kept.push(page);
            return;
        }
        self.merge(page as usize);
    }

    fn merge(&mut self, page: usize) {
        let mut order = self.order[page] as usize;
        let mut block = page >> order;
        while order < MAX_ORDER && self.take(order, block ^ 1) {
            block /= 2;
            order += 1;
        }
        self.put(order, block);
    }
}
