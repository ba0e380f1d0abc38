//! The on-disk format against images that SPDK wrote.
