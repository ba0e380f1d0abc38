//! The inside of the controller: it fetches commands, carries them out and answers them.
//!
//! Everything is behind one lock and moves only in [`Core::step`] and in register writes. The
//! order in one step: doorbells are looked at, answers whose time has come are posted, commands
//! are carried out, one sync serves all that wait for durability, interrupts are raised.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::cache::{Durability, Tag};
use super::controller::Settings;
use super::counters::Counters;
use super::errors::Errors;
use super::events::Events;
use super::fault::{FaultAction, Faults, Subject};
use super::features::Features;
use super::media::Media;
use super::queue::{CompletionQueue, Fetched, Rung, SubmissionQueue};
use super::registers::Registers;
use super::scatter::Segment;
use crate::hw::dma::DmaWindow;
use crate::hw::event::EventFd;
use crate::hw::transport::{DeviceWake, DoorbellPage};
use crate::spec::command::{ForceUnitAccess, IoOpcode, SubmissionEntry};
use crate::spec::completion::CompletionEntry;
use crate::spec::log::{AsyncEvent, AsyncEventType, LogPage};
use crate::spec::register::{ControllerStatus, GONE32};
use crate::spec::status::{Status, StatusCode};
use crate::units::{CommandId, Lba, NamespaceId, QueueId};

/// What host and controller share without the lock.
pub(super) struct Ports {
    pub(super) doorbells: Arc<DoorbellPage>,
    pub(super) wake: Arc<DeviceWake>,
    /// The value of CSTS, all ones once the controller is gone.
    pub(super) status: AtomicU32,
    pub(super) vectors: Box<[Arc<EventFd>]>,
}

/// The state of a controller.
pub(super) struct Core {
    pub(super) settings: Settings,
    pub(super) ports: Arc<Ports>,
    pub(super) media: Media,
    pub(super) registers: Registers,
    pub(super) features: Features,
    pub(super) events: Events,
    pub(super) errors: Errors,
    pub(super) faults: Faults,
    pub(super) counters: Counters,
    /// Critical warnings of the SMART log page.
    pub(super) critical_warning: u8,
    /// The namespace changed since the host last read which ones did.
    pub(super) namespace_changed: bool,
    /// Host memory, once it is mapped, and where it lies in this process.
    pub(super) window: Option<(DmaWindow, u64)>,
    pub(super) submission: Vec<Option<SubmissionQueue>>,
    pub(super) completion: Vec<Option<CompletionQueue>>,
    pub(super) held: Vec<(Until, Answer)>,
    pub(super) clock: Duration,
    /// Serial number of the last command carried out.
    serial: u64,
    /// Number of the last completion posted.
    pub(super) sequence: u64,
    pub(super) segments: Vec<Segment>,
    /// Where the round over the queues goes on.
    next_queue: usize,
    order: Option<fastrand::Rng>,
}

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Done; dword 0 of the completion.
    Done(u32),
    /// Done, and to be answered when everything done so far is durable.
    Durable,
    /// Accepted; to be answered when there is a reason.
    Later,
}

/// An answer that is ready to be posted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) queue: QueueId,
    pub(super) id: CommandId,
    pub(super) status: Status,
    pub(super) result: u32,
    /// Namespace and first block, or what a command has in their place.
    pub(super) place: (NamespaceId, Lba),
    /// Serial number of the command.
    command: u64,
    /// Of a flush: the last completion it covers.
    covers: Option<u64>,
    /// Whether the host is told by an interrupt, too.
    interrupts: bool,
    /// The identifier to lie about.
    posted_id: CommandId,
    copies: u8,
}

/// What an answer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Room in its completion queue.
    Room,
    /// The sync at the end of the step.
    Sync,
    /// The device's clock.
    Due(Duration),
    /// `release_held`.
    Released,
}

impl Core {
    pub(super) fn new(settings: Settings, ports: Arc<Ports>, media: Media) -> Self {
        let queues = usize::from(settings.io_queues) + 1;
        Self {
            registers: Registers::default(),
            features: Features::new(&settings),
            events: Events::default(),
            errors: Errors::default(),
            faults: Faults::default(),
            counters: Counters { power_cycles: 1, ..Counters::default() },
            critical_warning: 0,
            namespace_changed: false,
            window: None,
            submission: (0..queues).map(|_| None).collect(),
            completion: (0..queues).map(|_| None).collect(),
            held: Vec::new(),
            clock: Duration::ZERO,
            serial: 0,
            sequence: 0,
            segments: Vec::new(),
            next_queue: 0,
            order: settings.reorder.map(fastrand::Rng::with_seed),
            settings,
            ports,
            media,
        }
    }

    /// Moves on by at most `limit` commands; returns how many were carried out.
    pub(super) fn step(&mut self, limit: usize) -> usize {
        self.pass_time();
        if !self.is_running() {
            return 0;
        }
        self.look_at_doorbells();
        self.answer_what_is_due();
        let mut done = 0;
        while done < limit
            && self.is_running()
            && let Some((queue, command)) = self.next_command()
        {
            self.carry_out(queue, command);
            done += 1;
        }
        self.sync();
        self.report_events();
        self.interrupt();
        done
    }

    /// Whether [`Core::step`] would find something to do.
    pub(super) fn has_work(&self) -> bool {
        let bell = |index| self.ports.doorbells.load(index).unwrap_or(0);
        let submitted = |index: usize| {
            let queue = self.submission.get(index).and_then(Option::as_ref);
            queue.map_or(bell(2 * index) != 0, |queue| {
                queue.has_news(bell(2 * index)) || self.can_begin(queue)
            })
        };
        let consumed = |index: usize| {
            let queue = self.completion.get(index).and_then(Option::as_ref);
            queue.map_or(bell(2 * index + 1) != 0, |queue| queue.has_news(bell(2 * index + 1)))
        };
        let ready = self.events.has_next();
        self.is_running()
            && (ready
                || (0..self.submission.len()).any(|index| submitted(index) || consumed(index)))
    }

    /// When [`Core::step`] has something to do that no doorbell announces.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let answers = self.held.iter().filter_map(|(until, _)| match until {
            Until::Due(due) => Some(*due),
            Until::Room | Until::Sync | Until::Released => None,
        });
        answers.chain(self.registers.change_due()).min()
    }

    /// Whether commands are carried out: enabled, ready, not failed, not shut down, not gone.
    pub(super) fn is_running(&self) -> bool {
        let status = ControllerStatus(self.ports.status.load(Ordering::Relaxed));
        status.ready() && !status.fatal() && !self.registers.is_shut_down()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.ports.status.load(Ordering::Relaxed) == GONE32
    }

    /// The controller stops for a reason that only a reset can clear.
    pub(super) fn fail(&mut self) {
        self.ports.status.fetch_or(ControllerStatus::FATAL, Ordering::Release);
    }

    /// The controller is no longer there.
    pub(super) fn unplug(&mut self) {
        self.forget_host();
        self.ports.status.store(GONE32, Ordering::Release);
    }

    /// Drops everything that a reset drops: queues, commands, answers, events.
    pub(super) fn forget_host(&mut self) {
        self.submission.iter_mut().for_each(|queue| *queue = None);
        self.completion.iter_mut().for_each(|queue| *queue = None);
        self.held.clear();
        self.events = Events::default();
        for register in 0..2 * self.submission.len() {
            self.ports.doorbells.store(register, 0);
        }
    }

    pub(super) fn window(&self) -> Option<DmaWindow> {
        self.window.as_ref().map(|(window, _)| window.clone())
    }

    fn error_event(&mut self, information: u8) {
        self.counters.invalid_doorbells += 1;
        self.errors.doorbell();
        self.events.raise(AsyncEvent {
            event_type: AsyncEventType::ERROR,
            information,
            log_page: LogPage::ERROR,
        });
    }

    /// Looks at every doorbell and fetches the commands that were submitted.
    pub(super) fn look_at_doorbells(&mut self) {
        let Some(window) = self.window() else {
            return;
        };
        for index in 0..self.submission.len() {
            let bell = |register| self.ports.doorbells.load(register).unwrap_or(0);
            let (tail, head) = (bell(2 * index), bell(2 * index + 1));
            let rung = match &mut self.submission[index] {
                Some(queue) if queue.has_news(tail) => queue.fetch(&window, tail, self.sequence),
                None if tail != 0 => {
                    self.ports.doorbells.store(2 * index, 0);
                    self.error_event(AsyncEvent::INVALID_DOORBELL_REGISTER);
                    Rung::Fine
                }
                _ => Rung::Fine,
            };
            match rung {
                Rung::Fine => {}
                Rung::InvalidValue => self.error_event(AsyncEvent::INVALID_DOORBELL_VALUE),
                Rung::Unreachable => {
                    self.counters.outside_window += 1;
                    self.fail();
                }
            }
            match self.completion[index].as_mut().map(|queue| queue.look(head)) {
                Some(true) => {}
                Some(false) => self.error_event(AsyncEvent::INVALID_DOORBELL_VALUE),
                None if head == 0 => {}
                None => {
                    self.ports.doorbells.store(2 * index + 1, 0);
                    self.error_event(AsyncEvent::INVALID_DOORBELL_REGISTER);
                }
            }
        }
    }

    /// A queue with a full completion queue stalls.
    fn can_begin(&self, queue: &SubmissionQueue) -> bool {
        !queue.waiting.is_empty() && self.has_room(queue.completion_queue)
    }

    fn has_room(&self, completion_queue: QueueId) -> bool {
        let queue = self.completion.get(usize::from(completion_queue.get()));
        queue.and_then(Option::as_ref).is_some_and(|queue| !queue.is_full())
    }

    /// The next command to begin: the admin queue's first, then I/O queues in turn, each in the
    /// order of submission; or, if a seed says so, any command of any I/O queue.
    fn next_command(&mut self) -> Option<(QueueId, Fetched)> {
        let queues = self.submission.len();
        if let Some(order) = &mut self.order {
            self.next_queue = order.usize(..queues);
        }
        let turns = (0..queues).map(|turn| (self.next_queue + turn) % queues);
        let index = std::iter::once(0).chain(turns).find(|&index| {
            self.submission[index].as_ref().is_some_and(|queue| self.can_begin(queue))
        })?;
        if index != 0 {
            self.next_queue = index + 1;
        }
        let queue = self.submission[index].as_mut()?;
        let place = match &mut self.order {
            Some(order) if index != 0 => order.usize(..queue.waiting.len()),
            _ => 0,
        };
        let command = queue.waiting.remove(place)?;
        Some((QueueId(u16::try_from(index).ok()?), command))
    }

    fn carry_out(&mut self, queue: QueueId, command: Fetched) {
        self.serial += 1;
        let entry = command.entry;
        let mut answer = Answer::new(queue, entry.id(), self.serial);
        answer.place = (entry.nsid(), entry.lba());
        if command.conflict {
            self.finish(answer.failed(StatusCode::COMMAND_ID_CONFLICT.into()), Until::Room);
            return;
        }
        let fault = self.strike(queue, &entry);
        match fault {
            Some(FaultAction::FatalStatus) => return self.fail(),
            Some(FaultAction::Unplug) => return self.unplug(),
            Some(FaultAction::Fail(status)) => {
                return self.finish(answer.failed(status), Until::Room);
            }
            Some(FaultAction::Pretend) => return self.finish(answer, Until::Room),
            _ => {}
        }
        let mut until = Until::Room;
        match self.execute(queue, &command, fault) {
            Ok(Outcome::Done(result)) => answer.result = result,
            Ok(Outcome::Durable) if self.media.syncs() => until = Until::Sync,
            Ok(Outcome::Durable) => {}
            Ok(Outcome::Later) => return,
            Err(code) => answer = answer.failed(code.into()),
        }
        if queue != QueueId(0) && entry.io_opcode() == IoOpcode::FLUSH {
            answer.covers = Some(command.submitted_after);
        }
        match fault {
            Some(FaultAction::FailAfter(status)) => answer = answer.failed(status),
            Some(FaultAction::LoseCompletion) => return self.sync_if(until),
            Some(FaultAction::Hold) => {
                self.sync_if(until);
                until = Until::Released;
            }
            Some(FaultAction::Delay(by)) => {
                self.sync_if(until);
                until = Until::Due(self.clock.saturating_add(by));
            }
            Some(FaultAction::WrongCommandId(id)) => answer.posted_id = id,
            Some(FaultAction::LoseInterrupt) => answer.interrupts = false,
            Some(FaultAction::DuplicateCompletion) => answer.copies = 2,
            _ => {}
        }
        self.finish(answer, until);
    }

    /// Makes durable what an answer needs that a fault holds back anyway.
    fn sync_if(&mut self, needs: Until) {
        if needs == Until::Sync {
            self.counters.syncs += 1;
            // A failure is not reported, as if the drive had lost track of the command.
            let _ = self.media.sync();
        }
    }

    fn strike(&mut self, queue: QueueId, entry: &SubmissionEntry) -> Option<FaultAction> {
        if self.faults.is_empty() {
            return None;
        }
        let names_blocks = queue != QueueId(0)
            && matches!(
                entry.io_opcode(),
                IoOpcode::READ | IoOpcode::WRITE | IoOpcode::WRITE_ZEROES
            );
        let (start, count) = (entry.lba().get(), entry.block_count().get());
        let subject = Subject {
            queue,
            opcode: entry.opcode,
            blocks: names_blocks.then(|| start..start.saturating_add(count)),
        };
        let action = self.faults.strike(&subject);
        self.counters.faults += u64::from(action.is_some());
        action
    }

    fn execute(
        &mut self,
        queue: QueueId,
        command: &Fetched,
        fault: Option<FaultAction>,
    ) -> Result<Outcome, StatusCode> {
        if queue == QueueId(0) {
            self.counters.admin += 1;
            return self.admin(&command.entry);
        }
        let forced = command.entry.force_unit_access() == ForceUnitAccess::Yes
            && fault != Some(FaultAction::IgnoreForceUnitAccess);
        let durable = forced || !self.features.write_cache_enabled();
        let tag = Tag {
            command: self.serial,
            durability: if durable { Durability::Durable } else { Durability::Volatile },
        };
        let corrupt = fault == Some(FaultAction::CorruptData);
        self.io(&command.entry, tag, corrupt)
    }

    /// Posts an answer as soon as `until` allows.
    pub(super) fn finish(&mut self, answer: Answer, until: Until) {
        match self.submission.get(usize::from(answer.queue.get())) {
            Some(Some(queue)) if until == Until::Room && self.has_room(queue.completion_queue) => {
                self.post(answer);
            }
            Some(Some(_)) => self.held.push((until, answer)),
            // The queue is gone, and its commands with it.
            _ => {}
        }
    }

    /// Posts an answer as soon as its completion queue has room.
    pub(super) fn answer(&mut self, answer: Answer) {
        self.finish(answer, Until::Room);
    }

    fn answer_what_is_due(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let now = self.clock;
        for (until, answer) in std::mem::take(&mut self.held) {
            match until {
                Until::Due(due) if due <= now => self.finish(answer, Until::Room),
                other => self.finish(answer, other),
            }
        }
    }

    /// Makes durable what waits for it, with one call for all.
    fn sync(&mut self) {
        if !self.held.iter().any(|(until, _)| *until == Until::Sync) {
            return;
        }
        // A sync takes its time; what needs none of it is not kept waiting.
        self.interrupt();
        self.counters.syncs += 1;
        let result = self.media.sync();
        for (until, answer) in std::mem::take(&mut self.held) {
            match (until, result) {
                (Until::Sync, Ok(())) => self.finish(answer, Until::Room),
                (Until::Sync, Err(code)) => self.finish(answer.failed(code.into()), Until::Room),
                _ => self.held.push((until, answer)),
            }
        }
    }

    /// Answers everything that a fault holds back.
    pub(super) fn release_held(&mut self) {
        for (until, answer) in std::mem::take(&mut self.held) {
            let until = if until == Until::Released { Until::Room } else { until };
            self.finish(answer, until);
        }
        self.interrupt();
    }

    fn post(&mut self, answer: Answer) {
        let Some((window, _)) = &self.window else {
            return;
        };
        let Some(Some(queue)) = self.submission.get_mut(usize::from(answer.queue.get())) else {
            return;
        };
        self.sequence += 1;
        if answer.status.is_success() {
            self.media.completed(answer.command, self.sequence);
            if let Some(covered) = answer.covers {
                self.media.flushed(covered);
            }
        } else {
            self.counters.failures += 1;
            self.errors.command(&answer);
        }
        queue.finished(answer.id);
        let entry = CompletionEntry::new(answer.posted_id, answer.status, answer.result)
            .with_queue(answer.queue.get(), queue.head());
        let index = usize::from(queue.completion_queue.get());
        let Some(Some(completion)) = self.completion.get_mut(index) else {
            return;
        };
        completion.news |= answer.interrupts;
        let mut reached = true;
        for _ in 0..answer.copies {
            if !completion.is_full() {
                reached &= completion.post(window, entry);
            }
        }
        if !reached {
            self.counters.outside_window += 1;
            self.fail();
        }
    }

    fn report_events(&mut self) {
        while let Some((id, event)) = self.events.next() {
            self.serial += 1;
            let mut answer = Answer::new(QueueId(0), id, self.serial);
            answer.result = event.to_dword();
            self.finish(answer, Until::Room);
        }
    }

    /// Raises the interrupts of completion queues that got entries.
    pub(super) fn interrupt(&mut self) {
        let mask = self.registers.interrupt_mask();
        for queue in self.completion.iter_mut().flatten() {
            let Some(vector) = queue.vector.filter(|_| queue.news) else {
                continue;
            };
            let masked = vector < 32 && mask >> vector & 1 == 1;
            if !masked && let Some(event) = self.ports.vectors.get(usize::from(vector)) {
                queue.news = false;
                self.counters.interrupts += 1;
                event.signal();
            }
        }
    }

    /// Carries out on the medium what the host has submitted and nobody has answered: the power
    /// goes while the controller is at it. Nothing of it becomes durable.
    pub(super) fn begin_all_writes(&mut self) {
        if !self.is_running() {
            return;
        }
        self.look_at_doorbells();
        for index in 1..self.submission.len() {
            let Some(queue) = &self.submission[index] else {
                continue;
            };
            for command in queue.waiting.clone() {
                if command.conflict || !changes_medium(command.entry.io_opcode()) {
                    continue;
                }
                self.serial += 1;
                let tag = Tag { command: self.serial, durability: Durability::Volatile };
                // What it comes to is never known.
                let _ = self.io(&command.entry, tag, false);
            }
        }
    }
}

fn changes_medium(opcode: IoOpcode) -> bool {
    matches!(opcode, IoOpcode::WRITE | IoOpcode::WRITE_ZEROES | IoOpcode::DATASET_MANAGEMENT)
}

impl Answer {
    /// Success with result 0.
    pub(super) fn new(queue: QueueId, id: CommandId, command: u64) -> Self {
        Self {
            queue,
            id,
            status: Status::SUCCESS,
            result: 0,
            place: (NamespaceId(0), Lba(0)),
            command,
            covers: None,
            interrupts: true,
            posted_id: id,
            copies: 1,
        }
    }

    /// The same command, failed.
    pub(super) fn failed(mut self, status: Status) -> Self {
        self.status = status;
        self.covers = None;
        self
    }
}
