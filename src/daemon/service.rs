//! What the daemon answers on its control socket: what all methods use is here, each group of
//! methods in a file of its own.

mod bdev;
mod copy;
mod events;
mod lvol;
mod lvstore;
mod nvme;
mod nvmf;
mod process;
mod relatives;
mod reservation;
mod scrub;
mod space;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use super::devices::Devices;
use super::facts::{DeviceFacts, SiteFacts};
use super::files::TransportInUse;
use super::pools::Pools;
use super::reactors::ReactorThread;
use super::site::Site;
use super::target::TargetDoor;
use crate::control::status::Counters;
use crate::control::types::PoolSelector;
use crate::control::{
    BdevMethods, CopyMethods, EventMethods, EventSource, LvolMethods, LvstoreMethods, NvmeMethods,
    NvmfMethods, ProcessMethods, RelativeMethods, ReservationMethods, RpcError, ScrubMethods,
    Service, SpaceMethods,
};
use crate::fuse::errno::Errno;
use crate::fuse::notify::Notifier;
use crate::lvol::{Quarantined, StoreCounters, StoreInfo, VolumeInfo};
use crate::reactor::Remote;
use crate::volume::{self, Directory, Entry, Pool};

/// Answers from what the reactors know.
pub(super) struct DaemonService {
    sites: Vec<Remote<Site>>,
    cpus: Vec<Option<usize>>,
    directory: Directory,
    devices: Mutex<Vec<Arc<DeviceFacts>>>,
    /// Held while controllers come or go.
    attaching: Mutex<()>,
    pools: Arc<Pools>,
    copies: copy::ShallowCopies,
    /// `None` if the configuration has no target.
    target: Option<Arc<TargetDoor>>,
    mount: Mounted,
    started: Instant,
}

/// The mount, if there is one.
pub(super) struct Mounted {
    /// Where, and how requests come.
    pub(super) at: Option<(PathBuf, TransportInUse)>,
    /// Tells the kernel what was changed by other doors.
    pub(super) notifier: Notifier,
    /// Whether the kernel keeps the sizes of files that are open.
    pub(super) write_back: bool,
    /// Its name as a host.
    pub(super) host_nqn: String,
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
        pools: &Arc<Pools>,
        target: Option<Arc<TargetDoor>>,
        mount: Mounted,
    ) -> anyhow::Result<Self> {
        let directory = sites[0].run(|site| async move { site.catalog.directory().clone() })?;
        Ok(Self {
            sites: sites.iter().map(|site| site.object().clone()).collect(),
            cpus: sites.iter().map(ReactorThread::cpu).collect(),
            directory,
            devices: Mutex::new(
                devices.list().iter().map(|opened| Arc::new(DeviceFacts::new(opened))).collect(),
            ),
            attaching: Mutex::default(),
            pools: Arc::clone(pools),
            copies: copy::ShallowCopies::default(),
            target,
            mount,
            started: super::now(),
        })
    }

    fn pool(&self, selector: &PoolSelector) -> Answer<Arc<Pool>> {
        let pools = self.directory.pools();
        let found = pools.into_iter().find(|pool| match selector {
            PoolSelector::Uuid(uuid) => pool.uuid() == *uuid,
            PoolSelector::Name(name) => *pool.name() == **name,
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
        self.directory.find(name).ok_or_else(|| RpcError::errno(libc::ENODEV).because(name))
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

    fn devices(&self) -> MutexGuard<'_, Vec<Arc<DeviceFacts>>> {
        // The list is consistent between any two statements that can panic.
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device_of(&self, pool: &Pool) -> String {
        self.pools.device_of(pool.key()).unwrap_or_default()
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
    fn bdev(&self) -> Option<&dyn BdevMethods> {
        Some(self)
    }

    fn copy(&self) -> Option<&dyn CopyMethods> {
        Some(self)
    }

    fn lvol(&self) -> Option<&dyn LvolMethods> {
        Some(self)
    }

    fn lvstore(&self) -> Option<&dyn LvstoreMethods> {
        Some(self)
    }

    fn nvme(&self) -> Option<&dyn NvmeMethods> {
        Some(self)
    }

    fn relatives(&self) -> Option<&dyn RelativeMethods> {
        Some(self)
    }

    fn events(&self) -> Option<&dyn EventMethods> {
        Some(self)
    }

    fn event_source(&self) -> Option<&dyn EventSource> {
        Some(self)
    }

    fn nvmf(&self) -> Option<&dyn NvmfMethods> {
        self.target.is_some().then_some(self)
    }

    fn scrub(&self) -> Option<&dyn ScrubMethods> {
        Some(self)
    }

    fn space(&self) -> Option<&dyn SpaceMethods> {
        Some(self)
    }

    fn reservation(&self) -> Option<&dyn ReservationMethods> {
        Some(self)
    }

    fn process(&self) -> Option<&dyn ProcessMethods> {
        Some(self)
    }
}
