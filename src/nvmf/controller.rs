//! A controller: what the queues of one association share, on whatever reactors they are.
//!
//! It is made by the Connect of its admin queue and ends with it. I/O queues join by Connect and
//! leave when they are dropped: by their host, by a reset or a shutdown, or with the controller.
//! Every way ends the same: [`Controller::leave`]. A reset shows as done only when no I/O queue
//! is left, and a queue leaves only when its commands have come back from their devices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::event::Events;
use super::feature::Features;
use super::queue::Queue;
use crate::reactor::Remote;
use crate::reservation::{Event, NotificationLog};
use crate::spec::log::{AsyncEvent, ErrorLogEntry, LogPage};
use crate::spec::register::{Configuration, ControllerStatus, Shutdown, ShutdownStatus};
use crate::units::{NamespaceId, QueueId};

/// The host of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// HOSTNQN.
    pub nqn: String,
    /// HOSTID; never zero.
    pub id: crate::spec::reservation::HostId,
}

/// What a controller is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// I/O on the namespaces of a subsystem.
    Io,
    /// Telling hosts which subsystems there are.
    Discovery,
}

/// A controller.
pub struct Controller {
    id: u16,
    kind: Kind,
    subsystem: String,
    host: Host,
    local: SocketAddr,
    /// Milliseconds; 0 for none.
    keep_alive: AtomicU32,
    heard: AtomicBool,
    enabled: AtomicBool,
    /// Counts resets: I/O queues of an earlier epoch must go.
    epoch: AtomicU32,
    ended: AtomicBool,
    granted: AtomicU16,
    pub(super) counters: Counters,
    state: Mutex<State>,
}

/// What a controller did, for its health page.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
}

pub(super) struct State {
    pub(super) configuration: Configuration,
    pub(super) status: ControllerStatus,
    pub(super) features: Features,
    pub(super) events: Events,
    pub(super) errors: super::log::Errors,
    /// What its host was told of reservations, and of what it does not want to be told.
    pub(super) notifications: NotificationLog,
    queues: BTreeMap<u16, Remote<Queue>>,
    leaving: Leaving,
}

/// What happens when the last I/O queue has left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Nothing,
    Disable,
    ShutDown,
}

/// Why an I/O queue cannot join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JoinError {
    NotEnabled,
    Taken,
}

/// Errors that are remembered.
pub(super) const ERROR_LOG: usize = 64;

impl Controller {
    pub(super) fn new(
        id: u16,
        kind: Kind,
        subsystem: &str,
        host: Host,
        local: SocketAddr,
        keep_alive: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            kind,
            subsystem: subsystem.to_owned(),
            host,
            local,
            keep_alive: AtomicU32::new(keep_alive),
            heard: AtomicBool::new(true),
            enabled: AtomicBool::new(false),
            epoch: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            granted: AtomicU16::new(super::limits::IO_QUEUES),
            counters: Counters::default(),
            state: Mutex::new(State {
                configuration: Configuration(0),
                status: ControllerStatus(0),
                features: Features::default(),
                events: Events::default(),
                errors: super::log::Errors::default(),
                notifications: NotificationLog::default(),
                queues: BTreeMap::new(),
                leaving: Leaving::Nothing,
            }),
        })
    }

    /// CNTLID.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.id
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The NQN of its subsystem.
    #[must_use]
    pub fn subsystem(&self) -> &str {
        &self.subsystem
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The listener's address that its host came through.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// How many I/O queues it has.
    #[must_use]
    pub fn io_queues(&self) -> usize {
        self.lock().queues.keys().filter(|id| **id != 0).count()
    }

    /// The identifiers of its queues, in order; 0 is the admin queue.
    #[must_use]
    pub fn queues(&self) -> Vec<u16> {
        self.lock().queues.keys().copied().collect()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No statement under the lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// A command came from the host: its keep-alive timer starts again.
    #[inline]
    pub(super) fn heard(&self) {
        // The store is avoided where it would only move the cache line about.
        if !self.heard.load(Ordering::Relaxed) {
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn take_heard(&self) -> bool {
        self.heard.swap(false, Ordering::Relaxed)
    }

    /// Milliseconds; 0 for none.
    pub(super) fn keep_alive(&self) -> u32 {
        self.keep_alive.load(Ordering::Relaxed)
    }

    pub(super) fn set_keep_alive(&self, milliseconds: u32) {
        self.keep_alive.store(milliseconds, Ordering::Relaxed);
    }

    /// I/O queues that the host may connect.
    pub(super) fn granted(&self) -> u16 {
        self.granted.load(Ordering::Relaxed)
    }

    pub(super) fn grant(&self, queues: u16) {
        self.granted.store(queues, Ordering::Relaxed);
    }

    /// A queue joins.
    pub(super) fn join(&self, id: QueueId, queue: Remote<Queue>) -> Result<u32, JoinError> {
        let mut state = self.lock();
        let admin_there = state.queues.contains_key(&0) && !self.has_ended();
        if id.get() != 0 && !(admin_there && self.is_enabled()) {
            return Err(JoinError::NotEnabled);
        }
        if state.queues.contains_key(&id.get()) {
            return Err(JoinError::Taken);
        }
        state.queues.insert(id.get(), queue);
        Ok(self.epoch())
    }

    /// A queue has ended. With the admin queue, the controller ends: true.
    pub(super) fn leave(&self, id: QueueId) -> bool {
        let mut state = self.lock();
        state.queues.remove(&id.get());
        if id.get() == 0 {
            self.ended.store(true, Ordering::Release);
            self.enabled.store(false, Ordering::Release);
        }
        self.settle(&mut state);
        let others: Vec<_> =
            if id.get() == 0 { state.queues.values().cloned().collect() } else { Vec::new() };
        drop(state);
        look_after(&others);
        id.get() == 0
    }

    /// Ends the controller and all its queues.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.status = ControllerStatus(state.status.0 | ControllerStatus::FATAL);
        self.ended.store(true, Ordering::Release);
        self.enabled.store(false, Ordering::Release);
        let queues: Vec<_> = state.queues.values().cloned().collect();
        drop(state);
        look_after(&queues);
    }

    /// Shows a reset or a shutdown as done when no I/O queue is left.
    fn settle(&self, state: &mut State) {
        if state.queues.keys().any(|id| *id != 0) {
            return;
        }
        match std::mem::replace(&mut state.leaving, Leaving::Nothing) {
            Leaving::Nothing => {}
            Leaving::Disable => {
                let kept = !(ControllerStatus::READY | ControllerStatus::FATAL | 0xc);
                state.status = ControllerStatus(state.status.0 & kept);
                state.features = Features::default();
                state.events = Events::default();
                state.notifications = NotificationLog::default();
            }
            Leaving::ShutDown => {
                state.status = state.status.with_shutdown(ShutdownStatus::Complete);
            }
        }
    }

    /// CC was written.
    ///
    /// # Errors
    /// The value asks for what there is not.
    pub(super) fn configure(&self, wanted: Configuration) -> Result<(), &'static str> {
        let mut state = self.lock();
        let before = state.configuration;
        let (turned_on, turned_off) =
            (wanted.enabled() && !before.enabled(), !wanted.enabled() && before.enabled());
        if wanted.arbitration() != 0 || wanted.page_shift() != 12 {
            return Err("an arbitration or a page size that is not supported");
        }
        if wanted.enabled() {
            let sizes = (wanted.submission_entry_shift(), wanted.completion_entry_shift());
            // Hosts of discovery controllers often leave them zero.
            let fine = sizes == (6, 4) || self.kind == Kind::Discovery && sizes == (0, 0);
            if !matches!(wanted.command_set(), 0 | 6) || !fine {
                return Err("a command set or entry sizes that are not supported");
            }
        }
        let shuts_down = wanted.shutdown() != Shutdown::None && before.shutdown() == Shutdown::None;
        state.configuration = wanted;
        if turned_on {
            // Once shut down, a controller needs a reset before it is ready again.
            state.leaving = Leaving::Nothing;
            state.status = ControllerStatus(ControllerStatus::READY);
            self.enabled.store(true, Ordering::Release);
        }
        if turned_off || shuts_down {
            self.enabled.store(false, Ordering::Release);
            self.epoch.fetch_add(1, Ordering::AcqRel);
            state.leaving = if turned_off { Leaving::Disable } else { Leaving::ShutDown };
            if shuts_down && !turned_off {
                state.status = state.status.with_shutdown(ShutdownStatus::Occurring);
            }
            let io = state.queues.iter().filter(|(id, _)| **id != 0);
            let queues: Vec<_> = io.map(|(_, queue)| queue.clone()).collect();
            self.settle(&mut state);
            drop(state);
            look_after(&queues);
        }
        Ok(())
    }

    /// The queue with this identifier.
    pub(super) fn queue(&self, id: QueueId) -> Option<Remote<Queue>> {
        self.lock().queues.get(&id.get()).cloned()
    }

    /// Something happened that the host may want to know.
    pub(super) fn raise(&self, event: AsyncEvent) {
        let mut state = self.lock();
        if !state.events.raise(event) {
            return;
        }
        let admin = state.queues.get(&0).cloned();
        drop(state);
        if let Some(admin) = admin {
            // If its reactor has too much mail, the next tick delivers.
            admin.post(|queue| queue.deliver_events());
        }
    }

    pub(super) fn next_event(&self) -> Option<AsyncEvent> {
        self.lock().events.next()
    }

    /// A namespace came, went or changed.
    pub(super) fn note_namespace(&self, namespace: u32) {
        self.lock().events.note_namespace(namespace);
        self.raise(AsyncEvent {
            event_type: crate::spec::log::AsyncEventType::NOTICE,
            information: AsyncEvent::NAMESPACE_ATTRIBUTES_CHANGED,
            log_page: LogPage::CHANGED_NAMESPACES,
        });
    }

    /// Something happened to the host's registration on a namespace. Nothing is kept for a
    /// controller that is not enabled: a reset empties the log.
    pub(super) fn note_reservation(&self, namespace: NamespaceId, event: Event) {
        if !self.is_enabled() {
            return;
        }
        if self.lock().notifications.push(namespace, event) {
            self.raise(NotificationLog::ASYNC_EVENT);
        }
    }

    pub(super) fn note_error(&self, entry: ErrorLogEntry) {
        self.lock().errors.push(entry);
    }
}

/// Lets queues notice that their time has come. If the mail does not get there, their next tick
/// finds out.
fn look_after(queues: &[Remote<Queue>]) {
    for queue in queues {
        queue.post(|queue| queue.check());
    }
}
