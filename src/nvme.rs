//! The NVMe driver core: passive, without threads, clocks or unsafe code.
