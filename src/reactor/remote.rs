//! Calling an object that lives on another reactor.

use std::any::Any;
use std::future::Future;
use std::marker::PhantomData;
use std::rc::Rc;

use futures_channel::oneshot;

use super::Reactor;
use super::inbox::{InboxFull, Mail, ReactorHandle};

/// A handle, usable on any thread, to an object that one reactor keeps. Clones are handles to
/// the same object, which lives until [`Remote::release`] or its reactor's end.
pub struct Remote<T> {
    home: ReactorHandle,
    key: usize,
    _object: PhantomData<fn() -> T>,
}

/// The object's reactor has ended, or the object was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reactor that owns this object has ended")]
pub struct Gone;

impl<T> Clone for Remote<T> {
    fn clone(&self) -> Self {
        Self { home: self.home.clone(), key: self.key, _object: PhantomData }
    }
}

impl<T> std::fmt::Debug for Remote<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({} on reactor {})", self.key, self.home.index())
    }
}

impl<T: 'static> Remote<T> {
    pub(super) fn new(home: ReactorHandle, key: usize) -> Self {
        Self { home, key, _object: PhantomData }
    }

    /// The object itself, if `reactor` is the one that keeps it.
    #[must_use]
    pub fn local(&self, reactor: &Reactor) -> Option<Rc<T>> {
        if reactor.index() != self.home.index() {
            return None;
        }
        reactor.kept(self.key)?.downcast().ok()
    }

    /// The reactor that keeps the object.
    #[must_use]
    pub fn home(&self) -> &ReactorHandle {
        &self.home
    }

    /// Runs `call` with the object on the object's reactor and waits for its answer. While the
    /// other reactor's inbox is full, this waits and tries again.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn call<F, Fut, R>(&self, caller: &Rc<Reactor>, call: F) -> Result<R, Gone>
    where
        F: FnOnce(Rc<T>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        if let Some(object) = self.local(caller) {
            return Ok(call(object).await);
        }
        let (answer, answered) = oneshot::channel();
        let key = self.key;
        let mut mail: Mail = Box::new(move |reactor| {
            let Some(object) = reactor.kept(key).and_then(|kept| kept.downcast::<T>().ok()) else {
                return;
            };
            let run = call(object);
            // A caller that no longer waits is no reason to stop half-way.
            reactor.spawn(async move { drop(answer.send(run.await)) });
        });
        while let Err(InboxFull(back)) = self.home.send(mail) {
            if self.home.has_ended() {
                return Err(Gone);
            }
            mail = back;
            caller.sleep(super::turn::INBOX_RETRY).await;
        }
        answered.await.map_err(|_| Gone)
    }

    /// As [`Remote::call`], from a thread that is not a reactor; blocks it.
    ///
    /// # Errors
    /// [`Gone`], also if the inbox is full.
    pub fn call_blocking<F, Fut, R>(&self, call: F) -> Result<R, Gone>
    where
        F: FnOnce(Rc<T>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        let (answer, answered) = crossbeam_channel::bounded(1);
        let key = self.key;
        self.home
            .send(Box::new(move |reactor| {
                if let Some(object) = reactor.kept(key).and_then(|kept| kept.downcast::<T>().ok()) {
                    let run = call(object);
                    reactor.spawn(async move { drop(answer.send(run.await)) });
                }
            }))
            .map_err(|_| Gone)?;
        answered.recv().map_err(|_| Gone)
    }

    /// Runs `call` with the object on the object's reactor, without waiting for it. False if it
    /// never will: the reactor has ended, or its inbox is full.
    pub fn post(&self, call: impl FnOnce(&Rc<T>) + Send + 'static) -> bool {
        let key = self.key;
        let mail: Mail = Box::new(move |reactor| {
            if let Some(object) = reactor.kept(key).and_then(|kept| kept.downcast::<T>().ok()) {
                call(&object);
            }
        });
        self.home.send(mail).is_ok()
    }

    /// Lets the object go. To be called on its own reactor.
    pub fn release(&self, reactor: &Reactor) -> Option<Rc<T>> {
        let object = self.local(reactor)?;
        reactor.let_go(self.key);
        Some(object)
    }
}

/// Type-erased objects of one reactor, by key.
pub(super) type Kept = Rc<dyn Any>;
