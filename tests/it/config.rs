//! The configuration file, accepted and refused.
