//! Scatter-gather lists (Base 4.1.2): from the descriptor in a command to the memory it names.
//!
//! Everything here comes from the host: descriptors are counted, segments must be at multiples of
//! eight, and every byte must lie in the DMA window.

use super::scatter::Segment;
use crate::hw::dma::DmaWindow;
use crate::spec::fabrics::{SglDescriptor, SglKind};
use crate::spec::status::StatusCode;
use crate::units::Iova;

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
/// Descriptors of one command, in all segments, and segments.
const DESCRIPTOR_LIMIT: usize = 512;

/// Finds the memory of a command that moves `length` bytes, leaving it in `segments`.
///
/// # Errors
/// What the specification has for each mistake; Data SGL Length Invalid if the descriptors are for
/// less than the command moves; Data Transfer Error for memory outside the window.
pub(super) fn walk(
    window: &DmaWindow,
    first: SglDescriptor,
    length: usize,
    segments: &mut Vec<Segment>,
) -> Result<(), StatusCode> {
    segments.clear();
    let mut rest = length;
    let mut budget = DESCRIPTOR_LIMIT;
    let mut next = Some(first);
    while let Some(descriptor) = next.take() {
        match descriptor.kind {
            SglKind::DATA_BLOCK => push(window, segments, descriptor, &mut rest)?,
            SglKind::SEGMENT | SglKind::LAST_SEGMENT => {
                next = segment(window, segments, descriptor, (&mut rest, &mut budget))?;
            }
            _ => return Err(StatusCode::SGL_DESCRIPTOR_TYPE_INVALID),
        }
    }
    if rest > 0 { Err(StatusCode::DATA_SGL_LENGTH_INVALID) } else { Ok(()) }
}

/// The descriptors of one segment; the next one, if its last descriptor names it.
fn segment(
    window: &DmaWindow,
    segments: &mut Vec<Segment>,
    segment: SglDescriptor,
    (rest, budget): (&mut usize, &mut usize),
) -> Result<Option<SglDescriptor>, StatusCode> {
    let bytes = segment.length as usize;
    if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR) || !segment.address.is_multiple_of(8) {
        return Err(StatusCode::INVALID_SGL_SEGMENT);
    }
    let count = bytes / DESCRIPTOR;
    *budget = budget.checked_sub(count).ok_or(StatusCode::INVALID_SGL_COUNT)?;
    for index in 0..count {
        let mut bytes = [0; DESCRIPTOR];
        let at = segment.address.saturating_add((index * DESCRIPTOR) as u64);
        window.read(Iova(at), &mut bytes).map_err(|_| StatusCode::DATA_TRANSFER_ERROR)?;
        let descriptor = SglDescriptor::from_bytes(bytes);
        match descriptor.kind {
            SglKind::DATA_BLOCK => push(window, segments, descriptor, rest)?,
            SglKind::SEGMENT | SglKind::LAST_SEGMENT => {
                // Only the last descriptor may name a segment, and none in the last segment may.
                if index + 1 != count || segment.kind == SglKind::LAST_SEGMENT {
                    return Err(StatusCode::INVALID_SGL_SEGMENT);
                }
                return Ok(Some(descriptor));
            }
            _ => return Err(StatusCode::SGL_DESCRIPTOR_TYPE_INVALID),
        }
    }
    match segment.kind {
        SglKind::LAST_SEGMENT => Ok(None),
        // A segment that is not the last one names the next.
        _ => Err(StatusCode::INVALID_SGL_SEGMENT),
    }
}

/// Takes as much of a data block as the command moves.
fn push(
    window: &DmaWindow,
    segments: &mut Vec<Segment>,
    block: SglDescriptor,
    rest: &mut usize,
) -> Result<(), StatusCode> {
    let length = (block.length as usize).min(*rest);
    if length == 0 {
        return Ok(());
    }
    if !window.contains(Iova(block.address), length) {
        return Err(StatusCode::DATA_TRANSFER_ERROR);
    }
    *rest -= length;
    match segments.last_mut() {
        Some(last) if last.iova.get() + last.length as u64 == block.address => {
            last.length += length;
        }
        _ => segments.push(Segment { iova: Iova(block.address), length }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::dma::DmaArena;
    use crate::units::ByteCount;

    struct Host {
        arena: DmaArena,
        base: u64,
    }

    impl Host {
        fn new() -> Self {
            let arena = DmaArena::new(ByteCount(8 << 20), false).unwrap();
            Self { base: arena.iova().get(), arena }
        }

        fn put(&self, offset: u64, list: &[SglDescriptor]) -> u64 {
            let at = self.base + offset;
            for (index, descriptor) in list.iter().enumerate() {
                let at = Iova(at + (index * DESCRIPTOR) as u64);
                self.arena.window().write(at, &descriptor.to_bytes()).unwrap();
            }
            at
        }

        fn walk(
            &self,
            first: SglDescriptor,
            length: usize,
        ) -> Result<Vec<(u64, usize)>, StatusCode> {
            let mut segments = Vec::new();
            walk(&self.arena.window(), first, length, &mut segments)?;
            assert_eq!(segments.iter().map(|part| part.length).sum::<usize>(), length);
            Ok(segments.iter().map(|part| (part.iova.get() - self.base, part.length)).collect())
        }
    }

    fn of(kind: SglKind, address: u64, length: u32) -> SglDescriptor {
        SglDescriptor { address, length, kind }
    }

    #[test]
    fn blocks_and_segments_are_followed() {
        let host = Host::new();
        let block = |offset, length| of(SglKind::DATA_BLOCK, host.base + offset, length);
        assert_eq!(host.walk(block(100, 9000), 9000), Ok(vec![(100, 9000)]));
        assert_eq!(host.walk(block(100, 9000), 5), Ok(vec![(100, 5)]), "as much as is moved");
        let last = host.put(0x9000, &[block(0x4000, 7), block(0, 0), block(0x4007, 9)]);
        let chain = of(SglKind::LAST_SEGMENT, last, 48);
        let first = host.put(0x8000, &[block(0x1000, 4), chain]);
        let list = of(SglKind::SEGMENT, first, 32);
        assert_eq!(host.walk(list, 20), Ok(vec![(0x1000, 4), (0x4000, 16)]));
    }

    #[test]
    fn mistakes_have_their_status() {
        let host = Host::new();
        let block = of(SglKind::DATA_BLOCK, host.base, 512);
        let short = Err(StatusCode::DATA_SGL_LENGTH_INVALID);
        let segment = Err(StatusCode::INVALID_SGL_SEGMENT);
        let outside = Err(StatusCode::DATA_TRANSFER_ERROR);
        assert_eq!(host.walk(block, 513), short);
        assert_eq!(host.walk(of(SglKind::DATA_BLOCK, 0, 512), 512), outside);
        let kind = Err(StatusCode::SGL_DESCRIPTOR_TYPE_INVALID);
        assert_eq!(host.walk(of(SglKind(0x10), host.base, 512), 512), kind, "a bit bucket");
        let list = host.put(0x8000, &[block, block]);
        assert_eq!(host.walk(of(SglKind::SEGMENT, list, 32), 1024), segment, "leads nowhere");
        assert_eq!(host.walk(of(SglKind::LAST_SEGMENT, list, 24), 1024), segment, "half a one");
        assert_eq!(host.walk(of(SglKind::LAST_SEGMENT, list + 4, 16), 512), segment, "askew");
        assert_eq!(host.walk(of(SglKind::LAST_SEGMENT, list, 0), 512), segment, "empty");
        assert_eq!(host.walk(of(SglKind::LAST_SEGMENT, 0, 32), 512), outside);
        assert_eq!(host.walk(of(SglKind::LAST_SEGMENT, u64::MAX - 7, 32), 512), outside);
        // A segment that names itself, for ever.
        let own = of(SglKind::SEGMENT, list, 16);
        host.put(0x8000, &[own]);
        assert_eq!(host.walk(own, 512), Err(StatusCode::INVALID_SGL_COUNT));
        let within = host.put(0x9000, &[of(SglKind::LAST_SEGMENT, list, 16), block]);
        assert_eq!(host.walk(of(SglKind::SEGMENT, within, 32), 512), segment, "not at the end");
        let last = host.put(0x9000, &[of(SglKind::LAST_SEGMENT, list, 16)]);
        assert_eq!(host.walk(of(SglKind::LAST_SEGMENT, last, 16), 512), segment, "after the last");
    }
}
