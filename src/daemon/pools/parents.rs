//! Devices that are parents of volumes, outside of the pools: found by their UUIDs or names, attached
//! where volumes name them, and let go when none does any more.

use std::sync::Arc;

use uuid::Uuid;

use super::{Claim, Pools, Refusal, lock, run_on};
use crate::lvol::{External, ExternalName, stored_name};
use crate::volume::{self, Entry, Pool, PoolOwner};

impl Pools {
    /// There is a device that volumes may name.
    pub(in crate::daemon) fn add_device(&self, name: &str, uuid: Uuid) {
        lock(&self.devices).insert(name.to_owned(), uuid);
    }

    /// It is gone; nobody uses it.
    pub(in crate::daemon) fn remove_device(&self, name: &str) {
        lock(&self.devices).remove(name);
    }

    /// A device by its name or its UUID.
    pub(in crate::daemon) fn find_device(&self, text: &str) -> Option<(String, Uuid)> {
        let wanted = Uuid::parse_str(text).ok();
        let devices = lock(&self.devices);
        let mut known = devices.iter();
        let found = known.find(|(name, uuid)| *name == text || Some(**uuid) == wanted);
        found.map(|(name, uuid)| (name.clone(), *uuid))
    }

    /// Attaches what volumes name as their parents outside of the pools, as far as it is there;
    /// with `told`, says of which it is not.
    pub(in crate::daemon) fn attach_parents(&self, told: bool) {
        for pool in self.directory.pools() {
            for name in external_parents(&pool) {
                let text = String::from_utf8_lossy(&name).into_owned();
                match self.find_device(&text) {
                    Some((device, _)) => match self.attach_parent(&pool, &name, &device) {
                        Ok(()) => {}
                        Err(refusal) => tracing::warn!(
                            pool = &*pool.name(),
                            parent = text,
                            "volumes are degraded: {refusal}"
                        ),
                    },
                    None if told => tracing::warn!(
                        pool = &*pool.name(),
                        parent = text,
                        "volumes are degraded: their external parent is not there; declare it as \
                         a [[device]] with this UUID"
                    ),
                    None => {}
                }
            }
        }
    }

    /// Has every reactor read `device` where volumes of the pool name `name`.
    fn attach_parent(
        &self,
        pool: &Arc<Pool>,
        name: &ExternalName,
        device: &str,
    ) -> Result<(), Refusal> {
        let is_parent = self.claims().get(device) == Some(&Claim::Parent);
        if !is_parent {
            let claimed = self.claim(device, "made a parent of volumes");
            let device = device.to_owned();
            claimed.map_err(|by| Refusal::Claimed { device, by })?.give(Claim::Parent);
        }
        let key = pool.key();
        for site in &self.sites {
            let (name, device) = (Arc::clone(name), device.to_owned());
            run_on(site, move |site| async move {
                let channel = site.channel(&device)?;
                site.catalog.attach_external(key, &name, External::Device(channel));
                anyhow::Ok(())
            })??;
        }
        for site in &self.sites {
            let (name, device) = (Arc::clone(name), device.to_owned());
            run_on(site, move |site| async move {
                if let Some(owner) = site.owner_of(key) {
                    let device = External::Device(site.channel(&device)?);
                    owner.store().attach_external(&name, device);
                }
                anyhow::Ok(())
            })??;
        }
        tracing::info!(pool = &*pool.name(), device, "external parent attached");
        Ok(())
    }

    /// Lets go of a device that was a parent, if no volume names it any more.
    pub(super) fn release_parent(&self, device: &str) {
        if self.claims().get(device) != Some(&Claim::Parent) {
            return;
        }
        let uuid = lock(&self.devices).get(device).copied();
        let names = [Some(device.as_bytes().into()), uuid.map(text_of)];
        let names: Vec<ExternalName> = names.into_iter().flatten().collect();
        let pools = self.directory.pools();
        if pools.iter().any(|pool| external_parents(pool).iter().any(|name| names.contains(name))) {
            return;
        }
        for pool in pools {
            let key = pool.key();
            for site in &self.sites {
                let names = names.clone();
                // An error: the reactor has ended, and everything on it.
                run_on(site, move |site| async move {
                    for name in &names {
                        if let Some(owner) = site.owner_of(key) {
                            owner.store().detach_external(name);
                        }
                        site.catalog.detach_external(key, name);
                    }
                })
                .ok();
            }
        }
        self.claims().remove(device);
    }

    /// Makes a volume that is a clone of a device; durable on return.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(in crate::daemon) fn clone_device(
        &self,
        pool: &Arc<Pool>,
        device: &str,
        clone: &str,
    ) -> Result<Arc<Entry>, Refusal> {
        let _one_at_a_time = self.change();
        let uuid = self.parent_of(pool, device)?;
        let (there, clone) = (Arc::clone(pool), clone.to_owned());
        let make = move |owner: std::rc::Rc<PoolOwner>| async move {
            owner.clone_external(&there, &stored_name(uuid), &clone).await
        };
        Ok(pool.owner().call_blocking(make).map_err(volume::Error::from)??)
    }

    /// Makes a device the parent of a volume; durable on return.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(in crate::daemon) fn set_device_parent(
        &self,
        entry: &Arc<Entry>,
        device: &str,
    ) -> Result<(), Refusal> {
        let _one_at_a_time = self.change();
        let uuid = self.parent_of(entry.pool(), device)?;
        let volume = Arc::clone(entry);
        let set = move |owner: std::rc::Rc<PoolOwner>| async move {
            owner.set_external_parent(&volume, &stored_name(uuid)).await
        };
        Ok(entry.pool().owner().call_blocking(set).map_err(volume::Error::from)??)
    }

    fn parent_of(&self, pool: &Arc<Pool>, device: &str) -> Result<Uuid, Refusal> {
        let found = self.find_device(device);
        let (name, uuid) = found.ok_or_else(|| Refusal::NoDevice(device.to_owned()))?;
        self.attach_parent(pool, &text_of(uuid), &name)?;
        Ok(uuid)
    }
}

fn text_of(uuid: Uuid) -> ExternalName {
    uuid.hyphenated().to_string().into_bytes().into()
}

fn external_parents(pool: &Pool) -> Vec<ExternalName> {
    let names = |owner: std::rc::Rc<PoolOwner>| async move { owner.store().external_parents() };
    // An error: its reactor has ended.
    pool.owner().call_blocking(names).unwrap_or_default()
}
