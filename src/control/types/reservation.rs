//! Reservations of volumes, as an administrator of this machine sees them and as the local mount
//! takes part in them. SPDK has nothing like it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::spec::reservation::ReservationType;

/// Of `lvolfs_reservation_register`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterReservation {
    /// The volume, as `pool/volume` or by its UUID.
    pub name: String,
    /// The key of the local mount from now on; 0 or absent ends its registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<u64>,
    /// Whether registrations and the reservation outlive a power loss and a restart; as it is if
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist: Option<bool>,
}

/// Of `lvolfs_reservation_acquire`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcquireReservation {
    /// The volume, as `pool/volume` or by its UUID.
    pub name: String,
    /// The type to take.
    #[serde(rename = "type")]
    pub kind: ReservationType,
}

/// Of `lvolfs_reservation_preempt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreemptReservation {
    /// The volume, as `pool/volume` or by its UUID.
    pub name: String,
    /// The key of those to remove.
    pub key: u64,
    /// The type to take, if they hold the reservation.
    #[serde(rename = "type")]
    pub kind: ReservationType,
    /// Also wait until their operations have ended.
    #[serde(default)]
    pub abort: bool,
}

/// Of `lvolfs_reservation_reset`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetReservation {
    /// The volume, as `pool/volume` or by its UUID.
    pub name: String,
    /// Also remove every registration and the reservation, whoever's they are.
    #[serde(default)]
    pub force: bool,
}

/// What `lvolfs_reservation_reset` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationReset {
    /// Why the volume was fenced, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<String>,
    /// Where the damaged file is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<PathBuf>,
    /// How many registrations were removed.
    pub removed: usize,
}

/// The reservations of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationStatus {
    /// The volume.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// The type of the reservation that is held.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ReservationType>,
    /// The registrants, in the order in which they registered.
    pub registrants: Vec<RegistrantStatus>,
    /// Changes with every command that changes registrations.
    pub generation: u32,
    /// Whether all this outlives a power loss and a restart.
    pub persist: bool,
    /// Why nobody may read or write, if what was kept could not be believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<String>,
    /// The host that the mount and these commands act for.
    pub local_host: Uuid,
    /// Its name.
    pub local_nqn: String,
    /// What it may do: `read-write`, `read` or `none`.
    pub local_access: String,
}

/// A registrant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrantStatus {
    /// Its host identifier.
    pub host: Uuid,
    /// Its key.
    pub key: u64,
    /// Whether it holds the reservation.
    pub holder: bool,
    /// Whether it is the local mount.
    pub local: bool,
}
