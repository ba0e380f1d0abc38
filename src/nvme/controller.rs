//! A controller as its owner sees it: requests in, events out, and `poll`.
//!
//! What the driver does for a controller from bring-up to shutdown is one task (`life`), written
//! as a sequence. It waits for nothing but the next `poll`; time is what `poll` was told. Every
//! wait in it has a limit, so a silent controller ends in [`Event::Failed`] and never hangs.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::admin::Core;
use super::error::{NvmeError, ResetCause};
use super::identity::ControllerIdentity;
use super::life::live_and_end;
use super::namespace::Namespace;
use super::queue_pair::{QueuePair, QueueSettings};
use crate::hw::dma::DmaArena;
use crate::hw::transport::Transport;
use crate::reactor::clock::Instant;
use crate::spec::log::{AsyncEvent, LogPage};
use crate::units::{NamespaceId, QueueId};

/// Requests that may wait.
const MAX_REQUESTS: usize = 256;
/// How soon `poll` wants to be called again while nothing is going on.
pub(crate) const IDLE: Duration = Duration::from_millis(50);
/// The same while an admin command is on its way.
pub(crate) const BUSY: Duration = Duration::from_micros(50);
/// The same while a register is expected to change.
pub(crate) const REGISTER: Duration = Duration::from_millis(1);

/// How a controller is to be driven.
#[derive(Clone, Debug)]
pub struct Settings {
    /// I/O queue pairs to ask the controller for; it may grant fewer.
    pub queue_pairs: u16,
    /// How long an admin command may take before the controller is reset.
    pub admin_timeout: Duration,
    /// How often the status register is read while nothing is wrong.
    pub health_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_pairs: 64,
            admin_timeout: Duration::from_secs(60),
            health_interval: Duration::from_secs(1),
        }
    }
}

/// What can be asked of a controller.
#[derive(Debug)]
pub enum Request {
    /// Make a queue pair; answered by [`Event::QueuePairCreated`] with the same tag.
    CreateQueuePair {
        /// What it is to be like.
        settings: QueueSettings,
        /// The asker's name for the request.
        tag: u64,
    },
    /// Delete a queue pair and free its memory; answered by [`Event::QueuePairDeleted`]. Commands
    /// still in flight end without a completion, so drain the pair before.
    DeleteQueuePair {
        /// The pair.
        pair: Box<QueuePair>,
        /// The asker's name for the request.
        tag: u64,
    },
    /// Read the first bytes of a log page, at most 4096; answered by [`Event::Log`].
    ReadLog {
        /// The log page.
        page: LogPage,
        /// How many bytes.
        length: usize,
        /// The asker's name for the request.
        tag: u64,
    },
    /// Reset the controller. Commands in flight end with `CommandFailure::Reset`.
    Reset,
    /// Write out the cache and stop (Base 3.6.1). Answered by [`Event::ShutDown`] or
    /// [`Event::Failed`], after which nothing more happens.
    Shutdown,
}

/// What a controller tells its owner.
#[derive(Debug)]
pub enum Event {
    /// It is up: once, before everything else.
    Ready {
        /// What it is.
        identity: Box<ControllerIdentity>,
        /// Its namespaces that can be used.
        namespaces: Vec<Namespace>,
        /// Why the others cannot.
        refused: Vec<NvmeError>,
    },
    /// A queue pair was made, or could not be made.
    QueuePairCreated {
        /// Of the request.
        tag: u64,
        /// The pair, to be moved to the thread that uses it.
        result: Result<Box<QueuePair>, NvmeError>,
    },
    /// A queue pair was deleted. If that failed, its memory stays the device's until a reset.
    QueuePairDeleted {
        /// Of the request.
        tag: u64,
        /// The outcome.
        result: Result<(), NvmeError>,
    },
    /// A log page was read, or could not be.
    Log {
        /// Of the request.
        tag: u64,
        /// Its bytes.
        result: Result<Vec<u8>, NvmeError>,
    },
    /// A queue pair did not survive a reset: the controller would not create it again.
    QueuePairLost {
        /// Which.
        id: QueueId,
        /// Why.
        error: NvmeError,
    },
    /// A namespace is new, or has another size or other properties than before.
    NamespaceChanged(Box<Namespace>),
    /// A namespace is gone, or can no longer be used.
    NamespaceLost {
        /// Which.
        id: NamespaceId,
        /// Why it cannot be used, if it is still there.
        error: Option<NvmeError>,
    },
    /// The SMART log has critical warnings (`SmartLog::WARNING_*`).
    Health {
        /// The warnings.
        critical_warning: u8,
        /// Life used up, in percent.
        percentage_used: u8,
    },
    /// Any other asynchronous event.
    Notice(AsyncEvent),
    /// A reset begins: queue pairs take no commands now.
    ResetStarted {
        /// Why.
        cause: ResetCause,
        /// Whether the controller has written its volatile cache out before.
        cache_written: bool,
    },
    /// The reset is over: queue pairs work again as soon as each has been polled.
    ResetDone,
    /// The controller was given up. The last event.
    Failed(NvmeError),
    /// The controller was shut down on request. The last event.
    ShutDown,
}

/// Between a controller's owner, its task and its handles.
#[derive(Debug)]
pub(crate) struct Shared {
    now: AtomicU64,
    mailbox: Mutex<Mailbox>,
}

#[derive(Debug)]
struct Mailbox {
    requests: VecDeque<Request>,
    events: VecDeque<Event>,
    pace: Duration,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Mailbox> {
        // The queues are consistent between any two statements that can panic.
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment that `poll` was last told.
    pub(crate) fn now(&self) -> Instant {
        Instant::from_nanos(self.now.load(Ordering::Relaxed))
    }

    pub(crate) fn emit(&self, event: Event) {
        self.lock().events.push_back(event);
    }

    pub(crate) fn next_request(&self) -> Option<Request> {
        self.lock().requests.pop_front()
    }

    /// Answers the requests to a controller that has ended.
    fn refuse_requests(&self) {
        while let Some(request) = self.next_request() {
            match request {
                Request::CreateQueuePair { tag, .. } => {
                    self.emit(Event::QueuePairCreated { tag, result: Err(NvmeError::Gone) });
                }
                Request::DeleteQueuePair { pair, tag } => {
                    // Freed if the controller was seen to be disabled, else quarantined.
                    drop(pair);
                    self.emit(Event::QueuePairDeleted { tag, result: Ok(()) });
                }
                Request::ReadLog { tag, .. } => {
                    self.emit(Event::Log { tag, result: Err(NvmeError::Gone) });
                }
                Request::Reset | Request::Shutdown => {}
            }
        }
    }

    /// Ends this call of `poll`; the next one, wanted within `pace`, goes on from here.
    pub(crate) fn pause(&self, pace: Duration) -> impl Future<Output = ()> + use<> {
        self.lock().pace = pace;
        let mut paused = false;
        std::future::poll_fn(move |_| {
            if paused {
                return Poll::Ready(());
            }
            paused = true;
            Poll::Pending
        })
    }
}

/// A controller. Dropping it without a [`Request::Shutdown`] leaves it running, with its queues'
/// memory in quarantine.
pub struct Controller {
    shared: Arc<Shared>,
    /// `None` once it has ended.
    life: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Controller {
    /// A controller behind `transport`, to be brought up by [`Controller::poll`]. Its queues and
    /// all buffers lie in `arena`, which is made reachable for it.
    ///
    /// # Errors
    /// [`NvmeError::Transport`] if the arena cannot be mapped.
    pub fn start(
        transport: Arc<dyn Transport>,
        arena: &DmaArena,
        settings: Settings,
    ) -> Result<Self, NvmeError> {
        transport
            .map(arena)
            .map_err(|source| NvmeError::Transport { operation: "mapping DMA memory", source })?;
        let mailbox =
            Mailbox { requests: VecDeque::new(), events: VecDeque::new(), pace: Duration::ZERO };
        let shared = Arc::new(Shared { now: AtomicU64::new(0), mailbox: Mutex::new(mailbox) });
        let core = Core::new(transport, arena.clone(), settings, Arc::clone(&shared));
        Ok(Self { shared, life: Some(Box::pin(live_and_end(core))) })
    }

    /// Does what can be done now and hands events to `visitor`. Returns how soon to call again;
    /// also call after a request. `now` never goes back.
    pub fn poll(&mut self, now: Instant, visitor: &mut impl FnMut(Event)) -> Duration {
        self.shared.now.store(now.as_nanos(), Ordering::Relaxed);
        if let Some(life) = &mut self.life {
            let mut context = Context::from_waker(Waker::noop());
            if life.as_mut().poll(&mut context).is_ready() {
                self.life = None;
            }
        }
        if self.life.is_none() {
            self.shared.refuse_requests();
        }
        // The lock is not held while the visitor runs: it may send requests.
        loop {
            let event = self.shared.lock().events.pop_front();
            let Some(event) = event else { break };
            visitor(event);
        }
        if self.life.is_none() { IDLE } else { self.shared.lock().pace }
    }

    /// Whether it was shut down or given up: nothing will happen any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.life.is_none()
    }

    /// A way to send requests, also from other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Sends a request, to be taken up by a later [`Controller::poll`].
    ///
    /// # Errors
    /// The request itself, if too many are waiting.
    pub fn request(&self, request: Request) -> Result<(), Request> {
        self.handle().request(request)
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller").field("over", &self.is_over()).finish_non_exhaustive()
    }
}

/// A way to send requests to a controller from any thread.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Sends a request, to be taken up by a later [`Controller::poll`].
    ///
    /// # Errors
    /// The request itself, if too many are waiting.
    pub fn request(&self, request: Request) -> Result<(), Request> {
        let mut mailbox = self.0.lock();
        if mailbox.requests.len() >= MAX_REQUESTS {
            return Err(request);
        }
        mailbox.requests.push_back(request);
        Ok(())
    }
}
