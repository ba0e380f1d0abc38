//! Reservations on the wire: Register, Acquire, Release and Report, and the two features that
//! belong to them. The log page is in `log`, and who is told what in `target`.
//!
//! A command that changes reservations runs at the owner of the volume's pool
//! ([`crate::volume::PoolOwner::reserve`]), which makes the new state durable on a thread of its
//! own, then visible on every reactor, and then lets it be answered. This reactor goes on
//! meanwhile. It is neither aborted nor dropped half-way: once it has begun it runs to its end.

use std::rc::Rc;

use super::admin::{answer, invalid_field, room};
use super::controller::Controller;
use super::io::exactly;
use super::limits::MAX_TRANSFER;
use super::queue::{Outcome, Queue};
use super::{namespace, status};
use crate::hw::dma::DmaBuffer;
use crate::reservation::{
    Command, IdentifierSize, NotificationMask, Persistence, ReportFormat, report,
};
use crate::spec::command::{ALL_NAMESPACES, SubmissionEntry};
use crate::spec::status::{Status, StatusCode};
use crate::units::NamespaceId;
use crate::volume::Volume;

/// Dword 11 of the feature Reservation Persistence: it persists through power loss.
const PERSIST: u32 = 1;

fn final_of(code: StatusCode) -> Status {
    Status::of(code).do_not_retry()
}

/// Reservation Register, Acquire, Release and Report.
pub(super) async fn run(
    queue: &Rc<Queue>,
    controller: &Controller,
    key: usize,
    entry: &SubmissionEntry,
    volume: &Volume,
    data: Option<DmaBuffer>,
) -> Result<Outcome, Status> {
    let Some(size) = Command::data_size(entry.io_opcode()) else {
        return read_report(queue, controller, key, entry, volume).await;
    };
    let command = Command::decode(entry, &exactly(data, size)?).map_err(final_of)?;
    queue.begin(key)?;
    let (catalog, host) = (&queue.service.catalog, controller.host().id);
    catalog.reserve(volume.entry(), host, command).await.map_err(status::of)?;
    Ok(Outcome::success())
}

/// Reservation Report. What is asked for beyond the end of the structure reads as zeros.
async fn read_report(
    queue: &Rc<Queue>,
    controller: &Controller,
    key: usize,
    entry: &SubmissionEntry,
    volume: &Volume,
) -> Result<Outcome, Status> {
    let format = ReportFormat::requested(entry, IdentifierSize::Bits128).map_err(final_of)?;
    let length = entry.report_length();
    if length > MAX_TRANSFER.into() {
        return Err(invalid_field());
    }
    let length = length as usize;
    if room(entry)? < length {
        return Err(final_of(StatusCode::DATA_SGL_LENGTH_INVALID));
    }
    queue.reserve(key, length).await;
    queue.begin(key)?;
    let controllers = queue.service.target.controllers_of_hosts(controller.subsystem());
    let state = volume.entry().gate().reservations();
    let whole = report(&state, format, |host| controllers.get(&host).copied());
    let mut bytes = whole.map_err(final_of)?;
    bytes.resize(length, 0);
    Ok(answer(queue, &bytes, length).await)
}

/// The one namespace that a Get Features names.
fn one_namespace(entry: &SubmissionEntry) -> Result<NamespaceId, Status> {
    match entry.nsid() {
        ALL_NAMESPACES => Err(invalid_field()),
        id if id.get() == 0 => Err(final_of(StatusCode::INVALID_NAMESPACE)),
        id => Ok(id),
    }
}

/// The namespaces that a Set Features names: one, or all that the host sees. Each can be reached.
fn namespaces(
    queue: &Queue,
    controller: &Controller,
    entry: &SubmissionEntry,
) -> Result<Vec<NamespaceId>, Status> {
    let subsystem = namespace::subsystem(queue, controller)?;
    let named = match entry.nsid() {
        ALL_NAMESPACES => None,
        _ => Some(one_namespace(entry)?),
    };
    let mut found = Vec::new();
    for namespace in subsystem.visible(&controller.host().nqn) {
        if named.is_none_or(|named| named == namespace.id) {
            namespace::check_ana(&subsystem, controller, namespace)?;
            found.push(namespace.id);
        }
    }
    if named.is_some() && found.is_empty() {
        return Err(final_of(StatusCode::INVALID_NAMESPACE));
    }
    Ok(found)
}

/// Gets feature 82h, Reservation Notification Mask.
pub(super) fn mask(
    queue: &Queue,
    controller: &Controller,
    entry: &SubmissionEntry,
) -> Result<u32, Status> {
    let id = one_namespace(entry)?;
    namespaces(queue, controller, entry)?;
    Ok(controller.lock().notifications.mask(id).bits())
}

/// Sets it.
pub(super) fn set_mask(
    queue: &Queue,
    controller: &Controller,
    entry: &SubmissionEntry,
) -> Result<Outcome, Status> {
    let ids = namespaces(queue, controller, entry)?;
    let mask = NotificationMask::from_bits(entry.feature_value());
    let notifications = &mut controller.lock().notifications;
    ids.into_iter().for_each(|id| notifications.set_mask(id, mask));
    Ok(Outcome::success())
}

/// Gets feature 83h, Reservation Persistence.
pub(super) async fn persistence(
    queue: &Queue,
    controller: &Controller,
    entry: &SubmissionEntry,
) -> Result<u32, Status> {
    let volume = namespace::volume(queue, controller, one_namespace(entry)?).await?;
    let persists = volume.entry().gate().reservations().persists();
    Ok(if persists { PERSIST } else { 0 })
}

/// Sets it; of several namespaces one after the other, and the first failure ends it.
pub(super) async fn set_persistence(
    queue: &Queue,
    controller: &Controller,
    key: usize,
    entry: &SubmissionEntry,
) -> Result<Outcome, Status> {
    let ids = namespaces(queue, controller, entry)?;
    let persistence = match entry.feature_value() & PERSIST {
        0 => Persistence::Volatile,
        _ => Persistence::ThroughPowerLoss,
    };
    queue.begin(key)?;
    let (catalog, host) = (&queue.service.catalog, controller.host().id);
    for id in ids {
        let volume = namespace::volume(queue, controller, id).await?;
        let command = Command::SetPersistence(persistence);
        catalog.reserve(volume.entry(), host, command).await.map_err(status::of)?;
    }
    Ok(Outcome::success())
}
