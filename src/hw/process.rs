//! Who this process is.

#![expect(unsafe_code, reason = "getuid and getgid are system calls")]

/// The user that files of this process belong to.
#[must_use]
pub fn user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// The group that files of this process belong to.
#[must_use]
pub fn group() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::getegid() }
}
