//! Commit: making mappings, names and attributes durable. The order is everything:
//!
//! 1. A map names a cluster only after the cluster's whole content has completed, so the device
//!    holds at this moment, in its cache or on the medium, all data that this commit will point at.
//!    What memory says now is fixed: the plan.
//! 2. New extent pages and new chain pages are written to *fresh* metadata pages, which nothing on
//!    the medium refers to. FLUSH: they and the data are on the medium. A crash up to here leaves
//!    the old state; the fresh pages are rubbish that recovery does not see.
//! 3. Root pages are written in place; the root of a deleted volume is zeroed. FLUSH. A crash in
//!    between leaves each root old or new, and either is true: the pages and clusters of both are
//!    intact. (A root is atomic where the device's atomic unit is at least 4096 bytes.
//!    Elsewhere opening makes it so.)
//! 4. It is durable: maps are told, whoever waits is answered.
//! 5. Behind their backs (`reclaim.rs`): old pages are zeroed, dropped clusters are discarded, and
//!    both become usable when no I/O that can still know them is in flight.
//!
//! The first commit after a clean opening marks the super block not clean in step 2: what step 2
//! writes does not make the bitmaps untrue yet. Where the device tears pages, step 2 also writes the
//! roots to the journal, with the same flush (`journal.rs`); roots that do not fit into it at once
//! go through steps 2 and 3 in turn.
//!
//! Commits run one at a time. All who ask while one runs share the next, which takes what is
//! dirty of the volumes they name. One who asks for a volume that is not dirty gets one flush.
//! Steps that would write nothing are left out with their flush, and without a volatile cache there
//! is nothing to flush. The first failure of a write or a flush poisons the pool.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;

use futures_channel::oneshot;
use futures_util::future::join;

use crate::block::BlockDevice;
use crate::units::{BlobId, ByteOffset, ClusterIndex, PageIndex};

use super::allocator::Allocator;
use super::error::{Error, Resource};
use super::format::{
    ClearMethod, ExtentPage, Mapping, PageBytes, STRUCTURE_SIZE, TableSlot, root_page,
};
use super::store::{State, Store};
use super::volume::Volume;
use super::volume_map::VolumeMap;

/// Those who wait for the next commit, and whether a task serves them.
#[derive(Default)]
pub(super) struct Commits {
    served: Cell<bool>,
    next: RefCell<Round>,
}

/// One who waits, and the volumes that it asked for.
type Waiting = (BTreeSet<BlobId>, oneshot::Sender<Result<(), Error>>);

/// What one commit is asked for.
#[derive(Default)]
struct Round {
    volumes: BTreeSet<BlobId>,
    answers: Vec<Waiting>,
}

/// What one commit writes.
#[derive(Default)]
struct Plan {
    /// Extent pages and chain pages.
    fresh: Vec<(PageIndex, PageBytes)>,
    roots: Vec<(PageIndex, PageBytes)>,
    /// Whether data must be on the medium before the roots.
    maps_data: bool,
    durable: Vec<(Arc<VolumeMap>, u64)>,
    surplus: Surplus,
}

/// What nothing refers to after a commit.
#[derive(Default)]
pub(super) struct Surplus {
    /// Extent pages and chain pages, to be zeroed.
    pub(super) pages: Vec<PageIndex>,
    /// Roots of deleted volumes, which are zero.
    pub(super) roots: Vec<PageIndex>,
    pub(super) clusters: Vec<(ClusterIndex, ClearMethod)>,
}

impl<D: BlockDevice> Store<D> {
    /// Makes everything durable that completed before this call, and with it the mapping, name
    /// and attributes of `volumes`.
    ///
    /// # Errors
    /// [`Error::Poisoned`]; [`Error::NoSpace`] if there are no metadata pages for it.
    pub(super) async fn commit(
        &self,
        volumes: impl IntoIterator<Item = BlobId>,
    ) -> Result<(), Error> {
        self.fate.error().map_or(Ok(()), Err)?;
        self.count(|counters| counters.commit_requests += 1);
        let (answer, answered) = oneshot::channel();
        {
            let volumes: BTreeSet<_> = volumes.into_iter().collect();
            let mut next = self.commits.next.borrow_mut();
            next.volumes.extend(&volumes);
            next.answers.push((volumes, answer));
        }
        if !self.commits.served.replace(true) {
            let store = self.strong();
            self.reactor.spawn(async move { store.serve_commits().await });
        }
        answered.await.unwrap_or(Err(Error::Gone))
    }

    /// Commits a volume if it is dirty; without a flush if it is not.
    pub(super) async fn commit_dirty(&self, id: BlobId) -> Result<(), Error> {
        let dirty = self.state.borrow().volumes.get(&id).is_some_and(Volume::is_dirty);
        if dirty { self.commit([id]).await } else { Ok(()) }
    }

    /// Commits whatever is dirty.
    pub(super) async fn commit_all(&self) -> Result<(), Error> {
        let dirty: Vec<_> = self.state.borrow().dirty_volumes().collect();
        self.commit(dirty).await
    }

    /// Answers until nobody waits.
    async fn serve_commits(&self) {
        loop {
            let Round { volumes, answers } = self.commits.next.take();
            if answers.is_empty() {
                self.commits.served.set(false);
                return;
            }
            let result = self.commit_round(&volumes).await;
            // What there is no room for together there may be room for one by one.
            let alone = matches!(result, Err(Error::NoSpace { .. })) && answers.len() > 1;
            for (asked, answer) in answers {
                let result = if alone { self.commit_round(&asked).await } else { result.clone() };
                // One who no longer waits needs no answer.
                drop(answer.send(result));
            }
        }
    }

    /// One commit; the numbers are those of the module.
    async fn commit_round(&self, volumes: &BTreeSet<BlobId>) -> Result<(), Error> {
        self.fate.error().map_or(Ok(()), Err)?;
        self.make_journal(volumes).await?;
        self.commit_now(volumes).await
    }

    /// The steps.
    pub(super) async fn commit_now(&self, volumes: &BTreeSet<BlobId>) -> Result<(), Error> {
        let plan = self.plan_with_space(volumes).await?; // 1
        if plan.is_empty() {
            return self.flush().await;
        }
        let turn = self.in_place.turn().await;
        let roots = self.at_offsets(&plan.roots);
        let (first, others) = self.first_batch(&roots);
        self.write_fresh_pages(&plan, first).await?; // 2
        self.write_in_place(first).await?; // 3
        self.rewrite(others).await?;
        self.count(|counters| counters.roots_written += roots.len() as u64);
        drop(turn);
        for (map, version) in &plan.durable {
            map.set_durable(*version); // 4
        }
        self.count(|counters| counters.commits += 1);
        self.reclaim(plan.surplus); // 5
        Ok(())
    }

    /// Step 1. Pages that a former commit is about to give back are waited for.
    async fn plan_with_space(&self, volumes: &BTreeSet<BlobId>) -> Result<Plan, Error> {
        loop {
            let planned = self.plan(volumes);
            let full = matches!(planned, Err(Error::NoSpace { .. }));
            if !full || !self.reclaims.settle_once().await {
                return planned;
            }
        }
    }

    fn plan(&self, volumes: &BTreeSet<BlobId>) -> Result<Plan, Error> {
        let mut state = self.state.borrow_mut();
        let State { volumes: all, allocator, .. } = &mut *state;
        let mut wanted = 0;
        for id in volumes {
            if let Some(volume) = all.get_mut(id).filter(|volume| volume.is_dirty()) {
                wanted += pages_wanted(volume);
            }
        }
        if wanted > allocator.free_pages() as usize {
            return Err(Error::NoSpace { what: Resource::MetadataPage });
        }
        let mut plan = Plan::default();
        for id in volumes {
            let Some(volume) = all.get_mut(id).filter(|volume| volume.is_dirty()) else {
                continue;
            };
            if volume.deleted {
                plan.delete(volume);
                all.remove(id);
            } else {
                plan.update(volume, allocator)?;
            }
        }
        Ok(plan)
    }

    /// The bitmaps on the medium are about to become untrue; whether there is something to flush.
    async fn mark_not_clean(&self) -> Result<bool, Error> {
        let mut super_block = self.state.borrow().super_block.clone();
        if !super_block.is_clean() {
            return Ok(false);
        }
        super_block.set_clean(false);
        let written = self.io.write_page(ByteOffset(0), &super_block.encode()).await;
        written.map_err(|cause| self.poison("metadata write", cause))?;
        self.state.borrow_mut().super_block = super_block;
        Ok(true)
    }

    /// Fresh pages, and beside them the journal's record of the roots that are about to be
    /// rewritten, and the mark.
    async fn write_fresh_pages(
        &self,
        plan: &Plan,
        roots: &[(ByteOffset, PageBytes)],
    ) -> Result<(), Error> {
        let pages = self.at_offsets(&plan.fresh);
        let (written, recorded) = join(self.io.write_pages(&pages), self.record(roots)).await;
        written.map_err(|cause| self.poison("metadata write", cause))?;
        let (recorded, marked) = (recorded?, self.mark_not_clean().await?);
        self.count(|counters| counters.pages_written += pages.len() as u64);
        let needed = plan.maps_data || !pages.is_empty() || recorded || marked;
        if needed { self.flush().await } else { Ok(()) }
    }

    fn at_offsets(&self, pages: &[(PageIndex, PageBytes)]) -> Vec<(ByteOffset, PageBytes)> {
        pages.iter().map(|(page, bytes)| (self.page_offset(*page), *bytes)).collect()
    }

    pub(super) fn page_offset(&self, page: PageIndex) -> ByteOffset {
        match self.layout.page_offset(page) {
            Some(offset) => offset,
            None => unreachable!("pages come from the allocator, which knows the layout"),
        }
    }
}

/// Most pages that an update of `volume` can take.
fn pages_wanted(volume: &mut Volume) -> usize {
    if volume.deleted {
        return 0;
    }
    if !volume.has_table() {
        volume.blob.mapping = Mapping::Rle(volume.runs());
    }
    // Each extent page that is new or goes can cost the table two entries of eight bytes.
    let table_growth = match &volume.blob.mapping {
        Mapping::Table(table) if volume.dirty.is_empty() && table.clusters() == volume.clusters => {
            0
        }
        Mapping::Table(_) => volume.dirty.len() / 200 + 1,
        Mapping::Rle(_) => 0,
    };
    // The root has its page.
    volume.dirty.len() + volume.blob.pages_needed() - 1 + table_growth
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The root becomes zero; all else that the volume has is surplus.
    fn delete(&mut self, volume: &Volume) {
        let root = root_of(volume);
        self.roots.push((root, [0; STRUCTURE_SIZE]));
        self.surplus.roots.push(root);
        self.surplus.pages.extend(&volume.blob.chain);
        if let Mapping::Table(table) = &volume.blob.mapping {
            self.surplus.pages.extend(table.iter().map(|(_, page)| page));
        }
        self.drop_clusters(volume);
    }

    /// Dirty extent pages, chain and root are written; what they replace is surplus.
    fn update(&mut self, volume: &mut Volume, allocator: &mut Allocator) -> Result<(), Error> {
        // With a table, what is newly mapped is in fresh pages, which are flushed for anyway.
        self.maps_data |= !volume.dirty.is_empty() && !volume.has_table();
        let dirty = std::mem::take(&mut volume.dirty);
        if let Mapping::Table(table) = &mut volume.blob.mapping {
            self.surplus.pages.extend(table.set_clusters(volume.clusters));
            for slot in dirty {
                let entries = table.entries_of(slot);
                let clusters = volume.map.own_entries(slot, entries);
                if clusters.iter().all(Option::is_none) {
                    self.surplus.pages.extend(table.clear(slot));
                    continue;
                }
                let page = allocator.take_page()?;
                let (blob, first) = (volume.blob.id, slot.first_cluster());
                self.fresh.push((page, ExtentPage { blob, first, clusters }.encode()));
                self.surplus.pages.extend(table.set(slot, page));
            }
        }
        self.surplus.pages.append(&mut volume.blob.chain);
        for _ in 1..volume.blob.pages_needed() {
            volume.blob.chain.push(allocator.take_page()?);
        }
        let Ok(pages) = volume.blob.encode() else {
            unreachable!("the chain was just given the pages that it needs")
        };
        let chain = volume.blob.chain.iter();
        let places = std::iter::once(root_of(volume)).chain(chain.copied());
        let mut pages = places.zip(pages);
        self.roots.extend(pages.next());
        self.fresh.extend(pages);
        volume.root_dirty = false;
        self.durable.push((Arc::clone(&volume.map), volume.map.version()));
        self.drop_clusters(volume);
        volume.dropped.clear();
        Ok(())
    }

    fn drop_clusters(&mut self, volume: &Volume) {
        let clear = volume.blob.flags.clear_method;
        self.surplus.clusters.extend(volume.dropped.iter().map(|cluster| (*cluster, clear)));
    }
}

fn root_of(volume: &Volume) -> PageIndex {
    match root_page(volume.blob.id) {
        Some(page) => page,
        None => unreachable!("blobs are read from, and made with, a root page"),
    }
}

/// The place of a dirty extent page that a size change leaves behind, if the volume has one there:
/// SPDK takes a volume's size from the length of its last extent page.
pub(super) fn last_slot(volume: &Volume) -> Option<TableSlot> {
    let Mapping::Table(table) = &volume.blob.mapping else {
        return None;
    };
    let clusters = volume.clusters.0.min(table.clusters().0);
    let slot = TableSlot::of(crate::units::VolumeCluster(clusters.checked_sub(1)?));
    let has_page = table.get(slot).is_some();
    (has_page || volume.dirty.contains(&slot)).then_some(slot)
}
