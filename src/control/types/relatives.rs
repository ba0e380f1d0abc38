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

/// Of `bdev_lvol_set_parent`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetParent {
    /// The volume: `pool/volume`, or its UUID.
    pub lvol_name: String,
    /// The snapshot that becomes its parent, likewise.
    pub parent_name: String,
}
