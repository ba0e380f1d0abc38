//! Parents of volumes outside of their pools: devices, and volumes of other pools. Found by their UUIDs
//! or names, attached where volumes name them, and let go when none does any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::ancestry::{Ancestor, Ancestry};
use super::{Claim, Pools, Refusal, lock, run_on};
use crate::block::AnyChannel;
use crate::daemon::site::Site;
use crate::lvol::{External, ExternalName, VolumeMap, external_name, stored_name};
use crate::volume::{self, Entry, Key, Pool, PoolOwner};

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

    /// What `text` names: a device by its name or UUID, or a volume by `pool/volume` or its UUID.
    fn find_parent(&self, text: &str) -> Result<Parent, Refusal> {
        if let Some((name, uuid)) = self.find_device(text) {
            return Ok(Parent::Device { name, uuid });
        }
        let found = self.directory.find(text);
        let entry = found.ok_or_else(|| Refusal::NoParent(text.to_owned()))?;
        // What the metadata will say must not mean anything else.
        let mut paths: Vec<_> =
            self.directory.with_uuid(entry.uuid()).iter().map(|other| other.path()).collect();
        let device = self.find_device(&entry.uuid().to_string());
        paths.extend(device.map(|(name, _)| format!("device {name}")));
        if paths.len() > 1 {
            return Err(Refusal::Ambiguous { uuid: entry.uuid(), names: paths.join(", ") });
        }
        Ok(Parent::Volume(entry))
    }

    /// What the metadata of a volume names: a device, or a volume by exactly what is written for it.
    fn named_parent(&self, name: &ExternalName) -> Result<Parent, Refusal> {
        let text = String::from_utf8_lossy(name);
        match self.find_parent(&text)? {
            Parent::Volume(entry) if entry.external_name() != *name => {
                Err(Refusal::NoParent(text.into_owned()))
            }
            parent => Ok(parent),
        }
    }

    /// What the metadata of a volume calls its external parent, as people call it.
    pub(in crate::daemon) fn parent_name(&self, stored: &[u8]) -> String {
        let name = external_name(stored);
        match self.named_parent(&name) {
            Ok(Parent::Device { name, .. }) => name,
            Ok(Parent::Volume(entry)) => entry.path(),
            Err(_) => String::from_utf8_lossy(&name).into_owned(),
        }
    }

    /// Why what volumes of a pool call `name` is not attached.
    pub(in crate::daemon) fn why_missing(&self, pool: Key, name: &ExternalName) -> Option<String> {
        lock(&self.missing).get(&(pool, Arc::clone(name))).cloned()
    }

    /// Attaches what volumes name as their parents outside of the pools, as far as it is there;
    /// says of which it is not.
    ///
    /// A degraded volume is no parent. So what is attached in one round can make parents for the
    /// next, and volumes that name each other in a circle stay degraded, all of them.
    pub(in crate::daemon) fn attach_parents(&self) {
        let _one_at_a_time = self.change();
        let missing = || -> Vec<_> {
            let pools = self.directory.pools().into_iter();
            pools
                .flat_map(|pool| {
                    missing_externals(&pool).into_iter().map(move |name| (Arc::clone(&pool), name))
                })
                .collect()
        };
        let mut left = missing();
        // Each round but the last attaches one at least.
        for _ in 0..=left.len() {
            if left.is_empty() {
                return self.keep_reasons(BTreeMap::new());
            }
            let ancestry = self.ancestry();
            let mut reasons = BTreeMap::new();
            let before = left.len();
            for (pool, name) in &left {
                if let Err(refusal) = self.attach_named(pool, name, &ancestry) {
                    reasons.insert((pool.key(), Arc::clone(name)), refusal.to_string());
                }
            }
            left = missing();
            if left.len() == before {
                return self.keep_reasons(reasons);
            }
        }
    }

    /// Logs what was not logged before.
    fn keep_reasons(&self, reasons: BTreeMap<(Key, ExternalName), String>) {
        let before = std::mem::replace(&mut *lock(&self.missing), reasons.clone());
        for ((pool, name), reason) in reasons {
            if before.get(&(pool, Arc::clone(&name))) == Some(&reason) {
                continue;
            }
            let pool = self.directory.pool(pool).map(|pool| pool.name());
            let parent = &*String::from_utf8_lossy(&name);
            tracing::warn!(pool = pool.as_deref(), parent, "volumes are degraded: {reason}");
        }
    }

    fn attach_named(
        &self,
        pool: &Arc<Pool>,
        name: &ExternalName,
        ancestry: &Ancestry,
    ) -> Result<(), Refusal> {
        let parent = self.named_parent(name)?;
        self.check_parent(pool, &parent, ancestry)?;
        self.attach_parent(pool, name, &parent)
    }

    /// Whether volumes of `pool` can have this parent; its ancestors, the nearest first.
    fn check_parent<'a>(
        &self,
        pool: &Pool,
        parent: &Parent,
        ancestry: &'a Ancestry,
    ) -> Result<Vec<&'a Ancestor>, Refusal> {
        let Parent::Volume(entry) = parent else { return Ok(Vec::new()) };
        let volume = entry.path();
        if entry.pool().key() == pool.key() {
            return Err(Refusal::SamePool { volume });
        }
        let is_device =
            |name: &ExternalName| self.find_device(&String::from_utf8_lossy(name)).is_some();
        let chain = ancestry.chain(&entry.external_name(), is_device)?;
        match chain.first() {
            Some(first) if !first.read_only => Err(Refusal::Writable { volume }),
            Some(first) if first.degraded => Err(Refusal::Degraded { volume }),
            Some(_) => Ok(chain),
            None => Err(Refusal::NoParent(volume)),
        }
    }

    /// Has every reactor read `parent` where volumes of the pool name `name`.
    fn attach_parent(
        &self,
        pool: &Arc<Pool>,
        name: &ExternalName,
        parent: &Parent,
    ) -> Result<(), Refusal> {
        let way = match parent {
            Parent::Device { name: device, .. } => {
                if self.claims().get(device) != Some(&Claim::Parent) {
                    let claimed = self.claim(device, "made a parent of volumes");
                    let device = device.clone();
                    claimed.map_err(|by| Refusal::Claimed { device, by })?.give(Claim::Parent);
                }
                Way::Device(device.clone())
            }
            Parent::Volume(entry) => {
                let (volume, key) = (Arc::clone(entry), pool.key());
                let make = move |owner: std::rc::Rc<PoolOwner>| async move {
                    owner.make_parent(&volume, key).await
                };
                let map =
                    entry.pool().owner().call_blocking(make).map_err(volume::Error::from)??;
                Way::Volume(entry.pool().key(), map)
            }
        };
        let key = pool.key();
        for site in &self.sites {
            let (name, way) = (Arc::clone(name), way.clone());
            run_on(site, move |site| async move {
                site.catalog.attach_external(key, &name, way.on(&site)?);
                anyhow::Ok(())
            })??;
        }
        for site in &self.sites {
            let (name, way) = (Arc::clone(name), way.clone());
            run_on(site, move |site| async move {
                if let Some(owner) = site.owner_of(key) {
                    owner.store().attach_external(&name, way.on(&site)?);
                }
                anyhow::Ok(())
            })??;
        }
        let parent = self.parent_name(name);
        tracing::info!(pool = &*pool.name(), parent, "external parent attached");
        Ok(())
    }

    /// Lets go of a device that was a parent, if no volume names it any more, on the medium neither.
    pub(super) fn release_parent(&self, device: &str) {
        if self.claims().get(device) != Some(&Claim::Parent) {
            return;
        }
        let uuid = lock(&self.devices).get(device).copied();
        let names = [Some(device.as_bytes().into()), uuid.map(text_of)];
        let names: Vec<ExternalName> = names.into_iter().flatten().collect();
        let pools = self.directory.pools();
        for (pool, name) in pools.iter().flat_map(|pool| names.iter().map(move |name| (pool, name)))
        {
            let name = Arc::clone(name);
            let release = |owner: std::rc::Rc<PoolOwner>| async move {
                owner.store().release_external(&name).await
            };
            match pool.owner().call_blocking(release) {
                Ok(Ok(needed_by)) if needed_by.is_empty() => {}
                // One that cannot tell may need it.
                _ => return,
            }
        }
        for pool in pools {
            let key = pool.key();
            for site in &self.sites {
                let names = names.clone();
                // An error: the reactor has ended, and everything on it.
                run_on(site, move |site| async move {
                    names.iter().for_each(|name| site.catalog.detach_external(key, name));
                })
                .ok();
            }
        }
        self.claims().remove(device);
    }

    /// Makes a volume that is a clone of a device or of a volume of another pool; durable on return.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(in crate::daemon) fn clone_outside(
        &self,
        pool: &Arc<Pool>,
        parent: &str,
        clone: &str,
    ) -> Result<Arc<Entry>, Refusal> {
        let _one_at_a_time = self.change();
        let parent = self.find_parent(parent)?;
        let ancestry = self.ancestry();
        self.check_parent(pool, &parent, &ancestry)?;
        let uuid = self.take_parent(pool, &parent)?;
        let (there, clone) = (Arc::clone(pool), clone.to_owned());
        let make = move |owner: std::rc::Rc<PoolOwner>| async move {
            owner.clone_external(&there, &stored_name(uuid), &clone).await
        };
        Ok(pool.owner().call_blocking(make).map_err(volume::Error::from)??)
    }

    /// Makes a device, or a volume of another pool, the parent of a volume; durable on return.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(in crate::daemon) fn set_outside_parent(
        &self,
        entry: &Arc<Entry>,
        parent: &str,
    ) -> Result<(), Refusal> {
        let _one_at_a_time = self.change();
        let parent = self.find_parent(parent)?;
        let ancestry = self.ancestry();
        let chain = self.check_parent(entry.pool(), &parent, &ancestry)?;
        Ancestry::check_apart(&chain, entry.key())?;
        let uuid = self.take_parent(entry.pool(), &parent)?;
        let volume = Arc::clone(entry);
        let set = move |owner: std::rc::Rc<PoolOwner>| async move {
            owner.set_external_parent(&volume, &stored_name(uuid)).await
        };
        Ok(entry.pool().owner().call_blocking(set).map_err(volume::Error::from)??)
    }

    /// Attaches a parent that the local mount may read.
    fn take_parent(&self, pool: &Arc<Pool>, parent: &Parent) -> Result<Uuid, Refusal> {
        let uuid = match parent {
            Parent::Device { uuid, .. } => *uuid,
            Parent::Volume(entry) => {
                // Who may not read a volume may not read it by a clone either.
                let local = self.directory.hosts().local();
                entry.gate().check_host(local, volume::Access::Read)?;
                entry.uuid()
            }
        };
        self.attach_parent(pool, &text_of(uuid), parent)?;
        Ok(uuid)
    }
}

/// What is outside of a pool, and can be the parent of volumes in it.
enum Parent {
    Device { name: String, uuid: Uuid },
    Volume(Arc<Entry>),
}

/// How any reactor reaches a parent.
#[derive(Clone)]
enum Way {
    /// By its name.
    Device(String),
    /// A volume of this pool.
    Volume(Key, Arc<VolumeMap>),
}

impl Way {
    fn on(&self, site: &Site) -> anyhow::Result<External<AnyChannel>> {
        Ok(match self {
            Self::Device(name) => External::Device(site.channel(name)?),
            Self::Volume(pool, map) => site.catalog.as_parent(*pool, map)?,
        })
    }
}

fn text_of(uuid: Uuid) -> ExternalName {
    uuid.hyphenated().to_string().into_bytes().into()
}

fn missing_externals(pool: &Pool) -> Vec<ExternalName> {
    let names = |owner: std::rc::Rc<PoolOwner>| async move { owner.store().missing_externals() };
    // An error: its reactor has ended.
    pool.owner().call_blocking(names).unwrap_or_default()
}
