//! Reservations against the specification's tables, an obvious model, SPDK's files, and crashes.

mod files;
