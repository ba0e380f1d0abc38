//! The target on one reactor: its connections, and what they need.

use std::cell::{Cell, RefCell};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use slab::Slab;

use super::connection;
use super::limits::{
    CONNECTIONS, MEMORY_RETRY, TICK, TIME_TO_CONNECT, TIME_TO_INITIALIZE, TIME_TO_SEND,
};
use super::queue::{Queue, Stop};
use super::stream::{Socket, Stream};
use super::target::{Peer, Target};
use crate::hw::dma::DmaBuffer;
use crate::hw::event::EventFd;
use crate::reactor::{Instant, Poller, Reactor, Readiness, Registration, Remote, Sleep};
use crate::units::QueueId;
use crate::volume::Catalog;

/// How long accepting pauses after an error, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Hosts as something that owes an answer: after each command the next one may come soon, so the
/// reactor spins for as long as that pays (see [`crate::reactor::policy`]) before it sleeps. What
/// they send ends a sleep by itself; the event is never signalled.
struct Hosts(Arc<EventFd>);

impl Poller for Hosts {
    fn poll(&self, _now: Instant) -> usize {
        0
    }

    fn outstanding(&self) -> bool {
        true
    }

    fn event(&self) -> Option<Arc<EventFd>> {
        Some(Arc::clone(&self.0))
    }
}

/// What one reactor's target serves, and has served since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Admin queues that were ever connected.
    pub admin_queues: u64,
    /// I/O queues that were ever connected.
    pub io_queues: u64,
    /// Admin queues now.
    pub current_admin_queues: u32,
    /// I/O queues now.
    pub current_io_queues: u32,
    /// Commands on I/O queues that are not answered yet.
    pub pending_io: u64,
    /// Commands on I/O queues that were answered.
    pub completed_io: u64,
}

/// The target on one reactor.
pub struct Service {
    pub(super) reactor: Rc<Reactor>,
    pub(super) catalog: Rc<Catalog>,
    pub(super) target: Arc<Target>,
    /// The queue whose connection's task runs now: it will look at its queue itself.
    pub(super) running: Cell<Option<usize>>,
    connections: RefCell<Slab<(Rc<Queue>, Remote<Queue>)>>,
    /// While there are connections: the reactor waits for them as it waits for a device.
    waiting: RefCell<Option<Registration>>,
    served: Cell<Statistics>,
    ticking: Cell<bool>,
    draining: Cell<bool>,
}

impl Service {
    /// The service on the catalog's reactor.
    #[must_use]
    pub fn new(catalog: &Rc<Catalog>, target: &Arc<Target>) -> Rc<Self> {
        Rc::new(Self {
            reactor: Rc::clone(catalog.reactor()),
            catalog: Rc::clone(catalog),
            target: Arc::clone(target),
            running: Cell::new(None),
            connections: RefCell::default(),
            waiting: RefCell::default(),
            served: Cell::default(),
            ticking: Cell::new(false),
            draining: Cell::new(false),
        })
    }

    /// Connections now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.borrow().len()
    }

    /// What it serves now, and what it has served.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut statistics = self.served.get();
        for (_, (queue, _)) in &*self.connections.borrow() {
            match queue.association() {
                Some((_, id)) if id.get() == 0 => statistics.current_admin_queues += 1,
                Some(_) => {
                    statistics.current_io_queues += 1;
                    statistics.pending_io += queue.outstanding();
                }
                // A connection that has not got so far is neither.
                None => {}
            }
        }
        statistics
    }

    /// A queue was connected.
    pub(super) fn count_queue(&self, id: QueueId) {
        let mut served = self.served.get();
        match id.get() {
            0 => served.admin_queues += 1,
            _ => served.io_queues += 1,
        }
        self.served.set(served);
    }

    /// An I/O command was answered.
    #[inline]
    pub(super) fn count_io(&self) {
        let mut served = self.served.get();
        served.completed_io += 1;
        self.served.set(served);
    }

    /// Accepts connections until told to stop.
    pub(super) fn accept(self: &Rc<Self>, listener: TcpListener, stopped: oneshot::Receiver<()>) {
        let service = Rc::clone(self);
        self.reactor.spawn(async move {
            let accepting = std::pin::pin!(service.accept_all(&listener));
            match select(accepting, stopped).await {
                Either::Left(((), _)) | Either::Right(_) => {}
            }
        });
    }

    async fn accept_all(&self, listener: &TcpListener) {
        let Ok(descriptor) = listener.try_clone() else {
            tracing::error!("no descriptor left for a listener: it takes no connections");
            return;
        };
        let descriptor = Arc::new(OwnedFd::from(descriptor));
        loop {
            match listener.accept() {
                Ok((stream, remote)) => {
                    match stream.local_addr() {
                        Ok(local) => self.target.hand_over(stream, Peer { local, remote }),
                        // Gone already.
                        Err(_) => drop(stream),
                    }
                    // One a turn: a flood of connections starves nobody.
                    self.reactor.sleep(Duration::ZERO).await;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let ready = self.reactor.ring().ready(&descriptor, Readiness::Read).await;
                    if ready.is_err() {
                        self.reactor.sleep(ACCEPT_PAUSE).await;
                    }
                }
                Err(error) => {
                    if self.target.may_log() {
                        tracing::warn!(%error, "cannot accept a connection");
                    }
                    self.reactor.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves a socket.
    pub(super) fn adopt(self: &Rc<Self>, stream: TcpStream, peer: Peer) {
        match Socket::new(self.reactor.ring(), stream) {
            Ok(socket) => self.serve(socket, peer),
            Err(error) => tracing::debug!(%error, "connection lost before it began"),
        }
    }

    /// Serves a stream, if there is room for one more.
    pub fn serve<S: Stream + 'static>(self: &Rc<Self>, stream: S, peer: Peer) {
        if self.draining.get() || self.connections() >= CONNECTIONS {
            if self.target.may_log() {
                let reason = "too many connections on one reactor, or shutting down";
                tracing::warn!(peer = %peer.remote, reason, "connection refused");
            }
            stream.close();
            return;
        }
        self.reactor.spawn(connection::serve(Rc::clone(self), stream, peer));
    }

    /// Enters a queue; returns its number.
    pub(super) fn register(self: &Rc<Self>, queue: &Rc<Queue>) -> usize {
        let remote = self.reactor.keep(Rc::clone(queue));
        let key = self.connections.borrow_mut().insert((Rc::clone(queue), remote));
        if !self.ticking.replace(true) {
            // Without a descriptor left, the reactor sleeps at once whenever it is idle.
            if let Ok(event) = EventFd::new() {
                let hosts = Rc::new(Hosts(Arc::new(event)));
                *self.waiting.borrow_mut() = Some(self.reactor.register(hosts));
            }
            let pause = self.reactor.sleep(TICK);
            self.reactor.spawn(Self::tick(Rc::downgrade(self), pause));
        }
        queue.number.set(key);
        key
    }

    /// How other reactors reach a queue of this one.
    pub(super) fn remote(&self, key: usize) -> Option<Remote<Queue>> {
        self.connections.borrow().get(key).map(|(_, remote)| remote.clone())
    }

    /// A connection has ended.
    pub(super) fn leave(&self, queue: &Queue, key: usize) {
        if let Some((controller, id)) = queue.disassociate()
            && controller.leave(id)
        {
            self.target.forget_controller(&controller);
        }
        if let Some((_, remote)) = self.connections.borrow_mut().try_remove(key) {
            drop(remote.release(&self.reactor));
        }
    }

    /// Looks at every connection now and then, as long as there are any. Does not keep the service,
    /// and with it its reactor, alive: a service that was drained and dropped is gone at once.
    async fn tick(this: Weak<Self>, mut pause: Sleep) {
        loop {
            pause.await;
            let Some(service) = this.upgrade() else { return };
            let connections = service.connections.borrow();
            let queues: Vec<_> =
                connections.iter().map(|(_, (queue, _))| Rc::clone(queue)).collect();
            drop(connections);
            for queue in &queues {
                service.inspect(queue);
            }
            if service.connections() == 0 {
                drop(service.waiting.take());
                service.ticking.set(false);
                return;
            }
            pause = service.reactor.sleep(TICK);
        }
    }

    fn inspect(&self, queue: &Rc<Queue>) {
        let now = self.reactor.now();
        let age = now.since(queue.born);
        let late = if !queue.initialized.get() && age > TIME_TO_INITIALIZE {
            Some("no ICReq")
        } else if !queue.was_associated() && age > TIME_TO_CONNECT {
            Some("no Connect")
        } else if queue.sending.get().is_some_and(|since| now.since(since) > TIME_TO_SEND) {
            Some("it does not take what is sent")
        } else if queue.waits_too_long(now) {
            Some(
                "it does not send what it owes: data that it was asked for, or the second half of a pair",
            )
        } else {
            None
        };
        if let Some(reason) = late {
            if self.target.may_log() {
                tracing::warn!(peer = %queue.peer.remote, reason, "slow or silent peer dropped");
            }
            queue.stop(Stop::Drop);
        }
        queue.check();
        if let Some((controller, id)) = queue.association()
            && id.get() == 0
        {
            queue.deliver_events();
            let limit = controller.keep_alive();
            if controller.take_heard() || limit == 0 {
                queue.heard.set(now);
            } else if now.since(queue.heard.get()) > Duration::from_millis(limit.into()) + TICK {
                tracing::warn!(
                    host = controller.host().nqn,
                    controller = controller.id(),
                    "keep alive timeout: the controller ends"
                );
                controller.end();
            }
        }
    }

    /// A DMA buffer, as soon as there is memory for it.
    pub(super) async fn buffer(&self, length: usize) -> DmaBuffer {
        loop {
            if let Some(buffer) = self.catalog.arena().allocate(length) {
                return buffer;
            }
            self.reactor.sleep(MEMORY_RETRY).await;
        }
    }

    /// Ends every connection, each after the answers to what runs on it; returns when none is
    /// left.
    pub async fn drain(&self) {
        self.draining.set(true);
        let queues: Vec<_> =
            self.connections.borrow().iter().map(|(_, (queue, _))| Rc::clone(queue)).collect();
        for queue in &queues {
            queue.stop(Stop::Drain);
        }
        drop(queues);
        while self.connections() > 0 {
            self.reactor.sleep(Duration::from_millis(1)).await;
        }
    }
}
