//! A queue pair: commands in, completions out.
//!
//! 1. `submit_*` takes a slot, writes the entry at the submission ring's tail and keeps the
//!    buffer, which is the device's from here on.
//! 2. `ring` tells the device, once for all commands submitted since the last call.
//! 3. `poll` takes completions, hands each with its buffer to the visitor, and tells the device
//!    once for all of them. From time to time it looks for commands that take too long.
//!
//! A command that passes its deadline is reported to the controller, which aborts it. If it is
//! still not answered after as long again, the controller is reset. Until the command's
//! completion, or until the controller was seen to be disabled, its buffer stays the device's.
//!
//! At most `entries - 1` commands are in flight, so no ring can overflow. The type is `Send`: it
//! is made by the controller's owner and moves to the thread that uses it.

mod parts;

use std::sync::Arc;
use std::time::Duration;

pub use self::parts::QueueSettings;
pub(crate) use self::parts::{Parts, Target, milliseconds};
use super::error::{CommandFailure, RejectReason, Rejected};
use super::fault::Misbehaviour;
use super::link::{Link, LinkState};
use super::prp::{MAX_TRANSFER, PrpLists};
use super::rings::Rings;
use super::slots::{Slots, Stage, Stray};
use crate::hw::dma::{DeviceBuffer, DmaBuffer, PAGE};
use crate::reactor::clock::Instant;
use crate::spec::command::{
    Deallocate, DsmRange, ForceUnitAccess, IoOpcode, MAX_BLOCKS_PER_COMMAND, MAX_DSM_RANGES,
    SubmissionEntry,
};
use crate::spec::completion::CompletionEntry;
use crate::spec::fabrics::{SglDescriptor, SglKind};
use crate::units::{Iova, Lba, NamespaceId, QueueId};

/// Entries of the largest queue that is made.
pub(crate) const MAX_ENTRIES: u16 = 1024;
/// How often the commands in flight are looked at for being late.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// A command that ended.
#[derive(Debug)]
pub struct Completion {
    /// The name that its submitter gave it.
    pub token: u64,
    /// Dword 0 of the completion, or why there is none.
    pub result: Result<u32, CommandFailure>,
    /// The buffer that was moved in. It does not come back, ever, if the controller is gone and
    /// may still write to it.
    pub buffer: Option<DmaBuffer>,
    /// What the command was.
    pub opcode: IoOpcode,
}

/// What a queue pair has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct QueueCounters {
    /// Reads submitted.
    pub reads: u64,
    /// Writes submitted.
    pub writes: u64,
    /// Flushes submitted.
    pub flushes: u64,
    /// Write Zeroes commands submitted.
    pub write_zeroes: u64,
    /// Dataset Management commands submitted.
    pub discards: u64,
    /// Commands that completed, successfully or not.
    pub completed: u64,
    /// Of these, with an error status.
    pub failed: u64,
    /// Commands that passed their deadline.
    pub late: u64,
    /// Commands that a reset or the loss of the controller ended.
    pub lost: u64,
    /// What the device did wrong.
    pub misbehaviour: Misbehaviour,
}

/// A submission and a completion queue, with the commands in flight.
#[derive(Debug)]
pub struct QueuePair {
    id: QueueId,
    /// Rings and lists; gone only while the pair is dropped.
    memory: Option<Memory>,
    slots: Slots,
    link: Arc<Link>,
    target: Target,
    next_sweep: Instant,
    counters: QueueCounters,
}

#[derive(Debug)]
struct Memory {
    rings: Rings,
    lists: PrpLists,
}

impl Memory {
    /// Frees it. Only once the device does not use it any more.
    fn reclaim(self) {
        self.rings.reclaim();
        self.lists.reclaim();
    }
}

/// What a pair leaves behind that was dropped while the device may still use its memory: for the
/// controller, which will know when the device lets go. Dropped before that, it is quarantined.
#[derive(Debug)]
pub(crate) struct Remains {
    memory: Memory,
    buffers: Vec<DeviceBuffer>,
}

impl Remains {
    /// Frees all of it. Only once the device does not use it any more.
    pub(crate) fn reclaim(self) {
        self.memory.reclaim();
        for buffer in self.buffers {
            drop(buffer.reclaim());
        }
    }
}

impl QueuePair {
    /// A queue pair in memory, not yet known to the controller. `None` if the arena is full.
    pub(crate) fn new(parts: Parts<'_>) -> Option<Self> {
        let entries = parts.entries.clamp(2, MAX_ENTRIES);
        let lists = PrpLists::new(parts.arena, entries - 1, parts.target.max_transfer)?;
        let Some(rings) = Rings::new(parts.arena, entries, parts.doorbells) else {
            lists.reclaim();
            return None;
        };
        Some(Self {
            id: parts.id,
            memory: Some(Memory { rings, lists }),
            slots: Slots::new(entries - 1),
            link: parts.link,
            target: parts.target,
            next_sweep: Instant::default(),
            counters: QueueCounters::default(),
        })
    }

    /// The number by which the controller knows the pair.
    #[must_use]
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// The namespace that its commands are for.
    #[must_use]
    pub fn namespace(&self) -> NamespaceId {
        self.target.namespace
    }

    /// Commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// How many more commands fit now.
    #[must_use]
    pub fn vacant(&self) -> usize {
        self.slots.vacant()
    }

    /// Whether commands are taken: no reset or pause is under way, and the controller is there.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.link.state() == LinkState::Live
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> QueueCounters {
        self.counters
    }

    /// The most ranges that [`QueuePair::submit_discard`] takes.
    #[must_use]
    pub fn max_discard_ranges(&self) -> usize {
        let lists = self.memory().lists.max_ranges();
        self.target.discard_ranges.min(lists).min(MAX_DSM_RANGES)
    }

    /// Reads `buffer.len()` bytes from `lba` into `buffer`.
    ///
    /// # Errors
    /// [`Rejected`] with the buffer: the command was not submitted.
    #[inline]
    pub fn submit_read(&mut self, lba: Lba, buffer: DmaBuffer, token: u64) -> Result<(), Rejected> {
        let Some(blocks) = self.blocks(buffer.len()) else {
            return Err(rejected(RejectReason::BadLength, Some(buffer)));
        };
        let entry = SubmissionEntry::read(self.target.namespace, lba, blocks);
        self.submit(entry, Some(buffer), token, self.target.timeout_ms)?;
        self.counters.reads += 1;
        Ok(())
    }

    /// Writes `buffer` at `lba`. It is durable on completion with [`ForceUnitAccess::Yes`], and
    /// else once a flush that was submitted after its completion has completed.
    ///
    /// # Errors
    /// [`Rejected`] with the buffer: the command was not submitted.
    #[inline]
    pub fn submit_write(
        &mut self,
        lba: Lba,
        buffer: DmaBuffer,
        force: ForceUnitAccess,
        token: u64,
    ) -> Result<(), Rejected> {
        let Some(blocks) = self.blocks(buffer.len()) else {
            return Err(rejected(RejectReason::BadLength, Some(buffer)));
        };
        let entry = SubmissionEntry::write(self.target.namespace, lba, blocks, force);
        self.submit(entry, Some(buffer), token, self.target.timeout_ms)?;
        self.counters.writes += 1;
        Ok(())
    }

    /// Makes durable every write that completed, on any queue pair, before this call.
    ///
    /// # Errors
    /// [`Rejected`]: the command was not submitted.
    pub fn submit_flush(&mut self, token: u64) -> Result<(), Rejected> {
        let entry = SubmissionEntry::flush(self.target.namespace);
        self.submit(entry, None, token, self.target.flush_timeout_ms)?;
        self.counters.flushes += 1;
        Ok(())
    }

    /// Makes `blocks` blocks from `lba` read as zeros; as durable as a write. With
    /// [`Deallocate::Yes`] they may lose their place: only if the namespace says that they then
    /// read as zeros ([`Namespace::zeroes_by_deallocation`](super::Namespace::zeroes_by_deallocation)).
    ///
    /// # Errors
    /// [`Rejected`]: the command was not submitted; [`RejectReason::BadLength`] for no blocks, or
    /// more than [`Namespace::max_write_zeroes_blocks`](super::Namespace::max_write_zeroes_blocks).
    pub fn submit_write_zeroes(
        &mut self,
        lba: Lba,
        blocks: u32,
        deallocate: Deallocate,
        force: ForceUnitAccess,
        token: u64,
    ) -> Result<(), Rejected> {
        if blocks == 0 || blocks > self.target.write_zeroes_blocks {
            return Err(rejected(RejectReason::BadLength, None));
        }
        let namespace = self.target.namespace;
        let entry = SubmissionEntry::write_zeroes(namespace, lba, blocks, deallocate, force);
        self.submit(entry, None, token, self.target.timeout_ms)?;
        self.counters.write_zeroes += 1;
        Ok(())
    }

    /// Tells the device that the contents of `ranges` are not needed any more. It may ignore it.
    ///
    /// # Errors
    /// [`Rejected`]: the command was not submitted; [`RejectReason::BadLength`] for no ranges, or
    /// more than [`QueuePair::max_discard_ranges`].
    pub fn submit_discard(&mut self, ranges: &[DsmRange], token: u64) -> Result<(), Rejected> {
        let fits = (1..=self.max_discard_ranges()).contains(&ranges.len());
        let count = u16::try_from(ranges.len()).ok().filter(|_| fits);
        let Some(count) = count else {
            return Err(rejected(RejectReason::BadLength, None));
        };
        let mut entry = SubmissionEntry::deallocate_ranges(self.target.namespace, count);
        if let Some(reason) = self.refusal() {
            return Err(rejected(reason, None));
        }
        let Some((index, id)) = self.slots.take() else {
            return Err(rejected(RejectReason::Full, None));
        };
        let memory = self.memory_mut();
        let Some(list) = memory.lists.write_ranges(index, ranges) else {
            unreachable!("max_discard_ranges is what the lists can hold");
        };
        entry = entry.with_command_id(id).with_prps(list, Iova(0));
        memory.rings.push(&entry);
        self.occupy(index, entry.opcode, token, self.target.timeout_ms);
        self.counters.discards += 1;
        Ok(())
    }

    /// Any command, whose buffer is all that it lets the device touch.
    #[inline]
    pub(crate) fn submit(
        &mut self,
        mut entry: SubmissionEntry,
        buffer: Option<DmaBuffer>,
        token: u64,
        patience_ms: u32,
    ) -> Result<(), Rejected> {
        if let Some(reason) = self.refusal() {
            return Err(rejected(reason, buffer));
        }
        let Some((index, id)) = self.slots.take() else {
            return Err(rejected(RejectReason::Full, buffer));
        };
        let sgl = self.target.sgl;
        let memory = self.memory_mut();
        entry.command_id.set(id.get());
        let described = buffer.as_ref().filter(|data| !(sgl && describe_by_sgl(&mut entry, data)));
        if let Some(data) = described {
            let Some((prp1, prp2)) = memory.lists.describe(index, data.iova(), data.len()) else {
                self.slots.finish(index);
                let aligned = data.iova().get().is_multiple_of(4);
                let reason =
                    if aligned { RejectReason::BadLength } else { RejectReason::Misaligned };
                return Err(rejected(reason, buffer));
            };
            entry.prp1.set(prp1.get());
            entry.prp2.set(prp2.get());
        }
        memory.rings.push(&entry);
        self.slots.slot(index).buffer = buffer.map(DmaBuffer::into_device);
        self.occupy(index, entry.opcode, token, patience_ms);
        Ok(())
    }

    /// Why no command is taken now, except for a full queue.
    #[inline]
    fn refusal(&self) -> Option<RejectReason> {
        match self.link.state() {
            LinkState::Live => None,
            LinkState::Paused => Some(RejectReason::Paused),
            LinkState::Dead | LinkState::DeadUnproven => Some(RejectReason::Gone),
            LinkState::Stopping
            | LinkState::Stopped
            | LinkState::Surrendered
            | LinkState::Creating => Some(RejectReason::Resetting),
        }
    }

    #[inline]
    fn occupy(&mut self, index: u16, opcode: u8, token: u64, patience_ms: u32) {
        let slot = self.slots.slot(index);
        slot.token = token;
        slot.opcode = opcode;
        slot.patience_ms = patience_ms;
        slot.stage = Stage::Fresh;
    }

    /// Tells the device of the commands submitted since the last call. If a reset began since,
    /// they end without ever being seen by the device.
    #[inline]
    pub fn ring(&mut self) {
        if self.link.state() == LinkState::Live {
            self.memory_mut().rings.ring();
        }
    }

    /// Hands every command that has ended to `visitor`, at most one ring's worth of completions
    /// in one call, and looks for commands that take too long. Returns how many ended.
    #[inline]
    pub fn poll(&mut self, now: Instant, visitor: &mut impl FnMut(Completion)) -> usize {
        let mut ended = self.reap(visitor);
        if now >= self.next_sweep {
            self.sweep(now);
        }
        if self.link.state() == LinkState::Live {
            self.memory_mut().rings.release();
        } else {
            ended += self.leave(visitor);
        }
        ended
    }

    /// Hands what has completed to `visitor`.
    #[inline]
    fn reap(&mut self, visitor: &mut impl FnMut(Completion)) -> usize {
        let mut ended = 0;
        for _ in 0..self.memory().rings.entries() {
            let Some(entry) = self.memory_mut().rings.take() else { break };
            if let Some(completion) = self.complete(&entry) {
                ended += 1;
                visitor(completion);
            }
        }
        ended
    }

    #[inline]
    fn complete(&mut self, entry: &CompletionEntry) -> Option<Completion> {
        if entry.submission_queue.get() != self.id.get() {
            self.counters.misbehaviour.wrong_queue(self.id, entry);
            return None;
        }
        let index = match self.slots.find(entry.command_id()) {
            Ok(index) => index,
            Err(Stray::NoSlot) => {
                self.counters.misbehaviour.unknown_command(self.id, entry);
                return None;
            }
            Err(Stray::Stale) => {
                self.counters.misbehaviour.repeated_completion(self.id, entry);
                return None;
            }
        };
        let (token, opcode, buffer) = self.slots.finish(index);
        self.counters.completed += 1;
        let status = entry.status();
        let result = if status.is_success() {
            Ok(entry.result.get())
        } else {
            self.counters.failed += 1;
            Err(CommandFailure::Status(status))
        };
        // The completion ends the device's use of the buffer (Base 3.3.1.2).
        let buffer = buffer.map(DeviceBuffer::reclaim);
        Some(Completion { token, result, buffer, opcode: IoOpcode(opcode) })
    }

    #[cold]
    fn sweep(&mut self, now: Instant) {
        self.next_sweep = now.after(SWEEP_INTERVAL);
        if self.link.state() == LinkState::Paused {
            // Nobody is late while the controller has said that it stands still.
            self.slots.restart_clocks();
            return;
        }
        let overdue = self.slots.sweep(now.as_nanos());
        self.counters.late += u64::from(overdue.count);
        if let Some(id) = overdue.abort {
            self.link.ask_abort(id);
        }
        if overdue.hopeless {
            self.link.ask_reset();
        }
    }

    /// The pair is not live: ends what can be ended. Returns how many commands that were.
    #[cold]
    fn leave(&mut self, visitor: &mut impl FnMut(Completion)) -> usize {
        let (failure, proven) = match self.link.state() {
            LinkState::Live
            | LinkState::Paused
            | LinkState::Stopping
            | LinkState::Surrendered
            | LinkState::Creating => return 0,
            LinkState::Stopped => (CommandFailure::Reset, true),
            LinkState::Dead => (CommandFailure::Gone, true),
            LinkState::DeadUnproven => (CommandFailure::Gone, false),
        };
        // The state is loaded before this last look: what completed before it is seen.
        let mut ended = self.reap(visitor);
        while let Some(index) = self.slots.any_in_flight() {
            let (token, opcode, buffer) = self.slots.finish(index);
            // Reclaimed if the controller was seen to be disabled; else dropped, that is,
            // quarantined.
            let buffer = buffer.filter(|_| proven).map(DeviceBuffer::reclaim);
            self.counters.lost += 1;
            ended += 1;
            let opcode = IoOpcode(opcode);
            visitor(Completion { token, result: Err(failure), buffer, opcode });
        }
        if failure == CommandFailure::Reset {
            self.memory_mut().rings.restart();
            // Refused if the controller was given up meanwhile: the next poll ends the rest.
            let _ = self.link.change(LinkState::Stopped, LinkState::Surrendered);
        }
        ended
    }

    /// Where the rings are, for the commands that create the queues.
    pub(crate) fn ring_addresses(&self) -> (Iova, Iova) {
        self.memory().rings.addresses()
    }

    /// Entries of each ring.
    #[must_use]
    pub fn entries(&self) -> u16 {
        self.memory().rings.entries()
    }

    /// Frees the memory of a pair that the device does not use: it was never created there, it
    /// was deleted, or the controller is disabled. Commands in flight end without a visitor.
    pub(crate) fn retire(mut self) {
        self.reclaim();
    }

    fn reclaim(&mut self) {
        if let Some(remains) = self.take_remains() {
            remains.reclaim();
        }
    }

    fn take_remains(&mut self) -> Option<Remains> {
        let memory = self.memory.take()?;
        let mut buffers = Vec::new();
        while let Some(index) = self.slots.any_in_flight() {
            buffers.extend(self.slots.finish(index).2);
        }
        Some(Remains { memory, buffers })
    }

    fn blocks(&self, bytes: usize) -> Option<u32> {
        let bytes = bytes as u64;
        let limit = self.target.max_transfer.get().min(MAX_TRANSFER.get());
        if bytes == 0 || bytes > limit {
            return None;
        }
        let blocks = self.target.block_size.blocks_exact(bytes)?;
        u32::try_from(blocks.get()).ok().filter(|&blocks| blocks <= MAX_BLOCKS_PER_COMMAND)
    }

    #[inline]
    fn memory(&self) -> &Memory {
        let Some(memory) = &self.memory else { unreachable!("a pair has memory until dropped") };
        memory
    }

    #[inline]
    fn memory_mut(&mut self) -> &mut Memory {
        let Some(memory) = &mut self.memory else {
            unreachable!("a pair has memory until dropped");
        };
        memory
    }
}

impl Drop for QueuePair {
    /// Frees the memory if the controller was seen to be disabled; else the device may still use
    /// it, and it is left to the controller, which deletes the queue by and by. Give a pair back
    /// to its controller instead of dropping it.
    fn drop(&mut self) {
        if self.link.close() {
            self.reclaim();
        } else if let Some(remains) = self.take_remains() {
            self.link.leave(remains);
        }
    }
}

/// Describes data that PRP 1 and 2 cannot hold by one SGL data block, where that is no longer than
/// the list it saves: buffers are contiguous for the device, so one descriptor is all. Linux does
/// the same. False if PRPs are to be used.
#[inline]
fn describe_by_sgl(entry: &mut SubmissionEntry, data: &DmaBuffer) -> bool {
    let start = data.iova();
    let in_prps = 2 * PAGE - (start.get() % PAGE as u64) as usize;
    let Ok(length) = u32::try_from(data.len()) else { return false };
    // SGLS may ask for dwords, as PRPs do.
    if data.len() <= in_prps || !start.get().is_multiple_of(4) || !length.is_multiple_of(4) {
        return false;
    }
    let kind = SglKind::DATA_BLOCK;
    *entry = entry.with_sgl(SglDescriptor { address: start.get(), length, kind });
    true
}

fn rejected(reason: RejectReason, buffer: Option<DmaBuffer>) -> Rejected {
    Rejected { reason, buffer }
}

#[cfg(test)]
mod tests;
