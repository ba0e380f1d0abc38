//! The process: its state and its end.

use super::{Answer, DaemonService, counters_of, total};
use crate::control::status::{DeviceStatus, MountStatus, PoolStatus, ReactorStatus, Status};
use crate::control::types::{KillInstance, NoParameters};
use crate::control::{ProcessMethods, RpcError};
use crate::daemon::facts::{self, ParentFacts, SiteFacts};
use crate::daemon::signals;
use crate::lvol::{SpaceState, TornWrites};
use crate::volume::Pool;

impl DaemonService {
    fn pool_status(&self, pool: &Pool, sites: &[SiteFacts]) -> Answer<PoolStatus> {
        let facts = self.ask_owner(pool)?;
        let info = &facts.info;
        let entries = self.directory.volumes(pool.key());
        let served = entries.iter().filter_map(|entry| {
            let info = facts.volumes.iter().find(|info| info.id == entry.blob())?;
            let name_of = |id| {
                let found = facts.volumes.iter().find(|volume| volume.id == id);
                found.map(|volume| volume.name.clone())
            };
            let missing = |name| self.pools.why_missing(pool.key(), name);
            let stored = info.external_parent.as_deref();
            let parents = ParentFacts {
                parent: info.parent.and_then(name_of),
                external_parent: stored.map(|stored| self.pools.parent_name(stored)),
                missing: info.shows.as_ref().and_then(missing),
            };
            Some(facts::volume_status(entry, info, facts.info.cluster_size, parents, sites))
        });
        let bytes = |clusters: u64| clusters.saturating_mul(info.cluster_size.get());
        let damaged = facts.quarantined.iter().map(facts::quarantined_status);
        Ok(PoolStatus {
            name: pool.name().to_string(),
            uuid: pool.uuid(),
            device: self.device_of(pool),
            health: facts::store_health(&info.state),
            cluster_size: info.cluster_size.get(),
            total_clusters: u64::from(info.data_clusters.get()),
            free_clusters: u64::from(info.free_clusters.get()),
            space: match info.space {
                SpaceState::Ok => "ok",
                SpaceState::Low => "low",
                SpaceState::Full => "full",
            }
            .to_owned(),
            allocated: bytes(
                facts.volumes.iter().map(|volume| u64::from(volume.allocated.get())).sum(),
            ),
            provisioned: facts.volumes.iter().map(|volume| volume.size.get()).sum(),
            reserved: bytes(info.promised_clusters.get().into()),
            torn_writes: match info.torn_writes {
                TornWrites::Atomic => "atomic",
                TornWrites::Journal => "journal",
                TornWrites::Unprotected => "unprotected",
            }
            .to_owned(),
            counters: counters_of(&facts.counters),
            volumes: served.chain(damaged).collect(),
        })
    }
}

impl ProcessMethods for DaemonService {
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
            mounts: self
                .mount
                .at
                .iter()
                .map(|(path, transport)| MountStatus {
                    path: path.clone(),
                    transport: transport.name.to_owned(),
                    transport_note: transport.note.clone(),
                    counters: total(sites.iter().map(|site| site.files.clone())),
                })
                .collect(),
            pools: pools
                .iter()
                .map(|pool| self.pool_status(pool, &sites))
                .collect::<Answer<Vec<PoolStatus>>>()?,
            devices: self
                .devices()
                .iter()
                .map(|device| device.status(&sites))
                .collect::<Vec<DeviceStatus>>(),
        })
    }
}
