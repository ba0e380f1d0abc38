//! Physical region pages (Base 4.1.1): from the two entries of a command to the memory they name.
//!
//! Everything here comes from the host. The walk is bounded by the length of the transfer, every
//! entry is checked as the specification demands, and every byte must lie in the DMA window.

use super::scatter::Segment;
use crate::hw::dma::DmaWindow;
use crate::spec::status::StatusCode;
use crate::units::Iova;

/// The memory page of this controller: CAP.MPSMIN and CAP.MPSMAX say 4 KiB.
pub(super) const PAGE: usize = 4096;
/// Bytes of an entry in a list.
const ENTRY: usize = 8;

/// Walks the entries of a command that moves `length` bytes, leaving its memory in `segments`.
///
/// # Errors
/// PRP Offset Invalid for an entry that is not aligned as its place demands; Data Transfer Error
/// for memory outside the window.
pub(super) fn walk(
    window: &DmaWindow,
    entries: [u64; 2],
    length: usize,
    segments: &mut Vec<Segment>,
) -> Result<(), StatusCode> {
    segments.clear();
    let [first, second] = entries;
    if !first.is_multiple_of(4) {
        return Err(StatusCode::INVALID_PRP_OFFSET);
    }
    let head = length.min(PAGE - page_offset(first));
    push(window, segments, first, head)?;
    let rest = length - head;
    if rest == 0 {
        return Ok(());
    }
    if rest > PAGE {
        return walk_list(window, second, rest, segments);
    }
    push_page(window, segments, second, rest)
}

fn walk_list(
    window: &DmaWindow,
    mut list: u64,
    mut rest: usize,
    segments: &mut Vec<Segment>,
) -> Result<(), StatusCode> {
    let mut bytes = [0; PAGE];
    loop {
        if !list.is_multiple_of(ENTRY as u64) {
            return Err(StatusCode::INVALID_PRP_OFFSET);
        }
        let fit = (PAGE - page_offset(list)) / ENTRY;
        let needed = rest.div_ceil(PAGE);
        let chained = needed > fit;
        let count = needed.min(fit);
        let bytes = &mut bytes[..count * ENTRY];
        if window.read(Iova(list), bytes).is_err() {
            return Err(StatusCode::DATA_TRANSFER_ERROR);
        }
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        let pages = count - usize::from(chained);
        for entry in &entries[..pages] {
            let length = rest.min(PAGE);
            push_page(window, segments, u64::from_le_bytes(*entry), length)?;
            rest -= length;
        }
        if !chained {
            return Ok(());
        }
        list = u64::from_le_bytes(entries[pages]);
        // A link is a page, as the specification says; so each one brings the end nearer.
        if page_offset(list) != 0 {
            return Err(StatusCode::INVALID_PRP_OFFSET);
        }
    }
}

fn push_page(
    window: &DmaWindow,
    segments: &mut Vec<Segment>,
    entry: u64,
    length: usize,
) -> Result<(), StatusCode> {
    if page_offset(entry) != 0 {
        return Err(StatusCode::INVALID_PRP_OFFSET);
    }
    push(window, segments, entry, length)
}

fn push(
    window: &DmaWindow,
    segments: &mut Vec<Segment>,
    entry: u64,
    length: usize,
) -> Result<(), StatusCode> {
    if !window.contains(Iova(entry), length) {
        return Err(StatusCode::DATA_TRANSFER_ERROR);
    }
    match segments.last_mut() {
        Some(last) if last.iova.get() + last.length as u64 == entry => last.length += length,
        _ => segments.push(Segment { iova: Iova(entry), length }),
    }
    Ok(())
}

fn page_offset(address: u64) -> usize {
    (address % PAGE as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::dma::{DmaArena, SharedMemory};
    use crate::units::ByteCount;

    struct Host {
        arena: DmaArena,
        base: u64,
        list: SharedMemory,
    }

    impl Host {
        fn new() -> Self {
            let arena = DmaArena::new(ByteCount(8 << 20), false).unwrap();
            Self { base: arena.iova().get(), list: arena.allocate_shared(3 * PAGE).unwrap(), arena }
        }

        fn page(&self, index: u64) -> u64 {
            self.base + index * PAGE as u64
        }

        fn walk(&self, entries: [u64; 2], length: usize) -> Result<Vec<Segment>, StatusCode> {
            let mut segments = Vec::new();
            walk(&self.arena.window(), entries, length, &mut segments)?;
            assert_eq!(segments.iter().map(|part| part.length).sum::<usize>(), length);
            Ok(segments)
        }
    }

    fn part(iova: u64, length: usize) -> Segment {
        Segment { iova: Iova(iova), length }
    }

    #[test]
    fn one_and_two_entries() {
        let host = Host::new();
        let [a, b] = [host.page(900), host.page(100)];
        assert_eq!(host.walk([a, 0], 4096), Ok(vec![part(a, 4096)]));
        assert_eq!(host.walk([a + 512, b], 4096), Ok(vec![part(a + 512, 3584), part(b, 512)]));
        assert_eq!(host.walk([a, a + 4096], 8192), Ok(vec![part(a, 8192)]), "neighbours join");
    }

    #[test]
    fn lists_chain_at_the_end_of_their_page() {
        let host = Host::new();
        let list = host.list.iova().get();
        // Two entries fit before the page ends; the second one names the next list page.
        let start = PAGE - 2 * ENTRY;
        host.list.store(start, host.page(10));
        host.list.store(start + ENTRY, list + PAGE as u64);
        for index in 0..3 {
            host.list.store(PAGE + index * ENTRY, host.page(20 + 2 * index as u64));
        }
        let entries = [host.page(5), list + start as u64];
        let parts = host.walk(entries, 5 * PAGE).unwrap();
        let pages: Vec<_> = parts.iter().map(|part| part.iova.get()).collect();
        assert_eq!(pages, [5, 10, 20, 22, 24].map(|page| host.page(page)));
        // With exactly as many pages as entries the last one is data, not a link.
        let parts = host.walk(entries, 3 * PAGE).unwrap();
        assert_eq!(parts[2].iova.get(), list + PAGE as u64);
    }

    #[test]
    fn bad_entries_are_refused() {
        let host = Host::new();
        let list = host.list.iova().get();
        let offset = Err(StatusCode::INVALID_PRP_OFFSET);
        let outside = Err(StatusCode::DATA_TRANSFER_ERROR);
        assert_eq!(host.walk([host.page(1) + 2, 0], 512), offset);
        assert_eq!(host.walk([host.page(1), host.page(2) + 4], 8192), offset);
        assert_eq!(host.walk([host.page(1), list + 4], 5 * PAGE), offset);
        assert_eq!(host.walk([0, 0], 512), outside);
        assert_eq!(host.walk([host.page(1), 0], 8192), outside);
        assert_eq!(host.walk([host.page(1), 8], 3 * PAGE), outside);
        host.list.store(0, host.page(1) + 512);
        assert_eq!(host.walk([host.page(1), list], 3 * PAGE), offset);
        // A last entry that links to itself, for ever.
        let last = list + (PAGE - ENTRY) as u64;
        host.list.store(PAGE - ENTRY, last);
        assert_eq!(host.walk([host.page(1), last], 5 * PAGE), offset);
    }
}
