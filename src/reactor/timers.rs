//! Timers of one reactor: wakers by deadline.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::clock::Instant;

/// Wakers by deadline; the number keeps equal deadlines apart, in the order they were set.
#[derive(Default)]
pub(super) struct Timers {
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next: Cell<u64>,
}

impl Timers {
    /// The earliest deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.borrow().first_key_value().map(|(key, _)| key.0)
    }

    /// Wakes everything due at `now`; returns how many.
    pub(super) fn fire(&self, now: Instant) -> usize {
        let mut fired = 0;
        loop {
            let waker = {
                let mut waiting = self.waiting.borrow_mut();
                match waiting.first_entry() {
                    Some(entry) if entry.key().0 <= now => entry.remove(),
                    _ => return fired,
                }
            };
            waker.wake();
            fired += 1;
        }
    }

    pub(super) fn sleep_until(self: &Rc<Self>, deadline: Instant) -> Sleep {
        Sleep { timers: Rc::clone(self), deadline, number: None }
    }
}

/// A future that ends at its deadline. Dropping it removes the timer.
pub struct Sleep {
    timers: Rc<Timers>,
    deadline: Instant,
    number: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let timers = Rc::clone(&self.timers);
        let mut waiting = timers.waiting.borrow_mut();
        match self.number {
            // Fired: the entry is gone.
            Some(number) if !waiting.contains_key(&(self.deadline, number)) => Poll::Ready(()),
            Some(number) => {
                waiting.insert((self.deadline, number), context.waker().clone());
                Poll::Pending
            }
            None => {
                let number = timers.next.get();
                timers.next.set(number + 1);
                waiting.insert((self.deadline, number), context.waker().clone());
                self.number = Some(number);
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.timers.waiting.borrow_mut().remove(&(self.deadline, number));
        }
    }
}
