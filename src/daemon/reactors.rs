//! The reactors of the daemon: one thread each, started together and stopped together.

use std::future::Future;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, anyhow};
use futures_channel::oneshot;

use crate::config::DEFAULT_REACTORS_LIMIT;
use crate::hw::thread::{allowed_cpus, pin_to_cpu, precise_timers, usable_cpus};
use crate::reactor::policy::{SpinPermits, measure_wake_cost};
use crate::reactor::{Clock, Reactor, ReactorOptions, Remote, Wait};

/// One reactor thread, with the object `T` that the daemon keeps on it.
pub(super) struct ReactorThread<T> {
    seat: Seat,
    object: Remote<T>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Where a reactor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    /// Wherever the system runs it.
    Anywhere,
    /// On one CPU, as the configuration says.
    Bound(usize),
    /// It belongs to a CPU, and is free to leave it when that pays.
    Home(usize),
}

/// One reactor for each CPU that the process may use, up to a limit. Where it may use less time
/// than its CPUs have, or where there are more CPUs, none belongs to a certain one.
pub(super) fn on_every_cpu() -> Vec<Seat> {
    let (cpus, usable) = (allowed_cpus(), usable_cpus());
    if cpus.len() == usable && usable <= DEFAULT_REACTORS_LIMIT {
        cpus.into_iter().map(Seat::Home).collect()
    } else {
        vec![Seat::Anywhere; usable.clamp(1, DEFAULT_REACTORS_LIMIT)]
    }
}

/// Starts one reactor for each of `seats`, and on each makes the object that the daemon keeps
/// there.
///
/// # Errors
/// If the system gives no thread, no io_uring, or not the CPU.
pub(super) fn start<T: 'static>(
    seats: &[Seat],
    wait: Wait,
    make: impl Fn(&Rc<Reactor>) -> T + Clone + Send + 'static,
) -> anyhow::Result<Vec<ReactorThread<T>>> {
    let wake_cost = measure_wake_cost().context("cannot measure what a wake-up costs")?;
    tracing::debug!(?wake_cost, "measured");
    let permits = SpinPermits::with_wake_cost(usable_cpus(), wake_cost);
    let started = Instant::now();
    let one = |(index, seat): (usize, &Seat)| {
        let (permits, make, seat) = (permits.clone(), make.clone(), *seat);
        spawn(seat, make, move || ReactorOptions {
            index,
            wait,
            permits,
            clock: Clock::Real(started),
        })
    };
    seats.iter().enumerate().map(one).collect()
}

fn spawn<T: 'static>(
    seat: Seat,
    make: impl FnOnce(&Rc<Reactor>) -> T + Send + 'static,
    options: impl FnOnce() -> ReactorOptions + Send + 'static,
) -> anyhow::Result<ReactorThread<T>> {
    let (stop, stopped) = oneshot::channel();
    let (tell, told) = crossbeam_channel::bounded(1);
    let run = move || {
        let reactor = (|| {
            if let Seat::Bound(cpu) = seat {
                pin_to_cpu(cpu).with_context(|| format!("cannot run on CPU {cpu}"))?;
            }
            precise_timers();
            Reactor::new(options())
                .context("cannot create an io_uring; if kernel.io_uring_disabled is set, clear it")
        })();
        let reactor = match reactor {
            Ok(reactor) => reactor,
            Err(error) => return drop(tell.send(Err(error))),
        };
        let object = reactor.keep(Rc::new(make(&reactor)));
        if tell.send(Ok(object)).is_ok() {
            // Ends when `stop` is sent or dropped.
            reactor.block_on(stopped).unwrap_or_default();
        }
    };
    let thread = std::thread::Builder::new()
        .name("reactor".to_owned())
        .spawn(run)
        .context("cannot start a reactor's thread")?;
    let object = told.recv().map_err(|_| anyhow!("a reactor's thread ended at its start"))??;
    Ok(ReactorThread { seat, object, stop: Some(stop), thread: Some(thread) })
}

impl<T: 'static> ReactorThread<T> {
    /// Where it runs.
    pub(super) fn seat(&self) -> Seat {
        self.seat
    }

    /// The CPU that it belongs to.
    pub(super) fn cpu(&self) -> Option<usize> {
        match self.seat {
            Seat::Anywhere => None,
            Seat::Bound(cpu) | Seat::Home(cpu) => Some(cpu),
        }
    }

    /// The object on this reactor.
    pub(super) fn object(&self) -> &Remote<T> {
        &self.object
    }

    /// Runs `call` with the object on the reactor's thread, and blocks until it ends.
    ///
    /// # Errors
    /// If the reactor has ended: a panic on its thread.
    pub(super) fn run<F, Fut, R>(&self, call: F) -> anyhow::Result<R>
    where
        F: FnOnce(Rc<T>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        self.object.call_blocking(call).context("a reactor has ended before its time")
    }
}

impl<T> Drop for ReactorThread<T> {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a reactor's thread panicked");
        }
    }
}
