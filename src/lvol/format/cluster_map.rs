//! The whole mapping of a blob, joined from its runs or from its extent table and extent pages.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use crate::units::{ClusterCount, ClusterIndex, PageIndex, VolumeCluster};

use super::blob::{Blob, Mapping};
use super::extent::{EXTENT_PAGE_CLUSTERS, ExtentRuns, ExtentTable, Runs, TableSlot};

/// Why a blob's parts do not make up a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapProblem {
    /// An extent page that the table names was not given.
    #[error("extent page {page} is missing")]
    Missing {
        /// The page.
        page: PageIndex,
    },
    /// An extent page that starts at another cluster than its place in the table.
    #[error("extent page {page} starts at cluster {found} instead of {expected}")]
    Start {
        /// The page.
        page: PageIndex,
        /// Its place.
        expected: VolumeCluster,
        /// What it says.
        found: VolumeCluster,
    },
    /// An extent page before the last place that does not map 512 clusters.
    #[error("extent page {page} maps {found} clusters instead of {EXTENT_PAGE_CLUSTERS}")]
    Short {
        /// The page.
        page: PageIndex,
        /// The clusters it maps.
        found: usize,
    },
    /// A blob that is not thin has a cluster without storage.
    #[error("cluster {cluster} of a thick volume is not allocated")]
    Hole {
        /// The first such cluster.
        cluster: VolumeCluster,
    },
    /// The size would be more than 32 bits can count.
    #[error("the last extent page reaches beyond what can be counted")]
    TooLarge,
}

/// Consecutive clusters of a volume that are consecutive on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRun {
    /// The first, in the volume.
    pub volume: VolumeCluster,
    /// The first, on the device.
    pub device: ClusterIndex,
    /// How many; not 0.
    pub count: ClusterCount,
}

/// Where each cluster of a volume is. Takes memory for what is allocated, not for the size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterMap {
    clusters: ClusterCount,
    /// Ascending in `volume`, without overlap.
    runs: Vec<MappedRun>,
}

impl ClusterMap {
    /// Joins a blob and its extent pages, which are empty for a blob with runs.
    ///
    /// The size is what SPDK takes it to be: where the last place of a table has an extent page,
    /// the number of its entries counts and not the table's own number. An interrupted resize
    /// leaves the two different; compare [`ClusterMap::clusters`] with [`Mapping::clusters`].
    ///
    /// # Errors
    /// [`MapProblem`]; SPDK does not open such a blob either.
    pub fn of(
        blob: &Blob,
        extent_pages: &BTreeMap<TableSlot, impl Borrow<ExtentRuns>>,
    ) -> Result<Self, MapProblem> {
        let map = match &blob.mapping {
            Mapping::Rle(runs) => Self::of_runs(runs),
            Mapping::Table(table) => Self::of_table(table, extent_pages)?,
        };
        match map.first_hole().filter(|_| !blob.flags.thin) {
            Some(cluster) => Err(MapProblem::Hole { cluster }),
            None => Ok(map),
        }
    }

    fn of_runs(runs: &Runs) -> Self {
        let mut map = Self::default();
        for run in runs.as_slice() {
            let volume = VolumeCluster(map.clusters.0);
            if let Some(device) = run.first {
                map.runs.push(MappedRun { volume, device, count: run.count });
            }
            // Cannot saturate: `Runs` counts its clusters in 32 bits.
            map.clusters.0 = map.clusters.0.saturating_add(run.count.0);
        }
        map
    }

    fn of_table(
        table: &ExtentTable,
        extent_pages: &BTreeMap<TableSlot, impl Borrow<ExtentRuns>>,
    ) -> Result<Self, MapProblem> {
        let most = extent_pages.values().map(|content| content.borrow().runs.len()).sum();
        let mut map = Self { clusters: table.clusters(), runs: Vec::with_capacity(most) };
        for (slot, page) in table.iter() {
            let content = extent_pages.get(&slot).ok_or(MapProblem::Missing { page })?.borrow();
            let (expected, found) = (slot.first_cluster(), content.first);
            if found != expected {
                return Err(MapProblem::Start { page, expected, found });
            }
            if slot.0 + 1 == table.slots() {
                let end = expected.0.checked_add(content.entries);
                map.clusters = ClusterCount(end.ok_or(MapProblem::TooLarge)?);
            } else if content.entries != EXTENT_PAGE_CLUSTERS {
                return Err(MapProblem::Short { page, found: content.entries as usize });
            }
            // Cannot overflow: the end of the page was computed above or is inside the table.
            for run in &content.runs {
                let volume = VolumeCluster(expected.0 + u32::from(run.index));
                map.push(volume, run.device, run.count.into());
            }
        }
        Ok(map)
    }

    /// Appends a run, which must lie behind all others.
    fn push(&mut self, volume: VolumeCluster, device: ClusterIndex, count: u32) {
        if let Some(last) = self.runs.last_mut() {
            let before = last.count.0;
            let continues = last.volume.checked_add(before) == Some(volume)
                && last.device.checked_add(before) == Some(device);
            if continues {
                last.count = ClusterCount(before + count);
                return;
            }
        }
        self.runs.push(MappedRun { volume, device, count: ClusterCount(count) });
    }

    /// The size of the volume.
    #[must_use]
    pub const fn clusters(&self) -> ClusterCount {
        self.clusters
    }

    /// What is allocated, in order.
    #[must_use]
    pub fn runs(&self) -> &[MappedRun] {
        &self.runs
    }

    /// How many clusters are allocated.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count.0)).sum()
    }

    /// The clusters of the device that are allocated, in the volume's order.
    pub fn device_clusters(&self) -> impl Iterator<Item = ClusterIndex> + '_ {
        self.runs.iter().flat_map(|run| {
            let first = run.device.0;
            (first..first + run.count.0).map(ClusterIndex)
        })
    }

    /// Where a cluster of the volume is.
    #[must_use]
    pub fn get(&self, cluster: VolumeCluster) -> Option<ClusterIndex> {
        let after = self.runs.partition_point(|run| run.volume <= cluster);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let offset = cluster.0 - run.volume.0;
        (offset < run.count.0).then(|| ClusterIndex(run.device.0 + offset))
    }

    fn first_hole(&self) -> Option<VolumeCluster> {
        let mut at = 0;
        for run in &self.runs {
            if run.volume.0 != at {
                break;
            }
            at += run.count.0;
        }
        (at < self.clusters.0).then_some(VolumeCluster(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvol::format::{ExtentRun, Run, blob_id};

    fn blob(mapping: Mapping) -> Blob {
        let mut blob = Blob::new(blob_id(PageIndex(1)));
        blob.mapping = mapping;
        blob.flags.thin = true;
        blob
    }

    fn page(first: u32, clusters: &[u32], length: u32) -> ExtentRuns {
        let run = |(index, cluster)| ExtentRun { device: ClusterIndex(cluster), index, count: 1 };
        let placed = (0..).zip(clusters.iter().copied()).filter(|(_, cluster)| *cluster != 0);
        ExtentRuns { first: VolumeCluster(first), entries: length, runs: placed.map(run).collect() }
    }

    fn table(clusters: u32, pages: &[u32]) -> ExtentTable {
        let mut table = ExtentTable::new(ClusterCount(clusters));
        for slot in pages {
            table.set(TableSlot(*slot), PageIndex(10 + slot));
        }
        table
    }

    #[test]
    fn runs_are_a_map() {
        let mut runs = Runs::new();
        for (first, count) in [(0, 2), (20, 3), (0, 1), (7, 1)] {
            let first = (first != 0).then_some(ClusterIndex(first));
            runs.push(Run { first, count: ClusterCount(count) }).unwrap();
        }
        let map =
            ClusterMap::of(&blob(Mapping::Rle(runs.clone())), &BTreeMap::<_, ExtentRuns>::new())
                .unwrap();
        assert_eq!((map.clusters(), map.allocated()), (ClusterCount(7), 4));
        let places: Vec<_> = (0..8).map(|c| map.get(VolumeCluster(c)).map_or(0, |c| c.0)).collect();
        assert_eq!(places, [0, 0, 20, 21, 22, 0, 7, 0]);
        assert_eq!(map.device_clusters().map(|c| c.0).collect::<Vec<_>>(), [20, 21, 22, 7]);
        let mut thick = blob(Mapping::Rle(runs));
        thick.flags.thin = false;
        let refused = ClusterMap::of(&thick, &BTreeMap::<_, ExtentRuns>::new());
        assert_eq!(refused, Err(MapProblem::Hole { cluster: VolumeCluster(0) }));
    }

    #[test]
    fn a_table_and_its_pages_are_a_map() {
        let blob = blob(Mapping::Table(table(1500, &[0, 2])));
        let pages = BTreeMap::from([
            (TableSlot(0), page(0, &[30, 31, 0, 33], 512)),
            (TableSlot(2), page(1024, &[34], 476)),
        ]);
        let map = ClusterMap::of(&blob, &pages).unwrap();
        assert_eq!(map.clusters(), ClusterCount(1500));
        assert_eq!(map.runs().len(), 3);
        assert_eq!(map.get(VolumeCluster(1024)), Some(ClusterIndex(34)));
        assert_eq!(map.get(VolumeCluster(512)), None);
    }

    #[test]
    fn the_last_extent_page_knows_the_size() {
        let grown = BTreeMap::from([(TableSlot(0), page(0, &[5, 6, 7, 8, 9], 5))]);
        let map = ClusterMap::of(&blob(Mapping::Table(table(3, &[0]))), &grown).unwrap();
        assert_eq!(map.clusters(), ClusterCount(5));
    }

    #[test]
    fn pages_that_do_not_fit_are_refused() {
        let blob = blob(Mapping::Table(table(1024, &[0, 1])));
        let with = |first: ExtentRuns, second: ExtentRuns| {
            let pages = BTreeMap::from([(TableSlot(0), first), (TableSlot(1), second)]);
            ClusterMap::of(&blob, &pages).unwrap_err()
        };
        let short = with(page(0, &[], 511), page(512, &[], 512));
        assert_eq!(short, MapProblem::Short { page: PageIndex(10), found: 511 });
        let moved = with(page(0, &[], 512), page(511, &[], 512));
        let expected = MapProblem::Start {
            page: PageIndex(11),
            expected: VolumeCluster(512),
            found: VolumeCluster(511),
        };
        assert_eq!(moved, expected);
        let missing = ClusterMap::of(&blob, &BTreeMap::<_, ExtentRuns>::new()).unwrap_err();
        assert_eq!(missing, MapProblem::Missing { page: PageIndex(10) });
    }
}
