//! Controller registers (Base 3.1): offsets in BAR 0, and accessors for their bits.

/// Controller Capabilities, 64 bits.
pub const CAP: u32 = 0x00;
/// Version.
pub const VS: u32 = 0x08;
/// Interrupt Mask Set; not used with MSI-X.
pub const INTMS: u32 = 0x0c;
/// Interrupt Mask Clear; not used with MSI-X.
pub const INTMC: u32 = 0x10;
/// Controller Configuration.
pub const CC: u32 = 0x14;
/// Controller Status.
pub const CSTS: u32 = 0x1c;
/// NVM Subsystem Reset.
pub const NSSR: u32 = 0x20;
/// Admin Queue Attributes.
pub const AQA: u32 = 0x24;
/// Admin Submission Queue Base Address, 64 bits.
pub const ASQ: u32 = 0x28;
/// Admin Completion Queue Base Address, 64 bits.
pub const ACQ: u32 = 0x30;
/// Controller Ready Timeouts.
pub const CRTO: u32 = 0x68;
/// The first doorbell.
pub const DOORBELLS: u32 = 0x1000;

/// What is written to [`NSSR`] to reset the subsystem: "NVMe".
pub const NSSR_RESET: u32 = 0x4e56_4d65;
/// Reads of a controller that is gone, 32 bits.
pub const GONE32: u32 = u32::MAX;
/// Reads of a controller that is gone, 64 bits.
pub const GONE64: u64 = u64::MAX;
/// Version 2.0.0 in [`VS`].
pub const VERSION_2_0: u32 = 0x0002_0000;
/// Version 1.4.0 in [`VS`].
pub const VERSION_1_4: u32 = 0x0001_0400;

/// Bit in [`Capabilities::command_sets`]: the NVM command set.
pub const CSS_NVM: u8 = 1;
/// Bit in [`Capabilities::command_sets`]: one or more I/O command sets.
pub const CSS_IO_COMMAND_SETS: u8 = 1 << 6;
/// Bit in [`Capabilities::command_sets`]: no I/O command set, only admin commands.
pub const CSS_ADMIN_ONLY: u8 = 1 << 7;

/// The register offset of submission queue `queue`'s tail doorbell, for a doorbell stride of
/// [`Capabilities::doorbell_stride`] bytes. `None` if it lies past 32 bits of BAR.
#[must_use]
pub const fn submission_doorbell(queue: u16, stride: u32) -> Option<u32> {
    doorbell(2 * queue as u32, stride)
}

/// The register offset of completion queue `queue`'s head doorbell; see [`submission_doorbell`].
#[must_use]
pub const fn completion_doorbell(queue: u16, stride: u32) -> Option<u32> {
    doorbell(2 * queue as u32 + 1, stride)
}

const fn doorbell(index: u32, stride: u32) -> Option<u32> {
    match index.checked_mul(stride) {
        Some(offset) => offset.checked_add(DOORBELLS),
        None => None,
    }
}

/// The value of [`CAP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    const fn field(self, shift: u32, bits: u32) -> u32 {
        ((self.0 >> shift) & ((1 << bits) - 1)) as u32
    }

    /// Entries of the largest I/O queue, 1 to 65 536 (MQES + 1). Less than 2 is illegal.
    #[must_use]
    pub const fn max_queue_entries(self) -> u32 {
        self.field(0, 16) + 1
    }

    /// Whether queues must be physically contiguous (CQR).
    #[must_use]
    pub const fn contiguous_queues(self) -> bool {
        self.field(16, 1) == 1
    }

    /// How long enabling or disabling may take, in milliseconds (TO). Some controllers report 0.
    #[must_use]
    pub const fn timeout_ms(self) -> u32 {
        self.field(24, 8) * 500
    }

    /// Bytes between two doorbells (4 << DSTRD).
    #[must_use]
    pub const fn doorbell_stride(self) -> u32 {
        4 << self.field(32, 4)
    }

    /// Whether a subsystem reset is supported (NSSRS).
    #[must_use]
    pub const fn subsystem_reset(self) -> bool {
        self.field(36, 1) == 1
    }

    /// The supported command sets (CSS): `CSS_*`.
    #[must_use]
    pub const fn command_sets(self) -> u8 {
        self.field(37, 8) as u8
    }

    /// log2 of the smallest memory page in bytes (12 + MPSMIN).
    #[must_use]
    pub const fn min_page_shift(self) -> u32 {
        12 + self.field(48, 4)
    }

    /// log2 of the largest memory page in bytes (12 + MPSMAX).
    #[must_use]
    pub const fn max_page_shift(self) -> u32 {
        12 + self.field(52, 4)
    }

    /// Whether [`CRTO`] is valid (CRMS is not 0).
    #[must_use]
    pub const fn ready_modes(self) -> bool {
        self.field(59, 2) != 0
    }

    /// A value for a controller in software: queues of up to `entries` entries, contiguous, the
    /// NVM command set, 4 KiB pages, a ready timeout in units of 500 ms, doorbells 4 bytes apart.
    #[must_use]
    pub const fn emulated(entries: u16, timeout_500ms: u8) -> Self {
        let mqes = entries.saturating_sub(1) as u64;
        Self(mqes | 1 << 16 | (timeout_500ms as u64) << 24 | (CSS_NVM as u64) << 37)
    }

    /// The same with bytes between doorbells set to `4 << exponent` (0 to 15).
    #[must_use]
    pub const fn with_doorbell_stride(self, exponent: u8) -> Self {
        Self(self.0 & !(0xf << 32) | ((exponent & 0xf) as u64) << 32)
    }

    /// The same with NVM subsystem reset supported.
    #[must_use]
    pub const fn with_subsystem_reset(self) -> Self {
        Self(self.0 | 1 << 36)
    }
}

/// What a host announces in CC.SHN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// No notification.
    None,
    /// Normal: the controller writes out its cache and its state.
    Normal,
    /// Abrupt: power will be lost soon.
    Abrupt,
    /// The reserved value.
    Reserved,
}

/// The value of [`CC`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Configuration(pub u32);

impl Configuration {
    /// Enabled with the NVM command set, 4 KiB pages, round robin, 64-byte submission and 16-byte
    /// completion entries.
    pub const ENABLE: Self = Self(1 | 6 << 16 | 4 << 20);

    const fn field(self, shift: u32, bits: u32) -> u32 {
        (self.0 >> shift) & ((1 << bits) - 1)
    }

    /// EN.
    #[must_use]
    pub const fn enabled(self) -> bool {
        self.0 & 1 == 1
    }

    /// The same with EN set or cleared.
    #[must_use]
    pub const fn with_enabled(self, enabled: bool) -> Self {
        Self(self.0 & !1 | enabled as u32)
    }

    /// CSS: 0 the NVM command set, 6 all I/O command sets, 7 admin only.
    #[must_use]
    pub const fn command_set(self) -> u32 {
        self.field(4, 3)
    }

    /// log2 of the memory page in bytes (12 + MPS).
    #[must_use]
    pub const fn page_shift(self) -> u32 {
        12 + self.field(7, 4)
    }

    /// AMS: 0 is round robin.
    #[must_use]
    pub const fn arbitration(self) -> u32 {
        self.field(11, 3)
    }

    /// SHN.
    #[must_use]
    pub const fn shutdown(self) -> Shutdown {
        match self.field(14, 2) {
            0 => Shutdown::None,
            1 => Shutdown::Normal,
            2 => Shutdown::Abrupt,
            _ => Shutdown::Reserved,
        }
    }

    /// The same with SHN set.
    #[must_use]
    pub const fn with_shutdown(self, shutdown: Shutdown) -> Self {
        let bits = match shutdown {
            Shutdown::None => 0,
            Shutdown::Normal => 1,
            Shutdown::Abrupt => 2,
            Shutdown::Reserved => 3,
        };
        Self(self.0 & !(3 << 14) | bits << 14)
    }

    /// log2 of an I/O submission queue entry's size (IOSQES); 6 for the NVM command set.
    #[must_use]
    pub const fn submission_entry_shift(self) -> u32 {
        self.field(16, 4)
    }

    /// log2 of an I/O completion queue entry's size (IOCQES); 4 for the NVM command set.
    #[must_use]
    pub const fn completion_entry_shift(self) -> u32 {
        self.field(20, 4)
    }
}

/// How far a shutdown has come (CSTS.SHST).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownStatus {
    /// Nothing was requested.
    Normal,
    /// In progress.
    Occurring,
    /// Done: power may be removed.
    Complete,
    /// The reserved value.
    Reserved,
}

/// The value of [`CSTS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControllerStatus(pub u32);

impl ControllerStatus {
    /// RDY.
    pub const READY: u32 = 1;
    /// CFS.
    pub const FATAL: u32 = 1 << 1;
    /// NSSRO, cleared by writing 1.
    pub const SUBSYSTEM_RESET_OCCURRED: u32 = 1 << 4;
    /// PP.
    pub const PAUSED: u32 = 1 << 5;

    /// Whether the controller is gone: all ones.
    #[must_use]
    pub const fn gone(self) -> bool {
        self.0 == GONE32
    }

    /// RDY; false of a controller that is gone.
    #[must_use]
    pub const fn ready(self) -> bool {
        !self.gone() && self.0 & Self::READY != 0
    }

    /// CFS, Controller Fatal Status.
    #[must_use]
    pub const fn fatal(self) -> bool {
        self.0 & Self::FATAL != 0
    }

    /// SHST.
    #[must_use]
    pub const fn shutdown(self) -> ShutdownStatus {
        match (self.0 >> 2) & 3 {
            0 => ShutdownStatus::Normal,
            1 => ShutdownStatus::Occurring,
            2 => ShutdownStatus::Complete,
            _ => ShutdownStatus::Reserved,
        }
    }

    /// The same with SHST set.
    #[must_use]
    pub const fn with_shutdown(self, status: ShutdownStatus) -> Self {
        let bits = match status {
            ShutdownStatus::Normal => 0,
            ShutdownStatus::Occurring => 1,
            ShutdownStatus::Complete => 2,
            ShutdownStatus::Reserved => 3,
        };
        Self(self.0 & !(3 << 2) | bits << 2)
    }

    /// Whether commands are not processed now, as while firmware is being activated (PP).
    #[must_use]
    pub const fn paused(self) -> bool {
        self.0 & Self::PAUSED != 0
    }

    /// NSSRO, whether a subsystem reset occurred.
    #[must_use]
    pub const fn subsystem_reset_occurred(self) -> bool {
        self.0 & Self::SUBSYSTEM_RESET_OCCURRED != 0
    }
}

/// The value of [`AQA`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdminQueueAttributes(pub u32);

impl AdminQueueAttributes {
    /// For queues of these many entries, 2 to 4096.
    #[must_use]
    pub const fn new(submission: u16, completion: u16) -> Self {
        let submission = submission.saturating_sub(1) as u32 & 0xfff;
        let completion = completion.saturating_sub(1) as u32 & 0xfff;
        Self(submission | completion << 16)
    }

    /// Entries of the admin submission queue (ASQS + 1).
    #[must_use]
    pub const fn submission_entries(self) -> u16 {
        (self.0 & 0xfff) as u16 + 1
    }

    /// Entries of the admin completion queue (ACQS + 1).
    #[must_use]
    pub const fn completion_entries(self) -> u16 {
        (self.0 >> 16 & 0xfff) as u16 + 1
    }
}

/// How long the controller may take to become ready with media, in milliseconds, from [`CRTO`]
/// (CRWMT).
#[must_use]
pub const fn ready_with_media_ms(crto: u32) -> u32 {
    (crto & 0xffff) * 500
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_follow_the_stride() {
        assert_eq!(submission_doorbell(0, 4), Some(0x1000));
        assert_eq!(completion_doorbell(0, 4), Some(0x1004));
        assert_eq!(submission_doorbell(3, 4), Some(0x1018));
        assert_eq!(completion_doorbell(1, 64), Some(0x1000 + 3 * 64));
        let widest = Capabilities(0).with_doorbell_stride(15).doorbell_stride();
        assert_eq!(widest, 4 << 15);
        assert_eq!(submission_doorbell(u16::MAX, widest), None);
    }

    #[test]
    fn capabilities_of_a_real_drive_are_read() {
        // A Samsung 980 Pro: MQES 16383, CQR, TO 40 (20 s), NVM command set, MPSMAX 0.
        let cap = Capabilities(0x0000_0030_2801_3fff);
        assert_eq!(cap.max_queue_entries(), 16_384);
        assert!(cap.contiguous_queues());
        assert_eq!(cap.timeout_ms(), 20_000);
        assert_eq!(cap.doorbell_stride(), 4);
        assert!(cap.subsystem_reset());
        assert_eq!(cap.command_sets() & CSS_NVM, CSS_NVM);
        assert_eq!(cap.min_page_shift(), 12);
    }

    #[test]
    fn configuration_and_status_bits() {
        let cc = Configuration::ENABLE.with_shutdown(Shutdown::Normal);
        assert_eq!(cc.0, 0x0046_4001);
        assert_eq!(cc.shutdown(), Shutdown::Normal);
        assert_eq!((cc.submission_entry_shift(), cc.completion_entry_shift()), (6, 4));
        assert!(!cc.with_enabled(false).enabled());
        let gone = ControllerStatus(GONE32);
        assert!(gone.gone() && !gone.ready());
        let done = ControllerStatus(1).with_shutdown(ShutdownStatus::Complete);
        assert_eq!((done.0, done.shutdown()), (0b1001, ShutdownStatus::Complete));
        let aqa = AdminQueueAttributes::new(32, 64);
        assert_eq!(aqa.0, 0x003f_001f);
        assert_eq!((aqa.submission_entries(), aqa.completion_entries()), (32, 64));
        assert_eq!(ready_with_media_ms(0xffff_0004), 2000);
    }
}
