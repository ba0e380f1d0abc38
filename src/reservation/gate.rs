//! How reactors learn of the state: one publishes, all ask, without a lock while nothing changes.
//!
//! Invariant: the epoch changes after the state does, and both under one lock. So a pass whose
//! epoch is the gate's epoch has the rights of the gate's state.
//!
//! What a gate cannot know is whether a command that it let through has reached the device. Who
//! publishes a preempt must hear from every reactor before the answer: a reactor that has taken
//! a message sent after [`Gate::publish`] asks the new state from then on, and can say which
//! commands it had started before.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::access::{Access, Rights};
use super::state::Reservations;
use crate::spec::reservation::HostId;
use crate::spec::status::StatusCode;

/// The published state of one namespace.
#[derive(Debug)]
pub struct Gate {
    epoch: AtomicU64,
    /// The lock orders a change of the state against the reading of state and epoch together. It
    /// is held for a few instructions and never while waiting for anything.
    state: Mutex<Arc<Reservations>>,
}

impl Gate {
    /// A gate that shows `state`.
    #[must_use]
    pub fn new(state: Reservations) -> Arc<Self> {
        Arc::new(Self { epoch: AtomicU64::new(0), state: Mutex::new(Arc::new(state)) })
    }

    /// The state as it is now.
    #[must_use]
    pub fn state(&self) -> Arc<Reservations> {
        Arc::clone(&self.lock())
    }

    /// Makes `state` the one that every pass asks. On return, a check that starts on any thread
    /// that learns of this return is made against `state`.
    pub fn publish(&self, state: Reservations) {
        let mut current = self.lock();
        *current = Arc::new(state);
        // Release, with the Acquire in `Pass::check`: who sees the epoch sees the state. Only a
        // holder of the lock writes, so nothing is lost between load and store.
        self.epoch.store(self.epoch.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// A pass for `host`, for one thread.
    #[must_use]
    pub fn pass(self: &Arc<Self>, host: HostId) -> Pass {
        let (epoch, rights) = self.rights(host);
        let gate = Arc::clone(self);
        Pass { gate, host, epoch: Cell::new(epoch), rights: Cell::new(rights) }
    }

    fn rights(&self, host: HostId) -> (u64, Rights) {
        let state = self.lock();
        // Relaxed: the lock orders it.
        (self.epoch.load(Ordering::Relaxed), state.rights(host))
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Reservations>> {
        // Nothing panics between taking the lock and a whole state being in it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One host at a gate: remembers its rights until the state changes.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    host: HostId,
    epoch: Cell<u64>,
    rights: Cell<Rights>,
}

impl Pass {
    /// Whose pass this is.
    #[must_use]
    pub const fn host(&self) -> HostId {
        self.host
    }

    /// Whether the host may do `access` now. Costs an atomic load unless the state has changed
    /// since the last call.
    ///
    /// # Errors
    /// `RESERVATION_CONFLICT`.
    #[inline]
    pub fn check(&self, access: Access) -> Result<(), StatusCode> {
        if self.gate.epoch.load(Ordering::Acquire) != self.epoch.get() {
            self.refresh();
        }
        if self.rights.get().allow(access) { Ok(()) } else { Err(StatusCode::RESERVATION_CONFLICT) }
    }

    #[cold]
    fn refresh(&self) {
        let (epoch, rights) = self.gate.rights(self.host);
        self.epoch.set(epoch);
        self.rights.set(rights);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reservation::{Acquire, Command, ExistingKey, Key, Register, ReservationType};

    fn host(number: u8) -> HostId {
        HostId::new([number; 16]).unwrap()
    }

    fn apply(gate: &Gate, host: HostId, command: Command) {
        gate.publish(gate.state().apply(host, &command).unwrap().after);
    }

    #[test]
    fn passes_follow_the_published_state() {
        let gate = Gate::new(Reservations::default());
        let (ours, theirs) = (gate.pass(host(1)), gate.pass(host(2)));
        assert_eq!(ours.check(Access::Write), Ok(()));
        assert_eq!(theirs.check(Access::Write), Ok(()));
        let (existing, persistence) = (ExistingKey::Ignored, None);
        let action = Register::Register(Key(7));
        apply(&gate, host(1), Command::Register { action, existing, persistence });
        let reservation_type = ReservationType::WriteExclusive;
        let (action, key) = (Acquire::Acquire, Key(7));
        apply(&gate, host(1), Command::Acquire { action, key, reservation_type });
        assert_eq!(ours.check(Access::ReadAndWrite), Ok(()));
        assert_eq!(theirs.check(Access::Read), Ok(()));
        assert_eq!(theirs.check(Access::Write), Err(StatusCode::RESERVATION_CONFLICT));
        assert_eq!(gate.pass(host(2)).check(Access::Write), theirs.check(Access::Write));
    }

    /// A thread that hears of a publication, by whatever way, asks the published state.
    #[test]
    fn what_is_published_is_seen_by_those_who_hear_of_it() {
        let gate = Gate::new(Reservations::default());
        let fenced = Reservations::fenced(crate::reservation::persistence::Damage::NotAFile);
        for round in 0..1000 {
            let pass = gate.pass(host(1));
            let (tell, heard) = std::sync::mpsc::channel();
            let other = Arc::clone(&gate);
            let next = if round % 2 == 0 { fenced.clone() } else { Reservations::default() };
            let publisher = std::thread::spawn(move || {
                other.publish(next);
                tell.send(()).unwrap();
            });
            heard.recv().unwrap();
            assert_eq!(pass.check(Access::Read).is_err(), round % 2 == 0, "round {round}");
            publisher.join().unwrap();
        }
    }
}
