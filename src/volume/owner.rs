//! A pool on its owner reactor: everything that changes names, sizes and attributes.
//!
//! Changes of names run one after the other. Each is made in the store first, where it is durable
//! on return, and then in the directory, so that no front end sees what a power cut could undo.
//!
//! Deleting an open volume: it gets a name of its own ([`UNLINKED_PREFIX`]), which no front end
//! shows, and is deleted when the last opening is closed. After a crash it is still there under
//! that name; opening the pool deletes it.

use std::cell::OnceCell;
use std::rc::Rc;

use uuid::Uuid;

use super::Store;
use super::attributes::{ATTRIBUTE, Attributes};
use super::directory::{Deletion, Directory, Entry, Key, NewEntry};
use super::error::Error;
use super::events::EventKind;
use super::pool::Pool;
use crate::lvol::format::ClearMethod;
use crate::lvol::{self, SpaceState, StoreInfo, VolumeInfo};
use crate::reactor::Reactor;
use crate::units::{BlobId, ByteCount};

/// Names of volumes that were deleted while they were open; the UUID follows.
pub(super) const UNLINKED_PREFIX: &str = ".deleted-";
/// Extended attributes of this name belong to front ends' users.
pub const USER_PREFIX: &str = "user.";

/// The owner of a pool. Lives on one reactor; others call it through [`Pool::owner`].
pub struct PoolOwner {
    pub(super) reactor: Rc<Reactor>,
    pub(super) store: Rc<Store>,
    pub(super) directory: Directory,
    defaults: Attributes,
    pub(super) names: async_lock::Mutex<()>,
    /// Of the pool.
    key: OnceCell<Key>,
}

/// A volume to create.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Its size; rounded up to whole clusters.
    pub size: ByteCount,
    /// Whether clusters are allocated when they are first written, rather than now.
    pub thin: bool,
    /// Its UUID, if it is to have a certain one.
    pub uuid: Option<Uuid>,
    /// Owner, mode and times; `None` for the pool's defaults.
    pub attributes: Option<Attributes>,
}

/// What to do with a volume that has the new name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// Fail.
    Never,
    /// Delete it.
    Existing,
}

impl PoolOwner {
    /// Makes the volumes of `store`, which lives on `reactor`, known in `directory`. Volumes
    /// without attributes of their own get `defaults`. What was deleted while it was open before
    /// a crash is deleted now.
    ///
    /// # Errors
    /// [`Error::PoolExists`] if another pool has its name, and then it is closed; [`Error::Store`].
    pub async fn open(
        reactor: &Rc<Reactor>,
        store: Rc<Store>,
        directory: &Directory,
        defaults: Attributes,
    ) -> Result<(Rc<Self>, std::sync::Arc<Pool>), Error> {
        let owner = Rc::new(Self {
            reactor: Rc::clone(reactor),
            store,
            directory: directory.clone(),
            defaults,
            names: async_lock::Mutex::default(),
            key: OnceCell::new(),
        });
        let info = owner.store.info();
        let uuid = info.uuid.unwrap_or_else(|| Uuid::new_v5(&Uuid::nil(), info.name.as_bytes()));
        let remote = reactor.keep(Rc::clone(&owner));
        let added = directory.add_pool(&info.name, uuid, info.cluster_size, remote.clone());
        let pool = match added {
            Ok(pool) => pool,
            Err(error) => {
                drop(remote.release(reactor));
                owner.store.close().await?;
                return Err(error);
            }
        };
        owner.key.get_or_init(|| pool.key());
        owner.tell_of_space(&pool);
        for volume in owner.store.volumes() {
            if volume.name.starts_with(UNLINKED_PREFIX) {
                tracing::info!(
                    pool = info.name,
                    volume = volume.name,
                    "deleting what was unlinked"
                );
                if let Err(error) = owner.store.delete_volume(volume.id).await {
                    tracing::warn!(volume = volume.name, %error, "it stays for now");
                }
                continue;
            }
            if !is_file_name(&volume.name) {
                tracing::warn!(
                    pool = info.name,
                    volume = volume.name,
                    uuid = volume.uuid.map(tracing::field::display),
                    "not shown as a file: the name cannot be a file's; lvolfs volume rename UUID \
                     NAME gives it another"
                );
            }
            owner.add(&pool, &volume).await?;
        }
        owner.tidy_copies().await;
        Ok((owner, pool))
    }

    /// Makes events of what the store says of its space.
    fn tell_of_space(&self, pool: &std::sync::Arc<Pool>) {
        let (events, pool) = (self.directory.events().clone(), std::sync::Arc::clone(pool));
        let cluster_size = pool.cluster_size().get();
        self.store.on_space(move |change| {
            let kind = match change.state {
                SpaceState::Ok => EventKind::PoolSpaceOk,
                SpaceState::Low => EventKind::PoolLow,
                SpaceState::Full => EventKind::PoolFull,
            };
            let free = ByteCount(cluster_size * u64::from(change.free.get()));
            events.add(kind, &pool.name(), None, Some(free));
        });
    }

    /// The store itself, for what only an operator asks.
    #[must_use]
    pub fn store(&self) -> &Rc<Store> {
        &self.store
    }

    /// What the pool is now.
    #[must_use]
    pub fn info(&self) -> StoreInfo {
        self.store.info()
    }

    /// What a volume is now.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn volume_info(&self, entry: &Entry) -> Result<VolumeInfo, Error> {
        self.store.volume(entry.blob()).ok_or(Error::NotFound)
    }

    /// Creates a volume; durable on return.
    ///
    /// # Errors
    /// [`Error::ReservedName`], [`Error::Store`].
    pub async fn create(
        &self,
        pool: &Pool,
        new: NewVolume,
    ) -> Result<std::sync::Arc<Entry>, Error> {
        let _names = self.names.lock().await;
        check_name(&new.name)?;
        let NewVolume { name, size, thin, uuid, attributes } = new;
        let clear_method = ClearMethod::Default;
        let new = lvol::NewVolume { name, size, thin, uuid, clear_method };
        let info = self.store.create_volume(new).await?;
        if let Some(attributes) = attributes {
            self.store.set_xattr(info.id, ATTRIBUTE, &attributes.encode()).await?;
        }
        self.add(pool, &info).await
    }

    pub(super) async fn add(
        &self,
        pool: &Pool,
        info: &VolumeInfo,
    ) -> Result<std::sync::Arc<Entry>, Error> {
        let stored = self.xattr(info.id, ATTRIBUTE)?;
        let attributes = stored.map_or_else(
            || self.defaults.clone(),
            |stored| Attributes::decode(&stored, &self.defaults),
        );
        let uuid =
            info.uuid.unwrap_or_else(|| Uuid::new_v5(&pool.uuid(), &info.id.get().to_le_bytes()));
        let (keeper, reservations) = self.load_reservations(info.id, uuid, &info.name).await?;
        let (blob, name) = (info.id, info.name.clone());
        let new = NewEntry { blob, uuid, name, attributes, keeper, reservations };
        self.directory.add_volume(pool.key(), new)
    }

    /// Deletes a volume, or takes its name away if it is open. Durable on return.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it has no name any more, [`Error::Held`]; [`Error::Store`], among
    /// others if it has several clones, or is read-only and open.
    pub async fn delete(&self, entry: &Entry) -> Result<(), Error> {
        let _names = self.names.lock().await;
        self.delete_named(entry).await
    }

    /// What there is of a volume that may be deleted.
    fn deletable(&self, entry: &Entry) -> Result<VolumeInfo, Error> {
        let info = self.volume_info(entry)?;
        if info.read_only.is_some() && entry.openings() > 0 {
            // Who has it open could make further clones of a parent that has no name.
            return Err(lvol::Error::Busy { with: "use of the read-only volume" }.into());
        }
        self.store.check_delete(entry.blob())?;
        Ok(info)
    }

    async fn delete_named(&self, entry: &Entry) -> Result<(), Error> {
        let info = self.deletable(entry)?;
        let _leaving = self.end_parenthood(entry).await?;
        match entry.prepare_deletion()? {
            Deletion::Now => {
                if let Err(error) = self.store.delete_volume(entry.blob()).await {
                    entry.abandon_deletion();
                    return Err(error.into());
                }
                self.forget(entry);
                self.forget_reservations(entry).await;
                self.tidy_copy(info.parent).await;
                Ok(())
            }
            Deletion::WhenClosed => {
                let name = format!("{UNLINKED_PREFIX}{}", entry.uuid());
                self.store.rename_volume(entry.blob(), &name).await?;
                self.directory.remove_name(entry);
                if entry.unlinked() {
                    self.delete_unlinked(entry).await?;
                }
                Ok(())
            }
        }
    }

    pub(super) fn forget(&self, entry: &Entry) {
        self.directory.remove_name(entry);
        self.directory.remove_volume(entry);
    }

    pub(super) fn find_blob(&self, blob: BlobId) -> Option<std::sync::Arc<Entry>> {
        let pool = *self.key.get()?;
        self.directory.volumes(pool).into_iter().find(|entry| entry.blob() == blob)
    }

    /// Deletes a volume that lost its name while it was open, and that nobody has open any more.
    ///
    /// # Errors
    /// [`Error::Store`]; the next opening of the pool tries again.
    pub async fn delete_unlinked(&self, entry: &Entry) -> Result<(), Error> {
        let parent = self.store.volume(entry.blob()).and_then(|info| info.parent);
        self.store.delete_volume(entry.blob()).await?;
        self.directory.remove_volume(entry);
        self.forget_reservations(entry).await;
        self.tidy_copy(parent).await;
        Ok(())
    }

    /// Renames a volume within its pool; durable on return. With [`Replace::Existing`], a volume
    /// of the new name is set aside, and deleted when the new name is durable: an error leaves both
    /// as they were, and a power cut in between leaves the old name alone.
    ///
    /// # Errors
    /// [`Error::ReservedName`], [`Error::NotFound`], [`Error::Store`]; of the volume that would be
    /// replaced, as for [`PoolOwner::delete`].
    pub async fn rename(&self, entry: &Entry, name: &str, replace: Replace) -> Result<(), Error> {
        let _names = self.names.lock().await;
        check_name(name)?;
        if !entry.is_named() {
            return Err(Error::NotFound);
        }
        if let Some(existing) = self.directory.find_volume(entry.pool().key(), name) {
            if existing.key() == entry.key() {
                return Ok(());
            }
            match replace {
                Replace::Never => return Err(lvol::Error::Exists { name: name.into() }.into()),
                Replace::Existing => return self.replace(entry, name, &existing).await,
            }
        }
        self.store.rename_volume(entry.blob(), name).await?;
        self.directory.rename_volume(entry, name);
        Ok(())
    }

    /// Gives `entry` the name of `existing`, which is deleted.
    async fn replace(&self, entry: &Entry, name: &str, existing: &Entry) -> Result<(), Error> {
        self.store.check_rename(entry.blob())?;
        self.deletable(existing)?;
        let _leaving = self.end_parenthood(existing).await?;
        let deletion = existing.prepare_deletion()?;
        let replaced = self.take_over_name(entry.blob(), name, existing).await;
        if let Err(error) = replaced {
            existing.abandon_deletion();
            return Err(error);
        }
        self.directory.remove_name(existing);
        self.directory.rename_volume(entry, name);
        let now = match deletion {
            Deletion::Now => true,
            Deletion::WhenClosed => existing.unlinked(),
        };
        if now && let Err(error) = self.delete_unlinked(existing).await {
            // The new name is durable; the next opening of the pool tries again.
            tracing::warn!(volume = name, %error, "what was replaced stays for now");
        }
        Ok(())
    }

    /// Sets `existing` aside, so that `blob` can have its name; undone if it then cannot.
    async fn take_over_name(
        &self,
        blob: BlobId,
        name: &str,
        existing: &Entry,
    ) -> Result<(), Error> {
        let aside = format!("{UNLINKED_PREFIX}{}", existing.uuid());
        self.store.rename_volume(existing.blob(), &aside).await?;
        let Err(error) = self.store.rename_volume(blob, name).await else { return Ok(()) };
        if let Err(error) = self.store.rename_volume(existing.blob(), name).await {
            tracing::error!(volume = name, aside, %error, "it cannot get its name back");
        }
        Err(error.into())
    }

    /// Changes the size, rounded up to whole clusters; durable on return. What is added reads as
    /// zeros.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn resize(&self, entry: &Entry, size: ByteCount) -> Result<(), Error> {
        self.store.resize_volume(entry.blob(), size).await?;
        let (pool, name) = (entry.pool().name(), entry.name());
        self.directory.events().add(EventKind::VolumeResized, &pool, Some(&name), None);
        self.directory.resized(entry);
        Ok(())
    }

    /// Makes the volume at least `size` bytes large.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn grow_to(&self, entry: &Entry, size: ByteCount) -> Result<(), Error> {
        // Two writers that grow the same volume must not make it smaller again.
        let _names = self.names.lock().await;
        if self.volume_info(entry)?.size >= size {
            return Ok(());
        }
        self.resize(entry, size).await
    }

    /// Changes owner, mode and times by `change`; durable on return.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn change_attributes(
        &self,
        entry: &Entry,
        change: impl FnOnce(&mut Attributes),
    ) -> Result<(), Error> {
        let _names = self.names.lock().await;
        let mut attributes = entry.attributes();
        change(&mut attributes);
        self.store.set_xattr(entry.blob(), ATTRIBUTE, &attributes.encode()).await?;
        entry.set_attributes(attributes);
        Ok(())
    }

    /// An extended attribute.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn xattr(&self, blob: BlobId, name: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let all = self.store.xattrs(blob)?;
        Ok(all.into_iter().find(|xattr| xattr.name == name).map(|xattr| xattr.value))
    }

    /// The names of the attributes that begin with [`USER_PREFIX`].
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn user_xattrs(&self, entry: &Entry) -> Result<Vec<Vec<u8>>, Error> {
        let all = self.store.xattrs(entry.blob())?;
        let names = all.into_iter().map(|xattr| xattr.name);
        Ok(names.filter(|name| name.starts_with(USER_PREFIX.as_bytes())).collect())
    }

    /// Sets an extended attribute; durable on return.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn set_xattr(&self, entry: &Entry, name: &[u8], value: &[u8]) -> Result<(), Error> {
        Ok(self.store.set_xattr(entry.blob(), name, value).await?)
    }

    /// Removes an extended attribute; durable on return.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn remove_xattr(&self, entry: &Entry, name: &[u8]) -> Result<(), Error> {
        Ok(self.store.remove_xattr(entry.blob(), name).await?)
    }

    /// Closes the pool clean: times that writes changed are stored, then the store is closed.
    /// Its volumes can no longer be found; I/O on them fails.
    ///
    /// # Errors
    /// [`Error::Store`]; the pool is recovered at its next opening.
    pub async fn close(&self, pool: &Pool) -> Result<(), Error> {
        let _names = self.names.lock().await;
        for entry in self.directory.volumes(pool.key()) {
            if entry.has_unsaved_times() {
                let text = entry.attributes().encode();
                if let Err(error) = self.store.set_xattr(entry.blob(), ATTRIBUTE, &text).await {
                    tracing::warn!(volume = entry.name(), %error, "its times are not stored");
                }
            }
        }
        self.directory.remove_pool(pool.key());
        let closed = self.store.close().await;
        // Nothing can be asked of it any more; whoever holds the pool still is told so.
        drop(pool.owner().release(&self.reactor));
        Ok(closed?)
    }
}

/// Whether a volume's name can be a file's.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// Whether a volume can be given a name: one made elsewhere can have others.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    if !is_file_name(name) {
        return Err(Error::NotFileName { name: name.to_owned() });
    }
    if name.starts_with(UNLINKED_PREFIX) { Err(Error::ReservedName) } else { Ok(()) }
}
