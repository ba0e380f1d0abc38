//! The life of the daemon, in order.
