//! Pools and their volumes.

use std::rc::Rc;
use std::sync::Arc;

use uuid::Uuid;

use super::{Answer, DaemonService, failed};
use crate::control::types::{
    CreateLvol, GetLvols, Lvol, LvolClearMethod, Lvstore, RenameLvol, ResizeLvol, SelectLvol,
    SelectLvstore,
};
use crate::control::{LvolMethods, RpcError};
use crate::daemon::facts;
use crate::lvol::format::ClearMethod;
use crate::volume::{self, NewVolume, Pool, Replace};

impl LvolMethods for DaemonService {
    fn bdev_lvol_get_lvstores(&self, parameters: SelectLvstore) -> Answer<Vec<Lvstore>> {
        let pools = self.selected(parameters.at_most_one()?)?;
        let one = |pool: Arc<Pool>| {
            let info = self.ask_owner(&pool)?.info;
            Ok(Lvstore {
                uuid: pool.uuid(),
                name: pool.name().to_string(),
                base_bdev: self.device_of(&pool),
                total_data_clusters: u64::from(info.data_clusters.get()),
                free_clusters: u64::from(info.free_clusters.get()),
                block_size: u64::from(info.block_size.bytes()),
                cluster_size: info.cluster_size.get(),
                max_growable_size: u64::from(info.max_clusters.get())
                    .saturating_mul(info.cluster_size.get()),
            })
        };
        pools.into_iter().map(one).collect()
    }

    fn bdev_lvol_create(&self, parameters: CreateLvol) -> Answer<Uuid> {
        let clear = match parameters.clear_method {
            // Unmap is what the default means.
            None | Some(LvolClearMethod::Default | LvolClearMethod::Unmap) => ClearMethod::Default,
            Some(LvolClearMethod::None) => ClearMethod::None,
            Some(LvolClearMethod::WriteZeroes) => ClearMethod::WriteZeroes,
        };
        let (size, pool) = (parameters.size()?, self.pool(&parameters.pool()?)?);
        let new = NewVolume {
            name: parameters.lvol_name,
            size,
            thin: parameters.thin_provision.unwrap_or(false),
            uuid: None,
            attributes: None,
        };
        let created = self.operate(|catalog| async move { catalog.create(&pool, new).await })?;
        let (uuid, blob) = (created.uuid(), created.blob());
        if clear != ClearMethod::Default {
            let set = move |owner: Rc<volume::PoolOwner>| async move {
                owner.store().set_clear_method(blob, clear).await
            };
            let set = created.pool().owner().call_blocking(set).map_err(RpcError::internal)?;
            if let Err(error) = set {
                // All of what was asked for, or nothing.
                self.operate(|catalog| async move { catalog.delete(&created).await })?;
                return Err(failed(&error.into()));
            }
        }
        Ok(uuid)
    }

    fn bdev_lvol_rename(&self, parameters: RenameLvol) -> Answer<bool> {
        let (entry, name) = (self.volume(&parameters.old_name)?, parameters.new_name);
        let (pool, old) = (entry.pool().key(), entry.name());
        self.operate(|catalog| async move { catalog.rename(&entry, &name, Replace::Never).await })?;
        self.mount.notifier.name(pool, &old);
        Ok(true)
    }

    fn bdev_lvol_resize(&self, parameters: ResizeLvol) -> Answer<bool> {
        let (entry, size) = (self.volume(&parameters.name)?, parameters.size()?);
        let (key, pool, name) = (entry.key(), entry.pool().key(), entry.name());
        if self.mount.write_back && entry.openings() > 0 {
            // Its users would go on with the old size.
            let reason = "the file is open, and a mount with the write-back cache keeps the \
                          sizes of open files; close it, or resize it by truncate -s";
            return Err(RpcError::operation_failed(libc::EBUSY).because(reason));
        }
        self.operate(move |catalog| async move { catalog.resize(&entry, size).await })?;
        if self.mount.write_back {
            // The kernel believes no size but its own, unless it forgets the file.
            self.mount.notifier.name(pool, &name);
        }
        self.mount.notifier.attributes(key);
        Ok(true)
    }

    fn bdev_lvol_set_read_only(&self, parameters: SelectLvol) -> Answer<bool> {
        let entry = self.volume(&parameters.name)?;
        self.operate(move |catalog| async move { catalog.set_read_only(&entry).await })?;
        // It may be what volumes of other pools have been waiting for.
        self.pools.attach_parents();
        Ok(true)
    }

    fn bdev_lvol_delete(&self, parameters: SelectLvol) -> Answer<bool> {
        let entry = self.volume(&parameters.name)?;
        let (pool, name) = (entry.pool().key(), entry.name());
        self.operate(|catalog| async move { catalog.delete(&entry).await })?;
        self.mount.notifier.name(pool, &name);
        Ok(true)
    }

    fn bdev_lvol_get_lvols(&self, parameters: GetLvols) -> Answer<Vec<Lvol>> {
        let mut lvols = Vec::new();
        for pool in self.selected(parameters.pool()?)? {
            let facts = self.ask_owner(&pool)?;
            for entry in self.directory.volumes(pool.key()) {
                if let Some(info) = facts.volumes.iter().find(|info| info.id == entry.blob()) {
                    lvols.push(facts::lvol(&pool, &entry, info));
                }
            }
        }
        Ok(lvols)
    }
}
