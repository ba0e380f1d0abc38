//! The admin queue: commands one at a time, event requests and aborts beside them.

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::{info, warn};

use super::controller::{BUSY, Settings, Shared};
use super::error::{CommandFailure, NvmeError, RejectReason, ResetCause};
use super::identity::ControllerIdentity;
use super::link::{Link, LinkState};
use super::namespace::Namespace;
use super::queue_pair::{Completion, Parts, QueuePair, Target, milliseconds};
use super::quirks::Quirks;
use super::rings::Doorbells;
use super::shadow::{Bell, ShadowPages};
use crate::hw::dma::{DmaArena, DmaBuffer, PAGE};
use crate::hw::transport::Transport;
use crate::reactor::clock::Instant;
use crate::spec::command::{AdminOpcode, IdentifyKind, SUBMISSION_ENTRY_SIZE, SubmissionEntry};
use crate::spec::log::{AsyncEvent, LogPage};
use crate::spec::register::{self, Capabilities, ControllerStatus};
use crate::units::{ByteCount, Iova, NamespaceId, QueueId};

/// Entries of the admin queue: event requests, aborts and one command fit with room to spare.
const ADMIN_ENTRIES: u16 = 32;
/// So many submission entries fill a page.
const PAGE_OF_ENTRIES: u16 = (PAGE / SUBMISSION_ENTRY_SIZE) as u16;
/// Aborts that are outstanding at most, whatever the controller allows.
const MAX_ABORTS: u16 = 4;
/// Tokens of the admin queue below these are commands that are waited for.
const EVENT_REQUEST: u64 = u64::MAX;
const ABORT: u64 = u64::MAX - 1;

/// An I/O queue pair as the controller's side remembers it.
pub(crate) struct Queue {
    pub(crate) id: QueueId,
    pub(crate) link: Arc<Link>,
    pub(crate) entries: u16,
    pub(crate) vector: Option<u16>,
    /// Device addresses of the submission and the completion ring.
    pub(crate) addresses: (Iova, Iova),
}

/// What is known of a controller, and the way to it.
pub(crate) struct Core {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) arena: DmaArena,
    pub(crate) settings: Settings,
    pub(crate) shared: Arc<Shared>,
    pub(crate) quirks: Quirks,
    pub(crate) capabilities: Capabilities,
    pub(crate) version: u32,
    /// Doorbells in memory, once the controller was seen to have them.
    pub(crate) shadow: Option<Arc<ShadowPages>>,
    /// Made in bring-up, kept through resets.
    pub(crate) admin: Option<(QueuePair, Arc<Link>)>,
    pub(crate) identity: Option<ControllerIdentity>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) queues: Vec<Queue>,
    /// Why a reset is due.
    pub(crate) trouble: Option<ResetCause>,
    /// Whether the controller was seen to be disabled and was not enabled since.
    pub(crate) quiet: bool,
    /// Events that were reported and not yet handled; no more than requests were outstanding.
    pub(crate) events: VecDeque<AsyncEvent>,
    /// When resets began, the latest last.
    pub(crate) resets: VecDeque<Instant>,
    answer: Option<Completion>,
    next_token: u64,
    aborts: u16,
    next_health: Instant,
}

impl Core {
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        arena: DmaArena,
        settings: Settings,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            quirks: Quirks::of(transport.identity()),
            transport,
            arena,
            settings,
            shared,
            capabilities: Capabilities(0),
            version: 0,
            shadow: None,
            admin: None,
            identity: None,
            namespaces: Vec::new(),
            queues: Vec::new(),
            trouble: None,
            quiet: false,
            events: VecDeque::new(),
            resets: VecDeque::new(),
            answer: None,
            next_token: 0,
            aborts: 0,
            next_health: Instant::default(),
        }
    }

    pub(crate) fn status(&self) -> ControllerStatus {
        ControllerStatus(self.transport.read32(register::CSTS))
    }

    /// The doorbells of queue pair `id`.
    pub(crate) fn doorbells(&self, id: QueueId) -> Result<Doorbells, NvmeError> {
        let stride = self.capabilities.doorbell_stride();
        let outside = NvmeError::Unsupported { what: "its doorbells lie outside its registers" };
        let offsets = register::submission_doorbell(id.get(), stride)
            .zip(register::completion_doorbell(id.get(), stride));
        let (submission, completion) = offsets.ok_or(outside)?;
        let bell = |offset| {
            let register = self.transport.doorbell(offset).map_err(|source| {
                NvmeError::Transport { operation: "mapping a doorbell", source }
            })?;
            let bell = Bell::new(register);
            Ok(match &self.shadow {
                // The admin queue has none.
                Some(pages) if id != QueueId(0) => {
                    bell.shadowed(pages, offset - register::DOORBELLS)
                }
                _ => bell,
            })
        };
        Ok(Doorbells { submission: bell(submission)?, completion: bell(completion)? })
    }

    /// Entries of the admin queue.
    pub(crate) fn admin_entries(&self) -> u16 {
        if self.quirks.page_of_admin_entries { PAGE_OF_ENTRIES } else { ADMIN_ENTRIES }
    }

    /// Tells the controller of doorbells in memory, if it has any use for them. It forgets them
    /// when it is disabled.
    pub(crate) async fn configure_shadow_doorbells(&mut self) -> Result<(), NvmeError> {
        if let Some(pages) = &self.shadow {
            pages.set_active(false);
        }
        if !self.identity.as_ref().is_some_and(|identity| identity.shadow_doorbells) {
            return Ok(());
        }
        if self.shadow.is_none() {
            self.shadow = ShadowPages::new(&self.arena).map(Arc::new);
        }
        let Some(pages) = self.shadow.clone() else {
            info!(name = self.transport.name(), "no DMA memory left for shadow doorbells");
            return Ok(());
        };
        let (shadow, events) = pages.addresses();
        let told = self.execute(SubmissionEntry::doorbell_buffers(shadow, events), None).await;
        match told {
            Ok(_) => pages.set_active(true),
            Err(NvmeError::Command { status, .. }) => {
                info!(name = self.transport.name(), %status, "it refuses shadow doorbells");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Makes the admin queue's memory, once. Returns its ring addresses.
    pub(crate) fn admin_queue(&mut self) -> Result<(Iova, Iova), NvmeError> {
        if self.admin.is_none() {
            let link = Arc::new(Link::new());
            let parts = Parts {
                id: QueueId(0),
                entries: self.admin_entries(),
                arena: &self.arena,
                doorbells: self.doorbells(QueueId(0))?,
                link: Arc::clone(&link),
                target: Target::admin(),
            };
            let pair = QueuePair::new(parts).ok_or(NvmeError::NoMemory {
                what: "the admin queue",
                bytes: ByteCount(4 * PAGE as u64),
            })?;
            self.admin = Some((pair, link));
        }
        let Some((pair, _)) = &self.admin else { unreachable!("the admin queue was just made") };
        Ok(pair.ring_addresses())
    }

    /// A page for a command's data.
    pub(crate) fn page(&self) -> Result<DmaBuffer, NvmeError> {
        let bytes = ByteCount(PAGE as u64);
        self.arena
            .allocate_zeroed(PAGE)
            .ok_or(NvmeError::NoMemory { what: "an admin command", bytes })
    }

    /// Looks after everything that happens by itself: admin completions, wishes of queue pairs to
    /// abort, the controller's health. Sets `trouble` if a reset is due.
    pub(crate) fn turn(&mut self) {
        let now = self.shared.now();
        let Some((admin, link)) = &mut self.admin else { return };
        admin.ring();
        let (events, aborts, answer) = (&mut self.events, &mut self.aborts, &mut self.answer);
        let awaited = self.next_token;
        admin.poll(now, &mut |completion: Completion| match completion.token {
            EVENT_REQUEST => match completion.result {
                Ok(dword) => events.push_back(AsyncEvent::from_dword(dword)),
                Err(CommandFailure::Status(status)) => {
                    info!(%status, "NVMe controller refuses an event request");
                }
                Err(CommandFailure::Reset | CommandFailure::Gone) => {}
            },
            ABORT => *aborts = aborts.saturating_sub(1),
            token if token == awaited => *answer = Some(completion),
            // Of a command that was given up: a reset was due.
            _ => {}
        });
        if link.take_abort().is_some() || link.wants_reset() {
            self.trouble.get_or_insert(ResetCause::AdminTimeout);
        }
        self.look_after_queues();
        if now >= self.next_health {
            self.next_health = now.after(self.settings.health_interval);
            self.check_health();
        }
    }

    pub(crate) fn check_health(&mut self) {
        let status = self.status();
        if status.gone() {
            self.trouble.get_or_insert(ResetCause::Gone);
        } else if status.fatal() || status.subsystem_reset_occurred() || !status.ready() {
            self.trouble.get_or_insert(ResetCause::Fatal);
        }
    }

    /// Aborts what queue pairs want aborted, as far as the controller's limit allows.
    fn look_after_queues(&mut self) {
        let limit = self.identity.as_ref().map_or(1, |identity| identity.abort_limit);
        for index in 0..self.queues.len() {
            let queue = &self.queues[index];
            if queue.link.state() != LinkState::Live {
                continue;
            }
            if queue.link.wants_reset() {
                self.trouble.get_or_insert(ResetCause::QueueTimeout(queue.id));
            }
            if self.aborts >= limit.min(MAX_ABORTS) {
                continue;
            }
            let Some(command) = queue.link.take_abort() else { continue };
            let id = queue.id;
            warn!(queue = id.get(), command = command.get(), "NVMe command is late; aborting it");
            // The cause may be plain to see.
            self.next_health = self.shared.now();
            if self.submit(SubmissionEntry::abort(id, command), ABORT) {
                self.aborts += 1;
            }
        }
    }

    /// Puts event requests in flight, as many as the controller takes.
    pub(crate) fn request_events(&mut self, count: u8) {
        for _ in 0..count {
            // Without a deadline: it completes when something happens.
            let entry = SubmissionEntry::async_event_request();
            if let Some((admin, _)) = &mut self.admin {
                let _full_is_impossible = admin.submit(entry, None, EVENT_REQUEST, 0);
            }
        }
    }

    fn submit(&mut self, entry: SubmissionEntry, token: u64) -> bool {
        let patience = milliseconds(self.settings.admin_timeout);
        let Some((admin, _)) = &mut self.admin else { return false };
        let submitted = admin.submit(entry, None, token, patience).is_ok();
        admin.ring();
        submitted
    }

    /// Executes an admin command and waits for its completion. `buffer` is its data, at most a
    /// page; it comes back with the completion.
    pub(crate) async fn execute(
        &mut self,
        entry: SubmissionEntry,
        buffer: Option<DmaBuffer>,
    ) -> Result<(u32, Option<DmaBuffer>), NvmeError> {
        let command = entry.admin_opcode();
        let patience = milliseconds(self.settings.admin_timeout);
        self.next_token += 1;
        self.answer = None;
        let token = self.next_token;
        let Some((admin, _)) = &mut self.admin else {
            return Err(NvmeError::Interrupted { command });
        };
        admin.submit(entry, buffer, token, patience).map_err(|rejected| match rejected.reason {
            RejectReason::Gone => NvmeError::Gone,
            _ => NvmeError::Interrupted { command },
        })?;
        loop {
            self.turn();
            if let Some(completion) = self.answer.take() {
                return answer(command, completion);
            }
            if let Some(cause) = self.trouble {
                return Err(self.interrupted(command, cause));
            }
            self.shared.pause(BUSY).await;
        }
    }

    fn interrupted(&self, command: AdminOpcode, cause: ResetCause) -> NvmeError {
        match cause {
            ResetCause::Fatal => NvmeError::Fatal { during: "an admin command is executed" },
            ResetCause::Gone => NvmeError::Gone,
            ResetCause::AdminTimeout => {
                NvmeError::NoAnswer { command, limit: self.settings.admin_timeout }
            }
            ResetCause::QueueTimeout(_)
            | ResetCause::FirmwareTimeout
            | ResetCause::Requested
            | ResetCause::BusError => NvmeError::Interrupted { command },
        }
    }

    /// Identify: the page that comes back.
    pub(crate) async fn identify(
        &mut self,
        kind: IdentifyKind,
        namespace: NamespaceId,
    ) -> Result<DmaBuffer, NvmeError> {
        let page = self.page()?;
        let entry = SubmissionEntry::identify(kind, namespace);
        self.data_of(entry, page).await
    }

    /// Get Log Page of the controller: the first `length` bytes, at most a page.
    pub(crate) async fn log_page(
        &mut self,
        page: LogPage,
        length: usize,
    ) -> Result<DmaBuffer, NvmeError> {
        let mut buffer = self.page()?;
        drop(buffer.split_off(length.min(PAGE)));
        let length = u32::try_from(buffer.len()).unwrap_or(0);
        let all = crate::spec::command::ALL_NAMESPACES;
        self.data_of(SubmissionEntry::get_log_page(page, all, length), buffer).await
    }

    async fn data_of(
        &mut self,
        entry: SubmissionEntry,
        buffer: DmaBuffer,
    ) -> Result<DmaBuffer, NvmeError> {
        let command = entry.admin_opcode();
        let (_, buffer) = self.execute(entry, Some(buffer)).await?;
        buffer.ok_or(NvmeError::Interrupted { command })
    }

    /// After the controller was disabled: ends what was in flight and starts the admin queue over.
    pub(crate) fn restart_admin_queue(&mut self) {
        let now = self.shared.now();
        if let Some((admin, link)) = &mut self.admin {
            link.stop();
            link.change(LinkState::Stopping, LinkState::Stopped);
            admin.poll(now, &mut |_| {});
            link.change(LinkState::Surrendered, LinkState::Creating);
            link.start();
        }
        self.answer = None;
        self.events.clear();
        self.aborts = 0;
        self.next_health = now.after(self.settings.health_interval);
    }
}

fn answer(
    command: AdminOpcode,
    completion: Completion,
) -> Result<(u32, Option<DmaBuffer>), NvmeError> {
    match completion.result {
        Ok(dword) => Ok((dword, completion.buffer)),
        Err(CommandFailure::Status(status)) => Err(NvmeError::Command { command, status }),
        Err(CommandFailure::Reset) => Err(NvmeError::Interrupted { command }),
        Err(CommandFailure::Gone) => Err(NvmeError::Gone),
    }
}
