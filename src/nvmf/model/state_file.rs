//! The file in which what was changed at run time outlives a restart. It is replaced as a whole
//! (see [`replacement`]), in a folder that the first change makes:
//! a crash at any point leaves the old state or the new one.
//!
//! The file carries a checksum of its state: one that is damaged, or was changed by hand, is never
//! taken for what was meant.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::hw::replacement::{self, Injected, ReplaceError, Step, replace};

use super::{Exports, Keeper};

/// The file's name in its folder.
pub const FILE_NAME: &str = "target.json";
/// A longer file is refused: the largest model is far smaller.
const FILE_BYTES_LIMIT: u64 = 64 << 20;
const VERSION: u64 = 1;

/// What is in the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// What the configuration declared when this was written.
    pub declared: Exports,
    /// What was exported.
    pub exports: Exports,
}

/// Why a state file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is too long.
    #[error("it is longer than {FILE_BYTES_LIMIT} bytes")]
    TooLong,
    /// It is not what was written.
    #[error("it is no state of this version: {0}")]
    Form(String),
    /// Its checksum is not that of its content.
    #[error("its checksum is wrong: it is damaged, or was changed by hand")]
    Checksum,
    /// What it says breaks a rule.
    #[error("what it says cannot be: {0}")]
    Rule(#[from] super::Error),
}

/// The file of one target.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    declared: Exports,
}

impl StateFile {
    /// The file in `folder`, for a target whose configuration declares `declared`. Nothing is
    /// touched before the first change.
    #[must_use]
    pub fn new(folder: &Path, declared: Exports) -> Self {
        Self { path: folder.join(FILE_NAME), declared }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was kept; `None` if nothing ever was.
    ///
    /// # Errors
    /// [`Damage`]: then nothing of it can be believed.
    pub fn load(&self) -> Result<Option<Kept>, Damage> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut text = Vec::new();
        file.take(FILE_BYTES_LIMIT + 1).read_to_end(&mut text)?;
        if text.len() as u64 > FILE_BYTES_LIMIT {
            return Err(Damage::TooLong);
        }
        decode(&text).map(Some)
    }

    /// Keeps `exports`, asking `hook` before each step of the replacement.
    ///
    /// # Errors
    /// What was kept before is kept still, except after [`Step::SyncFolder`], when it may be
    /// either.
    pub fn keep_with(
        &self,
        exports: &Exports,
        hook: impl FnMut(Step) -> Injected,
    ) -> Result<(), NotStored> {
        let text = encode(&self.declared, exports)?;
        let folder = replacement::folder_of(&self.path);
        let named = |source| NotStored::Folder { path: folder.to_owned(), source };
        replacement::create_folder(folder).map_err(named)?;
        let named = |source| NotStored::File { path: self.path.clone(), source };
        replace(&self.path, &text, hook).map_err(named)
    }
}

/// Why a state was not kept.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    /// The folder could not be made.
    #[error("cannot make the folder {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file could not be replaced.
    #[error("cannot replace {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReplaceError,
    },
    /// The state has no text.
    #[error("the state cannot be written: {0}")]
    Form(#[from] serde_json::Error),
}

impl Keeper for StateFile {
    fn keep(&self, exports: &Exports) -> Result<(), String> {
        self.keep_with(exports, |_| Injected::Nothing).map_err(|error| error.to_string())
    }
}

/// Refuses every change: the state file is damaged, and must be judged by the operator first.
#[derive(Debug)]
pub struct Fence(pub String);

impl Keeper for Fence {
    fn keep(&self, _: &Exports) -> Result<(), String> {
        Err(self.0.clone())
    }
}

fn encode(declared: &Exports, exports: &Exports) -> serde_json::Result<Vec<u8>> {
    let state = json!({
        "declared": serde_json::to_value(declared)?,
        "exports": serde_json::to_value(exports)?,
    });
    let crc32c = checksum(&state);
    let mut text =
        serde_json::to_vec_pretty(&json!({"version": VERSION, "crc32c": crc32c, "state": state}))?;
    text.push(b'\n');
    Ok(text)
}

fn decode(text: &[u8]) -> Result<Kept, Damage> {
    let form = |error: serde_json::Error| Damage::Form(error.to_string());
    let mut file: Value = serde_json::from_slice(text).map_err(form)?;
    if file["version"] != json!(VERSION) {
        return Err(Damage::Form(format!("its version is {}, not {VERSION}", file["version"])));
    }
    let state = file["state"].take();
    if file["crc32c"] != json!(checksum(&state)) {
        return Err(Damage::Checksum);
    }
    let kept: Kept = serde_json::from_value(state).map_err(form)?;
    kept.declared.check()?;
    kept.exports.check()?;
    Ok(kept)
}

/// Of the state's shortest text, in which the members of objects are in the order of their names.
fn checksum(state: &Value) -> String {
    format!("{:08x}", crc32c::crc32c(state.to_string().as_bytes()))
}

impl Kept {
    /// What to export now that the configuration declares `declared`, and what is dropped of what
    /// was changed at run time, in words.
    ///
    /// What the configuration says of a subsystem holds again as soon as it says something else
    /// than when the state was written; otherwise the subsystem is as it was changed. So a
    /// restart does not take a change back, and an edit of the file is not undone by an older
    /// change.
    #[must_use]
    pub fn merge(self, declared: &Exports) -> (Exports, Vec<String>) {
        let mut dropped = Vec::new();
        let mut merged = declared.clone();
        for (nqn, then) in &self.declared.subsystems {
            if declared.subsystems.get(nqn) == Some(then)
                && !self.exports.subsystems.contains_key(nqn)
            {
                // Deleted at run time, and still declared as it was then.
                merged.subsystems.remove(nqn);
            }
        }
        let mut changed = Vec::new();
        for (nqn, subsystem) in self.exports.subsystems {
            let then = self.declared.subsystems.get(&nqn);
            if declared.subsystems.get(&nqn) == then {
                merged.subsystems.insert(nqn.clone(), subsystem);
                changed.push(nqn);
            } else if then != Some(&subsystem) {
                dropped.push(format!("changes of {nqn}: its declaration is another now"));
            }
        }
        // A volume that is declared in one subsystem now cannot stay in another.
        for nqn in changed {
            let taken: Vec<_> = merged
                .subsystems
                .iter()
                .filter(|(other, _)| **other != nqn && declared.subsystems.contains_key(*other))
                .flat_map(|(_, other)| other.namespaces.values().map(|known| known.volume))
                .collect();
            if declared.subsystems.contains_key(&nqn) {
                continue;
            }
            let Some(subsystem) = merged.subsystems.get_mut(&nqn) else { continue };
            std::sync::Arc::make_mut(subsystem).namespaces.retain(|id, namespace| {
                let stays = !taken.contains(&namespace.volume);
                if !stays {
                    dropped.push(format!("namespace {id} of {nqn}: its volume is in another now"));
                }
                stays
            });
        }
        if declared.referrals == self.declared.referrals {
            merged.referrals = self.exports.referrals;
        } else {
            dropped.push("changes of referrals: their declaration is another now".to_owned());
        }
        (merged, dropped)
    }
}
