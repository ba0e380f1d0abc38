//! Hosts: who the local mount is, who uses which volume on which reactor, who wants to hear of
//! changes of reservations, and where those are kept through a power loss.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::future::{Either, join_all, select};

use super::directory::{Entry, Key};
use super::handle::Volume;
use crate::lvol::Tracker;
use crate::reactor::{Reactor, Remote};
use crate::reservation::Notification;
use crate::spec::reservation::HostId;

/// How long a Preempt and Abort waits for the operations of those whom it preempted. Shorter than
/// the 30 s after which a Linux host gives up on a command and resets its controller: then it
/// would never hear what became of it, and its own I/O would suffer.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(25);

/// Where reservations outlive a power loss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keeping {
    /// Nowhere: a command that would make them persist is refused.
    #[default]
    Nowhere,
    /// In this folder, a file for each volume.
    Folder(PathBuf),
    /// With the volume, in an extended attribute: they move with the drive.
    Volume,
}

/// Hears of what changed the reservations of a volume for others than the sender. Called on the
/// reactor of the pool's owner, before the command is answered; to be quick about it.
pub type Listener = dyn Fn(&Arc<Entry>, &[Notification]) + Send + Sync;

/// What all reactors know of hosts.
pub struct Hosts {
    local: HostId,
    keeping: Keeping,
    worker: Worker,
    uses: Mutex<Vec<Remote<HostVolumes>>>,
    listeners: Mutex<Vec<Arc<Listener>>>,
}

impl Default for Hosts {
    /// For tests: a host identifier that is the same everywhere, and nothing that persists.
    fn default() -> Self {
        let Some(local) = HostId::new(*b"the local mount.") else {
            unreachable!("these bytes are not zeros");
        };
        Self::new(local, Keeping::default())
    }
}

impl Hosts {
    /// With the identity of the local mount.
    #[must_use]
    pub fn new(local: HostId, keeping: Keeping) -> Self {
        let (uses, listeners) = (Mutex::default(), Mutex::default());
        Self { local, keeping, worker: Worker::default(), uses, listeners }
    }

    /// The host that the local mount and the control socket act for.
    #[must_use]
    pub fn local(&self) -> HostId {
        self.local
    }

    /// Where reservations outlive a power loss.
    #[must_use]
    pub fn keeping(&self) -> &Keeping {
        &self.keeping
    }

    /// Calls `listener` from now on.
    pub fn listen(&self, listener: Arc<Listener>) {
        lock(&self.listeners).push(listener);
    }

    pub(super) fn tell(&self, entry: &Arc<Entry>, notifications: &[Notification]) {
        if notifications.is_empty() {
            return;
        }
        let listeners = lock(&self.listeners).clone();
        listeners.iter().for_each(|listener| listener(entry, notifications));
    }

    /// Runs what blocks on the file system on a thread of its own.
    pub(super) fn blocking<R, F>(&self, work: F) -> impl Future<Output = Option<R>> + use<R, F>
    where
        R: Send + 'static,
        F: FnOnce() -> R + Send + 'static,
    {
        self.worker.run(work)
    }

    pub(super) fn add_reactor(&self, uses: Remote<HostVolumes>) {
        lock(&self.uses).push(uses);
    }

    /// Hears from every reactor, so that each has seen what was published before; and waits until
    /// the operations of `hosts` on the volume that began before have ended, everywhere. False if
    /// that cannot be known, or takes longer than [`DRAIN_LIMIT`].
    pub(super) async fn settle(&self, reactor: &Rc<Reactor>, key: Key, hosts: &[HostId]) -> bool {
        let uses = lock(&self.uses).clone();
        let one = |uses: Remote<HostVolumes>| {
            let hosts = hosts.to_vec();
            let reactor = Rc::clone(reactor);
            async move {
                let drain =
                    move |uses: Rc<HostVolumes>| async move { uses.drain(key, &hosts).await };
                // A reactor that has ended runs nothing any more.
                uses.call(&reactor, drain).await.unwrap_or(true)
            }
        };
        let all = std::pin::pin!(join_all(uses.into_iter().map(one)));
        if hosts.is_empty() {
            return all.await.into_iter().all(|settled| settled);
        }
        match select(all, reactor.sleep(DRAIN_LIMIT)).await {
            Either::Left((settled, _)) => settled.into_iter().all(|settled| settled),
            Either::Right(_) => false,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No statement that holds one of these locks can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One reactor's volumes, by host.
pub(super) struct HostVolumes {
    /// Weak: the reactor keeps this object, and must be able to end.
    reactor: Weak<Reactor>,
    known: RefCell<HashMap<(Key, HostId), Known>>,
}

struct Known {
    /// There may be no handle any more, and still operations.
    volume: Weak<Volume>,
    in_flight: Rc<Tracker>,
    /// A tracker can be drained once at a time.
    draining: Rc<async_lock::Mutex<()>>,
}

impl HostVolumes {
    pub(super) fn new(reactor: &Rc<Reactor>) -> Rc<Self> {
        Rc::new(Self { reactor: Rc::downgrade(reactor), known: RefCell::default() })
    }

    /// The handle of a host, if there is one, and its tracker.
    pub(super) fn find(&self, key: Key, host: HostId) -> (Option<Rc<Volume>>, Rc<Tracker>) {
        let mut known = self.known.borrow_mut();
        if let Some(known) = known.get(&(key, host)) {
            return (known.volume.upgrade(), Rc::clone(&known.in_flight));
        }
        // This is rare enough to look for those that are gone.
        known.retain(|_, known| known.volume.strong_count() > 0 || !known.in_flight.is_idle());
        let fresh =
            Known { volume: Weak::new(), in_flight: Rc::default(), draining: Rc::default() };
        let in_flight = Rc::clone(&fresh.in_flight);
        known.insert((key, host), fresh);
        (None, in_flight)
    }

    /// Notes the handle of a host. Its tracker is the one that [`HostVolumes::find`] gave.
    pub(super) fn keep(&self, key: Key, volume: &Rc<Volume>, in_flight: &Rc<Tracker>) {
        let mut known = self.known.borrow_mut();
        let entry = known.entry((key, volume.host())).or_insert_with(|| Known {
            volume: Weak::new(),
            in_flight: Rc::clone(in_flight),
            draining: Rc::default(),
        });
        if Rc::ptr_eq(&entry.in_flight, in_flight) {
            entry.volume = Rc::downgrade(volume);
        }
    }

    /// Waits until the operations of `hosts` on a volume that began before have ended. Goes on if
    /// nobody waits for it any more.
    async fn drain(&self, key: Key, hosts: &[HostId]) -> bool {
        // It is this reactor that runs us, unless it is about to end.
        let Some(reactor) = self.reactor.upgrade() else { return true };
        let mut ends = Vec::new();
        for &host in hosts {
            let known = self.known.borrow();
            let Some(known) = known.get(&(key, host)) else { continue };
            let (in_flight, one) = (Rc::clone(&known.in_flight), Rc::clone(&known.draining));
            let (end, ended) = oneshot::channel();
            reactor.spawn(async move {
                let _one = one.lock().await;
                end.send(in_flight.drain().await).unwrap_or_default();
            });
            ends.push(ended);
        }
        join_all(ends).await.into_iter().all(|drained| drained == Ok(true))
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread for what blocks, started with its first job. Jobs are as many at a time as volumes
/// have commands under way, which is one each.
#[derive(Default)]
struct Worker(Mutex<Option<crossbeam_channel::Sender<Job>>>);

impl Worker {
    /// `None` if there can be no thread, or the job panicked.
    fn run<R, F>(&self, work: F) -> impl Future<Output = Option<R>> + use<R, F>
    where
        R: Send + 'static,
        F: FnOnce() -> R + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || drop(answer.send(work())));
        let sent = self.sender().is_some_and(|sender| sender.send(job).is_ok());
        async move { if sent { answered.await.ok() } else { None } }
    }

    fn sender(&self) -> Option<crossbeam_channel::Sender<Job>> {
        let mut sender = lock(&self.0);
        if sender.is_none() {
            let (jobs, waiting) = crossbeam_channel::unbounded::<Job>();
            let run = move || waiting.iter().for_each(|job| job());
            let thread = std::thread::Builder::new().name("reservations".to_owned()).spawn(run);
            match thread {
                Ok(_) => *sender = Some(jobs),
                Err(error) => tracing::error!(%error, "no thread to store reservations"),
            }
        }
        sender.clone()
    }
}
