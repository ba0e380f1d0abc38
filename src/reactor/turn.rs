//! The loop itself.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_executor::LocalExecutor;
use slab::Slab;

use super::clock::{Clock, Instant};
use super::inbox::{Inbox, ReactorHandle};
use super::placement::Seat;
use super::policy::{Decision, SpinPermits, Wait, Waiting};
use super::remote::{Kept, Remote};
use super::ring::Ring;
use super::timers::{Sleep, Timers};
use crate::hw::event::EventFd;

/// How long a caller waits before it tries a full inbox again.
pub(super) const INBOX_RETRY: Duration = Duration::from_micros(50);
/// Most mails opened in one turn, so that a flood of mail cannot starve the devices.
const MAIL_PER_TURN: usize = 64;

/// Something that is polled in every turn: a device's queue pair.
pub trait Poller {
    /// Does what can be done now, without blocking; returns the amount of work done.
    fn poll(&self, now: Instant) -> usize;
    /// Whether the device owes an answer that polling would find.
    fn outstanding(&self) -> bool;
    /// The event that the device signals when it has an answer, for a reactor that sleeps.
    /// `None`: the reactor sleeps no longer than to the deadline, and not at all without one,
    /// while something is outstanding.
    fn event(&self) -> Option<Arc<EventFd>>;
    /// When this wants to be polled even if nothing happens: the earliest command timeout, or the
    /// next look at what has no event.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

type Pollers = Vec<(u64, Rc<dyn Poller>)>;

/// What a reactor is made of.
#[derive(Clone, Debug)]
pub struct ReactorOptions {
    /// Its number, from 0.
    pub index: usize,
    /// How it waits.
    pub wait: Wait,
    /// The process's right to spin.
    pub permits: SpinPermits,
    /// Its clock.
    pub clock: Clock,
}

impl ReactorOptions {
    /// A reactor for tests: number 0, virtual time, never spinning.
    #[must_use]
    pub fn deterministic() -> Self {
        Self {
            index: 0,
            wait: Wait::Sleep,
            permits: SpinPermits::new(1),
            clock: Clock::Virtual(super::VirtualClock::default()),
        }
    }
}

/// What a reactor did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ReactorStatistics {
    /// Turns of the loop.
    pub turns: u64,
    /// Turns that found nothing and went on at once.
    pub spins: u64,
    /// Turns that blocked in the ring.
    pub sleeps: u64,
    /// Mails opened.
    pub mails: u64,
    /// Time since it was made, in nanoseconds.
    pub lived_nanos: u64,
    /// Time spent in turns that found nothing and went on at once, in nanoseconds.
    pub spun_nanos: u64,
    /// Time spent blocked, in nanoseconds.
    pub slept_nanos: u64,
}

/// One reactor. Lives on the thread that made it; see the module.
pub struct Reactor {
    executor: LocalExecutor<'static>,
    ring: Rc<Ring>,
    timers: Rc<Timers>,
    inbox: Inbox,
    clock: Clock,
    born: Instant,
    waiting: RefCell<Waiting>,
    /// Where it runs, if it serves the queue of a CPU.
    seat: RefCell<Option<Seat>>,
    /// Replaced as a whole when it changes, so that a turn can walk it while pollers come and go.
    pollers: RefCell<Rc<Pollers>>,
    next_poller: Cell<u64>,
    kept: RefCell<Slab<Kept>>,
    statistics: Cell<ReactorStatistics>,
}

impl Reactor {
    /// A reactor on this thread.
    ///
    /// # Errors
    /// The system's: no io_uring, or no descriptors left.
    pub fn new(options: ReactorOptions) -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            executor: LocalExecutor::new(),
            ring: Rc::new(Ring::new()?),
            timers: Rc::default(),
            inbox: Inbox::new(options.index)?,
            born: options.clock.now(),
            clock: options.clock,
            waiting: RefCell::new(Waiting::new(options.wait, options.permits)),
            seat: RefCell::default(),
            pollers: RefCell::default(),
            next_poller: Cell::new(0),
            kept: RefCell::default(),
            statistics: Cell::default(),
        }))
    }

    /// Its number in the process.
    #[must_use]
    pub fn index(&self) -> usize {
        self.inbox.handle().index()
    }

    /// What other threads need to send it mail.
    #[must_use]
    pub fn handle(&self) -> ReactorHandle {
        self.inbox.handle().clone()
    }

    /// Its io_uring.
    #[must_use]
    pub fn ring(&self) -> &Rc<Ring> {
        &self.ring
    }

    /// The time now.
    #[must_use]
    #[inline]
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Whether this reactor is likely to spin for as long as `wait` when it waits for a device.
    #[must_use]
    #[inline]
    pub fn would_spin(&self, wait: Duration) -> bool {
        self.waiting.borrow().would_spin(wait)
    }

    /// What it did so far.
    #[must_use]
    pub fn statistics(&self) -> ReactorStatistics {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        ReactorStatistics {
            lived_nanos: nanos(self.now().since(self.born)),
            spun_nanos: nanos(self.waiting.borrow().spun()),
            ..self.statistics.get()
        }
    }

    /// Starts a task on this thread. It runs to its end, whoever waits for it or not.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.executor.spawn(future).detach();
    }

    /// Starts a task and waits for its result.
    pub fn task<R: 'static>(
        &self,
        future: impl Future<Output = R> + 'static,
    ) -> impl Future<Output = R> + 'static {
        self.executor.spawn(future)
    }

    /// A future that ends `delay` from now.
    #[must_use]
    pub fn sleep(&self, delay: Duration) -> Sleep {
        self.timers.sleep_until(self.now().after(delay))
    }

    /// A future that ends at `deadline`.
    #[must_use]
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        self.timers.sleep_until(deadline)
    }

    /// Polls `poller` in every turn from now on, until the registration is dropped.
    #[must_use]
    pub fn register(self: &Rc<Self>, poller: Rc<dyn Poller>) -> Registration {
        let key = self.next_poller.get();
        self.next_poller.set(key + 1);
        self.change_pollers(|pollers| pollers.push((key, poller)));
        Registration { reactor: Rc::clone(self), key }
    }

    /// Keeps `object` for callers on other reactors.
    #[must_use]
    pub fn keep<T: 'static>(&self, object: Rc<T>) -> Remote<T> {
        let key = self.kept.borrow_mut().insert(object);
        Remote::new(self.handle(), key)
    }

    pub(super) fn kept(&self, key: usize) -> Option<Kept> {
        self.kept.borrow().get(key).cloned()
    }

    pub(super) fn let_go(&self, key: usize) {
        drop(self.kept.borrow_mut().try_remove(key));
    }

    /// Makes this thread serve the queue of the CPU `home` as [`super::placement`] says. It may
    /// run on `others` too.
    ///
    /// # Errors
    /// The system's, if it may not run on `home`.
    pub fn settle(&self, home: usize, others: Vec<usize>) -> io::Result<()> {
        *self.seat.borrow_mut() = Some(Seat::take(home, others)?);
        Ok(())
    }

    /// Runs the loop until `future` ends. With a virtual clock, time moves to the next timer
    /// whenever nothing else can happen.
    ///
    /// # Panics
    /// With a virtual clock, if nothing can ever happen again: a deadlock in a test.
    pub fn block_on<R>(self: &Rc<Self>, future: impl Future<Output = R>) -> R {
        let waker = Waker::from(Arc::clone(self.inbox.signal()));
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(self.executor.run(future));
        let mut first = true;
        loop {
            let mut work = 0;
            if self.inbox.signal().take() | std::mem::take(&mut first) {
                work += 1;
                if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
                    return result;
                }
            }
            // Asked for once in a turn: with nothing else to do, a clock is most of what it costs.
            let now = self.now();
            work += self.turn(now);
            if work > 0 {
                self.count(|statistics| statistics.turns += 1);
                self.waiting.borrow_mut().worked(now);
                self.ring.submit_overdue();
            } else {
                self.wait(now);
            }
        }
    }

    /// Everything but the tasks: devices, ring, mail, timers.
    fn turn(self: &Rc<Self>, now: Instant) -> usize {
        let mut work = self.poll_devices(now);
        work += self.ring.turn();
        let arrivals = self.ring.take_arrivals();
        if arrivals > 0
            && let Some(seat) = self.seat.borrow_mut().as_mut()
        {
            seat.round(now, arrivals);
            self.waiting.borrow_mut().spin_between(seat.is_away());
        }
        for _ in 0..MAIL_PER_TURN {
            let Some(mail) = self.inbox.take() else { break };
            mail(self);
            self.count(|statistics| statistics.mails += 1);
            work += 1;
        }
        if self.timers.next_deadline().is_some() {
            work += self.timers.fire(now);
        }
        work
    }

    fn poll_devices(&self, now: Instant) -> usize {
        let pollers = Rc::clone(&self.pollers.borrow());
        if pollers.is_empty() {
            return 0;
        }
        pollers.iter().map(|(_, poller)| poller.poll(now)).sum()
    }

    fn change_pollers(&self, change: impl FnOnce(&mut Pollers)) {
        let mut pollers = self.pollers.borrow_mut();
        let mut changed = Vec::clone(&pollers);
        change(&mut changed);
        *pollers = Rc::new(changed);
    }

    /// A turn found nothing: spins, sleeps, or moves a virtual clock on.
    fn wait(&self, now: Instant) {
        let mut outstanding = false;
        let mut can_sleep = true;
        let mut deadline = self.timers.next_deadline();
        let mut events = Vec::new();
        for (_, poller) in &**self.pollers.borrow() {
            let wanted = poller.deadline();
            if let Some(wanted) = wanted {
                deadline = Some(deadline.map_or(wanted, |earliest| earliest.min(wanted)));
            }
            if poller.outstanding() {
                outstanding = true;
                match poller.event() {
                    Some(event) => events.push(event),
                    None => can_sleep &= wanted.is_some(),
                }
            }
        }
        if let Clock::Virtual(clock) = &self.clock {
            // Devices of a deterministic test answer when polled; only the kernel is waited for.
            if self.ring.in_flight() == 0 {
                match deadline {
                    Some(deadline) => return clock.advance_to(deadline),
                    None => panic!("deadlock: no task is ready and nothing can wake one"),
                }
            }
            return self.sleep_in_ring(now, None, &[]);
        }
        let decision = self.waiting.borrow_mut().idle(now, outstanding);
        if decision == Decision::Spin || (outstanding && !can_sleep) {
            self.ring.submit();
            self.count(|statistics| statistics.spins += 1);
            std::hint::spin_loop();
            return;
        }
        self.sleep_in_ring(now, deadline, &events);
    }

    fn sleep_in_ring(&self, before: Instant, deadline: Option<Instant>, events: &[Arc<EventFd>]) {
        // Old signals are taken down first; an answer that came before is found by the poll.
        for event in events {
            event.consume();
        }
        if !self.ring.is_armed(self.inbox.event()) {
            // It was signalled since it was armed: a turn has looked since.
            self.inbox.event().consume();
        }
        if self.poll_devices(before) > 0 || !self.inbox.signal().prepare_sleep() {
            self.inbox.signal().woke();
            return;
        }
        self.ring.arm(self.inbox.event());
        for event in events {
            self.ring.arm(event);
        }
        self.ring.block(deadline.map(|deadline| deadline.since(before)));
        self.inbox.signal().woke();
        let slept = self.now().since(before).as_nanos();
        self.count(|statistics| {
            statistics.sleeps += 1;
            statistics.slept_nanos += u64::try_from(slept).unwrap_or(u64::MAX);
        });
    }

    fn count(&self, change: impl FnOnce(&mut ReactorStatistics)) {
        let mut statistics = self.statistics.get();
        change(&mut statistics);
        self.statistics.set(statistics);
    }
}

/// Ends the polling of a poller when dropped.
pub struct Registration {
    reactor: Rc<Reactor>,
    key: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.reactor.change_pollers(|pollers| pollers.retain(|(key, _)| *key != self.key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn virtual_reactor() -> Rc<Reactor> {
        Reactor::new(ReactorOptions::deterministic()).unwrap()
    }

    #[test]
    fn virtual_time_moves_to_the_next_timer() {
        let reactor = virtual_reactor();
        let order = Rc::new(RefCell::new(Vec::new()));
        for seconds in [3600, 60, 7200] {
            let (order, sleep) = (Rc::clone(&order), reactor.sleep(Duration::from_secs(seconds)));
            reactor.spawn(async move {
                sleep.await;
                order.borrow_mut().push(seconds);
            });
        }
        reactor.block_on(reactor.sleep(Duration::from_secs(10_000)));
        assert_eq!(*order.borrow(), [60, 3600, 7200]);
        assert_eq!(reactor.now().as_nanos(), 10_000_000_000_000);
    }

    #[test]
    fn a_dropped_timer_does_not_fire() {
        let reactor = virtual_reactor();
        let mut sleep = Box::pin(reactor.sleep(Duration::from_secs(1)));
        reactor.block_on(async {
            let first = futures_util::future::poll_fn(|context| {
                Poll::Ready(sleep.as_mut().poll(context).is_ready())
            });
            assert!(!first.await);
        });
        drop(sleep);
        assert!(reactor.timers.next_deadline().is_none());
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_deadlock_in_a_test_is_found() {
        virtual_reactor().block_on(std::future::pending::<()>());
    }

    #[test]
    fn files_are_written_flushed_and_read_through_the_ring() {
        let reactor = virtual_reactor();
        let arena = crate::hw::dma::DmaArena::new(crate::units::ByteCount::MIB, false).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let ring = Rc::clone(reactor.ring());
        reactor.block_on(async {
            let mut buffer = arena.allocate(8192).unwrap();
            buffer.fill(9);
            let (written, buffer) = ring.write_at(&file, 4096, buffer, true).await;
            assert_eq!(written.unwrap(), 8192);
            ring.fdatasync(&file).await.unwrap();
            let punch = crate::hw::file::Fallocate::PunchHole;
            ring.fallocate(&file, punch, 4096, 4096).await.unwrap();
            let (read, buffer) = ring.read_at(&file, 4096, buffer).await;
            assert_eq!(read.unwrap(), 8192);
            assert!(buffer[..4096].iter().all(|&b| b == 0));
            assert!(buffer[4096..].iter().all(|&b| b == 9));
        });
        let mut byte = [0];
        file.read_exact_at(&mut byte, 8192).unwrap();
        assert_eq!(byte, [9]);
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn more_operations_than_the_table_holds_wait_their_turn() {
        let reactor = virtual_reactor();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let many = super::super::ring::IN_FLIGHT_LIMIT * 2;
        reactor.block_on(async {
            let syncs = (0..many).map(|_| {
                let (ring, file) = (Rc::clone(reactor.ring()), Arc::clone(&file));
                async move { ring.fdatasync(&file).await }
            });
            for result in futures_util::future::join_all(syncs).await {
                result.unwrap();
            }
        });
    }

    #[test]
    fn a_dropped_operation_keeps_its_buffer_until_the_kernel_answers() {
        let reactor = virtual_reactor();
        let arena = crate::hw::dma::DmaArena::new(crate::units::ByteCount::MIB, false).unwrap();
        let free = arena.free();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let ring = Rc::clone(reactor.ring());
        reactor.block_on(async {
            let buffer = arena.allocate_zeroed(4096).unwrap();
            {
                let mut write = Box::pin(ring.write_at(&file, 0, buffer, false));
                futures_util::future::poll_fn(|context| {
                    assert!(write.as_mut().poll(context).is_pending());
                    Poll::Ready(())
                })
                .await;
            }
            assert!(arena.free() < free);
            ring.fdatasync(&file).await.unwrap();
            while ring.in_flight() > 0 {
                ring.fdatasync(&file).await.unwrap();
            }
        });
        assert_eq!((arena.free(), arena.quarantined().get()), (free, 0));
    }

    #[test]
    fn mail_wakes_a_sleeping_reactor_and_answers_come_back() {
        let (send, receive) = crossbeam_channel::bounded(1);
        let options = |index| ReactorOptions {
            index,
            clock: Clock::real(),
            ..ReactorOptions::deterministic()
        };
        let server = std::thread::spawn(move || {
            let reactor = Reactor::new(options(1)).unwrap();
            let (stop, stopped) = futures_channel::oneshot::channel::<()>();
            let object = Rc::new((Cell::new(0_u32), Cell::new(Some(stop))));
            send.send(reactor.keep(Rc::clone(&object))).unwrap();
            reactor.block_on(stopped).unwrap();
            object.0.get()
        });
        let remote = receive.recv().unwrap();
        let caller = Reactor::new(options(0)).unwrap();
        let total = caller.block_on(async {
            let mut last = 0;
            for _ in 0..1000 {
                let call = |object: Rc<(Cell<u32>, _)>| async move {
                    object.0.set(object.0.get() + 1);
                    object.0.get()
                };
                last = remote.call(&caller, call).await.unwrap();
            }
            last
        });
        assert_eq!(total, 1000);
        type Object = (Cell<u32>, Cell<Option<futures_channel::oneshot::Sender<()>>>);
        let blocking = remote.call_blocking(|object: Rc<Object>| async move {
            object.1.take().unwrap().send(()).unwrap();
        });
        blocking.unwrap();
        assert_eq!(server.join().unwrap(), 1000);
        let gone = caller.block_on(remote.call(&caller, |_| async {}));
        assert!(gone.is_err(), "a reactor that ended is no longer there");
    }
}
