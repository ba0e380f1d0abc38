//! What a thread asks of the scheduler.

#![expect(unsafe_code, reason = "affinity and timer slack are system calls")]

use std::io;

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// The system's: `EINVAL` if there is no such CPU, or the process may not use it.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    // SAFETY: a `cpu_set_t` is plain bits; all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `cpu` is within the set, as just checked.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: an owned set of the given size; 0 is the calling thread.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets the calling thread's timed sleeps end when they are due, not up to 50 us later.
pub fn precise_timers() {
    // SAFETY: plain numbers. Failure only costs precision.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
}

/// How many CPUs this process may use; at least one.
#[must_use]
pub fn usable_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_pinned_to_its_cpu_and_to_no_other_machines() {
        std::thread::spawn(|| {
            precise_timers();
            let allowed = (0..libc::CPU_SETSIZE as usize).find(|&cpu| pin_to_cpu(cpu).is_ok());
            assert!(allowed.is_some());
            assert!(pin_to_cpu(1 << 20).is_err());
            assert_eq!(usable_cpus(), 1, "a pinned thread may use one CPU");
        })
        .join()
        .unwrap();
    }
}
