//! Requests whose callers got a signal.
//!
//! What is under way at a device is completed, whoever waits for it, as on a block device. What
//! may take long is a wait for space in a full pool; a signal ends that, and the caller gets
//! `EINTR`. Only requests that may wait so are watched.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::lvol::Interruption;

/// Most signals that are remembered of requests nobody watches: one may come before its request
/// is looked at, on another reactor.
const EARLY_LIMIT: usize = 256;

/// The interrupted and the watched requests of one mount, shared by all reactors.
#[derive(Default)]
pub struct Interrupts(Mutex<State>);

#[derive(Default)]
struct State {
    watched: HashMap<u64, Interruption>,
    early: VecDeque<u64>,
}

/// A request that may be interrupted, until this is dropped.
pub struct Watch<'a> {
    interrupts: &'a Interrupts,
    unique: u64,
    interruption: Interruption,
}

impl Interrupts {
    /// The caller of the request `unique` got a signal.
    pub fn interrupt(&self, unique: u64) {
        let mut state = self.state();
        if let Some(interruption) = state.watched.get(&unique) {
            interruption.happen();
        } else {
            if state.early.len() == EARLY_LIMIT {
                state.early.pop_front();
            }
            state.early.push_back(unique);
        }
    }

    /// Watches the request `unique`.
    pub fn watch(&self, unique: u64) -> Watch<'_> {
        let interruption = Interruption::default();
        let mut state = self.state();
        if let Some(place) = state.early.iter().position(|early| *early == unique) {
            state.early.remove(place);
            interruption.happen();
        }
        state.watched.insert(unique, interruption.clone());
        Watch { interrupts: self, unique, interruption }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No statement that holds the lock can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch<'_> {
    /// What ends the request's waits.
    #[must_use]
    pub fn interruption(&self) -> &Interruption {
        &self.interruption
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.interrupts.state().watched.remove(&self.unique);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_reaches_its_request_and_no_other_early_or_late() {
        let interrupts = Interrupts::default();
        let (one, two) = (interrupts.watch(1), interrupts.watch(2));
        interrupts.interrupt(2);
        assert!(!one.interruption().has_happened() && two.interruption().has_happened());
        drop((one, two));
        // Early; then the number is used up.
        interrupts.interrupt(3);
        assert!(interrupts.watch(3).interruption().has_happened());
        assert!(!interrupts.watch(3).interruption().has_happened());
        for unique in 0..10_000 {
            interrupts.interrupt(unique);
        }
        assert_eq!(interrupts.state().early.len(), EARLY_LIMIT);
        assert!(interrupts.state().watched.is_empty());
    }
}
