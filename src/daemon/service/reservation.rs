//! Reservations: what the local mount does as a host, and what an administrator may do.

use super::{Answer, DaemonService};
use crate::control::ReservationMethods;
use crate::control::types::{
    AcquireReservation, PreemptReservation, RegisterReservation, RegistrantStatus,
    ReservationReset, ReservationStatus, ResetReservation, SelectLvol,
};
use crate::reservation::{
    Acquire, Command, ExistingKey, Key, Persistence, Register, Release, Reservation, Reservations,
    Rights,
};
use crate::volume::{self, Entry};

impl DaemonService {
    /// Does what `command` makes of the present state, as the local mount.
    fn reserve(
        &self,
        name: &str,
        command: impl FnOnce(&Reservations, Key) -> Command,
    ) -> Answer<ReservationStatus> {
        let entry = self.volume(name)?;
        let (state, local) = (entry.gate().reservations(), self.directory.hosts().local());
        // Whoever may speak here may see every key, so a key would prove nothing.
        let command = command(&state, state.key_of(local).unwrap_or(Key::ZERO));
        let there = std::sync::Arc::clone(&entry);
        self.operate(move |catalog| async move { catalog.reserve(&there, local, command).await })?;
        Ok(self.reservations_of(&entry))
    }

    fn reservations_of(&self, entry: &Entry) -> ReservationStatus {
        let state = entry.gate().reservations();
        let local = self.directory.hosts().local();
        let registrants = state.registrants().iter().map(|registrant| RegistrantStatus {
            host: registrant.host.uuid(),
            key: registrant.key.get(),
            holder: state.is_holder(registrant.host),
            local: registrant.host == local,
        });
        let local_access = match state.rights(local) {
            Rights::All => "read-write",
            Rights::Read => "read",
            Rights::None => "none",
        };
        ReservationStatus {
            name: format!("{}/{}", entry.pool().name(), entry.name()),
            uuid: entry.uuid(),
            kind: state.reservation().map(Reservation::reservation_type),
            registrants: registrants.collect(),
            generation: state.generation(),
            persist: state.persistence() == Persistence::ThroughPowerLoss,
            fence: state.fence().map(ToString::to_string),
            local_host: local.uuid(),
            local_nqn: self.mount.host_nqn.clone(),
            local_access: local_access.to_owned(),
        }
    }
}

impl ReservationMethods for DaemonService {
    fn lvolfs_reservation_show(&self, parameters: SelectLvol) -> Answer<ReservationStatus> {
        Ok(self.reservations_of(&*self.volume(&parameters.name)?))
    }

    fn lvolfs_reservation_register(
        &self,
        parameters: RegisterReservation,
    ) -> Answer<ReservationStatus> {
        let RegisterReservation { name, key, persist } = parameters;
        let persistence = persist.map(|persist| match persist {
            true => Persistence::ThroughPowerLoss,
            false => Persistence::Volatile,
        });
        self.reserve(&name, |_, _| Command::Register {
            action: match key.map(Key) {
                None | Some(Key::ZERO) => Register::Unregister,
                Some(key) => Register::Replace(key),
            },
            existing: ExistingKey::Ignored,
            persistence,
        })
    }

    fn lvolfs_reservation_acquire(
        &self,
        parameters: AcquireReservation,
    ) -> Answer<ReservationStatus> {
        let AcquireReservation { name, kind } = parameters;
        let (action, reservation_type) = (Acquire::Acquire, kind);
        self.reserve(&name, |_, key| Command::Acquire { action, key, reservation_type })
    }

    fn lvolfs_reservation_preempt(
        &self,
        parameters: PreemptReservation,
    ) -> Answer<ReservationStatus> {
        let PreemptReservation { name, key: victim, kind, abort } = parameters;
        let action = match abort {
            true => Acquire::PreemptAndAbort(Key(victim)),
            false => Acquire::Preempt(Key(victim)),
        };
        let reservation_type = kind;
        self.reserve(&name, |_, key| Command::Acquire { action, key, reservation_type })
    }

    fn lvolfs_reservation_release(&self, parameters: SelectLvol) -> Answer<ReservationStatus> {
        self.reserve(&parameters.name, |state, key| {
            let held = state.reservation().map(Reservation::reservation_type);
            Command::Release { action: Release::Release(held), key }
        })
    }

    fn lvolfs_reservation_clear(&self, parameters: SelectLvol) -> Answer<ReservationStatus> {
        self.reserve(&parameters.name, |_, key| Command::Release { action: Release::Clear, key })
    }

    fn lvolfs_reservation_reset(&self, parameters: ResetReservation) -> Answer<ReservationReset> {
        let ResetReservation { name, force } = parameters;
        let entry = self.volume(&name)?;
        let reset =
            self.operate(
                move |catalog| async move { catalog.reset_reservations(&entry, force).await },
            )?;
        let volume::Reset { fence, set_aside, removed } = reset;
        Ok(ReservationReset { fence, set_aside, removed })
    }
}
