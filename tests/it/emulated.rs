//! The emulated controller by itself.
