//! What a failed command's status asks of the host: try again, and when, or give up, and why.

use std::time::Duration;

use crate::spec::status::{Status, StatusCode, StatusType};

/// How often a command may be tried in all, the first time included.
pub const MAX_ATTEMPTS: u32 = 4;
/// The wait before trying again where the controller names none.
pub const DEFAULT_DELAY: Duration = Duration::from_millis(100);
/// The longest wait that a controller is granted.
pub const MAX_DELAY: Duration = Duration::from_secs(10);

/// What to do about a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Triage {
    /// The command succeeded.
    Success,
    /// The same command may succeed after this wait.
    Retry(Duration),
    /// It will not.
    Fail(FailureKind),
}

/// What a final failure means to the layers above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The data cannot be read or written: a medium error at these blocks.
    Medium,
    /// A thin namespace has no space left.
    NoSpace,
    /// The namespace is or has become read-only.
    ReadOnly,
    /// The namespace is gone, smaller or differently formatted than we know.
    NamespaceChanged,
    /// A reservation of another host forbids it.
    ReservationConflict,
    /// The controller does not do this, or not so: our mistake, or its.
    Refused,
    /// Anything else.
    Other,
}

/// What `status` asks for. `delays` are the controller's retry delays CRDT1 to CRDT3, in units of
/// 100 ms.
#[must_use]
pub fn triage(status: Status, delays: [u16; 3]) -> Triage {
    if status.is_success() {
        return Triage::Success;
    }
    if !status.is_final() && may_pass(status.code()) {
        let delay = match usize::from(status.retry_delay()) {
            0 => DEFAULT_DELAY,
            which => Duration::from_millis(u64::from(delays[which - 1]) * 100),
        };
        return Triage::Retry(delay.min(MAX_DELAY));
    }
    Triage::Fail(kind(status.code()))
}

/// Whether a cause of failure passes by itself.
fn may_pass(code: StatusCode) -> bool {
    matches!(
        code,
        StatusCode::DATA_TRANSFER_ERROR
            | StatusCode::ABORTED_POWER_LOSS
            | StatusCode::INTERNAL_ERROR
            | StatusCode::ABORT_REQUESTED
            | StatusCode::ABORTED_QUEUE_DELETED
            | StatusCode::COMMAND_INTERRUPTED
            | StatusCode::TRANSIENT_TRANSPORT_ERROR
            | StatusCode::NAMESPACE_NOT_READY
    ) || code.status_type() == StatusType::Path
}

fn kind(code: StatusCode) -> FailureKind {
    match code {
        StatusCode::CAPACITY_EXCEEDED => FailureKind::NoSpace,
        StatusCode::NAMESPACE_WRITE_PROTECTED | StatusCode::WRITE_TO_READ_ONLY_RANGE => {
            FailureKind::ReadOnly
        }
        StatusCode::INVALID_NAMESPACE | StatusCode::LBA_OUT_OF_RANGE => {
            FailureKind::NamespaceChanged
        }
        StatusCode::RESERVATION_CONFLICT => FailureKind::ReservationConflict,
        StatusCode::INVALID_OPCODE
        | StatusCode::INVALID_FIELD
        | StatusCode::INVALID_PRP_OFFSET
        | StatusCode::COMMAND_ID_CONFLICT
        | StatusCode::COMMAND_SIZE_LIMIT_EXCEEDED => FailureKind::Refused,
        other if other.status_type() == StatusType::Media => FailureKind::Medium,
        _ => FailureKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_retried_after_the_controllers_delay() {
        let delays = [1, 20, u16::MAX];
        let busy = Status::of(StatusCode::COMMAND_INTERRUPTED);
        assert_eq!(triage(busy, delays), Triage::Retry(DEFAULT_DELAY));
        let second = busy.with_retry_delay(2);
        assert_eq!(triage(second, delays), Triage::Retry(Duration::from_secs(2)));
        assert_eq!(triage(busy.with_retry_delay(3), delays), Triage::Retry(MAX_DELAY));
        assert_eq!(triage(second.do_not_retry(), delays), Triage::Fail(FailureKind::Other));
    }

    #[test]
    fn every_status_has_an_answer() {
        for bits in 0..1 << 15 {
            let status = Status::from_bits(bits);
            let success = triage(status, [0; 3]) == Triage::Success;
            assert_eq!(success, status.is_success(), "{status}");
        }
        for (code, kind) in [
            (StatusCode::UNRECOVERED_READ_ERROR, FailureKind::Medium),
            (StatusCode::CAPACITY_EXCEEDED, FailureKind::NoSpace),
            (StatusCode::NAMESPACE_WRITE_PROTECTED, FailureKind::ReadOnly),
            (StatusCode::INVALID_NAMESPACE, FailureKind::NamespaceChanged),
            (StatusCode::INVALID_OPCODE, FailureKind::Refused),
        ] {
            assert_eq!(triage(code.into(), [0; 3]), Triage::Fail(kind));
        }
    }
}
