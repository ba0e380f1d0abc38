//! Commits that nobody asked for: a changed mapping does not wait for ever.

use std::time::Duration;

use crate::block::BlockDevice;

use super::error::Error;
use super::store::Store;

impl<D: BlockDevice> Store<D> {
    /// Commits what is dirty every `interval` from now on, until the pool is closed. A pool that is
    /// clean costs a look at its volumes, and no I/O.
    ///
    /// It bounds what a power cut can take from a program that never calls fsync; what it must not
    /// lose, a program flushes itself.
    pub fn commit_every(&self, interval: Duration) {
        let (this, reactor) = (self.this.clone(), std::rc::Rc::clone(&self.reactor));
        let task = self.reactor.task(async move {
            let mut told = false;
            loop {
                reactor.sleep(interval).await;
                let Some(store) = this.upgrade() else { return };
                if !store.has_dirty_volumes() {
                    continue;
                }
                match store.commit_all().await {
                    Ok(()) => told = false,
                    // Whoever found the fault has logged it.
                    Err(Error::Poisoned { .. } | Error::Closed | Error::Gone) => return,
                    Err(error) if !told => {
                        tracing::warn!(pool = store.info().name, %error, "not committed yet");
                        told = true;
                    }
                    Err(_) => {}
                }
            }
        });
        self.set_periodic(Box::pin(task));
    }

    fn has_dirty_volumes(&self) -> bool {
        self.state.borrow().dirty_volumes().next().is_some()
    }
}
