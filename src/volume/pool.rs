//! A pool as all reactors see it, and what happens to one as a whole: it gets another name, it is
//! taken off its device.
//!
//! A pool that is being destroyed closes all its volumes first, or none: who still uses one of them
//! keeps the pool.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::attributes::wall_clock;
use super::directory::{Directory, Entry, Key, Life, PoolNode, nanoseconds};
use super::error::Error;
use super::events::EventKind;
use super::owner::{PoolOwner, is_file_name};
use crate::lvol::StoreState;
use crate::reactor::Remote;
use crate::units::ByteCount;

/// A pool.
pub struct Pool {
    key: Key,
    name: Mutex<Arc<str>>,
    uuid: Uuid,
    cluster_size: ByteCount,
    owner: Remote<PoolOwner>,
    /// When a name in it changed last, in nanoseconds since the epoch.
    changed: AtomicU64,
}

impl Pool {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// Its name at this moment.
    #[must_use]
    pub fn name(&self) -> Arc<str> {
        // No statement that holds the lock can panic.
        Arc::clone(&self.name.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The unit of allocation and of a volume's size.
    #[must_use]
    pub fn cluster_size(&self) -> ByteCount {
        self.cluster_size
    }

    /// When a name in it changed last, since the epoch.
    #[must_use]
    pub fn changed(&self) -> Duration {
        Duration::from_nanos(self.changed.load(Ordering::Relaxed))
    }

    pub(super) fn note_change(&self) {
        self.changed.store(nanoseconds(wall_clock()), Ordering::Relaxed);
    }

    /// Where its store is.
    #[must_use]
    pub fn owner(&self) -> &Remote<PoolOwner> {
        &self.owner
    }
}

impl Directory {
    /// Adds a pool, unless there is one of its name.
    pub(super) fn add_pool(
        &self,
        name: &str,
        uuid: Uuid,
        cluster_size: ByteCount,
        owner: Remote<PoolOwner>,
    ) -> Result<Arc<Pool>, Error> {
        let mut tree = self.write();
        if tree.pools.values().any(|node| &*node.pool.name() == name) {
            return Err(Error::PoolExists { name: name.to_owned() });
        }
        let key = tree.free_key(uuid);
        let changed = AtomicU64::new(nanoseconds(wall_clock()));
        let name = Mutex::new(name.into());
        let pool = Arc::new(Pool { key, name, uuid, cluster_size, owner, changed });
        let (names, volumes) = (HashMap::new(), BTreeMap::new());
        tree.pools.insert(key, PoolNode { pool: Arc::clone(&pool), names, volumes });
        Ok(pool)
    }

    /// Forgets a pool and its volumes: they can be neither found nor used any more.
    pub(super) fn remove_pool(&self, key: Key) {
        let mut tree = self.write();
        tree.pools.remove(&key);
        tree.volumes.retain(|_, entry| {
            let stays = entry.pool().key() != key;
            if !stays {
                entry.gate().close();
            }
            stays
        });
    }

    /// Every volume of a pool, also those without a name.
    fn all_volumes(&self, pool: Key) -> Vec<Arc<Entry>> {
        let tree = self.read();
        tree.volumes.values().filter(|entry| entry.pool().key() == pool).cloned().collect()
    }

    fn rename_pool(&self, pool: &Pool, name: &str) -> Arc<str> {
        // Under the tree's lock, so that nobody adds a pool of this name meanwhile.
        let _tree = self.write();
        let mut current = pool.name.lock().unwrap_or_else(PoisonError::into_inner);
        pool.note_change();
        std::mem::replace(&mut *current, name.into())
    }
}

impl Entry {
    /// Begins its deletion with its pool's: afterwards it cannot be opened, and nothing starts.
    fn close_with_pool(&self) -> Result<(), Error> {
        let mut state = self.state();
        let by = if let Some(by) = &state.held_by {
            by.clone()
        } else if state.openings > 0 {
            "whoever has it open".to_owned()
        } else if let Some(registrants) = self.registrants() {
            registrants
        } else {
            state.life = Life::Deleting;
            self.gate().close();
            return Ok(());
        };
        Err(Error::PoolInUse { volume: state.name.clone(), by })
    }

    fn registrants(&self) -> Option<String> {
        let reservations = self.gate().reservations();
        if reservations.fence().is_some() {
            return Some("damaged reservations, which must be reset first".to_owned());
        }
        match reservations.registrants().len() {
            0 => None,
            count => Some(format!("{count} hosts that have registered reservations")),
        }
    }
}

impl PoolOwner {
    /// Gives the pool another name; durable on return. Its directory, and what is found by
    /// `pool/volume`, have it from then on; what is open stays open.
    ///
    /// # Errors
    /// [`Error::PoolExists`]; [`Error::Store`], among others if the name cannot be.
    pub async fn rename_pool(&self, pool: &Pool, name: &str) -> Result<(), Error> {
        let _names = self.names.lock().await;
        if !is_file_name(name) {
            return Err(crate::lvol::Error::Unsuitable("the name cannot be a directory's").into());
        }
        match self.directory.find_pool(name) {
            Some(other) if other.key() == pool.key() => return Ok(()),
            Some(_) => return Err(Error::PoolExists { name: name.to_owned() }),
            None => {}
        }
        self.store.rename(name).await?;
        let old = self.directory.rename_pool(pool, name);
        self.directory.events().add(EventKind::PoolRenamed, name, None, None);
        tracing::info!(from = &*old, to = name, "pool renamed");
        Ok(())
    }

    /// Takes in what the device has gained; durable on return. True if the pool is larger now.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn grow(&self, pool: &Pool) -> Result<bool, Error> {
        let (now, before) = self.store.grow_with_device().await?;
        if now == before {
            return Ok(false);
        }
        let free = u64::from(self.store.info().free_clusters.get()) * pool.cluster_size().get();
        let events = self.directory.events();
        events.add(EventKind::PoolGrown, &pool.name(), None, Some(ByteCount(free)));
        Ok(true)
    }

    /// Takes the pool off its device with all its volumes; durable on return.
    ///
    /// # Errors
    /// [`Error::PoolInUse`] if a volume is open, exported, has reservations or is the parent of
    /// volumes of another pool: nothing is changed then. [`Error::Store`]; if the device failed
    /// half-way, the pool is closed all the same, and opening it again tells what is left.
    pub async fn destroy(&self, pool: &Pool) -> Result<(), Error> {
        let _names = self.names.lock().await;
        let entries = self.directory.all_volumes(pool.key());
        let mut leaving = Vec::with_capacity(entries.len());
        for entry in &entries {
            leaving.push(self.end_parenthood(entry).await.map_err(|error| match error {
                Error::ParentOf { by } => {
                    let by = format!("{by}, whose external parent it is");
                    Error::PoolInUse { volume: entry.name(), by }
                }
                error => error,
            })?);
        }
        for (index, entry) in entries.iter().enumerate() {
            // A command that is under way may be about to register somebody.
            let keeper = entry.keeper().lock().await;
            let closed = entry.close_with_pool();
            drop(keeper);
            if let Err(error) = closed {
                entries[..index].iter().for_each(|entry| entry.abandon_deletion());
                return Err(error);
            }
        }
        let destroyed = self.store.destroy().await;
        if self.store.info().state != StoreState::Closed {
            entries.iter().for_each(|entry| entry.abandon_deletion());
            return Ok(destroyed?);
        }
        self.directory.remove_pool(pool.key());
        let name = pool.name();
        if destroyed.is_ok() {
            self.directory.events().add(EventKind::PoolDeleted, &name, None, None);
            for entry in &entries {
                self.forget_reservations(entry).await;
            }
            tracing::info!(pool = &*name, volumes = entries.len(), "pool destroyed");
        }
        drop(pool.owner().release(&self.reactor));
        Ok(destroyed?)
    }
}
