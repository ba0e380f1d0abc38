//! What a thread asks of the scheduler.

#![expect(unsafe_code, reason = "affinity, scheduling class and timer slack are system calls")]

use std::io;

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// The system's: `EINVAL` if there is no such CPU, or the process may not use it.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    run_on(&[cpu])
}

/// Lets the calling thread run on any of these CPUs, as far as the process may use them.
///
/// # Errors
/// The system's: `EINVAL` if the process may use none of them.
pub fn run_on(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: a `cpu_set_t` is plain bits; all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: `cpu` is within the set, as just checked.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: an owned set of the given size; 0 is the calling thread.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The CPUs that the calling thread may run on.
#[must_use]
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: a `cpu_set_t` is plain bits; all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: an owned set of the given size; 0 is the calling thread.
    let got = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if got != 0 {
        return Vec::new();
    }
    // SAFETY: each number is within the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// How the scheduler treats a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// As every other (`SCHED_OTHER`).
    Ordinary,
    /// Runs when nothing else wants to; its CPU counts as idle for others (`SCHED_IDLE`).
    Idle,
}

/// Puts the calling thread into a class.
///
/// # Errors
/// The system's: `EPERM` on the way from [`Class::Idle`] back, for a process that may not raise
/// its priority (`RLIMIT_NICE`, `CAP_SYS_NICE`).
pub fn schedule_as(class: Class) -> io::Result<()> {
    let policy = match class {
        Class::Ordinary => libc::SCHED_OTHER,
        Class::Idle => libc::SCHED_IDLE,
    };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: an owned structure; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets the calling thread's timed sleeps end when they are due, not up to 50 us later.
pub fn precise_timers() {
    // SAFETY: plain numbers. Failure only costs precision.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
}

/// How many CPUs the system may ever have, as the kernel counts for what it keeps for each CPU.
#[must_use]
pub fn possible_cpus() -> usize {
    let listed = std::fs::read_to_string("/sys/devices/system/cpu/possible");
    listed.ok().as_deref().and_then(last_of_list).map_or_else(usable_cpus, |last| last + 1)
}

/// The last number in a list such as `0-3,8`.
fn last_of_list(list: &str) -> Option<usize> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
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
    fn lists_of_cpus_end_somewhere() {
        let last = |list| last_of_list(list);
        assert_eq!((last("0\n"), last("0-7\n"), last("0-1,4-5")), (Some(0), Some(7), Some(5)));
        assert_eq!((last(""), last("x")), (None, None));
        assert!(possible_cpus() >= 1);
    }

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
