//! The device contract and its drivers.
