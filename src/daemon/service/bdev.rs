//! Devices and volumes as block devices.

use super::{Answer, DaemonService};
use crate::control::types::{Bdev, BdevIostat, GetBdevs, GetIostat, Iostat};
use crate::control::{BdevMethods, RpcError};
use crate::daemon::facts;

/// Ticks of the clock that latencies are told in.
const TICKS_PER_SECOND: u64 = 1_000_000_000;

impl DaemonService {
    fn bdevs(&self) -> Answer<Vec<Bdev>> {
        let claimed = |name: &String| self.pools.user_of(name).is_some();
        let mut bdevs: Vec<Bdev> =
            self.devices().iter().map(|device| device.bdev(claimed(&device.name))).collect();
        for pool in self.directory.pools() {
            let facts = self.ask_owner(&pool)?;
            for entry in self.directory.volumes(pool.key()) {
                let info = facts.volumes.iter().find(|info| info.id == entry.blob());
                if let Some(info) = info {
                    let device = self.device_of(&pool);
                    let stored = info.external_parent.as_deref();
                    let parent = stored.map(|stored| self.pools.parent_name(stored));
                    let (pool, volumes) = (&facts.info, &facts.volumes);
                    bdevs.push(facts::volume_bdev(&entry, info, pool, volumes, device, parent));
                }
            }
        }
        Ok(bdevs)
    }
}

impl BdevMethods for DaemonService {
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
        let mut bdevs: Vec<BdevIostat> = self
            .devices()
            .iter()
            .map(|device| facts::device_iostat(&device.name, &sites))
            .collect();
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
}
