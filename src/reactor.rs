//! The reactor: one thread, one io_uring, local tasks, an inbox, timers.
