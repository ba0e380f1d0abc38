//! Which pools and volumes there are, as all reactors see it.
//!
//! One lock orders changes of names against look-ups; nothing is awaited while it is held. Data
//! never passes here: a reactor that knows a volume does its I/O without this.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use uuid::Uuid;

use super::attributes::Attributes;
use super::caching::{Caching, SharedCaching};
use super::error::Error;
use super::events::{EventKind, EventLog};
use super::exclusion::WriteLocks;
use super::gate::Gate;
use super::hosts::Hosts;
pub use super::key::Key;
use super::parents::Parenthood;
use super::pool::Pool;
use super::reservations::Keeper;
use crate::hw::clock::coarse_wall_clock;
use crate::reservation::Reservations;
use crate::units::BlobId;

/// A volume, as all reactors share it.
pub struct Entry {
    key: Key,
    pool: Arc<Pool>,
    blob: BlobId,
    uuid: Uuid,
    gate: Gate,
    /// Held by the one command on the reservations that is under way.
    keeper: async_lock::Mutex<Keeper>,
    locks: WriteLocks,
    caching: SharedCaching,
    /// When it was written last, in nanoseconds since the epoch; 0 if not since it was opened.
    written: AtomicU64,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) name: String,
    attributes: Attributes,
    pub(super) openings: usize,
    /// Who keeps it from being deleted.
    pub(super) held_by: Option<String>,
    /// Its part as a parent of volumes of other pools.
    pub(super) parenthood: Parenthood,
    pub(super) life: Life,
}

/// Whether a volume has a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Named,
    /// It lost its name while it was open, and is to be deleted when it is closed.
    Unlinked,
    Deleting,
}

/// What [`Entry::prepare_deletion`] found.
pub(super) enum Deletion {
    /// Nobody has it open: it can be deleted now.
    Now,
    /// It is open: it only loses its name now.
    WhenClosed,
}

/// An opening of a volume: by a file handle or a host. To be given back by [`Entry::close`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Opening(());

/// Keeps a volume from being deleted, open or not, as long as it lives.
pub struct Hold(Arc<Entry>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.state().held_by = None;
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hold({})", self.0.uuid)
    }
}

impl Entry {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// The pool it is in.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Its blob in the store.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// Its UUID; made from the pool's and the blob's number if the store has none for it.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Its name. A volume that was unlinked while open still shows its last one.
    #[must_use]
    pub fn name(&self) -> String {
        self.state().name.clone()
    }

    /// `pool/volume`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.pool.name(), self.name())
    }

    /// Whether it can still be found by its name.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.state().life == Life::Named
    }

    /// Its gate.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(super) fn keeper(&self) -> &async_lock::Mutex<Keeper> {
        &self.keeper
    }

    pub(super) fn locks(&self) -> &WriteLocks {
        &self.locks
    }

    pub(super) fn shared_caching(&self) -> &SharedCaching {
        &self.caching
    }

    /// Owner, mode and times.
    #[must_use]
    pub fn attributes(&self) -> Attributes {
        let mut attributes = self.state().attributes.clone();
        let written = Duration::from_nanos(self.written.load(Ordering::Relaxed));
        if written > attributes.mtime {
            (attributes.mtime, attributes.ctime) = (written, written.max(attributes.ctime));
        }
        attributes
    }

    pub(super) fn set_attributes(&self, attributes: Attributes) {
        let mut state = self.state();
        // A time that was set on purpose holds until the next write.
        self.written.store(0, Ordering::Relaxed);
        state.attributes = attributes;
    }

    /// Whether a write changed the times since they were stored.
    pub(super) fn has_unsaved_times(&self) -> bool {
        self.written.load(Ordering::Relaxed) != 0
    }

    /// Notes that data changed now.
    #[inline]
    pub(super) fn note_write(&self) {
        let now = nanoseconds(coarse_wall_clock());
        // Written a few hundred times a second, not with each write: other CPUs read it, and what
        // lies beside it.
        if self.written.load(Ordering::Relaxed) != now {
            self.written.store(now, Ordering::Relaxed);
        }
    }

    /// Takes over when it was changed last from who knows better. Stored when the pool is closed
    /// or attributes are changed.
    pub fn note_times(&self, mtime: Duration, ctime: Duration) {
        let mut state = self.state();
        (state.attributes.mtime, state.attributes.ctime) = (mtime, ctime);
        // Long ago, so that it changes nothing but what there is to store.
        self.written.store(1, Ordering::Relaxed);
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`Error::Deleted`].
    pub fn open(&self) -> Result<Opening, Error> {
        let mut state = self.state();
        if state.life == Life::Deleting {
            return Err(Error::Deleted);
        }
        state.openings += 1;
        Ok(Opening(()))
    }

    /// Keeps it from being deleted; `by` is told to whoever tries.
    ///
    /// # Errors
    /// [`Error::Held`] if somebody else does, [`Error::Cached`] if the local mount caches it,
    /// [`Error::Deleted`] if it has no name any more.
    pub fn hold(self: &Arc<Self>, by: &str) -> Result<Hold, Error> {
        self.check_not_cached()?;
        let mut state = self.state();
        if state.life != Life::Named {
            return Err(Error::Deleted);
        }
        if let Some(by) = &state.held_by {
            return Err(Error::Held { by: by.clone() });
        }
        state.held_by = Some(by.to_owned());
        drop(state);
        Ok(Hold(Arc::clone(self)))
    }

    /// Who keeps it from being deleted.
    #[must_use]
    pub fn held_by(&self) -> Option<String> {
        self.state().held_by.clone()
    }

    /// How often it is open.
    #[must_use]
    pub fn openings(&self) -> usize {
        self.state().openings
    }

    /// Closes an opening. True if that was the last one of a volume without a name: the caller
    /// then has it deleted, by [`super::Catalog::delete_unlinked`].
    #[must_use]
    pub fn close(&self, opening: Opening) -> bool {
        let Opening(()) = opening;
        let mut state = self.state();
        state.openings = state.openings.saturating_sub(1);
        if state.openings > 0 || state.life != Life::Unlinked {
            return false;
        }
        state.life = Life::Deleting;
        self.gate.close();
        true
    }

    /// Begins its deletion; afterwards it can no longer be opened by name.
    pub(super) fn prepare_deletion(&self) -> Result<Deletion, Error> {
        let mut state = self.state();
        if let Some(by) = &state.held_by {
            return Err(Error::Held { by: by.clone() });
        }
        match state.life {
            Life::Unlinked | Life::Deleting => Err(Error::NotFound),
            Life::Named if state.openings > 0 => Ok(Deletion::WhenClosed),
            Life::Named => {
                state.life = Life::Deleting;
                self.gate.close();
                Ok(Deletion::Now)
            }
        }
    }

    /// The deletion did not happen.
    pub(super) fn abandon_deletion(&self) {
        let mut state = self.state();
        if state.life == Life::Deleting {
            state.life = Life::Named;
            self.gate.reopen();
        }
    }

    /// It lost its name while it was open. True if it was closed meanwhile, so that it must be
    /// deleted now.
    pub(super) fn unlinked(&self) -> bool {
        let mut state = self.state();
        state.life = if state.openings == 0 { Life::Deleting } else { Life::Unlinked };
        if state.life == Life::Deleting {
            self.gate.close();
        }
        state.life == Life::Deleting
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // No statement that holds the lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a volume is when it is put into the directory.
pub(super) struct NewEntry {
    pub(super) blob: BlobId,
    pub(super) uuid: Uuid,
    pub(super) name: String,
    pub(super) attributes: Attributes,
    pub(super) keeper: Keeper,
    pub(super) reservations: Reservations,
}

/// All pools and volumes. Clones are the same directory.
#[derive(Clone, Default)]
pub struct Directory {
    tree: Arc<RwLock<Tree>>,
    events: EventLog,
    hosts: Arc<Hosts>,
    /// Of volumes that come from now on.
    caching: Arc<SharedCaching>,
    watchers: Arc<RwLock<Vec<Watcher>>>,
}

/// Told of volumes whose size has changed.
type Watcher = Arc<dyn Fn(Key) + Send + Sync>;

#[derive(Default)]
pub(super) struct Tree {
    pub(super) pools: BTreeMap<Key, PoolNode>,
    /// Every volume, also those without a name.
    pub(super) volumes: HashMap<Key, Arc<Entry>>,
}

pub(super) struct PoolNode {
    pub(super) pool: Arc<Pool>,
    pub(super) names: HashMap<String, Key>,
    /// Those with a name, in an order that other changes do not disturb.
    pub(super) volumes: BTreeMap<Key, Arc<Entry>>,
}

impl Directory {
    /// What happened to pools and volumes.
    #[must_use]
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// An empty one.
    #[must_use]
    pub fn new(hosts: Hosts) -> Self {
        Self {
            tree: Arc::default(),
            events: EventLog::default(),
            hosts: Arc::new(hosts),
            caching: Arc::default(),
            watchers: Arc::default(),
        }
    }

    /// Who uses volumes.
    #[must_use]
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// Says how the local mount is to use volumes that come from now on, and nobody says otherwise
    /// of.
    pub fn set_caching(&self, caching: Caching) {
        self.caching.set(caching);
    }

    /// All pools, in the order of their keys.
    #[must_use]
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        self.read().pools.values().map(|node| Arc::clone(&node.pool)).collect()
    }

    /// The pool of a name.
    #[must_use]
    pub fn find_pool(&self, name: &str) -> Option<Arc<Pool>> {
        let tree = self.read();
        tree.pools
            .values()
            .find(|node| &*node.pool.name() == name)
            .map(|node| Arc::clone(&node.pool))
    }

    /// The pool with a key.
    #[must_use]
    pub fn pool(&self, key: Key) -> Option<Arc<Pool>> {
        self.read().pools.get(&key).map(|node| Arc::clone(&node.pool))
    }

    /// The volume with a key, whether or not it has a name.
    #[must_use]
    pub fn volume(&self, key: Key) -> Option<Arc<Entry>> {
        self.read().volumes.get(&key).map(Arc::clone)
    }

    /// The volume of a name in a pool.
    #[must_use]
    pub fn find_volume(&self, pool: Key, name: &str) -> Option<Arc<Entry>> {
        let tree = self.read();
        let node = tree.pools.get(&pool)?;
        node.volumes.get(node.names.get(name)?).map(Arc::clone)
    }

    /// The volume that `text` names, as `pool/volume` or by its UUID.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<Arc<Entry>> {
        match text.split_once('/') {
            Some((pool, volume)) => self.find_volume(self.find_pool(pool)?.key(), volume),
            None => self.with_uuid(Uuid::parse_str(text).ok()?).into_iter().next(),
        }
    }

    /// The volumes with a UUID and a name: several, if a pool's device was copied.
    #[must_use]
    pub fn with_uuid(&self, uuid: Uuid) -> Vec<Arc<Entry>> {
        let tree = self.read();
        let named = tree.pools.values().flat_map(|node| node.volumes.values());
        named.filter(|entry| entry.uuid == uuid).map(Arc::clone).collect()
    }

    /// Up to `limit` volumes of a pool that have a name, in the order of their keys, after
    /// `after`.
    #[must_use]
    pub fn volumes_after(&self, pool: Key, after: Option<Key>, limit: usize) -> Vec<Arc<Entry>> {
        let tree = self.read();
        let Some(node) = tree.pools.get(&pool) else { return Vec::new() };
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = node.volumes.range((start, Bound::Unbounded));
        range.take(limit).map(|(_, entry)| Arc::clone(entry)).collect()
    }

    /// All volumes of a pool that have a name, in the order of their keys.
    #[must_use]
    pub fn volumes(&self, pool: Key) -> Vec<Arc<Entry>> {
        self.volumes_after(pool, None, usize::MAX)
    }

    /// Has `watcher` told of every volume whose size has changed from now on, on the reactor that
    /// owns the pool: it must not block.
    pub fn watch_sizes(&self, watcher: impl Fn(Key) + Send + Sync + 'static) {
        self.watchers.write().unwrap_or_else(PoisonError::into_inner).push(Arc::new(watcher));
    }

    /// A volume's size has changed.
    pub(super) fn resized(&self, entry: &Entry) {
        let watchers = self.watchers.read().unwrap_or_else(PoisonError::into_inner).clone();
        for watcher in watchers {
            watcher(entry.key);
        }
    }

    pub(super) fn add_volume(&self, pool: Key, new: NewEntry) -> Result<Arc<Entry>, Error> {
        let mut tree = self.write();
        let key = tree.free_key(new.uuid);
        let Some(node) = tree.pools.get_mut(&pool) else { return Err(Error::NotFound) };
        let state = State {
            name: new.name.clone(),
            attributes: new.attributes,
            openings: 0,
            held_by: None,
            parenthood: Parenthood::default(),
            life: Life::Named,
        };
        let entry = Arc::new(Entry {
            key,
            pool: Arc::clone(&node.pool),
            blob: new.blob,
            uuid: new.uuid,
            gate: Gate::new(new.reservations),
            keeper: async_lock::Mutex::new(new.keeper),
            locks: WriteLocks::default(),
            caching: SharedCaching::default(),
            written: AtomicU64::new(0),
            state: Mutex::new(state),
        });
        if let Err(error) = entry.set_caching(self.caching.get()) {
            tracing::warn!(volume = new.name, %error, "not cached by the mount, but used direct");
        }
        self.events.add(EventKind::VolumeCreated, &node.pool.name(), Some(&new.name), None);
        node.names.insert(new.name, key);
        node.volumes.insert(key, Arc::clone(&entry));
        node.changed();
        tree.volumes.insert(key, Arc::clone(&entry));
        Ok(entry)
    }

    /// Takes a volume's name away. It can still be found by its key.
    pub(super) fn remove_name(&self, entry: &Entry) {
        let mut tree = self.write();
        if let Some(node) = tree.pools.get_mut(&entry.pool.key()) {
            node.volumes.remove(&entry.key);
            let name = entry.name();
            self.events.add(EventKind::VolumeDeleted, &node.pool.name(), Some(&name), None);
            if node.names.get(&name) == Some(&entry.key) {
                node.names.remove(&name);
            }
            node.changed();
        }
    }

    /// Forgets a volume without a name.
    pub(super) fn remove_volume(&self, entry: &Entry) {
        self.write().volumes.remove(&entry.key);
    }

    pub(super) fn rename_volume(&self, entry: &Entry, name: &str) {
        let mut tree = self.write();
        if let Some(node) = tree.pools.get_mut(&entry.pool.key()) {
            node.names.remove(&entry.name());
            node.names.insert(name.into(), entry.key);
            entry.state().name = name.into();
            self.events.add(EventKind::VolumeRenamed, &node.pool.name(), Some(name), None);
            node.changed();
        }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Tree> {
        // No statement that holds the lock can panic half-way.
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Tree> {
        self.tree.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolNode {
    pub(super) fn changed(&self) {
        self.pool.note_change();
    }
}

impl Tree {
    /// The key of a UUID, or the next one that nothing has.
    pub(super) fn free_key(&self, uuid: Uuid) -> Key {
        let mut key = Key::of(uuid);
        while self.pools.contains_key(&key) || self.volumes.contains_key(&key) {
            key = key.next();
        }
        key
    }
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
