//! NVMe status: what a failed command answers. The one place where errors of the layers below
//! become status codes; no match here has a wildcard arm but for what grows below.

use crate::block::BlockError;
use crate::lvol;
use crate::spec::status::{Status, StatusCode};
use crate::volume::Error;

/// The status of an error of a volume.
pub(super) fn of(error: Error) -> Status {
    match error {
        // It is being deleted: the host will be told that the namespace is gone.
        Error::NotFound | Error::Deleted => {
            Status::of(StatusCode::INVALID_NAMESPACE).do_not_retry()
        }
        Error::PastEnd { .. } => Status::of(StatusCode::LBA_OUT_OF_RANGE).do_not_retry(),
        Error::NoMemory { .. } => StatusCode::COMMAND_INTERRUPTED.into(),
        Error::ReservationConflict => Status::of(StatusCode::RESERVATION_CONFLICT).do_not_retry(),
        // It could not be stored, or there is no room now: later it may succeed.
        Error::Reservation { status: StatusCode::INTERNAL_ERROR, .. } => {
            StatusCode::INTERNAL_ERROR.into()
        }
        Error::Reservation { status, .. } => Status::of(status).do_not_retry(),
        Error::ReservedName
        | Error::NotFileName { .. }
        | Error::OtherPool
        | Error::Held { .. }
        | Error::ParentOf { .. }
        | Error::PoolExists { .. }
        | Error::PoolInUse { .. }
        | Error::Cached
        | Error::Reserved
        | Error::NotAttached => StatusCode::INTERNAL_ERROR.into(),
        Error::Store(error) => of_store(error),
    }
}

fn of_store(error: lvol::Error) -> Status {
    match error {
        lvol::Error::NotFound => Status::of(StatusCode::INVALID_NAMESPACE).do_not_retry(),
        lvol::Error::NoSpace { .. } => Status::of(StatusCode::CAPACITY_EXCEEDED).do_not_retry(),
        lvol::Error::ReadOnly { .. } => {
            Status::of(StatusCode::NAMESPACE_WRITE_PROTECTED).do_not_retry()
        }
        // The volume shrank while the command was under way.
        lvol::Error::OutOfRange { .. } | lvol::Error::Unaligned { .. } => {
            Status::of(StatusCode::LBA_OUT_OF_RANGE).do_not_retry()
        }
        lvol::Error::NoMemory { .. } => StatusCode::COMMAND_INTERRUPTED.into(),
        // The same flush or write will not succeed before an operator has acted.
        lvol::Error::Poisoned { .. } => Status::of(StatusCode::WRITE_FAULT).do_not_retry(),
        lvol::Error::Device(error) => of_device(&error),
        lvol::Error::Closed | lvol::Error::Gone => StatusCode::NAMESPACE_NOT_READY.into(),
        _ => StatusCode::INTERNAL_ERROR.into(),
    }
}

fn of_device(error: &BlockError) -> Status {
    match error {
        // What the drive says of its medium is what the host should hear; flags are our own.
        BlockError::Nvme { status, .. } if status.bits() >> 8 & 7 == 2 => Status::of(status.code()),
        BlockError::Nvme { operation, .. } | BlockError::Injected { operation } => {
            medium(operation)
        }
        BlockError::System { operation, .. } | BlockError::Short { operation, .. } => {
            medium(operation)
        }
        BlockError::NoMemory { .. } => StatusCode::COMMAND_INTERRUPTED.into(),
        BlockError::CacheLost | BlockError::TakenAway(_) => StatusCode::WRITE_FAULT.into(),
        BlockError::OutOfRange { .. } | BlockError::BadLength { .. } => {
            Status::of(StatusCode::LBA_OUT_OF_RANGE).do_not_retry()
        }
        BlockError::NoQueue | BlockError::NoAnswer { .. } | BlockError::Gone => {
            StatusCode::INTERNAL_ERROR.into()
        }
    }
}

fn medium(operation: &str) -> Status {
    let code = if operation.contains("read") {
        StatusCode::UNRECOVERED_READ_ERROR
    } else {
        StatusCode::WRITE_FAULT
    };
    code.into()
}
