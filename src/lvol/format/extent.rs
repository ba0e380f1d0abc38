//! The two ways a blob says where its clusters are: runs in its own pages, as old stores do, or a
//! table of extent pages with 512 clusters each.

use std::collections::BTreeMap;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::units::{BlobId, ClusterCount, ClusterIndex, PageIndex, VolumeCluster};

use super::page::{DESCRIPTORS_OFFSET, Descriptor, Page, PageProblem, blank_page, put_descriptor};
use super::raw::{DESCRIPTOR_EXTENT_PAGE, RawExtentPage};
use super::{Layout, PageBytes, seal};

/// Clusters that an extent page maps; the last page of a blob may hold fewer.
pub const EXTENT_PAGE_CLUSTERS: u32 = 512;

/// Consecutive clusters of a blob that are consecutive on the device or not allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first cluster on the device; `None`: not allocated.
    pub first: Option<ClusterIndex>,
    /// How many clusters; not 0.
    pub count: ClusterCount,
}

impl Run {
    /// Whether `next` continues this run.
    fn continues(self, next: Self) -> bool {
        match (self.first, next.first) {
            (None, None) => true,
            (Some(first), Some(next)) => first.checked_add(self.count.0) == Some(next),
            _ => false,
        }
    }
}

/// A mapping as runs, none of which continues the one before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    runs: Vec<Run>,
    clusters: ClusterCount,
}

impl Runs {
    /// A mapping of no clusters.
    #[must_use]
    pub const fn new() -> Self {
        Self { runs: Vec::new(), clusters: ClusterCount(0) }
    }

    /// Appends a run; `None`, and nothing happens, if it is empty or if 32 bits could not count
    /// all clusters any more.
    pub fn push(&mut self, run: Run) -> Option<()> {
        let clusters = self.clusters.checked_add(run.count.0)?;
        if run.count.0 == 0 {
            return None;
        }
        match self.runs.last_mut().filter(|last| last.continues(run)) {
            Some(last) => last.count = last.count.checked_add(run.count.0)?,
            None => self.runs.push(run),
        }
        self.clusters = clusters;
        Some(())
    }

    /// The runs in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Run] {
        &self.runs
    }

    /// Clusters of all runs together.
    #[must_use]
    pub const fn clusters(&self) -> ClusterCount {
        self.clusters
    }
}

/// A place in a blob's extent table; place k maps the blob's clusters from 512k.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableSlot(pub u32);

impl TableSlot {
    /// The place that maps `cluster`.
    #[must_use]
    pub const fn of(cluster: VolumeCluster) -> Self {
        Self(cluster.0 / EXTENT_PAGE_CLUSTERS)
    }

    /// The first cluster that it maps. Meaningful for a slot of a table.
    #[must_use]
    pub const fn first_cluster(self) -> VolumeCluster {
        VolumeCluster(self.0.saturating_mul(EXTENT_PAGE_CLUSTERS))
    }

    /// Where in its extent page `cluster` stands.
    #[must_use]
    pub const fn index_of(cluster: VolumeCluster) -> usize {
        (cluster.0 % EXTENT_PAGE_CLUSTERS) as usize
    }
}

/// A blob's extent table: which metadata page is the extent page of each place.
///
/// Only places that have an extent page take memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentTable {
    clusters: ClusterCount,
    pages: BTreeMap<TableSlot, PageIndex>,
}

impl ExtentTable {
    /// The table of a blob of `clusters` clusters, none of them allocated.
    #[must_use]
    pub const fn new(clusters: ClusterCount) -> Self {
        Self { clusters, pages: BTreeMap::new() }
    }

    /// The size of the blob.
    #[must_use]
    pub const fn clusters(&self) -> ClusterCount {
        self.clusters
    }

    /// Changes the size of the blob. Extent pages beyond it are dropped and returned; the entries
    /// of the last one are the caller's to adjust.
    pub fn set_clusters(&mut self, clusters: ClusterCount) -> Vec<PageIndex> {
        self.clusters = clusters;
        let end = TableSlot(self.slots());
        self.pages.split_off(&end).into_values().collect()
    }

    /// How many places the table has.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.clusters.0.div_ceil(EXTENT_PAGE_CLUSTERS)
    }

    /// How many clusters the extent page of `slot` maps: 512, in the last place what is left, and
    /// beyond it 0.
    #[must_use]
    pub const fn entries_of(&self, slot: TableSlot) -> u32 {
        let left = self.clusters.0.saturating_sub(slot.first_cluster().0);
        if left < EXTENT_PAGE_CLUSTERS { left } else { EXTENT_PAGE_CLUSTERS }
    }

    /// The extent page of a place.
    #[must_use]
    pub fn get(&self, slot: TableSlot) -> Option<PageIndex> {
        self.pages.get(&slot).copied()
    }

    /// Gives a place another extent page; returns the one it had.
    ///
    /// # Panics
    /// If the table has no such place, or for page 0, which is never an extent page.
    pub fn set(&mut self, slot: TableSlot, page: PageIndex) -> Option<PageIndex> {
        assert!(slot.0 < self.slots(), "slot {slot:?} of a table of {} slots", self.slots());
        assert!(page.0 != 0, "page 0 means that there is no extent page");
        self.pages.insert(slot, page)
    }

    /// Takes the extent page of a place away.
    pub fn clear(&mut self, slot: TableSlot) -> Option<PageIndex> {
        self.pages.remove(&slot)
    }

    /// The places that have an extent page, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (TableSlot, PageIndex)> + '_ {
        self.pages.iter().map(|(slot, page)| (*slot, *page))
    }
}

/// The content of an extent page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentPage {
    /// The blob that wrote it. A snapshot takes over pages of the volume as they are, so this may
    /// be a later owner's relative.
    pub blob: BlobId,
    /// The blob's cluster that the first entry is for.
    pub first: VolumeCluster,
    /// The clusters on the device; `None`: not allocated. 1 to 512 of them.
    pub clusters: Vec<Option<ClusterIndex>>,
}

impl ExtentPage {
    /// Reads an extent page and checks every cluster number.
    ///
    /// # Errors
    /// [`PageProblem`] for bytes that are no intact extent page of a store of this layout.
    pub fn parse(layout: &Layout, bytes: &PageBytes) -> Result<Self, PageProblem> {
        let page = Page::parse(bytes)?;
        let (first, clusters) = entries(page)?;
        let clusters = clusters.iter().map(|number| check_cluster(layout, number.get()));
        let clusters = clusters.collect::<Result<_, _>>()?;
        Ok(Self { blob: page.blob(), first, clusters })
    }

    /// The bytes to write.
    ///
    /// # Panics
    /// If there is no entry or more than 512.
    #[must_use]
    pub fn encode(&self) -> PageBytes {
        let entries = self.clusters.len();
        assert!(
            (1..=EXTENT_PAGE_CLUSTERS as usize).contains(&entries),
            "an extent page of {entries} entries"
        );
        let mut bytes = blank_page(self.blob, 0);
        let start = RawExtentPage { start_cluster_idx: self.first.0.into() };
        let rest = put_descriptor(
            &mut bytes[DESCRIPTORS_OFFSET..],
            DESCRIPTOR_EXTENT_PAGE,
            size_of_val(&start) + entries * size_of::<U32>(),
            &[start.as_bytes()],
        );
        for (place, cluster) in rest.chunks_exact_mut(size_of::<U32>()).zip(&self.clusters) {
            place.copy_from_slice(&cluster.map_or(0, ClusterIndex::get).to_le_bytes());
        }
        seal(&mut bytes);
        bytes
    }
}

/// Consecutive entries of an extent page that are consecutive on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentRun {
    /// The first cluster on the device.
    pub device: ClusterIndex,
    /// The first entry's place in the page.
    pub index: u16,
    /// How many; not 0.
    pub count: u16,
}

impl ExtentRun {
    const NONE: Self = Self { device: ClusterIndex(0), index: 0, count: 0 };

    /// Whether this entry is the next one.
    fn is_continued(&self, index: u16, device: ClusterIndex) -> bool {
        self.index + self.count == index
            && self.device.checked_add(self.count.into()) == Some(device)
    }
}

/// The content of an extent page as runs: what joining a mapping needs, and little where the page
/// maps little.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentRuns {
    /// The blob's cluster that the first entry is for.
    pub first: VolumeCluster,
    /// Entries, allocated or not: 1 to 512.
    pub entries: u32,
    /// What is allocated, ascending in `index`.
    pub runs: Vec<ExtentRun>,
}

impl ExtentRuns {
    /// As [`ExtentPage::parse`].
    ///
    /// # Errors
    /// As for [`ExtentPage::parse`].
    pub fn parse(layout: &Layout, bytes: &PageBytes) -> Result<Self, PageProblem> {
        Self::read(layout, Page::parse(bytes)?)
    }

    /// The same of a page whose checksum was checked.
    ///
    /// # Errors
    /// As for [`ExtentPage::parse`], the checksum aside.
    pub fn read(layout: &Layout, page: Page<'_>) -> Result<Self, PageProblem> {
        let (first, clusters) = entries(page)?;
        // Many are read and kept: they grow here, and take memory once.
        let mut runs = [ExtentRun::NONE; EXTENT_PAGE_CLUSTERS as usize];
        let mut found = 0;
        for (index, number) in (0..).zip(clusters) {
            let Some(device) = check_cluster(layout, number.get())? else { continue };
            match runs[..found].last_mut().filter(|last| last.is_continued(index, device)) {
                Some(last) => last.count += 1,
                None => {
                    runs[found] = ExtentRun { device, index, count: 1 };
                    found += 1;
                }
            }
        }
        Ok(Self { first, entries: clusters.len() as u32, runs: runs[..found].to_vec() })
    }

    /// The clusters of the device that are allocated, in order.
    pub fn clusters(&self) -> impl Iterator<Item = ClusterIndex> + '_ {
        self.runs.iter().flat_map(|run| {
            let first = run.device.0;
            (first..first + u32::from(run.count)).map(ClusterIndex)
        })
    }
}

/// What an extent page says, as far as a page alone can be checked: the blob's first cluster and 1
/// to 512 numbers of the device's.
fn entries(page: Page<'_>) -> Result<(VolumeCluster, &[U32]), PageProblem> {
    let wrong = PageProblem::DescriptorPlace { kind: DESCRIPTOR_EXTENT_PAGE };
    if page.sequence() != 0 {
        return Err(PageProblem::Sequence { expected: 0, found: page.sequence() });
    }
    if let Some(page) = page.next() {
        return Err(PageProblem::PageNumber { page });
    }
    let mut descriptors = page.descriptors();
    let Some(Descriptor::ExtentPage { first, clusters }) = descriptors.next().transpose()? else {
        return Err(wrong);
    };
    if descriptors.next().transpose()?.is_some() {
        return Err(wrong);
    }
    let entries = clusters.len();
    if entries > EXTENT_PAGE_CLUSTERS as usize {
        return Err(PageProblem::ExtentEntries { entries });
    }
    Ok((VolumeCluster(first), clusters))
}

/// A cluster number from the medium; 0: not allocated.
fn check_cluster(layout: &Layout, number: u32) -> Result<Option<ClusterIndex>, PageProblem> {
    let cluster = ClusterIndex(number);
    if number == 0 {
        Ok(None)
    } else if layout.is_data_cluster(cluster) {
        Ok(Some(cluster))
    } else {
        Err(PageProblem::ClusterNumber { cluster })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvol::format::{LayoutOptions, Medium, blob_id};
    use crate::units::{BlockCount, BlockSize, ByteCount};

    fn layout() -> Layout {
        let options = LayoutOptions { cluster_size: ByteCount(65536), ..LayoutOptions::default() };
        Layout::create(Medium::new(BlockSize::B4096, BlockCount(16384)), options).unwrap()
    }

    #[test]
    fn runs_merge() {
        let run = |first: u32, count| Run {
            first: (first != 0).then_some(ClusterIndex(first)),
            count: ClusterCount(count),
        };
        let mut runs = Runs::new();
        for (first, count) in [(5, 2), (7, 1), (9, 1), (0, 3), (0, 4), (10, 1)] {
            assert_eq!(runs.push(run(first, count)), Some(()));
        }
        assert_eq!(runs.as_slice(), [run(5, 3), run(9, 1), run(0, 7), run(10, 1)]);
        assert_eq!(runs.clusters(), ClusterCount(12));
        assert_eq!(runs.push(run(0, u32::MAX)), None);
        assert_eq!(runs.push(run(3, 0)), None);
        assert_eq!(runs.clusters(), ClusterCount(12));
    }

    #[test]
    fn a_table_knows_its_places() {
        let mut table = ExtentTable::new(ClusterCount(1025));
        assert_eq!(table.slots(), 3);
        assert_eq!(table.entries_of(TableSlot(1)), 512);
        assert_eq!(table.entries_of(TableSlot(2)), 1);
        assert_eq!(table.entries_of(TableSlot(3)), 0);
        assert_eq!(table.entries_of(TableSlot(u32::MAX)), 0);
        assert_eq!(table.set(TableSlot(0), PageIndex(4)), None);
        assert_eq!(table.set(TableSlot(2), PageIndex(5)), None);
        assert_eq!(table.set(TableSlot(2), PageIndex(6)), Some(PageIndex(5)));
        assert_eq!(table.set_clusters(ClusterCount(512)), [PageIndex(6)]);
        assert_eq!(table.iter().collect::<Vec<_>>(), [(TableSlot(0), PageIndex(4))]);
        assert_eq!(ExtentTable::new(ClusterCount(u32::MAX)).slots(), 1 << 23);
    }

    #[test]
    fn random_extent_pages_read_back() {
        let seed = 0x6578_7465;
        let mut random = fastrand::Rng::with_seed(seed);
        let layout = layout();
        let data = layout.metadata_clusters().0..layout.clusters().0;
        for _ in 0..500 {
            let entries = random.usize(1..=512);
            let page = ExtentPage {
                blob: blob_id(PageIndex(random.u32(0..100))),
                first: VolumeCluster(512 * random.u32(0..100)),
                clusters: (0..entries)
                    .map(|_| random.bool().then(|| ClusterIndex(random.u32(data.clone()))))
                    .collect(),
            };
            let bytes = page.encode();
            assert_eq!(ExtentPage::parse(&layout, &bytes), Ok(page), "seed {seed:#x}");
        }
    }

    #[test]
    fn the_runs_of_an_extent_page_are_its_entries() {
        let seed = 0x7275_6e73;
        let mut random = fastrand::Rng::with_seed(seed);
        let layout = layout();
        let data = layout.metadata_clusters().0..layout.clusters().0;
        for _ in 0..500 {
            let mut clusters = Vec::new();
            while clusters.len() < 512 && (clusters.is_empty() || random.u8(0..20) > 0) {
                // What continues the entry before, a hole, or anything.
                let before =
                    clusters.last().copied().flatten().map(|last: ClusterIndex| last.0 + 1);
                let next = [before, None, Some(random.u32(data.clone()))][random.usize(0..3)];
                clusters.push(next.filter(|next| data.contains(next)).map(ClusterIndex));
            }
            let first = VolumeCluster(512 * random.u32(0..100));
            let page = ExtentPage { blob: blob_id(PageIndex(3)), first, clusters };
            let runs = ExtentRuns::parse(&layout, &page.encode()).unwrap();
            assert_eq!((runs.first, runs.entries as usize), (first, page.clusters.len()));
            let mut read = vec![None; page.clusters.len()];
            for pair in runs.runs.windows(2) {
                let (end, next) = (pair[0].index + pair[0].count, pair[1].index);
                let continued = pair[0].device.0 + u32::from(pair[0].count) == pair[1].device.0;
                assert!(end < next || end == next && !continued, "seed {seed:#x}: {pair:?}");
            }
            for run in &runs.runs {
                for offset in 0..run.count {
                    let device = ClusterIndex(run.device.0 + u32::from(offset));
                    read[usize::from(run.index + offset)] = Some(device);
                }
            }
            assert_eq!(read, page.clusters, "seed {seed:#x}");
            assert!(runs.clusters().eq(page.clusters.into_iter().flatten()), "seed {seed:#x}");
        }
    }

    #[test]
    fn extent_pages_are_checked() {
        let layout = layout();
        let good = ExtentPage {
            blob: blob_id(PageIndex(3)),
            first: VolumeCluster(0),
            clusters: vec![None, Some(ClusterIndex(70))],
        };
        let damaged = |change: &dyn Fn(&mut PageBytes)| {
            let mut bytes = good.encode();
            change(&mut bytes);
            seal(&mut bytes);
            let problem = ExtentPage::parse(&layout, &bytes).unwrap_err();
            assert_eq!(ExtentRuns::parse(&layout, &bytes).unwrap_err(), problem);
            problem
        };
        let sequence = damaged(&|bytes| bytes[8] = 1);
        assert_eq!(sequence, PageProblem::Sequence { expected: 0, found: 1 });
        let next = damaged(&|bytes| bytes[4088..4092].fill(0));
        assert_eq!(next, PageProblem::PageNumber { page: PageIndex(0) });
        for cluster in [1, 1024, u32::MAX] {
            let found = damaged(&|bytes| bytes[25..29].copy_from_slice(&cluster.to_le_bytes()));
            assert_eq!(found, PageProblem::ClusterNumber { cluster: ClusterIndex(cluster) });
        }
        let second = damaged(&|bytes| bytes[33] = 9);
        assert!(matches!(second, PageProblem::DescriptorPlace { .. }), "{second}");
        let other = damaged(&|bytes| bytes[16] = 9);
        assert!(matches!(other, PageProblem::DescriptorPlace { .. }), "{other}");
        let long =
            damaged(&|bytes| bytes[17..21].copy_from_slice(&(4 + 513 * 4_u32).to_le_bytes()));
        assert_eq!(long, PageProblem::ExtentEntries { entries: 513 });
    }
}
