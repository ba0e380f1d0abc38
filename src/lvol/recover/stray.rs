//! What damaged blobs may have, if nobody can say what they have: once a root or an extent page is
//! lost, only the rest of the metadata region and the bitmaps of the last orderly close tell.
//!
//! * Each intact extent page and chain page that no healthy blob has, with all that it names. The id
//!   in it does not matter: a snapshot has the pages of the volume that it was made of.
//! * What those bitmaps have as used, even though the store was not closed in order since.
//!
//! This keeps more than was lost: stale pages are among it, and what was freed since that close. It
//! can be had again once the damaged blobs are repaired or given up.

use std::collections::HashSet;

use futures_util::stream::{self, StreamExt};

use crate::block::BlockDevice;
use crate::units::{ClusterCount, ClusterIndex, PageIndex};

use super::super::error::Damage;
use super::super::format::{BitSet, Descriptor, MaskKind, Page, PageBytes};
use super::{ClusterRun, Found, LOAD_DEPTH, Pages, read_mask, runs_of_page};

/// What nobody is known to have, and blobs in quarantine may have.
pub(super) struct Stray {
    /// By the pages that are left.
    pub(super) pages: BitSet,
    /// By what these name.
    pub(super) clusters: BitSet,
    /// By the bitmap of the last orderly close.
    pub(super) used_pages: BitSet,
    /// By the bitmap of the last orderly close.
    pub(super) used_clusters: BitSet,
}

impl Default for Stray {
    fn default() -> Self {
        let nothing = || BitSet::new(0);
        let (pages, clusters) = (nothing(), nothing());
        Self { pages, clusters, used_pages: nothing(), used_clusters: nothing() }
    }
}

/// Looks for it, if a blob is damaged so that its mapping is not wholly known. `others` are the
/// intact pages that are no roots.
pub(super) async fn of<D: BlockDevice>(
    pages: &Pages<'_, D>,
    found: &[Found],
    others: Vec<PageIndex>,
) -> Stray {
    let is_unknown = |found: &&Found| {
        found.result.as_ref().is_err_and(|damage| !matches!(damage, Damage::TooLarge { .. }))
    };
    let mut stray = Stray::default();
    if !found.iter().any(|found| is_unknown(&found)) {
        return stray;
    }
    let healthy = found.iter().filter(|found| found.result.is_ok());
    let healthy: HashSet<_> = healthy.flat_map(|found| &found.pages).copied().collect();
    let damaged = found.iter().filter(is_unknown).flat_map(|found| &found.pages).copied();
    let mut left: Vec<_> = others.into_iter().chain(damaged).collect();
    left.retain(|page| !healthy.contains(page));
    left.sort_unstable();
    left.dedup();
    let bits = |kind| BitSet::new(pages.layout.mask_bits(kind));
    (stray.pages, stray.clusters) = (bits(MaskKind::UsedPages), bits(MaskKind::UsedClusters));
    let named = left.into_iter().map(|page| async move { (page, named_by(pages, page).await) });
    let mut named = stream::iter(named).buffer_unordered(LOAD_DEPTH);
    while let Some((page, (more, clusters))) = named.next().await {
        stray.pages.insert(page.0);
        for page in more {
            stray.pages.insert(page.0);
        }
        for (first, count) in clusters {
            stray.clusters.insert_run(first.0, count.0);
        }
    }
    let mask = |kind| async move {
        let mask = read_mask(pages.io, pages.layout, kind).await;
        mask.unwrap_or_else(|problem| {
            tracing::debug!(%kind, %problem, "no bitmap of an orderly close");
            BitSet::new(0)
        })
    };
    stray.used_pages = mask(MaskKind::UsedPages).await;
    stray.used_clusters = mask(MaskKind::UsedClusters).await;
    stray
}

/// The pages and clusters that a page names; nothing if it is not intact.
async fn named_by<D: BlockDevice>(
    pages: &Pages<'_, D>,
    page: PageIndex,
) -> (Vec<PageIndex>, Vec<ClusterRun>) {
    if let Some(extent) = pages.cache.extents.get(&page) {
        return (Vec::new(), runs_of_page(extent).collect());
    }
    pages.get(page).await.map_or_else(|_| Default::default(), |bytes| named(&bytes))
}

fn named(bytes: &PageBytes) -> (Vec<PageIndex>, Vec<ClusterRun>) {
    let (mut pages, mut clusters) = (Vec::new(), Vec::new());
    let Ok(page) = Page::parse(bytes) else { return (pages, clusters) };
    for descriptor in page.descriptors().map_while(Result::ok) {
        match descriptor {
            Descriptor::Rle(runs) => clusters.extend(runs.iter().filter_map(|run| {
                let first = run.first_cluster.get();
                (first != 0).then_some((ClusterIndex(first), ClusterCount(run.count.get())))
            })),
            Descriptor::ExtentPage { clusters: entries, .. } => {
                let taken = entries.iter().map(|entry| entry.get()).filter(|entry| *entry != 0);
                clusters.extend(taken.map(|entry| (ClusterIndex(entry), ClusterCount(1))));
            }
            Descriptor::ExtentTable { entries, .. } => {
                let taken = entries.iter().map(|entry| entry.page.get()).filter(|page| *page != 0);
                pages.extend(taken.map(PageIndex));
            }
            Descriptor::Xattr { .. } | Descriptor::Flags(_) | Descriptor::Unknown { .. } => {}
        }
    }
    (pages, clusters)
}
