//! Volumes that are parents of volumes of other pools: a golden image in one, its clones in another.
//!
//! Which pools may have such clones is known at the parent ([`Parenthood`]): a pool is added before
//! it may make the first one. When the parent is to be deleted, those pools are asked. One that
//! needs it keeps it; one that does not forgets it in the same step, so that it makes no clone of
//! what is about to be gone.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use super::directory::{Entry, Key, Life};
use super::error::Error;
use super::owner::PoolOwner;
use crate::lvol::{self, ExternalName, VolumeMap, external_name, stored_name};

/// A volume's part as a parent of volumes of other pools.
#[derive(Debug, Default)]
pub(super) struct Parenthood {
    /// Pools whose volumes may have it as their parent.
    pools: BTreeSet<Key>,
    /// How many are about to delete it: no pool is added meanwhile.
    ending: usize,
}

/// A volume is no parent of any volume of another pool, and becomes none as long as this lives.
#[must_use]
pub(super) struct EndedParenthood<'a>(&'a Entry);

impl Drop for EndedParenthood<'_> {
    fn drop(&mut self) {
        self.0.state().parenthood.ending -= 1;
    }
}

impl Entry {
    /// What names it in the metadata of volumes of other pools that are clones of it.
    #[must_use]
    pub fn external_name(&self) -> ExternalName {
        external_name(&stored_name(self.uuid()))
    }

    /// Volumes of `pool` may have it as their parent from now on; false if they might before.
    fn add_child_pool(&self, pool: Key) -> Result<bool, Error> {
        let mut state = self.state();
        if state.life != Life::Named || state.parenthood.ending > 0 {
            return Err(Error::Deleted);
        }
        Ok(state.parenthood.pools.insert(pool))
    }

    fn remove_child_pool(&self, pool: Key) {
        self.state().parenthood.pools.remove(&pool);
    }
}

impl PoolOwner {
    /// Makes a volume one that volumes of `pool`, another one, can have as their parent: it cannot
    /// be deleted as long as one of them does. It is read-only on the medium on return.
    ///
    /// # Errors
    /// [`Error::Deleted`]; [`Error::Store`], as [`lvol::Store::as_external_parent`] says.
    pub async fn make_parent(&self, entry: &Entry, pool: Key) -> Result<Arc<VolumeMap>, Error> {
        let added = entry.add_child_pool(pool)?;
        let map = self.store.as_external_parent(entry.blob()).await;
        if map.is_err() && added {
            entry.remove_child_pool(pool);
        }
        Ok(map?)
    }

    /// Finds out that no volume of another pool needs a volume, which then can be deleted.
    ///
    /// # Errors
    /// [`Error::ParentOf`].
    pub(super) async fn end_parenthood<'a>(
        &self,
        entry: &'a Entry,
    ) -> Result<EndedParenthood<'a>, Error> {
        let pools = {
            let mut state = entry.state();
            state.parenthood.ending += 1;
            state.parenthood.pools.clone()
        };
        let ended = EndedParenthood(entry);
        let mut needed_by = Vec::new();
        for key in pools {
            // One that is gone has no volumes any more.
            let Some(pool) = self.directory.pool(key) else {
                entry.remove_child_pool(key);
                continue;
            };
            let name = entry.external_name();
            let release =
                |owner: Rc<PoolOwner>| async move { owner.store().release_external(&name).await };
            let released = pool.owner().call(&self.reactor, release).await;
            match released.unwrap_or(Err(lvol::Error::Gone)) {
                Ok(volumes) if volumes.is_empty() => entry.remove_child_pool(key),
                Ok(volumes) => needed_by
                    .extend(volumes.iter().map(|volume| format!("{}/{volume}", pool.name()))),
                Err(error) => needed_by
                    .push(format!("pool {}, as far as can be known ({error})", pool.name())),
            }
        }
        if needed_by.is_empty() {
            Ok(ended)
        } else {
            Err(Error::ParentOf { by: needed_by.join(", ") })
        }
    }
}
