//! Pools: found on their devices or made there, and closed.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};

use super::reactors::ReactorThread;
use super::site::Site;
use crate::config::{self, Config};
use crate::lvol::format::{Contents, LayoutOptions};
use crate::lvol::{FormatOptions, OnFull, StoreState};
use crate::reactor::Remote;
use crate::units::{ByteCount, ClusterCount};
use crate::volume::{Attributes, NewVolume, Pool, PoolOwner, Store};

/// The pools of the configuration, open.
pub(super) struct Pools {
    opened: Vec<Opened>,
}

struct Opened {
    pool: Arc<Pool>,
    device: String,
    /// The reactor that owns the metadata.
    home: usize,
    volumes: usize,
    size: ByteCount,
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
    pub(super) fn open(config: &Config, sites: &[ReactorThread<Site>]) -> anyhow::Result<Self> {
        let mut pools = Self { opened: Vec::new() };
        let result = pools.open_all(config, sites);
        if let Err(error) = result {
            if let Err(closing) = pools.close(sites) {
                tracing::warn!("while giving up: {closing:#}");
            }
            return Err(error);
        }
        Ok(pools)
    }

    fn open_all(&mut self, config: &Config, sites: &[ReactorThread<Site>]) -> anyhow::Result<()> {
        for (index, pool) in config.pools.iter().enumerate() {
            let home = index % sites.len();
            let (opened, store) = open_pool(config, pool, home, &sites[home])?;
            let shared = Arc::clone(&opened.pool);
            self.opened.push(opened);
            for site in sites {
                attach(site, &shared, &store, &pool.device)?;
            }
        }
        for volume in &config.volumes {
            create_if_missing(volume, &sites[0])?;
            set_caching(volume, &sites[0])?;
        }
        for opened in &mut self.opened {
            let key = opened.pool.key();
            let count =
                move |site: Rc<Site>| async move { site.catalog.directory().volumes(key).len() };
            opened.volumes = sites[0].run(count)?;
        }
        Ok(())
    }

    /// Writes that wait for space fail from now on, so that front ends can drain.
    pub(super) fn stop_waiting(&self) {
        for opened in &self.opened {
            let stop = |owner: Rc<PoolOwner>| async move { owner.store().stop_waiting() };
            // An error: its reactor has ended, and with it whoever waited.
            opened.pool.owner().call_blocking(stop).ok();
        }
    }

    /// Closes every pool clean.
    ///
    /// # Errors
    /// The first failure; the others are tried and logged all the same.
    pub(super) fn close(&self, sites: &[ReactorThread<Site>]) -> anyhow::Result<()> {
        let mut first = Ok(());
        for opened in &self.opened {
            let name = opened.pool.name().to_owned();
            let pool = Arc::clone(&opened.pool);
            let closed = sites[opened.home].run(move |site| async move {
                let owner = {
                    let mut owned = site.owned.borrow_mut();
                    let place = owned.iter().position(|(_, known)| Arc::ptr_eq(known, &pool));
                    place.map(|place| owned.remove(place).0)
                };
                match owner {
                    Some(owner) => owner.close(&pool).await,
                    None => Ok(()),
                }
            });
            let closed = closed
                .and_then(|closed| Ok(closed?))
                .with_context(|| format!("pool {name:?} could not be closed clean"));
            match closed {
                Ok(()) => tracing::info!(pool = name, "pool closed clean"),
                Err(error) if first.is_ok() => first = Err(error),
                Err(error) => tracing::error!("{error:#}"),
            }
        }
        first
    }

    /// The device of each pool, by the pool's name.
    pub(super) fn devices(&self) -> BTreeMap<String, String> {
        let one = |opened: &Opened| (opened.pool.name().to_owned(), opened.device.clone());
        self.opened.iter().map(one).collect()
    }

    /// What is there, in a few words.
    pub(super) fn summary(&self) -> String {
        let one = |opened: &Opened| {
            let (name, size) = (opened.pool.name(), opened.size.human());
            format!("pool {name} ({size}, {} volumes)", opened.volumes)
        };
        match self.opened.as_slice() {
            [] => "no pools".to_owned(),
            opened => opened.iter().map(one).collect::<Vec<_>>().join(", "),
        }
    }
}

fn open_pool(
    config: &Config,
    pool: &config::Pool,
    home: usize,
    site: &ReactorThread<Site>,
) -> anyhow::Result<(Opened, Remote<Store>)> {
    let (wanted, defaults) = (pool.clone(), default_attributes(config));
    let device = pool.device.clone();
    let (pool, store, size) = site
        .run(move |site| async move { open_on_owner(&site, &wanted, defaults).await })?
        .with_context(|| format!("cannot open pool {:?} on device {:?}", pool.name, pool.device))?;
    Ok((Opened { pool, device, home, volumes: 0, size }, store))
}

/// On the reactor that will own the pool.
async fn open_on_owner(
    site: &Rc<Site>,
    wanted: &config::Pool,
    defaults: Attributes,
) -> anyhow::Result<(Arc<Pool>, Remote<Store>, ByteCount)> {
    let channel = site.channel(&wanted.device)?;
    let mut formatted = false;
    match Store::identify(&channel, &site.arena).await? {
        Contents::Lvolstore => {}
        Contents::Blank if wanted.create => {
            let layout =
                LayoutOptions { cluster_size: wanted.cluster_size, ..LayoutOptions::default() };
            let options = FormatOptions { name: wanted.name.clone(), uuid: None, layout };
            Store::format(&channel, &site.arena, &options).await?;
            let (pool, device) = (&wanted.name, &wanted.device);
            let cluster_size = wanted.cluster_size.human();
            tracing::info!(pool, device, cluster_size, "blank device formatted");
            formatted = true;
        }
        Contents::Blank => bail!("the device is blank; set `create = true` to format it"),
        other => bail!(
            "the device holds {other}; it is not touched. Name another device, or erase its \
             first 128 KiB if nothing on it is needed"
        ),
    }
    let store = Store::open(channel, &site.reactor, &site.arena).await?;
    let info = store.info();
    if info.name != wanted.name {
        let close = store.close().await;
        let name = &info.name;
        close?;
        bail!("the pool there is named {name:?}, not {:?}; correct the name", wanted.name);
    }
    report(&store, wanted, formatted);
    store.commit_every(wanted.commit_interval);
    let low = u64::from(info.data_clusters.get()) * u64::from(wanted.low_water) / 100;
    store.set_low_water(ClusterCount(u32::try_from(low).unwrap_or(u32::MAX)));
    let size = info.cluster_size.get() * u64::from(info.data_clusters.get());
    let remote = store.remote()?;
    let directory = site.catalog.directory();
    let (owner, pool) = PoolOwner::open(&site.reactor, store, directory, defaults).await?;
    site.owned.borrow_mut().push((owner, Arc::clone(&pool)));
    Ok((pool, remote, ByteCount(size)))
}

/// Says in the log how the pool was found.
fn report(store: &Rc<Store>, wanted: &config::Pool, formatted: bool) {
    let (info, recovery) = (store.info(), store.recovery());
    let (pool, volumes) = (&*wanted.name, store.volumes().len());
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
            "volume in quarantine: it is not served, and its clusters stay reserved"
        );
    }
    if let StoreState::Poisoned(error) = info.state {
        tracing::error!(pool, %error, "pool is read-only");
    }
}

fn attach(
    site: &ReactorThread<Site>,
    pool: &Arc<Pool>,
    store: &Remote<Store>,
    device: &str,
) -> anyhow::Result<()> {
    let (pool, store, device) = (Arc::clone(pool), store.clone(), device.to_owned());
    site.run(move |site| async move {
        let channel = site.channel(&device)?;
        site.catalog.attach(&pool, store, channel).await?;
        Ok(())
    })?
}

/// How the mount is to use a declared volume.
fn set_caching(volume: &config::Volume, site: &ReactorThread<Site>) -> anyhow::Result<()> {
    let (name, caching) = (volume.name.clone(), super::hosts::caching(volume.cache));
    site.run(move |site| async move {
        let directory = site.catalog.directory();
        let pool = directory.find_pool(name.pool());
        let entry = pool.and_then(|pool| directory.find_volume(pool.key(), name.volume()));
        if let Some(Err(error)) = entry.map(|entry| entry.set_caching(caching)) {
            tracing::warn!(volume = %name, %error, "not cached by the mount, but used direct");
        }
    })
}

fn create_if_missing(volume: &config::Volume, site: &ReactorThread<Site>) -> anyhow::Result<()> {
    let wanted = volume.clone();
    let created = site.run(move |site| async move {
        let directory = site.catalog.directory();
        let (pool, name) = (wanted.name.pool(), wanted.name.volume());
        let pool = directory.find_pool(pool).ok_or_else(|| anyhow!("its pool is not open"))?;
        if directory.find_volume(pool.key(), name).is_some() {
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
