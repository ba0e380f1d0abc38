//! Snapshots, clones and parents of volumes.

use serde::{Deserialize, Serialize};

/// Of `bdev_lvol_snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLvol {
    /// The volume: `pool/volume`, or its UUID.
    pub lvol_name: String,
    /// The snapshot's name in the pool.
    pub snapshot_name: String,
}

/// Of `bdev_lvol_clone`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneLvol {
    /// The snapshot: `pool/volume`, or its UUID.
    pub snapshot_name: String,
    /// The clone's name in the pool.
    pub clone_name: String,
}

/// Of `bdev_lvol_clone_bdev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneBdev {
    /// The device, by its name or its UUID.
    pub bdev: String,
    /// The pool of the clone.
    pub lvs_name: String,
    /// The clone's name in it.
    pub clone_name: String,
}

/// Of `bdev_lvol_set_parent` and `bdev_lvol_set_parent_bdev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetParent {
    /// The volume: `pool/volume`, or its UUID.
    pub lvol_name: String,
    /// The snapshot that becomes its parent, likewise; or a device, by its name or its UUID.
    pub parent_name: String,
}
