//! Giving up the wait for space: whoever asked for a write may no longer want to wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;

/// Ends the waits for space of the operations that have it, on whatever reactors they run. Nothing
/// else of them ends early. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Interruption(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    happened: bool,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Interruption {
    /// Ends the waits, those that have not begun too.
    pub fn happen(&self) {
        let mut state = self.state();
        state.happened = true;
        // Dropping the senders wakes those who wait.
        state.waiting.clear();
    }

    /// Whether it happened.
    #[must_use]
    pub fn has_happened(&self) -> bool {
        self.state().happened
    }

    /// Ends when it happens.
    pub(super) async fn wait(&self) {
        let woken = {
            let mut state = self.state();
            if state.happened {
                return;
            }
            state.waiting.retain(|waiting| !waiting.is_canceled());
            let (wake, woken) = oneshot::channel();
            state.waiting.push(wake);
            woken
        };
        // An error, always: nothing is ever sent.
        woken.await.unwrap_or_default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No statement that holds the lock can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
