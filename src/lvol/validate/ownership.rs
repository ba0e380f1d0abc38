//! No cluster and no metadata page has two owners, and what has none is free.

use std::collections::{BTreeMap, HashMap};

use crate::units::{BlobId, ClusterCount, ClusterIndex, PageIndex};

use super::super::format::{BitSet, Layout, MappedRun, Mapping, blob_id};
use super::walk::{Member, Walk};
use super::{Finding, Findings};

/// What is in use.
pub(in crate::lvol) struct Owned {
    pub(in crate::lvol) pages: BitSet,
    /// Those of the metadata included.
    pub(in crate::lvol) clusters: BitSet,
}

/// Finds out what is in use and reports what has two owners, or should have one.
pub(super) fn check(layout: &Layout, walk: &Walk, findings: &mut Findings) -> Owned {
    let mut claims = Claims { walk, clusters: BTreeMap::new(), pages: HashMap::new() };
    for root in walk.roots.iter().map(PageIndex) {
        claims.pages.insert(root, blob_id(root));
    }
    for (id, member) in &walk.blobs {
        claims.claim_pages(*id, member, findings);
        for run in member.map.iter().flat_map(|map| map.runs()) {
            if findings.is_full() {
                break;
            }
            claims.claim_clusters(*id, *run, findings);
        }
    }
    let mut owned =
        Owned { pages: BitSet::new(layout.metadata_pages()), clusters: claims.used(layout) };
    for page in claims.pages.keys() {
        owned.pages.insert(page.0);
    }
    for (page, writer) in &walk.others {
        if !owned.pages.contains(page.0) {
            findings.add(Finding::UnusedPage { page: *page, writer: *writer });
        }
    }
    for page in &walk.damaged {
        if !owned.pages.contains(page.0) {
            findings.add(Finding::DamagedPage { page: *page });
        }
    }
    owned
}

struct Claims<'w> {
    walk: &'w Walk,
    /// Runs without overlap: first cluster, count, owner.
    clusters: BTreeMap<u32, (u32, BlobId)>,
    pages: HashMap<PageIndex, BlobId>,
}

impl Claims<'_> {
    fn claim_pages(&mut self, id: BlobId, member: &Member, findings: &mut Findings) {
        let table = match &member.blob.mapping {
            Mapping::Table(table) => Some(table),
            Mapping::Rle(_) => None,
        };
        let extents = table.into_iter().flat_map(|table| table.iter().map(|(_, page)| page));
        for page in member.blob.chain.iter().copied().chain(extents) {
            if let Some(other) = self.pages.insert(page, id)
                && !self.may_share(other, id)
            {
                findings.add(Finding::SharedPage { page, owners: (other, id) });
            }
        }
    }

    fn claim_clusters(&mut self, id: BlobId, run: MappedRun, findings: &mut Findings) {
        // The map was checked against the layout, so that the end cannot overflow.
        let (mut at, end) = (run.device.0, run.device.0 + run.count.0);
        while at < end && !findings.is_full() {
            let before = self.clusters.range(..=at).next_back();
            let covering = before.map(|(first, (count, owner))| (first + count, *owner));
            if let Some((until, other)) = covering.filter(|(until, _)| *until > at) {
                let stop = until.min(end);
                if !self.may_share(other, id) {
                    findings.add(Finding::SharedClusters {
                        first: ClusterIndex(at),
                        count: ClusterCount(stop - at),
                        owners: (other, id),
                    });
                }
                at = stop;
            } else {
                let next = self.clusters.range(at..end).next().map_or(end, |(first, _)| *first);
                self.clusters.insert(at, (next - at, id));
                at = next;
            }
        }
    }

    /// A snapshot that is being made or deleted shares with the volume it is made of, or with its
    /// only clone, until that is finished.
    fn may_share(&self, one: BlobId, other: BlobId) -> bool {
        let names = |one: BlobId, other: BlobId| {
            self.walk.blobs.get(&one).is_some_and(|member| {
                let blob = &member.blob;
                blob.snapshot_of() == Some(other) || blob.deleting_for() == Some(other)
            })
        };
        one != other && (names(one, other) || names(other, one))
    }

    fn used(&self, layout: &Layout) -> BitSet {
        let mut used = BitSet::new(layout.clusters().0);
        let metadata = std::iter::once((0, layout.metadata_clusters().0));
        let owned = self.clusters.iter().map(|(first, (count, _))| (*first, *count));
        for (first, count) in metadata.chain(owned) {
            for cluster in first..first + count {
                used.insert(cluster);
            }
        }
        used
    }
}
