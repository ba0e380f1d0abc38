//! Disabling, enabling, resetting and shutting down, by the registers.
//!
//! Recovery from trouble, in this order:
//! 1. Queue pairs are told to stop; all memory stays the device's.
//! 2. The controller is disabled (CC.EN) and must say so (CSTS.RDY); if it does not, its function
//!    is reset. From here on all memory is ours: queue pairs end their commands and surrender.
//! 3. The controller is brought up as at first, namespaces are read again.
//! 4. Each queue pair that has surrendered is created anew; the others follow as they do.
//!
//! A controller that needs this too often is given up.

use std::time::Duration;

use tracing::{info, warn};

use super::admin::Core;
use super::controller::{Event, IDLE, REGISTER};
use super::error::{NvmeError, ResetCause};
use super::link::LinkState;
use crate::spec::register::{
    self, AdminQueueAttributes, Capabilities, Configuration, ControllerStatus, Shutdown,
    ShutdownStatus,
};

/// The shortest time that enabling and disabling are given: some controllers state 0.
const READY_FLOOR: Duration = Duration::from_secs(2);
/// How long a controller that is slow to be disabled is left alone; Linux's figure.
const SLOW_DISABLE: Duration = Duration::from_millis(2300);
/// Resets in [`RESET_WINDOW`] after which a controller is given up.
const MAX_RESETS: usize = 5;
const RESET_WINDOW: Duration = Duration::from_secs(600);

impl Core {
    fn configuration(&self) -> Configuration {
        Configuration(self.transport.read32(register::CC))
    }

    fn configure(&self, value: Configuration) {
        self.transport.write32(register::CC, value.0);
    }

    /// How long enabling and disabling may take (CAP.TO, CRTO.CRWMT).
    fn ready_limit(&self) -> Duration {
        let mut limit = self.capabilities.timeout_ms();
        if self.capabilities.ready_modes() {
            let crto = self.transport.read32(register::CRTO);
            limit = limit.max(register::ready_with_media_ms(crto));
        }
        Duration::from_millis(limit.into()).max(READY_FLOOR)
    }

    /// Reads what the controller can do, and checks that it is enough.
    pub(crate) fn read_capabilities(&mut self) -> Result<(), NvmeError> {
        if let Some(what) = self.quirks.unusable {
            return Err(NvmeError::Unsupported { what });
        }
        if self.quirks.any() {
            info!(name = self.transport.name(), quirks = ?self.quirks, "known NVMe controller");
        }
        let cap = self.transport.read64(register::CAP);
        self.version = self.transport.read32(register::VS);
        if cap == register::GONE64 || self.status().gone() {
            return Err(NvmeError::Gone);
        }
        self.capabilities = Capabilities(cap);
        let unsupported = |what| Err(NvmeError::Unsupported { what });
        if self.capabilities.command_sets() & register::CSS_NVM == 0 {
            return unsupported("it lacks the NVM command set");
        }
        if self.capabilities.min_page_shift() > 12 {
            return unsupported("it lacks memory pages of 4 KiB");
        }
        if self.capabilities.max_queue_entries() < 2 {
            return unsupported("its queues have a single entry");
        }
        Ok(())
    }

    async fn wait_ready(&mut self, ready: bool) -> Result<(), NvmeError> {
        let limit = self.ready_limit();
        let deadline = self.shared.now().after(limit);
        loop {
            let status = self.status();
            if status.gone() {
                return Err(NvmeError::Gone);
            }
            if ready && status.fatal() {
                return Err(NvmeError::Fatal { during: "it is being enabled" });
            }
            if status.ready() == ready {
                return Ok(());
            }
            if self.shared.now() >= deadline {
                return Err(NvmeError::ReadyTimeout { ready, limit });
            }
            self.shared.pause(REGISTER).await;
        }
    }

    /// Clears CC.EN and waits until the controller says that it has stopped.
    async fn disable(&mut self) -> Result<(), NvmeError> {
        let configuration = self.configuration();
        let status = self.status();
        if configuration.enabled() && !status.gone() && !status.ready() && !status.fatal() {
            // To disable a controller that is being enabled is undefined (Base 3.1.4.5): wait for
            // that first. If it never gets ready, there is nothing left to lose.
            if let Err(error) = self.wait_ready(true).await {
                info!(%error, "NVMe controller was left half enabled");
            }
        }
        self.configure(configuration.with_enabled(false).with_shutdown(Shutdown::None));
        if self.quirks.slow_to_disable && configuration.enabled() {
            let end = self.shared.now().after(SLOW_DISABLE);
            while self.shared.now() < end {
                self.shared.pause(IDLE).await;
            }
        }
        self.wait_ready(false).await?;
        self.quiet = true;
        if self.status().subsystem_reset_occurred() {
            // Cleared by writing 1 (Base 3.1.4.6), or it would be taken for news later.
            self.transport.write32(register::CSTS, ControllerStatus::SUBSYSTEM_RESET_OCCURRED);
        }
        Ok(())
    }

    /// Disables the controller, by a reset of its function if it does not obey.
    pub(crate) async fn force_disable(&mut self) -> Result<(), NvmeError> {
        let Err(error) = self.disable().await else { return Ok(()) };
        warn!(name = self.transport.name(), %error, "resetting the NVMe controller's function");
        if let Err(source) = self.transport.reset() {
            info!(%source, "the function cannot be reset");
            return Err(error);
        }
        // The transport's promise: no memory is touched any more, whatever the registers say.
        self.quiet = true;
        self.disable().await
    }

    /// Points the disabled controller at the admin queue and enables it.
    pub(crate) async fn enable(&mut self) -> Result<(), NvmeError> {
        let (submissions, completions) = self.admin_queue()?;
        let entries = self.admin_entries();
        let attributes = AdminQueueAttributes::new(entries, entries);
        self.transport.write32(register::AQA, attributes.0);
        self.transport.write64(register::ASQ, submissions.get());
        self.transport.write64(register::ACQ, completions.get());
        self.quiet = false;
        self.configure(Configuration::ENABLE);
        self.wait_ready(true).await
    }

    /// Steps 1 to 3 of the recovery; step 4 is part of ordinary service.
    pub(crate) async fn recover(&mut self, cause: ResetCause) -> Result<(), NvmeError> {
        warn!(name = self.transport.name(), %cause, "resetting the NVMe controller");
        self.stop_queues();
        // Nothing is wrong with a controller whose reset was only asked for: it can be told to
        // write out its cache first, as for a shutdown.
        let cache_written = cause == ResetCause::Requested && self.shut_down().await.is_ok();
        self.shared.emit(Event::ResetStarted { cause, cache_written });
        self.count_reset()?;
        let mut outcome = self.restart().await;
        if outcome.is_err() {
            self.count_reset()?;
            outcome = self.restart().await;
        }
        outcome?;
        self.rescan().await?;
        self.shared.emit(Event::ResetDone);
        info!(name = self.transport.name(), "the NVMe controller is back");
        Ok(())
    }

    pub(crate) fn stop_queues(&self) {
        for queue in &self.queues {
            queue.link.stop();
        }
    }

    /// The controller activates new firmware (Base 3.11): it stands still, and says so by CSTS.PP,
    /// for no longer than it said it would (MTFA). Queue pairs take no commands meanwhile, and those
    /// in flight are not late.
    pub(crate) async fn await_firmware(&mut self) {
        let limit = self.identity().firmware_activation.unwrap_or(self.settings.admin_timeout);
        info!(name = self.transport.name(), ?limit, "NVMe controller activates firmware");
        for queue in &self.queues {
            queue.link.pause();
        }
        let deadline = self.shared.now().after(limit);
        loop {
            let status = self.status();
            if status.gone() || status.fatal() {
                self.check_health();
                break;
            }
            if !status.paused() {
                break;
            }
            if self.shared.now() >= deadline {
                self.trouble.get_or_insert(ResetCause::FirmwareTimeout);
                break;
            }
            self.shared.pause(REGISTER).await;
        }
        for queue in &self.queues {
            queue.link.resume();
        }
    }

    async fn restart(&mut self) -> Result<(), NvmeError> {
        self.force_disable().await?;
        self.trouble = None;
        for queue in &self.queues {
            queue.link.change(LinkState::Stopping, LinkState::Stopped);
        }
        self.bury_queues();
        self.bring_up_disabled().await
    }

    fn count_reset(&mut self) -> Result<(), NvmeError> {
        let now = self.shared.now();
        while self.resets.front().is_some_and(|&reset| now.since(reset) > RESET_WINDOW) {
            self.resets.pop_front();
        }
        if self.resets.len() >= MAX_RESETS {
            let resets = u32::try_from(self.resets.len()).unwrap_or(u32::MAX);
            return Err(NvmeError::TooManyResets { resets, within: RESET_WINDOW });
        }
        self.resets.push_back(now);
        Ok(())
    }

    /// Tells the controller to write out its cache and its state, and stops it (Base 3.6.1).
    /// Data that was not flushed is durable on return.
    pub(crate) async fn shut_down(&mut self) -> Result<(), NvmeError> {
        self.stop_queues();
        let limit = match &self.identity {
            Some(identity) => identity.shutdown_limit,
            None => READY_FLOOR,
        };
        self.configure(self.configuration().with_shutdown(Shutdown::Normal));
        let deadline = self.shared.now().after(limit);
        loop {
            let status = self.status();
            if status.gone() {
                return Err(NvmeError::Gone);
            }
            if status.shutdown() == ShutdownStatus::Complete {
                break;
            }
            if status.fatal() {
                return Err(NvmeError::Fatal { during: "it is being shut down" });
            }
            if self.shared.now() >= deadline {
                return Err(NvmeError::ShutdownTimeout { limit });
            }
            self.shared.pause(REGISTER).await;
        }
        self.disable().await
    }
}
