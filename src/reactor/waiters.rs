//! A line of tasks that wait for room, and who is called next.
//!
//! A call is for one task, but which one may change its mind: a task that was called and is
//! dropped, or that takes room elsewhere, must hand the call on, or those behind it wait for ever
//! beside free room. So a place in the line is a [`Ticket`], and whoever has one ends it by
//! [`Waiters::take`] (the room is used) or [`Waiters::leave`] (it is not).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::task::{Poll, Waker};

/// A line of tasks of one reactor.
#[derive(Debug, Default)]
pub struct Waiters {
    /// First come, first served; the numbers of the tickets rise.
    line: RefCell<VecDeque<(u64, Waker)>>,
    next: Cell<u64>,
}

/// A place in the line.
#[derive(Debug)]
pub struct Ticket(u64);

impl Waiters {
    /// Joins the end of the line.
    pub fn join(&self, waker: &Waker) -> Ticket {
        let number = self.next.get();
        self.next.set(number + 1);
        self.line.borrow_mut().push_back((number, waker.clone()));
        Ticket(number)
    }

    /// Whether the ticket was called. If not, `waker` is the one to wake when it is.
    #[must_use]
    pub fn is_called(&self, ticket: &Ticket, waker: &Waker) -> bool {
        let mut line = self.line.borrow_mut();
        let Ok(place) = line.binary_search_by_key(&ticket.0, |(number, _)| *number) else {
            return true;
        };
        line[place].1.clone_from(waker);
        false
    }

    /// Calls the first `count` in the line.
    pub fn call(&self, count: usize) {
        for _ in 0..count {
            // The line is not borrowed while a task is woken: that may do anything.
            let Some((_, waker)) = self.line.borrow_mut().pop_front() else { return };
            waker.wake();
        }
    }

    /// Calls all of them.
    pub fn call_all(&self) {
        let count = self.line.borrow().len();
        self.call(count);
    }

    /// Ends a ticket that was called, and whose room is used or was no room after all.
    pub fn take(&self, ticket: Ticket) {
        debug_assert!(
            self.line.borrow().binary_search_by_key(&ticket.0, |(number, _)| *number).is_err(),
            "a ticket that was not called leaves"
        );
    }

    /// Ends a ticket whose holder does not want the room any more: the next one is called if this
    /// one had been.
    pub fn leave(&self, ticket: Ticket) {
        let mut line = self.line.borrow_mut();
        let place = line.binary_search_by_key(&ticket.0, |(number, _)| *number);
        let left = place.ok().and_then(|place| line.remove(place));
        drop(line);
        if left.is_none() {
            self.call(1);
        }
    }

    /// Waits to be called.
    pub fn called(&self) -> impl Future<Output = Turn<'_>> {
        let mut turn: Option<Turn<'_>> = None;
        poll_fn(move |context| match &turn {
            None => {
                let ticket = Some(self.join(context.waker()));
                turn = Some(Turn { waiters: self, ticket });
                Poll::Pending
            }
            Some(Turn { ticket: Some(ticket), .. }) if !self.is_called(ticket, context.waker()) => {
                Poll::Pending
            }
            Some(_) => match turn.take() {
                Some(turn) => Poll::Ready(turn),
                None => unreachable!("just seen"),
            },
        })
    }
}

/// The right to the room that somebody was called for. Dropped unused, it goes to the next.
#[derive(Debug)]
pub struct Turn<'a> {
    waiters: &'a Waiters,
    ticket: Option<Ticket>,
}

impl Turn<'_> {
    /// The room is used, or was no room after all.
    pub fn take(mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.waiters.take(ticket);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.waiters.leave(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waker() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn a_call_reaches_somebody_who_wants_it() {
        let waiters = Waiters::default();
        let (first_woken, first) = waker();
        let (second_woken, second) = waker();
        let (third_woken, third) = waker();
        let woken =
            || [&first_woken, &second_woken, &third_woken].map(|c| c.0.load(Ordering::Relaxed));
        let mut a = Box::pin(waiters.called());
        let mut b = Box::pin(waiters.called());
        let mut c = Box::pin(waiters.called());
        assert!(a.as_mut().poll(&mut Context::from_waker(&first)).is_pending());
        assert!(b.as_mut().poll(&mut Context::from_waker(&second)).is_pending());
        assert!(c.as_mut().poll(&mut Context::from_waker(&third)).is_pending());
        drop(a);
        assert_eq!(woken(), [0, 0, 0], "who waits and goes takes no call along");
        waiters.call(1);
        assert_eq!(woken(), [0, 1, 0]);
        drop(b);
        assert_eq!(woken(), [0, 1, 1], "who was called and goes hands the call on");
        let Poll::Ready(turn) = c.as_mut().poll(&mut Context::from_waker(&third)) else {
            panic!("it was called");
        };
        let mut d = pin!(waiters.called());
        assert!(d.as_mut().poll(&mut Context::from_waker(&first)).is_pending());
        drop(turn);
        assert_eq!(woken(), [1, 1, 1], "and so does who has no use for it");
        let Poll::Ready(turn) = d.as_mut().poll(&mut Context::from_waker(&first)) else {
            panic!("it was called");
        };
        let mut e = pin!(waiters.called());
        assert!(e.as_mut().poll(&mut Context::from_waker(&second)).is_pending());
        turn.take();
        assert_eq!(woken(), [1, 1, 1], "a used one is used up");
    }

    #[test]
    fn the_last_waker_is_the_one_that_counts() {
        let waiters = Waiters::default();
        let (old_woken, old) = waker();
        let (new_woken, new) = waker();
        let mut waiting = pin!(waiters.called());
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&old)).is_pending());
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&new)).is_pending());
        waiters.call_all();
        assert_eq!(old_woken.0.load(Ordering::Relaxed), 0);
        assert_eq!(new_woken.0.load(Ordering::Relaxed), 1);
    }
}
