//! Which clusters and metadata pages of a store are taken.
//!
//! Pure bookkeeping: lowest free number first, as SPDK does, so that a volume that is written in
//! order lies in order. A cluster or page that is given up keeps its bit until the commit that
//! drops it is durable and everybody who may still use it is done; only then
//! [`Allocator::free_cluster`] and [`Allocator::free_page`] are called.

use crate::units::{ClusterCount, ClusterIndex, PageIndex};

use super::error::{Error, Resource};
use super::format::{BitSet, Layout, MaskKind};

/// Most metadata pages that are kept from what takes pages for good.
const RESERVED_PAGES: u32 = 8;
/// Of how many pages one is kept, where that is less.
const PAGES_PER_RESERVED: u32 = 64;

/// The used clusters and metadata pages of a store.
#[derive(Clone, Debug)]
pub(super) struct Allocator {
    clusters: BitSet,
    pages: BitSet,
    /// No free cluster is below this.
    cluster_hint: u32,
    /// No free page is below this, page 0 aside.
    page_hint: u32,
}

impl Allocator {
    /// Only what the metadata itself takes is used.
    pub(super) fn new(layout: &Layout) -> Self {
        let mut clusters = BitSet::new(layout.mask_bits(MaskKind::UsedClusters));
        clusters.insert_run(0, layout.metadata_clusters().0);
        let pages = BitSet::new(layout.mask_bits(MaskKind::UsedPages));
        Self { clusters, pages, cluster_hint: 0, page_hint: 1 }
    }

    /// Takes the lowest free cluster.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn take_cluster(&mut self) -> Result<ClusterIndex, Error> {
        let what = Resource::Cluster;
        let free = self.clusters.first_clear(self.cluster_hint).ok_or(Error::NoSpace { what })?;
        self.clusters.insert(free);
        self.cluster_hint = free + 1;
        Ok(ClusterIndex(free))
    }

    /// Takes the lowest free page for a root. Page 0 may be a root, and nothing else.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn take_root_page(&mut self) -> Result<PageIndex, Error> {
        if self.pages.insert(0) {
            return Ok(PageIndex(0));
        }
        self.take_page()
    }

    /// Takes the lowest free page that is not page 0.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn take_page(&mut self) -> Result<PageIndex, Error> {
        let what = Resource::MetadataPage;
        let free = self.pages.first_clear(self.page_hint).ok_or(Error::NoSpace { what })?;
        self.pages.insert(free);
        self.page_hint = free + 1;
        Ok(PageIndex(free))
    }

    /// Marks a cluster used; false if it was, or if there is no such cluster.
    pub(super) fn claim_cluster(&mut self, cluster: ClusterIndex) -> bool {
        self.clusters.insert(cluster.0)
    }

    /// Marks consecutive clusters used, as far as there are such clusters.
    pub(super) fn claim_clusters(&mut self, first: ClusterIndex, count: ClusterCount) {
        self.clusters.insert_run(first.0, count.0);
    }

    /// Marks a page used; false if it was, or if there is no such page.
    pub(super) fn claim_page(&mut self, page: PageIndex) -> bool {
        self.pages.insert(page.0)
    }

    /// Gives a cluster back.
    ///
    /// # Panics
    /// If it was free: something was given back twice.
    pub(super) fn free_cluster(&mut self, cluster: ClusterIndex) {
        assert!(self.clusters.remove(cluster.0), "cluster {cluster} was free already");
        self.cluster_hint = self.cluster_hint.min(cluster.0);
    }

    /// Gives a page back.
    ///
    /// # Panics
    /// If it was free: something was given back twice.
    pub(super) fn free_page(&mut self, page: PageIndex) {
        assert!(self.pages.remove(page.0), "metadata page {page} was free already");
        self.page_hint = self.page_hint.min(page.0.max(1));
    }

    /// There are more clusters now: those up to `clusters` are free.
    pub(super) fn grow(&mut self, clusters: ClusterCount) {
        assert!(clusters.0 >= self.clusters.len(), "a store does not shrink");
        self.clusters.resize(clusters.0);
    }

    pub(super) fn free_clusters(&self) -> ClusterCount {
        ClusterCount(self.clusters.clear_count())
    }

    /// How many pages [`Allocator::take_page`] can still give.
    pub(super) fn free_pages(&self) -> u32 {
        self.pages.clear_count() - u32::from(!self.pages.contains(0))
    }

    /// How many of them new volumes and first writes may have. The others are kept for what gives
    /// space back, for renames and attributes, and for the commit of what is dirty.
    pub(super) fn spare_pages(&self) -> u32 {
        let reserved = RESERVED_PAGES.min(self.pages.len() / PAGES_PER_RESERVED);
        self.free_pages().saturating_sub(reserved)
    }

    pub(super) fn used_clusters(&self) -> &BitSet {
        &self.clusters
    }

    pub(super) fn used_pages(&self) -> &BitSet {
        &self.pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvol::format::{LayoutOptions, Medium};
    use crate::units::{BlockCount, BlockSize, ByteCount};

    fn allocator() -> (Allocator, Layout) {
        let medium = Medium::new(BlockSize::B4096, BlockCount(1024));
        let options = LayoutOptions { cluster_size: ByteCount(65536), metadata_ratio_percent: 100 };
        let layout = Layout::create(medium, options).unwrap();
        (Allocator::new(&layout), layout)
    }

    #[test]
    fn the_lowest_free_number_is_taken_until_none_is_left() {
        let (mut allocator, layout) = allocator();
        let first = layout.metadata_clusters().0;
        for expected in first..layout.clusters().0 {
            assert_eq!(allocator.take_cluster(), Ok(ClusterIndex(expected)));
        }
        let full = Error::NoSpace { what: Resource::Cluster };
        assert_eq!(allocator.take_cluster(), Err(full.clone()));
        allocator.free_cluster(ClusterIndex(first + 3));
        assert_eq!(allocator.free_clusters(), ClusterCount(1));
        assert_eq!(allocator.take_cluster(), Ok(ClusterIndex(first + 3)));
        assert_eq!(allocator.take_cluster(), Err(full));
    }

    #[test]
    fn page_0_is_only_ever_a_root() {
        let (mut allocator, layout) = allocator();
        assert_eq!(allocator.take_page(), Ok(PageIndex(1)));
        assert_eq!(allocator.take_root_page(), Ok(PageIndex(0)));
        assert_eq!(allocator.take_root_page(), Ok(PageIndex(2)));
        allocator.free_page(PageIndex(0));
        allocator.free_page(PageIndex(1));
        assert_eq!(allocator.free_pages(), layout.metadata_pages() - 2);
        assert_eq!(allocator.take_page(), Ok(PageIndex(1)));
        assert_eq!(allocator.take_root_page(), Ok(PageIndex(0)));
    }
}
