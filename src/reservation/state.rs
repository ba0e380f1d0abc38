//! The state of reservations of one namespace.

use super::command::{Key, Persistence};
use super::persistence::Damage;
use crate::spec::reservation::HostId;
pub use crate::spec::reservation::ReservationType;

/// The most registrants of a namespace. A report of as many takes 64 KiB, their file 100 KiB;
/// SPDK reads files of up to 16.
pub const MAX_REGISTRANTS: usize = 1024;

/// Who holds a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This registrant.
    Host(HostId),
    /// Each registrant.
    AllRegistrants,
}

/// A reservation that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    reservation_type: ReservationType,
    holder: Holder,
}

impl Reservation {
    /// The reservation of `reservation_type` that `host` takes.
    pub(super) const fn taken_by(host: HostId, reservation_type: ReservationType) -> Self {
        let holder = if reservation_type.is_all_registrants() {
            Holder::AllRegistrants
        } else {
            Holder::Host(host)
        };
        Self { reservation_type, holder }
    }

    /// Its type.
    #[must_use]
    pub const fn reservation_type(&self) -> ReservationType {
        self.reservation_type
    }

    /// Who holds it: every registrant if and only if the type says so.
    #[must_use]
    pub const fn holder(&self) -> Holder {
        self.holder
    }
}

/// A host that has registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrant {
    /// Who.
    pub host: HostId,
    /// Its key; not zero.
    pub key: Key,
}

/// The reservations of one namespace, as a value.
///
/// Invariants: there are at most [`MAX_REGISTRANTS`] registrants, each host once, none with key
/// zero. A holder is a registrant, and a reservation that all registrants hold has one. A fenced
/// state has no reservation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations {
    /// Counts what the specification has counted; starts at 0 when the namespace does.
    pub(super) generation: u32,
    pub(super) persistence: Persistence,
    /// In the order in which they registered.
    pub(super) registrants: Vec<Registrant>,
    pub(super) reservation: Option<Reservation>,
    pub(super) fence: Option<Damage>,
}

impl Reservations {
    /// The state of a namespace whose stored state cannot be believed: no host may read or write.
    #[must_use]
    pub fn fenced(why: Damage) -> Self {
        Self { fence: Some(why), ..Self::default() }
    }

    /// Why the namespace is fenced, if it is.
    #[must_use]
    pub const fn fence(&self) -> Option<&Damage> {
        self.fence.as_ref()
    }

    /// The same without the fence: hosts that registered behind it stay registered, and nobody
    /// holds a reservation. Only an administrator may decide this.
    #[must_use]
    pub fn without_fence(&self) -> Self {
        Self {
            generation: self.generation.wrapping_add(u32::from(self.fence.is_some())),
            fence: None,
            ..self.clone()
        }
    }

    /// The state after an administrator has removed every registration and the reservation, and
    /// lifted the fence if there was one.
    #[must_use]
    pub fn cleared(&self) -> Self {
        Self {
            generation: self.generation.wrapping_add(1),
            persistence: self.persistence,
            ..Self::default()
        }
    }

    /// The generation (GEN): changes with every command that changes registrations.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The Persist Through Power Loss state.
    #[must_use]
    pub const fn persistence(&self) -> Persistence {
        self.persistence
    }

    /// Whether registrations and the reservation outlive a power loss. Behind a fence nothing is
    /// stored, so nothing does.
    #[must_use]
    pub fn persists(&self) -> bool {
        self.persistence == Persistence::ThroughPowerLoss && self.fence.is_none()
    }

    /// Who has registered, in the order in which they did.
    #[must_use]
    pub fn registrants(&self) -> &[Registrant] {
        &self.registrants
    }

    /// The reservation, if one is held.
    #[must_use]
    pub const fn reservation(&self) -> Option<&Reservation> {
        self.reservation.as_ref()
    }

    /// The key with which `host` is registered.
    #[must_use]
    pub fn key_of(&self, host: HostId) -> Option<Key> {
        let registrant = self.registrants.iter().find(|registrant| registrant.host == host);
        registrant.map(|registrant| registrant.key)
    }

    /// Whether `host` holds the reservation, alone or with all others.
    #[must_use]
    pub fn is_holder(&self, host: HostId) -> bool {
        match self.reservation {
            None => false,
            Some(Reservation { holder: Holder::Host(holder), .. }) => holder == host,
            Some(Reservation { holder: Holder::AllRegistrants, .. }) => self.key_of(host).is_some(),
        }
    }
}
