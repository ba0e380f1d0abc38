//! The life of a controller: bring-up, service, shutdown.

use std::sync::Arc;

use tracing::{error, info, warn};
use zerocopy::FromBytes;

use super::admin::{Core, Queue};
use super::controller::{BUSY, Event, IDLE, Request};
use super::error::{NvmeError, ResetCause};
use super::identity::ControllerIdentity;
use super::link::{Link, LinkState};
use super::namespace::Namespace;
use super::queue_pair::{MAX_ENTRIES, Parts, QueuePair, QueueSettings, Target};
use crate::hw::transport::Notice;
use crate::spec::command::{Feature, IdentifyKind, QueueCounts, SubmissionEntry};
use crate::spec::identify::{
    IdentifyController, IdentifyIndependentNamespace, IdentifyNamespace, IdentifyNvmController,
};
use crate::spec::log::{
    AsyncEvent, AsyncEventType, LogPage, NOTIFY_FIRMWARE_ACTIVATION, NOTIFY_NAMESPACE_ATTRIBUTES,
    NOTIFY_SMART, NamespaceList, SmartLog,
};
use crate::spec::register::VERSION_2_0;
use crate::units::{ByteCount, NamespaceId, QueueId};

/// Namespaces that are looked at; a controller with more has the rest ignored, and a log line.
const MAX_NAMESPACES: usize = 128;
/// Bytes of an error log entry: reading one clears an error event.
const ERROR_LOG_LENGTH: usize = 64;
/// Bytes of the firmware slot log: reading it clears the event of an activation.
const FIRMWARE_LOG_LENGTH: usize = 512;
/// Bytes of the SMART log.
const SMART_LOG_LENGTH: usize = size_of::<SmartLog>();

/// A queue's priority class.
const MEDIUM: u8 = 2;

/// Why service ended.
enum Pause {
    Trouble(ResetCause),
    Shutdown,
    /// The system wants the controller back.
    Release,
}

/// Everything that is done for a controller, until it is shut down or given up.
pub(crate) async fn live_and_end(mut core: Core) {
    let outcome = core.live().await;
    for queue in &core.queues {
        queue.link.end(core.quiet);
        if core.quiet {
            queue.link.reclaim_remains();
        }
    }
    if let Some(pages) = core.shadow.as_ref().filter(|_| core.quiet) {
        pages.release();
    }
    if let Some((_, link)) = &core.admin {
        link.end(core.quiet);
    }
    match outcome {
        Ok(()) => core.shared.emit(Event::ShutDown),
        Err(error) => {
            error!(name = core.transport.name(), %error, "the NVMe controller is given up");
            core.shared.emit(Event::Failed(error));
        }
    }
}

impl Core {
    async fn live(&mut self) -> Result<(), NvmeError> {
        self.read_capabilities()?;
        if let Err(error) = self.bring_up().await {
            warn!(name = self.transport.name(), %error, "bringing the NVMe controller up again");
            self.trouble = None;
            self.transport.reset().map_err(|_| error)?;
            self.bring_up().await?;
        }
        let (namespaces, refused) = self.find_namespaces().await?;
        self.namespaces.clone_from(&namespaces);
        let identity = Box::new(self.identity().clone());
        self.shared.emit(Event::Ready { identity, namespaces, refused });
        loop {
            match self.serve().await {
                Pause::Trouble(cause) => self.recover(cause).await?,
                Pause::Shutdown => return self.shut_down().await,
                Pause::Release => {
                    // As long as it is still there, its cache is written out. Commands in flight
                    // end unanswered; who waits for them is told that the controller is gone.
                    if let Err(error) = self.shut_down().await {
                        warn!(name = self.transport.name(), %error, "not shut down in order");
                    }
                    return Err(NvmeError::ReleaseWanted);
                }
            }
        }
    }

    async fn bring_up(&mut self) -> Result<(), NvmeError> {
        self.force_disable().await?;
        self.bring_up_disabled().await
    }

    /// From a disabled controller to one that takes commands and reports events.
    pub(crate) async fn bring_up_disabled(&mut self) -> Result<(), NvmeError> {
        self.restart_admin_queue();
        self.enable().await?;
        self.identify_controller().await?;
        self.set_queue_count().await?;
        self.read_cache_state().await?;
        self.configure_shadow_doorbells().await?;
        self.configure_events().await
    }

    pub(crate) fn identity(&self) -> &ControllerIdentity {
        let Some(identity) = &self.identity else {
            unreachable!("bring-up ends with an identity, and nothing takes it away")
        };
        identity
    }

    fn identity_mut(&mut self) -> &mut ControllerIdentity {
        let Some(identity) = &mut self.identity else {
            unreachable!("bring-up ends with an identity, and nothing takes it away")
        };
        identity
    }

    async fn identify_controller(&mut self) -> Result<(), NvmeError> {
        let page = self.identify(IdentifyKind::CONTROLLER, NamespaceId(0)).await?;
        let Ok(identify) = IdentifyController::ref_from_bytes(&page) else {
            unreachable!("a page is as long as Identify Controller")
        };
        let cap = self.capabilities;
        let mut identity = ControllerIdentity::new(identify, cap, self.version, self.quirks);
        if self.version >= VERSION_2_0 && !self.quirks.old_identify {
            let limits = self.identify(IdentifyKind::COMMAND_SET_CONTROLLER, NamespaceId(0)).await;
            if let Some(page) = optional(limits)?
                && let Ok(limits) = IdentifyNvmController::ref_from_bytes(&page)
            {
                identity.add_limits(limits, cap);
            }
        }
        self.identity = Some(identity);
        Ok(())
    }

    async fn set_queue_count(&mut self) -> Result<(), NvmeError> {
        let wanted = u32::from(self.settings.queue_pairs.max(1));
        let counts = QueueCounts { submission: wanted, completion: wanted };
        let entry = SubmissionEntry::set_features(Feature::NUMBER_OF_QUEUES, counts.to_dword());
        let (dword, _) = self.execute(entry, None).await?;
        let granted = QueueCounts::from_dword(dword);
        let pairs = granted.submission.min(granted.completion).min(wanted);
        self.identity_mut().max_queue_pairs = u16::try_from(pairs).unwrap_or(u16::MAX);
        Ok(())
    }

    /// A volatile cache that is switched off is none.
    async fn read_cache_state(&mut self) -> Result<(), NvmeError> {
        if !self.identity().volatile_write_cache {
            return Ok(());
        }
        let entry = SubmissionEntry::get_features(Feature::VOLATILE_WRITE_CACHE);
        let value = self.execute(entry, None).await;
        if let Some((dword, _)) = optional(value)? {
            self.identity_mut().volatile_write_cache = dword & 1 == 1;
        }
        Ok(())
    }

    async fn configure_events(&mut self) -> Result<(), NvmeError> {
        let notices = NOTIFY_NAMESPACE_ATTRIBUTES | NOTIFY_FIRMWARE_ACTIVATION;
        let wanted = NOTIFY_SMART | notices & self.identity().supported_events;
        let entry = SubmissionEntry::set_features(Feature::ASYNC_EVENT_CONFIGURATION, wanted);
        let configured = self.execute(entry, None).await;
        if optional(configured)?.is_none() {
            info!("NVMe controller keeps its own choice of events");
        }
        self.request_events(self.identity().event_requests);
        Ok(())
    }

    /// The namespaces that can be used, and why the others cannot.
    async fn find_namespaces(&mut self) -> Result<(Vec<Namespace>, Vec<NvmeError>), NvmeError> {
        let list = match self.quirks.old_identify {
            true => None,
            false => {
                optional(self.identify(IdentifyKind::ACTIVE_NAMESPACES, NamespaceId(0)).await)?
            }
        };
        let mut ids = match list {
            Some(page) => match NamespaceList::ref_from_bytes(&page) {
                Ok(list) => list.iter().collect(),
                Err(_) => unreachable!("a page is as long as a namespace list"),
            },
            // Before version 1.1 there is no list.
            None => vec![NamespaceId(1)],
        };
        if ids.len() > MAX_NAMESPACES {
            warn!(found = ids.len(), used = MAX_NAMESPACES, "too many NVMe namespaces");
            ids.truncate(MAX_NAMESPACES);
        }
        let (mut namespaces, mut refused) = (Vec::new(), Vec::new());
        for id in ids {
            match self.identify_namespace(id).await {
                Ok(namespace) => namespaces.push(namespace),
                Err(reason @ (NvmeError::Namespace { .. } | NvmeError::Command { .. })) => {
                    refused.push(reason);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((namespaces, refused))
    }

    async fn identify_namespace(&mut self, id: NamespaceId) -> Result<Namespace, NvmeError> {
        let mut cached = true;
        if self.version >= VERSION_2_0 && !self.quirks.old_identify {
            let page = self.identify(IdentifyKind::INDEPENDENT_NAMESPACE, id).await;
            if let Some(page) = optional(page)?
                && let Ok(identify) = IdentifyIndependentNamespace::ref_from_bytes(&page)
            {
                let never = IdentifyIndependentNamespace::NSFEAT_NO_VOLATILE_CACHE;
                cached = identify.features & never == 0;
            }
        }
        let page = self.identify(IdentifyKind::NAMESPACE, id).await?;
        let Ok(identify) = IdentifyNamespace::ref_from_bytes(&page) else {
            unreachable!("a page is as long as Identify Namespace")
        };
        Namespace::new(id, identify, self.identity(), cached)
            .map_err(|reason| NvmeError::Namespace { id, reason })
    }

    /// Reads the namespaces again and tells what changed.
    pub(crate) async fn rescan(&mut self) -> Result<(), NvmeError> {
        let (namespaces, mut refused) = self.find_namespaces().await?;
        for old in &self.namespaces {
            if namespaces.iter().all(|new| new.id != old.id) {
                let ours = |error: &NvmeError| matches!(error, NvmeError::Namespace { id, .. } if *id == old.id);
                let error = refused.iter().position(ours).map(|at| refused.swap_remove(at));
                self.shared.emit(Event::NamespaceLost { id: old.id, error });
            }
        }
        for new in &namespaces {
            if !self.namespaces.contains(new) {
                self.shared.emit(Event::NamespaceChanged(Box::new(new.clone())));
            }
        }
        self.namespaces = namespaces;
        Ok(())
    }

    /// Does what comes up, one thing after the other, until there is trouble or a shutdown.
    async fn serve(&mut self) -> Pause {
        loop {
            self.turn();
            match self.transport.notice() {
                Some(Notice::ReleaseWanted) => return Pause::Release,
                Some(Notice::BusError) => return Pause::Trouble(ResetCause::BusError),
                None => {}
            }
            let mut pace = BUSY;
            let step = if let Some(cause) = self.trouble.take() {
                return Pause::Trouble(cause);
            } else if let Some(event) = self.events.pop_front() {
                self.handle_event(event).await
            } else if let Some(index) = self.queue_to_create() {
                self.create_again(index).await
            } else if let Some(index) = self.abandoned_queue() {
                let queue = self.queues.swap_remove(index);
                let deleted = self.delete_queues(queue.id).await;
                match &deleted {
                    Ok(()) => queue.link.reclaim_remains(),
                    // A reset is due, and finds it.
                    Err(_) if self.trouble.is_some() => self.queues.push(queue),
                    Err(_) => {}
                }
                deleted
            } else {
                match self.shared.next_request() {
                    Some(Request::Shutdown) => return Pause::Shutdown,
                    Some(Request::Reset) => return Pause::Trouble(ResetCause::Requested),
                    Some(request) => self.handle_request(request).await,
                    None => {
                        pace = IDLE;
                        Ok(())
                    }
                }
            };
            if let Err(error) = step {
                info!(name = self.transport.name(), %error, "an NVMe admin step failed");
            }
            self.shared.pause(pace).await;
        }
    }

    /// Reads the log that an event points at, which clears the event, and asks for the next.
    async fn handle_event(&mut self, event: AsyncEvent) -> Result<(), NvmeError> {
        let changed = AsyncEvent::NAMESPACE_ATTRIBUTES_CHANGED;
        let outcome = match (event.event_type, event.information) {
            (AsyncEventType::NOTICE, information) if information == changed => {
                let list = size_of::<NamespaceList>();
                match self.log_page(LogPage::CHANGED_NAMESPACES, list).await {
                    Ok(_) => self.rescan().await,
                    Err(error) => Err(error),
                }
            }
            (AsyncEventType::NOTICE, AsyncEvent::FIRMWARE_ACTIVATION) => {
                self.shared.emit(Event::Notice(event));
                self.await_firmware().await;
                if self.trouble.is_some() {
                    return Ok(());
                }
                self.log_page(LogPage::FIRMWARE, FIRMWARE_LOG_LENGTH).await.map(drop)
            }
            (AsyncEventType::SMART, _) => self.report_health().await,
            (AsyncEventType::ERROR, _) => {
                let log = self.log_page(LogPage::ERROR, ERROR_LOG_LENGTH).await;
                self.shared.emit(Event::Notice(event));
                log.map(drop)
            }
            _ => {
                self.shared.emit(Event::Notice(event));
                Ok(())
            }
        };
        if self.trouble.is_none() {
            self.request_events(1);
        }
        outcome
    }

    async fn report_health(&mut self) -> Result<(), NvmeError> {
        let log = self.log_page(LogPage::SMART, SMART_LOG_LENGTH).await?;
        if let Ok(smart) = SmartLog::ref_from_bytes(&log) {
            let critical_warning = smart.critical_warning;
            warn!(name = self.transport.name(), critical_warning, "NVMe health warning");
            let percentage_used = smart.percentage_used;
            self.shared.emit(Event::Health { critical_warning, percentage_used });
        }
        Ok(())
    }

    async fn handle_request(&mut self, request: Request) -> Result<(), NvmeError> {
        match request {
            Request::CreateQueuePair { settings, tag } => {
                let result = self.create_queue_pair(&settings).await.map(Box::new);
                self.shared.emit(Event::QueuePairCreated { tag, result });
            }
            Request::DeleteQueuePair { pair, tag } => {
                let result = self.delete_queue_pair(*pair).await;
                self.shared.emit(Event::QueuePairDeleted { tag, result });
            }
            Request::ReadLog { page, length, tag } => {
                let result = self.log_page(page, length).await.map(|log| log.to_vec());
                self.shared.emit(Event::Log { tag, result });
            }
            Request::Reset | Request::Shutdown => unreachable!("these end service"),
        }
        Ok(())
    }

    async fn create_queue_pair(&mut self, wanted: &QueueSettings) -> Result<QueuePair, NvmeError> {
        let limit = self.identity().max_queue_pairs;
        let unused = |id: &QueueId| self.queues.iter().all(|queue| queue.id != *id);
        let id = (1..=limit).map(QueueId).find(unused).ok_or(NvmeError::NoQueueLeft { limit })?;
        let namespace = self.namespaces.iter().find(|known| known.id == wanted.namespace);
        let inactive = super::namespace::NamespaceRefused::Inactive;
        let refused = NvmeError::Namespace { id: wanted.namespace, reason: inactive };
        let target = Target::io(namespace.ok_or(refused)?, self.identity(), wanted);
        let largest = self.identity().max_queue_entries.min(MAX_ENTRIES.into());
        let entries = wanted.entries.clamp(2, u16::try_from(largest).unwrap_or(MAX_ENTRIES));
        let link = Arc::new(Link::new());
        let parts = Parts {
            id,
            entries,
            arena: &self.arena,
            doorbells: self.doorbells(id)?,
            link: Arc::clone(&link),
            target,
        };
        let bytes = ByteCount(u64::from(entries) * 128);
        let pair =
            QueuePair::new(parts).ok_or(NvmeError::NoMemory { what: "a queue pair", bytes })?;
        let addresses = pair.ring_addresses();
        let queue = Queue { id, link, entries, vector: wanted.vector, addresses };
        match self.create_queues(&queue).await {
            Ok(()) => {
                self.queues.push(queue);
                Ok(pair)
            }
            Err(error @ NvmeError::Command { .. }) => {
                // The controller refused, so it does not use the memory.
                pair.retire();
                Err(error)
            }
            // Nobody knows: a reset will end it, and the memory that the dropped pair leaves.
            Err(error) => {
                self.queues.push(queue);
                Err(error)
            }
        }
    }

    /// Create I/O Completion Queue and Create I/O Submission Queue.
    async fn create_queues(&mut self, queue: &Queue) -> Result<(), NvmeError> {
        let (submissions, completions) = queue.addresses;
        let (id, entries) = (queue.id, queue.entries);
        let vector = queue.vector;
        let create = SubmissionEntry::create_completion_queue(id, entries, completions, vector);
        self.execute(create, None).await?;
        let mut create = SubmissionEntry::create_submission_queue(id, entries, submissions, id);
        if self.quirks.medium_priority {
            create = create.with_queue_priority(MEDIUM);
        }
        let created = self.execute(create, None).await;
        if let Err(NvmeError::Command { .. }) = &created {
            self.execute(SubmissionEntry::delete_completion_queue(id), None).await?;
        }
        created.map(drop)
    }

    /// Delete I/O Submission Queue and Delete I/O Completion Queue. After success the controller
    /// uses no memory of theirs and none of their commands'.
    async fn delete_queues(&mut self, id: QueueId) -> Result<(), NvmeError> {
        self.execute(SubmissionEntry::delete_submission_queue(id), None).await?;
        self.execute(SubmissionEntry::delete_completion_queue(id), None).await?;
        Ok(())
    }

    async fn delete_queue_pair(&mut self, pair: QueuePair) -> Result<(), NvmeError> {
        let id = pair.id();
        let Some(index) = self.queues.iter().position(|queue| queue.id == id) else {
            // It was lost in a reset; the drop frees it.
            return Ok(());
        };
        let link = Arc::clone(&self.queues[index].link);
        if link.state() == LinkState::Live {
            // A failure drops the pair with its link live; its queue is then found abandoned.
            self.delete_queues(id).await?;
            self.queues.retain(|queue| queue.id != id);
            pair.retire();
        } else {
            // The controller does not know the queue: it was disabled since.
            self.queues.retain(|queue| queue.id != id);
            drop(pair);
        }
        Ok(())
    }

    /// A queue whose pair has surrendered after a reset.
    fn queue_to_create(&self) -> Option<usize> {
        self.queues.iter().position(|queue| queue.link.state() == LinkState::Surrendered)
    }

    /// A queue whose pair was dropped, and that the controller still knows.
    fn abandoned_queue(&mut self) -> Option<usize> {
        self.bury_queues();
        self.queues.iter().position(|queue| {
            queue.link.state() == LinkState::Live && Arc::strong_count(&queue.link) == 1
        })
    }

    /// Forgets queues whose pairs were dropped and that the controller does not know any more.
    pub(crate) fn bury_queues(&mut self) {
        self.queues.retain(|queue| {
            let dropped = Arc::strong_count(&queue.link) == 1;
            if dropped && queue.link.close() {
                queue.link.reclaim_remains();
            }
            queue.link.state() != LinkState::Dead
        });
    }

    async fn create_again(&mut self, index: usize) -> Result<(), NvmeError> {
        let known = &self.queues[index];
        if !known.link.change(LinkState::Surrendered, LinkState::Creating) {
            // The pair was dropped just now.
            return Ok(());
        }
        let queue = Queue { link: Arc::clone(&known.link), ..*known };
        match self.create_queues(&queue).await {
            Ok(()) => queue.link.start(),
            Err(error @ NvmeError::Command { .. }) => {
                // The controller refused, so the pair's memory is its own.
                queue.link.end(true);
                self.queues.swap_remove(index);
                self.shared.emit(Event::QueuePairLost { id: queue.id, error });
            }
            // There is trouble; the reset that follows finds the queue in `Creating`.
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The answer to a command that a controller may refuse: `None` if it did.
fn optional<T>(answer: Result<T, NvmeError>) -> Result<Option<T>, NvmeError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(NvmeError::Command { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
