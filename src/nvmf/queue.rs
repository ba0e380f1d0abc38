//! One queue of a controller, which is one connection: the commands under way on it, from capsule
//! to response.
//!
//! Sans-io: PDUs are put in, replies are taken out. A command passes these states: *waiting* (for
//! memory, for its data, for its partner), *running* (from here on it cannot be aborted, since a
//! device may have it), answered. Its data has a place in DMA memory before the host is asked
//! for it, and goes to the device from there.

mod abort;
mod budget;
mod data;
mod fused;
mod outbox;

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use slab::Slab;

use super::controller::Controller;
use super::dispatch;
use super::limits::{CONNECTION_MEMORY, DIRECT, EVENT_REQUESTS, MAX_TRANSFER, TIME_FOR_DATA};
use super::pdu::{Encoder, FatalStatus, Fault, Pdu};
use super::service::Service;
use super::target::Peer;
use crate::hw::dma::DmaBuffer;
use crate::reactor::Instant;
use crate::spec::command::{AdminOpcode, SubmissionEntry};
use crate::spec::fabrics::SglKind;
use crate::spec::status::{Status, StatusCode};
use crate::units::QueueId;
use budget::{Budget, Permit};
use fused::Fused;
pub(super) use outbox::{Outbox, Reply};

/// What a command came to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) status: Status,
    /// Dwords 0 and 1 of the completion.
    pub(super) result: u64,
    /// What goes to the host before the completion, if the status is success.
    pub(super) data: Option<(DmaBuffer, std::ops::Range<usize>)>,
}

impl Outcome {
    pub(super) fn success() -> Self {
        Self { status: Status::SUCCESS, result: 0, data: None }
    }

    pub(super) fn result(result: u64) -> Self {
        Self { result, ..Self::success() }
    }

    pub(super) fn data(buffer: DmaBuffer) -> Self {
        let range = 0..buffer.len();
        Self { data: Some((buffer, range)), ..Self::success() }
    }

    pub(super) fn failure(status: impl Into<Status>) -> Self {
        Self { status: status.into(), ..Self::success() }
    }
}

impl From<Result<Outcome, Status>> for Outcome {
    fn from(result: Result<Self, Status>) -> Self {
        result.unwrap_or_else(Self::failure)
    }
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Nothing more is answered.
    Drop,
    /// What runs is answered first.
    Drain,
    /// A terminating PDU was sent; the peer is to close.
    Fault,
}

struct Command {
    entry: SubmissionEntry,
    state: State,
    /// Memory that the command holds of the connection's share.
    permit: Option<Permit>,
}

enum State {
    /// For memory, or for its turn; can be aborted.
    Waiting,
    /// For data from the host.
    Collecting {
        buffer: DmaBuffer,
        received: usize,
        asked: bool,
        since: Instant,
    },
    /// The command was answered, its data is still to come and thrown away.
    Swallowing {
        left: usize,
        since: Instant,
    },
    /// It is an Asynchronous Event Request.
    Event,
    /// The first half of a pair whose data is there.
    Half {
        data: Option<DmaBuffer>,
        since: Instant,
    },
    Running,
    /// Aborted and answered; its task still has to find that out.
    Aborted,
}

/// Where data that is being received goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Landing {
    Command(usize),
    Nowhere,
}

pub(super) type Task = Pin<Box<dyn Future<Output = ()>>>;

pub(super) struct Queue {
    pub(super) service: Rc<Service>,
    pub(super) peer: Peer,
    encoder: Cell<Encoder>,
    /// Controller and queue, once Connect has succeeded.
    association: RefCell<Option<(Arc<Controller>, QueueId)>>,
    entries: Cell<u32>,
    flow_control: Cell<bool>,
    head: Cell<u32>,
    commands: RefCell<Slab<Command>>,
    fused: RefCell<Fused>,
    budget: Rc<Budget>,
    outbox: RefCell<Outbox>,
    staged: RefCell<Vec<Task>>,
    waker: RefCell<Option<Waker>>,
    stop: Cell<Option<Stop>>,
    pub(super) born: Instant,
    pub(super) initialized: Cell<bool>,
    pub(super) aborts: Cell<usize>,
    /// Since when one system call sends.
    pub(super) sending: Cell<Option<Instant>>,
    /// Its number among the connections of the reactor.
    pub(super) number: Cell<usize>,
    /// When a host was heard last, as far as the tick knows.
    pub(super) heard: Cell<Instant>,
    /// The controller's epoch in which the queue was connected.
    pub(super) epoch: Cell<u32>,
    /// Volumes of namespaces as this queue saw them last.
    pub(super) namespaces: RefCell<super::namespace::Cache>,
}

impl Queue {
    pub(super) fn new(service: &Rc<Service>, peer: Peer) -> Rc<Self> {
        Rc::new(Self {
            service: Rc::clone(service),
            peer,
            encoder: Cell::default(),
            association: RefCell::default(),
            // Until Connect says how many: one command is all that may come.
            entries: Cell::new(1),
            flow_control: Cell::new(true),
            head: Cell::new(0),
            commands: RefCell::default(),
            fused: RefCell::default(),
            budget: Budget::new(CONNECTION_MEMORY),
            outbox: RefCell::default(),
            staged: RefCell::default(),
            waker: RefCell::default(),
            stop: Cell::new(None),
            born: service.reactor.now(),
            initialized: Cell::new(false),
            aborts: Cell::new(0),
            sending: Cell::new(None),
            number: Cell::new(0),
            heard: Cell::new(service.reactor.now()),
            epoch: Cell::new(0),
            namespaces: RefCell::default(),
        })
    }

    pub(super) fn agree(&self, encoder: Encoder) {
        self.encoder.set(encoder);
        self.initialized.set(true);
    }

    pub(super) fn encoder(&self) -> Encoder {
        self.encoder.get()
    }

    /// Connect has succeeded.
    pub(super) fn associate(
        &self,
        controller: &Arc<Controller>,
        queue: QueueId,
        entries: u32,
        flow_control: bool,
    ) {
        *self.association.borrow_mut() = Some((Arc::clone(controller), queue));
        self.service.count_queue(queue);
        self.entries.set(entries);
        self.flow_control.set(flow_control);
        // The Connect itself counts, and is answered after this.
        self.head.set(0);
    }

    pub(super) fn association(&self) -> Option<(Arc<Controller>, QueueId)> {
        self.association.borrow().clone()
    }

    pub(super) fn disassociate(&self) -> Option<(Arc<Controller>, QueueId)> {
        self.association.borrow_mut().take()
    }

    /// Commands that are not answered yet.
    pub(super) fn outstanding(&self) -> u64 {
        self.commands.borrow().len() as u64
    }

    /// Whether Connect has succeeded.
    pub(super) fn was_associated(&self) -> bool {
        self.association.borrow().is_some()
    }

    /// Stops if the controller has ended, or was reset since this I/O queue joined it.
    pub(super) fn check(&self) {
        if let Some((controller, id)) = &*self.association.borrow()
            && (controller.has_ended() || id.get() != 0 && controller.epoch() != self.epoch.get())
        {
            self.stop(Stop::Drop);
        }
    }

    /// Ends the connection; a second, harder reason replaces a softer one.
    pub(super) fn stop(&self, stop: Stop) {
        if self.stop.get() != Some(Stop::Drop) {
            self.stop.set(Some(stop));
        }
        // For these nothing comes any more, and others wait for the memory that they hold.
        self.commands.borrow_mut().retain(|_, command| {
            matches!(command.state, State::Waiting | State::Running | State::Aborted)
        });
        self.wake();
    }

    pub(super) fn stopped(&self) -> Option<Stop> {
        self.stop.get()
    }

    /// Who is woken when something happens to the queue from outside of its connection's task.
    pub(super) fn set_waker(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Takes the commands that were not polled yet; `staged` is empty, and gives its room.
    pub(super) fn swap_staged(&self, staged: &mut Vec<Task>) {
        std::mem::swap(&mut *self.staged.borrow_mut(), staged);
    }

    pub(super) fn outbox(&self) -> std::cell::RefMut<'_, Outbox> {
        self.outbox.borrow_mut()
    }

    /// Whether commands are under way that a device may know.
    pub(super) fn is_busy(&self) -> bool {
        let commands = self.commands.borrow();
        commands.iter().any(|(_, command)| matches!(command.state, State::Running))
    }

    /// Whether long data was asked for: then less is received at once, so that the rest of it goes
    /// straight where it belongs. Short data is copied: another system call would cost more.
    pub(super) fn expects_long_data(&self) -> bool {
        let commands = self.commands.borrow();
        commands.iter().any(|(_, command)| match &command.state {
            State::Collecting { buffer, asked, .. } => *asked && buffer.len() >= DIRECT,
            _ => false,
        })
    }

    /// Whether a host owes data, also of a command that was answered already, or the second half of
    /// a pair, since too long ago.
    pub(super) fn waits_too_long(&self, now: Instant) -> bool {
        let commands = self.commands.borrow();
        commands.iter().any(|(_, command)| match command.state {
            State::Collecting { since, .. }
            | State::Swallowing { since, .. }
            | State::Half { since, .. } => now.since(since) > TIME_FOR_DATA,
            _ => false,
        })
    }

    /// A command capsule with `in_capsule` bytes of data came. Returns where the data goes.
    pub(super) async fn arrive(
        self: &Rc<Self>,
        entry: SubmissionEntry,
        in_capsule: u32,
    ) -> Result<Landing, Fault> {
        let limit = self.entries.get() as usize + EVENT_REQUESTS;
        if self.commands.borrow().len() >= limit {
            return Err(Fault::field(0, "more commands than the queue has entries"));
        }
        if let Some((controller, _)) = &*self.association.borrow() {
            controller.heard();
        }
        let sgl = entry.sgl();
        if in_capsule > 0 || sgl.kind == SglKind::IN_CAPSULE && sgl.length > 0 {
            if sgl.kind != SglKind::IN_CAPSULE {
                let what = "data in a capsule whose SGL says otherwise";
                return Err(Fault { information: 39 + 8, ..unsupported(what) });
            }
            if sgl.address != 0 {
                return Err(Fault { information: 24 + 8, ..unsupported("an in-capsule offset") });
            }
            if sgl.length != in_capsule {
                return Err(Fault::field(4, "the SGL's length is not that of the data"));
            }
        }
        let command = Command { entry, state: State::Waiting, permit: None };
        let key = self.commands.borrow_mut().insert(command);
        self.note_fused(key, &entry);
        if !takes_data(&entry) {
            self.run(key, None);
            return Ok(Landing::Nowhere);
        }
        if in_capsule > 0 {
            let buffer = self.service.buffer(in_capsule as usize).await;
            self.collect(key, buffer, false);
            return Ok(Landing::Command(key));
        }
        match sgl.kind {
            SglKind::TRANSPORT | SglKind::IN_CAPSULE if sgl.length == 0 => self.run(key, None),
            SglKind::TRANSPORT if sgl.length > MAX_TRANSFER => {
                self.refuse(key, StatusCode::DATA_SGL_LENGTH_INVALID);
            }
            SglKind::TRANSPORT => self.ask(key, sgl.length as usize),
            _ => self.refuse(key, StatusCode::SGL_DESCRIPTOR_TYPE_INVALID),
        }
        Ok(Landing::Nowhere)
    }

    fn refuse(&self, key: usize, code: StatusCode) {
        self.complete(key, Outcome::failure(Status::of(code).do_not_retry()));
    }

    fn collect(&self, key: usize, buffer: DmaBuffer, asked: bool) {
        let since = self.service.reactor.now();
        if let Some(command) = self.commands.borrow_mut().get_mut(key) {
            command.state = match command.state {
                // While it waited for memory; the data in its capsule still comes.
                State::Aborted => State::Swallowing { left: buffer.len(), since },
                _ => State::Collecting { buffer, received: 0, asked, since },
            };
        }
    }

    /// Asks the host for the data of a command, once there is room for it.
    fn ask(self: &Rc<Self>, key: usize, length: usize) {
        let queue = Rc::clone(self);
        self.stage(async move {
            let permit = queue.budget.acquire(length).await;
            let buffer = queue.service.buffer(length).await;
            let command_id = {
                let mut commands = queue.commands.borrow_mut();
                let Some(command) = commands.get_mut(key) else { return };
                if matches!(command.state, State::Aborted) || queue.stopped().is_some() {
                    commands.remove(key);
                    return;
                }
                command.permit = Some(permit);
                command.entry.id().get()
            };
            queue.collect(key, buffer, true);
            let (command, tag) = (command_id, tag_of(key));
            let pdu = Pdu::ReadyToTransfer { command, tag, offset: 0, length: length as u32 };
            queue.outbox().push(Reply::Header(pdu));
        });
    }

    fn swallow(&self, key: usize, left: usize) {
        let since = self.service.reactor.now();
        if let Some(command) = self.commands.borrow_mut().get_mut(key) {
            command.state = State::Swallowing { left, since };
        }
    }

    /// Runs a command whose data is there; one half of a pair waits for the other.
    fn run(self: &Rc<Self>, key: usize, data: Option<DmaBuffer>) {
        let fused = self.commands.borrow().get(key).map_or(0, |command| command.entry.fused());
        let Some(entry) = self.commands.borrow().get(key).map(|command| command.entry) else {
            return;
        };
        let on_io_queue = self.association.borrow().as_ref().is_some_and(|(_, id)| id.get() != 0);
        if fused == 0 || !on_io_queue {
            let queue = Rc::clone(self);
            self.stage(async move {
                let outcome = dispatch::run(&queue, key, &entry, data).await;
                queue.complete(key, outcome);
            });
            return;
        }
        self.run_half(key, data);
    }

    /// Runs `task` as part of the connection; it is never dropped half-way.
    fn stage(&self, task: impl Future<Output = ()> + 'static) {
        self.staged.borrow_mut().push(Box::pin(task));
    }

    /// Waits until the connection's share of memory has room for what a command reads.
    pub(super) async fn reserve(&self, key: usize, bytes: usize) {
        let permit = self.budget.acquire(bytes).await;
        if let Some(command) = self.commands.borrow_mut().get_mut(key) {
            command.permit = Some(permit);
        }
    }

    /// Marks a command as one that a device may know from now on.
    ///
    /// # Errors
    /// It was aborted.
    pub(super) fn begin(&self, key: usize) -> Result<(), Status> {
        match self.commands.borrow_mut().get_mut(key) {
            Some(Command { state: State::Aborted, .. }) | None => {
                Err(StatusCode::ABORT_REQUESTED.into())
            }
            Some(command) => {
                command.state = State::Running;
                Ok(())
            }
        }
    }

    /// Lets a command wait for an event.
    pub(super) fn wait_for_event(&self, key: usize) -> bool {
        let mut commands = self.commands.borrow_mut();
        let waiting = commands.iter().filter(|(_, c)| matches!(c.state, State::Event)).count();
        if waiting >= EVENT_REQUESTS {
            return false;
        }
        if let Some(command) = commands.get_mut(key) {
            command.state = State::Event;
        }
        true
    }

    /// Answers waiting event requests with the events of the controller.
    pub(super) fn deliver_events(&self) {
        let Some((controller, _)) = self.association() else { return };
        loop {
            let waiting = {
                let commands = self.commands.borrow();
                commands.iter().find(|(_, c)| matches!(c.state, State::Event)).map(|(key, _)| key)
            };
            let Some(key) = waiting else { return };
            let Some(event) = controller.next_event() else { return };
            self.complete(key, Outcome::result(event.to_dword().into()));
        }
    }

    /// Answers a command, which goes on taking its slot.
    fn answer(&self, key: usize, code: StatusCode) {
        let entry = self.commands.borrow().get(key).map(|command| command.entry);
        if let Some(entry) = entry {
            self.reply(&entry, Outcome::failure(code), None);
            if entry.fused() != 0 {
                self.part(key);
            }
        }
    }

    /// Answers a command and forgets it. One that an [`Outcome`] says nothing more about: it
    /// waits for an event, or was aborted and answered.
    pub(super) fn complete(&self, key: usize, outcome: impl Into<Option<Outcome>>) {
        let Some(outcome) = outcome.into() else { return };
        let command = self.commands.borrow_mut().try_remove(key);
        if let Some(command) = command
            && !matches!(command.state, State::Aborted)
        {
            self.reply(&command.entry, outcome, command.permit);
            if command.entry.fused() != 0 {
                self.part(key);
            }
        }
    }

    fn reply(&self, entry: &SubmissionEntry, outcome: Outcome, permit: Option<Permit>) {
        let (queue, head) = match &*self.association.borrow() {
            Some((_, queue)) if self.flow_control.get() => {
                let next = (self.head.get() + 1) % self.entries.get().max(1);
                self.head.set(next);
                (queue.get(), next as u16)
            }
            // Without flow control the head tells nothing, and says so.
            Some((_, queue)) => (queue.get(), 0xffff),
            None => (0, 0),
        };
        if queue != 0 {
            self.service.count_io();
        }
        if !outcome.status.is_success() {
            self.service.target.note_error(self, entry, outcome.status);
        }
        let reply =
            Reply::answer(entry.id(), queue, head, !self.flow_control.get(), outcome, permit);
        self.outbox.borrow_mut().push(reply);
        self.wake_if_foreign();
    }

    /// Answers are mostly made in the connection's own task, which looks into the outbox
    /// afterwards anyway.
    fn wake_if_foreign(&self) {
        if self.service.running.get() != Some(self.number.get()) {
            self.wake();
        }
    }
}

const fn unsupported(what: &'static str) -> Fault {
    Fault::new(FatalStatus::UnsupportedParameter, what)
}

/// Transfer tags count from one, so that a host that forgets to fill one in is noticed.
fn tag_of(key: usize) -> u16 {
    // Slots are as many as a queue has entries, far below 65 535.
    (key + 1) as u16
}

/// Whether a command's data goes to the controller: bits 1:0 of its opcode, or of its Fabrics
/// type.
fn takes_data(entry: &SubmissionEntry) -> bool {
    let kind = if entry.admin_opcode() == AdminOpcode::FABRICS {
        entry.fabrics_type().0
    } else {
        entry.opcode
    };
    kind & 3 == 1
}
