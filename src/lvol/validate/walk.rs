//! Reads all metadata: every slot of the region once, then every blob from its root.

use std::collections::BTreeMap;

use crate::units::{BlobId, PageIndex};

use super::super::format::{
    BitSet, Blob, BlobReader, ClusterMap, ExtentRuns, Layout, Mapping, PageBytes, PageKind,
    PageProblem, ReadBlob, STRUCTURE_SIZE, TableSlot, blob_id, claims_root, is_torn_journal,
};
use super::volume::Volume;
use super::{Finding, Findings, ImageRead, ValidateError, image, lvolstore};

/// Bytes of the metadata region that are read at once.
const READ_BYTES: usize = 1 << 20;

/// All blobs of a store.
pub(in crate::lvol) struct Walk {
    /// Slots that hold the root page of a blob, readable or not.
    pub(in crate::lvol) roots: BitSet,
    /// Intact slots that are no root, with the blob that wrote them.
    pub(in crate::lvol) others: BTreeMap<PageIndex, BlobId>,
    /// Slots that are neither intact nor erased.
    pub(in crate::lvol) damaged: Vec<PageIndex>,
    /// The readable blobs.
    pub(in crate::lvol) blobs: BTreeMap<BlobId, Member>,
    budget: Budget,
}

/// How much blobs may still refer to. In a store each extent page and each cluster has one owner,
/// or two while a snapshot is being made or deleted; without a bound, a small store whose blobs all
/// refer to the same pages would take any amount of time and memory.
struct Budget {
    extent_pages: u64,
    clusters: u64,
}

/// What the budget allows of each page and cluster of the store.
const REFERENCES_EACH: u64 = 4;

impl Budget {
    fn new(layout: &Layout) -> Self {
        Self {
            extent_pages: REFERENCES_EACH * u64::from(layout.metadata_pages()),
            clusters: REFERENCES_EACH * u64::from(layout.clusters().0),
        }
    }
}

fn spend(budget: &mut u64, amount: u64) -> Option<()> {
    *budget = budget.checked_sub(amount)?;
    Some(())
}

/// A readable blob.
pub(in crate::lvol) struct Member {
    pub(in crate::lvol) blob: Blob,
    /// `None` if it is wrong.
    pub(in crate::lvol) map: Option<ClusterMap>,
}

impl Walk {
    /// Reads everything; `listed` are the roots that the bitmap of a clean store names.
    pub(super) fn of(
        image: &dyn ImageRead,
        layout: &Layout,
        listed: Option<&BitSet>,
        findings: &mut Findings,
    ) -> Result<Self, ValidateError> {
        let mut walk = Self {
            roots: BitSet::new(layout.metadata_pages()),
            others: BTreeMap::new(),
            damaged: Vec::new(),
            blobs: BTreeMap::new(),
            budget: Budget::new(layout),
        };
        walk.scan(image, layout)?;
        let mut candidates = walk.roots.clone();
        for index in listed.iter().flat_map(|listed| listed.iter()) {
            candidates.insert(index);
        }
        for root in candidates.iter().map(PageIndex) {
            if findings.is_full() {
                break;
            }
            walk.read_blob(image, layout, root, findings)?;
        }
        Ok(walk)
    }

    fn scan(&mut self, image: &dyn ImageRead, layout: &Layout) -> Result<(), ValidateError> {
        let slot = layout.metadata_page_size().0 as usize;
        let (mut offset, length) = layout.region_bytes(layout.metadata_region());
        let at_once = (READ_BYTES / slot).clamp(1, layout.metadata_pages().max(1) as usize);
        let mut buffer = vec![0; at_once * slot];
        let end = offset.0 + length.0;
        let mut index = 0;
        while offset.0 < end {
            // Erased slots are nothing, and an image may have many of them.
            let data = image.next_data(offset.0).unwrap_or(end).min(end);
            let skipped = data.saturating_sub(offset.0) / slot as u64;
            offset.0 += skipped * slot as u64;
            index += skipped as u32;
            if offset.0 >= end {
                break;
            }
            let now = buffer.len().min((end - offset.0) as usize);
            image::read(image, offset.0, &mut buffer[..now])?;
            for bytes in buffer[..now].chunks_exact(slot) {
                let Some((bytes, _)) = bytes.split_first_chunk::<STRUCTURE_SIZE>() else {
                    unreachable!("a metadata slot has at least 4096 bytes")
                };
                self.classify(layout, PageIndex(index), bytes);
                index += 1;
            }
            offset.0 += now as u64;
        }
        Ok(())
    }

    fn classify(&mut self, layout: &Layout, index: PageIndex, bytes: &PageBytes) {
        match PageKind::classify(index, bytes) {
            PageKind::Root(_) => {
                self.roots.insert(index.0);
            }
            PageKind::Chain(page) | PageKind::Extent(page) | PageKind::Misplaced(page) => {
                self.others.insert(index, page.blob());
            }
            PageKind::Invalid(PageProblem::Erased) => {}
            PageKind::Invalid(_)
                if claims_root(index, bytes) && !is_torn_journal(layout, index, bytes) =>
            {
                self.roots.insert(index.0);
            }
            PageKind::Invalid(_) => self.damaged.push(index),
        }
    }

    fn read_blob(
        &mut self,
        image: &dyn ImageRead,
        layout: &Layout,
        root: PageIndex,
        findings: &mut Findings,
    ) -> Result<(), ValidateError> {
        let id = blob_id(root);
        let bytes = read_page(image, layout, root)?;
        let mut read = BlobReader::start(layout, root, &bytes);
        while let Ok(reader) = &mut read
            && let Some(next) = reader.next_page()
        {
            let bytes = read_page(image, layout, next)?;
            if let Err(error) = reader.add(&bytes) {
                read = Err(error);
            }
        }
        match read.and_then(BlobReader::finish) {
            Err(error) => findings.add(Finding::Blob { blob: id, error }),
            Ok(ReadBlob { blob, oddities }) => {
                for oddity in oddities {
                    findings.add(Finding::Odd { blob: id, oddity });
                }
                let map = read_map(image, layout, &blob, &mut self.budget, findings)?;
                self.blobs.insert(id, Member { blob, map });
            }
        }
        Ok(())
    }

    /// The blobs as volumes; those without a usable mapping are left out.
    pub(super) fn volumes(self, layout: &Layout) -> BTreeMap<BlobId, Volume> {
        let volume = |(id, member): (BlobId, Member)| {
            let map = member.map?;
            Some((id, Volume::new(layout, &member.blob, map)))
        };
        let mut volumes: BTreeMap<BlobId, Volume> =
            self.blobs.into_iter().filter_map(volume).collect();
        let parents: Vec<_> =
            volumes.iter().filter_map(|(id, volume)| Some((volume.parent_blob()?, *id))).collect();
        for (parent, clone) in parents {
            if let Some(parent) = volumes.get_mut(&parent) {
                parent.clones.push(clone);
            }
        }
        volumes
    }
}

fn read_page(
    image: &dyn ImageRead,
    layout: &Layout,
    page: PageIndex,
) -> Result<PageBytes, ValidateError> {
    let Some(offset) = layout.page_offset(page) else {
        unreachable!("the parsers let no page number outside of the region pass")
    };
    let mut bytes = [0; STRUCTURE_SIZE];
    image::read(image, offset.0, &mut bytes)?;
    Ok(bytes)
}

/// Reads the extent pages of a blob and joins its mapping; `None` if that is not possible.
fn read_map(
    image: &dyn ImageRead,
    layout: &Layout,
    blob: &Blob,
    budget: &mut Budget,
    findings: &mut Findings,
) -> Result<Option<ClusterMap>, ValidateError> {
    let mut pages: BTreeMap<TableSlot, ExtentRuns> = BTreeMap::new();
    let mut complete = true;
    if let Mapping::Table(table) = &blob.mapping {
        for (slot, page) in table.iter() {
            if spend(&mut budget.extent_pages, 1).is_none() {
                findings.add(Finding::Excess { blob: blob.id });
                return Ok(None);
            }
            match ExtentRuns::parse(layout, &read_page(image, layout, page)?) {
                // The map says what is wrong with it; one page in many places takes memory once.
                Ok(content) if content.first != slot.first_cluster() => {
                    pages.insert(slot, content);
                    break;
                }
                Ok(content) => {
                    pages.insert(slot, content);
                }
                Err(problem) => {
                    complete = false;
                    findings.add(Finding::ExtentPage { blob: blob.id, page, problem });
                }
            }
        }
    }
    if !complete {
        return Ok(None);
    }
    match ClusterMap::of(blob, &pages) {
        Err(problem) => {
            findings.add(Finding::Mapping { blob: blob.id, problem });
            Ok(None)
        }
        Ok(map) if spend(&mut budget.clusters, map.allocated()).is_none() => {
            findings.add(Finding::Excess { blob: blob.id });
            Ok(None)
        }
        Ok(map) => {
            let (table, pages) = (blob.mapping.clusters(), map.clusters());
            if table != pages {
                findings.add(Finding::Size { blob: blob.id, table, pages });
            }
            Ok(Some(map))
        }
    }
}

/// Reports a name or UUID that is missing or unusable.
pub(super) fn check_identity(blob: &Blob, findings: &mut Findings) {
    let name = lvolstore::name(&blob.xattrs).err();
    let uuid = lvolstore::uuid(&blob.xattrs).err();
    for error in [name, uuid].into_iter().flatten() {
        findings.add(Finding::Identity { blob: blob.id, error });
    }
}
