//! A pool that is in use: the one owner of its metadata.
//!
//! A [`Store`] lives on one reactor, in an `Rc`; other reactors reach it through [`Store::remote`]
//! and share of each volume only its [`VolumeMap`]. What it holds in memory is ahead of the medium:
//! operations change memory at once and ask for a commit (`commit.rs`), which makes it durable.
//!
//! Invariants:
//! * A cluster or metadata page whose bit is clear in the allocator is named by no map, no page on
//!   the medium that recovery could believe, and no I/O in flight.
//! * After the first failed flush or metadata write nothing is written any more.
//! * The super block says clean on the medium only while the medium is exactly what memory says.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use futures_channel::oneshot;
use uuid::Uuid;

use crate::block::{BlockDevice, BlockError};
use crate::hw::dma::DmaArena;
use crate::reactor::{Reactor, Remote};
use crate::units::{BlobId, BlockSize, ByteCount, ClusterCount, ClusterIndex};

use super::allocator::Allocator;
use super::commit::Commits;
use super::error::{Damage, Error};
use super::external::{ExternalName, Externals};
use super::format::{SuperBlock, VolumeName};
use super::grow::GrowingLayout;
use super::journal::{InPlace, OwnJournal, TornWrites};
use super::metadata_io::MetadataIo;
use super::reclaim::Reclaims;
use super::recover::{Recovered, Recovery};
use super::scrub::Scrubs;
use super::space::{Space, SpaceState};
use super::supply::Supply;
use super::tracker::Tracker;
use super::volume::{Volume, VolumeInfo};
use super::volume_map::{CLOSED, Fate, POISONED, VolumeMap};

/// A pool in use, on its owner reactor; see the module.
pub struct Store<D: BlockDevice> {
    pub(super) this: Weak<Self>,
    pub(super) reactor: Rc<Reactor>,
    pub(super) io: MetadataIo<D>,
    pub(super) layout: GrowingLayout,
    pub(super) fate: Arc<Fate>,
    pub(super) state: RefCell<State>,
    /// Held by whoever changes names, sizes, attributes or the set of volumes, until it is durable.
    pub(super) operations: async_lock::Mutex<()>,
    pub(super) commits: Commits,
    pub(super) in_place: InPlace,
    pub(super) reclaims: Reclaims,
    pub(super) scrubs: Scrubs,
    /// Writers that wait for a volume to be thawed.
    pub(super) thaws: RefCell<Vec<oneshot::Sender<()>>>,
    pub(super) space: Space,
    pub(super) externals: Externals<D>,
    pub(super) supply: Rc<Supply>,
    /// I/O that the owner does for others.
    pub(super) tracker: Rc<Tracker>,
    counters: Cell<StoreCounters>,
    remote: RefCell<Option<Remote<Self>>>,
    /// The commits that nobody asks for; dropping it ends them.
    periodic: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    recovery: Recovery,
}

/// What the owner knows.
pub(super) struct State {
    pub(super) fate: Arc<Fate>,
    pub(super) super_block: SuperBlock,
    pub(super) allocator: Allocator,
    /// By identity; the store's own blob among them.
    pub(super) volumes: BTreeMap<BlobId, Volume>,
    /// Names that are taken, by volumes that can be found.
    pub(super) names: HashMap<VolumeName, BlobId>,
    pub(super) own_blob: BlobId,
    /// Served to nobody, as the store's own blob.
    pub(super) journal: Option<OwnJournal>,
    pub(super) quarantined: Vec<Quarantined>,
    /// One for each reactor that does I/O, the owner's own first.
    pub(super) trackers: Vec<Remote<Tracker>>,
    /// Clusters that nobody names, and that cannot be used before the pool is reopened.
    pub(super) lost: Vec<ClusterIndex>,
    pub(super) closed: bool,
    /// The parents outside of the pool that are there.
    pub(super) attached: BTreeSet<ExternalName>,
    /// Clusters that are taken here, and free for whoever needs one.
    pub(super) supply: Rc<Supply>,
}

/// A blob that cannot be served, with what is known of it. Its clusters stay reserved as far as
/// they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Its identity.
    pub id: BlobId,
    /// Its name, if that could be read.
    pub name: Option<String>,
    /// What is wrong.
    pub damage: Damage,
    /// Its external parent, which it will need again if it is repaired, if that could be read.
    pub external_parent: Option<ExternalName>,
}

/// The state of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreState {
    /// In use.
    Ok,
    /// Read-only since a flush or a metadata write failed, with that error.
    Poisoned(Error),
    /// Closed.
    Closed,
}

/// What can be told about a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Option<Uuid>,
    /// Whether it takes changes.
    pub state: StoreState,
    /// The allocation unit.
    pub cluster_size: ByteCount,
    /// The unit of volume I/O.
    pub block_size: BlockSize,
    /// Clusters that volumes can have.
    pub data_clusters: ClusterCount,
    /// Those not used, including those given up that are still being cleared.
    pub free_clusters: ClusterCount,
    /// Metadata pages not used.
    pub free_metadata_pages: u32,
    /// Those of the free clusters that are kept for the reserves of volumes.
    pub promised_clusters: ClusterCount,
    /// Whether free space is low.
    pub space: SpaceState,
    /// Clusters whose last user never ended its I/O; usable again after reopening.
    pub lost_clusters: ClusterCount,
    /// The most clusters it can have if the device grows.
    pub max_clusters: ClusterCount,
    /// How pages that are rewritten in place are protected from being torn.
    pub torn_writes: TornWrites,
}

/// What the owner of a pool did since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StoreCounters {
    /// Commits that wrote something.
    pub commits: u64,
    /// Requests for a commit, which share commits.
    pub commit_requests: u64,
    /// Device flushes by the owner.
    pub flushes: u64,
    /// Extent pages and chain pages written.
    pub pages_written: u64,
    /// Root pages written.
    pub roots_written: u64,
    /// Clusters given to volumes.
    pub clusters_allocated: u64,
    /// Clusters given back.
    pub clusters_freed: u64,
    /// Clusters zeroed before somebody needed them.
    pub clusters_prepared: u64,
    /// First writes that got one of those.
    pub clusters_ready: u64,
    /// Bytes zeroed around first writes and in new thick volumes.
    pub bytes_zeroed: u64,
    /// Bytes copied from a parent for first writes.
    pub bytes_copied: u64,
    /// Discards that the device refused; harmless.
    pub failed_discards: u64,
}

impl<D: BlockDevice> Store<D> {
    /// Opens the pool on `device`. A pool that was not closed cleanly is recovered from its
    /// metadata pages; nothing is written by that, with two exceptions, which are durable on return:
    /// pages that a power cut has torn are restored, and the making or the deletion of a snapshot
    /// that was interrupted is ended. What cannot be served is in quarantine.
    ///
    /// # Errors
    /// [`Error::SuperBlock`] and [`Error::SuperBlob`] if there is no pool here that could be
    /// served, [`Error::Device`], [`Error::NoMemory`].
    pub async fn open(
        device: D,
        reactor: &Rc<Reactor>,
        arena: &DmaArena,
    ) -> Result<Rc<Self>, Error> {
        let io = MetadataIo::new(device, arena)?.waiting_on(reactor);
        let fate = Arc::default();
        let recovered = super::recover::recover(&io, &fate).await?;
        let store = Self::new(io, reactor, fate, recovered);
        store.end_interrupted().await?;
        Ok(store)
    }

    /// Writes how interrupted snapshot operations ended. Nothing else is dirty at this time.
    async fn end_interrupted(&self) -> Result<(), Error> {
        let dirty: Vec<_> = self.state.borrow().dirty_volumes().collect();
        if dirty.is_empty() {
            return Ok(());
        }
        tracing::info!(volumes = dirty.len(), "ending interrupted snapshot operations");
        match self.commit(dirty).await {
            // It can wait until there is room; nobody depends on it.
            Err(Error::NoSpace { .. }) => Ok(()),
            ended => ended.inspect_err(|_| self.end()),
        }
    }

    fn new(
        io: MetadataIo<D>,
        reactor: &Rc<Reactor>,
        fate: Arc<Fate>,
        recovered: Recovered,
    ) -> Rc<Self> {
        let Recovered { super_block, journal, quarantined, recovery, .. } = recovered;
        let Recovered { allocator, volumes, own_blob, .. } = recovered;
        let served = volumes.iter().filter(|(id, volume)| **id != own_blob && !volume.deleted);
        let names = served.map(|(id, volume)| (volume.name.clone(), *id)).collect();
        let tracker = Rc::default();
        let state = State {
            fate: Arc::clone(&fate),
            allocator,
            volumes,
            names,
            own_blob,
            journal,
            quarantined,
            trackers: vec![reactor.keep(Rc::clone(&tracker))],
            lost: Vec::new(),
            closed: false,
            attached: BTreeSet::new(),
            supply: Rc::default(),
            super_block: super_block.clone(),
        };
        let mut state = state;
        state.show_externals();
        let supply = Rc::clone(&state.supply);
        let store = Rc::new_cyclic(|this| Self {
            this: this.clone(),
            reactor: Rc::clone(reactor),
            in_place: InPlace::new(io.device().geometry()),
            io,
            layout: super_block.layout().clone().into(),
            fate,
            state: RefCell::new(state),
            operations: async_lock::Mutex::new(()),
            commits: Commits::default(),
            reclaims: Reclaims::default(),
            scrubs: Scrubs::default(),
            thaws: RefCell::default(),
            space: Space::default(),
            externals: Externals::default(),
            supply,
            tracker,
            counters: Cell::default(),
            remote: RefCell::default(),
            periodic: RefCell::default(),
            recovery,
        });
        *store.remote.borrow_mut() = Some(reactor.keep(Rc::clone(&store)));
        store
    }

    /// What other reactors need to reach the store. It stays reachable until it is closed.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn remote(&self) -> Result<Remote<Self>, Error> {
        self.remote.borrow().clone().ok_or(Error::Closed)
    }

    /// How it was opened.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// What it did so far.
    #[must_use]
    pub fn counters(&self) -> StoreCounters {
        self.counters.get()
    }

    /// What it is now.
    #[must_use]
    pub fn info(&self) -> StoreInfo {
        let state = self.state.borrow();
        let own = &state.volumes[&state.own_blob];
        let free = state.free_clusters().0 + self.reclaims.clusters();
        StoreInfo {
            name: own.name.as_str().to_owned(),
            uuid: own.uuid,
            state: match self.fate.error() {
                _ if state.closed => StoreState::Closed,
                Some(error) => StoreState::Poisoned(error),
                None => StoreState::Ok,
            },
            cluster_size: self.layout.cluster_size(),
            block_size: self.layout.block_size(),
            data_clusters: self.layout.data_clusters(),
            free_clusters: ClusterCount(free),
            free_metadata_pages: state.allocator.free_pages(),
            promised_clusters: ClusterCount(state.promised(None).min(free)),
            space: self.space_state(),
            lost_clusters: ClusterCount(state.lost.len() as u32),
            max_clusters: self.layout.max_clusters(),
            torn_writes: self.torn_writes(),
        }
    }

    /// All volumes, by identity.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let state = self.state.borrow();
        let served = state.volumes.iter().filter(|(id, _)| state.is_served(**id));
        served.map(|(id, volume)| volume.info(state.clones(*id))).collect()
    }

    /// A volume by its identity.
    #[must_use]
    pub fn volume(&self, id: BlobId) -> Option<VolumeInfo> {
        let state = self.state.borrow();
        state.served(id).ok().map(|volume| volume.info(state.clones(id)))
    }

    /// A volume by its name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<VolumeInfo> {
        let name = VolumeName::new(name).ok()?;
        let id = *self.state.borrow().names.get(&name)?;
        self.volume(id)
    }

    /// What cannot be served, and why.
    #[must_use]
    pub fn quarantined(&self) -> Vec<Quarantined> {
        self.state.borrow().quarantined.clone()
    }

    /// The map of a volume.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn map(&self, id: BlobId) -> Result<Arc<VolumeMap>, Error> {
        self.state.borrow().served(id).map(|volume| Arc::clone(&volume.map))
    }

    /// Takes part in quiescing from now on.
    pub(super) fn register(&self, tracker: Remote<Tracker>) -> Result<(), Error> {
        let mut state = self.state.borrow_mut();
        if state.closed {
            return Err(Error::Closed);
        }
        state.trackers.push(tracker);
        Ok(())
    }

    /// Whether changes are possible at all.
    pub(super) fn check_alive(&self) -> Result<(), Error> {
        if self.state.borrow().closed {
            return Err(Error::Closed);
        }
        self.fate.error().map_or(Ok(()), Err)
    }

    /// A flush or a metadata write failed: nobody knows what is on the medium now, so nothing is
    /// written any more. The first failure is kept; reads go on.
    pub(super) fn poison(&self, operation: &'static str, cause: BlockError) -> Error {
        let error = Error::Poisoned { operation, cause };
        if self.fate.seal(error.clone()) {
            tracing::error!(operation, %error, "pool poisoned: read-only until it is reopened");
            self.flag_all(POISONED);
        }
        self.fate.error().unwrap_or(error)
    }

    /// A flush by another reactor failed.
    pub(super) fn poison_by_flush(&self, cause: BlockError) -> Error {
        self.poison("flush", cause)
    }

    pub(super) fn flag_all(&self, flag: u32) {
        for volume in self.state.borrow().volumes.values() {
            volume.map.set_flags(flag);
        }
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut StoreCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Makes durable what completed, if there is a cache that could lose it; poisons on failure.
    pub(super) async fn flush(&self) -> Result<(), Error> {
        self.count(|counters| counters.flushes += 1);
        self.io.flush().await.map_err(|cause| self.poison("flush", cause))
    }

    /// The store as a counted reference, for tasks.
    pub(super) fn strong(&self) -> Rc<Self> {
        match self.this.upgrade() {
            Some(store) => store,
            None => unreachable!("a store lives in the Rc that made it"),
        }
    }

    /// Ends the use of the pool: refuses I/O from now on, waits for what is in flight, commits
    /// everything and marks the pool clean. On return it is durable, and an SPDK that opens it
    /// need not recover.
    ///
    /// # Errors
    /// [`Error::Closed`] if it was closed before; [`Error::Poisoned`] if the medium cannot be
    /// brought up to date: the next opening recovers.
    pub async fn close(&self) -> Result<(), Error> {
        let store = self.strong();
        let guard = store.operations.lock().await;
        self.check_alive().inspect_err(|_| self.end())?;
        self.flag_all(CLOSED);
        self.quiesce().await;
        self.end_supply().await;
        let result = self.close_clean().await;
        self.end();
        drop(guard);
        result
    }

    pub(super) fn set_periodic(&self, task: Pin<Box<dyn Future<Output = ()>>>) {
        *self.periodic.borrow_mut() = Some(task);
    }

    /// Nothing can be asked of the store any more.
    pub(super) fn end(&self) {
        self.flag_all(CLOSED);
        drop(self.periodic.take());
        let mut state = self.state.borrow_mut();
        state.closed = true;
        for tracker in state.trackers.drain(..).take(1) {
            drop(tracker.release(&self.reactor));
        }
        if let Some(remote) = self.remote.borrow_mut().take() {
            drop(remote.release(&self.reactor));
        }
    }
}

impl State {
    pub(super) fn is_served(&self, id: BlobId) -> bool {
        let own = id == self.own_blob || self.journal.as_ref().is_some_and(|own| own.id == id);
        !own && self.volumes.get(&id).is_some_and(|volume| !volume.deleted)
    }

    /// A volume that can be asked for.
    pub(super) fn served(&self, id: BlobId) -> Result<&Volume, Error> {
        self.volumes.get(&id).filter(|_| self.is_served(id)).ok_or(Error::NotFound)
    }

    /// As [`State::served`], to change it.
    pub(super) fn served_mut(&mut self, id: BlobId) -> Result<&mut Volume, Error> {
        if !self.is_served(id) {
            return Err(Error::NotFound);
        }
        self.volumes.get_mut(&id).ok_or(Error::NotFound)
    }

    /// The volume whose map this is: an identity can have passed to another volume.
    pub(super) fn of_map(&mut self, map: &Arc<VolumeMap>) -> Result<&mut Volume, Error> {
        let volume = self.served_mut(map.blob())?;
        if Arc::ptr_eq(&volume.map, map) { Ok(volume) } else { Err(Error::NotFound) }
    }

    pub(super) fn clones(&self, id: BlobId) -> Vec<BlobId> {
        let is_clone = |volume: &&Volume| volume.blob.parent() == Some(id) && !volume.deleted;
        self.volumes.values().filter(is_clone).map(|volume| volume.blob.id).collect()
    }

    /// Volumes that a commit would change.
    pub(super) fn dirty_volumes(&self) -> impl Iterator<Item = BlobId> + '_ {
        self.volumes.iter().filter(|(_, volume)| volume.is_dirty()).map(|(id, _)| *id)
    }
}
