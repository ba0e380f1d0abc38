//! `[mount]`: where volumes appear as files.

use std::path::PathBuf;

use toml::Spanned;

use super::Cache;
use super::check::Checker;
use super::raw::RawMount;

/// Permission bits of the volumes' files unless the file says otherwise.
pub const DEFAULT_FILE_MODE: u32 = 0o600;

/// `[mount]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The folder to mount on; `None` if nothing is mounted, and volumes are only exported.
    pub path: Option<PathBuf>,
    /// Whether users other than the daemon's may enter the mount.
    pub allow_other: bool,
    /// Who owns the files; the daemon's own user if `None`.
    pub owner: Option<u32>,
    /// The files' group; the daemon's own if `None`.
    pub group: Option<u32>,
    /// Permission bits of the volumes' files, at most `0o777`.
    pub mode: u32,
    /// How requests come from the kernel.
    pub transport: Transport,
    /// Whether the kernel may keep what is written, of volumes that do not say otherwise.
    pub cache: Cache,
}

/// How the mount's requests come from the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// By FUSE over io_uring where the kernel offers it, else by `/dev/fuse`.
    #[default]
    Auto,
    /// By FUSE over io_uring, or not at all.
    IoUring,
    /// By `/dev/fuse`.
    DevFuse,
}

impl Checker<'_> {
    pub(super) fn mount(&mut self, raw: Option<Spanned<RawMount>>) -> Option<Mount> {
        let (section, mut raw) = match raw {
            Some(raw) => (Some(raw.span()), raw.into_inner()),
            None => (None, RawMount::default()),
        };
        let path = match section {
            Some(section) => {
                let what = "the folder to mount on";
                let path = self.require(raw.path.take(), &section, "mount.path", what);
                Some(path.and_then(|path| self.path(path, "mount.path"))?)
            }
            None => None,
        };
        let mode = raw.mode.as_ref().map_or(DEFAULT_FILE_MODE, |mode| *mode.get_ref());
        if let Some(key) = raw.mode.filter(|_| mode > 0o777) {
            let rule = "permission bits are from 0o000 to 0o777, such as 0o640";
            self.refuse(key.span(), "mount.mode", rule);
        }
        Some(Mount {
            path,
            allow_other: raw.allow_other.unwrap_or(false),
            owner: raw.owner,
            group: raw.group,
            mode,
            transport: raw.transport,
            cache: self.caches.set_default(raw.cache),
        })
    }
}
