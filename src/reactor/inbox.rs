//! Mail between threads: closures that run on the reactor they are sent to.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::Wake;

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::Reactor;
use crate::hw::event::EventFd;

/// How many mails may wait for one reactor.
pub(super) const INBOX_LIMIT: usize = 8192;

/// Something to run on a reactor's thread. It must not block.
pub type Mail = Box<dyn FnOnce(&Rc<Reactor>) + Send>;

/// The inbox has as many mails as it may hold, or its reactor has ended. The mail comes back.
pub struct InboxFull(pub Mail);

/// What other threads hold of a reactor.
#[derive(Clone)]
pub struct ReactorHandle {
    index: usize,
    sender: Sender<Mail>,
    signal: Arc<Signal>,
}

impl ReactorHandle {
    /// The reactor's number in its process, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether the reactor has ended: its mail is no longer opened.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.signal.ended.load(Ordering::Acquire)
    }

    /// Sends mail and wakes the reactor if it sleeps.
    ///
    /// # Errors
    /// The mail, if the inbox is full or the reactor has ended.
    pub fn send(&self, mail: Mail) -> Result<(), InboxFull> {
        if self.has_ended() {
            return Err(InboxFull(mail));
        }
        match self.sender.try_send(mail) {
            Ok(()) => {
                self.signal.raise();
                Ok(())
            }
            Err(TrySendError::Full(mail) | TrySendError::Disconnected(mail)) => {
                Err(InboxFull(mail))
            }
        }
    }
}

impl std::fmt::Debug for ReactorHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReactorHandle({})", self.index)
    }
}

/// The receiving end, owned by the reactor.
pub(super) struct Inbox {
    receiver: Receiver<Mail>,
    handle: ReactorHandle,
}

impl Inbox {
    pub(super) fn new(index: usize) -> std::io::Result<Self> {
        let (sender, receiver) = crossbeam_channel::bounded(INBOX_LIMIT);
        let signal = Arc::new(Signal::new()?);
        Ok(Self { receiver, handle: ReactorHandle { index, sender, signal } })
    }

    pub(super) fn handle(&self) -> &ReactorHandle {
        &self.handle
    }

    pub(super) fn signal(&self) -> &Arc<Signal> {
        &self.handle.signal
    }

    pub(super) fn event(&self) -> &Arc<EventFd> {
        &self.handle.signal.event
    }

    pub(super) fn take(&self) -> Option<Mail> {
        self.receiver.try_recv().ok()
    }
}

/// "There is something to do", raised by any thread, with a system call only if the reactor
/// sleeps. It is also the waker of the reactor's executor.
pub(super) struct Signal {
    raised: AtomicBool,
    sleeping: AtomicBool,
    ended: AtomicBool,
    event: Arc<EventFd>,
}

impl Signal {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            raised: AtomicBool::new(true),
            sleeping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            event: Arc::new(EventFd::new()?),
        })
    }

    #[inline]
    fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        // Pairs with the fence in `prepare_sleep`: either we see `sleeping`, or the reactor sees
        // `raised`.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            self.event.signal();
        }
    }

    /// Takes the signal down; true if it was up.
    #[inline]
    pub(super) fn take(&self) -> bool {
        self.raised.load(Ordering::Relaxed) && self.raised.swap(false, Ordering::Acquire)
    }

    /// Announces that the reactor is about to sleep; false if it must not, since the signal is up.
    pub(super) fn prepare_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.raised.load(Ordering::Relaxed) {
            self.sleeping.store(false, Ordering::Relaxed);
            return false;
        }
        true
    }

    pub(super) fn woke(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.signal().ended.store(true, Ordering::Release);
        // Mail that waits for an answer from mail here must learn that none will come.
        while self.take().is_some() {}
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.raise();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.raise();
    }
}
