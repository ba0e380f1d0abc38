//! What the daemon answers on its control socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use uuid::Uuid;

use super::devices::Devices;
use super::facts::{self, DeviceFacts, SiteFacts};
use super::pools::Pools;
use super::reactors::ReactorThread;
use super::signals;
use super::site::Site;
use crate::control::status::{
    Counters, DeviceStatus, MountStatus, PoolStatus, ReactorStatus, Status,
};
use crate::control::types::{
    Bdev, BdevIostat, CreateLvol, GetBdevs, GetIostat, GetLvols, Iostat, KillInstance, Lvol,
    LvolClearMethod, Lvstore, NoParameters, PoolSelector, RenameLvol, ResizeLvol, SelectLvol,
    SelectLvstore,
};
use crate::control::{RpcError, Service};
use crate::fuse::errno::Errno;
use crate::lvol::{Quarantined, StoreCounters, StoreInfo, VolumeInfo};
use crate::reactor::Remote;
use crate::volume::{self, Directory, Entry, NewVolume, Pool, Replace};

/// Ticks of the clock that latencies are told in.
const TICKS_PER_SECOND: u64 = 1_000_000_000;

/// Answers from what the reactors know.
pub(super) struct DaemonService {
    sites: Vec<Remote<Site>>,
    cpus: Vec<Option<usize>>,
    directory: Directory,
    devices: Vec<DeviceFacts>,
    /// The device of each pool, by the pool's name.
    pool_devices: BTreeMap<String, String>,
    mount: PathBuf,
    started: Instant,
}

/// What a pool's owner knows.
struct PoolFacts {
    info: StoreInfo,
    counters: StoreCounters,
    volumes: Vec<VolumeInfo>,
    quarantined: Vec<Quarantined>,
}

type Answer<T> = Result<T, RpcError>;

impl DaemonService {
    pub(super) fn new(
        sites: &[ReactorThread<Site>],
        devices: &Devices,
        pools: &Pools,
        mount: PathBuf,
    ) -> anyhow::Result<Self> {
        let directory = sites[0].run(|site| async move { site.catalog.directory().clone() })?;
        Ok(Self {
            sites: sites.iter().map(|site| site.object().clone()).collect(),
            cpus: sites.iter().map(ReactorThread::cpu).collect(),
            directory,
            devices: devices.list().iter().map(DeviceFacts::new).collect(),
            pool_devices: pools.devices(),
            mount,
            started: super::now(),
        })
    }

    fn pool(&self, selector: &PoolSelector) -> Answer<Arc<Pool>> {
        let pools = self.directory.pools();
        let found = pools.into_iter().find(|pool| match selector {
            PoolSelector::Uuid(uuid) => pool.uuid() == *uuid,
            PoolSelector::Name(name) => pool.name() == name,
        });
        found.ok_or_else(|| RpcError::errno(libc::ENODEV))
    }

    fn selected(&self, selector: Option<PoolSelector>) -> Answer<Vec<Arc<Pool>>> {
        match selector {
            Some(selector) => Ok(vec![self.pool(&selector)?]),
            None => Ok(self.directory.pools()),
        }
    }

    /// A volume by `pool/volume` or by its UUID.
    fn volume(&self, name: &str) -> Answer<Arc<Entry>> {
        let found = match name.split_once('/') {
            Some((pool, volume)) => {
                let pool = self.directory.find_pool(pool);
                pool.and_then(|pool| self.directory.find_volume(pool.key(), volume))
            }
            None => Uuid::parse_str(name).ok().and_then(|uuid| {
                let pools = self.directory.pools().into_iter();
                pools
                    .flat_map(|pool| self.directory.volumes(pool.key()))
                    .find(|entry| entry.uuid() == uuid)
            }),
        };
        found.ok_or_else(|| RpcError::errno(libc::ENODEV).because(name))
    }

    fn ask_owner(&self, pool: &Pool) -> Answer<PoolFacts> {
        let facts = |owner: Rc<volume::PoolOwner>| async move {
            let store = owner.store();
            PoolFacts {
                info: store.info(),
                counters: store.counters(),
                volumes: store.volumes(),
                quarantined: store.quarantined(),
            }
        };
        pool.owner().call_blocking(facts).map_err(RpcError::internal)
    }

    /// Runs an operation on the first reactor's catalog.
    fn operate<F, Fut, R>(&self, operation: F) -> Answer<R>
    where
        F: FnOnce(Rc<volume::Catalog>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, volume::Error>> + 'static,
        R: Send + 'static,
    {
        let run = |site: Rc<Site>| async move { operation(Rc::clone(&site.catalog)).await };
        let result = self.sites[0].call_blocking(run).map_err(RpcError::internal)?;
        result.map_err(|error| failed(&error))
    }

    fn site_facts(&self) -> Answer<Vec<SiteFacts>> {
        let facts = |site: Rc<Site>| async move { SiteFacts::of(&site) };
        let ask = |site: &Remote<Site>| site.call_blocking(facts).map_err(RpcError::internal);
        self.sites.iter().map(ask).collect()
    }

    fn device_of(&self, pool: &Pool) -> String {
        self.pool_devices.get(pool.name()).cloned().unwrap_or_default()
    }

    fn bdevs(&self) -> Answer<Vec<Bdev>> {
        let claimed = |name: &String| self.pool_devices.values().any(|device| device == name);
        let mut bdevs: Vec<Bdev> =
            self.devices.iter().map(|device| device.bdev(claimed(&device.name))).collect();
        for pool in self.directory.pools() {
            let facts = self.ask_owner(&pool)?;
            for entry in self.directory.volumes(pool.key()) {
                let info = facts.volumes.iter().find(|info| info.id == entry.blob());
                if let Some(info) = info {
                    let device = self.device_of(&pool);
                    bdevs.push(facts::volume_bdev(
                        &entry,
                        info,
                        &facts.info,
                        &facts.volumes,
                        device,
                    ));
                }
            }
        }
        Ok(bdevs)
    }

    fn pool_status(&self, pool: &Pool, sites: &[SiteFacts]) -> Answer<PoolStatus> {
        let facts = self.ask_owner(pool)?;
        let info = &facts.info;
        let entries = self.directory.volumes(pool.key());
        let served = entries.iter().filter_map(|entry| {
            let info = facts.volumes.iter().find(|info| info.id == entry.blob())?;
            Some(facts::volume_status(entry, info, facts.info.cluster_size, sites))
        });
        let damaged = facts.quarantined.iter().map(facts::quarantined_status);
        Ok(PoolStatus {
            name: pool.name().to_owned(),
            uuid: pool.uuid(),
            device: self.device_of(pool),
            health: facts::store_health(&info.state),
            cluster_size: info.cluster_size.get(),
            total_clusters: u64::from(info.data_clusters.get()),
            free_clusters: u64::from(info.free_clusters.get()),
            counters: counters_of(&facts.counters),
            volumes: served.chain(damaged).collect(),
        })
    }
}

/// A failed volume operation as SPDK reports it.
fn failed(error: &volume::Error) -> RpcError {
    RpcError::operation_failed(Errno::from(error.clone()).get()).because(error)
}

/// The numbers of a structure, by the names of its fields.
pub(super) fn counters_of(counters: &impl Serialize) -> Counters {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(counters) else {
        return Counters::new();
    };
    fields.into_iter().filter_map(|(name, value)| Some((name, value.as_u64()?))).collect()
}

/// Adds up counters of several reactors.
pub(super) fn total(all: impl IntoIterator<Item = Counters>) -> Counters {
    let mut sum = Counters::new();
    for (name, value) in all.into_iter().flatten() {
        *sum.entry(name).or_default() += value;
    }
    sum
}

impl Service for DaemonService {
    fn bdev_get_bdevs(&self, parameters: GetBdevs) -> Answer<Vec<Bdev>> {
        let mut bdevs = self.bdevs()?;
        if let Some(name) = parameters.name {
            bdevs.retain(|bdev| bdev.name == name || bdev.aliases.contains(&name));
            if bdevs.is_empty() {
                return Err(RpcError::errno(libc::ENODEV));
            }
        }
        Ok(bdevs)
    }

    fn bdev_get_iostat(&self, parameters: GetIostat) -> Answer<Iostat> {
        if parameters.per_channel == Some(true) || parameters.reset_mode.is_some() {
            let reason = "per_channel and reset_mode are not supported; counters only grow";
            return Err(RpcError::invalid_parameters(reason));
        }
        let sites = self.site_facts()?;
        let mut bdevs: Vec<BdevIostat> =
            self.devices.iter().map(|device| facts::device_iostat(&device.name, &sites)).collect();
        for pool in self.directory.pools() {
            for entry in self.directory.volumes(pool.key()) {
                bdevs.push(facts::volume_iostat(&entry, &sites));
            }
        }
        if let Some(names) = parameters.names {
            for name in &names {
                if !bdevs.iter().any(|bdev| bdev.name == *name) {
                    return Err(RpcError::errno(libc::ENODEV).because(name));
                }
            }
            bdevs.retain(|bdev| names.contains(&bdev.name));
        }
        let ticks = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(Iostat { tick_rate: TICKS_PER_SECOND, ticks, bdevs })
    }

    fn bdev_lvol_get_lvstores(&self, parameters: SelectLvstore) -> Answer<Vec<Lvstore>> {
        let pools = self.selected(parameters.at_most_one()?)?;
        let one = |pool: Arc<Pool>| {
            let info = self.ask_owner(&pool)?.info;
            Ok(Lvstore {
                uuid: pool.uuid(),
                name: pool.name().to_owned(),
                base_bdev: self.device_of(&pool),
                total_data_clusters: u64::from(info.data_clusters.get()),
                free_clusters: u64::from(info.free_clusters.get()),
                block_size: u64::from(info.block_size.bytes()),
                cluster_size: info.cluster_size.get(),
            })
        };
        pools.into_iter().map(one).collect()
    }

    fn bdev_lvol_create(&self, parameters: CreateLvol) -> Answer<Uuid> {
        // Unmap is what the default means.
        if let Some(LvolClearMethod::None | LvolClearMethod::WriteZeroes) = parameters.clear_method
        {
            let reason = "clear_method must be \"default\" or \"unmap\"";
            return Err(RpcError::invalid_parameters(reason));
        }
        let (size, pool) = (parameters.size()?, self.pool(&parameters.pool()?)?);
        let new = NewVolume {
            name: parameters.lvol_name,
            size,
            thin: parameters.thin_provision.unwrap_or(false),
            uuid: None,
            attributes: None,
        };
        let created = self.operate(|catalog| async move { catalog.create(&pool, new).await })?;
        Ok(created.uuid())
    }

    fn bdev_lvol_rename(&self, parameters: RenameLvol) -> Answer<bool> {
        let (entry, name) = (self.volume(&parameters.old_name)?, parameters.new_name);
        self.operate(|catalog| async move { catalog.rename(&entry, &name, Replace::Never).await })?;
        Ok(true)
    }

    fn bdev_lvol_resize(&self, parameters: ResizeLvol) -> Answer<bool> {
        let (entry, size) = (self.volume(&parameters.name)?, parameters.size()?);
        self.operate(move |catalog| async move { catalog.resize(&entry, size).await })?;
        Ok(true)
    }

    fn bdev_lvol_set_read_only(&self, parameters: SelectLvol) -> Answer<bool> {
        let entry = self.volume(&parameters.name)?;
        let blob = entry.blob();
        let set = move |owner: Rc<volume::PoolOwner>| async move {
            owner.store().set_read_only(blob).await
        };
        let result = entry.pool().owner().call_blocking(set).map_err(RpcError::internal)?;
        result.map_err(|error| failed(&error.into()))?;
        Ok(true)
    }

    fn bdev_lvol_delete(&self, parameters: SelectLvol) -> Answer<bool> {
        let entry = self.volume(&parameters.name)?;
        self.operate(|catalog| async move { catalog.delete(&entry).await })?;
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

    fn spdk_kill_instance(&self, parameters: KillInstance) -> Answer<bool> {
        signals::raise(parameters.sig_name).map_err(RpcError::internal)?;
        Ok(true)
    }

    fn lvolfs_status(&self, _: NoParameters) -> Answer<Status> {
        let sites = self.site_facts()?;
        let reactors = sites.iter().zip(&self.cpus).enumerate();
        let pools = self.directory.pools();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            reactors: reactors
                .map(|(index, (site, cpu))| ReactorStatus {
                    index,
                    cpu: *cpu,
                    counters: site.reactor.clone(),
                })
                .collect(),
            mounts: vec![MountStatus {
                path: self.mount.clone(),
                transport: "/dev/fuse".to_owned(),
                counters: total(sites.iter().map(|site| site.files.clone())),
            }],
            pools: pools
                .iter()
                .map(|pool| self.pool_status(pool, &sites))
                .collect::<Answer<Vec<PoolStatus>>>()?,
            devices: self
                .devices
                .iter()
                .map(|device| device.status(&sites))
                .collect::<Vec<DeviceStatus>>(),
        })
    }
}
