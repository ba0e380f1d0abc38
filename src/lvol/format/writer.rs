//! From a [`Blob`] to its pages, in SPDK's order: flags (a reader must know about thin before it
//! sees a hole), attributes of the user, internal attributes, mapping. A descriptor never spans
//! pages, and a page that was left is not filled up later.

use zerocopy::IntoBytes;

use crate::units::ClusterIndex;

use super::blob::{Blob, Mapping, Xattrs};
use super::extent::{ExtentTable, Runs, TableSlot};
use super::page::{DESCRIPTORS_OFFSET, blank_page, put_descriptor};
use super::raw::{
    DESCRIPTOR_BYTES, DESCRIPTOR_EXTENT_TABLE, DESCRIPTOR_FLAGS, DESCRIPTOR_INTERNAL_XATTR,
    DESCRIPTOR_RLE, DESCRIPTOR_XATTR, RawDescriptorHeader, RawExtentTable, RawPage, RawRun,
    RawTableEntry, RawXattr,
};
use super::{PageBytes, seal};

/// Why a blob cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// [`Blob::chain`] has not as many pages as the blob needs.
    #[error("the blob needs {needed} chain pages, {given} are given")]
    ChainLength {
        /// Pages needed beyond the root.
        needed: usize,
        /// Pages in `chain`.
        given: usize,
    },
}

impl Blob {
    /// How many pages the blob takes as it is now, the root included: at least 1.
    #[must_use]
    pub fn pages_needed(&self) -> usize {
        self.pack().pages.len()
    }

    /// The bytes of the root page, then of each page of [`Blob::chain`].
    ///
    /// # Errors
    /// [`EncodeError::ChainLength`] if `chain` is not exactly as long as it must be; see
    /// [`Blob::pages_needed`].
    pub fn encode(&self) -> Result<Vec<PageBytes>, EncodeError> {
        let mut pages = self.pack().pages;
        let (needed, given) = (pages.len() - 1, self.chain.len());
        if needed != given {
            return Err(EncodeError::ChainLength { needed, given });
        }
        for (page, next) in pages.iter_mut().zip(&self.chain) {
            let raw: &mut RawPage = zerocopy::transmute_mut!(page);
            raw.next = next.0.into();
        }
        pages.iter_mut().for_each(seal);
        Ok(pages)
    }

    fn pack(&self) -> Packer {
        let mut packer = Packer::new(self);
        packer.put(DESCRIPTOR_FLAGS, &[self.raw_flags().as_bytes()]);
        packer.put_xattrs(DESCRIPTOR_XATTR, &self.xattrs);
        packer.put_xattrs(DESCRIPTOR_INTERNAL_XATTR, &self.internal);
        match &self.mapping {
            Mapping::Rle(runs) => packer.put_runs(runs),
            Mapping::Table(table) => packer.put_table(table),
        }
        packer
    }
}

const HEADER: usize = size_of::<RawDescriptorHeader>();

/// Pages being filled.
struct Packer {
    blob: crate::units::BlobId,
    /// Not sealed, `next` not set.
    pages: Vec<PageBytes>,
    /// Descriptor bytes used in the last page.
    used: usize,
}

impl Packer {
    fn new(blob: &Blob) -> Self {
        Self { blob: blob.id, pages: vec![blank_page(blob.id, 0)], used: 0 }
    }

    const fn room(&self) -> usize {
        DESCRIPTOR_BYTES - self.used
    }

    fn new_page(&mut self) {
        self.pages.push(blank_page(self.blob, self.pages.len() as u32));
        self.used = 0;
    }

    /// Appends a descriptor whose body are these parts, on a new page if it does not fit.
    fn put(&mut self, kind: u8, parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        if self.room() < HEADER + length {
            self.new_page();
        }
        let Some(page) = self.pages.last_mut() else {
            unreachable!("a packer starts with one page")
        };
        let place = &mut page[DESCRIPTORS_OFFSET..][self.used..DESCRIPTOR_BYTES];
        put_descriptor(place, kind, length, parts);
        self.used += HEADER + length;
    }

    fn put_xattrs(&mut self, kind: u8, xattrs: &Xattrs) {
        for xattr in xattrs {
            // An attribute fits into a page, so both lengths fit into 16 bits.
            let lengths = RawXattr {
                name_length: (xattr.name.len() as u16).into(),
                value_length: (xattr.value.len() as u16).into(),
            };
            self.put(kind, &[lengths.as_bytes(), &xattr.name, &xattr.value]);
        }
    }

    /// Nothing at all for a mapping without runs, as SPDK does.
    fn put_runs(&mut self, runs: &Runs) {
        let mut rest = runs.as_slice();
        while !rest.is_empty() {
            if self.room() < HEADER + size_of::<RawRun>() {
                self.new_page();
            }
            let fit = (self.room() - HEADER) / size_of::<RawRun>();
            let (now, later) = rest.split_at(fit.min(rest.len()));
            let raw: Vec<RawRun> = now
                .iter()
                .map(|run| RawRun {
                    first_cluster: run.first.map_or(0, ClusterIndex::get).into(),
                    count: run.count.0.into(),
                })
                .collect();
            self.put(DESCRIPTOR_RLE, &[raw.as_bytes()]);
            rest = later;
        }
    }

    /// At least one descriptor, even for a table without places.
    fn put_table(&mut self, table: &ExtentTable) {
        let entries = table_entries(table);
        let head = RawExtentTable { num_clusters: u64::from(table.clusters().0).into() };
        let mut rest = entries.as_slice();
        loop {
            if self.room() < HEADER + size_of::<RawExtentTable>() {
                self.new_page();
            }
            let room = self.room() - HEADER - size_of::<RawExtentTable>();
            let fit = room / size_of::<RawTableEntry>();
            let (now, later) = rest.split_at(fit.min(rest.len()));
            self.put(DESCRIPTOR_EXTENT_TABLE, &[head.as_bytes(), now.as_bytes()]);
            if later.is_empty() {
                return;
            }
            rest = later;
            self.new_page();
        }
    }
}

/// The elements of a table: places without an extent page are counted together.
fn table_entries(table: &ExtentTable) -> Vec<RawTableEntry> {
    let mut entries = Vec::new();
    let mut at = 0;
    let end = (TableSlot(table.slots()), None);
    for (slot, page) in table.iter().map(|(slot, page)| (slot, Some(page))).chain([end]) {
        if slot.0 > at {
            entries.push(RawTableEntry { page: 0.into(), count: (slot.0 - at).into() });
        }
        if let Some(page) = page {
            entries.push(RawTableEntry { page: page.0.into(), count: 1.into() });
            at = slot.0 + 1;
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvol::format::{
        BlobError, BlobReader, Layout, LayoutOptions, Medium, Oddity, PageProblem, ReadBlob, Run,
        blob_id,
    };
    use crate::units::{BlobId, BlockCount, BlockSize, ByteCount, ClusterCount, PageIndex};

    const ROOT: PageIndex = PageIndex(9);

    fn layout() -> Layout {
        let options = LayoutOptions { cluster_size: ByteCount(65536), ..LayoutOptions::default() };
        Layout::create(Medium::new(BlockSize::B4096, BlockCount(320_000)), options).unwrap()
    }

    fn read(
        layout: &Layout,
        chain: &[PageIndex],
        pages: &[PageBytes],
    ) -> Result<ReadBlob, BlobError> {
        let mut reader = BlobReader::start(layout, ROOT, &pages[0])?;
        while let Some(next) = reader.next_page() {
            let place = chain.iter().position(|page| *page == next);
            reader.add(&place.map_or([0; 4096], |place| pages[place + 1]))?;
        }
        reader.finish()
    }

    /// A blob with everything in it, in amounts that need one page or many.
    fn random_blob(random: &mut fastrand::Rng, layout: &Layout) -> Blob {
        let mut blob = Blob::new(blob_id(ROOT));
        blob.flags.thin = random.bool();
        blob.flags.read_only = random.bool();
        blob.flags.unknown_data_read_only = u64::from(random.u8(..)) << 8;
        for number in 0..random.usize(0..20) {
            let value: Vec<u8> = (0..random.usize(0..700)).map(|_| random.u8(..)).collect();
            blob.xattrs.set(format!("attribute{number}").as_bytes(), &value).unwrap();
        }
        if random.bool() {
            blob.set_parent(Some(blob_id(PageIndex(random.u32(0..100)))));
        }
        if random.bool() {
            blob.set_external_parent(Some(b"some device")).unwrap();
        }
        if random.bool() {
            let mut runs = Runs::new();
            for _ in 0..random.usize(0..2000) {
                let data = layout.metadata_clusters().0..layout.clusters().0 - 8;
                let first = random.bool().then(|| ClusterIndex(random.u32(data)));
                runs.push(Run { first, count: ClusterCount(random.u32(1..8)) });
            }
            blob.mapping = Mapping::Rle(runs);
        } else {
            let mut table = ExtentTable::new(ClusterCount(random.u32(0..2_000_000)));
            for slot in 0..table.slots() {
                if random.u8(0..4) == 0 {
                    table.set(TableSlot(slot), PageIndex(random.u32(1..layout.metadata_pages())));
                }
            }
            blob.mapping = Mapping::Table(table);
        }
        let chain = blob.pages_needed() - 1;
        blob.chain = (0..chain).map(|place| PageIndex(1000 + 3 * place as u32)).collect();
        blob
    }

    #[test]
    fn random_blobs_read_back() {
        let seed = 0x626c_6f62;
        let mut random = fastrand::Rng::with_seed(seed);
        let layout = layout();
        let mut long = 0;
        for round in 0..300 {
            let blob = random_blob(&mut random, &layout);
            let pages = blob.encode().unwrap();
            long += u32::from(pages.len() > 3);
            let back = read(&layout, &blob.chain, &pages).unwrap();
            assert_eq!(back.oddities, [], "seed {seed:#x}, round {round}");
            assert_eq!(back.blob, blob, "seed {seed:#x}, round {round}");
        }
        assert!(long > 50, "only {long} blobs needed more than three pages");
    }

    #[test]
    fn damaged_pages_never_panic() {
        let seed = 0x6675_7a7a;
        let mut random = fastrand::Rng::with_seed(seed);
        let layout = layout();
        let mut readable = 0;
        for _ in 0..3000 {
            let blob = random_blob(&mut random, &layout);
            let mut pages = blob.encode().unwrap();
            let hit = random.usize(0..pages.len());
            for _ in 0..random.usize(1..5) {
                let place = if random.bool() { 0..128 } else { 0..4096 };
                pages[hit][random.usize(place)] = random.u8(..);
            }
            seal(&mut pages[hit]);
            if let Ok(found) = read(&layout, &blob.chain, &pages) {
                readable += 1;
                let again = found.blob.pages_needed();
                assert!(again <= pages.len() + 1, "seed {seed:#x}: grew to {again} pages");
            }
        }
        assert!(readable > 100, "only {readable} damaged blobs could be read");
    }

    #[test]
    fn random_descriptors_never_panic() {
        let seed = 0x7061_6765;
        let mut random = fastrand::Rng::with_seed(seed);
        let layout = layout();
        for _ in 0..20_000 {
            let mut page = blank_page(blob_id(ROOT), 0);
            let mut at = DESCRIPTORS_OFFSET;
            for _ in 0..random.usize(1..6) {
                page[at] = random.u8(0..8);
                let length = random.usize(0..40);
                page[at + 1] = length as u8;
                random.fill(&mut page[at + 5..at + 5 + length]);
                at += 5 + length;
            }
            seal(&mut page);
            // Nothing to compare with: it must return.
            let _ = read(&layout, &[], &[page]);
            let _ = crate::lvol::format::ExtentPage::parse(&layout, &page);
        }
    }

    #[test]
    fn a_new_volume_looks_as_spdk_writes_it() {
        let mut blob = Blob::new(blob_id(ROOT));
        blob.xattrs.set(b"name", &[0; 64]).unwrap();
        blob.xattrs.set(b"uuid", &[0; 37]).unwrap();
        let [page] = blob.encode().unwrap().try_into().unwrap();
        let starts =
            [(16, 3, 24), (16 + 29, 2, 72), (16 + 29 + 77, 2, 45), (16 + 29 + 77 + 50, 5, 8)];
        for (offset, kind, length) in starts {
            assert_eq!((page[offset], page[offset + 1]), (kind, length), "at {offset}");
        }
        assert_eq!(&page[4088..4092], [0xff; 4]);
    }

    #[test]
    fn the_chain_must_fit() {
        let mut blob = Blob::new(blob_id(ROOT));
        blob.chain.push(PageIndex(3));
        assert_eq!(blob.encode(), Err(EncodeError::ChainLength { needed: 0, given: 1 }));
    }

    #[test]
    fn chains_are_checked() {
        let layout = layout();
        let mut blob = Blob::new(blob_id(ROOT));
        for name in [b"a", b"b", b"c"] {
            blob.xattrs.set(name, &[7; 3000]).unwrap();
        }
        blob.chain = vec![PageIndex(4), PageIndex(5)];
        let pages = blob.encode().unwrap();
        let problem = |chain: &[u32], damage: &dyn Fn(&mut Vec<PageBytes>)| {
            let chain: Vec<_> = chain.iter().map(|page| PageIndex(*page)).collect();
            let mut pages = pages.clone();
            damage(&mut pages);
            pages.iter_mut().for_each(seal);
            read(&layout, &chain, &pages).unwrap_err()
        };
        let swapped = problem(&[5, 4], &|_| {});
        let expected = PageProblem::Sequence { expected: 1, found: 2 };
        assert_eq!(swapped, BlobError { page: PageIndex(4), problem: expected });
        let lost = problem(&[4, 6], &|_| {});
        assert_eq!(lost, BlobError { page: PageIndex(5), problem: PageProblem::Erased });
        let stale = problem(&[4, 5], &|pages| pages[2][0] = 77);
        assert!(matches!(stale.problem, PageProblem::Owner { .. }), "{stale}");
        let outside = problem(&[4, 5], &|pages| pages[2][4088..4091].fill(0));
        assert!(matches!(outside.problem, PageProblem::PageNumber { .. }), "{outside}");
        let looping = problem(&[4, 5], &|pages| {
            pages[2][4088..4092].copy_from_slice(&4_u32.to_le_bytes());
        });
        let expected = PageProblem::Sequence { expected: 3, found: 1 };
        assert_eq!(looping, BlobError { page: PageIndex(4), problem: expected });
    }

    /// A descriptor's type and body.
    type Body = (u8, Vec<u8>);

    /// A root page with these descriptors.
    fn page_of(descriptors: &[Body]) -> PageBytes {
        let mut packer = Packer::new(&Blob::new(blob_id(ROOT)));
        for (kind, body) in descriptors {
            packer.put(*kind, &[body]);
        }
        let mut page = packer.pages[0];
        seal(&mut page);
        page
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn impossible_mappings_are_refused() {
        use PageProblem as P;
        let layout = layout();
        let outside = layout.clusters().0;
        let cases: Vec<(Vec<Body>, PageProblem)> = vec![
            (vec![(1, words(&[0, 5])), (5, words(&[0, 0]))], P::DescriptorPlace { kind: 5 }),
            (vec![(5, words(&[0, 0])), (1, words(&[0, 5]))], P::DescriptorPlace { kind: 1 }),
            (vec![(6, words(&[0, 0]))], P::DescriptorPlace { kind: 6 }),
            (
                vec![(1, words(&[outside - 1, 2]))],
                P::ClusterNumber { cluster: ClusterIndex(outside - 1) },
            ),
            (vec![(1, words(&[1, 1]))], P::ClusterNumber { cluster: ClusterIndex(1) }),
            (
                vec![(1, words(&[outside - 1, u32::MAX]))],
                P::ClusterNumber { cluster: ClusterIndex(outside - 1) },
            ),
            (vec![(1, words(&[0, u32::MAX, 0, 1]))], P::TooManyClusters { clusters: 1 << 32 }),
            (vec![(5, words(&[0, 1]))], P::TooManyClusters { clusters: 1 << 32 }),
            (vec![(5, words(&[1, 0]))], P::ExtentTable { expected: 1, found: 0 }),
            (
                vec![(5, words(&[1, 0, 0, u32::MAX]))],
                P::ExtentTable { expected: 1, found: u32::MAX.into() },
            ),
            (
                vec![(5, words(&[1024, 0, 0, 1])), (5, words(&[1025, 0, 0, 1]))],
                P::ExtentTable { expected: 1024, found: 1025 },
            ),
            (vec![(5, words(&[1024, 0, 7, 2]))], P::TableCount { page: PageIndex(7), count: 2 }),
            (vec![(5, words(&[1, 0, u32::MAX, 1]))], P::PageNumber { page: PageIndex(u32::MAX) }),
            (vec![(3, words(&[16, 0, 0, 0, 0, 0]))], P::UnknownFlags { flags: 16 }),
            (
                vec![(4, b"\x04\0\x01\0SNAPx".to_vec())],
                P::InternalXattr { name: "SNAP", length: 1 },
            ),
        ];
        for (descriptors, problem) in cases {
            let found = read(&layout, &[], &[page_of(&descriptors)]).unwrap_err();
            assert_eq!(found, BlobError { page: ROOT, problem }, "{descriptors:?}");
        }
    }

    #[test]
    fn oddities_are_reported() {
        let layout = layout();
        let page = page_of(&[
            (3, words(&[2 | 4, 0, 0, 0, 0, 0])),
            (77, vec![1, 2, 3]),
            (2, b"\x01\0\x01\0xy".to_vec()),
            (2, b"\x01\0\x01\0xz".to_vec()),
        ]);
        let read = read(&layout, &[], &[page]).unwrap();
        assert_eq!(read.blob.xattrs.get(b"x"), Some(&b"y"[..]));
        assert_eq!(
            read.oddities,
            [
                Oddity::UnknownDescriptor { page: ROOT, kind: 77, length: 3 },
                Oddity::DuplicateXattr { name: b"x".to_vec() },
                Oddity::InternalXattrFlag { flag: true },
                Oddity::ExtentTableFlag { flag: true },
            ]
        );
    }

    #[test]
    fn a_huge_sparse_table_takes_little() {
        let layout = layout();
        let page = page_of(&[
            (3, words(&[1 | 4, 0, 0, 0, 0, 0])),
            (5, words(&[u32::MAX, 0, 0, (1 << 23) - 1, 50, 1])),
        ]);
        let read = read(&layout, &[], &[page]).unwrap();
        let Mapping::Table(table) = &read.blob.mapping else { panic!("a table was written") };
        assert_eq!(table.iter().len(), 1);
        assert_eq!(read.blob.encode().unwrap(), [page]);
        assert_eq!(read.blob.id, BlobId(0x1_0000_0009));
    }
}
