//! One reactor's way to all volumes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use super::Attributes;
use super::directory::{Directory, Entry, Key};
use super::error::Error;
use super::gate::Access;
use super::handle::{Volume, VolumeCounters};
use super::hosts::HostVolumes;
use super::key::KeyMap;
use super::owner::{NewVolume, PoolOwner, Replace};
use super::pool::Pool;
use super::reservations::Reset;
use crate::block::AnyChannel;
use crate::hw::dma::DmaArena;
use crate::lvol::{External, ExternalName, StoreInfo, StoreIo, VolumeInfo, VolumeMap};
use crate::reactor::{Reactor, Remote};
use crate::reservation::Command;
use crate::spec::reservation::HostId;
use crate::units::ByteCount;

/// Pools and volumes as one reactor reaches them.
pub struct Catalog {
    reactor: Rc<Reactor>,
    arena: DmaArena,
    directory: Directory,
    pools: RefCell<HashMap<Key, StoreIo<AnyChannel>>>,
    /// Those of the local host.
    volumes: RefCell<KeyMap<Rc<Volume>>>,
    /// Those of all hosts.
    hosts: Rc<HostVolumes>,
}

impl Catalog {
    /// The way of `reactor`, which takes buffers from `arena`.
    #[must_use]
    pub fn new(reactor: &Rc<Reactor>, arena: &DmaArena, directory: &Directory) -> Self {
        let hosts = HostVolumes::new(reactor);
        directory.hosts().add_reactor(reactor.keep(Rc::clone(&hosts)));
        Self {
            hosts,
            reactor: Rc::clone(reactor),
            arena: arena.clone(),
            directory: directory.clone(),
            pools: RefCell::default(),
            volumes: RefCell::default(),
        }
    }

    /// Lets this reactor do I/O on a pool, through its own `channel` to the pool's device and
    /// `store`, the pool's store on its owner reactor.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn attach(
        &self,
        pool: &Pool,
        store: Remote<super::Store>,
        channel: AnyChannel,
    ) -> Result<(), Error> {
        let io = StoreIo::attach(store, &self.reactor, channel, &self.arena).await?;
        self.pools.borrow_mut().insert(pool.key(), io);
        Ok(())
    }

    /// Says how this reactor reaches a parent of volumes of a pool that is outside of it.
    pub fn attach_external(&self, pool: Key, name: &ExternalName, parent: External<AnyChannel>) {
        if let Some(io) = self.pools.borrow().get(&pool) {
            io.attach_external(name, parent);
        }
    }

    /// A volume of `pool` as a parent of volumes of other pools; [`PoolOwner::make_parent`] gave its
    /// map.
    ///
    /// # Errors
    /// [`Error::NotAttached`].
    pub fn as_parent(
        &self,
        pool: Key,
        map: &Arc<VolumeMap>,
    ) -> Result<External<AnyChannel>, Error> {
        let pools = self.pools.borrow();
        let io = pools.get(&pool).ok_or(Error::NotAttached)?;
        Ok(io.volume_of(Arc::clone(map)).as_parent())
    }

    /// That way is gone.
    pub fn detach_external(&self, pool: Key, name: &ExternalName) {
        if let Some(io) = self.pools.borrow().get(&pool) {
            io.detach_external(name);
        }
    }

    /// Lets go of a pool that is closed.
    pub fn detach(&self, pool: &Pool) {
        self.volumes.borrow_mut().retain(|_, volume| volume.entry().pool().key() != pool.key());
        if let Some(io) = self.pools.borrow_mut().remove(&pool.key()) {
            io.detach();
        }
    }

    /// The reactor.
    #[must_use]
    pub fn reactor(&self) -> &Rc<Reactor> {
        &self.reactor
    }

    /// Where its buffers come from.
    #[must_use]
    pub fn arena(&self) -> &DmaArena {
        &self.arena
    }

    /// What there is.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The volume with a key as the local mount uses it, if this reactor used it before.
    #[inline]
    #[must_use]
    pub fn known(&self, key: Key) -> Option<Rc<Volume>> {
        self.volumes.borrow().get(&key).map(Rc::clone)
    }

    /// The volume with a key, ready for I/O of the local mount on this reactor.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotAttached`], [`Error::Store`].
    pub async fn volume(&self, key: Key) -> Result<Rc<Volume>, Error> {
        if let Some(volume) = self.known(key) {
            return Ok(volume);
        }
        let entry = self.directory.volume(key).ok_or(Error::NotFound)?;
        let pool = self.pools.borrow().get(&entry.pool().key()).cloned();
        let io = pool.ok_or(Error::NotAttached)?.volume(entry.blob()).await?;
        if let Some(volume) = self.known(key) {
            return Ok(volume);
        }
        let local = self.directory.hosts().local();
        let (_, in_flight) = self.hosts.find(key, local);
        let volume = Rc::new(Volume::new(
            entry,
            io,
            &self.reactor,
            &self.arena,
            local,
            Rc::clone(&in_flight),
        ));
        self.hosts.keep(key, &volume, &in_flight);
        let mut volumes = self.volumes.borrow_mut();
        // This is rare enough to look for those that are gone.
        volumes.retain(|_, volume| !volume.entry().gate().is_closed());
        volumes.insert(key, Rc::clone(&volume));
        Ok(volume)
    }

    /// The volume with a key, ready for I/O of `host` on this reactor. All who ask for the same
    /// host get the same handle, as long as one of them holds it.
    ///
    /// # Errors
    /// As [`Catalog::volume`].
    pub async fn volume_for(&self, key: Key, host: HostId) -> Result<Rc<Volume>, Error> {
        let of_mount = self.volume(key).await?;
        if host == self.directory.hosts().local() {
            return Ok(of_mount);
        }
        let (known, in_flight) = self.hosts.find(key, host);
        if let Some(volume) = known {
            return Ok(volume);
        }
        let volume = Rc::new(of_mount.of_host(host, Rc::clone(&in_flight)));
        self.hosts.keep(key, &volume, &in_flight);
        Ok(volume)
    }

    /// See [`PoolOwner::reserve`].
    ///
    /// # Errors
    /// As there.
    pub async fn reserve(
        &self,
        entry: &Arc<Entry>,
        host: HostId,
        command: Command,
    ) -> Result<(), Error> {
        self.ask(entry, move |owner, entry| owner.reserve(entry, host, command)).await
    }

    /// See [`PoolOwner::reset_reservations`].
    ///
    /// # Errors
    /// As there.
    pub async fn reset_reservations(
        &self,
        entry: &Arc<Entry>,
        force: bool,
    ) -> Result<Reset, Error> {
        self.ask(entry, move |owner, entry| owner.reset_reservations(entry, force)).await
    }

    /// Whether the local mount may do this to a volume as a whole.
    pub(super) fn check_local(&self, entry: &Entry, access: Access) -> Result<(), Error> {
        entry.gate().check_host(self.directory.hosts().local(), access)
    }

    /// What went through this reactor, by volume.
    #[must_use]
    pub fn counters(&self) -> Vec<(Key, VolumeCounters)> {
        let volumes = self.volumes.borrow();
        volumes.iter().map(|(key, volume)| (*key, volume.counters())).collect()
    }

    /// What a pool is now.
    ///
    /// # Errors
    /// [`Error::Store`] if its owner has ended.
    pub async fn pool_info(&self, pool: &Pool) -> Result<StoreInfo, Error> {
        let call = |owner: Rc<PoolOwner>| async move { owner.info() };
        Ok(pool.owner().call(&self.reactor, call).await?)
    }

    /// What a volume is now.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`].
    pub async fn volume_info(&self, entry: &Arc<Entry>) -> Result<VolumeInfo, Error> {
        self.ask(entry, |owner, entry| async move { owner.volume_info(&entry) }).await
    }

    /// See [`PoolOwner::create`].
    ///
    /// # Errors
    /// As there.
    pub async fn create(&self, pool: &Arc<Pool>, new: NewVolume) -> Result<Arc<Entry>, Error> {
        let there = Arc::clone(pool);
        let call = move |owner: Rc<PoolOwner>| async move { owner.create(&there, new).await };
        pool.owner().call(&self.reactor, call).await?
    }

    /// See [`PoolOwner::delete`]. It is the local mount that does this and what follows.
    ///
    /// # Errors
    /// As there, and [`Error::ReservationConflict`].
    pub async fn delete(&self, entry: &Arc<Entry>) -> Result<(), Error> {
        self.check_local(entry, Access::Write)?;
        self.ask(entry, |owner, entry| async move { owner.delete(&entry).await }).await
    }

    /// See [`PoolOwner::delete_unlinked`].
    ///
    /// # Errors
    /// As there.
    pub async fn delete_unlinked(&self, entry: &Arc<Entry>) -> Result<(), Error> {
        self.ask(entry, |owner, entry| async move { owner.delete_unlinked(&entry).await }).await
    }

    /// See [`PoolOwner::rename`].
    ///
    /// # Errors
    /// As there, and [`Error::ReservationConflict`] of the volume that would be replaced.
    pub async fn rename(
        &self,
        entry: &Arc<Entry>,
        name: &str,
        replace: Replace,
    ) -> Result<(), Error> {
        if let Some(replaced) = self.directory.find_volume(entry.pool().key(), name) {
            self.check_local(&replaced, Access::Write)?;
        }
        let name = name.to_owned();
        let call = move |owner: Rc<PoolOwner>, entry: Arc<Entry>| async move {
            owner.rename(&entry, &name, replace).await
        };
        self.ask(entry, call).await
    }

    /// See [`PoolOwner::resize`].
    ///
    /// # Errors
    /// As there, and [`Error::ReservationConflict`].
    pub async fn resize(&self, entry: &Arc<Entry>, size: ByteCount) -> Result<(), Error> {
        self.check_local(entry, Access::Write)?;
        self.ask(entry, move |owner, entry| async move { owner.resize(&entry, size).await }).await
    }

    /// See [`PoolOwner::grow_to`].
    ///
    /// # Errors
    /// As there, and [`Error::ReservationConflict`].
    pub async fn grow_to(&self, entry: &Arc<Entry>, size: ByteCount) -> Result<(), Error> {
        self.check_local(entry, Access::Write)?;
        self.ask(entry, move |owner, entry| async move { owner.grow_to(&entry, size).await }).await
    }

    /// See [`PoolOwner::change_attributes`].
    ///
    /// # Errors
    /// As there.
    pub async fn change_attributes(
        &self,
        entry: &Arc<Entry>,
        change: impl FnOnce(&mut Attributes) + Send + 'static,
    ) -> Result<(), Error> {
        let call = move |owner: Rc<PoolOwner>, entry: Arc<Entry>| async move {
            owner.change_attributes(&entry, change).await
        };
        self.ask(entry, call).await
    }

    /// An extended attribute that a user set.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn xattr(&self, entry: &Arc<Entry>, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let name = name.to_owned();
        let call = move |owner: Rc<PoolOwner>, entry: Arc<Entry>| async move {
            owner.xattr(entry.blob(), name.as_bytes())
        };
        self.ask(entry, call).await
    }

    /// See [`PoolOwner::user_xattrs`].
    ///
    /// # Errors
    /// As there.
    pub async fn user_xattrs(&self, entry: &Arc<Entry>) -> Result<Vec<Vec<u8>>, Error> {
        self.ask(entry, |owner, entry| async move { owner.user_xattrs(&entry) }).await
    }

    /// See [`PoolOwner::set_xattr`].
    ///
    /// # Errors
    /// As there.
    pub async fn set_xattr(
        &self,
        entry: &Arc<Entry>,
        name: &str,
        value: Box<[u8]>,
    ) -> Result<(), Error> {
        let name = name.to_owned();
        let call = move |owner: Rc<PoolOwner>, entry: Arc<Entry>| async move {
            owner.set_xattr(&entry, name.as_bytes(), &value).await
        };
        self.ask(entry, call).await
    }

    /// See [`PoolOwner::remove_xattr`].
    ///
    /// # Errors
    /// As there.
    pub async fn remove_xattr(&self, entry: &Arc<Entry>, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        let call = move |owner: Rc<PoolOwner>, entry: Arc<Entry>| async move {
            owner.remove_xattr(&entry, name.as_bytes()).await
        };
        self.ask(entry, call).await
    }

    /// Runs `call` on the reactor that owns the volume's pool.
    pub(super) async fn ask<F, Fut, R>(&self, entry: &Arc<Entry>, call: F) -> Result<R, Error>
    where
        F: FnOnce(Rc<PoolOwner>, Arc<Entry>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, Error>> + 'static,
        R: Send + 'static,
    {
        let there = Arc::clone(entry);
        entry.pool().owner().call(&self.reactor, move |owner| call(owner, there)).await?
    }
}
