//! Time as the data path sees it: nanoseconds on a monotonic clock that tests can turn by hand.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// A moment, in nanoseconds since the clock's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The moment `nanoseconds` after the clock's start.
    #[must_use]
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the clock's start.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The moment `delay` later; the end of time on overflow.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long before `self` the moment `earlier` was; zero if it was not before.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A clock that stands still until it is turned. Clones show the same time.
#[derive(Clone, Debug, Default)]
pub struct VirtualClock(Rc<Cell<u64>>);

impl VirtualClock {
    /// The time shown.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant(self.0.get())
    }

    /// Turns the clock to `moment`; never backwards.
    pub fn advance_to(&self, moment: Instant) {
        self.0.set(self.0.get().max(moment.0));
    }
}

/// Where a reactor takes its time from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's monotonic clock.
    Real(std::time::Instant),
    /// A clock that the reactor turns to the next timer when it has nothing else to do.
    Virtual(VirtualClock),
}

impl Clock {
    /// The machine's clock, started now.
    #[must_use]
    pub fn real() -> Self {
        Self::Real(std::time::Instant::now())
    }

    /// The time now.
    #[must_use]
    #[inline]
    pub fn now(&self) -> Instant {
        match self {
            Self::Real(start) => {
                Instant(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
            }
            Self::Virtual(clock) => clock.now(),
        }
    }
}
