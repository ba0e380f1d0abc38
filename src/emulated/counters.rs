//! What an emulated controller counts.

/// Counts since the controller was made; resets and power cuts do not clear them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Admin commands carried out.
    pub admin: u64,
    /// Reads.
    pub reads: u64,
    /// Bytes that reads moved.
    pub bytes_read: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes that writes moved.
    pub bytes_written: u64,
    /// Writes and write zeroes that asked for force unit access.
    pub force_unit_access: u64,
    /// Flushes.
    pub flushes: u64,
    /// Write zeroes.
    pub write_zeroes: u64,
    /// Write zeroes that may deallocate, among them.
    pub deallocating_write_zeroes: u64,
    /// Commands whose data was described by an SGL.
    pub sgls: u64,
    /// Dataset management commands.
    pub dataset_managements: u64,
    /// Calls that made a file durable: what flushes and force unit access cost, shared by all
    /// commands of a batch.
    pub syncs: u64,
    /// Commands that were answered with a failure.
    pub failures: u64,
    /// Commands that a fault struck.
    pub faults: u64,
    /// Accesses to memory that was not mapped for the controller: always a driver's defect.
    pub outside_window: u64,
    /// Invalid values in doorbells: always a driver's defect.
    pub invalid_doorbells: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Times the power came on.
    pub power_cycles: u64,
    /// Times the power went without a shutdown notification.
    pub unsafe_shutdowns: u64,
}
