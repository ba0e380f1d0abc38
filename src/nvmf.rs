//! The NVMe-oF target over TCP: volumes as namespaces of subsystems that other machines use.

pub mod pdu;
