//! What each reservation command does to the state: the rules of Base, "Reservations".
//!
//! A command either is refused with a status and nothing happens, or gives the whole state after
//! it. The caller answers a command only when the state after it (1) is durable, if it persists;
//! (2) is published on every reactor; and (3), if there is anything in [`Outcome::abort`], no
//! command of those hosts is outstanding. Then it sends the notifications.

use super::command::{Acquire, Command, ExistingKey, Key, Persistence, Register, Release};
use super::notification::{Event, Notification};
use super::state::{
    Holder, MAX_REGISTRANTS, Registrant, Reservation, ReservationType, Reservations,
};
use crate::spec::reservation::HostId;
use crate::spec::status::StatusCode;

/// What a command that succeeds brings about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Outcome {
    /// The state after the command.
    pub after: Reservations,
    /// Whom to tell what, once the state is published. Never the sender, and each host once.
    pub notifications: Vec<Notification>,
    /// The hosts whose outstanding commands must end before this one is answered: those that a
    /// Preempt and Abort has unregistered. Never the sender.
    pub abort: Vec<HostId>,
}

impl Reservations {
    /// The state after `command` of `host`, and what else it brings about.
    ///
    /// # Errors
    /// The status with which the command fails; the state stays as it is.
    pub fn apply(&self, host: HostId, command: &Command) -> Result<Outcome, StatusCode> {
        let after = self.clone();
        let outcome = Outcome { after, notifications: Vec::new(), abort: Vec::new() };
        let mut transition = Transition { host, outcome };
        match *command {
            Command::Register { action, existing, persistence } => {
                transition.register(action, existing)?;
                transition.set_persistence(persistence);
            }
            Command::Acquire { action, key, reservation_type } => {
                transition.require_key(key)?;
                transition.acquire(action, reservation_type)?;
            }
            Command::Release { action, key } => {
                transition.require_key(key)?;
                match action {
                    Release::Release(named) => transition.release(named)?,
                    Release::Clear => transition.clear(),
                }
            }
            Command::SetPersistence(persistence) => transition.set_persistence(Some(persistence)),
        }
        Ok(transition.outcome)
    }
}

/// A command of `host` half-way.
struct Transition {
    host: HostId,
    outcome: Outcome,
}

impl Transition {
    fn state(&mut self) -> &mut Reservations {
        &mut self.outcome.after
    }

    fn set_persistence(&mut self, persistence: Option<Persistence>) {
        if let Some(persistence) = persistence {
            self.state().persistence = persistence;
        }
    }

    /// Counts a command that the specification has counted.
    fn count(&mut self) {
        let state = self.state();
        state.generation = state.generation.wrapping_add(1);
    }

    /// Commands on the reservation itself are for registrants that show their key, and for no one
    /// while the namespace is fenced.
    fn require_key(&mut self, key: Key) -> Result<(), StatusCode> {
        let host = self.host;
        if self.state().key_of(host) != Some(key) || self.state().fence.is_some() {
            return Err(StatusCode::RESERVATION_CONFLICT);
        }
        Ok(())
    }

    /// Tells every registrant but the sender.
    fn notify_others(&mut self, event: Event) {
        let host = self.host;
        let others = self.outcome.after.registrants.iter().filter(|other| other.host != host);
        let notifications = others.map(|other| Notification { host: other.host, event });
        self.outcome.notifications.extend(notifications);
    }

    fn register(&mut self, action: Register, existing: ExistingKey) -> Result<(), StatusCode> {
        let host = self.host;
        let registered = self.state().key_of(host);
        let ignored = existing == ExistingKey::Ignored;
        let fits = registered.is_some_and(|key| ignored || existing == ExistingKey::Is(key));
        match (action, registered) {
            (Register::Register(Key::ZERO), _) if !(ignored && fits) => {
                return Err(StatusCode::INVALID_FIELD);
            }
            (Register::Register(key), None) => self.add(key)?,
            (Register::Register(key), Some(present)) if key == present => {}
            // Linux's "register and ignore the existing key".
            (Register::Register(key), Some(_)) if ignored => self.replace(key),
            (Register::Replace(key), Some(_)) if fits => self.replace(key),
            (Register::Replace(key), None) if ignored => self.add(key)?,
            (Register::Unregister, Some(_)) if fits => self.unregister(),
            _ => return Err(StatusCode::RESERVATION_CONFLICT),
        }
        self.count();
        Ok(())
    }

    fn add(&mut self, key: Key) -> Result<(), StatusCode> {
        if key == Key::ZERO {
            return Err(StatusCode::INVALID_FIELD);
        }
        let registrant = Registrant { host: self.host, key };
        let registrants = &mut self.state().registrants;
        if registrants.len() >= MAX_REGISTRANTS {
            return Err(StatusCode::INTERNAL_ERROR);
        }
        registrants.push(registrant);
        Ok(())
    }

    /// Gives the sender, a registrant, another key. Key zero unregisters it, as Linux means it.
    fn replace(&mut self, key: Key) {
        if key == Key::ZERO {
            return self.unregister();
        }
        let host = self.host;
        let mut registrants = self.state().registrants.iter_mut();
        if let Some(registrant) = registrants.find(|registrant| registrant.host == host) {
            registrant.key = key;
        }
    }

    fn unregister(&mut self) {
        let host = self.host;
        let held = self.state().reservation;
        self.state().registrants.retain(|registrant| registrant.host != host);
        self.release_if_nobody_holds();
        let Some(held) = held.filter(|_| self.state().reservation.is_none()) else { return };
        if !held.reservation_type().is_for_holder_alone() {
            self.notify_others(Event::ReservationReleased);
        }
    }

    /// Keeps the invariant that a reservation has a holder, after registrants have gone.
    fn release_if_nobody_holds(&mut self) {
        let state = self.state();
        let held = match state.reservation.map(|reservation| reservation.holder()) {
            None => true,
            Some(Holder::Host(holder)) => state.key_of(holder).is_some(),
            Some(Holder::AllRegistrants) => !state.registrants.is_empty(),
        };
        if !held {
            state.reservation = None;
        }
    }

    fn acquire(&mut self, action: Acquire, kind: ReservationType) -> Result<(), StatusCode> {
        let host = self.host;
        match action {
            Acquire::Preempt(victim) => self.preempt(victim, kind)?,
            Acquire::PreemptAndAbort(victim) => {
                self.preempt(victim, kind)?;
                let preempted = self.outcome.notifications.iter();
                let preempted = preempted.filter(|told| told.event == Event::RegistrationPreempted);
                self.outcome.abort = preempted.map(|told| told.host).collect();
            }
            Acquire::Acquire => {
                let taken = Reservation::taken_by(host, kind);
                let state = self.state();
                match state.reservation {
                    None => state.reservation = Some(taken),
                    // A holder may take again what it holds.
                    Some(held) if held == taken => {}
                    Some(_) => return Err(StatusCode::RESERVATION_CONFLICT),
                }
            }
        }
        Ok(())
    }

    fn preempt(&mut self, victim: Key, kind: ReservationType) -> Result<(), StatusCode> {
        let host = self.host;
        let held = self.state().reservation;
        let holder_key = match held.map(|held| held.holder()) {
            Some(Holder::Host(holder)) => self.state().key_of(holder),
            // Key zero stands for the holders if they are all registrants.
            Some(Holder::AllRegistrants) => Some(Key::ZERO),
            None => None,
        };
        if holder_key == Some(victim) {
            // Remove those, release what they hold, and take it, in one step.
            self.remove(|registrant| {
                registrant.host != host && (victim == Key::ZERO || registrant.key == victim)
            });
            let taken = Some(Reservation::taken_by(host, kind));
            self.state().reservation = taken;
            if taken != held {
                self.notify_others(Event::ReservationReleased);
            }
        } else {
            // Remove those, be the sender among them or not, and leave the reservation.
            if victim == Key::ZERO {
                return Err(StatusCode::INVALID_FIELD);
            }
            if !self.remove(|registrant| registrant.key == victim) {
                return Err(StatusCode::RESERVATION_CONFLICT);
            }
            self.release_if_nobody_holds();
        }
        self.count();
        Ok(())
    }

    /// Unregisters those whom `chosen` picks, and tells them; whether there were any.
    fn remove(&mut self, chosen: impl Fn(&Registrant) -> bool) -> bool {
        let host = self.host;
        let Outcome { after, notifications, .. } = &mut self.outcome;
        let before = after.registrants.len();
        let removed = after.registrants.extract_if(.., |registrant| chosen(registrant));
        let others = removed.map(|gone| gone.host).filter(|&gone| gone != host);
        let event = Event::RegistrationPreempted;
        notifications.extend(others.map(|host| Notification { host, event }));
        after.registrants.len() != before
    }

    fn release(&mut self, named: Option<ReservationType>) -> Result<(), StatusCode> {
        let host = self.host;
        let Some(held) = self.state().reservation else { return Ok(()) };
        if named != Some(held.reservation_type()) {
            return Err(StatusCode::INVALID_FIELD);
        }
        if self.state().is_holder(host) {
            self.state().reservation = None;
            if !held.reservation_type().is_for_holder_alone() {
                self.notify_others(Event::ReservationReleased);
            }
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.notify_others(Event::ReservationPreempted);
        self.state().registrants.clear();
        self.state().reservation = None;
        self.count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_rolls_over() {
        let last = Reservations { generation: u32::MAX, ..Reservations::default() };
        let action = Register::Register(Key(1));
        let (existing, persistence) = (ExistingKey::Ignored, None);
        let host = HostId::new([1; 16]).unwrap();
        let outcome = last.apply(host, &Command::Register { action, existing, persistence });
        assert_eq!(outcome.unwrap().after.generation(), 0);
    }
}
