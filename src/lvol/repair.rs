//! Repairing a store that nobody has in use: `lvolfs check --repair`.
//!
//! Only what needs no guess is repaired: the super block, if it can be proven; interrupted snapshot
//! operations, as an opening ends them; metadata pages that nobody refers to; the bitmaps. Data
//! clusters are never written. What cannot be repaired is left as it is; opening the store puts it
//! into quarantine. As long as there is such damage, nothing is erased: it may be what is missing.
//! Who has no hope for a damaged blob gives it up by name; what it had is nobody's then.
//!
//! The whole repair is planned against a copy in memory of the pages that change. Then:
//!
//! 1. All pages that will change are saved, old and new, in an undo file, which is made durable
//!    ([`undo`]).
//! 2. A rebuilt super block is written, saying "not clean". FLUSH. Pages that a power cut tore are
//!    written as the journal has them. FLUSH.
//! 3. A super block that says "clean" is changed to say "not clean". FLUSH. From here on the
//!    bitmaps are not believed. The roots of blobs that are given up are erased. FLUSH.
//! 4. Fresh extent and chain pages of volumes that change. FLUSH. Nothing refers to them yet.
//! 5. Roots of clones, which stop to share with the snapshot that stays. FLUSH.
//! 6. Roots of the snapshots: finished or erased. FLUSH.
//! 7. Pages that nobody refers to any more are erased. FLUSH.
//! 8. The bitmaps. FLUSH.
//! 9. If nothing is damaged, or if the bitmaps before told what is, the super block says "clean".
//!    FLUSH.
//!
//! A crash leaves a store that a second repair ends, for each step leaves the next one's work as it
//! was; on a device that tears pages, the second repair starts with what the undo file has.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::units::{BlobId, ClusterIndex, PageIndex, VolumeCluster};

use super::check::{CheckError, Known, examined, find};
use super::format::{
    BitSet, Blob, ClusterMap, ExtentPage, Layout, Mapping, MaskKind, PageBytes, STRUCTURE_SIZE,
    SuperBlock, TableSlot, encode_mask, root_page,
};
use super::validate::{
    Examined, Finding, ImageRead, Masks, Overlay, Pages, Severity, ValidateError, image_read,
};

pub mod undo;

/// An image that can be changed.
pub trait ImageWrite: ImageRead {
    /// Writes bytes at a position inside of the image.
    ///
    /// # Errors
    /// What the operating system says.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// What the operating system says; what was written since the last call may be lost then.
    fn flush(&self) -> io::Result<()>;
}

impl ImageWrite for File {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// What is written between two flushes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub what: &'static str,
    pages: Pages,
}

/// A repair that can be carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What is done, in order.
    pub fn steps(&self) -> impl Iterator<Item = (&'static str, usize)> + '_ {
        self.steps.iter().map(|step| (step.what, step.pages.len()))
    }

    /// Writes everything in order. What it replaces must have been saved before.
    ///
    /// # Errors
    /// What the operating system says; nothing further is written then.
    pub fn carry_out(&self, image: &dyn ImageWrite) -> io::Result<()> {
        for step in &self.steps {
            for (offset, page) in &step.pages {
                image.write_at(*offset, page)?;
            }
            image.flush()?;
        }
        Ok(())
    }

    /// Everything that is written, in order.
    fn writes(&self) -> impl Iterator<Item = (u64, PageBytes)> + '_ {
        self.steps.iter().flat_map(|step| step.pages.iter().map(|(at, page)| (*at, *page)))
    }
}

/// Plans the repair of a store, and that damaged blobs are given up; nothing is written.
///
/// # Errors
/// [`CheckError`]: nothing could be checked, or a blob cannot be given up.
pub fn plan(image: &dyn ImageRead, known: Known, give_up: &[BlobId]) -> Result<Plan, CheckError> {
    let image_and_changes = Overlay { below: image, pages: Pages::new() };
    let mut planner = Planner { image: image_and_changes, plan: Plan::default(), held: None };
    let found = find(image, known)?;
    let Some(super_block) = found.super_block else { return Ok(planner.plan) };
    if found.damage.is_some() {
        planner.step("rebuild the super block", [(0, super_block.encode())])?;
    }
    let store = examined(image, super_block, found.is_torn)?;
    planner.step("restore torn pages", store.torn)?;
    let mut store = examined(&planner.image, store.super_block, false)?;
    planner.held = store.masks.take();
    let super_block = planner.give_up(store, give_up)?;
    let store = examined(&planner.image, super_block, false)?;
    let super_block = planner.finish_interrupted(store)?;
    let store = examined(&planner.image, super_block, false)?;
    let super_block = planner.erase_orphans(store)?;
    let store = examined(&planner.image, super_block, false)?;
    planner.rewrite_masks(store)?;
    Ok(planner.plan)
}

struct Planner<'i> {
    image: Overlay<'i>,
    plan: Plan,
    /// What the bitmaps say that were true before the repair. What damaged blobs use stands nowhere
    /// else.
    held: Option<Masks>,
}

fn is_damaged(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity() == Severity::Damage)
}

impl Planner<'_> {
    /// Adds a step of those pages that really change.
    fn step(
        &mut self,
        what: &'static str,
        pages: impl IntoIterator<Item = (u64, PageBytes)>,
    ) -> Result<(), ValidateError> {
        let mut changed = Pages::new();
        for (offset, page) in pages {
            let mut now = [0; STRUCTURE_SIZE];
            image_read(&self.image, offset, &mut now)?;
            if now != page {
                changed.insert(offset, page);
            }
        }
        if !changed.is_empty() {
            self.image.pages.extend(changed.iter().map(|(offset, page)| (*offset, *page)));
            self.plan.steps.push(Step { what, pages: changed });
        }
        Ok(())
    }

    fn mark_not_clean(&mut self, super_block: &mut SuperBlock) -> Result<(), ValidateError> {
        super_block.set_clean(false);
        self.step("mark the store as not clean", [(0, super_block.encode())])
    }

    /// Erases the roots of damaged blobs.
    fn give_up(&mut self, store: Examined, blobs: &[BlobId]) -> Result<SuperBlock, CheckError> {
        let Examined { mut super_block, walk, findings, .. } = store;
        if blobs.is_empty() {
            return Ok(super_block);
        }
        let damage = findings.iter().filter(|finding| finding.severity() == Severity::Damage);
        let damaged: HashSet<_> = damage.flat_map(Finding::blobs).collect();
        let layout = super_block.layout().clone();
        let mut roots = Vec::new();
        for &blob in blobs {
            if super_block.super_blob() == Some(blob) {
                return Err(CheckError::OwnBlob { blob });
            }
            let root = root_page(blob).and_then(|root| layout.page_offset(root));
            let Some(root) = root.filter(|_| damaged.contains(&blob)) else {
                return Err(CheckError::NotDamaged { blob });
            };
            let others = walk.blobs.iter().filter(|(id, _)| !blobs.contains(id));
            for (&needs, member) in others {
                let other = &member.blob;
                let relatives = [other.parent(), other.snapshot_of(), other.deleting_for()];
                if relatives.contains(&Some(blob)) {
                    return Err(CheckError::Needed { blob, needs });
                }
            }
            roots.push((root.0, [0; STRUCTURE_SIZE]));
        }
        if super_block.is_clean() {
            self.mark_not_clean(&mut super_block)?;
        }
        self.step("erase the roots of what is given up", roots)?;
        for root in blobs.iter().filter_map(|blob| root_page(*blob)) {
            let of_roots =
                self.held.iter_mut().flat_map(|held| [&mut held.pages, &mut held.blob_ids]);
            of_roots.flatten().for_each(|bits| {
                bits.remove(root.0);
            });
        }
        Ok(super_block)
    }

    /// Ends interrupted snapshot operations as an opening does.
    fn finish_interrupted(&mut self, store: Examined) -> Result<SuperBlock, ValidateError> {
        let Examined { mut super_block, walk, owned, .. } = store;
        let layout = super_block.layout().clone();
        let mut change = Change::new(&layout, owned.pages);
        let mut users: HashMap<PageIndex, u32> = HashMap::new();
        for page in walk.blobs.values().flat_map(|member| pages_of(&member.blob)) {
            *users.entry(page).or_default() += 1;
        }
        let parents: HashSet<_> =
            walk.blobs.values().filter_map(|member| member.blob.parent()).collect();
        for (id, member) in &walk.blobs {
            let blob = &member.blob;
            let Some(other) = blob.deleting_for().or(blob.snapshot_of()) else { continue };
            let Some(relative) = walk.blobs.get(&other) else { continue };
            // Without both mappings nobody can tell what is shared.
            let (Some(map), Some(relative_map)) = (&member.map, &relative.map) else { continue };
            if relative.blob.parent() == Some(*id) {
                let mut kept = blob.clone();
                kept.set_deleting_for(None);
                kept.set_snapshot_of(None);
                kept.flags.read_only = true;
                let slots = shared_slots(map, relative_map);
                if slots.is_empty() {
                    change.rewrite(blob, kept, Roots::Snapshots);
                } else if let Some(Unshared { clone, surplus }) =
                    self.unshare(&layout, &relative.blob, &slots, map, &mut change)?
                    && change.rewrite(&relative.blob, clone, Roots::Clones)
                {
                    change.surplus.extend(surplus);
                    change.rewrite(blob, kept, Roots::Snapshots);
                }
            } else if !parents.contains(id) {
                change.erase(blob, |page| users.get(&page).is_some_and(|users| *users > 1));
            }
        }
        if change.is_empty() {
            return Ok(super_block);
        }
        if super_block.is_clean() {
            self.mark_not_clean(&mut super_block)?;
        }
        let Change { fresh, clones, snapshots, surplus, .. } = change;
        self.step("write fresh pages", fresh)?;
        self.step("let clones stop sharing with their snapshot", clones)?;
        self.step("end interrupted snapshot operations", snapshots)?;
        self.step("erase what they left", surplus)?;
        Ok(super_block)
    }

    /// A clone that does not map any more what its snapshot maps; `None` if there is no room for
    /// fresh pages, or if the clone has runs: those never share.
    fn unshare(
        &self,
        layout: &Layout,
        clone: &Blob,
        slots: &BTreeSet<u32>,
        snapshot: &ClusterMap,
        change: &mut Change<'_>,
    ) -> Result<Option<Unshared>, ValidateError> {
        let mut changed = clone.clone();
        let mut surplus = Vec::new();
        let Mapping::Table(table) = &mut changed.mapping else { return Ok(None) };
        for (slot, page) in table.clone().iter().filter(|(slot, _)| slots.contains(&slot.0)) {
            let Some(offset) = layout.page_offset(page) else { return Ok(None) };
            let mut bytes = [0; STRUCTURE_SIZE];
            image_read(&self.image, offset.0, &mut bytes)?;
            let Ok(mut content) = ExtentPage::parse(layout, &bytes) else { return Ok(None) };
            for (entry, at) in content.clusters.iter_mut().zip(content.first.0..) {
                if entry.is_some() && *entry == snapshot.get(VolumeCluster(at)) {
                    *entry = None;
                }
            }
            content.blob = clone.id;
            surplus.push((offset.0, [0; STRUCTURE_SIZE]));
            // The last page says how long the volume is, so one without clusters stays.
            if content.clusters.iter().all(Option::is_none) && slot.0 + 1 < table.slots() {
                table.clear(slot);
                continue;
            }
            let Some(fresh) = change.take(&content.encode()) else { return Ok(None) };
            table.set(slot, fresh);
        }
        Ok(Some(Unshared { clone: changed, surplus }))
    }

    /// Erases pages that nobody refers to, unless something is missing.
    fn erase_orphans(&mut self, store: Examined) -> Result<SuperBlock, ValidateError> {
        let Examined { super_block, walk, owned, findings, .. } = store;
        if is_damaged(&findings) {
            return Ok(super_block);
        }
        let layout = super_block.layout();
        // Not those that are damaged: one may be the root of a lost volume.
        let orphans = walk.others.keys();
        let offsets = orphans
            .filter(|page| !owned.pages.contains(page.0))
            .filter_map(|page| layout.page_offset(*page));
        let erased: Vec<_> = offsets.map(|offset| (offset.0, [0; STRUCTURE_SIZE])).collect();
        self.step("erase metadata pages that belong to nobody", erased)?;
        Ok(super_block)
    }

    /// Makes the bitmaps true, if they are wrong or if other steps have put everything in order.
    fn rewrite_masks(&mut self, store: Examined) -> Result<(), ValidateError> {
        let Examined { mut super_block, walk, owned, findings, .. } = store;
        let damaged = is_damaged(&findings);
        let wrong =
            |finding: &Finding| matches!(finding, Finding::Mask(_) | Finding::MaskBits { .. });
        let was_clean = super_block.is_clean();
        if was_clean && !findings.iter().any(wrong) {
            return Ok(());
        }
        if !was_clean && (self.plan.is_empty() || damaged && self.held.is_none()) {
            // Opening recovers, and reserves what damaged volumes are known to use.
            return Ok(());
        }
        let mut wanted = [
            (MaskKind::UsedPages, owned.pages),
            (MaskKind::UsedClusters, owned.clusters),
            (MaskKind::UsedBlobIds, walk.roots),
        ];
        if damaged {
            let held = self.held.take().map(|held| (held.pages, held.clusters, held.blob_ids));
            let Some((Some(pages), Some(clusters), Some(ids))) = held else {
                return match was_clean {
                    true => self.mark_not_clean(&mut super_block),
                    false => Ok(()),
                };
            };
            for ((_, bits), claimed) in wanted.iter_mut().zip([pages, clusters, ids]) {
                claimed.iter().for_each(|bit| {
                    bits.insert(bit);
                });
            }
        }
        let layout = super_block.layout().clone();
        let mut pages = Vec::new();
        for (kind, bits) in wanted {
            pages.extend(mask_pages(&layout, kind, &bits));
        }
        let mut changes = false;
        for (offset, page) in &pages {
            let mut now = [0; STRUCTURE_SIZE];
            image_read(&self.image, *offset, &mut now)?;
            changes |= now != *page;
        }
        if was_clean && !changes {
            return Ok(());
        }
        if was_clean {
            self.mark_not_clean(&mut super_block)?;
        }
        self.step("write the bitmaps", pages)?;
        super_block.set_clean(true);
        if super_block.is_clean() {
            self.step("mark the store as clean", [(0, super_block.encode())])?;
        }
        Ok(())
    }
}

/// A clone without what it shared, and the extent pages that it no longer has.
struct Unshared {
    clone: Blob,
    surplus: Vec<(u64, PageBytes)>,
}

/// A bitmap as pages, without what lies behind its last bit.
fn mask_pages(layout: &Layout, kind: MaskKind, bits: &BitSet) -> Vec<(u64, PageBytes)> {
    let Some(region) = layout.mask_region(kind) else { return Vec::new() };
    let start = layout.region_bytes(region).0.0;
    let encoded = encode_mask(kind, bits);
    let pages = encoded.chunks(STRUCTURE_SIZE).zip((start..).step_by(STRUCTURE_SIZE));
    pages
        .map(|(bytes, offset)| {
            let mut page = [0; STRUCTURE_SIZE];
            page[..bytes.len()].copy_from_slice(bytes);
            (offset, page)
        })
        .collect()
}

/// The places of a clone's table in which it maps what its snapshot maps at the same place.
fn shared_slots(snapshot: &ClusterMap, clone: &ClusterMap) -> BTreeSet<u32> {
    let mut slots = BTreeSet::new();
    for run in clone.runs() {
        for offset in 0..run.count.0 {
            let at = VolumeCluster(run.volume.0 + offset);
            if snapshot.get(at) == Some(ClusterIndex(run.device.0 + offset)) {
                slots.insert(TableSlot::of(at).0);
            }
        }
    }
    slots
}

/// The metadata pages of a blob but its root.
fn pages_of(blob: &Blob) -> Vec<PageIndex> {
    let mut pages = blob.chain.clone();
    if let Mapping::Table(table) = &blob.mapping {
        pages.extend(table.iter().map(|(_, page)| page));
    }
    pages
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Roots {
    Clones,
    Snapshots,
}

/// Changes to blobs, in the order in which they are written.
struct Change<'l> {
    layout: &'l Layout,
    used: BitSet,
    fresh: Vec<(u64, PageBytes)>,
    clones: Vec<(u64, PageBytes)>,
    snapshots: Vec<(u64, PageBytes)>,
    surplus: Vec<(u64, PageBytes)>,
    changed: BTreeSet<BlobId>,
}

impl<'l> Change<'l> {
    fn new(layout: &'l Layout, used: BitSet) -> Self {
        let (fresh, clones, snapshots, surplus) = Default::default();
        Self { layout, used, fresh, clones, snapshots, surplus, changed: BTreeSet::new() }
    }

    fn is_empty(&self) -> bool {
        self.clones.is_empty() && self.snapshots.is_empty()
    }

    fn offset(&self, page: PageIndex) -> Option<u64> {
        self.layout.page_offset(page).map(|offset| offset.0)
    }

    /// Puts content into a page that nobody uses.
    fn take(&mut self, content: &PageBytes) -> Option<PageIndex> {
        // Page 0 is never an extent page.
        let page = PageIndex(self.used.first_clear(1)?);
        let offset = self.offset(page)?;
        self.used.insert(page.0);
        self.fresh.push((offset, *content));
        Some(page)
    }

    /// Replaces a blob; chain pages go to fresh places. False if there is no room.
    fn rewrite(&mut self, old: &Blob, mut new: Blob, roots: Roots) -> bool {
        let Some(root) = root_page(new.id).and_then(|root| self.offset(root)) else { return false };
        // One blob has one role; a store in which it has more is left to an opening.
        if !self.changed.insert(new.id) {
            return false;
        }
        let needed = new.pages_needed() - 1;
        new.chain.clear();
        for _ in 0..needed {
            let Some(page) = self.take(&[0; STRUCTURE_SIZE]) else { return false };
            new.chain.push(page);
        }
        let Ok(mut pages) = new.encode() else { return false };
        let chain = pages.split_off(1);
        for (page, bytes) in new.chain.iter().zip(chain) {
            if let Some(offset) = self.offset(*page) {
                self.fresh.retain(|(at, _)| *at != offset);
                self.fresh.push((offset, bytes));
            }
        }
        let target = if roots == Roots::Clones { &mut self.clones } else { &mut self.snapshots };
        target.extend(pages.pop().map(|page| (root, page)));
        let old_chain: Vec<_> = old.chain.iter().filter_map(|page| self.offset(*page)).collect();
        self.surplus.extend(old_chain.into_iter().map(|offset| (offset, [0; STRUCTURE_SIZE])));
        true
    }

    /// Erases a blob, but not what another one has of it.
    fn erase(&mut self, blob: &Blob, is_shared: impl Fn(PageIndex) -> bool) {
        let Some(root) = root_page(blob.id).and_then(|root| self.offset(root)) else { return };
        if !self.changed.insert(blob.id) {
            return;
        }
        self.snapshots.push((root, [0; STRUCTURE_SIZE]));
        let pages = pages_of(blob).into_iter().filter(|page| !is_shared(*page));
        let offsets: Vec<_> = pages.filter_map(|page| self.offset(page)).collect();
        self.surplus.extend(offsets.into_iter().map(|offset| (offset, [0; STRUCTURE_SIZE])));
    }
}
