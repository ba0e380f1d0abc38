//! What `lvolfs_status` tells: every layer, from the mount down to the controller, with its state
//! and its counters. For people and monitoring; what each counter counts is said where it is kept.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A layer's counters by name. They start at 0 with the daemon and never fall.
pub type Counters = BTreeMap<String, u64>;

/// The whole daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// For how long it has been ready, in seconds.
    pub uptime_seconds: u64,
    /// Its reactors.
    pub reactors: Vec<ReactorStatus>,
    /// Where volumes are files.
    pub mounts: Vec<MountStatus>,
    /// The pools and their volumes.
    pub pools: Vec<PoolStatus>,
    /// What the pools are on.
    pub devices: Vec<DeviceStatus>,
}

/// A reactor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReactorStatus {
    /// Its number.
    pub index: usize,
    /// The CPU that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<usize>,
    /// Of its loop.
    pub counters: Counters,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountStatus {
    /// Where.
    pub path: PathBuf,
    /// How requests come from the kernel: `io_uring` or `/dev/fuse`.
    pub transport: String,
    /// If not by the faster way: why, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport_note: Option<String>,
    /// Of the requests.
    pub counters: Counters,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// The name of its device.
    pub device: String,
    /// Whether it works.
    #[serde(flatten)]
    pub health: Health,
    /// Bytes in a cluster.
    pub cluster_size: u64,
    /// Clusters for data.
    pub total_clusters: u64,
    /// Those that are free.
    pub free_clusters: u64,
    /// How much is left: `ok`, `low`, or `full`.
    #[serde(default)]
    pub space: String,
    /// Bytes that volumes have of their own.
    #[serde(default)]
    pub allocated: u64,
    /// Bytes that volumes have promised their users: the sum of their sizes.
    #[serde(default)]
    pub provisioned: u64,
    /// Free bytes that are kept for the reserves of volumes.
    #[serde(default)]
    pub reserved: u64,
    /// How metadata pages are protected from being torn by a power cut: `atomic` by the device,
    /// `journal`, or `unprotected` as long as there is no journal.
    #[serde(default)]
    pub torn_writes: String,
    /// Of its metadata.
    pub counters: Counters,
    /// Its volumes.
    pub volumes: Vec<VolumeStatus>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name in the pool.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Whether it works.
    #[serde(flatten)]
    pub health: Health,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that are allocated.
    pub allocated: u64,
    /// Whether clusters are allocated when they are written.
    pub thin: bool,
    /// Bytes of it that can always be written.
    #[serde(default)]
    pub reserve: u64,
    /// Whether its writes wait when the pool is full, instead of failing.
    #[serde(default)]
    pub waits_for_space: bool,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// The snapshot of its pool that it is a clone of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// What it is a clone of outside of its pool: a device, or `pool/volume`, or a UUID if that is not
    /// there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_parent: Option<String>,
    /// Of its operations.
    pub counters: Counters,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Its driver, as the configuration names it.
    pub driver: String,
    /// Whether it works.
    #[serde(flatten)]
    pub health: Health,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// Whether it has a cache that a power cut empties.
    pub volatile_write_cache: bool,
    /// Of the operations that the pool asked for.
    pub counters: Counters,
    /// Of the driver's commands, if it is an NVMe driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvme: Option<Counters>,
    /// Of the commands that the controller served, if it is an emulated one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<Counters>,
}

/// Whether something works; `"state"` in JSON, with a `"reason"` unless it does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Health {
    /// It does.
    #[default]
    Ok,
    /// It has failed in a way that makes further writes unsafe: it is read-only until the daemon
    /// is started again.
    Poisoned {
        /// What failed.
        reason: String,
    },
    /// It is damaged and not in use; the rest is.
    Quarantined {
        /// The damage.
        reason: String,
    },
    /// Nobody may read or write it, because its stored reservations cannot be believed.
    Fenced {
        /// What is wrong with them, and what to do.
        reason: String,
    },
    /// What it shows of a parent outside of its pool cannot be read, for that is not attached.
    Degraded {
        /// What is missing.
        reason: String,
    },
    /// It is gone, or answers nothing.
    Failed {
        /// How.
        reason: String,
    },
}

impl Health {
    /// The state in one word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Poisoned { .. } => "poisoned",
            Self::Quarantined { .. } => "quarantined",
            Self::Fenced { .. } => "fenced",
            Self::Degraded { .. } => "degraded",
            Self::Failed { .. } => "failed",
        }
    }

    /// Why it does not work.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Poisoned { reason }
            | Self::Quarantined { reason }
            | Self::Fenced { reason }
            | Self::Degraded { reason }
            | Self::Failed { reason } => Some(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_state_stands_beside_what_it_is_the_state_of() {
        let device = DeviceStatus {
            name: "disk0".to_owned(),
            driver: "file".to_owned(),
            health: Health::Failed { reason: "unplugged".to_owned() },
            size: 0,
            block_size: 512,
            volatile_write_cache: true,
            counters: Counters::new(),
            nvme: None,
            controller: None,
        };
        let text = json!(device);
        assert_eq!((&text["state"], &text["reason"]), (&json!("failed"), &json!("unplugged")));
        assert_eq!(serde_json::from_value::<DeviceStatus>(text).unwrap(), device);
        assert_eq!(json!(Health::Ok), json!({"state": "ok"}));
        assert_eq!((Health::Ok.word(), Health::Ok.reason()), ("ok", None));
    }
}
