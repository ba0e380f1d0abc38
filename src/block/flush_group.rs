//! Flushes that are asked for while one runs share the next one.
//!
//! A flush covers what completed before it was *submitted*. One who asks while a flush runs
//! cannot use that one, but all who ask meanwhile can share the one after it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;

use futures_channel::oneshot;

use super::BlockError;
use crate::reactor::Reactor;

/// Those who wait for the next flush of one channel, and whether a task serves them.
#[derive(Default)]
pub(crate) struct FlushGroup {
    served: Cell<bool>,
    waiting: RefCell<Vec<oneshot::Sender<Result<(), BlockError>>>>,
}

impl FlushGroup {
    /// Waits for a flush that starts after this call. `flush_once` runs one on the device.
    pub(crate) async fn join<F, Fut>(
        self: &Rc<Self>,
        reactor: &Reactor,
        flush_once: F,
    ) -> Result<(), BlockError>
    where
        F: Fn() -> Fut + 'static,
        Fut: Future<Output = Result<(), BlockError>> + 'static,
    {
        let (send, receive) = oneshot::channel();
        self.waiting.borrow_mut().push(send);
        if !self.served.replace(true) {
            reactor.spawn(Rc::clone(self).serve(flush_once));
        }
        // The server's task runs to its end; without an answer its reactor has ended.
        receive.await.unwrap_or(Err(BlockError::Gone))
    }

    /// Answers until nobody waits: each round takes all who wait by then.
    async fn serve<F, Fut>(self: Rc<Self>, flush_once: F)
    where
        F: Fn() -> Fut + 'static,
        Fut: Future<Output = Result<(), BlockError>> + 'static,
    {
        loop {
            let joined = std::mem::take(&mut *self.waiting.borrow_mut());
            if joined.is_empty() {
                self.served.set(false);
                return;
            }
            let result = flush_once().await;
            for waiting in joined {
                // One who no longer waits needs no answer.
                drop(waiting.send(result.clone()));
            }
        }
    }
}
