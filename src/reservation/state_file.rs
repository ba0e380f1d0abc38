//! The file in which a namespace's state outlives a power loss. It is replaced as a whole (see
//! [`replacement`]): a crash at any point leaves the old state or the new one.
//! A store whose last step fails fails, and the next one writes whatever it has to say.
//!
//! Everything here blocks on the file system: never call it on a reactor.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::hw::replacement::{
    self, Injected, ReplaceError, Step, beside, folder_of, replace, sync_folder,
};

use super::persistence::{Damage, MAX_BYTES, decode, encode};
use super::state::Reservations;

/// The most damaged files of one namespace that are kept beside it.
const MAX_SET_ASIDE: u32 = 1000;

/// Why a state was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A step failed.
    #[error("cannot store reservations in {}: {step:?}: {source}", path.display())]
    Step {
        /// The state file.
        path: PathBuf,
        /// Which.
        step: Step,
        /// Why.
        source: io::Error,
    },
    /// The hook of [`StateFile::store_with`] ended it.
    #[error("stopped before {step:?}")]
    Killed {
        /// The step that was not done.
        step: Step,
    },
    /// The damaged file could not be renamed.
    #[error("cannot set aside {}: {source}", path.display())]
    SetAside {
        /// The state file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of a volume that is gone could not be removed.
    #[error("cannot remove {}: {source}", path.display())]
    Remove {
        /// The state file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its folder could not be made.
    #[error("cannot make {}, the folder for reservations: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The state file of one namespace. There is one of these for a path at any time.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    volume: Uuid,
    /// What the file is known to say after any crash; `None` if that is not known.
    durable: Option<Vec<u8>>,
}

impl StateFile {
    /// Makes `folder` and those above it, for the owner alone, unless they are there.
    ///
    /// # Errors
    /// [`StoreError::Folder`].
    pub fn create_folder(folder: &Path) -> Result<(), StoreError> {
        replacement::create_folder(folder)
            .map_err(|source| StoreError::Folder { path: folder.to_owned(), source })
    }

    /// Reads the state of `volume` from `path`. A file that is not there, in a folder that is,
    /// and an empty file are a state without reservations; a file that cannot be believed is a
    /// fenced state, which says why. Changes nothing on the disk.
    #[must_use]
    pub fn load(path: &Path, volume: Uuid) -> (Self, Reservations) {
        let file = Self { path: path.to_owned(), volume, durable: None };
        match read(path).and_then(|bytes| decode(&bytes, volume)) {
            Ok(state) => {
                let durable = Some(encode(&state, volume));
                (Self { durable, ..file }, state)
            }
            Err(why) => (file, Reservations::fenced(why)),
        }
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file already says `state`, so that [`StateFile::store`] would do nothing. This
    /// does not touch the disk.
    #[must_use]
    pub fn holds(&self, state: &Reservations) -> bool {
        // Behind a fence nothing is stored: the damaged file is the administrator's to judge.
        state.fence().is_some()
            || self.durable.as_deref() == Some(encode(state, self.volume).as_slice())
    }

    /// Makes the file say `state`. On return it does, after any crash.
    ///
    /// # Errors
    /// The step that failed. The file says what it said before, except after
    /// [`Step::SyncFolder`], when it may say either.
    pub fn store(&mut self, state: &Reservations) -> Result<(), StoreError> {
        self.store_with(state, |_| Injected::Nothing)
    }

    /// [`StateFile::store`], asking `hook` before each step.
    ///
    /// # Errors
    /// Those of `store`, and [`StoreError::Killed`].
    pub fn store_with(
        &mut self,
        state: &Reservations,
        hook: impl FnMut(Step) -> Injected,
    ) -> Result<(), StoreError> {
        if self.holds(state) {
            return Ok(());
        }
        let bytes = encode(state, self.volume);
        replace(&self.path, &bytes, hook).map_err(|error| {
            let (ReplaceError::Step { step, .. } | ReplaceError::Killed { step }) = error;
            if matches!(step, Step::Rename | Step::SyncFolder) {
                // Until the folder is durable, nothing is known. A rename that fails may have
                // happened, on a network file system.
                self.durable = None;
            }
            match error {
                ReplaceError::Step { step, source } => {
                    StoreError::Step { path: self.path.clone(), step, source }
                }
                ReplaceError::Killed { step } => StoreError::Killed { step },
            }
        })?;
        self.durable = Some(bytes);
        Ok(())
    }

    /// Removes the file, and what a crash may have left beside it: the volume is gone. Whatever was
    /// set aside stays.
    ///
    /// # Errors
    /// [`StoreError::Remove`]; the file is there, or, if the folder could not be made durable, may
    /// be.
    pub fn remove(&mut self) -> Result<(), StoreError> {
        self.durable = None;
        let remove = |path: &Path| match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            gone => Ok(gone.is_ok()),
        };
        let all = remove(&beside(&self.path, "tmp")).and_then(|temporary| {
            let removed = remove(&self.path)?;
            if temporary || removed { sync_folder(&self.path) } else { Ok(()) }
        });
        all.map_err(|source| StoreError::Remove { path: self.path.clone(), source })
    }

    /// Renames a damaged file to the first free `NAME.damaged-N`, for somebody to look at, and
    /// makes that durable; tells the new name, or `None` if there was no file. Then the namespace
    /// has no stored state, and [`Reservations::without_fence`] may be stored.
    ///
    /// # Errors
    /// [`StoreError::SetAside`]; the file is where it was, or, if the folder could not be made
    /// durable, may be.
    pub fn set_aside(&mut self) -> Result<Option<PathBuf>, StoreError> {
        let path = self.path.clone();
        let failed = |source| StoreError::SetAside { path: path.clone(), source };
        for number in 1..=MAX_SET_ASIDE {
            let aside = beside(&path, &format!("damaged-{number}"));
            match aside.symlink_metadata() {
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
            return match fs::rename(&path, &aside).and_then(|()| sync_folder(&path)) {
                Ok(()) => Ok(Some(aside)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(failed(error)),
            };
        }
        Err(failed(io::ErrorKind::AlreadyExists.into()))
    }
}

/// The bytes of the file at `path`, none if there is no file; at most one more than a state has.
fn read(path: &Path) -> Result<Vec<u8>, Damage> {
    let unreadable = |error: io::Error| Damage::Unreadable { kind: error.kind() };
    // Asked before it is opened: opening a pipe would wait for a writer.
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return missing(path),
        Err(error) => return Err(unreadable(error)),
    };
    if !metadata.is_file() {
        return Err(Damage::NotAFile);
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// Tells a namespace that never had a file from one whose file is out of reach.
fn missing(path: &Path) -> Result<Vec<u8>, Damage> {
    if path.symlink_metadata().is_ok() {
        return Err(Damage::DanglingLink);
    }
    match folder_of(path).metadata() {
        Ok(_) => Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Damage::FolderMissing),
        Err(error) => Err(Damage::Unreadable { kind: error.kind() }),
    }
}
