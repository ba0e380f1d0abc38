//! One of the two queue pairs that a channel has.
//!
//! A queue pair either raises an interrupt with each completion or never does: that is fixed when
//! the controller makes it. So a channel has a *hot* lane, which is only polled and costs nothing
//! else, for commands whose end is near, and a *cold* one, on whose interrupt the reactor can
//! sleep, for everything else.
//!
//! A reactor that waits longer for a hot command than it cares to spin looks again after a while;
//! the pause grows with the wait, so that a command that takes long costs little.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::hw::dma::DmaBuffer;
use crate::hw::event::EventFd;
use crate::nvme::{Completion, QueueCounters, QueuePair, RejectReason, Rejected};
use crate::reactor::{Instant, Turn, Waiters};

/// How often a reactor that sleeps on an interrupt looks for commands that take too long.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The pause between two looks at a queue pair without an interrupt.
const SHORTEST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// The pause is this part of the time since anything happened.
const PAUSE_SHARE: u32 = 4;

/// A queue pair, until the controller is gone.
pub(super) struct Lane {
    pair: RefCell<Option<QueuePair>>,
    /// What its interrupt signals.
    event: Option<Arc<EventFd>>,
    /// Who waits for room in the queue.
    waiting: Waiters,
    /// When it was polled, and when anything was last submitted or completed.
    polled: Cell<Instant>,
    moved: Cell<Instant>,
    /// Of a pair that is gone.
    last_counters: Cell<QueueCounters>,
}

impl Lane {
    pub(super) fn new(pair: QueuePair, event: Option<Arc<EventFd>>) -> Self {
        Self {
            pair: RefCell::new(Some(pair)),
            event,
            waiting: Waiters::default(),
            polled: Cell::default(),
            moved: Cell::default(),
            last_counters: Cell::default(),
        }
    }

    /// Submits by `submit`, whose buffer comes back if that is refused.
    #[inline]
    pub(super) fn submit(
        &self,
        buffer: Option<DmaBuffer>,
        token: u64,
        submit: &impl Fn(&mut QueuePair, Option<DmaBuffer>, u64) -> Result<(), Rejected>,
    ) -> Result<(), Rejected> {
        match &mut *self.pair.borrow_mut() {
            Some(pair) => {
                self.moved.set(self.polled.get());
                submit(pair, buffer, token)
            }
            None => Err(Rejected { reason: RejectReason::Gone, buffer }),
        }
    }

    /// Rings, hands completions to `visitor`, and wakes who waits for room.
    #[inline]
    pub(super) fn poll(&self, now: Instant, visitor: &mut impl FnMut(Completion)) -> usize {
        self.polled.set(now);
        let mut pair = self.pair.borrow_mut();
        let Some(pair) = &mut *pair else { return 0 };
        pair.ring();
        let ended = pair.poll(now, visitor);
        if ended > 0 {
            self.moved.set(now);
            self.waiting.call(ended);
        }
        ended
    }

    /// When it was last polled: the time of the reactor's turn.
    #[inline]
    pub(super) fn polled(&self) -> Instant {
        self.polled.get()
    }

    #[inline]
    pub(super) fn in_flight(&self) -> usize {
        self.pair.borrow().as_ref().map_or(0, QueuePair::in_flight)
    }

    pub(super) fn event(&self) -> Option<Arc<EventFd>> {
        self.event.clone()
    }

    /// When a reactor that sleeps must look again, while anything is in flight.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.in_flight() == 0 {
            return None;
        }
        let polled = self.polled.get();
        let pause = match &self.event {
            Some(_) => LOOK_INTERVAL,
            None => {
                let share = polled.since(self.moved.get()) / PAUSE_SHARE;
                share.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
            }
        };
        Some(polled.after(pause))
    }

    /// The most ranges of one discard.
    pub(super) fn max_discard_ranges(&self) -> usize {
        self.pair.borrow().as_ref().map_or(0, QueuePair::max_discard_ranges)
    }

    /// Ends when a command has ended, or the pair is gone. The room is then the caller's.
    pub(super) fn room(&self) -> impl Future<Output = Turn<'_>> {
        self.waiting.called()
    }

    /// The controller is gone: ends what is in flight, and lets go of its registers.
    pub(super) fn let_go(&self, now: Instant, visitor: &mut impl FnMut(Completion)) {
        self.poll(now, visitor);
        if let Some(pair) = self.pair.borrow_mut().take() {
            self.last_counters.set(pair.counters());
        }
        self.waiting.call_all();
    }

    pub(super) fn counters(&self) -> QueueCounters {
        self.pair.borrow().as_ref().map_or(self.last_counters.get(), QueuePair::counters)
    }
}
