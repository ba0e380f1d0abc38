//! What is known of controllers that do not do what they say, by who made them.
//!
//! An entry costs something (time, or a feature), so it names the controller as narrowly as it is
//! known and says why it is there. What a driver that stays away from it need not know is left out:
//! power states (never touched, so no drive falls into one that it does not wake from), message
//! signalled interrupts other than MSI-X, metadata, SGLs for Dataset Management, PRP lists that
//! must not cross 512 bytes (they are aligned to their size), wide register accesses (all are of 32
//! bits).

use crate::hw::pci::PciIdentity;

/// What is to be done differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quirks {
    /// CSTS.RDY must not be read for a while after CC.EN was cleared.
    pub(crate) slow_to_disable: bool,
    /// Only one command is taken at a time: more than one end in resets and lost data.
    pub(crate) one_command: bool,
    /// The admin queue must fill whole pages.
    pub(crate) page_of_admin_entries: bool,
    /// Write Zeroes is announced, and fails or harms.
    pub(crate) write_zeroes_fails: bool,
    /// SGLs are announced, and fail.
    pub(crate) sgl_fails: bool,
    /// Identify knows the controller and namespaces, and takes anything else for one of the two.
    pub(crate) old_identify: bool,
    /// NGUID and EUI64 are the same on several drives, or change.
    pub(crate) identifiers_repeat: bool,
    /// Submission queues are starved unless they are created with medium priority.
    pub(crate) medium_priority: bool,
    /// Only the first interrupt vector works.
    pub(crate) one_vector: bool,
    /// Why it cannot be driven at all.
    pub(crate) unusable: Option<&'static str>,
}

const NONE: Quirks = Quirks {
    slow_to_disable: false,
    one_command: false,
    page_of_admin_entries: false,
    write_zeroes_fails: false,
    sgl_fails: false,
    old_identify: false,
    identifiers_repeat: false,
    medium_priority: false,
    one_vector: false,
    unusable: None,
};
const SLOW: Quirks = Quirks { slow_to_disable: true, ..NONE };
const NO_WRITE_ZEROES: Quirks = Quirks { write_zeroes_fails: true, ..NONE };
const SHARED_IDENTIFIERS: Quirks = Quirks { identifiers_repeat: true, ..NONE };

/// Which controllers an entry is for.
struct Entry {
    vendor: u16,
    /// All of the vendor's if `None`.
    device: Option<u16>,
    /// Vendor and device of the subsystem; of any if `None`.
    subsystem: Option<(u16, u16)>,
    quirks: Quirks,
}

const fn of(vendor: u16, device: u16, quirks: Quirks) -> Entry {
    Entry { vendor, device: Some(device), subsystem: None, quirks }
}

/// All entries that name a controller count.
const TABLE: &[Entry] = &[
    // QEMU before version 5.2 gave its drive an identity of Intel's; its Identify had two kinds, its
    // Write Zeroes was none, and no two of its drives have different identifiers.
    of(
        0x8086,
        0x5845,
        Quirks { old_identify: true, write_zeroes_fails: true, ..SHARED_IDENTIFIERS },
    ),
    // QEMU since then: identifiers are made from the namespace's number unless somebody sets them.
    of(0x1b36, 0x0010, SHARED_IDENTIFIERS),
    // Seagate Nytro, HGST and WDC SN200, Memblaze PBlaze4, Samsung PM1725, PM1725a, PM1735: a read of
    // CSTS soon after a disable hangs them, or the bus.
    of(0x1bb1, 0x0100, SLOW),
    of(0x1c58, 0x0003, SLOW),
    of(0x1c58, 0x0023, SLOW),
    of(0x1c5f, 0x0540, SLOW),
    of(0x144d, 0xa821, SLOW),
    of(0x144d, 0xa826, SLOW),
    of(0x144d, 0xa822, Quirks { write_zeroes_fails: true, ..SLOW }),
    // Intel 600p: queues of the default priority starve, Write Zeroes stalls the drive.
    of(0x8086, 0xf1a5, Quirks { medium_priority: true, ..NO_WRITE_ZEROES }),
    // SK Hynix PC400, Sandisk Skyhawk, SPCC, Samsung MZALQ, UMIS RPJTJ: Write Zeroes fails, though it
    // is announced.
    of(0x1c5c, 0x1504, NO_WRITE_ZEROES),
    of(0x15b7, 0x2001, NO_WRITE_ZEROES),
    of(0x1d97, 0x2263, NO_WRITE_ZEROES),
    of(0x144d, 0xa809, NO_WRITE_ZEROES),
    of(0x1cc4, 0x6302, NO_WRITE_ZEROES),
    of(0x1cc4, 0x6303, NO_WRITE_ZEROES),
    // Samsung PM9B1: that, and an EUI64 that changes with the power state.
    of(0x144d, 0xa80b, Quirks { write_zeroes_fails: true, ..SHARED_IDENTIFIERS }),
    // MAXIO's controllers and drives with them (Netac): the same identifiers on all of them.
    of(0x1e4b, 0x1001, SHARED_IDENTIFIERS),
    of(0x1e4b, 0x1002, SHARED_IDENTIFIERS),
    of(0x1e4b, 0x1202, SHARED_IDENTIFIERS),
    of(0x1f40, 0x1202, SHARED_IDENTIFIERS),
    of(0x1f40, 0x5236, SHARED_IDENTIFIERS),
    // Huawei's drives: SGLs are announced, and fail.
    Entry {
        vendor: 0x19e5,
        device: None,
        subsystem: None,
        quirks: Quirks { sgl_fails: true, ..NONE },
    },
    // Microsoft's virtual controller takes only admin queues that end with a page.
    of(0x1414, 0xb111, Quirks { page_of_admin_entries: true, ..NONE }),
    // Apple, MacBook8,1: resets itself and loses data with more than one command at once.
    of(0x106b, 0x2001, Quirks { one_command: true, one_vector: true, ..NONE }),
    // Apple T2: another protocol under NVMe's name.
    of(
        0x106b,
        0x2005,
        Quirks {
            unusable: Some("its commands have 128 bytes and share identifiers across queues"),
            ..NONE
        },
    ),
];

impl Quirks {
    /// What is known of `controller`.
    pub(crate) fn of(controller: Option<PciIdentity>) -> Self {
        let Some(pci) = controller else { return NONE };
        let fits = |entry: &&Entry| {
            entry.vendor == pci.vendor
                && entry.device.is_none_or(|device| device == pci.device)
                && entry.subsystem.is_none_or(|subsystem| subsystem == pci.subsystem)
        };
        TABLE.iter().filter(fits).fold(NONE, |known, entry| known.and(entry.quirks))
    }

    fn and(self, other: Self) -> Self {
        Self {
            slow_to_disable: self.slow_to_disable | other.slow_to_disable,
            one_command: self.one_command | other.one_command,
            page_of_admin_entries: self.page_of_admin_entries | other.page_of_admin_entries,
            write_zeroes_fails: self.write_zeroes_fails | other.write_zeroes_fails,
            sgl_fails: self.sgl_fails | other.sgl_fails,
            old_identify: self.old_identify | other.old_identify,
            identifiers_repeat: self.identifiers_repeat | other.identifiers_repeat,
            medium_priority: self.medium_priority | other.medium_priority,
            one_vector: self.one_vector | other.one_vector,
            unusable: self.unusable.or(other.unusable),
        }
    }

    /// Entries of the largest queue, of `entries` that the controller allows. A queue of two holds
    /// one command.
    pub(crate) fn cut_queue(self, entries: u32) -> u32 {
        if self.one_command { entries.min(2) } else { entries }
    }

    /// Whether there is anything.
    pub(crate) fn any(self) -> bool {
        self != NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pci(vendor: u16, device: u16) -> Option<PciIdentity> {
        Some(PciIdentity { vendor, device, class: 0x01_08_02, subsystem: (0x1af4, 0x1100) })
    }

    #[test]
    fn a_controller_has_its_own_quirks_and_no_others() {
        assert!(!Quirks::of(None).any());
        assert!(!Quirks::of(pci(0x144d, 0xa808)).any());
        assert!(!Quirks::of(pci(0xa822, 0x144d)).any());
        let pm1725a = Quirks::of(pci(0x144d, 0xa822));
        assert!(pm1725a.slow_to_disable && pm1725a.write_zeroes_fails && !pm1725a.sgl_fails);
        assert_eq!(Quirks::of(pci(0x1b36, 0x0010)), SHARED_IDENTIFIERS);
        let apple = Quirks::of(pci(0x106b, 0x2001));
        assert_eq!((apple.cut_queue(1024), NONE.cut_queue(1024)), (2, 1024));
        assert!(Quirks::of(pci(0x106b, 0x2005)).unusable.is_some());
        assert!(Quirks::of(pci(0x19e5, 0x0123)).sgl_fails, "all of the vendor's");
    }

    #[test]
    fn every_entry_says_something_and_no_controller_is_named_twice() {
        for (index, entry) in TABLE.iter().enumerate() {
            let name = (entry.vendor, entry.device, entry.subsystem);
            assert!(entry.quirks.any(), "{name:?}");
            let others = TABLE[index + 1..].iter();
            let mut same =
                others.filter(|other| (other.vendor, other.device, other.subsystem) == name);
            assert!(same.next().is_none(), "{name:?}");
        }
    }
}
