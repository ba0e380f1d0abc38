//! What a volume wants of its pool's space. SPDK has nothing like it.

use serde::{Deserialize, Serialize};

/// What writes to a volume do when its pool is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// They fail with "no space left on device".
    Error,
    /// They wait up to a minute for space, and fail then.
    Wait,
}

/// Of `lvolfs_volume_set_space`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSpace {
    /// The volume: `pool/volume`, or its UUID.
    pub name: String,
    /// So many bytes of it, rounded up to clusters, can always be written, whatever others do;
    /// unchanged if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve: Option<u64>,
    /// What writes do when the pool is full; unchanged if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
}
