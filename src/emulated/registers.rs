//! Registers: what the host reads and writes in BAR 0, and the life of the controller that hangs
//! on them: enable, disable, shutdown, reset, power (Base 3.1.4, 3.5, 3.6, 3.7).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::core::Core;
use super::features::Features;
use super::prp;
use super::queue::{CompletionQueue, SubmissionQueue};
use crate::spec::command::SUBMISSION_ENTRY_SIZE;
use crate::spec::completion::COMPLETION_ENTRY_SIZE;
use crate::spec::register::{
    ACQ, AQA, ASQ, AdminQueueAttributes, CAP, CC, CSTS, Capabilities, Configuration,
    ControllerStatus, GONE32, INTMC, INTMS, NSSR, NSSR_RESET, Shutdown, ShutdownStatus, VS,
};
use crate::units::{Iova, QueueId};

/// The registers that keep what the host wrote.
#[derive(Debug, Default)]
pub(super) struct Registers {
    configuration: Configuration,
    admin: AdminQueueAttributes,
    admin_submission: u64,
    admin_completion: u64,
    interrupt_mask: u32,
    /// A change of CSTS that takes its time, and when it is done.
    change: Option<(Duration, u32)>,
    /// When the activation of firmware ends.
    paused_until: Option<Duration>,
    shut_down: bool,
}

impl Registers {
    /// When CSTS changes by itself.
    pub(super) fn change_due(&self) -> Option<Duration> {
        let change = self.change.map(|(due, _)| due);
        change.into_iter().chain(self.paused_until).filter(|due| *due != Duration::MAX).min()
    }

    /// Whether the host announced a shutdown and did not enable the controller again since.
    pub(super) fn is_shut_down(&self) -> bool {
        self.shut_down
    }

    /// Interrupt vectors that are masked, by bit.
    pub(super) fn interrupt_mask(&self) -> u32 {
        self.interrupt_mask
    }

    /// What the host configured.
    pub(super) fn configuration(&self) -> Configuration {
        self.configuration
    }
}

impl Core {
    fn capabilities(&self) -> u64 {
        let slowest = self.settings.ready_delay.max(self.settings.disable_delay);
        let units = slowest.as_millis().div_ceil(500).clamp(1, 255);
        Capabilities::emulated(self.settings.queue_entries, u8::try_from(units).unwrap_or(255))
            .with_subsystem_reset()
            .0
    }

    /// Reads the 32-bit register at `offset`.
    pub(super) fn read32(&self, offset: u32) -> u32 {
        if self.is_gone() {
            return GONE32;
        }
        let low = |value: u64| value as u32;
        let high = |value: u64| (value >> 32) as u32;
        let registers = &self.registers;
        match offset {
            CAP => low(self.capabilities()),
            0x04 => high(self.capabilities()),
            VS => self.settings.version,
            INTMS | INTMC => registers.interrupt_mask,
            CC => registers.configuration.0,
            CSTS => self.ports.status.load(Ordering::Acquire),
            AQA => registers.admin.0,
            ASQ => low(registers.admin_submission),
            0x2c => high(registers.admin_submission),
            ACQ => low(registers.admin_completion),
            0x34 => high(registers.admin_completion),
            // Not there, or (doorbells) not to be read.
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset`.
    pub(super) fn write32(&mut self, offset: u32, value: u32) {
        if self.is_gone() {
            return;
        }
        let with_low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let with_high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        let registers = &mut self.registers;
        match offset {
            INTMS => registers.interrupt_mask |= value,
            INTMC => {
                registers.interrupt_mask &= !value;
                self.interrupt();
            }
            CC => self.configure(Configuration(value)),
            CSTS if value & ControllerStatus::SUBSYSTEM_RESET_OCCURRED != 0 => {
                let bit = ControllerStatus::SUBSYSTEM_RESET_OCCURRED;
                self.ports.status.fetch_and(!bit, Ordering::Release);
            }
            NSSR if value == NSSR_RESET => {
                self.power_on();
                let bit = ControllerStatus::SUBSYSTEM_RESET_OCCURRED;
                self.ports.status.store(bit, Ordering::Release);
            }
            AQA => registers.admin = AdminQueueAttributes(value),
            ASQ => registers.admin_submission = with_low(registers.admin_submission),
            0x2c => registers.admin_submission = with_high(registers.admin_submission),
            ACQ => registers.admin_completion = with_low(registers.admin_completion),
            0x34 => registers.admin_completion = with_high(registers.admin_completion),
            _ => {}
        }
    }

    fn configure(&mut self, new: Configuration) {
        let old = std::mem::replace(&mut self.registers.configuration, new);
        match (old.enabled(), new.enabled()) {
            (false, true) => self.enable(),
            (true, false) => self.disable(),
            _ => {}
        }
        let announced = matches!(new.shutdown(), Shutdown::Normal | Shutdown::Abrupt);
        if announced && old.shutdown() == Shutdown::None {
            self.shut_down(new.shutdown());
        }
    }

    fn enable(&mut self) {
        self.forget_host();
        self.registers.shut_down = false;
        self.features = Features::new(&self.settings);
        let kept =
            self.ports.status.load(Ordering::Relaxed) & ControllerStatus::SUBSYSTEM_RESET_OCCURRED;
        self.ports.status.store(kept, Ordering::Release);
        if !self.create_admin_queues() {
            self.fail();
            return;
        }
        self.change_status(self.settings.ready_delay, kept | ControllerStatus::READY);
    }

    /// False if what the host configured cannot work.
    fn create_admin_queues(&mut self) -> bool {
        let Registers { configuration, admin, .. } = self.registers;
        let (submission, completion) =
            (self.registers.admin_submission, self.registers.admin_completion);
        let submission_entries = u32::from(admin.submission_entries());
        let completion_entries = u32::from(admin.completion_entries());
        let fits = |at: u64, entries: u32, size: usize| {
            let length = entries as usize * size;
            let window = self.window.as_ref();
            at.is_multiple_of(prp::PAGE as u64)
                && window.is_some_and(|(window, _)| window.contains(Iova(at), length))
        };
        let valid = configuration.command_set() == 0
            && configuration.page_shift() == prp::PAGE.trailing_zeros()
            && configuration.arbitration() == 0
            && submission_entries >= 2
            && completion_entries >= 2
            && fits(submission, submission_entries, SUBMISSION_ENTRY_SIZE)
            && fits(completion, completion_entries, COMPLETION_ENTRY_SIZE);
        if !valid {
            return false;
        }
        let mut queue = CompletionQueue::new(Iova(completion), completion_entries, Some(0));
        queue.users = 1;
        self.completion[0] = Some(queue);
        let queue = SubmissionQueue::new(Iova(submission), submission_entries, QueueId(0));
        self.submission[0] = Some(queue);
        true
    }

    /// Commands that were not answered never will be; the cache stays as it is.
    fn disable(&mut self) {
        self.forget_host();
        self.registers.shut_down = false;
        self.registers.interrupt_mask = 0;
        let status = self.ports.status.load(Ordering::Relaxed);
        let kept = status & ControllerStatus::SUBSYSTEM_RESET_OCCURRED;
        self.registers.change = None;
        self.registers.paused_until = None;
        let gone = ControllerStatus::FATAL | ControllerStatus::PAUSED;
        self.ports.status.fetch_and(!gone, Ordering::Release);
        self.change_status(self.settings.disable_delay, kept);
    }

    fn shut_down(&mut self, how: Shutdown) {
        if how == Shutdown::Normal {
            // The host gets no answer to this; one that cares has flushed before.
            let _ = self.media.write_back();
        }
        self.registers.shut_down = true;
        let status = ControllerStatus(self.ports.status.load(Ordering::Relaxed));
        let status = status.with_shutdown(ShutdownStatus::Complete);
        self.ports.status.store(status.0, Ordering::Release);
    }

    fn change_status(&mut self, delay: Duration, status: u32) {
        if delay.is_zero() {
            self.ports.status.store(status, Ordering::Release);
        } else {
            self.registers.change = Some((self.clock.saturating_add(delay), status));
        }
    }

    /// Carries out the changes of CSTS whose time has come.
    pub(super) fn pass_time(&mut self) {
        if let Some((due, status)) = self.registers.change
            && due <= self.clock
            && due != Duration::MAX
            && !self.is_gone()
        {
            self.registers.change = None;
            self.ports.status.store(status, Ordering::Release);
        }
        if self.registers.paused_until.is_some_and(|end| end <= self.clock && end != Duration::MAX)
            && !self.is_gone()
        {
            self.registers.paused_until = None;
            self.ports.status.fetch_and(!ControllerStatus::PAUSED, Ordering::Release);
        }
    }

    /// Stands still for a while, and says so.
    pub(super) fn pause(&mut self, takes: Duration) {
        if self.is_running() {
            self.registers.paused_until = Some(self.clock.saturating_add(takes));
            self.ports.status.fetch_or(ControllerStatus::PAUSED, Ordering::Release);
        }
    }

    /// The function is reset: registers are as after power on, the cache stays as it is.
    pub(super) fn power_on(&mut self) {
        self.forget_host();
        self.registers = Registers::default();
        self.features = Features::new(&self.settings);
        self.ports.status.store(0, Ordering::Release);
    }

    /// The power goes and comes back. What was announced as a shutdown is none that a drive
    /// complains about.
    pub(super) fn power_cycle(&mut self) {
        self.counters.power_cycles += 1;
        self.counters.unsafe_shutdowns += u64::from(!self.registers.shut_down);
        self.power_on();
    }
}
