//! How a file is replaced as a whole, so that a crash at any point leaves the old one or the new
//! one. Each step must succeed before the next begins:
//! 1. Make an empty file beside it, `NAME.tmp`.
//! 2. Write the new content to it.
//! 3. Make it durable (`fsync`). Until here the file is the old one.
//! 4. Rename it over the file. From here on it is the new one, if the machine stays up.
//! 5. Make the rename durable (`fsync` of the folder).
//!
//! If step 5 fails, either may be found after a power loss.
//!
//! Everything here blocks on the file system: never call it on a reactor.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A step of a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the temporary file.
    CreateTemporary,
    /// Write the content to it.
    WriteTemporary,
    /// Make it durable.
    SyncTemporary,
    /// Rename it over the file.
    Rename,
    /// Make the rename durable.
    SyncFolder,
}

impl Step {
    /// The steps in their order.
    pub const ALL: [Self; 5] = [
        Self::CreateTemporary,
        Self::WriteTemporary,
        Self::SyncTemporary,
        Self::Rename,
        Self::SyncFolder,
    ];
}

/// What a test makes of a step before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// It is done.
    Nothing,
    /// It fails.
    Error(io::ErrorKind),
    /// The process is killed: this step is not done, and nothing is tidied up.
    Kill,
}

/// Why a file was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// A step failed.
    #[error("{step:?}: {source}")]
    Step {
        /// Which.
        step: Step,
        /// Why.
        source: io::Error,
    },
    /// The hook ended it.
    #[error("stopped before {step:?}")]
    Killed {
        /// The step that was not done.
        step: Step,
    },
}

/// Replaces the file at `path` by `bytes`, asking `hook` before each step. Nobody else may read it,
/// and nobody else may replace it at the same time.
///
/// # Errors
/// [`ReplaceError`]. The file is what it was before, except after [`Step::SyncFolder`], when it may
/// be either.
pub fn replace(
    path: &Path,
    bytes: &[u8],
    mut hook: impl FnMut(Step) -> Injected,
) -> Result<(), ReplaceError> {
    let mut replacement = Replacement { path, bytes, temporary: beside(path, "tmp"), file: None };
    for step in Step::ALL {
        let done = match hook(step) {
            Injected::Nothing => replacement.perform(step),
            Injected::Error(kind) => Err(kind.into()),
            Injected::Kill => return Err(ReplaceError::Killed { step }),
        };
        if let Err(source) = done {
            replacement.abandon();
            return Err(ReplaceError::Step { step, source });
        }
    }
    Ok(())
}

/// Makes `folder` and those above it, for the owner alone, unless they are there; durably, since
/// what is durable in a folder that is gone is gone as well.
///
/// # Errors
/// The system's.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    create_folder(folder_of(folder))?;
    match DirBuilder::new().mode(0o700).create(folder) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made?,
    }
    sync_folder(folder)
}

/// A new content on its way into a file.
struct Replacement<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    temporary: PathBuf,
    file: Option<File>,
}

impl Replacement<'_> {
    fn perform(&mut self, step: Step) -> io::Result<()> {
        match (step, &mut self.file) {
            (Step::CreateTemporary, file) => {
                // One that a crash has left is overwritten. Keys are nobody else's business.
                let mut options = OpenOptions::new();
                let options = options.write(true).create(true).truncate(true).mode(0o600);
                *file = Some(options.open(&self.temporary)?);
                Ok(())
            }
            (Step::WriteTemporary, Some(file)) => file.write_all(self.bytes),
            (Step::SyncTemporary, Some(file)) => file.sync_all(),
            (Step::Rename, Some(_)) => fs::rename(&self.temporary, self.path),
            (Step::SyncFolder, Some(_)) => sync_folder(self.path),
            (_, None) => unreachable!("the first step makes the file"),
        }
    }

    /// Tidies up after a step that failed. What is left over does no harm, so an error is not
    /// worth more than the one that led here.
    fn abandon(self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The folder that a file is in.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes what happened to names in the folder of `path` durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}
