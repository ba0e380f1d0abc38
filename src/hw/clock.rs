//! Clocks that the standard library does not read.

#![expect(unsafe_code, reason = "the system's coarse clock")]

use std::time::Duration;

/// The time of day since the epoch, as it was at the kernel's last tick, some milliseconds ago: a
/// fraction of the cost of the exact time, and what file systems note as the time of a write.
#[must_use]
pub fn coarse_wall_clock() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: an owned structure, and a clock that every Linux has; a failure leaves zeros.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    #[test]
    fn the_coarse_clock_is_a_little_late() {
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let coarse = super::coarse_wall_clock();
        assert!(coarse < before + Duration::from_secs(1));
        assert!(coarse + Duration::from_secs(60) > before, "{coarse:?} is not near {before:?}");
    }
}
