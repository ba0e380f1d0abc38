//! Snapshots, clones and parents of volumes.

use uuid::Uuid;

use super::lvstore::refused;
use super::{Answer, DaemonService};
use crate::control::RelativeMethods;
use crate::control::types::{
    CloneBdev, CloneLvol, PoolSelector, SelectLvol, SetParent, SnapshotLvol,
};

impl RelativeMethods for DaemonService {
    fn bdev_lvol_snapshot(&self, parameters: SnapshotLvol) -> Answer<Uuid> {
        let (entry, name) = (self.volume(&parameters.lvol_name)?, parameters.snapshot_name);
        let made =
            self.operate(move |catalog| async move { catalog.snapshot(&entry, &name).await })?;
        Ok(made.uuid())
    }

    fn bdev_lvol_clone(&self, parameters: CloneLvol) -> Answer<Uuid> {
        let (entry, name) = (self.volume(&parameters.snapshot_name)?, parameters.clone_name);
        let made =
            self.operate(move |catalog| async move { catalog.clone_volume(&entry, &name).await })?;
        Ok(made.uuid())
    }

    fn bdev_lvol_inflate(&self, parameters: SelectLvol) -> Answer<bool> {
        let entry = self.volume(&parameters.name)?;
        self.operate(move |catalog| async move { catalog.inflate(&entry).await })?;
        Ok(true)
    }

    fn bdev_lvol_decouple_parent(&self, parameters: SelectLvol) -> Answer<bool> {
        let entry = self.volume(&parameters.name)?;
        self.operate(move |catalog| async move { catalog.decouple(&entry).await })?;
        Ok(true)
    }

    fn bdev_lvol_clone_bdev(&self, parameters: CloneBdev) -> Answer<Uuid> {
        let CloneBdev { bdev, lvs_name, clone_name } = parameters;
        let pool = self.pool(&PoolSelector::Name(lvs_name))?;
        let made = self.pools.clone_outside(&pool, &bdev, &clone_name).map_err(refused)?;
        Ok(made.uuid())
    }

    fn bdev_lvol_set_parent_bdev(&self, parameters: SetParent) -> Answer<bool> {
        let entry = self.volume(&parameters.lvol_name)?;
        self.pools.set_outside_parent(&entry, &parameters.parent_name).map_err(refused)?;
        self.mount.notifier.content(entry.key());
        Ok(true)
    }

    fn bdev_lvol_set_parent(&self, parameters: SetParent) -> Answer<bool> {
        let entry = self.volume(&parameters.lvol_name)?;
        let parent = self.volume(&parameters.parent_name)?;
        let key = entry.key();
        self.operate(move |catalog| async move { catalog.set_parent(&entry, &parent).await })?;
        self.mount.notifier.content(key);
        Ok(true)
    }
}
