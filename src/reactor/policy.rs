//! How an idle reactor waits: the whole policy, in one file.
//!
//! Spinning buys latency with CPU time. It pays while the remaining wait is likely to be shorter
//! than twice what a wake-up costs, which is measured once at the start; so a reactor that just
//! had work, and that waits for a device that owes it an answer, spins for that long, and then
//! blocks. At most one thread fewer than there are CPUs may spin at a time: a spinner without a
//! CPU of its own delays the very thread it waits for.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::clock::Instant;
use super::placement::SPIN_AWAY;
use crate::hw::event::EventFd;
use crate::hw::thread::{allowed_cpus, pin_to_cpu};

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
pub struct SpinPermits {
    free: Arc<AtomicUsize>,
    /// For how long a permit is good after the last work.
    budget: Duration,
}

impl SpinPermits {
    /// Permits for a machine with `cpus` CPUs, one fewer than it has, where a wake-up costs what
    /// it costs on ordinary machines.
    #[must_use]
    pub fn new(cpus: usize) -> Self {
        Self::with_wake_cost(cpus, WAKE_COST)
    }

    /// The same, where a wake-up costs `wake_cost`; see [`measure_wake_cost`].
    #[must_use]
    pub fn with_wake_cost(cpus: usize, wake_cost: Duration) -> Self {
        let free = Arc::new(AtomicUsize::new(cpus.saturating_sub(1)));
        Self { free, budget: wake_cost.saturating_mul(2) }
    }

    fn acquire(&self) -> bool {
        self.free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1))
            .is_ok()
    }

    fn release(&self) {
        self.free.fetch_add(1, Ordering::Relaxed);
    }
}

/// The policy's state in one reactor.
#[derive(Debug)]
pub struct Waiting {
    wait: Wait,
    permits: SpinPermits,
    has_permit: bool,
    last_work: Instant,
    /// Since when it spins, and for how long it did before.
    spins_since: Option<Instant>,
    spun: Duration,
    /// Whether requests come so fast that it pays to spin for the next.
    between: bool,
}

/// What one wake-up out of the ring costs on ordinary machines.
const WAKE_COST: Duration = Duration::from_micros(12);
/// What a measured wake-up is cut to.
const WAKE_COSTS: (Duration, Duration) = (Duration::from_micros(2), Duration::from_micros(100));
/// Wake-ups that are measured; the median counts.
const MEASURED: usize = 21;

/// What it costs to wake a thread that sleeps on an event, on this machine: half of a round trip
/// between two threads, on two CPUs where the process has two, because whoever wakes a reactor most
/// often runs elsewhere, and waking an idle CPU is what costs. Takes less than some ten
/// milliseconds.
///
/// # Errors
/// The system's: no descriptors or no thread left.
pub fn measure_wake_cost() -> io::Result<Duration> {
    let events = Arc::new((EventFd::new()?, EventFd::new()?));
    let cpus = allowed_cpus();
    let (here, there) = (cpus.first().copied(), cpus.last().copied());
    let thread = || std::thread::Builder::new().name("wake-cost".to_owned());
    // Where a thread cannot be kept on its CPU, the figure is that of wherever it runs.
    let keep_on = |cpu: Option<usize>| drop(cpu.map(pin_to_cpu));
    let other = thread().spawn({
        let events = Arc::clone(&events);
        move || {
            keep_on(there);
            for _ in 0..MEASURED {
                events.0.wait(Some(PATIENCE_MS));
                events.0.consume();
                events.1.signal();
            }
        }
    })?;
    let measuring = thread().spawn(move || {
        keep_on(here);
        let round = |_| {
            let began = std::time::Instant::now();
            events.0.signal();
            events.1.wait(Some(PATIENCE_MS));
            events.1.consume();
            began.elapsed() / 2
        };
        (0..MEASURED).map(round).collect::<Vec<Duration>>()
    })?;
    let rounds = measuring.join();
    drop(other.join());
    let mut rounds = rounds.map_err(|_| io::Error::other("measuring a wake-up panicked"))?;
    rounds.sort_unstable();
    Ok(rounds[MEASURED / 2].clamp(WAKE_COSTS.0, WAKE_COSTS.1))
}

/// No wake-up takes longer; if one does, it is not waited for.
const PATIENCE_MS: u32 = 100;

impl Waiting {
    /// A policy that has seen no work yet.
    #[must_use]
    pub fn new(wait: Wait, permits: SpinPermits) -> Self {
        Self {
            wait,
            permits,
            has_permit: false,
            last_work: Instant::default(),
            spins_since: None,
            spun: Duration::ZERO,
            between: false,
        }
    }

    /// A turn at `now` did some work.
    #[inline]
    pub fn worked(&mut self, now: Instant) {
        self.last_work = now;
        self.account(now);
    }

    #[inline]
    fn account(&mut self, now: Instant) {
        if let Some(since) = self.spins_since.take() {
            self.spun += now.since(since);
        }
    }

    /// How long it has spun so far.
    pub fn spun(&self) -> Duration {
        self.spun
    }

    /// Whether to spin for the next request too, not only for a device's answer: see
    /// [`super::placement`].
    #[inline]
    pub fn spin_between(&mut self, between: bool) {
        self.between = between;
    }

    /// A turn at `now` found nothing to do. `outstanding` tells whether a device owes an answer.
    pub fn idle(&mut self, now: Instant, outstanding: bool) -> Decision {
        let spin = match self.wait {
            Wait::Busy => {
                self.spins_since.get_or_insert(now);
                return Decision::Spin;
            }
            Wait::Sleep => false,
            Wait::Adaptive => {
                let idle = now.since(self.last_work);
                (outstanding && idle < self.permits.budget) || (self.between && idle < SPIN_AWAY)
            }
        };
        if spin && (self.has_permit || self.permits.acquire()) {
            self.has_permit = true;
            self.spins_since.get_or_insert(now);
            return Decision::Spin;
        }
        self.account(now);
        self.stop_spinning();
        Decision::Block
    }

    /// Whether an idle reactor is likely to spin for as long as `wait`.
    #[inline]
    pub fn would_spin(&self, wait: Duration) -> bool {
        match self.wait {
            Wait::Busy => true,
            Wait::Sleep => false,
            Wait::Adaptive => wait < self.permits.budget,
        }
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
        assert_eq!(waiting.spun(), Duration::from_micros(23));
    }

    #[test]
    fn the_measured_wake_up_is_the_budget() {
        let cost = measure_wake_cost().unwrap();
        assert!((WAKE_COSTS.0..=WAKE_COSTS.1).contains(&cost), "{cost:?}");
        let permits = SpinPermits::with_wake_cost(2, Duration::from_micros(50));
        let mut waiting = Waiting::new(Wait::Adaptive, permits);
        assert!(waiting.would_spin(Duration::from_micros(99)));
        assert!(!waiting.would_spin(Duration::from_micros(100)));
        assert_eq!(waiting.idle(at(99), true), Decision::Spin);
        assert_eq!(waiting.idle(at(100), true), Decision::Block);
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
