//! The driver core against the emulated controller, stepped.
