//! Event descriptors: how a thread or an interrupt wakes a sleeping ring.

#![expect(unsafe_code, reason = "eventfd, its read and its write are system calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A Linux eventfd, non-blocking.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new event with nothing signalled.
    ///
    /// # Errors
    /// The system's: no descriptors left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain flags; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and is owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Signals the event. Signals add up until they are consumed.
    pub fn signal(&self) {
        let one = 1_u64;
        // SAFETY: eight bytes of an owned value. It can only fail when the counter is full,
        // in which case the event is signalled already.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Consumes all signals; true if there was one.
    pub fn consume(&self) -> bool {
        let mut count = 0_u64;
        // SAFETY: eight bytes of an owned value.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
        read == 8
    }

    /// Waits until signalled or until `timeout_ms` have passed; `None` waits for ever.
    pub fn wait(&self, timeout_ms: Option<u32>) {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = timeout_ms.map_or(-1, |ms| i32::try_from(ms).unwrap_or(i32::MAX));
        // SAFETY: one owned pollfd.
        unsafe { libc::poll(&raw mut poll, 1, timeout) };
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_add_up_and_are_consumed_once() {
        let event = EventFd::new().unwrap();
        assert!(!event.consume());
        event.signal();
        event.signal();
        event.wait(None);
        assert!(event.consume());
        assert!(!event.consume());
        event.wait(Some(0));
    }
}
