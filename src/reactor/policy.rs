//! How an idle reactor waits: the whole policy, in one file.
//!
//! Spinning buys latency with CPU time. It pays while the remaining wait is likely to be shorter
//! than twice what a wake-up costs; so a reactor that just had work, and that waits for a device
//! that owes it an answer, spins for that long, and then blocks. At most one thread fewer than
//! there are CPUs may spin at a time: a spinner without a CPU of its own delays the very thread
//! it waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::clock::Instant;

/// The configured way to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Spin while it is likely to pay, then block.
    #[default]
    Adaptive,
    /// Never block. Burns its core; for a machine that has one to give.
    Busy,
    /// Never spin.
    Sleep,
}

/// What to do in an idle turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Look again at once.
    Spin,
    /// Block until something happens.
    Block,
}

/// The right to spin, shared by all reactors of the process.
#[derive(Clone, Debug)]
pub struct SpinPermits(Arc<AtomicUsize>);

impl SpinPermits {
    /// Permits for a machine with `cpus` CPUs: one fewer than it has.
    #[must_use]
    pub fn new(cpus: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(cpus.saturating_sub(1))))
    }

    fn acquire(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1))
            .is_ok()
    }

    fn release(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The policy's state in one reactor.
#[derive(Debug)]
pub struct Waiting {
    wait: Wait,
    permits: SpinPermits,
    has_permit: bool,
    last_work: Instant,
}

/// What one wake-up out of the ring costs on ordinary machines.
const WAKE_COST: Duration = Duration::from_micros(12);
/// How long to spin after the last work.
const SPIN_BUDGET: Duration = WAKE_COST.saturating_mul(2);

impl Waiting {
    /// A policy that has seen no work yet.
    #[must_use]
    pub fn new(wait: Wait, permits: SpinPermits) -> Self {
        Self { wait, permits, has_permit: false, last_work: Instant::default() }
    }

    /// A turn at `now` did some work.
    #[inline]
    pub fn worked(&mut self, now: Instant) {
        self.last_work = now;
    }

    /// A turn at `now` found nothing to do. `outstanding` tells whether a device owes an answer.
    pub fn idle(&mut self, now: Instant, outstanding: bool) -> Decision {
        let spin = match self.wait {
            Wait::Busy => return Decision::Spin,
            Wait::Sleep => false,
            Wait::Adaptive => outstanding && now.since(self.last_work) < SPIN_BUDGET,
        };
        if spin && (self.has_permit || self.permits.acquire()) {
            self.has_permit = true;
            return Decision::Spin;
        }
        self.stop_spinning();
        Decision::Block
    }

    fn stop_spinning(&mut self) {
        if std::mem::take(&mut self.has_permit) {
            self.permits.release();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.stop_spinning();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant::from_nanos(micros * 1000)
    }

    #[test]
    fn adaptive_spins_briefly_for_an_answer_and_then_blocks() {
        let mut waiting = Waiting::new(Wait::Adaptive, SpinPermits::new(2));
        waiting.worked(at(100));
        assert_eq!(waiting.idle(at(101), false), Decision::Block);
        assert_eq!(waiting.idle(at(101), true), Decision::Spin);
        assert_eq!(waiting.idle(at(123), true), Decision::Spin);
        assert_eq!(waiting.idle(at(124), true), Decision::Block);
    }

    #[test]
    fn spinners_leave_one_cpu_free() {
        let permits = SpinPermits::new(2);
        let mut first = Waiting::new(Wait::Adaptive, permits.clone());
        let mut second = Waiting::new(Wait::Adaptive, permits.clone());
        assert_eq!(first.idle(at(0), true), Decision::Spin);
        assert_eq!(second.idle(at(0), true), Decision::Block);
        assert_eq!(first.idle(at(50), true), Decision::Block);
        assert_eq!(second.idle(at(1), true), Decision::Spin);
        drop(second);
        assert_eq!(first.idle(at(2), true), Decision::Spin);
        let mut alone = Waiting::new(Wait::Adaptive, SpinPermits::new(1));
        assert_eq!(alone.idle(at(0), true), Decision::Block);
    }

    #[test]
    fn busy_and_sleep_do_what_they_say() {
        let mut busy = Waiting::new(Wait::Busy, SpinPermits::new(1));
        assert_eq!(busy.idle(at(1_000_000), false), Decision::Spin);
        let mut sleep = Waiting::new(Wait::Sleep, SpinPermits::new(8));
        assert_eq!(sleep.idle(at(0), true), Decision::Block);
    }
}
