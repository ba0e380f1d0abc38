//! The reactors of the daemon: one thread each, started together and stopped together.

use std::future::Future;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, anyhow};
use futures_channel::oneshot;

use crate::hw::thread::{pin_to_cpu, precise_timers, usable_cpus};
use crate::reactor::policy::{SpinPermits, measure_wake_cost};
use crate::reactor::{Clock, Reactor, ReactorOptions, Remote, Wait};

/// One reactor thread, with the object `T` that the daemon keeps on it.
pub(super) struct ReactorThread<T> {
    cpu: Option<usize>,
    object: Remote<T>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts one reactor for each entry of `cpus` (`None` leaves the thread to the scheduler), and
/// on each makes the object that the daemon keeps there.
///
/// # Errors
/// If the system gives no thread, no io_uring, or not the CPU.
pub(super) fn start<T: 'static>(
    cpus: &[Option<usize>],
    wait: Wait,
    make: impl Fn(&Rc<Reactor>) -> T + Clone + Send + 'static,
) -> anyhow::Result<Vec<ReactorThread<T>>> {
    let wake_cost = measure_wake_cost().context("cannot measure what a wake-up costs")?;
    tracing::debug!(?wake_cost, "measured");
    let permits = SpinPermits::with_wake_cost(usable_cpus(), wake_cost);
    let started = Instant::now();
    let one = |(index, cpu): (usize, &Option<usize>)| {
        let (permits, make, cpu) = (permits.clone(), make.clone(), *cpu);
        spawn(cpu, make, move || ReactorOptions {
            index,
            wait,
            permits,
            clock: Clock::Real(started),
        })
    };
    cpus.iter().enumerate().map(one).collect()
}

fn spawn<T: 'static>(
    cpu: Option<usize>,
    make: impl FnOnce(&Rc<Reactor>) -> T + Send + 'static,
    options: impl FnOnce() -> ReactorOptions + Send + 'static,
) -> anyhow::Result<ReactorThread<T>> {
    let (stop, stopped) = oneshot::channel();
    let (tell, told) = crossbeam_channel::bounded(1);
    let run = move || {
        let reactor = (|| {
            if let Some(cpu) = cpu {
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
    Ok(ReactorThread { cpu, object, stop: Some(stop), thread: Some(thread) })
}

impl<T: 'static> ReactorThread<T> {
    /// The CPU that it is bound to.
    pub(super) fn cpu(&self) -> Option<usize> {
        self.cpu
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
