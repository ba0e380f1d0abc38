//! One reactor's way to a namespace: its queue pairs and the commands in flight.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use slab::Slab;

use super::device::{Shared, Spare};
use super::lane::Lane;
use crate::block::flush_group::FlushGroup;
use crate::block::{
    BlockDevice, BlockError, Counted, Counters, Counting, Durability, Geometry, Transfer,
    TransferError,
};
use crate::hw::dma::{DmaArena, DmaBuffer};
use crate::hw::event::EventFd;
use crate::nvme::retry::{MAX_ATTEMPTS, Triage, triage};
use crate::nvme::{CommandFailure, Completion, QueueCounters, QueuePair, RejectReason, Rejected};
use crate::reactor::{Instant, Poller, Reactor, Registration, Remote, Share, Turn};
use crate::spec::command::{DsmRange, ForceUnitAccess};
use crate::units::{BlockCount, Lba};

/// How long a command waits while the controller is being reset or activates firmware, before it
/// is tried again.
const RESET_RETRY: Duration = Duration::from_millis(10);
/// A command with more data than this is worth a sleep.
const HOT_BYTES: usize = 64 << 10;
/// How fast the notion of a command's latency follows: this part of each difference.
const LATENCY_SHARE: u64 = 8;
/// Zeros are written from a buffer of this size where the controller has no Write Zeroes.
const ZERO_BUFFER: usize = 128 << 10;

/// One reactor's way to a namespace. Clones share the queue pairs.
#[derive(Clone)]
pub struct NvmeChannel {
    channel: Rc<Channel>,
    /// Ends the polling when the last clone is gone.
    _polling: Rc<Polling>,
}

pub(super) struct Channel {
    shared: Arc<Shared>,
    reactor: Rc<Reactor>,
    arena: DmaArena,
    /// Polled only; `None` if the controller has too few queues for two pairs on each reactor.
    hot: Option<Lane>,
    cold: Lane,
    commands: RefCell<Slab<Command>>,
    /// What a small read or write takes from submission to completion, in nanoseconds.
    latency: Cell<u64>,
    counting: Counting,
    flush: Rc<FlushGroup>,
}

/// A channel, as the controller's owner on another reactor holds it.
pub(super) struct ChannelHandle(Weak<Channel>);

impl ChannelHandle {
    /// The controller is gone: commands end, and nothing refers to its registers any more.
    pub(super) fn let_go(&self) {
        if let Some(channel) = self.0.upgrade() {
            channel.let_go();
        }
    }
}

/// A channel in its reactor's care.
struct Polling {
    reactor: Rc<Reactor>,
    handle: Remote<ChannelHandle>,
    _registration: Registration,
}

impl Drop for Polling {
    fn drop(&mut self) {
        drop(self.handle.release(&self.reactor));
    }
}

/// A submitted command, by its token.
enum Command {
    InFlight {
        waker: Option<Waker>,
        since: Instant,
    },
    Done(Completion),
    /// Nobody waits for it any more.
    Orphaned,
}

impl Poller for Channel {
    fn poll(&self, now: Instant) -> usize {
        let mut visitor = |completion| self.complete(now, completion);
        let hot = self.hot.as_ref().map_or(0, |hot| hot.poll(now, &mut visitor));
        hot + self.cold.poll(now, &mut visitor)
    }

    fn outstanding(&self) -> bool {
        self.in_flight() > 0
    }

    fn event(&self) -> Option<Arc<EventFd>> {
        self.cold.event().filter(|_| self.cold.in_flight() > 0)
    }

    fn deadline(&self) -> Option<Instant> {
        let hot = self.hot.as_ref().and_then(Lane::deadline);
        hot.into_iter().chain(self.cold.deadline()).min()
    }
}

impl Channel {
    fn in_flight(&self) -> usize {
        self.hot.as_ref().map_or(0, Lane::in_flight) + self.cold.in_flight()
    }

    /// The lane for a command with so many bytes of data. Hot if its end, or that of one of those
    /// in flight before it, is likely to be seen by a reactor that still spins.
    #[inline]
    fn lane(&self, bytes: Option<usize>) -> &Lane {
        let Some(hot) = &self.hot else { return &self.cold };
        if bytes.is_none_or(|bytes| bytes > HOT_BYTES) {
            return &self.cold;
        }
        let next = self.latency.get() / (self.in_flight() as u64 + 1);
        if self.reactor.would_spin(Duration::from_nanos(next)) { hot } else { &self.cold }
    }

    fn complete(&self, now: Instant, completion: Completion) {
        let mut commands = self.commands.borrow_mut();
        let Ok(key) = usize::try_from(completion.token) else { return };
        let small = completion.buffer.as_ref().is_some_and(|buffer| buffer.len() <= HOT_BYTES);
        match commands.get_mut(key) {
            Some(command @ Command::InFlight { .. }) => {
                let before = std::mem::replace(command, Command::Done(completion));
                drop(commands);
                if let Command::InFlight { waker, since } = before {
                    if small {
                        self.learn(now.since(since));
                    }
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
            }
            Some(Command::Orphaned) => drop(commands.remove(key)),
            Some(Command::Done(_)) | None => {}
        }
    }

    #[inline]
    fn learn(&self, took: Duration) {
        let (known, took) = (self.latency.get(), took.as_nanos() as u64);
        let step = took.abs_diff(known) / LATENCY_SHARE;
        self.latency.set(if took > known { known + step } else { known - step });
    }

    fn let_go(&self) {
        let now = self.reactor.now();
        let mut visitor = |completion| self.complete(now, completion);
        if let Some(hot) = &self.hot {
            hot.let_go(now, &mut visitor);
        }
        self.cold.let_go(now, &mut visitor);
    }

    /// Submits once there is room, and waits for the end. `Err` with the buffer: not submitted.
    async fn run_once(
        &self,
        mut buffer: Option<DmaBuffer>,
        submit: &impl Fn(&mut QueuePair, Option<DmaBuffer>, u64) -> Result<(), Rejected>,
    ) -> Result<Completion, Rejected> {
        let mut turn: Option<(&Lane, Turn<'_>)> = None;
        loop {
            let lane = self.lane(buffer.as_ref().map(|buffer| buffer.len()));
            let command = Command::InFlight { waker: None, since: self.cold.polled() };
            let key = self.commands.borrow_mut().insert(command);
            let guard = InFlight { channel: self, key };
            let submitted = lane.submit(buffer.take(), key as u64, submit);
            let full =
                submitted.as_ref().is_err_and(|rejected| rejected.reason == RejectReason::Full);
            // Room that this was called for and does not use is the next one's.
            if let Some((_, turn)) = turn.take().filter(|(waited_for, _)| {
                std::ptr::eq(*waited_for, lane) && (full || submitted.is_ok())
            }) {
                turn.take();
            }
            let rejected = match submitted {
                Ok(()) => return Ok(guard.ended().await),
                Err(rejected) => rejected,
            };
            guard.forget();
            match rejected.reason {
                RejectReason::Full => turn = Some((lane, lane.room().await)),
                RejectReason::Resetting | RejectReason::Paused => {
                    self.reactor.sleep(RESET_RETRY).await;
                }
                RejectReason::Gone | RejectReason::BadLength | RejectReason::Misaligned => {
                    return Err(rejected);
                }
            }
            buffer = rejected.buffer;
        }
    }

    /// Runs a command to its end, trying again as long as that may help.
    async fn run(
        self: &Rc<Self>,
        operation: &'static str,
        start: Lba,
        mut buffer: Option<DmaBuffer>,
        submit: impl Fn(&mut QueuePair, Option<DmaBuffer>, u64) -> Result<(), Rejected>,
    ) -> Result<Option<DmaBuffer>, (BlockError, Option<DmaBuffer>)> {
        let mut attempt = 1;
        loop {
            let completion = match self.run_once(buffer, &submit).await {
                Ok(completion) => completion,
                Err(rejected) => {
                    let error = match rejected.reason {
                        RejectReason::Gone => BlockError::Gone,
                        _ => BlockError::BadLength { bytes: 0, reason: "the driver refused it" },
                    };
                    return Err((error, rejected.buffer));
                }
            };
            let failure = match completion.result {
                Ok(_) => return Ok(completion.buffer),
                Err(failure) => failure,
            };
            buffer = completion.buffer;
            let retry = match failure {
                CommandFailure::Gone => None,
                CommandFailure::Reset => Some(RESET_RETRY),
                CommandFailure::Status(status) => match triage(status, self.shared.retry_delays) {
                    Triage::Retry(delay) => Some(delay),
                    Triage::Success | Triage::Fail(_) => None,
                },
            };
            match retry.filter(|_| attempt < MAX_ATTEMPTS && operation != "flush") {
                Some(delay) => self.reactor.sleep(delay).await,
                None => return Err((error_of(failure, operation, start), buffer)),
            }
            attempt += 1;
        }
    }

    async fn flush_once(self: &Rc<Self>) -> Result<(), BlockError> {
        let covered = self.shared.begin_flush();
        let flush = |queue: &mut QueuePair, _, token| queue.submit_flush(token);
        let result = self.run("flush", Lba(0), None, flush).await;
        let result = match result {
            Ok(_) => covered,
            Err((error, _)) => Err(error),
        };
        self.counting.add(Counted::Flush, result.is_ok());
        result
    }

    async fn transfer(
        self: &Rc<Self>,
        direction: Direction,
        start: Lba,
        buffer: DmaBuffer,
    ) -> Transfer {
        let limit = self.shared.max_transfer;
        if buffer.len() <= limit {
            return self.transfer_part(direction, start, buffer).await;
        }
        let mut parts = Vec::with_capacity(buffer.len().div_ceil(limit));
        let mut rest = buffer;
        let mut at = start;
        while rest.len() > limit {
            let tail = rest.split_off(limit);
            parts.push((at, std::mem::replace(&mut rest, tail)));
            at = Lba(at.get() + (limit as u64 >> self.shared.geometry.block_size.shift()));
        }
        parts.push((at, rest));
        let parts = parts.into_iter().map(|(at, part)| self.transfer_part(direction, at, part));
        join(futures_util::future::join_all(parts).await)
    }

    async fn transfer_part(
        self: &Rc<Self>,
        direction: Direction,
        start: Lba,
        buffer: DmaBuffer,
    ) -> Transfer {
        let (operation, force) = match direction {
            Direction::Read => ("read", ForceUnitAccess::No),
            Direction::Write(Durability::Cached) => ("write", ForceUnitAccess::No),
            Direction::Write(Durability::ForceUnitAccess) => ("write", ForceUnitAccess::Yes),
        };
        let submit = |queue: &mut QueuePair, buffer: Option<DmaBuffer>, token| {
            let Some(buffer) = buffer else {
                unreachable!("a rejected transfer gives its buffer back");
            };
            match direction {
                Direction::Read => queue.submit_read(start, buffer, token),
                Direction::Write(_) => queue.submit_write(start, buffer, force, token),
            }
        };
        match self.run(operation, start, Some(buffer), submit).await {
            Ok(Some(buffer)) => {
                if direction == Direction::Write(Durability::Cached) {
                    self.shared.wrote();
                }
                Ok(buffer)
            }
            Ok(None) => Err(TransferError { error: BlockError::Gone, buffer: None }),
            Err((error, buffer)) => Err(TransferError { error, buffer }),
        }
    }

    async fn zero(self: &Rc<Self>, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        let step = u64::from(self.shared.max_write_zeroes_blocks);
        if step == 0 {
            return self.write_zero_buffers(start, blocks).await;
        }
        let mut done = 0;
        while done < blocks.get() {
            let count = (blocks.get() - done).min(step) as u32;
            let at = Lba(start.get() + done);
            let submit = |queue: &mut QueuePair, _, token| {
                let force = ForceUnitAccess::No;
                queue.submit_write_zeroes(at, count, self.shared.zeroing, force, token)
            };
            self.run("write zeroes", at, None, submit).await.map_err(|(error, _)| error)?;
            self.shared.wrote();
            done += u64::from(count);
        }
        Ok(())
    }

    async fn write_zero_buffers(
        self: &Rc<Self>,
        start: Lba,
        blocks: BlockCount,
    ) -> Result<(), BlockError> {
        let shift = self.shared.geometry.block_size.shift();
        let bytes = (blocks.get() << shift).min(ZERO_BUFFER as u64);
        let no_memory = BlockError::NoMemory { bytes };
        let buffer = self.reactor.allocate(&self.arena, bytes as usize, Share::All).await;
        let mut buffer = buffer.ok_or(no_memory)?;
        buffer.fill(0);
        let mut done = 0;
        while done < blocks.get() {
            let count = (blocks.get() - done).min(buffer.len() as u64 >> shift);
            drop(buffer.split_off((count << shift) as usize));
            let at = Lba(start.get() + done);
            let written = self.transfer(Direction::Write(Durability::Cached), at, buffer).await;
            buffer = written.map_err(|failed| failed.error)?;
            done += count;
        }
        Ok(())
    }

    async fn deallocate(self: &Rc<Self>, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        let range_blocks = u64::from(self.shared.max_discard_range_blocks);
        let ranges_limit = self.cold.max_discard_ranges();
        if ranges_limit == 0 || range_blocks == 0 {
            // The controller has no such command; nothing was promised.
            return Ok(());
        }
        let mut done = 0;
        while done < blocks.get() {
            let mut ranges = Vec::with_capacity(ranges_limit.min(8));
            let first = Lba(start.get() + done);
            let mut budget = self.shared.max_discard_blocks;
            while ranges.len() < ranges_limit.min(8) && done < blocks.get() && budget > 0 {
                let count = (blocks.get() - done).min(range_blocks).min(budget) as u32;
                ranges.push(DsmRange::new(Lba(start.get() + done), count));
                done += u64::from(count);
                budget -= u64::from(count);
            }
            let submit = |queue: &mut QueuePair, _, token| queue.submit_discard(&ranges, token);
            self.run("discard", first, None, submit).await.map_err(|(error, _)| error)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Read,
    Write(Durability),
}

fn error_of(failure: CommandFailure, operation: &'static str, start: Lba) -> BlockError {
    match failure {
        CommandFailure::Status(status) => BlockError::Nvme { operation, start, status },
        CommandFailure::Reset => BlockError::NoAnswer { operation, start },
        CommandFailure::Gone => BlockError::Gone,
    }
}

/// Joins the parts of a split transfer. All must have come back for the buffer to come back.
fn join(parts: Vec<Transfer>) -> Transfer {
    let mut whole: Option<DmaBuffer> = None;
    let mut complete = true;
    let mut first_error = None;
    for part in parts {
        let buffer = match part {
            Ok(buffer) => Some(buffer),
            Err(failed) => {
                first_error.get_or_insert(failed.error);
                failed.buffer
            }
        };
        whole = match (whole, buffer) {
            (None, buffer) => buffer,
            (Some(mut head), Some(tail)) => {
                complete &= head.join(tail).is_ok();
                Some(head)
            }
            (Some(head), None) => {
                complete = false;
                Some(head)
            }
        };
    }
    match (first_error, whole.filter(|_| complete)) {
        (None, Some(buffer)) => Ok(buffer),
        (error, buffer) => Err(TransferError { error: error.unwrap_or(BlockError::Gone), buffer }),
    }
}

/// A command in flight; orphans it when dropped.
struct InFlight<'a> {
    channel: &'a Channel,
    key: usize,
}

impl InFlight<'_> {
    /// Waits for the command's end.
    fn ended(self) -> impl Future<Output = Completion> {
        poll_fn(move |context| {
            // The whole guard moves in, not only its fields: it must live as long as the future.
            let guard = &self;
            let mut commands = guard.channel.commands.borrow_mut();
            match commands.get_mut(guard.key) {
                Some(Command::InFlight { waker, .. }) => {
                    *waker = Some(context.waker().clone());
                    Poll::Pending
                }
                Some(Command::Done(_)) => match commands.remove(guard.key) {
                    Command::Done(completion) => Poll::Ready(completion),
                    Command::InFlight { .. } | Command::Orphaned => unreachable!("just seen done"),
                },
                Some(Command::Orphaned) | None => unreachable!("orphaned only when dropped"),
            }
        })
    }

    /// The command was not submitted after all.
    fn forget(self) {
        drop(self.channel.commands.borrow_mut().try_remove(self.key));
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut commands = self.channel.commands.borrow_mut();
        match commands.get_mut(self.key) {
            Some(command @ Command::InFlight { .. }) => *command = Command::Orphaned,
            Some(Command::Done(_)) => drop(commands.remove(self.key)),
            Some(Command::Orphaned) | None => {}
        }
    }
}

impl NvmeChannel {
    pub(super) fn new(
        shared: Arc<Shared>,
        reactor: &Rc<Reactor>,
        arena: &DmaArena,
        spare: Spare,
    ) -> Self {
        let channel = Rc::new(Channel {
            shared: Arc::clone(&shared),
            reactor: Rc::clone(reactor),
            arena: arena.clone(),
            hot: spare.hot.map(|pair| Lane::new(*pair, None)),
            cold: Lane::new(*spare.cold, spare.event),
            commands: RefCell::default(),
            latency: Cell::default(),
            counting: Counting::default(),
            flush: Rc::default(),
        });
        let handle = reactor.keep(Rc::new(ChannelHandle(Rc::downgrade(&channel))));
        shared.add_channel(handle.clone());
        let registration = reactor.register(Rc::clone(&channel) as Rc<dyn Poller>);
        let reactor = Rc::clone(reactor);
        let polling = Polling { reactor, handle, _registration: registration };
        Self { channel, _polling: Rc::new(polling) }
    }

    /// What the queue pairs did: the polled one, if there is one, and the one with an interrupt.
    #[must_use]
    pub fn queue_counters(&self) -> (Option<QueueCounters>, QueueCounters) {
        (self.channel.hot.as_ref().map(Lane::counters), self.channel.cold.counters())
    }
}

impl BlockDevice for NvmeChannel {
    fn geometry(&self) -> &Geometry {
        &self.channel.shared.geometry
    }

    async fn read(&self, start: Lba, buffer: DmaBuffer) -> Transfer {
        let length = buffer.len();
        let result = match self.geometry().check_transfer(start, length) {
            Ok(_) => self.channel.transfer(Direction::Read, start, buffer).await,
            Err(error) => Err(TransferError::new(error, buffer)),
        };
        self.channel.counting.add(Counted::Read(length as u64), result.is_ok());
        result
    }

    async fn write(&self, start: Lba, buffer: DmaBuffer, durability: Durability) -> Transfer {
        let length = buffer.len();
        let result = match self.geometry().check_transfer(start, length) {
            Ok(_) => self.channel.transfer(Direction::Write(durability), start, buffer).await,
            Err(error) => Err(TransferError::new(error, buffer)),
        };
        self.channel.counting.add(Counted::Write(length as u64, durability), result.is_ok());
        result
    }

    async fn flush(&self) -> Result<(), BlockError> {
        if !self.geometry().volatile_cache {
            return Ok(());
        }
        let channel = Rc::clone(&self.channel);
        let once = move || {
            let channel = Rc::clone(&channel);
            async move { channel.flush_once().await }
        };
        self.channel.flush.join(&self.channel.reactor, once).await
    }

    async fn discard(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        self.geometry().check(start, blocks)?;
        let result = self.channel.deallocate(start, blocks).await;
        self.channel.counting.add(Counted::Discard, result.is_ok());
        result
    }

    async fn write_zeroes(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        self.geometry().check(start, blocks)?;
        let result = self.channel.zero(start, blocks).await;
        self.channel.counting.add(Counted::WriteZeroes, result.is_ok());
        result
    }

    fn counters(&self) -> Counters {
        self.channel.counting.get()
    }
}
