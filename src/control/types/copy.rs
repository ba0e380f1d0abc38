//! Shallow copies.

use serde::{Deserialize, Serialize};

/// Of `bdev_lvol_start_shallow_copy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartShallowCopy {
    /// The volume, which is read-only: `pool/volume`, or its UUID.
    pub src_lvol_name: String,
    /// The device to write, by its name or its UUID.
    pub dst_bdev_name: String,
}

/// A copy that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShallowCopyOperation {
    /// Its number.
    pub operation_id: u32,
}

/// Of `bdev_lvol_check_shallow_copy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckShallowCopy {
    /// The copy's number.
    pub operation_id: u32,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SPDK's words")]
pub enum ShallowCopyState {
    #[serde(rename = "in progress")]
    InProgress,
    #[serde(rename = "complete")]
    Complete,
    #[serde(rename = "error")]
    Error,
}

/// A copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShallowCopy {
    /// How far it is.
    pub state: ShallowCopyState,
    /// Clusters that were copied.
    pub copied_clusters: u64,
    /// Clusters that the volume has of its own.
    pub total_clusters: u64,
    /// Why it ended before its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
