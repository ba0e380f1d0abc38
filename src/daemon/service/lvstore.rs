//! Pools that are made, renamed and destroyed at run time.

use uuid::Uuid;

use super::{Answer, DaemonService, failed};
use crate::config;
use crate::control::types::{
    CreateLvstore, LvstoreClearMethod, PoolSelector, RenameLvstore, SelectLvstore,
};
use crate::control::{LvstoreMethods, RpcError};
use crate::daemon::pools::{NewPool, Refusal};
use crate::lvol::format::{ClearMethod, LayoutError, LayoutOptions};
use crate::lvol::{self, FormatOptions, Preparation};
use crate::units::{BlockSize, ByteCount};
use crate::volume;

/// SPDK's codes and texts for what it refuses, too.
pub(super) fn refused(refusal: Refusal) -> RpcError {
    match refusal {
        Refusal::NoDevice(_) | Refusal::NoParent(_) | Refusal::Degraded { .. } => {
            RpcError::errno(libc::ENODEV).because(refusal)
        }
        Refusal::Ambiguous { .. } | Refusal::SamePool { .. } => {
            RpcError::errno(libc::EINVAL).because(refusal)
        }
        Refusal::Cycle { .. } | Refusal::TooDeep { .. } => {
            RpcError::errno(libc::ELOOP).because(refusal)
        }
        Refusal::Claimed { .. } | Refusal::Writable { .. } => {
            RpcError::errno(libc::EPERM).because(refusal)
        }
        Refusal::Volume(volume::Error::PoolExists { .. }) => {
            RpcError::errno(libc::EEXIST).because(refusal)
        }
        Refusal::Volume(volume::Error::PoolInUse { .. }) => {
            RpcError::errno(libc::EBUSY).because(refusal)
        }
        Refusal::Volume(volume::Error::Store(lvol::Error::NotBlank(_))) => {
            let remedy = "it is not touched; erase its first 128 KiB if nothing on it is needed";
            RpcError::errno(libc::EPERM).because(format!("{refusal}: {remedy}"))
        }
        Refusal::Volume(volume::Error::Store(lvol::Error::Layout(
            error @ LayoutError::GrowthLimit { .. },
        ))) => RpcError::errno(libc::ENOSPC).because(error),
        Refusal::Volume(volume::Error::Store(lvol::Error::Layout(error))) => {
            RpcError::errno(libc::EINVAL).because(error)
        }
        Refusal::Volume(error) => failed(&error),
        Refusal::Other(error) => RpcError::internal(format!("{error:#}")),
    }
}

fn new_pool(parameters: CreateLvstore) -> Answer<NewPool> {
    let CreateLvstore { bdev_name, lvs_name, cluster_sz, clear_method, .. } = parameters;
    config::check_name(&lvs_name)
        .map_err(|error| RpcError::errno(libc::EINVAL).because(format!("lvs_name: {error}")))?;
    let mut layout = LayoutOptions::default();
    if let Some(bytes) = cluster_sz.filter(|bytes| *bytes != 0) {
        layout.cluster_size = ByteCount(u64::from(bytes));
    }
    if let Some(percent) = parameters.num_md_pages_per_cluster_ratio {
        layout.metadata_ratio_percent = percent;
    }
    let metadata_page = match parameters.md_page_size.unwrap_or(0) {
        0 => BlockSize::B4096,
        bytes => {
            BlockSize::new(bytes).filter(|size| *size >= BlockSize::B4096).ok_or_else(|| {
                let rule = "md_page_size: it is a power of two, from 4096 to 65536";
                RpcError::errno(libc::EINVAL).because(rule)
            })?
        }
    };
    let clear = match clear_method {
        None | Some(LvstoreClearMethod::Unmap) => ClearMethod::Unmap,
        Some(LvstoreClearMethod::WriteZeroes) => ClearMethod::WriteZeroes,
        Some(LvstoreClearMethod::None) => ClearMethod::None,
    };
    Ok(NewPool {
        device: bdev_name,
        format: FormatOptions { name: lvs_name, uuid: None, layout },
        preparation: Preparation { clear, metadata_page },
    })
}

impl LvstoreMethods for DaemonService {
    fn bdev_lvol_create_lvstore(&self, parameters: CreateLvstore) -> Answer<Uuid> {
        let new = new_pool(parameters)?;
        let name = new.format.name.clone();
        let uuid = self.pools.create(new).map_err(refused)?;
        self.mount.notifier.pool(&name);
        Ok(uuid)
    }

    fn bdev_lvol_rename_lvstore(&self, parameters: RenameLvstore) -> Answer<bool> {
        let RenameLvstore { old_name, new_name } = parameters;
        config::check_name(&new_name)
            .map_err(|error| RpcError::errno(libc::EINVAL).because(format!("new_name: {error}")))?;
        let pool = self.directory.find_pool(&old_name);
        let pool = pool.ok_or_else(|| {
            RpcError::errno(libc::ENOENT).because(format!("there is no pool {old_name:?}"))
        })?;
        self.pools.rename(&pool, &new_name).map_err(refused)?;
        self.mount.notifier.pool(&old_name);
        self.mount.notifier.pool(&new_name);
        if let Some(target) = &self.target {
            target.model().rename_pool(&old_name, &new_name).map_err(|error| {
                RpcError::internal(format!("the pool is renamed, but the target: {error}"))
            })?;
        }
        Ok(true)
    }

    fn bdev_lvol_grow_lvstore(&self, parameters: SelectLvstore) -> Answer<bool> {
        let pool = self.pool(&parameters.exactly_one()?)?;
        let name = self.device_of(&pool);
        let device = self.devices().iter().find(|device| device.name == name).cloned();
        if let Some(device) = device {
            device.rescan().map_err(|error| {
                let reason = format!("cannot measure device {name:?}: {error}");
                RpcError::errno(libc::EIO).because(reason)
            })?;
        }
        if !self.pools.grow(&pool).map_err(refused)? {
            tracing::info!(pool = &*pool.name(), device = name, "the device has gained nothing");
        }
        Ok(true)
    }

    fn bdev_lvol_delete_lvstore(&self, parameters: SelectLvstore) -> Answer<bool> {
        let selector: PoolSelector = parameters.exactly_one()?;
        let pool = self.pool(&selector)?;
        let name = pool.name();
        self.pools.destroy(&pool).map_err(refused)?;
        self.mount.notifier.pool(&name);
        Ok(true)
    }
}
