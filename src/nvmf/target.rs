//! The target: what all reactors share. Controllers by identifier, listeners, and the services
//! that connections are handed to.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;

use super::controller::{Controller, Host, Kind};
use super::health;
use super::limits::CONTROLLERS;
use super::log::error_entry;
use super::model::{Change, Model};
use super::queue::Queue;
use super::service::Service;
use crate::reactor::Remote;
use crate::reservation::Notification;
use crate::spec::command::SubmissionEntry;
use crate::spec::log::{AsyncEvent, AsyncEventType, LogPage, SmartLog};
use crate::spec::reservation::HostId;
use crate::spec::status::Status;
use crate::units::ControllerId;
use crate::volume::Key;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Our end: the listener's address.
    pub local: SocketAddr,
    /// The host's end.
    pub remote: SocketAddr,
}

/// The target of one process.
pub struct Target {
    model: Arc<Model>,
    shared: Mutex<Shared>,
    next_service: AtomicUsize,
    /// What the drives below last said of their health.
    health: Mutex<SmartLog>,
    /// Problems that peers made since the last one that was logged.
    logged: AtomicU64,
    born: std::time::Instant,
}

#[derive(Default)]
struct Shared {
    controllers: HashMap<u16, Arc<Controller>>,
    last_controller: u16,
    services: Vec<Remote<Service>>,
    listeners: HashMap<SocketAddr, oneshot::Sender<()>>,
}

/// At most one problem that a peer makes is logged in this time.
const LOG_INTERVAL_MS: u64 = 1000;

/// A controller that a host asks for.
pub(super) struct NewController<'a> {
    pub(super) kind: Kind,
    /// The subsystem's NQN.
    pub(super) subsystem: &'a str,
    /// The identifiers that it may have.
    pub(super) ids: RangeInclusive<u16>,
    pub(super) host: Host,
    /// The listener's end of the admin queue.
    pub(super) local: SocketAddr,
    /// In milliseconds; 0 for none.
    pub(super) keep_alive: u32,
}

impl Target {
    /// A target for what `model` exports, with no listener yet.
    #[must_use]
    pub fn new(model: Arc<Model>) -> Arc<Self> {
        Arc::new(Self {
            model,
            shared: Mutex::default(),
            next_service: AtomicUsize::new(0),
            health: Mutex::new(health::worst(&[])),
            logged: AtomicU64::new(0),
            born: std::time::Instant::now(),
        })
    }

    /// What is exported.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // No statement under the lock can panic half-way.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the drives below last said of their health: see [`health`].
    #[must_use]
    pub fn health(&self) -> SmartLog {
        // Nothing under the lock can panic.
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the drives below say of their health now. Hosts are told of warnings that are new.
    pub fn set_health(&self, drives: &[SmartLog]) {
        let now = health::worst(drives);
        let before = std::mem::replace(
            &mut *self.health.lock().unwrap_or_else(PoisonError::into_inner),
            now,
        );
        for event in health::events(before.critical_warning, now.critical_warning) {
            for controller in self.controllers() {
                if controller.kind() != Kind::Discovery {
                    controller.raise(event);
                }
            }
        }
    }

    /// Lets a reactor take connections.
    pub fn add_service(&self, service: Remote<Service>) {
        self.lock().services.push(service);
    }

    /// Listens on `address`; returns the address with its port.
    ///
    /// # Errors
    /// The system's; `NotConnected` if no reactor takes connections.
    pub fn listen(self: &Arc<Self>, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let Some(service) = self.lock().services.first().cloned() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        self.lock().listeners.insert(address, stop);
        let started = service.post(move |service| service.accept(listener, stopped));
        if !started {
            self.lock().listeners.remove(&address);
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(address)
    }

    /// Takes no more connections on `address`. Those that exist stay.
    pub fn stop_listening(&self, address: SocketAddr) -> bool {
        self.lock().listeners.remove(&address).is_some()
    }

    /// Where it listens.
    #[must_use]
    pub fn listeners(&self) -> Vec<SocketAddr> {
        self.lock().listeners.keys().copied().collect()
    }

    /// Takes no more connections at all.
    pub fn close_listeners(&self) {
        self.lock().listeners.clear();
    }

    /// Hands a connection to the next reactor.
    pub(super) fn hand_over(&self, stream: TcpStream, peer: Peer) {
        let service = {
            let shared = self.lock();
            let next = self.next_service.fetch_add(1, Ordering::Relaxed);
            shared.services.get(next % shared.services.len().max(1)).cloned()
        };
        let taken =
            service.is_some_and(|service| service.post(move |service| service.adopt(stream, peer)));
        if !taken && self.may_log() {
            tracing::warn!(peer = %peer.remote, "no reactor could take the connection: refused");
        }
    }

    /// The controllers that there are.
    #[must_use]
    pub fn controllers(&self) -> Vec<Arc<Controller>> {
        self.lock().controllers.values().cloned().collect()
    }

    /// The controller with an identifier.
    #[must_use]
    pub fn controller(&self, id: u16) -> Option<Arc<Controller>> {
        self.lock().controllers.get(&id).cloned()
    }

    /// Makes a controller; `None` if there are too many.
    pub(super) fn make_controller(&self, wanted: NewController<'_>) -> Option<Arc<Controller>> {
        let NewController { kind, subsystem, ids, host, local, keep_alive } = wanted;
        let mut shared = self.lock();
        if shared.controllers.len() >= CONTROLLERS {
            return None;
        }
        // Round robin, so that an identifier is not used again soon.
        let after = shared.last_controller.saturating_add(1).max(*ids.start());
        let free = |id: &u16| !shared.controllers.contains_key(id);
        let id = (after..=*ids.end()).find(free).or_else(|| ids.clone().find(free))?;
        shared.last_controller = id;
        let controller = Controller::new(id, kind, subsystem, host, local, keep_alive);
        shared.controllers.insert(id, Arc::clone(&controller));
        Some(controller)
    }

    pub(super) fn forget_controller(&self, controller: &Controller) {
        self.lock().controllers.remove(&controller.id());
    }

    /// Whether one more problem of a peer may be logged now.
    pub(super) fn may_log(&self) -> bool {
        let now =
            u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX) + LOG_INTERVAL_MS;
        let last = self.logged.load(Ordering::Relaxed);
        now - last.min(now) >= LOG_INTERVAL_MS
            && self.logged.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Remembers a command that failed in its controller's error log.
    pub(super) fn note_error(&self, queue: &Queue, entry: &SubmissionEntry, status: Status) {
        if let Some((controller, id)) = queue.association() {
            controller.note_error(error_entry(id, entry, status));
        }
    }

    /// What is exported has changed: hosts are told, or sent away. To be subscribed to the model.
    pub fn changed(&self, change: &Change) {
        for controller in self.controllers() {
            let concerned = |nqn: &str| controller.subsystem() == nqn;
            match change {
                Change::Namespace { subsystem, namespace } if concerned(subsystem) => {
                    let known = self.model.subsystem(subsystem);
                    let host = &controller.host().nqn;
                    if known.is_none_or(|known| known.namespace(host, *namespace).is_none()) {
                        controller.lock().notifications.remove_namespace(*namespace);
                    }
                    controller.note_namespace(namespace.get());
                }
                Change::Ana { subsystem } if concerned(subsystem) => controller.raise(AsyncEvent {
                    event_type: AsyncEventType::NOTICE,
                    information: super::event::ANA_CHANGED,
                    log_page: LogPage::ANA,
                }),
                Change::Hosts { subsystem } if concerned(subsystem) => {
                    let known = self.model.subsystem(subsystem);
                    let (host, local) = (&controller.host().nqn, controller.local());
                    let admitted =
                        known.is_some_and(|subsystem| subsystem.admit(host, local).is_ok());
                    if !admitted {
                        controller.end();
                    }
                }
                Change::Discovery if controller.kind() == Kind::Discovery => {
                    controller.raise(AsyncEvent {
                        event_type: AsyncEventType::NOTICE,
                        information: super::event::DISCOVERY_CHANGED,
                        log_page: LogPage::DISCOVERY,
                    });
                }
                _ => {}
            }
        }
    }

    /// A controller of each host that has one in a subsystem, the one with the lowest identifier.
    pub(super) fn controllers_of_hosts(&self, subsystem: &str) -> HashMap<HostId, ControllerId> {
        let mut found = HashMap::new();
        for controller in self.controllers() {
            if controller.kind() == Kind::Io && controller.subsystem() == subsystem {
                let id = ControllerId(controller.id());
                let lowest = found.entry(controller.host().id).or_insert(id);
                *lowest = id.min(*lowest);
            }
        }
        found
    }

    /// Tells every controller of the hosts whom a change of a volume's reservations concerns. To
    /// be what listens to the hosts of the directory (see [`crate::volume::Hosts::listen`]).
    pub fn reservations_changed(&self, volume: Key, told: &[Notification]) {
        let Some((subsystem, namespace)) = self.model.namespace_of(volume) else { return };
        // A command tells each host one thing.
        let events: HashMap<HostId, _> = told.iter().map(|told| (told.host, told.event)).collect();
        for controller in self.controllers() {
            let concerned =
                controller.kind() == Kind::Io && controller.subsystem() == subsystem.nqn;
            let host = controller.host();
            if let Some(event) = events.get(&host.id)
                && concerned
                && subsystem.namespace(&host.nqn, namespace).is_some()
            {
                controller.note_reservation(namespace, *event);
            }
        }
    }
}
