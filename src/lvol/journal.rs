//! Pages that are rewritten in place: roots, and the super block where more than its mark changes.
//!
//! Where the device's atomic unit is smaller than a page, a power cut can tear one. There, in order:
//!
//! 1. What the pages hold now is read, and the pages are written to the journal. FLUSH: the record
//!    is on the medium. A crash up to here leaves the places as they were, and a record that is not
//!    complete or that no place was torn under.
//! 2. The pages are written in their places. FLUSH. A crash in between leaves each page old, new or
//!    torn; opening restores the torn ones before anything else (`recover/replay.rs`).
//! 3. The next record may replace this one.
//!
//! The journal itself is made by the first commit that finds none. In order: its clusters are zeroed
//! and its extent page is written. FLUSH. Its root is written. FLUSH. A torn root of a journal is no
//! blob, and a torn mark in the super block proves itself, so this needs no journal. Where there is
//! no room for one, pages are written without; that is logged, and the next commit tries again.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;

use async_lock::{Mutex, MutexGuard};
use futures_util::future::join_all;
use uuid::Uuid;

use crate::block::{BlockDevice, BlockError, Geometry};
use crate::units::{BlobId, ByteOffset, ClusterIndex, PageIndex, VolumeCluster};

use super::error::Error;
use super::format::{
    JOURNAL_NAME, Journal, Layout, PageBytes, Rewrite, STRUCTURE_SIZE, VolumeName, blob_id,
    encode_record, is_journal,
};
use super::operations::map_all;
use super::store::{State, Store};
use super::volume::Volume;
use super::volume_map::{Place, VolumeMap};

/// Metadata pages that the making of a journal leaves for others.
const PAGES_LEFT: u32 = 8;

/// How pages are rewritten in place.
pub(super) struct InPlace {
    /// Whether a power cut can tear a page.
    tears: bool,
    /// Held while pages are rewritten: the journal holds one record.
    turn: Mutex<()>,
    /// Whether it was said that there is no room for a journal.
    warned: Cell<bool>,
}

/// The journal of a pool in use.
pub(super) struct OwnJournal {
    pub(super) id: BlobId,
    pub(super) journal: Journal,
}

/// How in-place pages are protected from being torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TornWrites {
    /// The device writes a page as a whole or not at all.
    Atomic,
    /// They are written to the journal first.
    Journal,
    /// There is no journal: it is made by the first commit, if there is room.
    Unprotected,
}

impl InPlace {
    pub(super) fn new(geometry: &Geometry) -> Self {
        let tears = geometry.atomic_write.get() < STRUCTURE_SIZE as u64;
        Self { tears, turn: Mutex::new(()), warned: Cell::new(false) }
    }

    /// The right to rewrite pages in place.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }
}

/// The journal among the volumes of a pool: the first that can be used.
pub(super) fn find_journal<'v>(
    layout: &Layout,
    volumes: impl Iterator<Item = &'v Volume>,
) -> Option<OwnJournal> {
    let usable = volumes.filter(|volume| !volume.deleted && volume.limit.is_none());
    usable.filter(|volume| is_journal(&volume.blob.xattrs)).find_map(|volume| {
        let place = |cluster| match volume.map.get(cluster) {
            Place::Own(place) => Some(place),
            Place::None | Place::Parent(_) => None,
        };
        let journal = Journal::of(layout, &volume.blob, volume.clusters, place)?;
        Some(OwnJournal { id: volume.blob.id, journal })
    })
}

impl<D: BlockDevice> Store<D> {
    /// How pages that are rewritten in place are protected.
    #[must_use]
    pub fn torn_writes(&self) -> TornWrites {
        match self.state.borrow().journal {
            _ if !self.in_place.tears => TornWrites::Atomic,
            Some(_) => TornWrites::Journal,
            None => TornWrites::Unprotected,
        }
    }

    /// The first of `pages`, as many as can be rewritten at a time, and the others.
    pub(super) fn first_batch<'p, T>(&self, pages: &'p [T]) -> (&'p [T], &'p [T]) {
        let state = self.state.borrow();
        let journal = state.journal.as_ref().filter(|_| self.in_place.tears);
        let limit = journal.map_or(pages.len(), |own| own.journal.capacity());
        pages.split_at(limit.min(pages.len()))
    }

    /// Rewrites pages in place; they are durable on return. The caller has the turn.
    pub(super) async fn rewrite(&self, pages: &[(ByteOffset, PageBytes)]) -> Result<(), Error> {
        let mut rest = pages;
        while !rest.is_empty() {
            let (now, later) = self.first_batch(rest);
            if self.record(now).await? {
                self.flush().await?; // 1
            }
            self.write_in_place(now).await?; // 2
            rest = later; // 3
        }
        Ok(())
    }

    /// Step 2.
    pub(super) async fn write_in_place(
        &self,
        pages: &[(ByteOffset, PageBytes)],
    ) -> Result<(), Error> {
        let written = self.io.write_pages(pages).await;
        written.map_err(|cause| self.poison("metadata write", cause))?;
        self.flush().await
    }

    /// Step 1 without its flush; false if there is nothing to flush for.
    pub(super) async fn record(&self, pages: &[(ByteOffset, PageBytes)]) -> Result<bool, Error> {
        let places = match &self.state.borrow().journal {
            Some(own) if self.in_place.tears && !pages.is_empty() => own.journal.places().to_vec(),
            _ => return Ok(false),
        };
        let rewrites = pages.iter().map(|(offset, after)| async move {
            // A page that cannot be read cannot be restored, but perhaps be written.
            let before = self.io.read_page(*offset).await.unwrap_or([0; STRUCTURE_SIZE]);
            Rewrite { offset: *offset, before, after: *after }
        });
        let record = encode_record(&join_all(rewrites).await);
        let record: Vec<_> = places.into_iter().zip(record).collect();
        let written = self.io.write_pages(&record).await;
        written.map_err(|cause| self.poison("journal write", cause))?;
        Ok(true)
    }

    /// Makes the journal if one is needed and a commit of `volumes` is about to write.
    pub(super) async fn make_journal(&self, volumes: &BTreeSet<BlobId>) -> Result<(), Error> {
        let wanted = {
            let state = self.state.borrow();
            let dirty = |id| state.volumes.get(id).is_some_and(Volume::is_dirty);
            self.in_place.tears && state.journal.is_none() && volumes.iter().any(dirty)
        };
        if !wanted {
            return Ok(());
        }
        let Some(places) = self.zeroed_for_journal().await else { return Ok(()) };
        let made = self.state.borrow_mut().add_journal(&self.layout, &self.fate, &places);
        let Some(id) = made else {
            let mut state = self.state.borrow_mut();
            places.into_iter().for_each(|place| state.allocator.free_cluster(place));
            drop(state);
            self.warn_unprotected("no metadata pages are free");
            return Ok(());
        };
        self.commit_now(&BTreeSet::from([id])).await?;
        let mut state = self.state.borrow_mut();
        state.journal = find_journal(&self.layout, state.volumes.get(&id).into_iter());
        tracing::info!(blob = id.0, "made a journal: the device can tear pages");
        Ok(())
    }

    async fn zeroed_for_journal(&self) -> Option<Vec<ClusterIndex>> {
        let wanted = Journal::clusters_for(&self.layout).0;
        let mut places = Vec::new();
        {
            let mut state = self.state.borrow_mut();
            let free = state.allocator.free_clusters().0.saturating_sub(state.promised(None));
            if free >= wanted {
                places.extend((0..wanted).map_while(|_| state.allocator.take_cluster().ok()));
            }
        }
        if places.len() < wanted as usize {
            self.warn_unprotected("no space is free");
            return None;
        }
        let zeroed = self.io.zero(&self.joined_clusters(places.clone())).await;
        let Err(error) = zeroed else { return Some(places) };
        let mut state = self.state.borrow_mut();
        match error {
            // The outcome is unknown: it may still happen.
            BlockError::NoAnswer { .. } => state.lost.append(&mut places),
            _ => places.into_iter().for_each(|place| state.allocator.free_cluster(place)),
        }
        drop(state);
        self.warn_unprotected("its place cannot be zeroed");
        None
    }

    fn warn_unprotected(&self, reason: &'static str) {
        if !self.in_place.warned.replace(true) {
            tracing::warn!(
                reason,
                "no journal: a power cut can tear metadata pages on this device; free some space"
            );
        }
    }
}

impl State {
    /// The journal, in memory; `None` if there is no room for its metadata.
    fn add_journal(
        &mut self,
        layout: &Layout,
        fate: &Arc<super::volume_map::Fate>,
        places: &[ClusterIndex],
    ) -> Option<BlobId> {
        if self.allocator.free_pages() < 2 + PAGES_LEFT {
            return None;
        }
        let name = self.journal_name()?;
        let root: PageIndex = self.allocator.take_root_page().ok()?;
        let (id, clusters) = (blob_id(root), Journal::clusters_for(layout));
        let blob = Journal::blob(id, &name, Uuid::new_v4(), clusters);
        let map = Arc::new(VolumeMap::new(id, layout, fate));
        let mut volume = Volume::new(blob, map, name.clone(), clusters);
        volume.root_dirty = true;
        map_all(&mut volume, 0..clusters.0, places);
        volume.map.set_clusters(clusters);
        debug_assert!(matches!(volume.map.get(VolumeCluster(0)), Place::Own(_)), "it has a place");
        self.names.insert(name, id);
        self.volumes.insert(id, volume);
        Some(id)
    }

    /// A name that no volume has.
    fn journal_name(&self) -> Option<VolumeName> {
        let numbered = (2..1000).map(|number| format!("{JOURNAL_NAME}-{number}"));
        let candidates = std::iter::once(JOURNAL_NAME.to_owned()).chain(numbered);
        let mut names = candidates.filter_map(|name| VolumeName::new(&name).ok());
        names.find(|name| !self.names.contains_key(name))
    }
}
