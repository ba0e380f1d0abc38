//! One conformance suite for every block driver.
