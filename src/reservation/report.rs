//! What Reservation Report returns (Base, "Reservation Report").

use zerocopy::IntoBytes;

use super::state::{Registrant, Reservations};
use crate::spec::command::SubmissionEntry;
use crate::spec::reservation::{
    HOLDS_RESERVATION, HostId, NO_CONTROLLER, RegisteredController, RegisteredControllerExtended,
    ReportHeader, ReportHeaderExtended,
};
use crate::spec::status::StatusCode;
use crate::units::ControllerId;

/// How long the host identifiers of a controller are: bit 0 of CTRATT, and always 128 bits over
/// fabrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentifierSize {
    /// 64 bits.
    Bits64,
    /// 128 bits.
    Bits128,
}

/// The two structures of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportFormat {
    /// With 64-bit host identifiers (EDS 0).
    Basic,
    /// With 128-bit host identifiers (EDS 1).
    Extended,
}

impl ReportFormat {
    /// The structure that a Reservation Report wants from a controller with such identifiers.
    ///
    /// # Errors
    /// `HOST_ID_INCONSISTENT_FORMAT` if it wants the structure of the other identifiers.
    pub const fn requested(
        entry: &SubmissionEntry,
        identifiers: IdentifierSize,
    ) -> Result<Self, StatusCode> {
        match (entry.wants_extended_report(), identifiers) {
            (false, IdentifierSize::Bits64) => Ok(Self::Basic),
            (true, IdentifierSize::Bits128) => Ok(Self::Extended),
            _ => Err(StatusCode::HOST_ID_INCONSISTENT_FORMAT),
        }
    }
}

/// The whole report of `state`, one entry for each registrant in the order in which they
/// registered. `controller_of` names a controller that a host has now. The command transfers as
/// much of the report as was asked for.
///
/// # Errors
/// `HOST_ID_INCONSISTENT_FORMAT` if a registrant's identifier does not fit the basic structure.
pub fn report(
    state: &Reservations,
    format: ReportFormat,
    controller_of: impl Fn(HostId) -> Option<ControllerId>,
) -> Result<Vec<u8>, StatusCode> {
    let reservation_type = state.reservation().map_or(0, |held| held.reservation_type().wire());
    let Ok(count) = u16::try_from(state.registrants().len()) else {
        unreachable!("MAX_REGISTRANTS fits in 16 bits");
    };
    let header = ReportHeader {
        generation: state.generation().into(),
        reservation_type,
        registered_controllers: count.into(),
        reserved7: [0; 2],
        persistence: u8::from(state.persists()),
        reserved10: [0; 14],
    };
    let mut bytes = match format {
        ReportFormat::Basic => header.as_bytes().to_vec(),
        ReportFormat::Extended => {
            ReportHeaderExtended { header, reserved24: [0; 40] }.as_bytes().to_vec()
        }
    };
    for &Registrant { host, key } in state.registrants() {
        let controller = controller_of(host).map_or(NO_CONTROLLER, ControllerId::get).into();
        let status = if state.is_holder(host) { HOLDS_RESERVATION } else { 0 };
        let (reserved3, key) = ([0; 5], key.get().into());
        match format {
            ReportFormat::Basic => {
                let host = host.as_64_bits().ok_or(StatusCode::HOST_ID_INCONSISTENT_FORMAT)?;
                let host = host.into();
                let entry = RegisteredController { controller, status, reserved3, host, key };
                bytes.extend_from_slice(entry.as_bytes());
            }
            ReportFormat::Extended => {
                let (host, reserved32) = (host.bytes(), [0; 32]);
                let entry = RegisteredControllerExtended {
                    controller,
                    status,
                    reserved3,
                    key,
                    host,
                    reserved32,
                };
                bytes.extend_from_slice(entry.as_bytes());
            }
        }
    }
    Ok(bytes)
}
