//! Where a reactor that serves queues of CPUs runs, and as what: the whole policy, in one file.
//!
//! Requests of the kernel's queues come from programs on a certain CPU, and where they are served
//! decides more about their latency than anything else: a round trip between two threads costs a
//! few microseconds on one CPU, and many times that across two that sleep. Four rules:
//!
//! 1. *At home.* A reactor that serves the queue of a CPU runs on that CPU.
//! 2. *In the background.* There it is `SCHED_IDLE`: its CPU counts as idle then, so the program
//!    that it answers wakes up here, where its caches are, and not on another CPU that must be
//!    woken first.
//! 3. *Unless it starves.* In the background it runs only when nothing else wants to. While it
//!    waits for the CPU for more than [`STARVED`] of its time it is an ordinary thread, for
//!    [`HOLD`] and each further time for twice as long.
//! 4. *Away, with deep queues.* If each round brings several requests, client and server have
//!    enough to do for a CPU each: the reactor goes to the other CPUs and spins between rounds. It
//!    comes home when the rate falls, or if it has to wait for a CPU there too.
//!
//! Deciding ([`Placement::round`], pure) and doing ([`Seat`]) are apart.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::clock::Instant;
use crate::hw::thread::{Class, run_on, schedule_as};

/// A share of time, in thousandths.
type PerMille = u64;

/// How often the time spent waiting for a CPU is looked at.
const LOOK: Duration = Duration::from_millis(4);
/// A thread that waits for a CPU for more than this is starved.
const STARVED: PerMille = 300;
/// With less than this it has room, and earlier starvation is forgotten.
const ROOM: PerMille = 100;
/// How long a starved thread stays an ordinary one.
const HOLD: Duration = Duration::from_millis(100);
/// The longest that this becomes by doubling.
const LONGEST_HOLD: Duration = Duration::from_millis(3200);
/// Requests in a round, on average and in tenths, above which a queue is deep.
const DEEP: u64 = 30;
/// Requests a second above which it stays so. Spinning makes rounds small, so away from home the
/// rate tells, not the round.
const BUSY: u64 = 90_000;
/// How long rounds are counted before depth is judged: at home, and away.
const JUDGE_HOME: Duration = Duration::from_millis(1);
const JUDGE_AWAY: Duration = Duration::from_millis(10);
/// How long a thread stays home after it found no CPU away.
const STAY_HOME: Duration = Duration::from_millis(500);
/// How long a reactor away spins after its last work.
pub(super) const SPIN_AWAY: Duration = Duration::from_micros(50);

/// What a thread is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whether it runs on the CPUs that are not its own.
    pub away: bool,
    /// How the scheduler treats it.
    pub class: Class,
}

/// The policy's state for one thread.
#[derive(Debug)]
pub struct Placement {
    place: Place,
    /// Whether [`Class::Idle`] may be used: whether there is a way back from it.
    may_idle: bool,
    /// Whether there is another CPU to go to.
    may_leave: bool,
    looked: Instant,
    waited: Duration,
    starved: PerMille,
    class_since: Instant,
    hold: Duration,
    rounds: u64,
    requests: u64,
    judged: Instant,
    home_until: Instant,
}

impl Placement {
    /// A thread at home, ordinary, that has served nothing.
    #[must_use]
    pub fn new(may_idle: bool, may_leave: bool) -> Self {
        Self {
            place: Place { away: false, class: Class::Ordinary },
            may_idle,
            may_leave,
            looked: Instant::default(),
            waited: Duration::ZERO,
            starved: 0,
            class_since: Instant::default(),
            hold: HOLD,
            rounds: 0,
            requests: 0,
            judged: Instant::default(),
            home_until: Instant::default(),
        }
    }

    /// What the thread is now.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// A round at `now` brought so many requests. `waited` tells how long the thread has waited
    /// for a CPU since it exists; it is asked only now and then. Returns what the thread is to be.
    pub fn round(
        &mut self,
        now: Instant,
        requests: u32,
        waited: impl FnOnce() -> Duration,
    ) -> Place {
        if now.since(self.looked) >= LOOK {
            self.look(now, waited());
        }
        self.rounds += 1;
        self.requests += u64::from(requests);
        let span = now.since(self.judged);
        if span >= if self.place.away { JUDGE_AWAY } else { JUDGE_HOME } && self.rounds >= 32 {
            self.judge(now, span);
        }
        self.place
    }

    /// Rules 2 and 3.
    fn look(&mut self, now: Instant, waited: Duration) {
        let span = now.since(self.looked).as_nanos().max(1);
        let delay = waited.saturating_sub(self.waited).as_nanos();
        // A long sleep between two looks says nothing about the time before it.
        self.starved = u64::try_from(delay * 1000 / span).unwrap_or(1000);
        (self.looked, self.waited) = (now, waited);
        match self.place.class {
            Class::Idle if self.starved > STARVED => {
                self.place.class = Class::Ordinary;
                self.class_since = now;
                self.hold = (self.hold * 2).min(LONGEST_HOLD);
            }
            Class::Idle if self.starved < ROOM && now.since(self.class_since) > LONGEST_HOLD => {
                self.hold = HOLD;
            }
            Class::Ordinary if self.may_idle && now.since(self.class_since) >= self.hold => {
                self.place.class = Class::Idle;
                self.class_since = now;
            }
            Class::Idle | Class::Ordinary => {}
        }
    }

    /// Rules 1 and 4.
    fn judge(&mut self, now: Instant, span: Duration) {
        let depth = self.requests * 10 / self.rounds.max(1);
        let rate = u128::from(self.requests) * 1_000_000_000 / span.as_nanos().max(1);
        if self.place.away && self.starved > STARVED {
            self.home_until = now.after(STAY_HOME);
        }
        let deep = if self.place.away { rate > u128::from(BUSY) } else { depth > DEEP };
        self.place.away = deep && self.may_leave && now >= self.home_until;
        (self.rounds, self.requests, self.judged) = (0, 0, now);
    }
}

/// A thread's seat: its CPU, the others, and where to read how it fares.
pub(super) struct Seat {
    home: usize,
    others: Vec<usize>,
    fares: Option<File>,
    placement: Placement,
    set: Place,
}

impl Seat {
    /// A seat on `home` for this thread, which may also run on `others`. It begins at home.
    pub(super) fn take(home: usize, others: Vec<usize>) -> std::io::Result<Self> {
        run_on(&[home])?;
        let fares = File::open("/proc/thread-self/schedstat").ok();
        let placement =
            Placement::new(fares.is_some() && may_return_from_idle(), !others.is_empty());
        let set = placement.place();
        Ok(Self { home, others, fares, placement, set })
    }

    /// A round at `now` brought so many requests.
    #[inline]
    pub(super) fn round(&mut self, now: Instant, requests: u32) {
        let fares = &self.fares;
        let place = self.placement.round(now, requests, || waited(fares.as_ref()));
        if place != self.set {
            self.settle(place);
        }
    }

    /// Whether it is to spin between rounds.
    pub(super) fn is_away(&self) -> bool {
        self.set.away
    }

    #[cold]
    fn settle(&mut self, place: Place) {
        tracing::debug!(home = self.home, ?place, "a reactor moves");
        let moved = if place.away { run_on(&self.others) } else { run_on(&[self.home]) };
        let classed = schedule_as(place.class);
        if let Err(error) = moved.and(classed) {
            tracing::debug!(%error, "a reactor cannot be moved");
        }
        self.set = place;
    }
}

/// Whether a thread of this process may leave `SCHED_IDLE` again: one of its own tries.
fn may_return_from_idle() -> bool {
    let attempt = || schedule_as(Class::Idle).and_then(|()| schedule_as(Class::Ordinary)).is_ok();
    std::thread::spawn(attempt).join().unwrap_or(false)
}

/// How long this thread has waited for a CPU: the second number of its `schedstat`.
fn waited(fares: Option<&File>) -> Duration {
    let mut text = [0; 64];
    let length = fares.and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
    let words = std::str::from_utf8(&text[..length]).unwrap_or_default();
    let delay = words.split(' ').nth(1).and_then(|word| word.parse().ok());
    Duration::from_nanos(delay.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of `requests`, each `apart`, for `span` from `now` on; the thread waits for a CPU
    /// for `starved` of the time. Returns the time after it.
    fn run(
        placement: &mut Placement,
        (now, span): (Instant, Duration),
        apart: Duration,
        requests: u32,
        starved: PerMille,
    ) -> Instant {
        let (mut at, end) = (now, now.after(span));
        let before = placement.waited;
        while at < end {
            at = at.after(apart);
            let waited = before + at.since(now) * u32::try_from(starved).unwrap() / 1000;
            placement.round(at, requests, || waited);
        }
        at
    }

    const SECOND: Duration = Duration::from_secs(1);
    const TEN_MICROS: Duration = Duration::from_micros(10);

    #[test]
    fn a_shallow_queue_is_served_at_home_in_the_background() {
        let mut placement = Placement::new(true, true);
        run(&mut placement, (Instant::default(), SECOND), TEN_MICROS, 1, 20);
        assert_eq!(placement.place(), Place { away: false, class: Class::Idle });
    }

    #[test]
    fn a_starved_thread_is_an_ordinary_one_for_longer_and_longer() {
        let mut placement = Placement::new(true, true);
        let mut now = run(&mut placement, (Instant::default(), SECOND), TEN_MICROS, 1, 0);
        let mut ordinary = Vec::new();
        for _ in 0..8 {
            now = run(&mut placement, (now, LOOK * 2), TEN_MICROS, 1, 800);
            assert_eq!(placement.place().class, Class::Ordinary);
            let began = now;
            while placement.place().class == Class::Ordinary {
                now = run(&mut placement, (now, LOOK), TEN_MICROS, 1, 800);
            }
            ordinary.push(now.since(began));
        }
        assert!(ordinary.windows(2).all(|pair| pair[0] <= pair[1] + LOOK), "{ordinary:?}");
        assert!(*ordinary.last().unwrap() > LONGEST_HOLD - LOOK * 4, "{ordinary:?}");
        // Long enough with room, and all is forgotten.
        run(&mut placement, (now, LONGEST_HOLD * 3), TEN_MICROS, 1, 0);
        assert_eq!((placement.place().class, placement.hold), (Class::Idle, HOLD));
    }

    #[test]
    fn deep_queues_go_away_and_come_home() {
        let mut placement = Placement::new(true, true);
        let now = run(&mut placement, (Instant::default(), SECOND), TEN_MICROS, 8, 0);
        assert!(placement.place().away);
        // Spinning finds requests one by one, but many of them.
        let now = run(&mut placement, (now, SECOND), Duration::from_micros(5), 1, 0);
        assert!(placement.place().away);
        let now = run(&mut placement, (now, SECOND), Duration::from_micros(100), 1, 0);
        assert!(!placement.place().away);
        // Away there is no CPU either.
        let now = run(&mut placement, (now, Duration::from_millis(50)), TEN_MICROS, 8, 900);
        let now = run(&mut placement, (now, Duration::from_millis(50)), TEN_MICROS, 8, 900);
        assert!(!placement.place().away);
        run(&mut placement, (now, SECOND), TEN_MICROS, 8, 0);
        assert!(placement.place().away);
    }

    #[test]
    fn what_a_process_may_not_do_is_not_tried() {
        let mut placement = Placement::new(false, false);
        run(&mut placement, (Instant::default(), SECOND), TEN_MICROS, 8, 0);
        assert_eq!(placement.place(), Place { away: false, class: Class::Ordinary });
    }

    #[test]
    fn a_thread_takes_its_seat_and_settles() {
        std::thread::spawn(|| {
            let cpus = crate::hw::thread::allowed_cpus();
            let mut seat = Seat::take(cpus[0], cpus[1..].to_vec()).unwrap();
            assert_eq!(crate::hw::thread::allowed_cpus(), cpus[..1]);
            assert!(waited(seat.fares.as_ref()) < Duration::from_secs(3600));
            seat.settle(Place { away: !seat.others.is_empty(), class: Class::Ordinary });
            if cpus.len() > 1 {
                assert_eq!(crate::hw::thread::allowed_cpus(), cpus[1..]);
                assert!(seat.is_away());
            }
        })
        .join()
        .unwrap();
    }
}
