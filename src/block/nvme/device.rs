//! The shared part of a namespace, and the controller behind it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::channel::{ChannelHandle, NvmeChannel};
use crate::block::{BlockError, Discard, Geometry};
use crate::hw::dma::{DmaArena, MAX_BUFFER};
use crate::hw::event::EventFd;
use crate::hw::transport::Transport;
use crate::nvme::{
    Controller, ControllerIdentity, Event, Namespace, NvmeError, QueuePair, QueueSettings, Request,
    Settings,
};
use crate::reactor::{Instant, Poller, Reactor, Registration, Remote};
use crate::spec::command::Deallocate;
use crate::spec::log::LogPage;
use crate::units::{BlockSize, ByteCount, NamespaceId};

/// Why a namespace could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The controller cannot be used.
    #[error(transparent)]
    Controller(#[from] NvmeError),
    /// It has no such namespace.
    #[error("the controller has no namespace {namespace}; it has {existing:?}")]
    NoNamespace {
        /// The one asked for.
        namespace: NamespaceId,
        /// Those that can be used.
        existing: Vec<u32>,
    },
    /// An interrupt could not be set up.
    #[error("interrupt vector {vector} cannot be enabled: {source}")]
    Interrupt {
        /// Which.
        vector: u16,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// What is opened.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The namespace; all that can be used if `None`.
    pub namespace: Option<NamespaceId>,
    /// How many channels there will be: each has two queue pairs, or one where the controller has
    /// too few.
    pub channels: u16,
    /// How long a command may take before it is aborted, and again before the controller is reset.
    /// A flush has twice as long.
    pub io_timeout: Duration,
}

impl Wanted {
    /// As is usual: a command has 30 s.
    #[must_use]
    pub fn new(namespace: Option<NamespaceId>, channels: u16) -> Self {
        Self { namespace, channels, io_timeout: Duration::from_secs(30) }
    }
}

/// The shared part of a namespace.
#[derive(Clone)]
pub struct NvmeDevice(Arc<Shared>);

/// Queue pairs that no channel has yet.
pub(super) struct Spare {
    pub(super) hot: Option<Box<QueuePair>>,
    pub(super) cold: Box<QueuePair>,
    /// What the cold one's interrupt signals.
    pub(super) event: Option<Arc<EventFd>>,
}

/// What all channels of a namespace know.
pub(super) struct Shared {
    namespace: NamespaceId,
    pub(super) geometry: Geometry,
    /// The controller's largest transfer in bytes.
    pub(super) max_transfer: usize,
    pub(super) retry_delays: [u16; 3],
    pub(super) max_write_zeroes_blocks: u32,
    /// Whether zeroing gives the blocks back: where the namespace says that this is safe.
    pub(super) zeroing: Deallocate,
    pub(super) max_discard_range_blocks: u32,
    pub(super) max_discard_blocks: u64,
    /// Whether a write completed that no flush covered yet.
    unflushed: AtomicBool,
    /// Whether a reset came while there was such a write.
    lost: AtomicBool,
    spare: Mutex<Vec<Spare>>,
    channels: Mutex<Vec<Remote<ChannelHandle>>>,
    /// Why the device cannot be used any more.
    failure: Mutex<Option<String>>,
}

impl Shared {
    /// A write into the volatile cache completed.
    #[inline]
    pub(super) fn wrote(&self) {
        if !self.unflushed.load(Ordering::Relaxed) {
            self.unflushed.store(true, Ordering::Release);
        }
    }

    /// A flush is about to be submitted. `Err` if what it should make durable may be gone: to be
    /// returned in the place of the flush's own success.
    pub(super) fn begin_flush(&self) -> Result<(), BlockError> {
        self.unflushed.store(false, Ordering::Release);
        if self.lost.swap(false, Ordering::AcqRel) { Err(BlockError::CacheLost) } else { Ok(()) }
    }

    pub(super) fn add_channel(&self, channel: Remote<ChannelHandle>) {
        lock(&self.channels).push(channel);
    }

    fn fail(&self, reason: String) {
        lock(&self.failure).get_or_insert(reason);
    }

    /// Ends what is in flight and lets go of the controller's registers, on every reactor.
    fn let_go(&self) {
        lock(&self.spare).clear();
        for channel in lock(&self.channels).drain(..) {
            // A reactor that has ended has no channels any more. An inbox that is full has the
            // channel find out by itself, later: with its next command.
            if !channel.post(|channel| channel.let_go()) {
                tracing::debug!(?channel, "a reactor was not told that its controller is gone");
            }
        }
    }

    fn reset(&self) {
        if self.geometry.volatile_cache && self.unflushed.load(Ordering::Acquire) {
            self.lost.store(true, Ordering::Release);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is consistent between any two statements that can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NvmeDevice {
    /// Why it cannot be used any more, if so.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        lock(&self.0.failure).clone()
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> NamespaceId {
        self.0.namespace
    }

    /// What the device is.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.0.geometry
    }

    /// A channel for `reactor`.
    ///
    /// # Errors
    /// [`BlockError::NoQueue`] if all queue pairs that were asked for have one.
    pub fn channel(
        &self,
        reactor: &Rc<Reactor>,
        arena: &DmaArena,
    ) -> Result<NvmeChannel, BlockError> {
        let spare = lock(&self.0.spare).pop().ok_or(BlockError::NoQueue)?;
        Ok(NvmeChannel::new(Arc::clone(&self.0), reactor, arena, spare))
    }
}

/// A controller that this reactor polls, with one open namespace. Dropping it without
/// [`NvmeController::shut_down`] leaves the controller running.
pub struct NvmeController {
    owner: Rc<Owner>,
    identity: ControllerIdentity,
    /// Whoever asks the controller for something holds it.
    asking: async_lock::Mutex<()>,
    _registration: Registration,
}

/// Polls the controller and keeps its events for whoever waits for one.
struct Owner {
    controller: RefCell<Controller>,
    /// When it wants to be polled.
    next: Cell<Instant>,
    /// While somebody waits: what came.
    events: RefCell<Option<VecDeque<Event>>>,
    waiting: Cell<Option<Waker>>,
    /// The open namespaces, to be told of resets.
    devices: RefCell<Vec<Arc<Shared>>>,
    name: String,
    /// Whether queue pairs can have interrupts.
    interrupts: Cell<bool>,
}

impl Poller for Owner {
    fn poll(&self, now: Instant) -> usize {
        if now < self.next.get() {
            return 0;
        }
        let mut events = 0;
        let pace = self.controller.borrow_mut().poll(now, &mut |event| {
            events += 1;
            self.note(event);
        });
        self.next.set(now.after(pace));
        if events > 0
            && let Some(waker) = self.waiting.take()
        {
            waker.wake();
        }
        events
    }

    fn outstanding(&self) -> bool {
        false
    }

    fn event(&self) -> Option<Arc<EventFd>> {
        None
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.next.get())
    }
}

impl Owner {
    fn note(&self, event: Event) {
        let controller = &*self.name;
        match &event {
            Event::ResetStarted { cause, cache_written } => {
                tracing::warn!(controller, %cause, cache_written, "controller is being reset");
                if !cache_written {
                    self.devices.borrow().iter().for_each(|device| device.reset());
                }
            }
            Event::ResetDone => tracing::warn!(controller, "controller was reset"),
            Event::Failed(error) => {
                tracing::error!(controller, %error, "controller given up");
                for device in &*self.devices.borrow() {
                    device.fail(error.to_string());
                    device.let_go();
                }
            }
            Event::Health { critical_warning, percentage_used } => {
                tracing::warn!(controller, critical_warning, percentage_used, "health warning");
            }
            Event::QueuePairLost { id, error } => {
                tracing::error!(controller, queue = id.get(), %error, "queue pair lost");
            }
            Event::NamespaceChanged(namespace) => {
                let blocks = namespace.block_count.get();
                tracing::warn!(controller, namespace = namespace.id.get(), blocks, "changed");
                if let Some(device) = self.device(namespace.id) {
                    match unlike(&device.geometry, namespace) {
                        None => device.geometry.block_count.grow(namespace.block_count),
                        Some(reason) => {
                            tracing::error!(controller, namespace = namespace.id.get(), reason);
                            device.fail(reason);
                        }
                    }
                }
            }
            Event::NamespaceLost { id, error } => {
                let reason =
                    error.as_ref().map_or("it was deleted".to_owned(), ToString::to_string);
                tracing::error!(controller, namespace = id.get(), reason, "namespace lost");
                if let Some(device) = self.device(*id) {
                    device.fail(format!("namespace {id} is lost: {reason}"));
                }
            }
            Event::Notice(notice) => tracing::info!(controller, ?notice, "event"),
            Event::Ready { .. }
            | Event::QueuePairCreated { .. }
            | Event::QueuePairDeleted { .. }
            | Event::Log { .. }
            | Event::ShutDown => {}
        }
        if let Some(events) = &mut *self.events.borrow_mut() {
            events.push_back(event);
        }
    }

    fn device(&self, namespace: NamespaceId) -> Option<Arc<Shared>> {
        let devices = self.devices.borrow();
        devices.iter().find(|device| device.namespace == namespace).cloned()
    }

    /// The next event, while somebody listens.
    fn next_event(&self) -> impl Future<Output = Event> {
        poll_fn(|context| {
            if let Some(event) = self.events.borrow_mut().as_mut().and_then(VecDeque::pop_front) {
                return Poll::Ready(event);
            }
            self.waiting.set(Some(context.waker().clone()));
            Poll::Pending
        })
    }

    fn request(&self, request: Request) -> Result<(), NvmeError> {
        self.next.set(Instant::default());
        self.controller.borrow().request(request).map_err(|_| NvmeError::Gone)
    }
}

impl NvmeController {
    /// Brings the controller behind `transport` up, opens one namespace or all of them, and makes
    /// queue pairs for each channel. Every wait in it is bounded by the driver.
    ///
    /// # Errors
    /// [`OpenError`]. The controller is then left as it is, disabled or not.
    pub async fn open(
        reactor: &Rc<Reactor>,
        arena: &DmaArena,
        transport: Arc<dyn Transport>,
        wanted: &Wanted,
    ) -> Result<(Self, Vec<NvmeDevice>), OpenError> {
        let settings = match wanted.namespace {
            Some(_) => {
                let queue_pairs = wanted.channels.saturating_mul(2);
                Settings { queue_pairs, ..Settings::default() }
            }
            None => Settings::default(),
        };
        let name = transport.name().to_owned();
        let owner = Rc::new(Owner {
            controller: RefCell::new(Controller::start(Arc::clone(&transport), arena, settings)?),
            next: Cell::default(),
            events: RefCell::new(Some(VecDeque::new())),
            waiting: Cell::default(),
            devices: RefCell::default(),
            name,
            interrupts: Cell::new(true),
        });
        let registration = reactor.register(Rc::clone(&owner) as Rc<dyn Poller>);
        let (identity, namespaces) = ready(&owner, wanted.namespace).await?;
        owner.interrupts.set(identity.queue_interrupts);
        let pairs = usize::from(wanted.channels) * 2 * namespaces.len();
        let both = usize::from(identity.max_queue_pairs) >= pairs;
        if !both {
            let (granted, controller) = (identity.max_queue_pairs, &*owner.name);
            tracing::info!(controller, granted, wanted = pairs, "no queue pairs to poll");
        }
        let mut devices = Vec::new();
        for namespace in &namespaces {
            let mut spare = Vec::new();
            // The channels are handed out from the last one on.
            for channel in 0..wanted.channels {
                let id = namespace.id;
                let settings = QueueSettings {
                    timeout: wanted.io_timeout,
                    flush_timeout: wanted.io_timeout.saturating_mul(2),
                    ..QueueSettings::new(id)
                };
                spare.push(create_queue_pairs(&owner, &transport, &settings, channel, both).await?);
            }
            devices.push(shared(namespace, &identity, spare));
        }
        *owner.events.borrow_mut() = None;
        *owner.devices.borrow_mut() =
            devices.iter().map(|device: &NvmeDevice| Arc::clone(&device.0)).collect();
        let asking = async_lock::Mutex::new(());
        Ok((Self { owner, identity, asking, _registration: registration }, devices))
    }

    /// What the controller says it is.
    #[must_use]
    pub fn identity(&self) -> &ControllerIdentity {
        &self.identity
    }

    /// The PCI address or the path by which it is reached.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.owner.name
    }

    /// Whether it was shut down or given up.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.owner.controller.borrow().is_over()
    }

    /// Resets the controller, after it was told to write out its cache. Commands under way are
    /// tried again afterwards. Returns when it is back.
    ///
    /// # Errors
    /// If it was given up.
    pub async fn reset(&self) -> Result<(), NvmeError> {
        self.ask(Request::Reset, |event| match event {
            Event::ResetDone => Ok(()),
            other => Err(other),
        })
        .await
    }

    /// Reads the first `length` bytes of a log page, at most 4096.
    ///
    /// # Errors
    /// The controller's.
    pub async fn read_log(&self, page: LogPage, length: usize) -> Result<Vec<u8>, NvmeError> {
        self.ask(Request::ReadLog { page, length, tag: 0 }, |event| match event {
            Event::Log { result, .. } => Ok(result),
            other => Err(other),
        })
        .await?
    }

    /// Has the controller write out its cache and stop. No channel may be used any more.
    ///
    /// # Errors
    /// If it did not do so in time, or was given up before.
    pub async fn shut_down(&self) -> Result<(), NvmeError> {
        self.ask(Request::Shutdown, |event| match event {
            Event::ShutDown => Ok(()),
            other => Err(other),
        })
        .await
    }

    /// Sends a request and waits for the event that `answer` recognizes; one at a time.
    async fn ask<R>(
        &self,
        request: Request,
        mut answer: impl FnMut(Event) -> Result<R, Event>,
    ) -> Result<R, NvmeError> {
        let _turn = self.asking.lock().await;
        if self.is_over() {
            return Err(NvmeError::Gone);
        }
        *self.owner.events.borrow_mut() = Some(VecDeque::new());
        let result = match self.owner.request(request) {
            Ok(()) => loop {
                match answer(self.owner.next_event().await) {
                    Ok(result) => break Ok(result),
                    Err(Event::Failed(error)) => break Err(error),
                    Err(_) => {}
                }
            },
            Err(error) => Err(error),
        };
        *self.owner.events.borrow_mut() = None;
        result
    }
}

async fn ready(
    owner: &Owner,
    wanted: Option<NamespaceId>,
) -> Result<(ControllerIdentity, Vec<Namespace>), OpenError> {
    loop {
        match owner.next_event().await {
            Event::Ready { identity, namespaces, refused } => {
                for error in refused {
                    tracing::warn!(controller = owner.name, %error, "namespace cannot be used");
                }
                let Some(wanted) = wanted else { return Ok((*identity, namespaces)) };
                let existing = namespaces.iter().map(|namespace| namespace.id.get()).collect();
                if let Some(found) = namespaces.into_iter().find(|found| found.id == wanted) {
                    return Ok((*identity, vec![found]));
                }
                return Err(OpenError::NoNamespace { namespace: wanted, existing });
            }
            Event::Failed(error) => return Err(error.into()),
            _ => {}
        }
    }
}

async fn create_queue_pairs(
    owner: &Owner,
    transport: &Arc<dyn Transport>,
    settings: &QueueSettings,
    channel: u16,
    both: bool,
) -> Result<Spare, OpenError> {
    // Vector 0 is the admin queue's. With too few vectors a queue pair is polled only.
    let vector =
        Some(channel + 1).filter(|vector| owner.interrupts.get() && *vector < transport.vectors());
    let event = match vector {
        Some(vector) => {
            let interrupt = transport.interrupt(vector);
            Some(interrupt.map_err(|source| OpenError::Interrupt { vector, source })?)
        }
        None => None,
    };
    let cold = create_queue_pair(owner, settings, vector).await?;
    let hot = match event.is_some() && both {
        true => Some(create_queue_pair(owner, settings, None).await?),
        false => None,
    };
    Ok(Spare { hot, cold, event })
}

async fn create_queue_pair(
    owner: &Owner,
    settings: &QueueSettings,
    vector: Option<u16>,
) -> Result<Box<QueuePair>, OpenError> {
    let settings = QueueSettings { vector, ..settings.clone() };
    // One is made at a time.
    owner.request(Request::CreateQueuePair { settings, tag: 0 })?;
    loop {
        match owner.next_event().await {
            Event::QueuePairCreated { result, .. } => return Ok(result?),
            Event::Failed(error) => return Err(error.into()),
            _ => {}
        }
    }
}

/// How a namespace differs from what it was, so that it can no longer be used. More blocks than
/// before are no harm.
fn unlike(geometry: &Geometry, namespace: &Namespace) -> Option<String> {
    let (was, is) = (geometry.block_count.get(), namespace.block_count.get());
    if namespace.block_size != geometry.block_size {
        return Some("the namespace was formatted with another block size".to_owned());
    }
    (is < was).then(|| format!("the namespace shrank from {was} to {is} blocks"))
}

fn shared(namespace: &Namespace, identity: &ControllerIdentity, spare: Vec<Spare>) -> NvmeDevice {
    let block = u64::from(namespace.block_size.bytes());
    let preferred = namespace.preferred_write_blocks.saturating_mul(namespace.block_size.bytes());
    let geometry = Geometry {
        block_size: namespace.block_size,
        physical_block_size: BlockSize::new(preferred).unwrap_or(namespace.block_size),
        block_count: namespace.block_count.into(),
        atomic_write: ByteCount(u64::from(namespace.atomic_write_blocks) * block),
        volatile_cache: namespace.volatile_cache,
        // A controller may ignore Deallocate, so nothing is promised whatever DLFEAT says.
        discard: Discard::Unspecified,
        max_transfer: ByteCount(MAX_BUFFER as u64),
    };
    let max_transfer = usize::try_from(namespace.max_transfer.get()).unwrap_or(MAX_BUFFER);
    NvmeDevice(Arc::new(Shared {
        namespace: namespace.id,
        geometry,
        max_transfer: max_transfer.min(MAX_BUFFER),
        retry_delays: identity.retry_delays,
        max_write_zeroes_blocks: namespace.max_write_zeroes_blocks,
        zeroing: match namespace.zeroes_by_deallocation {
            true => Deallocate::Yes,
            false => Deallocate::No,
        },
        max_discard_range_blocks: namespace.max_discard_range_blocks,
        max_discard_blocks: namespace.max_discard_blocks,
        unflushed: AtomicBool::new(false),
        lost: AtomicBool::new(false),
        spare: Mutex::new(spare),
        channels: Mutex::default(),
        failure: Mutex::default(),
    }))
}
