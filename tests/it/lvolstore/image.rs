//! An image in memory that shares what was not changed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use lvolfs::lvol::format::PageBytes;
use lvolfs::lvol::repair::ImageWrite;
use lvolfs::lvol::validate::ImageRead;
use lvolfs::units::ByteCount;

const PAGE: u64 = 4096;

/// The image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    base: Rc<Vec<u8>>,
    changed: RefCell<BTreeMap<u64, PageBytes>>,
}

impl Image {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { base: Rc::new(bytes), changed: RefCell::default() }
    }

    /// The page at an offset that is a multiple of 4096.
    pub(crate) fn page(&self, offset: u64) -> PageBytes {
        match self.changed.borrow().get(&offset) {
            Some(page) => *page,
            None => self.base[offset as usize..][..PAGE as usize].try_into().unwrap(),
        }
    }

    /// The pages that were written.
    pub(crate) fn changed(&self) -> BTreeMap<u64, PageBytes> {
        self.changed.borrow().clone()
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.base.to_vec();
        for (at, page) in self.changed.borrow().iter() {
            bytes[*at as usize..][..PAGE as usize].copy_from_slice(page);
        }
        bytes
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        assert!(Rc::ptr_eq(&self.base, &other.base), "images of one origin");
        let of = |image: &Self| image.changed.borrow().keys().copied().collect::<BTreeSet<_>>();
        of(self).union(&of(other)).all(|at| self.page(*at) == other.page(*at))
    }
}

impl ImageRead for Image {
    fn size(&self) -> io::Result<ByteCount> {
        Ok(ByteCount(self.base.len() as u64))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.base.as_slice().read_at(offset, into)?;
        let end = offset + into.len() as u64;
        for (at, page) in self.changed.borrow().range(offset / PAGE * PAGE..end) {
            let (from, to) = (offset.max(*at), end.min(at + PAGE));
            let part = &page[(from - at) as usize..(to - at) as usize];
            into[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
        }
        Ok(())
    }
}

impl ImageWrite for Image {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = offset;
        while at < offset + bytes.len() as u64 {
            let start = at / PAGE * PAGE;
            let end = (start + PAGE).min(offset + bytes.len() as u64);
            let mut page = self.page(start);
            page[(at - start) as usize..(end - start) as usize]
                .copy_from_slice(&bytes[(at - offset) as usize..(end - offset) as usize]);
            self.changed.borrow_mut().insert(start, page);
            at = end;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
