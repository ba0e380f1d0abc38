//! Faults: what a controller does wrong, and when.
//!
//! A fault waits for commands that match it, lets the first ones pass if told so, strikes the
//! next ones and is spent. The first fault in the order of injection that matches a command
//! strikes it, and no other does.

use std::ops::Range;
use std::time::Duration;

use crate::spec::status::Status;
use crate::units::{CommandId, Lba, QueueId};

/// What happens to a command that a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAction {
    /// It fails and nothing was done.
    Fail(Status),
    /// It is carried out and fails all the same.
    FailAfter(Status),
    /// It succeeds and nothing was done: a flush that lies, a write that went nowhere.
    Pretend,
    /// A write or write zeroes is carried out as if it had not asked for force unit access.
    IgnoreForceUnitAccess,
    /// One byte of the data is changed: of what a write stored, or of what a read returned.
    CorruptData,
    /// It is carried out and never answered.
    LoseCompletion,
    /// It is carried out at once and answered when [`release_held`] is called.
    ///
    /// [`release_held`]: super::EmulatedController::release_held
    Hold,
    /// It is carried out at once and answered when the device's clock has moved on by this much.
    Delay(Duration),
    /// It is answered under another identifier.
    WrongCommandId(CommandId),
    /// It is answered, but no interrupt says so.
    LoseInterrupt,
    /// It is answered twice.
    DuplicateCompletion,
    /// The controller sets CSTS.CFS and does nothing more until it is reset.
    FatalStatus,
    /// The controller is pulled out of its slot.
    Unplug,
}

/// Which commands, how many of them, and what happens to them.
#[derive(Clone, Debug)]
pub struct Fault {
    action: FaultAction,
    queue: Option<QueueId>,
    opcode: Option<u8>,
    blocks: Option<Range<u64>>,
    skip: u32,
    times: u32,
}

/// What a fault is held against.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) queue: QueueId,
    pub(super) opcode: u8,
    /// The blocks it names, for commands that name a range of them.
    pub(super) blocks: Option<Range<u64>>,
}

impl Fault {
    /// `action` for the next command on any I/O queue.
    #[must_use]
    pub const fn new(action: FaultAction) -> Self {
        Self { action, queue: None, opcode: None, blocks: None, skip: 0, times: 1 }
    }

    /// Only for commands on `queue`; queue 0 is the admin queue.
    #[must_use]
    pub const fn on_queue(mut self, queue: QueueId) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Only for commands with this opcode.
    #[must_use]
    pub const fn on_opcode(mut self, opcode: u8) -> Self {
        self.opcode = Some(opcode);
        self
    }

    /// Only for commands that touch a block from `start` up to, not including, `end`.
    #[must_use]
    pub const fn on_blocks(mut self, start: Lba, end: Lba) -> Self {
        self.blocks = Some(start.0..end.0);
        self
    }

    /// Lets the first `count` matching commands pass.
    #[must_use]
    pub const fn after(mut self, count: u32) -> Self {
        self.skip = count;
        self
    }

    /// Strikes `count` commands instead of one.
    #[must_use]
    pub const fn times(mut self, count: u32) -> Self {
        self.times = count;
        self
    }

    fn matches(&self, subject: &Subject) -> bool {
        let queue = match self.queue {
            Some(queue) => queue == subject.queue,
            None => subject.queue != QueueId(0),
        };
        let blocks = match (&self.blocks, &subject.blocks) {
            (None, _) => true,
            (Some(mine), Some(theirs)) => mine.start < theirs.end && theirs.start < mine.end,
            (Some(_), None) => false,
        };
        queue && blocks && self.opcode.is_none_or(|opcode| opcode == subject.opcode)
    }
}

/// The faults of one controller.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What happens to `subject`, if anything does.
    pub(super) fn strike(&mut self, subject: &Subject) -> Option<FaultAction> {
        let mut action = None;
        for fault in self.0.iter_mut().filter(|fault| fault.matches(subject)) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if action.is_none() && fault.times > 0 {
                fault.times -= 1;
                action = Some(fault.action);
            }
        }
        self.0.retain(|fault| fault.times > 0);
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::status::StatusCode;

    fn subject(queue: u16, opcode: u8, blocks: Range<u64>) -> Subject {
        Subject { queue: QueueId(queue), opcode, blocks: Some(blocks) }
    }

    #[test]
    fn faults_strike_what_they_match_and_are_spent() {
        let failure = FaultAction::Fail(StatusCode::WRITE_FAULT.into());
        let mut faults = Faults::default();
        faults.add(Fault::new(failure).on_opcode(1).on_blocks(Lba(10), Lba(20)).after(1).times(2));
        assert_eq!(faults.strike(&subject(1, 2, 10..11)), None, "opcode");
        assert_eq!(faults.strike(&subject(1, 1, 0..10)), None, "range");
        assert_eq!(faults.strike(&subject(0, 1, 10..11)), None, "admin queue");
        assert_eq!(faults.strike(&subject(1, 1, 19..30)), None, "the first");
        assert_eq!(faults.strike(&subject(1, 1, 0..11)), Some(failure));
        assert_eq!(faults.strike(&subject(9, 1, 0..99)), Some(failure));
        assert_eq!(faults.strike(&subject(1, 1, 0..99)), None, "spent");
        assert!(faults.is_empty());
    }

    #[test]
    fn one_fault_strikes_at_a_time() {
        let mut faults = Faults::default();
        faults.add(Fault::new(FaultAction::Pretend));
        faults.add(Fault::new(FaultAction::Hold));
        let any = subject(1, 0, 0..1);
        assert_eq!(faults.strike(&any), Some(FaultAction::Pretend));
        assert_eq!(faults.strike(&any), Some(FaultAction::Hold));
        assert_eq!(faults.strike(&any), None);
    }
}
