//! Where everything lies on a device: the computation when a store is made, the checks when one is
//! opened, and the conversions that both need.
//!
//! Invariant of [`Layout`]: every region lies inside the store and before the first data cluster,
//! regions do not overlap, and each bitmap's region holds as many bits as it must. So conversions
//! of an index that is in range cannot overflow.

use crate::units::{
    BlockCount, BlockSize, ByteCount, ByteOffset, ClusterCount, ClusterIndex, Lba, PageIndex,
};

use super::bitmap::{MASK_HEADER_BYTES, MaskKind};
use super::{STRUCTURE_SIZE, raw::RawSuperBlock};

/// The smallest metadata page and the granularity of cluster sizes, in bytes.
const PAGE_UNIT: u32 = STRUCTURE_SIZE as u32;

/// What the format needs to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Medium {
    /// The smallest unit the device reads and writes.
    pub block_size: BlockSize,
    /// The unit the device works in inside; a multiple of `block_size`, often equal to it.
    pub physical_block_size: BlockSize,
    /// How many blocks of `block_size` it has.
    pub blocks: BlockCount,
}

impl Medium {
    /// A medium whose physical blocks are its logical blocks.
    #[must_use]
    pub const fn new(block_size: BlockSize, blocks: BlockCount) -> Self {
        Self { block_size, physical_block_size: block_size, blocks }
    }

    /// The size in bytes, or `None` if that is more than 64 bits hold.
    #[must_use]
    pub const fn size(self) -> Option<ByteCount> {
        self.block_size.bytes_in(self.blocks)
    }
}

/// What may be chosen when a store is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutOptions {
    /// The allocation unit: a multiple of 4096, of the block size and of the metadata page, below
    /// 4 GiB.
    pub cluster_size: ByteCount,
    /// Metadata pages per hundred clusters.
    pub metadata_ratio_percent: u32,
}

impl Default for LayoutOptions {
    /// SPDK's defaults for an lvolstore: clusters of 4 MiB, one metadata page per cluster.
    fn default() -> Self {
        Self { cluster_size: ByteCount(4 << 20), metadata_ratio_percent: 100 }
    }
}

/// Consecutive pages of the metadata page size, counted from the start of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first page.
    pub first: u32,
    /// How many pages.
    pub pages: u32,
}

impl Region {
    /// The page after the last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.first as u64 + self.pages as u64
    }
}

/// Why a store cannot be made on, opened on or grown to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The device's size does not fit into 64 bits.
    #[error("the device claims more than 2^64 bytes")]
    DeviceTooLarge,
    /// The physical block is not a multiple of the logical block.
    #[error("the physical block of {physical} bytes is smaller than the block of {logical} bytes")]
    PhysicalBlock {
        /// Bytes.
        physical: BlockSize,
        /// Bytes.
        logical: BlockSize,
    },
    /// The metadata page is not a multiple of 4096 and of the block size.
    #[error("a metadata page of {bytes} bytes is not a multiple of 4096 and of the block size")]
    PageSize {
        /// The metadata page size.
        bytes: u32,
    },
    /// The cluster size breaks one of its rules.
    #[error(
        "a cluster of {bytes} bytes is not a multiple of {multiple} bytes, or is 4 GiB or more"
    )]
    ClusterSize {
        /// The cluster size.
        bytes: u64,
        /// What it must be a multiple of.
        multiple: u32,
    },
    /// The I/O unit is no block size or does not fit the device's block size.
    #[error("an I/O unit of {bytes} bytes is impossible on blocks of {block_size} bytes")]
    IoUnit {
        /// The I/O unit.
        bytes: u32,
        /// The device's block size.
        block_size: BlockSize,
    },
    /// Clusters are numbered with 32 bits.
    #[error("{clusters} clusters are more than 32 bits can number; choose larger clusters")]
    TooManyClusters {
        /// How many there would be.
        clusters: u64,
    },
    /// The device has no room for the metadata and one data cluster.
    #[error("{clusters} clusters cannot hold the metadata, which needs {metadata}")]
    TooSmall {
        /// Clusters of the device.
        clusters: u64,
        /// Clusters that the metadata needs.
        metadata: u64,
    },
    /// The ratio gives no metadata page, or more than 32 bits can number.
    #[error("a ratio of {percent}% gives {pages} metadata pages")]
    MetadataPages {
        /// The ratio.
        percent: u32,
        /// The pages it gives.
        pages: u64,
    },
    /// The store was made for a larger device.
    #[error("the store was made for {store} bytes, the device has {device}")]
    DeviceShrunk {
        /// Bytes of the store.
        store: u64,
        /// Bytes of the device.
        device: u64,
    },
    /// A region is empty, overlaps the one before it, or ends outside of the store.
    #[error("the {region} region (page {first}, {pages} pages) is empty, overlaps or ends outside")]
    Region {
        /// Which.
        region: &'static str,
        /// Its first page.
        first: u32,
        /// Its length.
        pages: u32,
    },
    /// A bitmap's region is too short for its bits.
    #[error("the {mask} bitmap has {pages} pages, too few for {bits} bits")]
    MaskTooShort {
        /// Which.
        mask: MaskKind,
        /// The length of its region.
        pages: u32,
        /// The bits it must hold.
        bits: u32,
    },
    /// A store cannot grow beyond what its cluster bitmap's region can hold, nor shrink.
    #[error("the store has {now} clusters and can have at most {limit}, not {wanted}")]
    GrowthLimit {
        /// Clusters now.
        now: ClusterCount,
        /// Clusters at most.
        limit: ClusterCount,
        /// Clusters asked for.
        wanted: u64,
    },
}

/// The layout of a store, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    size: ByteCount,
    block_size: BlockSize,
    io_unit: BlockSize,
    cluster_size: u32,
    page_size: u32,
    used_pages: Region,
    used_clusters: Region,
    used_blob_ids: Option<Region>,
    metadata: Region,
    clusters: ClusterCount,
    metadata_clusters: ClusterCount,
}

impl Layout {
    /// Computes the layout of a new store.
    ///
    /// # Errors
    /// [`LayoutError`] if the device or the options break a rule of the format.
    pub fn create(medium: Medium, options: LayoutOptions) -> Result<Self, LayoutError> {
        let size = medium.size().ok_or(LayoutError::DeviceTooLarge)?;
        let (logical, physical) = (medium.block_size, medium.physical_block_size);
        if physical < logical {
            return Err(LayoutError::PhysicalBlock { physical, logical });
        }
        let page_size = physical.bytes().max(PAGE_UNIT);
        let bytes = options.cluster_size.0;
        let multiple = page_size;
        let cluster_size = u32::try_from(bytes)
            .ok()
            .filter(|size| *size != 0 && size.is_multiple_of(multiple))
            .ok_or(LayoutError::ClusterSize { bytes, multiple })?;
        let clusters = count_clusters(size, cluster_size)?;

        let percent = options.metadata_ratio_percent;
        let pages = u64::from(percent) * u64::from(clusters.0) / 100;
        let metadata_pages = u32::try_from(pages)
            .ok()
            .filter(|pages| *pages != 0)
            .ok_or(LayoutError::MetadataPages { percent, pages })?;

        let page_mask = mask_pages(metadata_pages, page_size);
        let cluster_mask = mask_pages(clusters.0, page_size);
        let used_pages = Region { first: 1, pages: page_mask };
        let used_clusters = Region { first: 1 + page_mask, pages: cluster_mask };
        // The cluster bitmap gets at least the room of the page bitmap: growth ends where it does.
        let room = cluster_mask.max(page_mask);
        let used_blob_ids = Region { first: used_clusters.first + room, pages: page_mask };
        let metadata = Region { first: used_blob_ids.first + page_mask, pages: metadata_pages };
        let layout = Self {
            size,
            block_size: logical,
            io_unit: logical,
            cluster_size,
            page_size,
            used_pages,
            used_clusters,
            used_blob_ids: Some(used_blob_ids),
            metadata,
            clusters,
            metadata_clusters: ClusterCount(0),
        };
        let layout = layout.checked()?;
        if layout.data_clusters().0 == 0 {
            let clusters = clusters.0.into();
            return Err(LayoutError::TooSmall { clusters, metadata: clusters });
        }
        Ok(layout)
    }

    /// Checks the layout that a super block describes.
    pub(super) fn open(raw: &RawSuperBlock, medium: Medium) -> Result<Self, LayoutError> {
        let device = medium.size().ok_or(LayoutError::DeviceTooLarge)?;
        let block_size = medium.block_size;
        let size = ByteCount(or_default(raw.size.get(), device.0));
        if size > device {
            return Err(LayoutError::DeviceShrunk { store: size.0, device: device.0 });
        }
        let page_size = or_default(raw.md_page_size.get(), PAGE_UNIT);
        if !page_size.is_multiple_of(PAGE_UNIT) || !page_size.is_multiple_of(block_size.bytes()) {
            return Err(LayoutError::PageSize { bytes: page_size });
        }
        let cluster_size = raw.cluster_size.get();
        let multiple = PAGE_UNIT.max(block_size.bytes());
        if cluster_size < page_size || !cluster_size.is_multiple_of(multiple) {
            return Err(LayoutError::ClusterSize { bytes: cluster_size.into(), multiple });
        }
        let bytes = or_default(raw.io_unit_size.get(), PAGE_UNIT);
        let io_unit = BlockSize::new(bytes)
            .filter(|unit| *unit >= block_size && cluster_size.is_multiple_of(unit.bytes()))
            .ok_or(LayoutError::IoUnit { bytes, block_size })?;
        let region = |first: u32, pages: u32| Region { first, pages };
        let blob_ids = region(raw.used_blobid_mask_start.get(), raw.used_blobid_mask_len.get());
        let layout = Self {
            size,
            block_size,
            io_unit,
            cluster_size,
            page_size,
            used_pages: region(raw.used_page_mask_start.get(), raw.used_page_mask_len.get()),
            used_clusters: region(
                raw.used_cluster_mask_start.get(),
                raw.used_cluster_mask_len.get(),
            ),
            used_blob_ids: (blob_ids.pages != 0).then_some(blob_ids),
            metadata: region(raw.md_start.get(), raw.md_len.get()),
            clusters: count_clusters(size, cluster_size)?,
            metadata_clusters: ClusterCount(0),
        };
        layout.checked()
    }

    /// The layout of this store on a device that has become larger; `self` if it gained no cluster.
    /// Only the size, the cluster count and the length of the cluster bitmap change.
    ///
    /// # Errors
    /// [`LayoutError::GrowthLimit`] if the cluster bitmap's region is too short, or if the device
    /// is smaller than the store.
    pub fn grow(&self, medium: Medium) -> Result<Self, LayoutError> {
        let size = medium.size().ok_or(LayoutError::DeviceTooLarge)?;
        let wanted = size.0 / u64::from(self.cluster_size);
        let (now, limit) = (self.clusters, self.max_clusters());
        let clusters = u32::try_from(wanted)
            .ok()
            .filter(|clusters| (now.0..=limit.0).contains(clusters))
            .ok_or(LayoutError::GrowthLimit { now, limit, wanted })?;
        if clusters == now.0 {
            return Ok(self.clone());
        }
        let pages = mask_pages(clusters, self.page_size);
        let used_clusters = Region { pages, ..self.used_clusters };
        Self { size, used_clusters, clusters: ClusterCount(clusters), ..self.clone() }.checked()
    }

    /// Whether both put everything into the same places.
    #[must_use]
    pub fn same_places(&self, other: &Self) -> bool {
        let places = |layout: &Self| {
            let Self { used_pages, used_clusters, used_blob_ids, metadata, .. } = layout.clone();
            let sizes = (layout.cluster_size, layout.page_size, layout.clusters);
            (used_pages, used_clusters, used_blob_ids, metadata, sizes)
        };
        places(self) == places(other)
    }

    /// Establishes the invariant, and `metadata_clusters`.
    fn checked(mut self) -> Result<Self, LayoutError> {
        let pages_per_cluster = u64::from(self.cluster_size / self.page_size);
        let clusters = u64::from(self.clusters.0);
        let metadata = self.metadata.end().div_ceil(pages_per_cluster);
        let mut cursor = 1;
        let regions = [
            ("used page bitmap", Some(self.used_pages)),
            ("used cluster bitmap", Some(self.used_clusters)),
            ("used blob id bitmap", self.used_blob_ids),
            ("metadata", Some(self.metadata)),
        ];
        for (region, place) in regions {
            let Some(place) = place else { continue };
            let Region { first, pages } = place;
            if u64::from(first) < cursor || pages == 0 || place.end() > u64::from(u32::MAX) {
                return Err(LayoutError::Region { region, first, pages });
            }
            cursor = place.end();
        }
        if metadata > clusters {
            return Err(LayoutError::TooSmall { clusters, metadata });
        }
        // Smaller than `clusters`, which is 32 bits wide.
        self.metadata_clusters = ClusterCount(metadata as u32);
        for mask in [MaskKind::UsedPages, MaskKind::UsedClusters, MaskKind::UsedBlobIds] {
            let Some(Region { pages, .. }) = self.mask_region(mask) else {
                continue;
            };
            let bits = self.mask_bits(mask);
            if mask_pages(bits, self.page_size) > pages {
                return Err(LayoutError::MaskTooShort { mask, pages, bits });
            }
        }
        Ok(self)
    }

    /// The bytes the store was made for.
    #[must_use]
    pub const fn size(&self) -> ByteCount {
        self.size
    }

    /// The block size of the device below.
    #[must_use]
    pub const fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The smallest I/O of a volume, which front ends show as its block size.
    #[must_use]
    pub const fn io_unit(&self) -> BlockSize {
        self.io_unit
    }

    /// The size of a cluster.
    #[must_use]
    pub const fn cluster_size(&self) -> ByteCount {
        ByteCount(self.cluster_size as u64)
    }

    /// The size of a metadata slot; only its first [`STRUCTURE_SIZE`] bytes mean something.
    #[must_use]
    pub const fn metadata_page_size(&self) -> ByteCount {
        ByteCount(self.page_size as u64)
    }

    /// The metadata region; its length never changes.
    #[must_use]
    pub const fn metadata_region(&self) -> Region {
        self.metadata
    }

    /// How many slots the metadata region has; indices are below it.
    #[must_use]
    pub const fn metadata_pages(&self) -> u32 {
        self.metadata.pages
    }

    /// The region of a bitmap; `None` for the blob ids of a store before version 3, which is
    /// therefore recovered at each opening.
    #[must_use]
    pub const fn mask_region(&self, mask: MaskKind) -> Option<Region> {
        match mask {
            MaskKind::UsedPages => Some(self.used_pages),
            MaskKind::UsedClusters => Some(self.used_clusters),
            MaskKind::UsedBlobIds => self.used_blob_ids,
        }
    }

    /// How many bits a bitmap has.
    #[must_use]
    pub const fn mask_bits(&self, mask: MaskKind) -> u32 {
        match mask {
            MaskKind::UsedPages | MaskKind::UsedBlobIds => self.metadata.pages,
            MaskKind::UsedClusters => self.clusters.0,
        }
    }

    /// Where a region lies, in bytes. Meaningful for regions of this layout.
    #[must_use]
    pub const fn region_bytes(&self, region: Region) -> (ByteOffset, ByteCount) {
        let page = self.page_size as u64;
        (ByteOffset(region.first as u64 * page), ByteCount(region.pages as u64 * page))
    }

    /// All clusters of the store, those of the metadata included.
    #[must_use]
    pub const fn clusters(&self) -> ClusterCount {
        self.clusters
    }

    /// The clusters at the start that hold super block, bitmaps and metadata.
    #[must_use]
    pub const fn metadata_clusters(&self) -> ClusterCount {
        self.metadata_clusters
    }

    /// The clusters that volumes can have.
    #[must_use]
    pub const fn data_clusters(&self) -> ClusterCount {
        ClusterCount(self.clusters.0 - self.metadata_clusters.0)
    }

    /// Where data starts.
    #[must_use]
    pub const fn data_start(&self) -> ByteOffset {
        ByteOffset(self.metadata_clusters.0 as u64 * self.cluster_size as u64)
    }

    /// Whether `cluster` exists and is none of the metadata's.
    #[must_use]
    pub const fn is_data_cluster(&self, cluster: ClusterIndex) -> bool {
        cluster.0 >= self.metadata_clusters.0 && cluster.0 < self.clusters.0
    }

    /// The position of a metadata page; `None` if there is no such page.
    #[must_use]
    pub const fn page_offset(&self, page: PageIndex) -> Option<ByteOffset> {
        if page.0 < self.metadata.pages {
            let from_start = self.metadata.first as u64 + page.0 as u64;
            Some(ByteOffset(from_start * self.page_size as u64))
        } else {
            None
        }
    }

    /// The position of a cluster; `None` if there is no such cluster.
    #[must_use]
    pub const fn cluster_offset(&self, cluster: ClusterIndex) -> Option<ByteOffset> {
        if cluster.0 < self.clusters.0 {
            Some(ByteOffset(cluster.0 as u64 * self.cluster_size as u64))
        } else {
            None
        }
    }

    /// The first block of a cluster; `None` if there is no such cluster.
    #[must_use]
    pub const fn cluster_lba(&self, cluster: ClusterIndex) -> Option<Lba> {
        match self.cluster_offset(cluster) {
            Some(offset) => Some(Lba(offset.0 >> self.block_size.shift())),
            None => None,
        }
    }

    /// The cluster that holds a byte of the device; `None` in the unused tail and beyond.
    #[must_use]
    pub fn cluster_at(&self, offset: ByteOffset) -> Option<ClusterIndex> {
        let cluster = u32::try_from(offset.0 / u64::from(self.cluster_size)).ok()?;
        (cluster < self.clusters.0).then_some(ClusterIndex(cluster))
    }

    /// How many clusters a volume of `bytes` needs; `None` if 32 bits cannot count them.
    #[must_use]
    pub fn clusters_for(&self, bytes: ByteCount) -> Option<ClusterCount> {
        u32::try_from(bytes.0.div_ceil(u64::from(self.cluster_size))).ok().map(ClusterCount)
    }

    /// The size of `clusters` clusters.
    #[must_use]
    pub const fn bytes_of(&self, clusters: ClusterCount) -> ByteCount {
        ByteCount(clusters.0 as u64 * self.cluster_size as u64)
    }

    /// The most clusters this store can ever have: what the room between the cluster bitmap and
    /// the next region can hold.
    #[must_use]
    pub fn max_clusters(&self) -> ClusterCount {
        let next = self.used_blob_ids.unwrap_or(self.metadata).first;
        let room = u64::from(next - self.used_clusters.first) * u64::from(self.page_size);
        let bits = (room - MASK_HEADER_BYTES as u64) * 8;
        ClusterCount(u32::try_from(bits).unwrap_or(u32::MAX))
    }
}

/// Pages that a bitmap of `bits` bits takes.
fn mask_pages(bits: u32, page_size: u32) -> u32 {
    let bytes = MASK_HEADER_BYTES as u64 + u64::from(bits).div_ceil(8);
    // At most 2^29 + 5 bytes in pages of at least 4096.
    bytes.div_ceil(u64::from(page_size)) as u32
}

fn count_clusters(size: ByteCount, cluster_size: u32) -> Result<ClusterCount, LayoutError> {
    let clusters = size.0 / u64::from(cluster_size);
    u32::try_from(clusters).map(ClusterCount).map_err(|_| LayoutError::TooManyClusters { clusters })
}

/// Old stores have 0 where the default was not yet written down.
fn or_default<T: Default + PartialEq>(value: T, default: T) -> T {
    if value == T::default() { default } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Vector {
        block: u32,
        physical: u32,
        device: u64,
        cluster: u64,
        ratio: u32,
        page: u64,
        /// first and pages of used pages, used clusters, used blob ids, metadata
        regions: [(u32, u32); 4],
        total: u32,
        data: u32,
    }

    /// Observed from SPDK; see docs/on-disk-format.md.
    const VECTORS: [Vector; 7] = [
        Vector {
            block: 512,
            physical: 512,
            device: 67_108_864,
            cluster: 1 << 20,
            ratio: 100,
            page: 4096,
            regions: [(1, 1), (2, 1), (3, 1), (4, 64)],
            total: 64,
            data: 63,
        },
        Vector {
            block: 512,
            physical: 512,
            device: 68_719_476_736,
            cluster: 4 << 20,
            ratio: 100,
            page: 4096,
            regions: [(1, 1), (2, 1), (3, 1), (4, 16384)],
            total: 16384,
            data: 16367,
        },
        Vector {
            block: 4096,
            physical: 4096,
            device: 1_000_204_886_016,
            cluster: 4 << 20,
            ratio: 100,
            page: 4096,
            regions: [(1, 8), (9, 8), (17, 8), (25, 238_467)],
            total: 238_467,
            data: 238_234,
        },
        Vector {
            block: 512,
            physical: 512,
            device: 1_000_204_886_016,
            cluster: 4 << 20,
            ratio: 1000,
            page: 4096,
            regions: [(1, 73), (74, 8), (147, 73), (220, 2_384_670)],
            total: 238_467,
            data: 236_138,
        },
        Vector {
            block: 512,
            physical: 512,
            device: 10_737_418_240,
            cluster: 64 << 10,
            ratio: 100,
            page: 4096,
            regions: [(1, 6), (7, 6), (13, 6), (19, 163_840)],
            total: 163_840,
            data: 153_598,
        },
        Vector {
            block: 512,
            physical: 16384,
            device: 68_719_476_736,
            cluster: 4 << 20,
            ratio: 100,
            page: 16384,
            regions: [(1, 1), (2, 1), (3, 1), (4, 16384)],
            total: 16384,
            data: 16319,
        },
        Vector {
            block: 512,
            physical: 512,
            device: 1_073_741_824,
            cluster: 1 << 20,
            ratio: 10,
            page: 4096,
            regions: [(1, 1), (2, 1), (3, 1), (4, 102)],
            total: 1024,
            data: 1023,
        },
    ];

    fn medium(block: u32, physical: u32, device: u64) -> Medium {
        let block_size = BlockSize::new(block).unwrap();
        Medium {
            block_size,
            physical_block_size: BlockSize::new(physical).unwrap(),
            blocks: block_size.blocks_exact(device).unwrap(),
        }
    }

    fn options(cluster: u64, ratio: u32) -> LayoutOptions {
        LayoutOptions { cluster_size: ByteCount(cluster), metadata_ratio_percent: ratio }
    }

    #[test]
    fn layouts_are_those_of_spdk() {
        for (number, vector) in VECTORS.iter().enumerate() {
            let layout = Layout::create(
                medium(vector.block, vector.physical, vector.device),
                options(vector.cluster, vector.ratio),
            )
            .unwrap();
            let regions = [
                layout.mask_region(MaskKind::UsedPages).unwrap(),
                layout.mask_region(MaskKind::UsedClusters).unwrap(),
                layout.mask_region(MaskKind::UsedBlobIds).unwrap(),
                layout.metadata_region(),
            ];
            assert_eq!(regions.map(|region| (region.first, region.pages)), vector.regions);
            assert_eq!(layout.metadata_page_size().0, vector.page, "vector {number}");
            assert_eq!(layout.clusters().0, vector.total, "vector {number}");
            assert_eq!(layout.data_clusters().0, vector.data, "vector {number}");
        }
    }

    #[test]
    fn the_growth_limit_is_that_of_spdk() {
        let small = medium(4096, 4096, 64 << 20);
        let layout = Layout::create(small, options(1 << 20, 100)).unwrap();
        assert_eq!(layout.bytes_of(layout.max_clusters()), ByteCount(34_317_795_328));

        let grown = layout.grow(medium(4096, 4096, 1 << 30)).unwrap();
        assert_eq!(grown.clusters(), ClusterCount(1024));
        assert_eq!(grown.metadata_region(), layout.metadata_region());
        assert_eq!(layout.grow(small), Ok(layout.clone()));
        let limit = medium(4096, 4096, 34_317_795_328);
        assert_eq!(layout.grow(limit).map(|l| l.clusters()), Ok(layout.max_clusters()));
        for impossible in [32 << 20, 34_317_795_328 + (1 << 20)] {
            let refused = layout.grow(medium(4096, 4096, impossible));
            assert!(matches!(refused, Err(LayoutError::GrowthLimit { .. })), "{refused:?}");
        }
    }

    #[test]
    fn impossible_stores_are_refused() {
        let disk = medium(512, 512, 1 << 30);
        for cluster in [0, 1000, 6000, 1 << 32, u64::MAX] {
            let refused = Layout::create(disk, options(cluster, 100));
            assert!(matches!(refused, Err(LayoutError::ClusterSize { .. })), "{refused:?}");
        }
        for ratio in [0, u32::MAX] {
            let refused = Layout::create(disk, options(1 << 20, ratio));
            assert!(refused.is_err(), "{refused:?}");
        }
        let tiny = medium(512, 512, 1 << 20);
        let refused = Layout::create(tiny, options(1 << 20, 100));
        assert!(matches!(refused, Err(LayoutError::TooSmall { .. })), "{refused:?}");
        let endless = Medium::new(BlockSize::B4096, BlockCount(u64::MAX));
        assert_eq!(
            Layout::create(endless, options(1 << 20, 100)),
            Err(LayoutError::DeviceTooLarge)
        );
        let huge = Medium::new(BlockSize::B4096, BlockCount(1 << 51));
        let refused = Layout::create(huge, options(4096, 100));
        assert!(matches!(refused, Err(LayoutError::TooManyClusters { .. })), "{refused:?}");
    }

    #[test]
    fn positions() {
        let layout = Layout::create(medium(512, 512, 64 << 20), options(1 << 20, 100)).unwrap();
        assert_eq!(layout.page_offset(PageIndex(0)), Some(ByteOffset(4 * 4096)));
        assert_eq!(layout.page_offset(PageIndex(64)), None);
        assert_eq!(layout.data_start(), ByteOffset(1 << 20));
        assert_eq!(layout.cluster_lba(ClusterIndex(3)), Some(Lba(3 * 2048)));
        assert_eq!(layout.cluster_offset(ClusterIndex(64)), None);
        assert_eq!(layout.cluster_at(ByteOffset((64 << 20) - 1)), Some(ClusterIndex(63)));
        assert_eq!(layout.cluster_at(ByteOffset(64 << 20)), None);
        assert!(!layout.is_data_cluster(ClusterIndex(0)));
        assert!(layout.is_data_cluster(ClusterIndex(63)));
        assert_eq!(layout.clusters_for(ByteCount(1)), Some(ClusterCount(1)));
        assert_eq!(layout.clusters_for(ByteCount(u64::MAX)), None);
    }
}
