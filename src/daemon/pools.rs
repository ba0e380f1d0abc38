//! Pools: found on their devices or made there, and closed.
//!
//! A pool that no configuration declares, on a device that it does, was made at run time: it is
//! opened under the name that it has.

mod ancestry;
mod change;
mod parents;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, anyhow, bail};
use uuid::Uuid;

use super::devices::{Devices, run_on};
use super::reactors::ReactorThread;
use super::site::Site;
use crate::config::{self, Config};
use crate::lvol::format::{Contents, LayoutOptions};
use crate::lvol::{ExternalName, FormatOptions, OnFull, StoreState};
use crate::reactor::Remote;
use crate::units::ClusterCount;
use crate::volume::{Attributes, Directory, Key, NewVolume, Pool, PoolOwner, Store};
pub(super) use change::{NewPool, Refusal};

/// The pools that are open, and who uses which device.
pub(super) struct Pools {
    sites: Vec<Remote<Site>>,
    directory: Directory,
    defaults: Attributes,
    claims: Arc<Mutex<Claims>>,
    /// The devices that there are, and their UUIDs.
    devices: Mutex<BTreeMap<String, Uuid>>,
    /// Held while pools and parents come and go.
    changing: Mutex<()>,
    /// Why what volumes name as their external parents is not attached.
    missing: Mutex<BTreeMap<(Key, ExternalName), String>>,
}

/// Who has which device.
type Claims = BTreeMap<String, Claim>;

/// Who uses a device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claim {
    Pool(Key),
    /// Volumes read it where they have nothing of their own.
    Parent,
    /// It is being changed, as this says.
    Busy(&'static str),
}

/// A device that nobody else takes meanwhile.
pub(super) struct Claimed {
    claims: Arc<Mutex<Claims>>,
    device: String,
}

impl Claimed {
    /// The pool has it from now on.
    fn give_to(self, pool: Key) {
        self.give(Claim::Pool(pool));
    }

    fn give(self, claim: Claim) {
        lock(&self.claims).insert(self.device.clone(), claim);
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let mut claims = lock(&self.claims);
        if let Some(Claim::Busy(_)) = claims.get(&self.device) {
            claims.remove(&self.device);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No statement that holds one of these locks can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Owner and mode of files that nobody gave others.
pub(super) fn default_attributes(config: &Config) -> Attributes {
    let mount = &config.mount;
    let uid = mount.owner.unwrap_or_else(crate::hw::process::user);
    let gid = mount.group.unwrap_or_else(crate::hw::process::group);
    Attributes::new(mount.mode, uid, gid)
}

impl Pools {
    /// Opens every pool, formats blank devices where that was asked for, and creates what is
    /// missing of the declared volumes. On an error everything is closed again.
    pub(super) fn open(
        config: &Config,
        sites: &[ReactorThread<Site>],
        devices: &Devices,
    ) -> anyhow::Result<Arc<Self>> {
        let pools = Arc::new(Self {
            sites: sites.iter().map(|site| site.object().clone()).collect(),
            directory: sites[0].run(|site| async move { site.catalog.directory().clone() })?,
            defaults: default_attributes(config),
            claims: Arc::default(),
            devices: Mutex::default(),
            changing: Mutex::default(),
            missing: Mutex::default(),
        });
        let result = pools.open_all(config, devices);
        if let Err(error) = result {
            if let Err(closing) = pools.close() {
                tracing::warn!("while giving up: {closing:#}");
            }
            return Err(error);
        }
        Ok(pools)
    }

    fn open_all(&self, config: &Config, devices: &Devices) -> anyhow::Result<()> {
        for pool in &config.pools {
            self.open_declared(pool).with_context(|| {
                format!("cannot open pool {:?} on device {:?}", pool.name, pool.device)
            })?;
        }
        for device in devices.list() {
            self.add_device(&device.name, device.uuid);
            self.open_found(&device.name);
        }
        self.attach_parents();
        for volume in &config.volumes {
            create_if_missing(volume, &self.sites[0])?;
            set_caching(volume, &self.sites[0])?;
        }
        Ok(())
    }

    fn open_declared(&self, pool: &config::Pool) -> anyhow::Result<()> {
        let claimed = self.claim(&pool.device, "opened").map_err(|by| anyhow!("{by} has it"))?;
        let home = self.next_home();
        let (wanted, defaults) = (pool.clone(), self.defaults.clone());
        let opened = run_on(home, move |site| async move {
            let channel = site.channel(&wanted.device)?;
            let formatted = prepare(&site, &channel, &wanted).await?;
            let store = Store::open(channel, &site.reactor, &site.arena).await?;
            let name = store.info().name;
            if name != wanted.name {
                store.close().await?;
                bail!("the pool there is named {name:?}, not {:?}; correct the name", wanted.name);
            }
            report(&store, formatted);
            open_on_owner(&site, store, &wanted, defaults).await
        })??;
        self.attach(&opened, &pool.device)?;
        claimed.give_to(opened.0.key());
        Ok(())
    }

    /// Opens the pool on a device that nobody uses, if there is one.
    pub(super) fn open_found(&self, device: &str) {
        let Ok(claimed) = self.claim(device, "looked at") else { return };
        match self.try_found(device) {
            Ok(None) => {}
            Ok(Some(pool)) => claimed.give_to(pool.key()),
            Err(error) => tracing::warn!(
                device,
                "there is a pool that the configuration does not declare, and it is not opened: \
                 {error:#}"
            ),
        }
    }

    fn try_found(&self, device: &str) -> anyhow::Result<Option<Arc<Pool>>> {
        let home = self.next_home();
        let (wanted, defaults) = (undeclared(device), self.defaults.clone());
        let opened = run_on(home, move |site| async move {
            let channel = site.channel(&wanted.device)?;
            if Store::identify(&channel, &site.arena).await? != Contents::Lvolstore {
                return anyhow::Ok(None);
            }
            let store = Store::open(channel, &site.reactor, &site.arena).await?;
            if let Err(error) = config::check_name(&store.info().name) {
                store.close().await?;
                return Err(error.into());
            }
            report(&store, false);
            open_on_owner(&site, store, &wanted, defaults).await.map(Some)
        })??;
        let Some(opened) = opened else { return Ok(None) };
        self.attach(&opened, device)?;
        tracing::info!(pool = &*opened.0.name(), device, "found a pool that is not declared");
        Ok(Some(opened.0))
    }

    /// The reactor that owns the next pool.
    fn next_home(&self) -> &Remote<Site> {
        &self.sites[self.directory.pools().len() % self.sites.len()]
    }

    /// Lets every reactor do I/O on a pool; closes it if one cannot.
    fn attach(&self, opened: &Opened, device: &str) -> anyhow::Result<()> {
        let (pool, store) = opened;
        for site in &self.sites {
            let attached = attach(site, pool, store, device);
            if attached.is_err() {
                let key = pool.key();
                for site in &self.sites {
                    run_on(site, move |site| async move { close_owned(&site, Some(key)).await })??;
                    self.detach(pool);
                }
                return attached;
            }
        }
        Ok(())
    }

    /// Reactors forget a pool that is closed.
    fn detach(&self, pool: &Arc<Pool>) {
        for site in &self.sites {
            let pool = Arc::clone(pool);
            // An error: the reactor has ended, and everything on it.
            run_on(site, move |site| async move { site.catalog.detach(&pool) }).ok();
        }
    }

    /// Writes that wait for space fail from now on, so that front ends can drain.
    pub(super) fn stop_waiting(&self) {
        for pool in self.directory.pools() {
            let stop = |owner: Rc<PoolOwner>| async move { owner.store().stop_waiting() };
            // An error: its reactor has ended, and with it whoever waited.
            pool.owner().call_blocking(stop).ok();
        }
    }

    /// Closes every pool clean.
    ///
    /// # Errors
    /// The first failure; the others are tried and logged all the same.
    pub(super) fn close(&self) -> anyhow::Result<()> {
        let mut first = Ok(());
        for site in &self.sites {
            let closed = run_on(site, |site| async move { close_owned(&site, None).await });
            match closed.and_then(|closed| closed) {
                Ok(()) => {}
                Err(error) if first.is_ok() => first = Err(error),
                Err(error) => tracing::error!("{error:#}"),
            }
        }
        first
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        lock(&self.claims)
    }

    /// Takes a device, to be `changed` in some way.
    ///
    /// # Errors
    /// Who has it.
    pub(super) fn claim(&self, device: &str, changed: &'static str) -> Result<Claimed, String> {
        self.release_parent(device);
        if let Some(user) = self.user_of(device) {
            return Err(user);
        }
        let mut claims = self.claims();
        if claims.contains_key(device) {
            return Err("another request".to_owned());
        }
        claims.insert(device.to_owned(), Claim::Busy(changed));
        Ok(Claimed { claims: Arc::clone(&self.claims), device: device.to_owned() })
    }

    /// Who uses a device, for people.
    pub(super) fn user_of(&self, device: &str) -> Option<String> {
        let claim = *self.claims().get(device)?;
        Some(match claim {
            Claim::Busy(how) => format!("a request by which it is {how}"),
            Claim::Parent => "volumes whose external parent it is".to_owned(),
            Claim::Pool(key) => match self.directory.pool(key) {
                Some(pool) => format!("pool {:?}", pool.name()),
                None => "a pool that is being closed".to_owned(),
            },
        })
    }

    /// The device of a pool.
    pub(super) fn device_of(&self, pool: Key) -> Option<String> {
        let claims = self.claims();
        let found = claims.iter().find(|(_, claim)| **claim == Claim::Pool(pool));
        found.map(|(device, _)| device.clone())
    }

    /// What is there, in a few words.
    pub(super) fn summary(&self) -> String {
        let one = |pool: Arc<Pool>| {
            let info = pool.owner().call_blocking(|owner| async move { owner.info() });
            let clusters = info.map_or(0, |info| u64::from(info.data_clusters.get()));
            let size = crate::units::ByteCount(clusters * pool.cluster_size().get());
            let volumes = self.directory.volumes(pool.key()).len();
            let volumes = match volumes {
                1 => "1 volume".to_owned(),
                _ => format!("{volumes} volumes"),
            };
            format!("pool {} ({}, {volumes})", pool.name(), size.rounded())
        };
        match self.directory.pools() {
            pools if pools.is_empty() => "no pools".to_owned(),
            pools => pools.into_iter().map(one).collect::<Vec<_>>().join(", "),
        }
    }
}

/// A pool that is open on its owner, and its store.
type Opened = (Arc<Pool>, Remote<Store>);

/// How a pool on `device` is run that no configuration says anything about.
fn undeclared(device: &str) -> config::Pool {
    config::Pool {
        name: String::new(),
        device: device.to_owned(),
        cluster_size: config::DEFAULT_CLUSTER_SIZE,
        create: false,
        commit_interval: config::DEFAULT_COMMIT_INTERVAL,
        low_water: config::DEFAULT_LOW_WATER,
    }
}

/// Closes the pools that a reactor owns, or one of them.
async fn close_owned(site: &Rc<Site>, only: Option<Key>) -> anyhow::Result<()> {
    let closing: Vec<_> = {
        let mut owned = site.owned.borrow_mut();
        let wanted = |(_, pool): &mut (_, Arc<Pool>)| only.is_none_or(|key| pool.key() == key);
        owned.extract_if(.., wanted).collect()
    };
    let mut first = Ok(());
    for (owner, pool) in closing {
        let name = pool.name();
        let closed = owner.close(&pool).await;
        match closed.with_context(|| format!("pool {name:?} could not be closed clean")) {
            Ok(()) => tracing::info!(pool = &*name, "pool closed clean"),
            Err(error) if first.is_ok() => first = Err(error),
            Err(error) => tracing::error!("{error:#}"),
        }
    }
    first
}

/// Formats a blank device if that is wanted; true if it did.
async fn prepare(
    site: &Rc<Site>,
    channel: &crate::block::AnyChannel,
    wanted: &config::Pool,
) -> anyhow::Result<bool> {
    match Store::identify(channel, &site.arena).await? {
        Contents::Lvolstore => Ok(false),
        Contents::Blank if wanted.create => {
            let layout =
                LayoutOptions { cluster_size: wanted.cluster_size, ..LayoutOptions::default() };
            let options = FormatOptions { name: wanted.name.clone(), uuid: None, layout };
            Store::format(channel, &site.arena, &options).await?;
            let (pool, device) = (&wanted.name, &wanted.device);
            let cluster_size = wanted.cluster_size.human();
            tracing::info!(pool, device, cluster_size, "blank device formatted");
            Ok(true)
        }
        Contents::Blank => bail!("the device is blank; set `create = true` to format it"),
        Contents::Remains => bail!(
            "the device holds {}; it is not touched. If the super block was lost, `lvolfs check` \
             with --cluster-size and --block-size finds the store. If the store was destroyed, \
             erase the device's first 128 KiB, or use `lvolfs pool create`",
            Contents::Remains
        ),
        other => bail!(
            "the device holds {other}; it is not touched. Name another device, or erase its \
             first 128 KiB if nothing on it is needed"
        ),
    }
}

/// On the reactor that will own the pool.
async fn open_on_owner(
    site: &Rc<Site>,
    store: Rc<Store>,
    wanted: &config::Pool,
    defaults: Attributes,
) -> anyhow::Result<Opened> {
    store.commit_every(wanted.commit_interval);
    store.keep_zeroed_clusters();
    let clusters = u64::from(store.info().data_clusters.get());
    let low = clusters * u64::from(wanted.low_water) / 100;
    store.set_low_water(ClusterCount(u32::try_from(low).unwrap_or(u32::MAX)));
    let remote = store.remote()?;
    let directory = site.catalog.directory();
    let (owner, pool) = PoolOwner::open(&site.reactor, store, directory, defaults).await?;
    site.owned.borrow_mut().push((owner, Arc::clone(&pool)));
    Ok((pool, remote))
}

/// Says in the log how the pool was found.
fn report(store: &Rc<Store>, formatted: bool) {
    let (info, recovery) = (store.info(), store.recovery());
    let (pool, volumes) = (&*info.name, store.volumes().len());
    let free = info.free_clusters.get();
    if formatted {
        tracing::info!(pool, free_clusters = free, "new pool opened");
    } else if recovery.clean {
        tracing::info!(pool, volumes, free_clusters = free, "pool opened clean");
    } else {
        let scanned = recovery.pages_scanned;
        tracing::warn!(
            pool,
            volumes,
            free_clusters = free,
            pages_scanned = scanned,
            "pool was not closed clean: recovered"
        );
    }
    for quarantined in store.quarantined() {
        tracing::error!(
            pool,
            volume = quarantined.name.as_deref().unwrap_or("?"),
            blob = format!("{:#x}", quarantined.id.get()),
            damage = %quarantined.damage,
            "volume in quarantine: it is not served; what is known of its clusters stays reserved"
        );
    }
    if let StoreState::Poisoned(error) = info.state {
        tracing::error!(pool, %error, "pool is read-only");
    }
}

fn attach(
    site: &Remote<Site>,
    pool: &Arc<Pool>,
    store: &Remote<Store>,
    device: &str,
) -> anyhow::Result<()> {
    let (pool, store, device) = (Arc::clone(pool), store.clone(), device.to_owned());
    run_on(site, move |site| async move {
        let channel = site.channel(&device)?;
        site.catalog.attach(&pool, store, channel).await?;
        Ok(())
    })?
}

/// How the mount is to use a declared volume.
fn set_caching(volume: &config::Volume, site: &Remote<Site>) -> anyhow::Result<()> {
    let (name, caching) = (volume.name.clone(), super::hosts::caching(volume.cache));
    run_on(site, move |site| async move {
        let directory = site.catalog.directory();
        let pool = directory.find_pool(name.pool());
        let entry = pool.and_then(|pool| directory.find_volume(pool.key(), name.volume()));
        if let Some(Err(error)) = entry.map(|entry| entry.set_caching(caching)) {
            tracing::warn!(volume = %name, %error, "not cached by the mount, but used direct");
        }
    })
}

fn create_if_missing(volume: &config::Volume, site: &Remote<Site>) -> anyhow::Result<()> {
    let wanted = volume.clone();
    let created = run_on(site, move |site| async move {
        let directory = site.catalog.directory();
        let (pool, name) = (wanted.name.pool(), wanted.name.volume());
        let pool = directory.find_pool(pool).ok_or_else(|| anyhow!("its pool is not open"))?;
        if directory.find_volume(pool.key(), name).is_some() {
            return Ok(false);
        }
        let quarantined = |owner: Rc<PoolOwner>| async move {
            let found = owner.store().quarantined().into_iter();
            found.map(|found| found.name).collect::<Vec<_>>()
        };
        let quarantined = pool.owner().call(&site.reactor, quarantined).await?;
        if let Some(other) =
            quarantined.iter().find(|other| other.as_deref().is_none_or(|n| n == name))
        {
            let volume = &wanted.name;
            match other {
                Some(_) => tracing::error!(%volume, "in quarantine: not made anew"),
                None => tracing::error!(
                    %volume,
                    "not there, and there is a volume in quarantine whose name is lost: not made, \
                     for it may be that one; lvolfs check tells more"
                ),
            }
            return Ok(false);
        }
        let new = NewVolume {
            name: name.to_owned(),
            size: wanted.size,
            thin: wanted.thin,
            uuid: None,
            attributes: None,
        };
        let created = site.catalog.create(&pool, new).await?;
        let (blob, reserve, waits) = (created.blob(), wanted.reserve, wanted.waits_for_space);
        let wishes = move |owner: Rc<PoolOwner>| async move {
            if reserve.get() > 0 {
                owner.store().set_reserve(blob, reserve).await?;
            }
            if waits {
                owner.store().set_on_full(blob, OnFull::Wait).await?;
            }
            Ok::<(), crate::lvol::Error>(())
        };
        pool.owner().call(&site.reactor, wishes).await??;
        anyhow::Ok(true)
    })?;
    match created.with_context(|| format!("cannot create volume {}", volume.name))? {
        true => {
            tracing::info!(volume = %volume.name, size = volume.size.human(), "volume created");
        }
        false => tracing::debug!(volume = %volume.name, "volume is there"),
    }
    Ok(())
}
