//! Snapshots, clones and parents of volumes, on the pool's owner reactor and for one reactor.

use std::rc::Rc;
use std::sync::Arc;

use super::attributes::ATTRIBUTE;
use super::catalog::Catalog;
use super::directory::Entry;
use super::error::Error;
use super::gate::Access;
use super::owner::{PoolOwner, check_name};
use super::pool::Pool;
use crate::lvol::format::Xattr;
use crate::lvol::{self, NewRelative};
use crate::units::{BlobId, ByteCount};

/// Names of the snapshots that copying a whole volume makes; a UUID follows. They are deleted with
/// the last but one volume that needs them.
pub(super) const COPY_PREFIX: &str = ".copy-";
/// The write permissions.
const WRITE_BITS: u32 = 0o222;

impl PoolOwner {
    /// Makes a read-only snapshot of a volume; durable on return.
    ///
    /// # Errors
    /// [`Error::ReservedName`], [`Error::NotFound`], [`Error::Store`].
    pub async fn snapshot(&self, entry: &Entry, name: &str) -> Result<Arc<Entry>, Error> {
        let _names = self.names.lock().await;
        check_name(name)?;
        self.snapshot_named(entry, name).await
    }

    async fn snapshot_named(&self, entry: &Entry, name: &str) -> Result<Arc<Entry>, Error> {
        if !entry.is_named() {
            return Err(Error::NotFound);
        }
        let new = relative(entry, name, !WRITE_BITS);
        let info = self.store.snapshot_volume(entry.blob(), new).await?;
        self.add(entry.pool(), &info).await
    }

    /// Makes a writable clone of a snapshot or of another read-only volume; durable on return.
    ///
    /// # Errors
    /// As for [`PoolOwner::snapshot`].
    pub async fn clone_volume(&self, entry: &Entry, name: &str) -> Result<Arc<Entry>, Error> {
        let _names = self.names.lock().await;
        check_name(name)?;
        if !entry.is_named() {
            return Err(Error::NotFound);
        }
        let mut new = relative(entry, name, u32::MAX);
        let mut attributes = entry.attributes();
        attributes.mode |= 0o200;
        new.xattrs = vec![Xattr { name: ATTRIBUTE.to_vec(), value: attributes.encode() }];
        let info = self.store.clone_volume(entry.blob(), new).await?;
        self.add(entry.pool(), &info).await
    }

    /// Makes a volume that is a clone of something outside of the pool, which is attached; durable on
    /// return. `stored` is what the metadata says of it.
    ///
    /// # Errors
    /// [`Error::ReservedName`], [`Error::Store`].
    pub async fn clone_external(
        &self,
        pool: &Pool,
        stored: &[u8],
        name: &str,
    ) -> Result<Arc<Entry>, Error> {
        let _names = self.names.lock().await;
        check_name(name)?;
        let info = self.store.clone_external(stored, NewRelative::named(name)).await?;
        self.add(pool, &info).await
    }

    /// See [`lvol::Store::set_external_parent`].
    ///
    /// # Errors
    /// As there, and [`Error::ReservationConflict`].
    pub async fn set_external_parent(&self, entry: &Entry, stored: &[u8]) -> Result<(), Error> {
        entry.gate().check_host(self.directory.hosts().local(), Access::Write)?;
        let left = self.volume_info(entry)?.parent;
        self.store.set_external_parent(entry.blob(), stored).await?;
        self.tidy_left(left).await;
        Ok(())
    }

    /// Makes `to`, which is thin, has nothing in it and is of the same pool, a clone of what
    /// `from` is now; durable on return. If `from` can be written, a snapshot of it is made and
    /// stays for as long as one of the two needs it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`], above all [`lvol::Error::Unsuitable`] if `to` is not
    /// as it must be. A crash in between can leave `to` with its size and nothing in it.
    pub async fn copy_whole(&self, from: &Entry, to: &Entry) -> Result<ByteCount, Error> {
        let _names = self.names.lock().await;
        let (source, target) = (self.volume_info(from)?, self.volume_info(to)?);
        let empty = target.allocated.0 == 0 && target.parent.is_none();
        if !empty || !target.thin || target.read_only.is_some() || from.key() == to.key() {
            return Err(
                lvol::Error::Unsuitable("only an empty thin volume can become a copy").into()
            );
        }
        let parent = match source.read_only {
            Some(_) => from.blob(),
            None => {
                let name = format!("{COPY_PREFIX}{}", uuid::Uuid::new_v4());
                self.snapshot_named(from, &name).await?.blob()
            }
        };
        if let Err(error) = self.become_copy(to, parent, source.size).await {
            if source.read_only.is_none() {
                self.tidy_copy(Some(parent)).await;
            }
            return Err(error);
        }
        Ok(source.size)
    }

    async fn become_copy(&self, to: &Entry, parent: BlobId, size: ByteCount) -> Result<(), Error> {
        self.store.resize_volume(to.blob(), size).await?;
        Ok(self.store.set_parent(to.blob(), parent).await?)
    }

    /// Deletes the snapshots of copies that a crash left behind: those that not several need.
    pub(super) async fn tidy_copies(&self) {
        for volume in self.store.volumes() {
            self.tidy_copy(Some(volume.id)).await;
        }
    }

    /// Deletes the snapshot that a copy made, now that a volume that needed it is gone, unless
    /// there are still several.
    pub(super) async fn tidy_copy(&self, parent: Option<BlobId>) {
        let Some(parent) = parent.and_then(|parent| self.store.volume(parent)) else { return };
        let uuid = parent.name.strip_prefix(COPY_PREFIX);
        if uuid.is_none_or(|uuid| uuid::Uuid::parse_str(uuid).is_err()) || parent.clones.len() > 1 {
            return;
        }
        let entry = self.find_blob(parent.id);
        let _leaving = match &entry {
            Some(entry) => match self.end_parenthood(entry).await {
                Ok(leaving) => Some(leaving),
                // The next deletion tries again.
                Err(_) => return,
            },
            None => None,
        };
        // What needs room may fail; the next deletion tries again.
        if let Err(error) = self.store.delete_volume(parent.id).await {
            tracing::warn!(snapshot = parent.name, %error, "it stays for now");
        } else if let Some(entry) = &entry {
            self.forget(entry);
            self.forget_reservations(entry).await;
        }
    }

    /// See [`lvol::Store::inflate_volume`].
    ///
    /// # Errors
    /// As there.
    pub async fn inflate(&self, entry: &Entry) -> Result<(), Error> {
        let parent = self.volume_info(entry)?.parent;
        self.store.inflate_volume(entry.blob()).await?;
        self.tidy_left(parent).await;
        Ok(())
    }

    /// As [`PoolOwner::tidy_copy`], when a volume has left `parent` and nothing else is under way.
    async fn tidy_left(&self, parent: Option<BlobId>) {
        let _names = self.names.lock().await;
        self.tidy_copy(parent).await;
    }

    /// See [`lvol::Store::decouple_volume`].
    ///
    /// # Errors
    /// As there.
    pub async fn decouple(&self, entry: &Entry) -> Result<(), Error> {
        let parent = self.volume_info(entry)?.parent;
        self.store.decouple_volume(entry.blob()).await?;
        self.tidy_left(parent).await;
        Ok(())
    }

    /// See [`lvol::Store::set_read_only`].
    ///
    /// # Errors
    /// As there.
    pub async fn set_read_only(&self, entry: &Entry) -> Result<(), Error> {
        Ok(self.store.set_read_only(entry.blob()).await?)
    }

    /// See [`lvol::Store::set_parent`].
    ///
    /// # Errors
    /// As there, and [`Error::OtherPool`].
    pub async fn set_parent(&self, entry: &Entry, parent: &Entry) -> Result<(), Error> {
        check_pool(entry, parent)?;
        let left = self.volume_info(entry)?.parent;
        self.store.set_parent(entry.blob(), parent.blob()).await?;
        self.tidy_left(left).await;
        Ok(())
    }
}

/// A relative of a volume with its attributes, as far as `mode` lets them.
fn relative(entry: &Entry, name: &str, mode: u32) -> NewRelative {
    let mut attributes = entry.attributes();
    attributes.mode &= mode;
    let xattr = Xattr { name: ATTRIBUTE.to_vec(), value: attributes.encode() };
    NewRelative { xattrs: vec![xattr], ..NewRelative::named(name) }
}

fn check_pool(one: &Entry, other: &Entry) -> Result<(), Error> {
    if one.pool().key() == other.pool().key() { Ok(()) } else { Err(Error::OtherPool) }
}

impl Catalog {
    /// See [`PoolOwner::snapshot`].
    ///
    /// # Errors
    /// As there.
    pub async fn snapshot(&self, entry: &Arc<Entry>, name: &str) -> Result<Arc<Entry>, Error> {
        // Who may not read a volume may not read it by a copy either.
        self.check_local(entry, Access::Read)?;
        let name = name.to_owned();
        let call = move |owner: Rc<PoolOwner>, entry: Arc<Entry>| async move {
            owner.snapshot(&entry, &name).await
        };
        self.ask(entry, call).await
    }

    /// See [`PoolOwner::clone_volume`].
    ///
    /// # Errors
    /// As there.
    pub async fn clone_volume(&self, entry: &Arc<Entry>, name: &str) -> Result<Arc<Entry>, Error> {
        self.check_local(entry, Access::Read)?;
        let name = name.to_owned();
        let call = move |owner: Rc<PoolOwner>, entry: Arc<Entry>| async move {
            owner.clone_volume(&entry, &name).await
        };
        self.ask(entry, call).await
    }

    /// See [`PoolOwner::copy_whole`].
    ///
    /// # Errors
    /// As there, and [`Error::OtherPool`].
    pub async fn copy_whole(&self, from: &Arc<Entry>, to: &Arc<Entry>) -> Result<ByteCount, Error> {
        check_pool(from, to)?;
        self.check_local(from, Access::Read)?;
        self.check_local(to, Access::Write)?;
        let to = Arc::clone(to);
        let call = move |owner: Rc<PoolOwner>, from: Arc<Entry>| async move {
            owner.copy_whole(&from, &to).await
        };
        self.ask(from, call).await
    }

    /// See [`PoolOwner::set_read_only`]. It takes from every host what it may write.
    ///
    /// # Errors
    /// As there, and [`Error::ReservationConflict`].
    pub async fn set_read_only(&self, entry: &Arc<Entry>) -> Result<(), Error> {
        self.check_local(entry, Access::Write)?;
        self.ask(entry, |owner, entry| async move { owner.set_read_only(&entry).await }).await
    }

    /// See [`PoolOwner::inflate`]. No reservation stops it: no host reads anything else after it.
    ///
    /// # Errors
    /// As there.
    pub async fn inflate(&self, entry: &Arc<Entry>) -> Result<(), Error> {
        self.ask(entry, |owner, entry| async move { owner.inflate(&entry).await }).await
    }

    /// See [`PoolOwner::decouple`]. No reservation stops it, as for [`Catalog::inflate`].
    ///
    /// # Errors
    /// As there.
    pub async fn decouple(&self, entry: &Arc<Entry>) -> Result<(), Error> {
        self.ask(entry, |owner, entry| async move { owner.decouple(&entry).await }).await
    }

    /// See [`PoolOwner::set_parent`].
    ///
    /// # Errors
    /// As there.
    pub async fn set_parent(&self, entry: &Arc<Entry>, parent: &Arc<Entry>) -> Result<(), Error> {
        self.check_local(entry, Access::Write)?;
        self.check_local(parent, Access::Read)?;
        let parent = Arc::clone(parent);
        let call = move |owner: Rc<PoolOwner>, entry: Arc<Entry>| async move {
            owner.set_parent(&entry, &parent).await
        };
        self.ask(entry, call).await
    }
}
