//! Volumes as files.
