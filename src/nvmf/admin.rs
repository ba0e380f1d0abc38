//! Admin commands: which there are, and those that need no page of their own.

use std::rc::Rc;
use std::sync::Arc;

use super::controller::{Controller, Kind};
use super::limits::ABORTS;
use super::queue::{Outcome, Queue};
use super::{feature, identify, log};
use crate::spec::command::{ALL_NAMESPACES, AdminOpcode, SubmissionEntry};
use crate::spec::fabrics::SglKind;
use crate::spec::status::{Status, StatusCode};

/// Runs an admin command. `None`: it is answered later.
pub(super) async fn run(
    queue: &Rc<Queue>,
    controller: &Arc<Controller>,
    key: usize,
    entry: &SubmissionEntry,
    data: Option<&[u8]>,
) -> Option<Outcome> {
    if entry.fused() != 0 {
        return Some(Outcome::failure(invalid_field()));
    }
    let opcode = entry.admin_opcode();
    let for_discovery = matches!(
        opcode,
        AdminOpcode::IDENTIFY
            | AdminOpcode::GET_LOG_PAGE
            | AdminOpcode::KEEP_ALIVE
            | AdminOpcode::SET_FEATURES
            | AdminOpcode::GET_FEATURES
            | AdminOpcode::ASYNC_EVENT_REQUEST
    );
    if controller.kind() == Kind::Discovery && !for_discovery {
        return Some(Outcome::failure(invalid_opcode()));
    }
    let result = match opcode {
        AdminOpcode::IDENTIFY => identify::run(queue, controller, entry).await,
        AdminOpcode::GET_LOG_PAGE => log::run(queue, controller, entry).await,
        AdminOpcode::SET_FEATURES => feature::set(queue, controller, key, entry, data).await,
        AdminOpcode::GET_FEATURES => feature::get(queue, controller, entry).await,
        AdminOpcode::KEEP_ALIVE if entry.namespace.get() == 0 => Ok(Outcome::success()),
        AdminOpcode::KEEP_ALIVE => Err(invalid_field()),
        AdminOpcode::ABORT => abort(queue, controller, entry).await,
        AdminOpcode::ASYNC_EVENT_REQUEST => {
            if queue.wait_for_event(key) {
                queue.deliver_events();
                return None;
            }
            Err(StatusCode::ASYNC_EVENT_LIMIT_EXCEEDED.into())
        }
        _ => Err(invalid_opcode()),
    };
    Some(result.into())
}

pub(super) fn invalid_field() -> Status {
    Status::of(StatusCode::INVALID_FIELD).do_not_retry()
}

pub(super) fn invalid_opcode() -> Status {
    Status::of(StatusCode::INVALID_OPCODE).do_not_retry()
}

/// NSID of a command that concerns the controller as a whole.
pub(super) fn check_controller_scope(entry: &SubmissionEntry) -> Result<(), Status> {
    match entry.nsid() {
        ALL_NAMESPACES => Ok(()),
        id if id.get() == 0 => Ok(()),
        _ => Err(invalid_field()),
    }
}

/// How many bytes the host takes of what a command reads.
pub(super) fn room(entry: &SubmissionEntry) -> Result<usize, Status> {
    let sgl = entry.sgl();
    match sgl.kind {
        SglKind::TRANSPORT => Ok(sgl.length as usize),
        _ => Err(Status::of(StatusCode::SGL_DESCRIPTOR_TYPE_INVALID).do_not_retry()),
    }
}

/// Answers with `bytes`, as many as the host takes.
pub(super) async fn answer(queue: &Queue, bytes: &[u8], room: usize) -> Outcome {
    let length = bytes.len().min(room);
    if length == 0 {
        return Outcome::success();
    }
    let mut buffer = queue.service.buffer(length).await;
    buffer.copy_from_slice(&bytes[..length]);
    Outcome::data(buffer)
}

/// Abort: takes back a command that no device has seen. Dword 0 bit 0 is 0 if it was aborted.
async fn abort(
    queue: &Rc<Queue>,
    controller: &Controller,
    entry: &SubmissionEntry,
) -> Result<Outcome, Status> {
    if queue.aborts.get() >= ABORTS {
        return Err(StatusCode::ABORT_LIMIT_EXCEEDED.into());
    }
    let (id, command) = entry.abort_target();
    let Some(remote) = controller.queue(id) else {
        return Ok(Outcome::result(1));
    };
    queue.aborts.set(queue.aborts.get() + 1);
    let reactor = &queue.service.reactor;
    let call = move |there: Rc<Queue>| async move { there.abort(command.get()) };
    let aborted = remote.call(reactor, call).await.unwrap_or(false);
    queue.aborts.set(queue.aborts.get() - 1);
    Ok(Outcome::result((!aborted).into()))
}
