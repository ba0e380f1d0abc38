//! Fabrics commands: Connect with all that can be wrong about it, properties, Disconnect.

use std::rc::Rc;

use zerocopy::FromBytes;

use super::controller::{Controller, Host, JoinError, Kind};
use super::limits::{
    DISCOVERY_KEEP_ALIVE, KEEP_ALIVE_UNITS, MIN_KEEP_ALIVE, QUEUE_ENTRIES, READY_TIMEOUT,
};
use super::model::Refusal as NotAdmitted;
use super::queue::{Outcome, Queue, Stop};
use super::target::NewController;
use crate::spec::command::SubmissionEntry;
use crate::spec::fabrics::{
    CONNECT_NO_FLOW_CONTROL, ConnectData, DISCOVERY_NQN, DYNAMIC_CONTROLLER, FabricsType,
    MAX_CONTROLLER_ID, invalid_parameter, nqn,
};
use crate::spec::register::{self, Configuration};
use crate::spec::reservation::HostId;
use crate::spec::status::{Status, StatusCode};

/// Runs a Fabrics command.
pub(super) fn run(
    queue: &Rc<Queue>,
    entry: &SubmissionEntry,
    data: Option<&[u8]>,
) -> Result<Outcome, Status> {
    let kind = entry.fabrics_type();
    if kind == FabricsType::CONNECT {
        return Ok(match connect(queue, entry, data) {
            Ok(controller) => Outcome::result(controller.into()),
            Err(refusal) => {
                if queue.service.target.may_log() {
                    let (peer, status) = (queue.peer.remote, refusal.status);
                    tracing::warn!(%peer, %status, reason = refusal.reason, "connect refused");
                }
                Outcome { status: refusal.status, result: refusal.result.into(), data: None }
            }
        });
    }
    let Some((controller, id)) = queue.association() else {
        return Err(Status::of(StatusCode::COMMAND_SEQUENCE_ERROR).do_not_retry());
    };
    match kind {
        FabricsType::PROPERTY_GET | FabricsType::PROPERTY_SET if id.get() != 0 => invalid_field(),
        FabricsType::PROPERTY_GET => property_get(&controller, entry).map(Outcome::result),
        FabricsType::PROPERTY_SET => property_set(&controller, entry),
        FabricsType::DISCONNECT if id.get() == 0 => invalid_field(),
        FabricsType::DISCONNECT => {
            if entry.connect_format() != 0 {
                let code = StatusCode::CONNECT_INCOMPATIBLE_FORMAT;
                return Err(Status::of(code).do_not_retry());
            }
            queue.stop(Stop::Drain);
            Ok(Outcome::success())
        }
        _ => Err(Status::of(StatusCode::INVALID_OPCODE).do_not_retry()),
    }
}

fn invalid_field() -> Result<Outcome, Status> {
    Err(Status::of(StatusCode::INVALID_FIELD).do_not_retry())
}

/// Why Connect failed.
struct Refusal {
    status: Status,
    result: u32,
    reason: &'static str,
}

impl Refusal {
    fn new(status: Status, reason: &'static str) -> Self {
        Self { status, result: 0, reason }
    }

    /// A refusal that will be the same next time.
    fn final_of(code: StatusCode, reason: &'static str) -> Self {
        Self::new(Status::of(code).do_not_retry(), reason)
    }

    /// A wrong byte of the command.
    fn command(offset: u16, reason: &'static str) -> Self {
        let result = invalid_parameter(false, offset);
        Self { result, ..Self::final_of(StatusCode::CONNECT_INVALID_PARAMETERS, reason) }
    }

    /// A wrong byte of its data.
    fn data(offset: u16, reason: &'static str) -> Self {
        let result = invalid_parameter(true, offset);
        Self { result, ..Self::final_of(StatusCode::CONNECT_INVALID_PARAMETERS, reason) }
    }
}

fn connect(
    queue: &Rc<Queue>,
    entry: &SubmissionEntry,
    data: Option<&[u8]>,
) -> Result<u16, Refusal> {
    if queue.was_associated() {
        let code = StatusCode::COMMAND_SEQUENCE_ERROR;
        return Err(Refusal::final_of(code, "the queue is connected already"));
    }
    if entry.connect_format() != 0 {
        let code = StatusCode::CONNECT_INCOMPATIBLE_FORMAT;
        return Err(Refusal::final_of(code, "RECFMT is not 0"));
    }
    let Some((data, _)) = data.and_then(|data| ConnectData::ref_from_prefix(data).ok()) else {
        let code = StatusCode::DATA_SGL_LENGTH_INVALID;
        return Err(Refusal::final_of(code, "less than 1024 bytes of data"));
    };
    let subsystem_nqn = nqn(&data.subsystem_nqn).ok_or(Refusal::data(256, "SUBNQN is no NQN"))?;
    let host_nqn = nqn(&data.host_nqn).ok_or(Refusal::data(512, "HOSTNQN is no NQN"))?;
    // Reservations are kept by host identifier: zero would be shared by all who forget it.
    let host_id = HostId::new(data.host_id).ok_or(Refusal::data(0, "HOSTID is zero"))?;
    if !(2..=QUEUE_ENTRIES).contains(&entry.connect_entries()) {
        return Err(Refusal::command(44, "SQSIZE is 0 or too large"));
    }
    let host = Host { nqn: host_nqn.to_owned(), id: host_id };
    if entry.connect_queue().get() == 0 {
        connect_admin(queue, entry, data, subsystem_nqn, host)
    } else {
        connect_io(queue, entry, data, subsystem_nqn, &host)
    }
}

fn connect_admin(
    queue: &Rc<Queue>,
    entry: &SubmissionEntry,
    data: &ConnectData,
    subsystem_nqn: &str,
    host: Host,
) -> Result<u16, Refusal> {
    let target = &queue.service.target;
    let kind = if subsystem_nqn == DISCOVERY_NQN { Kind::Discovery } else { Kind::Io };
    let mut ids = 1..=MAX_CONTROLLER_ID;
    if kind == Kind::Io {
        let subsystem = target.model().subsystem(subsystem_nqn);
        let subsystem = subsystem.ok_or(Refusal::data(256, "there is no such subsystem"))?;
        subsystem.admit(&host.nqn, queue.peer.local).map_err(|refusal| {
            let reason = match refusal {
                NotAdmitted::Host => "the host is not allowed",
                NotAdmitted::Listener => "not through this listener",
            };
            Refusal::final_of(StatusCode::CONNECT_INVALID_HOST, reason)
        })?;
        ids = subsystem.min_cntlid..=subsystem.max_cntlid;
    }
    if data.controller_id.get() != DYNAMIC_CONTROLLER {
        return Err(Refusal::data(16, "controllers are made on demand only"));
    }
    let keep_alive = round_keep_alive(kind, entry.connect_keep_alive());
    let local = queue.peer.local;
    let subsystem = subsystem_nqn;
    let wanted = NewController { kind, subsystem, ids, host, local, keep_alive };
    let made = target.make_controller(wanted);
    let Some(controller) = made else {
        let status = StatusCode::CONNECT_CONTROLLER_BUSY.into();
        return Err(Refusal::new(status, "too many controllers"));
    };
    if let Err(refusal) = join(queue, entry, &controller) {
        target.forget_controller(&controller);
        return Err(refusal);
    }
    tracing::info!(
        host = controller.host().nqn,
        subsystem = subsystem_nqn,
        controller = controller.id(),
        peer = %queue.peer.remote,
        "host connected"
    );
    Ok(controller.id())
}

fn connect_io(
    queue: &Rc<Queue>,
    entry: &SubmissionEntry,
    data: &ConnectData,
    subsystem_nqn: &str,
    host: &Host,
) -> Result<u16, Refusal> {
    let controller = queue.service.target.controller(data.controller_id.get());
    let controller = controller
        .filter(|controller| controller.subsystem() == subsystem_nqn)
        .ok_or(Refusal::data(16, "there is no such controller of the subsystem"))?;
    if controller.host().nqn != host.nqn {
        return Err(Refusal::data(512, "the controller is another host's"));
    }
    if controller.host().id != host.id {
        return Err(Refusal::data(0, "the controller is of another host identifier"));
    }
    if controller.kind() == Kind::Discovery {
        return Err(Refusal::command(42, "a discovery controller has no I/O queues"));
    }
    if entry.connect_queue().get() > controller.granted() {
        return Err(Refusal::command(42, "more I/O queues than were granted"));
    }
    join(queue, entry, &controller)?;
    Ok(controller.id())
}

fn join(
    queue: &Rc<Queue>,
    entry: &SubmissionEntry,
    controller: &std::sync::Arc<Controller>,
) -> Result<(), Refusal> {
    let id = entry.connect_queue();
    let Some(remote) = queue.service.remote(queue.number.get()) else {
        unreachable!("a queue is registered for as long as it runs commands");
    };
    let epoch = controller.join(id, remote).map_err(|error| match error {
        JoinError::NotEnabled => Refusal::command(42, "the controller is not enabled"),
        // The host's last connection may be on its way out.
        JoinError::Taken => {
            Refusal::new(StatusCode::INVALID_QUEUE_ID.into(), "the queue is connected already")
        }
    })?;
    let flow_control = entry.connect_attributes() & CONNECT_NO_FLOW_CONTROL == 0;
    queue.epoch.set(epoch);
    queue.associate(controller, id, entry.connect_entries(), flow_control);
    Ok(())
}

/// A keep-alive timeout as it is kept, in milliseconds.
pub(super) fn round_keep_alive(kind: Kind, milliseconds: u32) -> u32 {
    match (kind, milliseconds) {
        (Kind::Io, 0) => 0,
        (Kind::Discovery, 0) => DISCOVERY_KEEP_ALIVE,
        _ => {
            let unit = u32::from(KEEP_ALIVE_UNITS) * 100;
            milliseconds.max(MIN_KEEP_ALIVE).checked_next_multiple_of(unit).unwrap_or(u32::MAX)
        }
    }
}

/// CAP: queues of [`QUEUE_ENTRIES`], contiguous, NVM command set, ready with media.
const CAPABILITIES: u64 = (QUEUE_ENTRIES as u64 - 1)
    | 1 << 16
    | (READY_TIMEOUT as u64) << 24
    | (register::CSS_NVM as u64) << 37
    | 1 << 59;

fn property_get(controller: &Controller, entry: &SubmissionEntry) -> Result<u64, Status> {
    let wide = entry.property_size() == 1;
    let (low, high) = (|value: u64| value & 0xffff_ffff, |value: u64| value >> 32);
    let state = controller.lock();
    let value = match (entry.property_size(), entry.property_offset()) {
        (0 | 1, register::CAP) if wide => CAPABILITIES,
        (0, register::CAP) => low(CAPABILITIES),
        (0, 0x04) => high(CAPABILITIES),
        (0, register::VS) => register::VERSION_2_0.into(),
        (0, register::CC) => state.configuration.0.into(),
        (0, register::CSTS) => state.status.0.into(),
        (0, register::CRTO) => READY_TIMEOUT.into(),
        _ => return Err(Status::of(StatusCode::INVALID_FIELD).do_not_retry()),
    };
    Ok(value)
}

fn property_set(controller: &Controller, entry: &SubmissionEntry) -> Result<Outcome, Status> {
    if (entry.property_size(), entry.property_offset()) != (0, register::CC) {
        return invalid_field();
    }
    match controller.configure(Configuration(entry.property_value() as u32)) {
        Ok(()) => Ok(Outcome::success()),
        Err(reason) => {
            tracing::info!(host = controller.host().nqn, reason, "CC refused");
            invalid_field()
        }
    }
}
