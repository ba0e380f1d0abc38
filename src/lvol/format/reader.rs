//! From pages to a [`Blob`]: the caller reads, the reader says which page is next.
//!
//! SPDK checks of a chain page only its checksum when it recovers, so a stale page can slip in.
//! Here every page must name the right blob and its own place in the chain; since a page has one
//! place, a chain cannot loop, and it is never longer than the metadata region.

use std::collections::HashSet;

use crate::units::{BlobId, ClusterCount, ClusterIndex, PageIndex};

use super::blob::{BLOB_ID_XATTRS, Blob, Flags, Mapping, Xattr};
use super::extent::{ExtentTable, Run, Runs, TableSlot};
use super::page::{Descriptor, Page, PageProblem};
use super::raw::{
    DESCRIPTOR_EXTENT_PAGE, DESCRIPTOR_EXTENT_TABLE, DESCRIPTOR_RLE, FLAG_EXTENT_TABLE,
    FLAG_INTERNAL_XATTR, RawFlags, RawRun, RawTableEntry,
};
use super::{Layout, PageBytes, blob_id};

/// Why a blob cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata page {page}: {problem}")]
pub struct BlobError {
    /// The page that is wrong.
    pub page: PageIndex,
    /// What is wrong with it.
    pub problem: PageProblem,
}

/// Something that a reader can live with, but that no correct writer leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Oddity {
    /// A descriptor of unknown type. Opening ignores it and rewriting the blob drops it, but
    /// SPDK's crash recovery refuses the whole store because of it.
    UnknownDescriptor {
        /// Its page.
        page: PageIndex,
        /// Its type.
        kind: u8,
        /// Its length.
        length: u32,
    },
    /// An attribute that is there twice; the first one counts.
    DuplicateXattr {
        /// Its name.
        name: Vec<u8>,
    },
    /// Flags after the mapping. SPDK takes a blob for thick until it meets them, and so does not
    /// open one with a hole before them.
    LateFlags,
    /// The flag for internal attributes says otherwise than the attributes.
    InternalXattrFlag {
        /// What the flag says.
        flag: bool,
    },
    /// The flag for the extent table says otherwise than the mapping.
    ExtentTableFlag {
        /// What the flag says.
        flag: bool,
    },
}

/// A blob that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadBlob {
    /// What it says.
    pub blob: Blob,
    /// What is strange about it.
    pub oddities: Vec<Oddity>,
}

/// Reads a blob page by page.
#[derive(Debug)]
pub struct BlobReader<'l> {
    layout: &'l Layout,
    blob: Blob,
    mapping: PartialMapping,
    /// Names of the attributes so far, and whether they are internal.
    names: HashSet<(bool, Vec<u8>)>,
    /// Bits of the first flag word, as found.
    flag_bits: u64,
    next: Option<PageIndex>,
    oddities: Vec<Oddity>,
}

/// What the descriptors so far say about the mapping.
#[derive(Debug)]
enum PartialMapping {
    /// Nothing yet.
    Unknown,
    Rle(Runs),
    /// The number of places seen is kept to tell whether all came.
    Table {
        table: ExtentTable,
        slots: u64,
    },
}

impl<'l> BlobReader<'l> {
    /// Starts with the bytes of root page `root`.
    ///
    /// # Errors
    /// [`BlobError`] if this is not an intact root page of a blob that we can open.
    pub fn start(
        layout: &'l Layout,
        root: PageIndex,
        bytes: &PageBytes,
    ) -> Result<Self, BlobError> {
        let mut reader = Self {
            layout,
            blob: Blob::new(blob_id(root)),
            mapping: PartialMapping::Unknown,
            names: HashSet::new(),
            flag_bits: 0,
            next: None,
            oddities: Vec::new(),
        };
        reader.read(root, 0, bytes).map_err(|problem| BlobError { page: root, problem })?;
        Ok(reader)
    }

    /// The chain page to read next; `None`: [`BlobReader::finish`].
    #[must_use]
    pub const fn next_page(&self) -> Option<PageIndex> {
        self.next
    }

    /// Takes the bytes of the page that [`BlobReader::next_page`] names.
    ///
    /// # Errors
    /// [`BlobError`]; the blob cannot be read then.
    ///
    /// # Panics
    /// If no page was asked for.
    pub fn add(&mut self, bytes: &PageBytes) -> Result<(), BlobError> {
        let Some(page) = self.next.take() else {
            panic!("a page was given to a reader that has all it needs")
        };
        self.blob.chain.push(page);
        let sequence = self.blob.chain.len() as u32;
        self.read(page, sequence, bytes).map_err(|problem| BlobError { page, problem })
    }

    /// The blob, once no page is missing.
    ///
    /// # Errors
    /// [`BlobError`] if the pages do not make up a whole extent table.
    ///
    /// # Panics
    /// If a page is missing.
    pub fn finish(self) -> Result<ReadBlob, BlobError> {
        assert!(self.next.is_none(), "a reader was finished before its last page");
        let Self { mut blob, mapping, flag_bits, mut oddities, .. } = self;
        blob.mapping = match mapping {
            PartialMapping::Unknown => Mapping::Rle(Runs::new()),
            PartialMapping::Rle(runs) => Mapping::Rle(runs),
            PartialMapping::Table { table, slots } => {
                let expected = u64::from(table.slots());
                if slots != expected {
                    let root = PageIndex(blob.id.0 as u32);
                    let page = blob.chain.last().copied().unwrap_or(root);
                    let problem = PageProblem::ExtentTable { expected, found: slots };
                    return Err(BlobError { page, problem });
                }
                Mapping::Table(table)
            }
        };
        let flag = flag_bits & FLAG_INTERNAL_XATTR != 0;
        if flag == blob.internal.is_empty() {
            oddities.push(Oddity::InternalXattrFlag { flag });
        }
        let flag = flag_bits & FLAG_EXTENT_TABLE != 0;
        if flag != matches!(blob.mapping, Mapping::Table(_)) {
            oddities.push(Oddity::ExtentTableFlag { flag });
        }
        Ok(ReadBlob { blob, oddities })
    }

    fn read(
        &mut self,
        index: PageIndex,
        sequence: u32,
        bytes: &PageBytes,
    ) -> Result<(), PageProblem> {
        let page = Page::parse(bytes)?;
        let (expected, found) = (self.blob.id, page.blob());
        if found != expected {
            return Err(PageProblem::Owner { expected, found });
        }
        if page.sequence() != sequence {
            return Err(PageProblem::Sequence { expected: sequence, found: page.sequence() });
        }
        for descriptor in page.descriptors() {
            match descriptor? {
                Descriptor::Rle(runs) => self.read_runs(runs)?,
                Descriptor::Xattr { internal, name, value } => {
                    self.read_xattr(internal, name, value)?;
                }
                Descriptor::Flags(raw) => self.read_flags(raw)?,
                Descriptor::ExtentTable { clusters, entries } => {
                    self.read_table(clusters, entries)?;
                }
                Descriptor::ExtentPage { .. } => {
                    let kind = DESCRIPTOR_EXTENT_PAGE;
                    return Err(PageProblem::DescriptorPlace { kind });
                }
                Descriptor::Unknown { kind, length } => {
                    let odd = Oddity::UnknownDescriptor { page: index, kind, length };
                    self.oddities.push(odd);
                }
            }
        }
        self.next = page.next();
        match self.next {
            Some(page) if page.0 >= self.layout.metadata_pages() => {
                Err(PageProblem::PageNumber { page })
            }
            _ => Ok(()),
        }
    }

    fn read_flags(&mut self, raw: &RawFlags) -> Result<(), PageProblem> {
        self.blob.flags = Flags::parse(raw)?;
        if !matches!(self.mapping, PartialMapping::Unknown) {
            self.oddities.push(Oddity::LateFlags);
        }
        self.flag_bits = raw.invalid.get();
        Ok(())
    }

    fn read_xattr(&mut self, internal: bool, name: &[u8], value: &[u8]) -> Result<(), PageProblem> {
        let known = BLOB_ID_XATTRS.into_iter().find(|known| known.as_bytes() == name);
        if let Some(name) = known.filter(|_| internal && value.len() != size_of::<BlobId>()) {
            return Err(PageProblem::InternalXattr { name, length: value.len() });
        }
        // A set, since a hostile chain can hold more attributes than may be compared in pairs.
        if self.names.insert((internal, name.to_vec())) {
            let list = if internal { &mut self.blob.internal } else { &mut self.blob.xattrs };
            list.push_read(Xattr { name: name.to_vec(), value: value.to_vec() });
        } else {
            self.oddities.push(Oddity::DuplicateXattr { name: name.to_vec() });
        }
        Ok(())
    }

    fn read_runs(&mut self, raw: &[RawRun]) -> Result<(), PageProblem> {
        if matches!(self.mapping, PartialMapping::Unknown) {
            self.mapping = PartialMapping::Rle(Runs::new());
        }
        let PartialMapping::Rle(runs) = &mut self.mapping else {
            return Err(PageProblem::DescriptorPlace { kind: DESCRIPTOR_RLE });
        };
        for raw in raw.iter().filter(|raw| raw.count.get() != 0) {
            let (first, count) = (raw.first_cluster.get(), raw.count.get());
            let allocated = (first != 0).then_some(ClusterIndex(first));
            if let Some(cluster) = allocated {
                let last = cluster.checked_add(count - 1);
                let inside = |cluster| self.layout.is_data_cluster(cluster);
                if !inside(cluster) || !last.is_some_and(inside) {
                    return Err(PageProblem::ClusterNumber { cluster });
                }
            }
            let run = Run { first: allocated, count: ClusterCount(count) };
            let clusters = u64::from(runs.clusters().0) + u64::from(count);
            runs.push(run).ok_or(PageProblem::TooManyClusters { clusters })?;
        }
        Ok(())
    }

    fn read_table(&mut self, clusters: u64, entries: &[RawTableEntry]) -> Result<(), PageProblem> {
        let Ok(size) = u32::try_from(clusters) else {
            return Err(PageProblem::TooManyClusters { clusters });
        };
        if matches!(self.mapping, PartialMapping::Unknown) {
            let table = ExtentTable::new(ClusterCount(size));
            self.mapping = PartialMapping::Table { table, slots: 0 };
        }
        let PartialMapping::Table { table, slots } = &mut self.mapping else {
            return Err(PageProblem::DescriptorPlace { kind: DESCRIPTOR_EXTENT_TABLE });
        };
        if table.clusters().0 != size {
            let expected = table.clusters().0.into();
            return Err(PageProblem::ExtentTable { expected, found: clusters });
        }
        for entry in entries {
            let (page, count) = (PageIndex(entry.page.get()), entry.count.get());
            let expected = u64::from(table.slots());
            let end = *slots + u64::from(count);
            if end > expected {
                return Err(PageProblem::ExtentTable { expected, found: end });
            }
            if page.0 != 0 {
                if count != 1 {
                    return Err(PageProblem::TableCount { page, count });
                }
                if page.0 >= self.layout.metadata_pages() {
                    return Err(PageProblem::PageNumber { page });
                }
                // Below the number of slots, which is 32 bits wide.
                table.set(TableSlot(*slots as u32), page);
            }
            *slots = end;
        }
        Ok(())
    }
}
