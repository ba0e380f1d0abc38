//! Which volumes the mount may cache, as far as the configuration tells.

use std::collections::HashMap;

use super::{Cache, VolumeName};

/// The mount's mode, and those of the volumes that have one of their own.
#[derive(Debug, Default)]
pub(super) struct Caches {
    default: Cache,
    own: HashMap<String, Cache>,
}

impl Caches {
    pub(super) fn set_default(&mut self, cache: Cache) -> Cache {
        self.default = cache;
        cache
    }

    /// Notes a volume's own mode, and tells the one that holds for it.
    pub(super) fn set(&mut self, volume: &VolumeName, own: Option<Cache>) -> Cache {
        if let Some(own) = own {
            self.own.insert(volume.to_string(), own);
        }
        self.of(volume)
    }

    /// The mode of a volume, declared or not.
    pub(super) fn of(&self, volume: &VolumeName) -> Cache {
        self.own.get(&volume.to_string()).copied().unwrap_or(self.default)
    }
}
