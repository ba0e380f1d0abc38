//! What happened to pools and volumes.

use serde::{Deserialize, Serialize};

/// Of `notify_get_notifications`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GetNotifications {
    /// The first number wanted; 0 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// How many at most; all that are remembered if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
}

/// An event in SPDK's shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: String,
    /// To what: `pool/volume`, or a pool.
    pub ctx: String,
    /// Its number.
    pub id: u64,
}

/// Of `lvolfs_watch_events`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchEvents {
    /// The first event wanted, as far as it is still remembered; the next one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
}

/// The answer of `lvolfs_watch_events`. From then on, events follow on the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watching {
    /// The number that the first of them has, or a higher one.
    pub from: u64,
}

/// An event: the parameters of a `lvolfs_event` notification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number, counted from the start of the daemon.
    pub id: u64,
    /// When it happened, in seconds since the epoch.
    pub time: f64,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: String,
    /// To which pool.
    pub pool: String,
    /// To which volume of it, if to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Free bytes of the pool, if the event is about space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
}
