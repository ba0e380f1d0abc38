//! Surviving SIGBUS on a mapped BAR.
//!
//! When a device goes away, or its memory decoding is switched off, the kernel takes the BAR's
//! pages out of our mapping and the next access raises SIGBUS. A doorbell is a plain store on the
//! hot path, so it cannot look first. Instead a handler puts anonymous memory in the BAR's place,
//! notes that the range is dead, and lets the instruction run again: stores are lost, loads are
//! made to read all ones by whoever looks at [`GuardedRange::is_dead`] after them.
//!
//! A signal handler can reach nothing but statics, so the ranges are a static table of atomics.
//! In the handler: loads and stores of atomics, `mmap` and `sigaction`, which are system calls
//! and need no lock.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many BARs can be mapped at once: as many controllers as one process drives.
const RANGES: usize = 256;

struct Slot {
    /// First address, or 0 while the slot is free.
    start: AtomicUsize,
    /// Length, or 0 while `start` says nothing yet.
    length: AtomicUsize,
    dead: AtomicBool,
}

static SLOTS: [Slot; RANGES] = [const {
    Slot { start: AtomicUsize::new(0), length: AtomicUsize::new(0), dead: AtomicBool::new(false) }
}; RANGES];

/// What handled SIGBUS before us: the standard library's stack overflow report, mostly.
static PREVIOUS: OnceLock<Result<libc::sigaction, i32>> = OnceLock::new();

/// A mapping in which SIGBUS is survived, for as long as this lives.
#[derive(Debug)]
pub(super) struct GuardedRange(usize);

impl GuardedRange {
    /// Guards the mapping of `length` bytes at `start`. The caller keeps it mapped, and mapped for
    /// nothing else, until the guard is dropped.
    pub(super) fn new(start: usize, length: usize) -> io::Result<Self> {
        if let Err(errno) = PREVIOUS.get_or_init(install) {
            return Err(io::Error::from_raw_os_error(*errno));
        }
        for (index, slot) in SLOTS.iter().enumerate() {
            let taken = slot.start.compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed);
            if taken.is_ok() {
                slot.dead.store(false, Ordering::Relaxed);
                slot.length.store(length, Ordering::Release);
                return Ok(Self(index));
            }
        }
        Err(io::ErrorKind::OutOfMemory.into())
    }

    /// Whether an access has raised SIGBUS. Read it after the load that it judges.
    #[inline]
    pub(super) fn is_dead(&self) -> bool {
        // Acquire: the handler sets it before it changes the mapping, so a load that saw the new
        // memory is followed by a look that sees the mark.
        std::sync::atomic::fence(Ordering::Acquire);
        SLOTS[self.0].dead.load(Ordering::Acquire)
    }
}

impl Drop for GuardedRange {
    fn drop(&mut self) {
        SLOTS[self.0].length.store(0, Ordering::Relaxed);
        SLOTS[self.0].start.store(0, Ordering::Release);
    }
}

fn install() -> Result<libc::sigaction, i32> {
    // SAFETY: an all-zero sigaction is a valid value: the default action with an empty mask.
    let (mut action, mut previous): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: two owned structures; the handler is async-signal-safe (see the module).
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous) } {
        0 => Ok(previous),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
    }
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo to a handler that was installed with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &SLOTS {
        let start = slot.start.load(Ordering::Acquire);
        let length = slot.length.load(Ordering::Acquire);
        if address < start || address - start >= length {
            continue;
        }
        slot.dead.store(true, Ordering::Release);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the range is a BAR's mapping, which its guard keeps in place and which nothing
        // refers to but by volatile access.
        let mapped = unsafe { libc::mmap(start as *mut _, length, protection, flags, -1, 0) };
        if mapped != libc::MAP_FAILED {
            return;
        }
    }
    // Not ours: the instruction runs again and faults again, under the handler of before.
    // SAFETY: an all-zero sigaction is the default action, which ends the process.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    let previous = PREVIOUS.get().and_then(|previous| previous.as_ref().ok()).unwrap_or(&default);
    // SAFETY: a structure that the kernel filled in, or the default action.
    unsafe { libc::sigaction(signal, previous, std::ptr::null_mut()) };
}
