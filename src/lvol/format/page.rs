//! One metadata page: its checksum, its header and its descriptors.
//!
//! A [`Page`] exists only for bytes whose checksum is right. That does not make them true: they may
//! be stale, or written by an enemy who can compute a checksum; [`super::BlobReader`] and
//! [`super::ExtentPage`] check what the fields say against the layout.

use zerocopy::{FromBytes, IntoBytes};

use crate::units::{BlobId, ClusterIndex, PageIndex};

use super::raw::{
    DESCRIPTOR_BYTES, DESCRIPTOR_EXTENT_PAGE, DESCRIPTOR_EXTENT_TABLE, DESCRIPTOR_FLAGS,
    DESCRIPTOR_INTERNAL_XATTR, DESCRIPTOR_PADDING, DESCRIPTOR_RLE, DESCRIPTOR_XATTR, NO_PAGE,
    RawDescriptorHeader, RawExtentPage, RawExtentTable, RawFlags, RawPage, RawRun, RawTableEntry,
    RawXattr,
};
use super::{PageBytes, STRUCTURE_SIZE, blob_id, checksum, root_page};

use zerocopy::little_endian::U32;

/// What is wrong with one metadata page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageProblem {
    /// The slot is zero: free.
    #[error("it is erased")]
    Erased,
    /// The checksum does not match: damaged, torn, or never a metadata page.
    #[error("its checksum is {stored:#010x} instead of {computed:#010x}")]
    Checksum {
        /// As stored.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
    /// It belongs to another blob.
    #[error("it belongs to blob {:#x} instead of {:#x}", .found.0, .expected.0)]
    Owner {
        /// The blob that was being read.
        expected: BlobId,
        /// The blob that the page names.
        found: BlobId,
    },
    /// It is another page of its chain than expected.
    #[error("it has sequence number {found} instead of {expected}")]
    Sequence {
        /// Its place in the chain.
        expected: u32,
        /// The place that it names.
        found: u32,
    },
    /// A page number outside of the metadata region, or 0 for an extent page.
    #[error("it refers to metadata page {page}, which cannot be")]
    PageNumber {
        /// The number.
        page: PageIndex,
    },
    /// A cluster number outside of the data clusters.
    #[error("it refers to cluster {cluster}, which is no data cluster")]
    ClusterNumber {
        /// The number, or the first of the run.
        cluster: ClusterIndex,
    },
    /// A descriptor that reaches beyond the page.
    #[error("a descriptor of type {kind} claims {length} bytes and reaches beyond the page")]
    DescriptorEnd {
        /// Its type.
        kind: u8,
        /// Its length.
        length: u32,
    },
    /// A descriptor whose length is impossible for its type.
    #[error("a descriptor of type {kind} has an impossible length of {length} bytes")]
    DescriptorLength {
        /// Its type.
        kind: u8,
        /// Its length.
        length: u32,
    },
    /// A descriptor that cannot be in a page of this kind or beside the ones before it.
    #[error("a descriptor of type {kind} cannot stand here")]
    DescriptorPlace {
        /// Its type.
        kind: u8,
    },
    /// An internal xattr with a fixed size has another one.
    #[error("internal xattr {name} has {length} bytes instead of 8")]
    InternalXattr {
        /// Which.
        name: &'static str,
        /// The length of its value.
        length: usize,
    },
    /// Flags that a reader must know to open the blob, and that are unknown.
    #[error("it needs features that are unknown here (flags {flags:#x})")]
    UnknownFlags {
        /// The unknown bits.
        flags: u64,
    },
    /// More clusters than 32 bits can count.
    #[error("it describes {clusters} clusters, more than can be")]
    TooManyClusters {
        /// The count.
        clusters: u64,
    },
    /// Descriptors of one extent table that do not fit together or their cluster count.
    #[error("its extent table has {found} places where {expected} belong")]
    ExtentTable {
        /// Extent pages (or clusters, where the descriptors disagree) expected.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// An element of an extent table that stands for more than one allocated extent page.
    #[error("its extent table counts page {page} {count} times")]
    TableCount {
        /// The page.
        page: PageIndex,
        /// The count, which must be 1.
        count: u32,
    },
    /// An extent page with no or too many entries.
    #[error("it is an extent page of {entries} entries")]
    ExtentEntries {
        /// The count.
        entries: usize,
    },
}

/// A metadata page whose checksum is right.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    raw: &'a RawPage,
}

impl<'a> Page<'a> {
    /// Checks the checksum.
    ///
    /// # Errors
    /// [`PageProblem::Erased`] and [`PageProblem::Checksum`].
    pub fn parse(bytes: &'a PageBytes) -> Result<Self, PageProblem> {
        let raw: &RawPage = zerocopy::transmute_ref!(bytes);
        // Most pages of a region are erased. Zeros do not satisfy the checksum, which need not be
        // computed then.
        if raw.crc.get() == 0 && *bytes == [0; STRUCTURE_SIZE] {
            return Err(PageProblem::Erased);
        }
        let (stored, computed) = (raw.crc.get(), checksum(bytes));
        if stored == computed {
            Ok(Self { raw })
        } else {
            Err(PageProblem::Checksum { stored, computed })
        }
    }

    /// The blob that owned the page when it was written.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        BlobId(self.raw.id.get())
    }

    /// 0 in a root page and in an extent page, then 1, 2, ... along the chain.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.raw.sequence.get()
    }

    /// The next page of the chain; the number is not checked.
    #[must_use]
    pub fn next(&self) -> Option<PageIndex> {
        let next = self.raw.next.get();
        (next != NO_PAGE).then_some(PageIndex(next))
    }

    /// What the page says, in order.
    #[must_use]
    pub fn descriptors(&self) -> Descriptors<'a> {
        Descriptors { rest: &self.raw.descriptors }
    }
}

/// What a slot of the metadata region holds, as a recovery that knows only the slot can tell.
#[derive(Clone, Copy, Debug)]
pub enum PageKind<'a> {
    /// The root page of the blob that is named after this slot.
    Root(Page<'a>),
    /// A later page of a chain; whether it is still in use only its root can tell.
    Chain(Page<'a>),
    /// An extent page; whether it is still in use only an extent table can tell.
    Extent(Page<'a>),
    /// Intact but none of these: a root page in the wrong place.
    Misplaced(Page<'a>),
    /// Free or damaged.
    Invalid(PageProblem),
}

/// Whether a slot can hold a page of a blob, roots, chains and extent pages alike: each begins with
/// the id of the blob that wrote it. Most slots of a region are blank, and to see that, their first
/// bytes are enough.
#[must_use]
pub fn names_blob(bytes: &PageBytes) -> bool {
    let raw: &RawPage = zerocopy::transmute_ref!(bytes);
    root_page(BlobId(raw.id.get())).is_some()
}

/// Whether a page that is not intact was the root of a blob: id and sequence number come first, so
/// a torn root still says that it is one.
#[must_use]
pub fn claims_root(index: PageIndex, bytes: &PageBytes) -> bool {
    bytes.starts_with(&blob_id(index).0.to_le_bytes()) && bytes[8..12] == [0; 4]
}

impl<'a> PageKind<'a> {
    /// Classifies the bytes of slot `index`.
    #[must_use]
    pub fn classify(index: PageIndex, bytes: &'a PageBytes) -> Self {
        let page = match Page::parse(bytes) {
            Ok(page) => page,
            Err(problem) => return Self::Invalid(problem),
        };
        if page.sequence() != 0 {
            return Self::Chain(page);
        }
        if page.blob() == blob_id(index) {
            return Self::Root(page);
        }
        match page.descriptors().next() {
            Some(Ok(Descriptor::ExtentPage { .. })) => Self::Extent(page),
            _ => Self::Misplaced(page),
        }
    }
}

/// One descriptor, its lengths checked against its page and its type, its numbers unchecked.
#[derive(Clone, Copy, Debug)]
pub enum Descriptor<'a> {
    /// Runs of clusters.
    Rle(&'a [RawRun]),
    /// An extended attribute.
    Xattr {
        /// Whether it is one of the blobstore's own.
        internal: bool,
        /// Its name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// Flags.
    Flags(&'a RawFlags),
    /// A piece of the extent table.
    ExtentTable {
        /// Clusters of the whole blob.
        clusters: u64,
        /// Extent pages.
        entries: &'a [RawTableEntry],
    },
    /// The clusters of an extent page.
    ExtentPage {
        /// The blob's cluster that the first number is for.
        first: u32,
        /// Cluster numbers; 0: not allocated.
        clusters: &'a [U32],
    },
    /// A type that no version known to us writes.
    Unknown {
        /// Its type.
        kind: u8,
        /// Its length.
        length: u32,
    },
}

/// Iterates over the descriptors of a page; ends after the first problem.
#[derive(Clone, Debug)]
pub struct Descriptors<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Descriptors<'a> {
    type Item = Result<Descriptor<'a>, PageProblem>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (header, rest) = RawDescriptorHeader::ref_from_prefix(self.rest).ok()?;
            let (kind, length) = (header.kind, header.length.get());
            if kind == DESCRIPTOR_PADDING && length == 0 {
                return None;
            }
            let Some((body, rest)) = rest.split_at_checked(length as usize) else {
                self.rest = &[];
                return Some(Err(PageProblem::DescriptorEnd { kind, length }));
            };
            self.rest = rest;
            if kind != DESCRIPTOR_PADDING {
                let parsed = parse_body(kind, body);
                if parsed.is_none() {
                    self.rest = &[];
                }
                return Some(parsed.ok_or(PageProblem::DescriptorLength { kind, length }));
            }
        }
    }
}

/// Reads a descriptor's body; `None` if its length is impossible.
fn parse_body(kind: u8, body: &[u8]) -> Option<Descriptor<'_>> {
    Some(match kind {
        DESCRIPTOR_RLE if !body.is_empty() => {
            Descriptor::Rle(<[RawRun]>::ref_from_bytes(body).ok()?)
        }
        DESCRIPTOR_XATTR | DESCRIPTOR_INTERNAL_XATTR => {
            let (lengths, rest) = RawXattr::ref_from_prefix(body).ok()?;
            let (name, value) = rest.split_at_checked(lengths.name_length.get().into())?;
            if value.len() != usize::from(lengths.value_length.get()) {
                return None;
            }
            Descriptor::Xattr { internal: kind == DESCRIPTOR_INTERNAL_XATTR, name, value }
        }
        DESCRIPTOR_FLAGS => Descriptor::Flags(RawFlags::ref_from_bytes(body).ok()?),
        DESCRIPTOR_EXTENT_TABLE => {
            let (table, rest) = RawExtentTable::ref_from_prefix(body).ok()?;
            let entries = <[RawTableEntry]>::ref_from_bytes(rest).ok()?;
            Descriptor::ExtentTable { clusters: table.num_clusters.get(), entries }
        }
        DESCRIPTOR_EXTENT_PAGE => {
            let (start, rest) = RawExtentPage::ref_from_prefix(body).ok()?;
            let clusters = <[U32]>::ref_from_bytes(rest).ok().filter(|list| !list.is_empty())?;
            Descriptor::ExtentPage { first: start.start_cluster_idx.get(), clusters }
        }
        DESCRIPTOR_RLE | DESCRIPTOR_PADDING => return None,
        _ => Descriptor::Unknown { kind, length: body.len() as u32 },
    })
}

/// Starts a page: header, no descriptors, no next page, no checksum.
pub(super) fn blank_page(blob: BlobId, sequence: u32) -> PageBytes {
    let raw = RawPage {
        id: blob.0.into(),
        sequence: sequence.into(),
        reserved: 0.into(),
        descriptors: [0; DESCRIPTOR_BYTES],
        next: NO_PAGE.into(),
        crc: 0.into(),
    };
    zerocopy::transmute!(raw)
}

/// Where the descriptors of a page start.
pub(super) const DESCRIPTORS_OFFSET: usize = 16;

/// Writes a descriptor's header and its fixed parts at the start of `into`; returns what follows.
pub(super) fn put_descriptor<'a>(
    into: &'a mut [u8],
    kind: u8,
    length: usize,
    parts: &[&[u8]],
) -> &'a mut [u8] {
    let header = RawDescriptorHeader { kind, length: (length as u32).into() };
    let mut rest = into;
    for part in std::iter::once(&header.as_bytes()).chain(parts) {
        let (place, after) = rest.split_at_mut(part.len());
        place.copy_from_slice(part);
        rest = after;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvol::format::seal;

    /// A sealed page with these descriptor bytes.
    fn page_with(descriptors: &[u8]) -> PageBytes {
        let mut bytes = blank_page(blob_id(PageIndex(5)), 0);
        bytes[DESCRIPTORS_OFFSET..][..descriptors.len()].copy_from_slice(descriptors);
        seal(&mut bytes);
        bytes
    }

    fn outcome(descriptors: &[u8]) -> Result<usize, PageProblem> {
        let bytes = page_with(descriptors);
        let page = Page::parse(&bytes).unwrap();
        page.descriptors().try_fold(0, |count, next| next.map(|_| count + 1))
    }

    #[test]
    fn erased_and_damaged_pages_are_told_apart() {
        assert_eq!(Page::parse(&[0; 4096]).unwrap_err(), PageProblem::Erased);
        let mut bytes = page_with(&[]);
        assert!(Page::parse(&bytes).is_ok());
        bytes[9] ^= 4;
        let problem = Page::parse(&bytes).unwrap_err();
        assert!(matches!(problem, PageProblem::Checksum { .. }));
    }

    #[test]
    fn only_what_begins_with_a_blob_id_can_be_a_page() {
        assert!(!names_blob(&[0; 4096]));
        assert!(names_blob(&page_with(&[])));
        for index in [0, 1, u32::MAX].map(PageIndex) {
            let torn = blank_page(blob_id(index), 0);
            assert!(names_blob(&torn) && claims_root(index, &torn));
        }
        for id in [0, 5, 2 << 32 | 5, u64::MAX] {
            let mut bytes = blank_page(BlobId(id), 0);
            seal(&mut bytes);
            assert!(!names_blob(&bytes));
            let kind = PageKind::classify(PageIndex(5), &bytes);
            assert!(matches!(kind, PageKind::Misplaced(_)), "{kind:?}");
        }
    }

    #[test]
    fn padding_is_skipped_or_ends_the_page() {
        assert_eq!(outcome(&[]), Ok(0));
        assert_eq!(outcome(&[0, 3, 0, 0, 0, 1, 1, 1, 2, 4, 0, 0, 0, 0, 0, 0, 0]), Ok(1));
        let mut full = [0; DESCRIPTOR_BYTES];
        full[..5].copy_from_slice(&[0, 0xdf, 0x0f, 0, 0]);
        full[DESCRIPTOR_BYTES - 4..].fill(0xff);
        assert_eq!(outcome(&full), Ok(0), "fewer than five bytes are no descriptor");
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let bad: [&[u8]; 9] = [
            &[1, 0, 0, 0, 0],
            &[1, 4, 0, 0, 0],
            &[2, 3, 0, 0, 0],
            &[2, 6, 0, 0, 0, 1, 0, 2, 0, 65, 66],
            &[3, 23, 0, 0, 0],
            &[5, 4, 0, 0, 0],
            &[5, 12, 0, 0, 0],
            &[6, 4, 0, 0, 0],
            &[6, 7, 0, 0, 0],
        ];
        for descriptor in bad {
            let problem = outcome(descriptor).unwrap_err();
            assert!(
                matches!(problem, PageProblem::DescriptorLength { kind, .. } if kind == descriptor[0]),
                "{descriptor:?}: {problem}"
            );
        }
        for length in [4068, 0xffff_ffff_u32] {
            let mut descriptor = vec![9];
            descriptor.extend(length.to_le_bytes());
            let problem = outcome(&descriptor);
            assert_eq!(problem, Err(PageProblem::DescriptorEnd { kind: 9, length }));
        }
        assert_eq!(outcome(&[9, 0xe3, 0x0f, 0, 0]), Ok(1), "unknown, but it fits");
    }

    #[test]
    fn slots_are_classified() {
        let bytes = page_with(&[6, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0]);
        assert!(matches!(PageKind::classify(PageIndex(5), &bytes), PageKind::Root(_)));
        assert!(matches!(PageKind::classify(PageIndex(6), &bytes), PageKind::Extent(_)));
        let bytes = page_with(&[]);
        assert!(matches!(PageKind::classify(PageIndex(6), &bytes), PageKind::Misplaced(_)));
        let mut bytes = blank_page(blob_id(PageIndex(5)), 3);
        seal(&mut bytes);
        assert!(matches!(PageKind::classify(PageIndex(5), &bytes), PageKind::Chain(_)));
        let erased = PageKind::classify(PageIndex(5), &[0; 4096]);
        assert!(matches!(erased, PageKind::Invalid(PageProblem::Erased)));
    }
}
