//! The inside of the controller: it fetches commands, carries them out and answers them.
//!
//! Everything is behind one lock and moves only in [`Core::step`] and in register writes. The
//! order in one step: doorbells are looked at, answers whose time has come are posted, commands
//! are carried out, one sync serves all that wait for durability, interrupts are raised.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::answers::{Answer, Until};
use super::cache::{Durability, Tag};
use super::controller::Settings;
use super::counters::Counters;
use super::errors::Errors;
use super::events::Events;
use super::fault::{FaultAction, Faults, Subject};
use super::features::Features;
use super::media::Media;
use super::queue::{CompletionQueue, Fetched, SubmissionQueue};
use super::registers::Registers;
use super::scatter::Segment;
use crate::hw::dma::DmaWindow;
use crate::hw::event::EventFd;
use crate::hw::transport::{DeviceWake, DoorbellPage};
use crate::spec::command::{ForceUnitAccess, IoOpcode, SubmissionEntry};
use crate::spec::register::{ControllerStatus, GONE32};
use crate::spec::status::StatusCode;
use crate::units::{Iova, QueueId};

/// What host and controller share without the lock.
pub(super) struct Ports {
    pub(super) doorbells: Arc<DoorbellPage>,
    pub(super) wake: Arc<DeviceWake>,
    /// The value of CSTS, all ones once the controller is gone.
    pub(super) status: AtomicU32,
    pub(super) vectors: Box<[Arc<EventFd>]>,
}

/// The state of a controller. `doorbells` and `answers` have its two ends, `admin` and `io` its
/// commands, `registers` its life.
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
    /// Shadow doorbells and EventIdx, if the host has told where they are.
    pub(super) shadow: Option<[Iova; 2]>,
    pub(super) submission: Vec<Option<SubmissionQueue>>,
    pub(super) completion: Vec<Option<CompletionQueue>>,
    pub(super) held: Vec<(Until, Answer)>,
    pub(super) clock: Duration,
    /// Serial number of the last command carried out.
    pub(super) serial: u64,
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
            shadow: None,
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

    /// Whether commands are carried out: enabled, ready, not failed, not busy with its firmware, not
    /// shut down, not gone.
    pub(super) fn is_running(&self) -> bool {
        let status = ControllerStatus(self.ports.status.load(Ordering::Relaxed));
        status.ready() && !status.fatal() && !status.paused() && !self.registers.is_shut_down()
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
        self.shadow = None;
        self.events = Events::default();
        for register in 0..2 * self.submission.len() {
            self.ports.doorbells.store(register, 0);
        }
    }

    pub(super) fn window(&self) -> Option<DmaWindow> {
        self.window.as_ref().map(|(window, _)| window.clone())
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
