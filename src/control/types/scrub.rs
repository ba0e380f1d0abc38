//! Scrubs of pools. SPDK has nothing like it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{PoolSelector, SelectLvstore};
use crate::control::RpcError;

/// Of `lvolfs_pool_scrub_start`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StartScrub {
    /// The pool's UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Or its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lvs_name: Option<String>,
    /// The most that it reads in a second; a moderate rate if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

impl StartScrub {
    /// The pool meant.
    ///
    /// # Errors
    /// `-EINVAL` unless exactly one key is there.
    pub fn pool(&self) -> Result<PoolSelector, RpcError> {
        SelectLvstore { uuid: self.uuid, lvs_name: self.lvs_name.clone() }.exactly_one()
    }
}

/// The scrub of a pool that is under way, or the last one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// `never`, `running`, `done` or `stopped`.
    pub state: String,
    /// The most that it reads in a second.
    pub bytes_per_second: u64,
    /// What there was to read when it began.
    pub total_bytes: u64,
    /// What has been read.
    pub read_bytes: u64,
    /// Metadata pages among it.
    pub pages: u64,
    /// Clusters among it.
    pub clusters: u64,
    /// How long it took so far.
    pub elapsed_seconds: f64,
    /// How many faults were found.
    pub faults: u64,
    /// The first of them.
    pub findings: Vec<String>,
}
