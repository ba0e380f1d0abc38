//! The host memory of one command, as the device sees it: a list of address ranges in a DMA
//! window, read or written from front to back.

use crate::hw::dma::{DmaWindow, OutsideWindow};
use crate::units::Iova;

/// A contiguous part of a command's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// First byte.
    pub(super) iova: Iova,
    /// Length in bytes.
    pub(super) length: usize,
}

impl Segment {
    /// Where the byte `offset` bytes into the segment is.
    pub(super) fn after(&self, offset: usize) -> Iova {
        Iova(self.iova.get() + offset as u64)
    }
}

/// A position in the memory of a command.
#[derive(Debug)]
pub(super) struct Scatter<'a> {
    /// The memory the segments lie in.
    window: &'a DmaWindow,
    segments: &'a [Segment],
    /// Bytes of the first segment that were passed already.
    passed: usize,
}

impl<'a> Scatter<'a> {
    /// The front of `segments`.
    pub(super) fn new(window: &'a DmaWindow, segments: &'a [Segment]) -> Self {
        Self { window, segments, passed: 0 }
    }

    /// The next contiguous part, at most `limit` bytes of it, and the window it lies in. `None`
    /// at the end.
    pub(super) fn next(&mut self, limit: usize) -> Option<(&'a DmaWindow, Segment)> {
        let first = self.segments.first()?;
        let length = (first.length - self.passed).min(limit);
        let segment = Segment { iova: Iova(first.iova.get() + self.passed as u64), length };
        self.passed += length;
        if self.passed == first.length {
            self.segments = &self.segments[1..];
            self.passed = 0;
        }
        Some((self.window, segment))
    }

    /// Copies the next `into.len()` bytes out of host memory. What lies past the end of the
    /// segments is left as it is.
    pub(super) fn take(&mut self, into: &mut [u8]) -> Result<(), OutsideWindow> {
        let mut done = 0;
        while done < into.len() {
            let Some((window, segment)) = self.next(into.len() - done) else {
                break;
            };
            let end = done + segment.length;
            window.read(segment.iova, &mut into[done..end])?;
            done = end;
        }
        Ok(())
    }

    /// Copies `from` to the next bytes of host memory. What does not fit is dropped.
    pub(super) fn put(&mut self, from: &[u8]) -> Result<(), OutsideWindow> {
        let mut done = 0;
        while done < from.len() {
            let Some((window, segment)) = self.next(from.len() - done) else {
                break;
            };
            let end = done + segment.length;
            window.write(segment.iova, &from[done..end])?;
            done = end;
        }
        Ok(())
    }
}
