//! Features: Get Features and Set Features.

use super::admin::{answer, invalid_field, room};
use super::controller::{Controller, Kind};
use super::event::NOTIFY_ALL;
use super::fabrics::round_keep_alive;
use super::limits::IO_QUEUES;
use super::queue::{Outcome, Queue};
use super::{namespace, reservation};
use crate::spec::command::{ALL_NAMESPACES, Feature, QueueCounts, SubmissionEntry};
use crate::spec::status::{Status, StatusCode};

/// Values that a host has set and that change nothing but what it reads back.
#[derive(Clone, Copy, Default)]
pub(super) struct Features {
    arbitration: u32,
    power: u32,
    temperature: u32,
    error_recovery: u32,
    write_atomicity: u32,
    host_behavior: [u8; 3],
}

/// Bytes of the Host Behavior Support data.
const HOST_BEHAVIOR_SIZE: usize = 512;
/// EXHID: host identifiers have 128 bits.
const EXTENDED_HOST_ID: u32 = 1;

/// Features that belong to a namespace.
fn is_namespace_feature(feature: Feature) -> bool {
    matches!(
        feature,
        Feature::ERROR_RECOVERY
            | Feature::RESERVATION_NOTIFICATION_MASK
            | Feature::RESERVATION_PERSISTENCE
    )
}

fn check(queue: &Queue, controller: &Controller, entry: &SubmissionEntry) -> Result<(), Status> {
    let feature = entry.feature();
    let discovery = controller.kind() == Kind::Discovery;
    if discovery
        && !matches!(feature, Feature::KEEP_ALIVE_TIMER | Feature::ASYNC_EVENT_CONFIGURATION)
    {
        return Err(invalid_field());
    }
    let id = entry.nsid();
    if id.get() == 0 || discovery {
        return Ok(());
    }
    let subsystem = namespace::subsystem(queue, controller)?;
    if id != ALL_NAMESPACES && subsystem.namespace(&controller.host().nqn, id).is_none() {
        return Err(Status::of(StatusCode::INVALID_NAMESPACE).do_not_retry());
    }
    if !is_namespace_feature(feature) && id != ALL_NAMESPACES {
        return Err(Status::of(StatusCode::FEATURE_NOT_NAMESPACE_SPECIFIC).do_not_retry());
    }
    Ok(())
}

pub(super) async fn get(
    queue: &Queue,
    controller: &Controller,
    entry: &SubmissionEntry,
) -> Result<Outcome, Status> {
    // Only the current values: Save and Select are not supported.
    if entry.feature_select() != 0 {
        return Err(invalid_field());
    }
    check(queue, controller, entry)?;
    let (features, events) = {
        let state = controller.lock();
        (state.features, state.events.configuration)
    };
    let value = match entry.feature() {
        Feature::ARBITRATION => features.arbitration,
        Feature::POWER_MANAGEMENT => features.power,
        Feature::TEMPERATURE_THRESHOLD => features.temperature,
        Feature::ERROR_RECOVERY => features.error_recovery,
        Feature::VOLATILE_WRITE_CACHE => 1,
        Feature::NUMBER_OF_QUEUES => {
            let granted = controller.granted().into();
            QueueCounts { submission: granted, completion: granted }.to_dword()
        }
        Feature::WRITE_ATOMICITY => features.write_atomicity,
        Feature::ASYNC_EVENT_CONFIGURATION => events,
        Feature::KEEP_ALIVE_TIMER => controller.keep_alive(),
        Feature::HOST_BEHAVIOR => {
            let mut bytes = [0; HOST_BEHAVIOR_SIZE];
            bytes[..3].copy_from_slice(&features.host_behavior);
            return with_data(queue, entry, &bytes).await;
        }
        Feature::HOST_IDENTIFIER => {
            if entry.feature_value() & EXTENDED_HOST_ID == 0 {
                let code = StatusCode::HOST_ID_INCONSISTENT_FORMAT;
                return Err(Status::of(code).do_not_retry());
            }
            return with_data(queue, entry, &controller.host().id.bytes()).await;
        }
        Feature::RESERVATION_NOTIFICATION_MASK => reservation::mask(queue, controller, entry)?,
        Feature::RESERVATION_PERSISTENCE => {
            reservation::persistence(queue, controller, entry).await?
        }
        _ => return Err(invalid_field()),
    };
    Ok(Outcome::result(value.into()))
}

async fn with_data(
    queue: &Queue,
    entry: &SubmissionEntry,
    bytes: &[u8],
) -> Result<Outcome, Status> {
    let room = room(entry)?;
    if room < bytes.len() {
        return Err(invalid_field());
    }
    Ok(answer(queue, bytes, room).await)
}

pub(super) async fn set(
    queue: &Queue,
    controller: &Controller,
    key: usize,
    entry: &SubmissionEntry,
    data: Option<&[u8]>,
) -> Result<Outcome, Status> {
    if entry.feature_save() {
        return Err(Status::of(StatusCode::FEATURE_NOT_SAVEABLE).do_not_retry());
    }
    check(queue, controller, entry)?;
    let value = entry.feature_value();
    match entry.feature() {
        Feature::RESERVATION_NOTIFICATION_MASK => {
            return reservation::set_mask(queue, controller, entry);
        }
        Feature::RESERVATION_PERSISTENCE => {
            return reservation::set_persistence(queue, controller, key, entry).await;
        }
        _ => {}
    }
    let mut state = controller.lock();
    let features = &mut state.features;
    match entry.feature() {
        Feature::ARBITRATION => features.arbitration = value,
        // There is one power state.
        Feature::POWER_MANAGEMENT if value & 0x1f != 0 => return Err(invalid_field()),
        Feature::POWER_MANAGEMENT => features.power = value,
        Feature::TEMPERATURE_THRESHOLD => features.temperature = value,
        // DULBE is not supported.
        Feature::ERROR_RECOVERY if value & 1 << 16 != 0 => return Err(invalid_field()),
        Feature::ERROR_RECOVERY => features.error_recovery = value,
        // The cache cannot be turned off.
        Feature::VOLATILE_WRITE_CACHE if value & 1 == 0 => {
            return Err(Status::of(StatusCode::FEATURE_NOT_CHANGEABLE).do_not_retry());
        }
        Feature::VOLATILE_WRITE_CACHE => {}
        Feature::NUMBER_OF_QUEUES => {
            drop(state);
            return number_of_queues(controller, value);
        }
        Feature::WRITE_ATOMICITY => features.write_atomicity = value & 1,
        Feature::ASYNC_EVENT_CONFIGURATION => {
            if value & !NOTIFY_ALL != 0 {
                return Err(invalid_field());
            }
            state.events.configuration = value;
        }
        Feature::KEEP_ALIVE_TIMER => {
            controller.set_keep_alive(round_keep_alive(controller.kind(), value));
        }
        Feature::HOST_BEHAVIOR => {
            let data = data.filter(|data| data.len() >= HOST_BEHAVIOR_SIZE);
            let data =
                data.ok_or(Status::of(StatusCode::DATA_SGL_LENGTH_INVALID).do_not_retry())?;
            // Extended formats are not supported, so there is nothing to agree on but ACRE.
            if data[0] > 1 || data[2] > 1 {
                return Err(invalid_field());
            }
            features.host_behavior.copy_from_slice(&data[..3]);
        }
        // Fabrics hosts tell it in Connect.
        Feature::HOST_IDENTIFIER => {
            return Err(Status::of(StatusCode::COMMAND_SEQUENCE_ERROR).do_not_retry());
        }
        _ => return Err(invalid_field()),
    }
    Ok(Outcome::success())
}

fn number_of_queues(controller: &Controller, value: u32) -> Result<Outcome, Status> {
    let wanted = QueueCounts::from_dword(value);
    if value & 0xffff == 0xffff || value >> 16 == 0xffff {
        return Err(invalid_field());
    }
    if controller.io_queues() > 0 {
        return Err(Status::of(StatusCode::COMMAND_SEQUENCE_ERROR).do_not_retry());
    }
    // A queue pair is one connection: the smaller number of the two counts.
    let granted = wanted.submission.min(wanted.completion).min(IO_QUEUES.into());
    controller.grant(granted as u16);
    let granted = QueueCounts { submission: granted, completion: granted };
    Ok(Outcome::result(granted.to_dword().into()))
}
