//! Where a validator reads from.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::hw::file;
use crate::units::ByteCount;

use super::super::format::{PageBytes, STRUCTURE_SIZE};
use super::ValidateError;

/// Bytes that can be read at any position: an image file, a block device, memory.
pub trait ImageRead {
    /// How many bytes there are.
    ///
    /// # Errors
    /// What the operating system says.
    fn size(&self) -> io::Result<ByteCount>;

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// What the operating system says; `UnexpectedEof` beyond the end.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// The first byte from `offset` on that may be other than zero; `None` if there is none.
    fn next_data(&self, offset: u64) -> Option<u64> {
        Some(offset)
    }
}

impl ImageRead for &[u8] {
    fn size(&self) -> io::Result<ByteCount> {
        Ok(ByteCount(self.len() as u64))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).ok();
        let bytes = offset
            .and_then(|offset| self.get(offset..))
            .and_then(|rest| rest.get(..into.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(bytes);
        Ok(())
    }
}

impl ImageRead for File {
    /// A block device has no length but an end.
    fn size(&self) -> io::Result<ByteCount> {
        let mut file = self;
        file.seek(SeekFrom::End(0)).map(ByteCount)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        file::next_data(self, offset)
    }
}

/// Reads, and says where if that fails.
pub(in crate::lvol) fn read(
    image: &dyn ImageRead,
    offset: u64,
    into: &mut [u8],
) -> Result<(), ValidateError> {
    let length = into.len();
    image.read_at(offset, into).map_err(|source| ValidateError::Read { offset, length, source })
}

/// Pages of 4096 bytes by their offset.
pub(in crate::lvol) type Pages = BTreeMap<u64, PageBytes>;

/// An image with some pages changed in memory.
pub(in crate::lvol) struct Overlay<'i> {
    pub(in crate::lvol) below: &'i dyn ImageRead,
    pub(in crate::lvol) pages: Pages,
}

impl ImageRead for Overlay<'_> {
    fn size(&self) -> io::Result<ByteCount> {
        self.below.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.below.read_at(offset, into)?;
        let end = offset + into.len() as u64;
        let unit = STRUCTURE_SIZE as u64;
        for (at, page) in self.pages.range(offset.saturating_sub(unit - 1)..end) {
            let (from, to) = (offset.max(*at), end.min(at + unit));
            if from < to {
                let target = &mut into[(from - offset) as usize..(to - offset) as usize];
                target.copy_from_slice(&page[(from - at) as usize..(to - at) as usize]);
            }
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        let unit = STRUCTURE_SIZE as u64;
        let mut pages = self.pages.range(offset.saturating_sub(unit - 1)..);
        let page = pages.next().map(|(at, _)| offset.max(*at));
        self.below.next_data(offset).into_iter().chain(page).min()
    }
}

/// Pages that cannot be read after which a validation gives up: a device that fails everywhere
/// must not take for ever.
const UNREADABLE_LIMIT: usize = 1024;

/// An image on which places that cannot be read are noted, and read as what no structure is.
pub(in crate::lvol) struct Tolerant<'i> {
    below: &'i dyn ImageRead,
    unreadable: RefCell<BTreeSet<u64>>,
}

impl<'i> Tolerant<'i> {
    pub(in crate::lvol) fn new(below: &'i dyn ImageRead) -> Self {
        Self { below, unreadable: RefCell::default() }
    }

    /// The places that could not be read: offset and length.
    pub(in crate::lvol) fn unreadable(&self) -> Vec<(u64, u64)> {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for offset in self.unreadable.borrow().iter() {
            match joined.last_mut() {
                Some((start, length)) if *start + *length == *offset => {
                    *length += STRUCTURE_SIZE as u64;
                }
                _ => joined.push((*offset, STRUCTURE_SIZE as u64)),
            }
        }
        joined
    }
}

impl ImageRead for Tolerant<'_> {
    fn size(&self) -> io::Result<ByteCount> {
        self.below.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match self.below.read_at(offset, into) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {}
            done => return done,
        }
        // Page by page, to see which it is.
        let unit = STRUCTURE_SIZE as u64;
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let page = at / unit * unit;
            let length = ((page + unit - at) as usize).min(into.len() - done);
            let part = &mut into[done..done + length];
            done += length;
            let known = self.unreadable.borrow().contains(&page);
            if known || self.below.read_at(at, part).is_err() {
                part.fill(0xff);
                let mut unreadable = self.unreadable.borrow_mut();
                unreadable.insert(page);
                if unreadable.len() > UNREADABLE_LIMIT {
                    return Err(io::Error::other("too much of it cannot be read"));
                }
            }
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        self.below.next_data(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a file with holes and an overlay, only zeros are skipped.
    #[test]
    fn what_is_skipped_is_zero() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let page = |byte| [byte; STRUCTURE_SIZE];
        for (byte, offset) in [(1, 0), (2, 64 << 10), (3, 700 << 10)] {
            file.write_all_at(&page(byte), offset).unwrap();
        }
        let pages = Pages::from([(8192, page(4)), (300 << 10, page(5))]);
        let image = Overlay { below: &file, pages };
        let mut all = vec![0; 1 << 20];
        image.read_at(0, &mut all).unwrap();
        let mut offset = 0;
        while let Some(data) = image.next_data(offset) {
            assert!(data >= offset);
            assert!(all[offset as usize..data as usize].iter().all(|byte| *byte == 0));
            offset = data / 4096 * 4096 + 4096;
        }
        let rest = all.get(offset as usize..).unwrap_or_default();
        assert!(rest.iter().all(|byte| *byte == 0));
    }
}
