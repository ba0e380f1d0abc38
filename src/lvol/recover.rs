//! Opening a pool: from the bytes of its first page to volumes that can be served.
//!
//! ```text
//! journal -> super block (checked) -> the set of root pages -> loaded blobs -> relations -> what is in use
//! ```
//!
//! * A cleanly closed store names its roots in a bitmap. The bitmaps are believed if they can be
//!   read and cover all that the blobs use; otherwise the store is treated as not clean.
//! * Otherwise the whole metadata region is read, many large reads at a time, and every page that
//!   is the root of a blob is one. Bitmaps are made from what the blobs use, each thing counted
//!   once.
//! * A blob that is damaged, or whose parent is, goes to quarantine with its reason. What it is
//!   known to use stays reserved. The others are served.
//! * A cluster or page with two owners makes both read-only, unless one is the other's parent:
//!   then the child has not finished taking it over, and sees it as its parent's. A blob in
//!   quarantine is an owner, too.
//! * A snapshot that was never finished, or is half deleted, is erased with what it alone has. If
//!   the volume that it was made of cannot be served, or something is a clone of it, it goes to
//!   quarantine instead: what is missing may be its.
//! * If the mapping of a damaged blob is not wholly known, whatever may be part of it stays reserved
//!   as well (`stray.rs`).
//!
//! Nothing is written, but pages that a power cut tore and the journal has whole: that comes first
//! (`replay.rs`). Memory is bounded by what the region holds: valid pages are kept up to
//! [`CACHE_PAGES`], extent pages as runs; others are read again.

mod relate;
mod replay;
mod stray;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};

use crate::block::{BlockDevice, BlockError};
use crate::units::{BlobId, ByteOffset, ClusterCount, ClusterIndex, PageIndex};

use super::allocator::Allocator;
use super::error::{Damage, Error};
use super::external::{ExternalName, external_name};
use super::format::{
    BitSet, Blob, BlobError, BlobReader, ClusterMap, ExtentRuns, Layout, Mapping, MaskKind,
    PageBytes, PageKind, PageProblem, SuperBlock, SuperBlockError, TableSlot, blob_id, claims_root,
    decode_mask, is_torn_journal, lvolstore, mask_bytes, names_blob, names_journal, root_page,
};
use super::journal::OwnJournal;
use super::metadata_io::{MetadataIo, medium};
use super::store::Quarantined;
use super::volume::Volume;
use super::volume_map::{Fate, STORE_CLUSTERS_LIMIT, VOLUME_CLUSTERS_LIMIT};
use relate::relate;
use stray::Stray;

/// Valid metadata pages kept in memory while the region is scanned: 256 MiB.
const CACHE_PAGES: usize = 65536;
/// Bytes of one read of the scan.
const SCAN_STEP: usize = 1 << 20;
/// Reads of the scan in flight.
const SCAN_DEPTH: usize = 8;
/// Reads of the scan that may fail and are repeated page by page; a device on which more do is not
/// one to recover from.
const UNREADABLE_READS: usize = 16;
/// Blobs loaded at once.
const LOAD_DEPTH: usize = 32;

/// How a pool was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Whether the bitmaps of an orderly close could be used.
    pub clean: bool,
    /// Metadata pages that were scanned; 0 if clean.
    pub pages_scanned: u32,
    /// Blobs found, the store's own included.
    pub blobs: u32,
}

/// What opening a pool finds.
pub(super) struct Recovered {
    pub(super) super_block: SuperBlock,
    pub(super) allocator: Allocator,
    pub(super) volumes: BTreeMap<BlobId, Volume>,
    pub(super) own_blob: BlobId,
    pub(super) journal: Option<OwnJournal>,
    pub(super) quarantined: Vec<Quarantined>,
    pub(super) recovery: Recovery,
}

/// Reads and checks everything.
///
/// # Errors
/// As `Store::open`.
pub(super) async fn recover<D: BlockDevice>(
    io: &MetadataIo<D>,
    fate: &Arc<Fate>,
) -> Result<Recovered, Error> {
    let super_block = read_super_block(io).await?;
    let own_blob = super_block.super_blob().ok_or(Error::SuperBlob(Damage::Missing))?;
    let layout = super_block.layout().clone();
    if super_block.is_clean() {
        match load_clean(io, &layout, own_blob).await {
            Ok(loaded) => return relate(super_block, loaded, own_blob, fate),
            Err(reason) => {
                tracing::warn!(%reason, "bitmaps of a clean store are wrong; recovering")
            }
        }
    }
    let mut scan = scan(io, &layout).await?;
    if replay::restore(io, &layout, &scan.journals).await? > 0 {
        scan = self::scan(io, &layout).await?;
    }
    let loaded = load_scanned(io, &layout, scan).await;
    relate(super_block, loaded, own_blob, fate)
}

async fn read_super_block<D: BlockDevice>(io: &MetadataIo<D>) -> Result<SuperBlock, Error> {
    let geometry = io.device().geometry();
    let bytes = io.read_page(ByteOffset(0)).await?;
    match SuperBlock::parse(&bytes, medium(geometry)) {
        Ok(super_block) => limited(super_block),
        Err(refused @ SuperBlockError::Checksum { .. }) => {
            replay::restore_super_block(io, &bytes, refused).await
        }
        Err(refused) => Err(refused.into()),
    }
}

fn limited(super_block: SuperBlock) -> Result<SuperBlock, Error> {
    let clusters = super_block.layout().clusters().0;
    if clusters > STORE_CLUSTERS_LIMIT {
        return Err(Error::TooManyClusters { clusters, limit: STORE_CLUSTERS_LIMIT });
    }
    Ok(super_block)
}

/// Valid pages in memory: extent pages decoded, all others as they are.
#[derive(Default)]
struct Cache {
    pages: HashMap<PageIndex, Rc<PageBytes>>,
    extents: HashMap<PageIndex, Rc<ExtentRuns>>,
}

impl Cache {
    fn is_full(&self) -> bool {
        self.pages.len() + self.extents.len() >= CACHE_PAGES
    }
}

/// What the metadata region holds.
struct Scan {
    roots: Vec<PageIndex>,
    /// Roots that are torn or rotten, as far as their first bytes still tell.
    broken_roots: Vec<(PageIndex, PageProblem)>,
    /// Pages that cannot be read.
    unreadable: Vec<(PageIndex, BlockError)>,
    /// Roots that say they are a journal's.
    journals: Vec<PageIndex>,
    /// Intact extent pages and chain pages, in use or not.
    others: Vec<PageIndex>,
    cache: Cache,
    pages: u32,
    /// Of one read, the slots that are not blank.
    named: Vec<u32>,
}

async fn scan<D: BlockDevice>(io: &MetadataIo<D>, layout: &Layout) -> Result<Scan, Error> {
    let slot = layout.metadata_page_size().0 as usize;
    let per_read = (SCAN_STEP / slot).max(1);
    let pages = layout.metadata_pages();
    let mut scan = Scan {
        roots: Vec::new(),
        broken_roots: Vec::new(),
        unreadable: Vec::new(),
        journals: Vec::new(),
        others: Vec::new(),
        cache: Cache::default(),
        pages,
        named: Vec::with_capacity(per_read),
    };
    let firsts = (0..pages).step_by(per_read);
    let reads = firsts.map(|first| async move {
        let count = per_read.min((pages - first) as usize);
        let offset = layout.page_offset(PageIndex(first)).unwrap_or_default();
        (first, io.read(offset, count * slot).await)
    });
    let mut reads = stream::iter(reads).buffer_unordered(SCAN_DEPTH);
    let mut failed = Vec::new();
    while let Some((first, bytes)) = reads.next().await {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) if failed.len() < UNREADABLE_READS => {
                tracing::warn!(first, %error, "a read of metadata failed; trying page by page");
                failed.push(first);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        scan.note_all(layout, first, &bytes, slot);
    }
    drop(reads);
    for first in failed {
        let end = pages.min(first + per_read as u32);
        for page in (first..end).map(PageIndex) {
            let offset = layout.page_offset(page).unwrap_or_default();
            match io.read_page(offset).await {
                Ok(bytes) => scan.note(layout, page, &bytes),
                Err(error) => scan.unreadable.push((page, error)),
            }
        }
    }
    scan.roots.sort_unstable();
    scan.journals.sort_unstable();
    Ok(scan)
}

impl Scan {
    /// Notes the slots of one read, the first of which is `first`. Most are blank. Of these one cache
    /// line is touched, and in a loop that does nothing else: so the processor fetches many of them
    /// at a time.
    fn note_all(&mut self, layout: &Layout, first: u32, bytes: &[u8], slot: usize) {
        let page = |slot: &[u8]| slot.first_chunk().is_some_and(names_blob);
        let mut named = std::mem::take(&mut self.named);
        named.clear();
        let slots = (0..).zip(bytes.chunks_exact(slot));
        named.extend(slots.filter(|(_, slot)| page(slot)).map(|(index, _): (u32, _)| index));
        for index in &named {
            if let Some(bytes) = bytes[*index as usize * slot..].first_chunk() {
                self.note(layout, PageIndex(first + index), bytes);
            }
        }
        self.named = named;
    }

    fn note(&mut self, layout: &Layout, page: PageIndex, bytes: &PageBytes) {
        if !names_blob(bytes) {
            return;
        }
        match PageKind::classify(page, bytes) {
            PageKind::Root(root) => {
                self.roots.push(page);
                if names_journal(root) {
                    self.journals.push(page);
                }
            }
            PageKind::Extent(extent) => {
                self.others.push(page);
                if !self.cache.is_full()
                    && let Ok(extent) = ExtentRuns::read(layout, extent)
                {
                    self.cache.extents.insert(page, Rc::new(extent));
                    return;
                }
            }
            PageKind::Chain(_) => self.others.push(page),
            PageKind::Misplaced(_) => return,
            PageKind::Invalid(problem) => {
                if claims_root(page, bytes) && !is_torn_journal(layout, page, bytes) {
                    self.broken_roots.push((page, problem));
                }
                return;
            }
        }
        if !self.cache.is_full() {
            self.cache.pages.insert(page, Rc::new(*bytes));
        }
    }
}

/// Blobs as their pages describe them, and what they use.
struct Loaded {
    layout: Layout,
    allocator: Allocator,
    blobs: BTreeMap<BlobId, LoadedBlob>,
    quarantined: Vec<Quarantined>,
    /// What those in quarantine have, as far as it is known.
    held: Vec<Held>,
    /// What else they may have.
    stray: Stray,
    recovery: Recovery,
}

struct LoadedBlob {
    blob: Blob,
    map: ClusterMap,
}

/// Consecutive clusters of the device.
type ClusterRun = (ClusterIndex, ClusterCount);

/// What a blob in quarantine is known to have.
struct Held {
    id: BlobId,
    pages: Vec<PageIndex>,
    clusters: Vec<ClusterRun>,
}

/// What one root led to.
struct Found {
    id: BlobId,
    /// Metadata pages that it uses, as far as they are known.
    pages: Vec<PageIndex>,
    /// Clusters that a damaged blob is known to use.
    clusters: Vec<ClusterRun>,
    name: Option<String>,
    external_parent: Option<ExternalName>,
    result: Result<LoadedBlob, Damage>,
}

/// Pages from memory, or from the device.
struct Pages<'a, D> {
    io: &'a MetadataIo<D>,
    layout: &'a Layout,
    cache: Cache,
    /// Extent pages and clusters that blobs may still refer to. Each has one owner, or two while a
    /// snapshot is made or deleted; a hostile store in which all refer to the same must not take
    /// any amount of time and memory.
    extent_pages_left: Cell<u64>,
    clusters_left: Cell<u64>,
}

/// How many references to each page and each cluster of the store are followed.
const REFERENCES_EACH: u64 = 4;

fn spend(left: &Cell<u64>, amount: u64) -> Result<(), Damage> {
    left.set(left.get().checked_sub(amount).ok_or(Damage::Excess)?);
    Ok(())
}

impl<'a, D: BlockDevice> Pages<'a, D> {
    fn new(io: &'a MetadataIo<D>, layout: &'a Layout, cache: Cache) -> Self {
        let extent_pages = REFERENCES_EACH * u64::from(layout.metadata_pages());
        let clusters = REFERENCES_EACH * u64::from(layout.clusters().0);
        let (extent_pages_left, clusters_left) = (Cell::new(extent_pages), Cell::new(clusters));
        Self { io, layout, cache, extent_pages_left, clusters_left }
    }

    async fn get(&self, page: PageIndex) -> Result<Rc<PageBytes>, Damage> {
        if let Some(bytes) = self.cache.pages.get(&page) {
            return Ok(Rc::clone(bytes));
        }
        let offset = self.layout.page_offset(page).ok_or(Damage::Missing)?;
        Ok(Rc::new(self.io.read_page(offset).await?))
    }

    async fn get_extent(&self, page: PageIndex) -> Result<Rc<ExtentRuns>, Damage> {
        if let Some(extent) = self.cache.extents.get(&page) {
            return Ok(Rc::clone(extent));
        }
        let extent = ExtentRuns::parse(self.layout, &*self.get(page).await?);
        Ok(Rc::new(extent.map_err(|problem| BlobError { page, problem })?))
    }

    async fn load(&self, root: PageIndex) -> Found {
        let mut found = Found {
            id: blob_id(root),
            pages: vec![root],
            clusters: Vec::new(),
            name: None,
            external_parent: None,
            result: Err(Damage::Missing),
        };
        let mut extents = BTreeMap::new();
        found.result = self.load_parts(root, &mut found, &mut extents).await;
        if found.result.is_err() && found.clusters.is_empty() {
            let in_place = extents.iter().filter(|(slot, extent)| is_in_place(**slot, extent));
            found.clusters.extend(in_place.flat_map(|(_, extent)| runs_of_page(extent)));
        }
        found
    }

    async fn load_parts(
        &self,
        root: PageIndex,
        found: &mut Found,
        extents: &mut BTreeMap<TableSlot, Rc<ExtentRuns>>,
    ) -> Result<LoadedBlob, Damage> {
        let mut reader = BlobReader::start(self.layout, root, &*self.get(root).await?)?;
        while let Some(page) = reader.next_page() {
            found.pages.push(page);
            reader.add(&*self.get(page).await?)?;
        }
        let blob = reader.finish()?.blob;
        found.name = lvolstore::name(&blob.xattrs).ok().map(|name| name.to_string());
        found.external_parent = blob.external_parent().map(external_name);
        let mut damage = None;
        if let Mapping::Table(table) = &blob.mapping {
            for (slot, page) in table.iter() {
                spend(&self.extent_pages_left, 1)?;
                found.pages.push(page);
                match self.get_extent(page).await {
                    Ok(extent) => {
                        let in_place = is_in_place(slot, &extent);
                        extents.insert(slot, extent);
                        // The map says what is wrong with it; a page in many places counts once.
                        if !in_place {
                            break;
                        }
                    }
                    Err(problem) => damage = damage.or(Some(problem)),
                }
            }
        }
        if let Some(damage) = damage {
            return Err(damage);
        }
        let map = ClusterMap::of(&blob, extents)?;
        spend(&self.clusters_left, map.allocated())?;
        let clusters = map.clusters().0;
        if clusters > VOLUME_CLUSTERS_LIMIT {
            found.clusters = runs_of_map(&map).collect();
            return Err(Damage::TooLarge { clusters });
        }
        Ok(LoadedBlob { blob, map })
    }

    async fn load_all(&self, roots: impl Iterator<Item = PageIndex>) -> Vec<Found> {
        let loads = roots.map(|root| self.load(root));
        let mut found: Vec<_> = stream::iter(loads).buffer_unordered(LOAD_DEPTH).collect().await;
        found.sort_unstable_by_key(|found| found.id);
        found
    }
}

/// Whether an extent page is of the place where the table has it.
fn is_in_place(slot: TableSlot, extent: &ExtentRuns) -> bool {
    extent.first == slot.first_cluster()
}

/// Loads by the bitmaps of an orderly close; an error: they cannot be believed.
async fn load_clean<D: BlockDevice>(
    io: &MetadataIo<D>,
    layout: &Layout,
    own_blob: BlobId,
) -> Result<Loaded, Damage> {
    let clusters = read_mask(io, layout, MaskKind::UsedClusters).await?;
    let used_pages = read_mask(io, layout, MaskKind::UsedPages).await?;
    let ids = read_mask(io, layout, MaskKind::UsedBlobIds).await?;
    let pages = Pages::new(io, layout, Cache::default());
    let found = pages.load_all(ids.iter().map(PageIndex)).await;
    let mut loaded = Loaded::new(layout, found, Recovery { clean: true, ..Recovery::default() });
    let covered = loaded.blobs.values().all(|LoadedBlob { blob, map }| {
        pages_of(blob).iter().all(|page| used_pages.contains(page.0))
            && map.device_clusters().all(|cluster| clusters.contains(cluster.0))
    });
    if !covered || !ids.contains(root_page(own_blob).unwrap_or_default().0) {
        return Err(Damage::Missing);
    }
    // More than the blobs are known to use: what belongs to blobs in quarantine.
    clusters.iter().for_each(|cluster| {
        loaded.allocator.claim_cluster(ClusterIndex(cluster));
    });
    used_pages.iter().for_each(|page| {
        loaded.allocator.claim_page(PageIndex(page));
    });
    Ok(loaded)
}

async fn read_mask<D: BlockDevice>(
    io: &MetadataIo<D>,
    layout: &Layout,
    mask: MaskKind,
) -> Result<BitSet, Damage> {
    let region = layout.mask_region(mask).ok_or(Damage::Missing)?;
    let (offset, length) = layout.region_bytes(region);
    let bits = layout.mask_bits(mask);
    let page = layout.metadata_page_size().0 as usize;
    let wanted = mask_bytes(bits).next_multiple_of(page).min(length.0 as usize);
    Ok(decode_mask(mask, &io.read_region(offset, wanted).await?, bits)?)
}

/// Loads what a scan found.
async fn load_scanned<D: BlockDevice>(io: &MetadataIo<D>, layout: &Layout, scan: Scan) -> Loaded {
    let Scan { roots, broken_roots, unreadable, others, cache, .. } = scan;
    let pages_scanned = scan.pages;
    let pages = Pages::new(io, layout, cache);
    let mut found = pages.load_all(roots.into_iter()).await;
    found.extend(broken_roots.into_iter().map(|(root, problem)| Found {
        id: blob_id(root),
        pages: vec![root],
        clusters: Vec::new(),
        name: None,
        external_parent: None,
        result: Err(BlobError { page: root, problem }.into()),
    }));
    // A page that cannot be read and that nobody refers to may be the root of a lost volume.
    let known: HashSet<_> = found.iter().flat_map(|found| &found.pages).copied().collect();
    let lost = unreadable.into_iter().filter(|(page, _)| !known.contains(page));
    found.extend(lost.map(|(root, error)| Found {
        id: blob_id(root),
        pages: vec![root],
        clusters: Vec::new(),
        name: None,
        external_parent: None,
        result: Err(error.into()),
    }));
    let stray = stray::of(&pages, &found, others).await;
    let mut loaded = Loaded::new(layout, found, Recovery { pages_scanned, ..Recovery::default() });
    loaded.keep(stray);
    loaded
}

impl Loaded {
    /// Sorts what was found. What damaged blobs use is claimed; what healthy ones use is claimed
    /// when they become volumes.
    fn new(layout: &Layout, found: Vec<Found>, recovery: Recovery) -> Self {
        let mut loaded = Self {
            layout: layout.clone(),
            allocator: Allocator::new(layout),
            blobs: BTreeMap::new(),
            quarantined: Vec::new(),
            held: Vec::new(),
            stray: Stray::default(),
            recovery: Recovery { blobs: found.len() as u32, ..recovery },
        };
        for Found { id, pages, clusters, name, external_parent, result } in found {
            match result {
                Ok(blob) => {
                    loaded.blobs.insert(id, blob);
                }
                Err(damage) => {
                    let found = Quarantined { id, name, damage, external_parent };
                    loaded.quarantine(found, pages, clusters);
                }
            }
        }
        loaded
    }

    fn claim(&mut self, pages: &[PageIndex], clusters: impl Iterator<Item = ClusterRun>) {
        for page in pages {
            self.allocator.claim_page(*page);
        }
        for (first, count) in clusters {
            self.allocator.claim_clusters(first, count);
        }
    }

    fn claim_blob(&mut self, blob: &Blob, map: &ClusterMap) {
        self.claim(&pages_of(blob), runs_of_map(map));
    }

    /// Claims what those in quarantine may have.
    fn keep(&mut self, stray: Stray) {
        for page in stray.pages.iter().chain(stray.used_pages.iter()) {
            self.allocator.claim_page(PageIndex(page));
        }
        for cluster in stray.clusters.iter().chain(stray.used_clusters.iter()) {
            self.allocator.claim_cluster(ClusterIndex(cluster));
        }
        self.stray = stray;
    }

    /// What is not served keeps what it is known to have.
    fn quarantine(&mut self, found: Quarantined, pages: Vec<PageIndex>, clusters: Vec<ClusterRun>) {
        tracing::error!(blob = found.id.0, found.name, %found.damage, "volume quarantined");
        self.claim(&pages, clusters.iter().copied());
        self.held.push(Held { id: found.id, pages, clusters });
        self.quarantined.push(found);
    }

    fn quarantine_loaded(&mut self, id: BlobId, damage: Damage) {
        if let Some(LoadedBlob { blob, map }) = self.blobs.remove(&id) {
            let name = lvolstore::name(&blob.xattrs).ok().map(|name| name.to_string());
            let external_parent = blob.external_parent().map(external_name);
            let found = Quarantined { id, name, damage, external_parent };
            self.quarantine(found, pages_of(&blob), runs_of_map(&map).collect());
        }
    }
}

fn runs_of_map(map: &ClusterMap) -> impl Iterator<Item = ClusterRun> + '_ {
    map.runs().iter().map(|run| (run.device, run.count))
}

fn runs_of_page(extent: &ExtentRuns) -> impl Iterator<Item = ClusterRun> + '_ {
    extent.runs.iter().map(|run| (run.device, ClusterCount(run.count.into())))
}

/// The metadata pages of a blob.
fn pages_of(blob: &Blob) -> Vec<PageIndex> {
    let mut pages: Vec<_> = root_page(blob.id).into_iter().collect();
    pages.extend(&blob.chain);
    if let Mapping::Table(table) = &blob.mapping {
        pages.extend(table.iter().map(|(_, page)| page));
    }
    pages
}
