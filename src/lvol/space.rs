//! Thin pools that fill: who may take a free cluster, who waits for one, and who is told.
//!
//! * A volume may have a *reserve*: so much of it can always be written. What is missing to the
//!   reserves of other volumes is not given to anybody else.
//! * A write that finds no cluster fails with "no space"; or, in a volume that says so, waits until
//!   some are given back, at most [`WAIT_LIMIT`]. At most [`WAITERS_LIMIT`] writes of a pool wait:
//!   they keep the requests of front ends, which other volumes need.
//! * When little is left, when nothing is, and when there is enough again, a listener is told, once
//!   each.
//!
//! Reserve and choice are kept in the volume's attributes, so SPDK keeps them, too.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::future::{Either, select};

use crate::block::BlockDevice;
use crate::reactor::Instant;
use crate::units::{BlobId, ByteCount, ClusterCount, ClusterIndex};

use super::error::{Error, Resource};
use super::format::Xattrs;
use super::interruption::Interruption;
use super::store::{State, Store};
use super::volume_map::VolumeMap;

/// How long a write waits for space in a volume that waits.
pub const WAIT_LIMIT: Duration = Duration::from_secs(60);
/// Writes of a pool that wait at a time; further ones fail at once.
pub const WAITERS_LIMIT: usize = 32;
/// Attributes of a volume.
const RESERVE: &[u8] = b"lvolfs.reserve";
const ON_FULL: &[u8] = b"lvolfs.on_full";

/// How much is left in a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpaceState {
    /// Enough.
    #[default]
    Ok,
    /// Less than the low-water mark.
    Low,
    /// A write found nothing.
    Full,
}

/// What a write does when the pool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// It fails.
    #[default]
    Error,
    /// It waits for space, at most [`WAIT_LIMIT`].
    Wait,
}

/// How much is left changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceChange {
    /// What it is now.
    pub state: SpaceState,
    /// Free clusters, without those that are kept for reserves.
    pub free: ClusterCount,
}

type Listener = Box<dyn Fn(SpaceChange)>;

/// The space of a pool, at its owner.
#[derive(Default)]
pub(super) struct Space {
    low_water: Cell<u32>,
    state: Cell<SpaceState>,
    listener: RefCell<Option<Listener>>,
    waiting: RefCell<Vec<oneshot::Sender<()>>>,
    /// Nobody waits any more: the pool is about to be closed.
    ending: Cell<bool>,
}

/// How long one write waits.
#[derive(Default)]
pub(super) struct Patience {
    /// Until then; set when it begins to.
    end: Option<Instant>,
    /// Or until this happens.
    interruption: Option<Interruption>,
}

impl From<Option<Interruption>> for Patience {
    fn from(interruption: Option<Interruption>) -> Self {
        Self { end: None, interruption }
    }
}

/// What a volume wants of the pool's space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Clusters that it can always have.
    pub(super) reserve: u32,
    pub(super) on_full: OnFull,
}

impl Wishes {
    /// What a volume's attributes say; nonsense is no wish.
    pub(super) fn read(xattrs: &Xattrs) -> Self {
        let text = |name| xattrs.get(name).and_then(|value| std::str::from_utf8(value).ok());
        let reserve = text(RESERVE).and_then(|text| text.parse().ok()).unwrap_or(0);
        let on_full = match text(ON_FULL) {
            Some("wait") => OnFull::Wait,
            _ => OnFull::Error,
        };
        Self { reserve, on_full }
    }
}

impl State {
    /// Clusters that are missing to the reserves of all volumes but `except`.
    pub(super) fn promised(&self, except: Option<BlobId>) -> u32 {
        let own = except.and_then(|id| self.volumes.get(&id));
        let own = own.map_or(0, |volume| u64::from(volume.map.missing()));
        let others = self.fate.promised().saturating_sub(own);
        u32::try_from(others).unwrap_or(u32::MAX)
    }

    /// Whether `more` clusters can be promised.
    pub(super) fn check_promise(&self, more: u32) -> Result<(), Error> {
        let promised = self.promised(None).saturating_add(more);
        if more > 0 && promised > self.free_clusters().0 {
            return Err(Error::NoSpace { what: Resource::Cluster });
        }
        Ok(())
    }

    /// Takes a free cluster for a volume, or for one that is being made.
    fn take_cluster_for(&mut self, volume: Option<BlobId>) -> Result<ClusterIndex, Error> {
        if !self.may_take(volume) {
            return Err(Error::NoSpace { what: Resource::Cluster });
        }
        let taken = self.allocator.take_cluster();
        taken.or_else(|full| self.supply.pop().ok_or(full))
    }

    /// A cluster that reads as zeros already, if there is one.
    fn take_zeroed_for(&mut self, volume: BlobId) -> Option<ClusterIndex> {
        if self.may_take(Some(volume)) { self.supply.pop() } else { None }
    }

    fn may_take(&self, volume: Option<BlobId>) -> bool {
        let promised = self.promised(volume);
        promised == 0 || self.free_clusters().0 > promised
    }

    /// Clusters that nobody has, those of the supply included.
    pub(super) fn free_clusters(&self) -> ClusterCount {
        ClusterCount(self.allocator.free_clusters().0 + self.supply.len())
    }

    /// Whether there is a free cluster that is promised to nobody.
    pub(super) fn has_spare_cluster(&self) -> bool {
        self.allocator.free_clusters().0 > self.promised(None)
    }
}

impl<D: BlockDevice> Store<D> {
    /// From now on, fewer than `clusters` free clusters are few.
    pub fn set_low_water(&self, clusters: ClusterCount) {
        self.space.low_water.set(clusters.0);
        self.note_space(false);
    }

    /// The pool has grown from `before` clusters to `now`: few are so many more.
    pub(super) fn scale_low_water(&self, before: ClusterCount, now: ClusterCount) {
        let scaled = u64::from(self.space.low_water.get()) * u64::from(now.0);
        let scaled = scaled / u64::from(before.0.max(1));
        self.set_low_water(ClusterCount(u32::try_from(scaled).unwrap_or(u32::MAX)));
        self.note_space(true);
    }

    /// `listener` is told whenever [`SpaceState`] changes. It must not call the store.
    pub fn on_space(&self, listener: impl Fn(SpaceChange) + 'static) {
        *self.space.listener.borrow_mut() = Some(Box::new(listener));
    }

    /// How much is left.
    #[must_use]
    pub fn space_state(&self) -> SpaceState {
        self.space.state.get()
    }

    /// Promises a volume that `size` bytes of it, rounded up to clusters, can be written whatever
    /// others do; zero promises nothing. On return it is durable.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the pool cannot keep the promise; otherwise as for
    /// [`Store::set_xattr`].
    pub async fn set_reserve(&self, id: BlobId, size: ByteCount) -> Result<(), Error> {
        let asked = self.clusters_for(size)?.0;
        let reserve = {
            let state = self.state.borrow();
            let volume = state.served(id)?;
            // More than the whole of it is never needed, and would be kept from others for nothing.
            let reserve = asked.min(volume.clusters.0);
            let missing = reserve.saturating_sub(volume.map.allocated().0);
            let promised = state.promised(Some(id)).saturating_add(missing);
            if missing > 0 && promised > state.free_clusters().0 {
                return Err(Error::NoSpace { what: Resource::Cluster });
            }
            reserve
        };
        self.set_wish(id, RESERVE, (reserve > 0).then(|| reserve.to_string())).await
    }

    /// Says what writes to a volume do when the pool is full. On return it is durable.
    ///
    /// # Errors
    /// As for [`Store::set_xattr`].
    pub async fn set_on_full(&self, id: BlobId, on_full: OnFull) -> Result<(), Error> {
        let wait = matches!(on_full, OnFull::Wait).then(|| "wait".to_owned());
        self.set_wish(id, ON_FULL, wait).await
    }

    async fn set_wish(&self, id: BlobId, name: &[u8], value: Option<String>) -> Result<(), Error> {
        let changed = match value {
            Some(value) => self.set_xattr(id, name, value.as_bytes()).await,
            None => match self.remove_xattr(id, name).await {
                Err(Error::NoAttribute) => Ok(()),
                removed => removed,
            },
        };
        if let Ok(volume) = self.state.borrow_mut().served_mut(id) {
            volume.read_wishes();
            volume.show_flags();
        }
        // A smaller promise may be what others wait for.
        self.note_space(true);
        changed
    }

    /// Writes that wait for space fail from now on: front ends are about to close.
    pub fn stop_waiting(&self) {
        self.space.ending.set(true);
        self.wake_waiting();
    }

    /// Takes a free cluster for `map`'s volume, or for one that is being made. If there is none,
    /// those that are on their way back are waited for.
    pub(super) async fn take_cluster_for(
        &self,
        map: Option<&Arc<VolumeMap>>,
    ) -> Result<ClusterIndex, Error> {
        let id = map.map(|map| map.blob());
        loop {
            let taken = self.state.borrow_mut().take_cluster_for(id);
            if taken.is_ok() {
                self.note_space(false);
                return taken;
            }
            if !Box::pin(self.find_space()).await? {
                self.set_space(SpaceState::Full);
                return taken;
            }
        }
    }

    /// A cluster for a first write over zeros that has them already, if there is one.
    pub(super) fn take_zeroed_for(&self, map: &VolumeMap) -> Option<ClusterIndex> {
        let taken = self.state.borrow_mut().take_zeroed_for(map.blob());
        self.note_first_write();
        if taken.is_some() {
            self.count(|counters| counters.clusters_ready += 1);
            self.note_space(false);
        }
        taken
    }

    /// Waits until clusters came back; false if the volume's writes do not wait, this one has
    /// waited long enough, too many wait, or none may any more. Nothing may be held meanwhile that
    /// an operation which gives clusters back could wait for.
    ///
    /// # Errors
    /// [`Error::WaitInterrupted`].
    pub(super) async fn wait_for_space(
        &self,
        map: &Arc<VolumeMap>,
        patience: &mut Patience,
    ) -> Result<bool, Error> {
        if !self.waits(map) {
            return Ok(false);
        }
        let deadline = *patience.end.get_or_insert_with(|| self.reactor.now().after(WAIT_LIMIT));
        let woken = {
            let mut waiting = self.space.waiting.borrow_mut();
            waiting.retain(|waiting| !waiting.is_canceled());
            if self.space.ending.get() || waiting.len() >= WAITERS_LIMIT {
                return Ok(false);
            }
            let (wake, woken) = oneshot::channel();
            waiting.push(wake);
            woken
        };
        let interrupted = async {
            match &patience.interruption {
                Some(interruption) => interruption.wait().await,
                None => std::future::pending().await,
            }
        };
        let in_time = select(woken, self.reactor.sleep_until(deadline));
        match select(in_time, pin!(interrupted)).await {
            Either::Left((Either::Left(_), _)) => Ok(!self.space.ending.get()),
            Either::Left((Either::Right(_), _)) => Ok(false),
            Either::Right(_) => Err(Error::WaitInterrupted),
        }
    }

    fn waits(&self, map: &Arc<VolumeMap>) -> bool {
        let mut state = self.state.borrow_mut();
        state.of_map(map).is_ok_and(|volume| volume.wishes.on_full == OnFull::Wait)
    }

    fn wake_waiting(&self) {
        for waiting in self.space.waiting.take() {
            // An error: whoever waited too long is gone.
            waiting.send(()).ok();
        }
    }

    /// Clusters were taken or, if `freed`, have come back.
    pub(super) fn note_space(&self, freed: bool) {
        if freed {
            self.wake_waiting();
        }
        let (free, low) = (self.free_clusters().0, self.space.low_water.get());
        // A little more than the mark must be free before all is well again: no flapping.
        let enough = low.saturating_add(low / 8);
        let state = match self.space.state.get() {
            SpaceState::Full if !freed || free == 0 => SpaceState::Full,
            SpaceState::Ok if free >= low => SpaceState::Ok,
            SpaceState::Low | SpaceState::Full if free > 0 && free >= enough => SpaceState::Ok,
            SpaceState::Ok | SpaceState::Low | SpaceState::Full => SpaceState::Low,
        };
        self.set_space(state);
    }

    fn set_space(&self, state: SpaceState) {
        let before = self.space.state.replace(state);
        if state == before {
            return;
        }
        let free = self.free_clusters();
        let pool = self.info().name;
        match state {
            SpaceState::Ok => tracing::info!(pool, free_clusters = free.0, "enough space again"),
            SpaceState::Low => tracing::warn!(
                pool,
                free_clusters = free.0,
                "the pool has little space left: delete or trim volumes, or add space"
            ),
            SpaceState::Full => tracing::error!(
                pool,
                free_clusters = free.0,
                "the pool is full: writes to new places fail or wait"
            ),
        }
        if let Some(listener) = &*self.space.listener.borrow() {
            listener(SpaceChange { state, free });
        }
    }

    /// Clusters that any volume can have: those on their way back included, those that are kept
    /// for reserves left out.
    fn free_clusters(&self) -> ClusterCount {
        let state = self.state.borrow();
        let free = state.free_clusters().0.saturating_add(self.reclaims.clusters());
        ClusterCount(free.saturating_sub(state.promised(None)))
    }
}
