//! What a controller says of itself, checked and cut to what can be used.

use std::time::Duration;

use super::prp::MAX_TRANSFER;
use super::quirks::Quirks;
use crate::spec::identify::{IdentifyController, IdentifyNvmController, ascii};
use crate::spec::register::Capabilities;
use crate::units::ByteCount;

/// Asynchronous Event Requests that are kept outstanding at most.
const MAX_EVENT_REQUESTS: u8 = 4;
/// The shortest and the longest time that a shutdown is given, whatever the controller says.
const SHUTDOWN_LIMITS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(120));

/// A controller, as it was identified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerIdentity {
    /// Serial number.
    pub serial: String,
    /// Model.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// Name of its subsystem; empty for an old controller.
    pub subsystem_nqn: String,
    /// Its number in the subsystem (CNTLID).
    pub controller_id: u16,
    /// PCI vendor.
    pub vendor: u16,
    /// Version of the specification: major, minor, tertiary.
    pub version: (u16, u8, u8),
    /// Largest transfer of one command.
    pub max_transfer: ByteCount,
    /// Entries of the largest I/O queue.
    pub max_queue_entries: u32,
    /// I/O queue pairs that it grants.
    pub max_queue_pairs: u16,
    /// Whether it has a volatile write cache that is switched on.
    pub volatile_write_cache: bool,
    /// Whether it has Write Zeroes.
    pub write_zeroes: bool,
    /// Whether it has Dataset Management.
    pub dataset_management: bool,
    /// Abort commands that it takes at once.
    pub abort_limit: u16,
    /// Its delays before a retry (CRDT1 to CRDT3), in units of 100 ms.
    pub retry_delays: [u16; 3],
    /// Largest Write Zeroes in bytes, if it is stated, and whether it is stated.
    pub(crate) write_zeroes_limit: Option<u64>,
    /// Ranges of a Dataset Management command; 256 if nothing is stated.
    pub(crate) discard_ranges: usize,
    /// Blocks of one such range, and of all, as far as it is stated.
    pub(crate) discard_blocks: (Option<u32>, Option<u64>),
    /// Whether long transfers are described by SGLs instead of PRP lists.
    pub sgl: bool,
    /// Whether doorbells are rung in memory where it does not listen (Doorbell Buffer Config).
    pub shadow_doorbells: bool,
    /// Whether queue pairs can have interrupts of their own.
    pub queue_interrupts: bool,
    /// The longest that it stands still to activate firmware, if it says so (MTFA).
    pub(crate) firmware_activation: Option<Duration>,
    pub(crate) quirks: Quirks,
    pub(crate) event_requests: u8,
    pub(crate) supported_events: u32,
    pub(crate) shutdown_limit: Duration,
}

impl ControllerIdentity {
    /// Reads Identify Controller. What other commands tell is filled in later.
    pub(crate) fn new(
        identify: &IdentifyController,
        cap: Capabilities,
        version: u32,
        quirks: Quirks,
    ) -> Self {
        let entry = Duration::from_micros(identify.entry_latency.get().into());
        Self {
            serial: ascii(&identify.serial),
            model: ascii(&identify.model),
            firmware: ascii(&identify.firmware),
            subsystem_nqn: ascii(&identify.subsystem_nqn),
            controller_id: identify.controller_id.get(),
            vendor: identify.vendor.get(),
            version: ((version >> 16) as u16, (version >> 8) as u8, version as u8),
            max_transfer: power_of_two_limit(identify.max_transfer, cap)
                .map_or(MAX_TRANSFER, |limit| ByteCount(limit.min(MAX_TRANSFER.get()))),
            max_queue_entries: quirks.cut_queue(cap.max_queue_entries()),
            max_queue_pairs: 0,
            volatile_write_cache: identify.volatile_write_cache & IdentifyController::VWC_PRESENT
                != 0,
            write_zeroes: identify.supports(IdentifyController::ONCS_WRITE_ZEROES)
                && !quirks.write_zeroes_fails,
            dataset_management: identify.supports(IdentifyController::ONCS_DATASET_MANAGEMENT),
            abort_limit: u16::from(identify.abort_limit) + 1,
            retry_delays: identify.retry_delays.map(zerocopy::little_endian::U16::get),
            write_zeroes_limit: None,
            discard_ranges: crate::spec::command::MAX_DSM_RANGES,
            discard_blocks: (None, None),
            sgl: matches!(identify.sgl_support.get() & IdentifyController::SGLS_SUPPORTED, 1 | 2)
                && !quirks.sgl_fails,
            shadow_doorbells: identify.admin_commands.get()
                & IdentifyController::OACS_DOORBELL_BUFFER
                != 0,
            queue_interrupts: !quirks.one_vector,
            firmware_activation: match identify.firmware_activation_time.get() {
                0 => None,
                units => Some(Duration::from_millis(u64::from(units) * 100)),
            },
            quirks,
            event_requests: identify.async_event_limit.saturating_add(1).min(MAX_EVENT_REQUESTS),
            supported_events: identify.async_events.get(),
            shutdown_limit: entry.clamp(SHUTDOWN_LIMITS.0, SHUTDOWN_LIMITS.1),
        }
    }

    /// Adds the limits of the NVM command set.
    pub(crate) fn add_limits(&mut self, identify: &IdentifyNvmController, cap: Capabilities) {
        self.write_zeroes_limit = power_of_two_limit(identify.write_zeroes_limit, cap);
        if identify.dsm_ranges != 0 {
            self.discard_ranges = usize::from(identify.dsm_ranges);
        }
        let stated = |value: u64| (value != 0).then_some(value);
        let range = identify.dsm_range_blocks.get();
        self.discard_blocks = ((range != 0).then_some(range), stated(identify.dsm_blocks.get()));
    }
}

/// `2^exponent` pages in bytes; `None` for 0, no limit, and for what is beyond 64 bits.
fn power_of_two_limit(exponent: u8, cap: Capabilities) -> Option<u64> {
    match exponent {
        0 => None,
        exponent => 1_u64.checked_shl(cap.min_page_shift().saturating_add(exponent.into())),
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    #[test]
    fn any_page_is_read_and_limits_are_kept() {
        let cap = Capabilities::emulated(1024, 1);
        for byte in [0, 1, 0x7f, 0xff] {
            let page = IdentifyController::read_from_bytes(&[byte; 4096]).unwrap();
            let mut identity = ControllerIdentity::new(&page, cap, u32::MAX, Quirks::default());
            assert!(identity.max_transfer >= ByteCount(4096));
            assert!(identity.max_transfer <= MAX_TRANSFER);
            assert!((1..=MAX_EVENT_REQUESTS).contains(&identity.event_requests));
            assert!(identity.shutdown_limit <= SHUTDOWN_LIMITS.1);
            let page = IdentifyNvmController::read_from_bytes(&[byte; 4096]).unwrap();
            identity.add_limits(&page, cap);
            assert!(identity.discard_ranges >= 1);
        }
        assert_eq!(power_of_two_limit(5, cap), Some(128 << 10));
        assert_eq!(power_of_two_limit(52, cap), None);
    }
}
