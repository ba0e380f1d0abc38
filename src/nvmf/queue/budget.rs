//! How much DMA memory the commands of one connection may hold, so that one peer that asks for
//! much and takes nothing cannot have all of it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// A connection's share.
pub(super) struct Budget {
    limit: usize,
    used: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

/// Part of a budget; given back when dropped.
pub(in super::super) struct Permit {
    budget: Rc<Budget>,
    bytes: usize,
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Permit({})", self.bytes)
    }
}

impl Budget {
    pub(super) fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self { limit, used: Cell::new(0), waiting: RefCell::default() })
    }

    /// Waits until `bytes` more may be held. A request above the limit passes when nothing else
    /// is held.
    pub(super) async fn acquire(self: &Rc<Self>, bytes: usize) -> Permit {
        poll_fn(|context| {
            let used = self.used.get();
            if used == 0 || used + bytes <= self.limit {
                self.used.set(used + bytes);
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
        Permit { budget: Rc::clone(self), bytes }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.used.set(self.budget.used.get() - self.bytes);
        // Few wait, and rarely.
        for waker in self.budget.waiting.take() {
            waker.wake();
        }
    }
}
