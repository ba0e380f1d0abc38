//! Pools that come, change and go while the daemon runs.
//!
//! One at a time. A device that a pool is made on is claimed meanwhile, so that neither a second
//! pool nor the detaching of its controller can come between.

use std::sync::{Arc, MutexGuard};

use uuid::Uuid;

use super::{Pools, open_on_owner, report, run_on, undeclared};
use crate::lvol::{self, EXTERNAL_CHAIN_LIMIT, FormatOptions, Preparation};
use crate::volume::{self, Pool, Store};

/// A pool to be made.
#[derive(Clone, Debug)]
pub(in crate::daemon) struct NewPool {
    pub(in crate::daemon) device: String,
    pub(in crate::daemon) format: FormatOptions,
    pub(in crate::daemon) preparation: Preparation,
}

/// Why a pool was not made, changed or destroyed.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum Refusal {
    #[error("there is no device {0:?}")]
    NoDevice(String),
    #[error("there is neither a device {0:?} nor a volume of an open pool")]
    NoParent(String),
    #[error("several have the UUID {uuid}: {names}")]
    Ambiguous { uuid: Uuid, names: String },
    #[error(
        "{volume} is of the same pool: `volume clone` and `volume set-parent` make clones within one"
    )]
    SamePool { volume: String },
    #[error("{volume} can be written: make a snapshot of it, or mark it read-only, first")]
    Writable { volume: String },
    #[error("{volume} is degraded itself")]
    Degraded { volume: String },
    #[error("the external parents form a cycle: {volumes}")]
    Cycle { volumes: String },
    #[error("{volume} has more than {EXTERNAL_CHAIN_LIMIT} external parents above it")]
    TooDeep { volume: String },
    #[error("device {device:?} is in use by {by}")]
    Claimed { device: String, by: String },
    #[error(transparent)]
    Volume(#[from] volume::Error),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl From<lvol::Error> for Refusal {
    fn from(error: lvol::Error) -> Self {
        Self::Volume(error.into())
    }
}

impl Pools {
    pub(super) fn change(&self) -> MutexGuard<'_, ()> {
        super::lock(&self.changing)
    }

    /// Makes a pool on a blank device, and opens it everywhere; durable on return.
    ///
    /// # Errors
    /// [`Refusal`]; the device is as it was, unless opening failed after it was formatted.
    pub(in crate::daemon) fn create(&self, new: NewPool) -> Result<Uuid, Refusal> {
        let _one_at_a_time = self.change();
        let device = new.device.clone();
        let claimed = self.claim(&device, "formatted");
        let claimed = claimed.map_err(|by| Refusal::Claimed { device: device.clone(), by })?;
        let name = new.format.name.clone();
        if self.directory.find_pool(&name).is_some() {
            return Err(volume::Error::PoolExists { name }.into());
        }
        let defaults = self.defaults.clone();
        let opened = run_on(self.next_home(), move |site| async move {
            let NewPool { device, format, preparation } = new;
            let Ok(channel) = site.channel(&device) else { return Err(Refusal::NoDevice(device)) };
            Store::format_prepared(&channel, &site.arena, &format, preparation).await?;
            let store = Store::open(channel, &site.reactor, &site.arena).await?;
            report(&store, true);
            Ok(open_on_owner(&site, store, &undeclared(&device), defaults).await?)
        })??;
        self.attach(&opened, &device)?;
        let (pool, _) = opened;
        claimed.give_to(pool.key());
        self.directory.events().add(volume::events::EventKind::PoolCreated, &name, None, None);
        tracing::info!(pool = name, device, "pool made at run time");
        Ok(pool.uuid())
    }

    /// Gives a pool another name; durable on return.
    ///
    /// # Errors
    /// [`Refusal::Volume`].
    pub(in crate::daemon) fn rename(&self, pool: &Arc<Pool>, name: &str) -> Result<(), Refusal> {
        let _one_at_a_time = self.change();
        let (there, name) = (Arc::clone(pool), name.to_owned());
        let rename = move |owner: std::rc::Rc<volume::PoolOwner>| async move {
            owner.rename_pool(&there, &name).await
        };
        Ok(pool.owner().call_blocking(rename).map_err(volume::Error::from)??)
    }

    /// Takes in what the pool's device has gained, which the caller has looked for; durable on
    /// return. True if the pool is larger now.
    ///
    /// # Errors
    /// [`Refusal::Volume`].
    pub(in crate::daemon) fn grow(&self, pool: &Arc<Pool>) -> Result<bool, Refusal> {
        let _one_at_a_time = self.change();
        let there = Arc::clone(pool);
        let grow =
            move |owner: std::rc::Rc<volume::PoolOwner>| async move { owner.grow(&there).await };
        Ok(pool.owner().call_blocking(grow).map_err(volume::Error::from)??)
    }

    /// Takes a pool off its device with all its volumes; durable on return. Every reactor has
    /// forgotten it then, and the device is free.
    ///
    /// # Errors
    /// [`Refusal::Volume`].
    pub(in crate::daemon) fn destroy(&self, pool: &Arc<Pool>) -> Result<(), Refusal> {
        let _one_at_a_time = self.change();
        let there = Arc::clone(pool);
        let destroy =
            move |owner: std::rc::Rc<volume::PoolOwner>| async move { owner.destroy(&there).await };
        let destroyed = pool.owner().call_blocking(destroy).map_err(volume::Error::from)?;
        if self.directory.pool(pool.key()).is_none() {
            let key = pool.key();
            for site in &self.sites {
                run_on(site, move |site| async move {
                    site.owned.borrow_mut().retain(|(_, owned)| owned.key() != key);
                })?;
            }
            self.detach(pool);
            self.claims().retain(|_, claim| *claim != super::Claim::Pool(key));
        }
        Ok(destroyed?)
    }
}
