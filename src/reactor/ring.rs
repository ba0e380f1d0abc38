//! The reactor's io_uring: operations whose buffers belong to the in-flight table.
//!
//! An operation's buffer and file live in the table from submission until the kernel's answer.
//! A future that is dropped earlier orphans its entry; the entry stays until the answer comes.
//! So no order of drops can let the kernel write into memory that was given to somebody else.
//!
//! At most [`IN_FLIGHT_LIMIT`] operations are in flight; the next ones wait their turn, so the
//! completion queue, which is larger, cannot overflow.

#![expect(unsafe_code, reason = "entries are pushed with pointers that the table keeps alive")]

mod queue_entry;
mod socket;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::squeue::{Entry, Entry128};
use io_uring::{IoUring, cqueue, opcode, types};
use slab::Slab;

use crate::hw::dma::{DeviceBuffer, DmaBuffer};
use crate::hw::event::EventFd;
use crate::hw::file::Fallocate;
use crate::reactor::waiters::{Ticket, Waiters};
pub use queue_entry::{AtKernel, ENTRIES_LIMIT, HEADER, QueueEntry};
pub use socket::Gather;

/// Most operations that one reactor has in the kernel at a time. Each connection of the target
/// takes one to receive and one to send.
pub(super) const IN_FLIGHT_LIMIT: usize = 4096;
const SUBMISSION_ENTRIES: u32 = 256;
/// Set in the user data of polls that only end a sleep; the rest is the descriptor's number.
const WAKE: u64 = 1 << 63;

/// What a descriptor is polled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Something can be read.
    Read,
    /// Something can be written.
    Write,
}

/// What the kernel may touch while an operation is in flight.
enum Holding {
    Nothing,
    Buffer(DeviceBuffer),
    Bytes(Vec<u8>),
    Message(Box<socket::Message>),
}

impl Holding {
    /// Lets go of it, once the kernel has answered.
    fn release(self) {
        match self {
            Self::Nothing | Self::Bytes(_) => {}
            Self::Buffer(device) => drop(device.reclaim()),
            Self::Message(message) => drop(message.reclaim()),
        }
    }
}

/// Keeps a descriptor open while an operation uses it.
type Descriptor = Arc<dyn AsRawFd>;

enum State {
    InFlight(Option<Waker>),
    Orphaned,
    Done(i32),
}

struct Operation {
    state: State,
    holding: Holding,
    _descriptor: Descriptor,
}

/// One io_uring and its in-flight table. Used only by the thread that made it.
pub struct Ring {
    uring: RefCell<IoUring<Entry128, cqueue::Entry>>,
    table: RefCell<Slab<Operation>>,
    /// Operations that wait for room in the table.
    waiting: Waiters,
    unsubmitted: Cell<usize>,
    /// Events whose signal ends a sleep, by descriptor; held until their poll fires.
    armed: RefCell<HashMap<u64, Arc<EventFd>>>,
    /// Entries of FUSE queues.
    entries: RefCell<Slab<queue_entry::Slot>>,
    /// Requests that came by them, until somebody counts.
    arrivals: Cell<u32>,
    /// Whether something unsubmitted has waited for a turn already.
    overdue: Cell<bool>,
}

impl Ring {
    /// A ring for this thread.
    ///
    /// # Errors
    /// The system's: `ENOSYS` or `EPERM` where io_uring is not available.
    pub(super) fn new() -> io::Result<Self> {
        let build = |deferred: bool| {
            let mut builder = IoUring::<Entry128, cqueue::Entry>::builder();
            builder.setup_cqsize(4 * IN_FLIGHT_LIMIT as u32).setup_submit_all();
            if deferred {
                // Completion work runs when we enter the ring, not in the middle of a turn.
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            }
            builder.build(SUBMISSION_ENTRIES)
        };
        // Kernels before 6.1 do not know deferred task work.
        let uring = build(true).or_else(|_| build(false))?;
        Ok(Self {
            uring: RefCell::new(uring),
            table: RefCell::new(Slab::with_capacity(IN_FLIGHT_LIMIT)),
            waiting: Waiters::default(),
            unsubmitted: Cell::new(0),
            armed: RefCell::default(),
            entries: RefCell::default(),
            arrivals: Cell::new(0),
            overdue: Cell::new(false),
        })
    }

    /// Whether the kernel owes an answer to an operation (a poll counts too).
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.table.borrow().len()
    }

    /// Reads from a file at `offset` into the whole of `buffer`.
    pub async fn read_at(
        self: &Rc<Self>,
        file: &Arc<File>,
        offset: u64,
        buffer: DmaBuffer,
    ) -> (io::Result<usize>, DmaBuffer) {
        let device = buffer.into_device();
        let length = u32::try_from(device.len()).unwrap_or(u32::MAX);
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), device.pointer(), length)
            .offset(offset)
            .build();
        self.transfer(entry, device, file).await
    }

    /// Writes the whole of `buffer` to a file at `offset`; with `durable`, the data is on the
    /// medium on return (`RWF_DSYNC`).
    pub async fn write_at(
        self: &Rc<Self>,
        file: &Arc<File>,
        offset: u64,
        buffer: DmaBuffer,
        durable: bool,
    ) -> (io::Result<usize>, DmaBuffer) {
        let device = buffer.into_device();
        let length = u32::try_from(device.len()).unwrap_or(u32::MAX);
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), device.pointer(), length)
            .offset(offset)
            .rw_flags(flags)
            .build();
        self.transfer(entry, device, file).await
    }

    async fn transfer(
        self: &Rc<Self>,
        entry: Entry,
        device: DeviceBuffer,
        file: &Arc<File>,
    ) -> (io::Result<usize>, DmaBuffer) {
        let descriptor = Arc::clone(file) as Descriptor;
        let (result, holding) = self.run(entry, Holding::Buffer(device), descriptor).await;
        match holding {
            // The kernel answered: it no longer touches the buffer.
            Holding::Buffer(device) => (count(result), device.reclaim()),
            _ => unreachable!("a transfer holds its buffer until it is answered"),
        }
    }

    /// `fdatasync` of a file: everything written and answered before is on the medium on return.
    ///
    /// # Errors
    /// The system's. The state of the data is then unknown, and a second call proves nothing.
    pub async fn fdatasync(self: &Rc<Self>, file: &Arc<File>) -> io::Result<()> {
        let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        let descriptor = Arc::clone(file) as Descriptor;
        count(self.run(entry, Holding::Nothing, descriptor).await.0).map(drop)
    }

    /// `fallocate` on a range of a file.
    ///
    /// # Errors
    /// The system's; `EOPNOTSUPP` where the file system lacks the mode.
    pub async fn fallocate(
        self: &Rc<Self>,
        file: &Arc<File>,
        what: Fallocate,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let entry = opcode::Fallocate::new(types::Fd(file.as_raw_fd()), length)
            .offset(offset)
            .mode(what.mode())
            .build();
        let descriptor = Arc::clone(file) as Descriptor;
        count(self.run(entry, Holding::Nothing, descriptor).await.0).map(drop)
    }

    /// Waits until a descriptor is ready, or has an error or hang-up to report.
    ///
    /// # Errors
    /// The system's.
    pub async fn ready(
        self: &Rc<Self>,
        descriptor: &Arc<OwnedFd>,
        readiness: Readiness,
    ) -> io::Result<()> {
        let events = match readiness {
            Readiness::Read => libc::POLLIN,
            Readiness::Write => libc::POLLOUT,
        };
        let entry = opcode::PollAdd::new(types::Fd(descriptor.as_raw_fd()), events as u32).build();
        let descriptor = Arc::clone(descriptor) as Descriptor;
        count(self.run(entry, Holding::Nothing, descriptor).await.0).map(drop)
    }

    /// Waits until an event is signalled. The event is not consumed.
    ///
    /// # Errors
    /// The system's.
    pub async fn event(self: &Rc<Self>, event: &Arc<EventFd>) -> io::Result<()> {
        let events = libc::POLLIN as u32;
        let entry = opcode::PollAdd::new(types::Fd(event.as_raw_fd()), events).build();
        let descriptor = Arc::clone(event) as Descriptor;
        count(self.run(entry, Holding::Nothing, descriptor).await.0).map(drop)
    }

    fn run(self: &Rc<Self>, entry: Entry, holding: Holding, descriptor: Descriptor) -> Running {
        Running {
            ring: Rc::clone(self),
            stage: Stage::Waiting(Some(Box::new((entry, holding, descriptor))), None),
        }
    }

    /// Puts an operation into the table and the submission queue; gives it back if there is no
    /// room in the table.
    fn start(
        &self,
        parts: Box<(Entry, Holding, Descriptor)>,
    ) -> Result<usize, Box<(Entry, Holding, Descriptor)>> {
        let mut table = self.table.borrow_mut();
        if table.len() >= IN_FLIGHT_LIMIT {
            return Err(parts);
        }
        let (entry, holding, descriptor) = *parts;
        let key = table.insert(Operation {
            state: State::InFlight(None),
            holding,
            _descriptor: descriptor,
        });
        self.push(entry.user_data(key as u64));
        Ok(key)
    }

    fn push(&self, entry: Entry) {
        self.push128(&Entry128::from(entry));
    }

    fn push128(&self, entry: &Entry128) {
        let mut uring = self.uring.borrow_mut();
        loop {
            // SAFETY: what the entry points to (a DMA buffer, an open descriptor) is held by the
            // table, by `armed`, or by `entries`, until the completion is reaped.
            let pushed = unsafe { uring.submission().push(entry) };
            if pushed.is_ok() {
                self.unsubmitted.set(self.unsubmitted.get() + 1);
                return;
            }
            // A full submission queue empties by submitting. The kernel takes all of it, or
            // fails for want of memory, which passes.
            if uring.submit().is_ok() {
                self.unsubmitted.set(0);
            }
        }
    }

    /// Reaps what is done, without blocking. Returns the number of completions. What was pushed
    /// is left for [`Ring::submit`] or [`Ring::block`]: a turn that ends in a sleep then enters
    /// the kernel once.
    pub(super) fn turn(&self) -> usize {
        if self.uring.borrow_mut().submission().taskrun() {
            self.submit();
        }
        self.reap()
    }

    /// Submits what has waited for a turn already.
    pub(super) fn submit_overdue(&self) {
        if self.overdue.replace(self.unsubmitted.get() > 0) && self.unsubmitted.get() > 0 {
            self.submit();
        }
    }

    /// Submits what was pushed, and lets the kernel finish what it has deferred. Does not block.
    pub fn submit(&self) {
        let mut uring = self.uring.borrow_mut();
        let deferred = uring.submission().taskrun();
        if self.unsubmitted.get() > 0 || deferred {
            // `submit_and_wait(0)` would not enter for deferred work alone.
            let pending = self.unsubmitted.get() as u32;
            let flags = 1; // IORING_ENTER_GETEVENTS
            // SAFETY: no argument is passed.
            let entered =
                unsafe { uring.submitter().enter::<libc::sigset_t>(pending, 0, flags, None) };
            if entered.is_ok() {
                self.unsubmitted.set(0);
                self.overdue.set(false);
            }
        }
    }

    /// How many requests came by entries of FUSE queues since the last call.
    pub(super) fn take_arrivals(&self) -> u32 {
        self.arrivals.take()
    }

    /// Blocks until something completes or `timeout` has passed.
    pub(super) fn block(&self, timeout: Option<Duration>) {
        let uring = self.uring.borrow_mut();
        let spec = timeout.map(|timeout| {
            types::Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos())
        });
        let arguments = match &spec {
            Some(spec) => types::SubmitArgs::new().timespec(spec),
            None => types::SubmitArgs::new(),
        };
        // Ends with ETIME after the timeout and with EINTR after a signal: both mean "look".
        let entered = uring.submitter().submit_with_args(1, &arguments);
        if entered.is_ok() || entered.is_err_and(|error| error.raw_os_error() == Some(libc::ETIME))
        {
            self.unsubmitted.set(0);
            self.overdue.set(false);
        }
    }

    /// Whether a signal of `event` would end a sleep already.
    pub(super) fn is_armed(&self, event: &EventFd) -> bool {
        self.armed.borrow().contains_key(&u64::from(event.as_raw_fd().unsigned_abs()))
    }

    /// Lets a signal of `event` end a sleep. The poll stays armed until it fires.
    pub(super) fn arm(&self, event: &Arc<EventFd>) {
        let descriptor = event.as_raw_fd();
        let key = u64::from(descriptor.unsigned_abs());
        if self.armed.borrow_mut().insert(key, Arc::clone(event)).is_none() {
            let events = libc::POLLIN as u32;
            let entry = opcode::PollAdd::new(types::Fd(descriptor), events).build();
            self.push(entry.user_data(WAKE | key));
        }
    }

    /// Takes what is done from the completion queue, and wakes those who wait for it. Returns how
    /// many completions that were.
    pub fn reap(&self) -> usize {
        let mut reaped = 0;
        loop {
            // One at a time: waking a task may start operations on this ring.
            let Some(completion) = self.uring.borrow_mut().completion().next() else {
                return reaped;
            };
            reaped += 1;
            let waker = self.complete(completion.user_data(), completion.result());
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn complete(&self, user_data: u64, result: i32) -> Option<Waker> {
        if user_data & WAKE != 0 {
            self.armed.borrow_mut().remove(&(user_data & !WAKE));
            return None;
        }
        if user_data & queue_entry::ENTRY != 0 {
            return self.entry_back(user_data, result);
        }
        let key = usize::try_from(user_data).ok()?;
        let mut table = self.table.borrow_mut();
        let operation = table.get_mut(key)?;
        match std::mem::replace(&mut operation.state, State::Done(result)) {
            State::InFlight(waker) => waker,
            State::Orphaned | State::Done(_) => {
                let operation = table.remove(key);
                drop(table);
                operation.holding.release();
                self.waiting.call(1);
                None
            }
        }
    }
}

/// Sets `sqe->len`, for which the crate's entries of 128 bytes have no name.
fn with_length(mut entry: Entry128, length: u32) -> Entry128 {
    /// Offset of `len` in `struct io_uring_sqe`.
    const LEN: usize = 24;
    const { assert!(size_of::<Entry128>() == 128) };
    // SAFETY: an entry is 128 plain bytes, laid out as the kernel's structure.
    unsafe { (&raw mut entry).byte_add(LEN).cast::<u32>().write_unaligned(length) };
    entry
}

fn count(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

enum Stage {
    /// Not in the table yet; with a place in the line if the table was full.
    Waiting(Option<Box<(Entry, Holding, Descriptor)>>, Option<Ticket>),
    Started(usize),
    Ended,
}

/// An operation under way; resolves to the kernel's result and what the operation held.
struct Running {
    ring: Rc<Ring>,
    stage: Stage,
}

impl Future for Running {
    type Output = (i32, Holding);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ring = Rc::clone(&self.ring);
        if let Stage::Waiting(parts, ticket) = &mut self.stage {
            if let Some(waiting) = ticket.take() {
                if !ring.waiting.is_called(&waiting, context.waker()) {
                    *ticket = Some(waiting);
                    return Poll::Pending;
                }
                ring.waiting.take(waiting);
            }
            let Some(taken) = parts.take() else {
                unreachable!("what is not in the table has its parts");
            };
            match ring.start(taken) {
                Ok(key) => self.stage = Stage::Started(key),
                Err(taken) => {
                    *parts = Some(taken);
                    *ticket = Some(ring.waiting.join(context.waker()));
                    return Poll::Pending;
                }
            }
        }
        let Stage::Started(key) = self.stage else {
            unreachable!("polled after its end");
        };
        let mut table = ring.table.borrow_mut();
        let Some(operation) = table.get_mut(key) else {
            unreachable!("an operation leaves the table only with its future");
        };
        match &mut operation.state {
            State::Done(result) => {
                let result = *result;
                let operation = table.remove(key);
                drop(table);
                self.stage = Stage::Ended;
                ring.waiting.call(1);
                Poll::Ready((result, operation.holding))
            }
            State::InFlight(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            State::Orphaned => unreachable!("orphaned only when the future is dropped"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let key = match &mut self.stage {
            Stage::Started(key) => *key,
            Stage::Waiting(_, ticket) => {
                if let Some(ticket) = ticket.take() {
                    self.ring.waiting.leave(ticket);
                }
                return;
            }
            Stage::Ended => return,
        };
        let mut table = self.ring.table.borrow_mut();
        let Some(operation) = table.get_mut(key) else {
            return;
        };
        if let State::Done(_) = operation.state {
            let operation = table.remove(key);
            drop(table);
            operation.holding.release();
            self.ring.waiting.call(1);
        } else {
            operation.state = State::Orphaned;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::{Reactor, ReactorOptions};

    #[test]
    fn who_stops_waiting_for_a_full_table_holds_up_nobody() {
        let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
        let never = Arc::new(EventFd::new().unwrap());
        let now = Arc::new(EventFd::new().unwrap());
        now.signal();
        let ring = Rc::clone(reactor.ring());
        let mut context = Context::from_waker(Waker::noop());
        let mut full: Vec<_> = (0..IN_FLIGHT_LIMIT).map(|_| Box::pin(ring.event(&never))).collect();
        for operation in &mut full {
            assert!(operation.as_mut().poll(&mut context).is_pending());
        }
        // Two wait for room and go away: one before and one after it is called.
        let mut waits = Box::pin(ring.event(&now));
        assert!(waits.as_mut().poll(&mut context).is_pending());
        let mut called = Box::pin(ring.event(&now));
        assert!(called.as_mut().poll(&mut context).is_pending());
        drop(waits);
        let last = reactor.task({
            let (ring, now) = (Rc::clone(&ring), Arc::clone(&now));
            async move { ring.event(&now).await }
        });
        // It gets into the line.
        let mut turns = 3;
        reactor.block_on(std::future::poll_fn(|context| {
            turns -= 1;
            context.waker().wake_by_ref();
            if turns == 0 { Poll::Ready(()) } else { Poll::Pending }
        }));
        never.signal();
        // One that ended is taken out, and makes room for `called`, which goes.
        let one = full.pop().unwrap();
        reactor.block_on(one).unwrap();
        drop(called);
        reactor.block_on(last).unwrap();
    }
}
