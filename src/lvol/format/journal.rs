//! The journal of pages that are rewritten in place, for devices that tear a page.
//!
//! Root pages and the super block cannot move. Where the device's atomic unit is smaller than a
//! page, a power cut can leave one half old and half new. So each is written twice: to the journal,
//! which is an ordinary blob that says in an attribute what it is, and, when that is durable, to its
//! place. Opening puts a page that was torn there right.
//!
//! The journal holds one record: a page that lists what follows, and the pages. A new record
//! replaces it when everything in it is durable in its place. The record also says what each page
//! held before, sector by sector, so a page is put right only if it is a mixture of just these two:
//! what anybody wrote there in the meantime is left alone.

use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::units::{
    BlobId, ByteCount, ByteOffset, ClusterCount, ClusterIndex, PageIndex, VolumeCluster,
};

use super::blob::{Blob, Xattrs};
use super::lvolstore::{self, VolumeName};
use super::page::{Descriptor, Page};
use super::raw::{NO_PAGE, RawJournalEntry, RawJournalHeader};
use super::reader::BlobReader;
use super::{Layout, PageBytes, STRUCTURE_SIZE, claims_root, is_sealed, seal};

/// What the first page of a record starts with.
const SIGNATURE: [u8; 8] = *b"LVOLFSJ1";
/// The attribute that makes a blob the journal.
const ATTRIBUTE: &str = "lvolfs.journal";
/// Its value.
const VERSION: &[u8] = b"1";
/// The journal's name, unless a volume has it.
pub const JOURNAL_NAME: &str = "lvolfs-journal";
/// Pages of a new journal.
const PAGES: u64 = 32;
/// Where a page names the one that follows it.
const NEXT: usize = 4088;
/// The smallest unit in which a device tears a write.
const SECTOR: usize = 512;
/// Pages that one record can list.
const ENTRIES_LIMIT: usize =
    (STRUCTURE_SIZE - 4 - size_of::<RawJournalHeader>()) / size_of::<RawJournalEntry>();

/// Where the pages of a journal lie on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    places: Vec<ByteOffset>,
}

impl Journal {
    /// The clusters that a new journal of a store takes.
    #[must_use]
    pub fn clusters_for(layout: &Layout) -> ClusterCount {
        let bytes = PAGES * layout.metadata_page_size().0;
        ClusterCount(bytes.div_ceil(layout.cluster_size().0) as u32)
    }

    /// The blob of a new journal without its clusters. It is read-only, so that nobody writes to it
    /// who takes it for a volume.
    #[must_use]
    pub fn blob(id: BlobId, name: &VolumeName, uuid: Uuid, clusters: ClusterCount) -> Blob {
        let mut blob = lvolstore::volume_blob(id, name, uuid, clusters);
        blob.xattrs.set_known(ATTRIBUTE, VERSION);
        blob.flags.read_only = true;
        blob
    }

    /// The journal that `blob` is, if it is one that can be used: thick, with all of its clusters
    /// and without a parent. `place` tells where its clusters are.
    #[must_use]
    pub fn of(
        layout: &Layout,
        blob: &Blob,
        clusters: ClusterCount,
        place: impl Fn(VolumeCluster) -> Option<ClusterIndex>,
    ) -> Option<Self> {
        if !is_journal(&blob.xattrs) || blob.flags.thin || !blob.internal.is_empty() {
            return None;
        }
        let (cluster_size, page) = (layout.cluster_size().0, layout.metadata_page_size().0);
        let pages = layout.bytes_of(clusters).0 / page;
        let places: Option<Vec<_>> = (0..pages.min(1 + ENTRIES_LIMIT as u64))
            .map(|index| {
                let at = index * page;
                let cluster = place(VolumeCluster((at / cluster_size) as u32))?;
                let start = layout.cluster_offset(cluster)?;
                Some(ByteOffset(start.0 + at % cluster_size))
            })
            .collect();
        places.filter(|places| places.len() > 1).map(|places| Self { places })
    }

    /// How many pages one record can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.places.len() - 1
    }

    /// Where the pages of a record lie, the list of the others first.
    #[must_use]
    pub fn places(&self) -> &[ByteOffset] {
        &self.places
    }
}

/// Whether the attributes of a blob say that it is the journal.
#[must_use]
pub fn is_journal(xattrs: &Xattrs) -> bool {
    xattrs.get(ATTRIBUTE.as_bytes()) == Some(VERSION)
}

/// Whether a root page says that its blob is the journal.
#[must_use]
pub fn names_journal(root: Page<'_>) -> bool {
    root.descriptors().map_while(Result::ok).any(|descriptor| {
        matches!(descriptor, Descriptor::Xattr { name, value, .. }
            if name == ATTRIBUTE.as_bytes() && value == VERSION)
    })
}

/// Whether a damaged page is the root of a journal whose making a power cut ended. Nothing is lost
/// with it: a journal is needed only for what follows its making.
#[must_use]
pub fn is_torn_journal(layout: &Layout, root: PageIndex, bytes: &PageBytes) -> bool {
    if !claims_root(root, bytes) || is_sealed(bytes) {
        return false;
    }
    // A journal's root is its only page, and all that it says is in its first sector; what says that
    // no page follows is in the last one.
    let mut sealed = *bytes;
    sealed[NEXT..NEXT + 4].copy_from_slice(&NO_PAGE.to_le_bytes());
    seal(&mut sealed);
    let read = BlobReader::start(layout, root, &sealed).and_then(BlobReader::finish);
    read.is_ok_and(|read| is_journal(&read.blob.xattrs))
}

/// A page that is to be rewritten in place.
#[derive(Clone, Debug)]
pub struct Rewrite {
    /// Where.
    pub offset: ByteOffset,
    /// What it holds.
    pub before: PageBytes,
    /// What it will hold.
    pub after: PageBytes,
}

/// The pages of a record, the list first.
///
/// # Panics
/// If there are more pages than any journal can hold.
#[must_use]
pub fn encode_record(rewrites: &[Rewrite]) -> Vec<PageBytes> {
    assert!(rewrites.len() <= ENTRIES_LIMIT, "a record of {} pages", rewrites.len());
    let mut first = [0; STRUCTURE_SIZE];
    let header = RawJournalHeader {
        signature: SIGNATURE,
        count: (rewrites.len() as u32).into(),
        reserved: 0.into(),
    };
    let mut rest = first.as_mut_slice();
    let mut put = |bytes: &[u8]| {
        let (now, later) = std::mem::take(&mut rest).split_at_mut(bytes.len());
        now.copy_from_slice(bytes);
        rest = later;
    };
    put(header.as_bytes());
    for Rewrite { offset, before, after } in rewrites {
        let mut entry = RawJournalEntry::new_zeroed();
        entry.offset = offset.0.into();
        entry.crc = image_crc(after).into();
        for (crc, sector) in entry.before.iter_mut().zip(before.chunks_exact(SECTOR)) {
            *crc = crc32c::crc32c(sector).into();
        }
        put(entry.as_bytes());
    }
    seal(&mut first);
    std::iter::once(first).chain(rewrites.iter().map(|rewrite| rewrite.after)).collect()
}

/// The checksum of a page in a record: CRC-32C of its last four bytes and then of the others. A
/// page ends with the checksum of what stands before, and the CRC-32C of a whole with its own
/// CRC-32C at the end is the same for all.
fn image_crc(page: &PageBytes) -> u32 {
    let (body, end) = page.split_at(STRUCTURE_SIZE - size_of::<u32>());
    crc32c::crc32c_append(crc32c::crc32c(end), body)
}

/// The list of a record.
#[derive(Clone, Debug)]
pub struct Record {
    entries: Vec<RawJournalEntry>,
}

impl Record {
    /// Reads the first page of a journal; `None` if there is no record that concerns this store.
    #[must_use]
    pub fn parse(layout: &Layout, journal: &Journal, first: &PageBytes) -> Option<Self> {
        let (header, rest) = RawJournalHeader::read_from_prefix(first).ok()?;
        let count = header.count.get() as usize;
        if header.signature != SIGNATURE || !is_sealed(first) || count > journal.capacity() {
            return None;
        }
        let (entries, _) = <[RawJournalEntry]>::ref_from_prefix_with_elems(rest, count).ok()?;
        let in_place = |entry: &RawJournalEntry| is_rewritten(layout, entry.offset.get());
        entries.iter().all(in_place).then(|| Self { entries: entries.to_vec() })
    }

    /// Where each page belongs, in the order in which they lie in the journal.
    pub fn offsets(&self) -> impl ExactSizeIterator<Item = ByteOffset> + '_ {
        self.entries.iter().map(|entry| ByteOffset(entry.offset.get()))
    }

    /// Whether `images`, the pages behind the list, are those that it lists. If they are not, the
    /// record was never finished, and no page of it was begun to be written.
    #[must_use]
    pub fn is_complete(&self, images: &[PageBytes]) -> bool {
        let intact =
            |(entry, image): (&RawJournalEntry, &PageBytes)| image_crc(image) == entry.crc.get();
        images.len() == self.entries.len() && self.entries.iter().zip(images).all(intact)
    }

    /// Whether page `index`, which holds `now`, was torn while `image` was written over what it held
    /// before.
    #[must_use]
    pub fn is_torn(&self, index: usize, image: &PageBytes, now: &PageBytes) -> bool {
        let Some(entry) = self.entries.get(index) else { return false };
        if is_sealed(now) {
            return false;
        }
        let (mut old, mut new) = (false, false);
        let sectors = now.chunks_exact(SECTOR).zip(image.chunks_exact(SECTOR));
        for ((now, image), before) in sectors.zip(&entry.before) {
            match (crc32c::crc32c(now) == before.get(), now == image) {
                (true, true) => {}
                (true, false) => old = true,
                (false, true) => new = true,
                (false, false) => return false,
            }
        }
        old && new
    }
}

/// Whether the page at `offset` is one that is rewritten in place: the super block, or a slot of the
/// metadata region.
fn is_rewritten(layout: &Layout, offset: u64) -> bool {
    let (start, ByteCount(length)) = layout.region_bytes(layout.metadata_region());
    let inside = offset
        .checked_sub(start.0)
        .is_some_and(|at| at < length && at.is_multiple_of(layout.metadata_page_size().0));
    offset == 0 || inside
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvol::format::{LayoutOptions, Medium, blob_id};
    use crate::units::{BlockCount, BlockSize};

    fn layout() -> Layout {
        let cluster_size = ByteCount(64 << 10);
        let options = LayoutOptions { cluster_size, metadata_ratio_percent: 100 };
        Layout::create(Medium::new(BlockSize::B512, BlockCount(8192)), options).unwrap()
    }

    fn journal_of(layout: &Layout, change: impl FnOnce(&mut Blob)) -> Option<Journal> {
        let clusters = Journal::clusters_for(layout);
        let name = VolumeName::new(JOURNAL_NAME).unwrap();
        let mut blob = Journal::blob(blob_id(PageIndex(1)), &name, Uuid::from_u128(1), clusters);
        change(&mut blob);
        // Every other cluster of the device, backwards.
        let place = |at: VolumeCluster| Some(ClusterIndex(40 - 2 * at.0));
        Journal::of(layout, &blob, clusters, place)
    }

    /// A sealed page of `byte` in every sector but the last, whose checksum differs.
    fn page(byte: u8) -> PageBytes {
        let mut page = [byte; STRUCTURE_SIZE];
        seal(&mut page);
        page
    }

    /// Sectors of `before` and, where the bit is set, of `after`.
    fn mixed(before: &PageBytes, after: &PageBytes, bits: u8) -> PageBytes {
        let mut mixed = *before;
        for sector in (0..8).filter(|sector| bits >> sector & 1 != 0) {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            mixed[range.clone()].copy_from_slice(&after[range]);
        }
        mixed
    }

    #[test]
    fn a_journal_lies_where_its_clusters_are() {
        let layout = layout();
        let journal = journal_of(&layout, |_| {}).unwrap();
        assert_eq!(journal.capacity(), 31);
        assert_eq!(journal.places()[15], ByteOffset(40 * 65536 + 15 * 4096));
        assert_eq!(journal.places()[16], ByteOffset(38 * 65536));
        assert_eq!(journal_of(&layout, |blob| blob.flags.thin = true), None);
        assert_eq!(journal_of(&layout, |blob| blob.set_parent(Some(BlobId(7)))), None);
        assert_eq!(journal_of(&layout, |blob| blob.xattrs = Xattrs::new()), None);
    }

    #[test]
    fn only_a_mixture_of_just_these_two_is_torn() {
        let layout = layout();
        let journal = journal_of(&layout, |_| {}).unwrap();
        let offset = layout.page_offset(PageIndex(3)).unwrap();
        for (before, after) in [(page(1), page(2)), (page(1), [0; 4096]), ([0; 4096], page(2))] {
            let record = encode_record(&[
                Rewrite { offset: ByteOffset(0), before: page(7), after: page(8) },
                Rewrite { offset, before, after },
            ]);
            let read = Record::parse(&layout, &journal, &record[0]).unwrap();
            assert_eq!(read.offsets().collect::<Vec<_>>(), [ByteOffset(0), offset]);
            assert!(read.is_complete(&record[1..]));
            assert!(!read.is_complete(&[record[1], page(9)]) && !read.is_complete(&record[1..2]));
            for bits in 0..=255 {
                let now = mixed(&before, &after, bits);
                assert_eq!(read.is_torn(1, &after, &now), bits != 0 && bits != 255, "{bits:#b}");
                // Somebody else wrote there, and that was torn, too.
                assert!(!read.is_torn(1, &after, &mixed(&now, &page(3), 0b100)), "{bits:#b}");
            }
        }
    }

    #[test]
    fn a_record_that_cannot_be_is_none() {
        let layout = layout();
        let journal = journal_of(&layout, |_| {}).unwrap();
        let at = |offset| Rewrite { offset: ByteOffset(offset), before: page(1), after: page(2) };
        let parse = |page: &PageBytes| Record::parse(&layout, &journal, page).is_some();
        assert!(parse(&encode_record(&[])[0]));
        assert!(parse(&encode_record(&vec![at(0); 31])[0]));
        assert!(!parse(&encode_record(&vec![at(0); 32])[0]), "more than it can hold");
        let (start, ByteCount(length)) = layout.region_bytes(layout.metadata_region());
        for bad in [4096, start.0 + 1, start.0 + length, u64::MAX] {
            assert!(!parse(&encode_record(&[at(bad)])[0]), "{bad}");
        }
        for byte in [0, 9, 20, 4095] {
            let mut rotten = encode_record(&[at(0)])[0];
            rotten[byte] ^= 1;
            assert!(!parse(&rotten), "byte {byte}");
        }
        assert!(!parse(&[0; STRUCTURE_SIZE]));
    }

    #[test]
    fn a_torn_root_of_a_journal_is_known_by_its_first_sector() {
        let layout = layout();
        let name = VolumeName::new(JOURNAL_NAME).unwrap();
        let root = PageIndex(5);
        let blob = Journal::blob(blob_id(root), &name, Uuid::from_u128(1), ClusterCount(2));
        let whole = blob.encode().unwrap()[0];
        let torn = |bits| is_torn_journal(&layout, root, &mixed(&[0; 4096], &whole, bits));
        for bits in 0..=255 {
            assert_eq!(torn(bits), bits & 1 != 0 && bits & 0x80 == 0, "{bits:#b}");
        }
        assert!(!is_torn_journal(&layout, PageIndex(6), &mixed(&[0; 4096], &whole, 1)));
    }
}
